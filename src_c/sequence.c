/* sequence.c -- the order of rows and the walks over arrays. */
#include "sequence.h"

#include <string.h>

/* The least work of a call, in flops, that is worth a second thread, and that is worth waking one;
 * and of a step, where every step ends in a barrier. */
static const double PARALLEL_CALL_FLOPS = 2.5e5, WAKING_CALL_FLOPS = 4e6, PARALLEL_STEP_FLOPS = 6e4;
/* Weights of one pass up to this size stay in the L2 cache of each core that reads them. */
static const double CACHED_BYTES = 768 << 10;
/* Rows per thread that make up for reading all weights from further away. */
enum { STREAMED_ROWS = 8 };

void cylstm_carve_order(struct cylstm_arena *arena, struct cylstm_order *order,
                        const struct cylstm_sequence *seq)
{
    *order = (struct cylstm_order){.B = seq->B, .T = seq->T};
    if (!seq->lengths) return;
    order->row = cylstm_carve(arena, seq->B, sizeof(size_t));
    order->length = cylstm_carve(arena, seq->B, sizeof(size_t));
}

/* Falling length, and the order of the batch among equals: with no equal keys any sort
 * is stable, so the small in-place one below will do. */
static int comes_before(size_t length_a, size_t row_a, size_t length_b, size_t row_b)
{
    return length_a > length_b || (length_a == length_b && row_a < row_b);
}

void cylstm_sort_rows(struct cylstm_order *order, const struct cylstm_sequence *seq)
{
    if (!order->row) return;
    for (size_t b = 0; b < seq->B; b++) {
        order->row[b] = b;
        order->length[b] = seq->lengths[b];
    }
    for (size_t gap = seq->B / 2; gap; gap = gap == 2 ? 1 : gap * 5 / 11) /* Shell's sort */
        for (size_t i = gap; i < seq->B; i++) {
            const size_t row = order->row[i], length = order->length[i];
            size_t j = i;
            for (;
                 j >= gap && comes_before(length, row, order->length[j - gap], order->row[j - gap]);
                 j -= gap) {
                order->row[j] = order->row[j - gap];
                order->length[j] = order->length[j - gap];
            }
            order->row[j] = row;
            order->length[j] = length;
        }
    order->T = order->length[0];
}

struct cylstm_walk cylstm_make_walk(const struct cylstm_order *order, size_t real_size, int reverse,
                                    void *base, ptrdiff_t t, ptrdiff_t b, ptrdiff_t *offset)
{
    struct cylstm_walk walk = {
        .base = base, .offset = offset, .stride = b, .step = reverse ? -t : t};
    if (!base) return walk;
    if (!offset) {
        if (reverse) walk.base = cylstm_at(base, real_size, (ptrdiff_t)(order->T - 1) * t);
        return walk;
    }
    for (size_t r = 0; r < order->B; r++) {
        const size_t length = order->length[r];
        offset[r] =
            (ptrdiff_t)order->row[r] * b + (reverse && length ? (ptrdiff_t)(length - 1) * t : 0);
    }
    return walk;
}

struct cylstm_split cylstm_split_work(const struct cylstm_context *ctx,
                                      const struct cylstm_dims *dims, size_t B, double rows,
                                      size_t panels, size_t weights, int split_directions)
{
    const double R = (double)cylstm_hidden_width(dims), H = (double)dims->hidden;
    const double weight_bytes = (double)weights * (double)dims->bits / 8;
    const double step_flops = 8 * (double)B * H * R;
    size_t n = ctx->threads > 1 ? (size_t)ctx->threads : 1;
    struct cylstm_split split = {.threads = 1, .directions = 1, .rows = 1};
    const int blas = ctx->sgemm || ctx->dgemm; /* which has threads of its own */
    const double flops = cylstm_forward_flops(dims, rows);
    if (n < 2 || blas || flops < PARALLEL_CALL_FLOPS) return split;
    split.small = flops < WAKING_CALL_FLOPS;
    if (split_directions && dims->directions == 2 && n % 2 == 0) split.directions = 2;
    const int streams = weight_bytes > CACHED_BYTES && B / n < STREAMED_ROWS;
    if (split.directions == 1 && (B < n || streams) && step_flops >= PARALLEL_STEP_FLOPS &&
        panels > 1) {
        split.by_units = 1;
        split.threads = (int)(panels < n ? panels : n);
        return split;
    }
    split.rows = B < n / split.directions ? B : n / split.directions;
    split.threads = (int)(split.rows * split.directions);
    return split;
}

struct cylstm_range cylstm_share_rows(const struct cylstm_order *order, size_t shares, size_t j)
{
    if (!order->length) return cylstm_share(order->B, shares, j);
    size_t total = 0, sum = 0, bound[2] = {0, 0};
    for (size_t r = 0; r < order->B; r++) total += order->length[r];
    const struct cylstm_range want = cylstm_share(total, shares, j);
    for (size_t r = 0; r < order->B; r++) {
        if (sum < want.begin) bound[0] = r + 1;
        if (sum < want.end) bound[1] = r + 1;
        sum += order->length[r];
    }
    if (j == shares - 1) bound[1] = order->B;
    return (struct cylstm_range){bound[0], bound[1]};
}

void cylstm_load_rows(const struct cylstm_order *order, size_t real_size, size_t n,
                      const void *state, size_t stride, void *rows)
{
    for (size_t r = 0; r < order->B; r++) {
        char *row = cylstm_at(rows, real_size, (ptrdiff_t)(r * stride));
        const size_t used = state ? n : 0;
        if (used)
            memcpy(row, cylstm_at(state, real_size, (ptrdiff_t)(cylstm_batch_row(order, r) * n)),
                   n * real_size);
        memset(row + used * real_size, 0, (stride - used) * real_size);
    }
}

void cylstm_clear_padding(const struct cylstm_sequence *seq, void *array, ptrdiff_t t, ptrdiff_t b,
                          size_t width, size_t real_size)
{
    if (!seq->lengths) return;
    for (size_t row = 0; row < seq->B; row++)
        for (size_t step = seq->lengths[row]; step < seq->T; step++)
            memset(cylstm_at(array, real_size, (ptrdiff_t)row * b + (ptrdiff_t)step * t), 0,
                   width * real_size);
}
