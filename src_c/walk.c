/* walk.c -- the order of rows and the walks over arrays. */
#include "walk.h"

#include <string.h>

void cylstm_carve_order(struct cylstm_arena *arena, struct cylstm_order *order,
                        const struct cylstm_sequence *seq)
{
    *order = (struct cylstm_order){.B = seq->B, .T = seq->T};
    const size_t flags = cylstm_times(cylstm_plus(seq->T, 1), seq->B);
    for (int reverse = 0; reverse < 2 && seq->reset; reverse++)
        order->reset[reverse] = cylstm_carve(arena, flags, 1);
    if (!seq->lengths && !seq->mask) return;
    order->row = cylstm_carve(arena, seq->B, sizeof(size_t));
    order->length = cylstm_carve(arena, seq->B, sizeof(size_t));
    if (seq->mask) order->time = cylstm_carve(arena, cylstm_times(seq->T, seq->B), sizeof(size_t));
}

static size_t length_of(const struct cylstm_sequence *seq, size_t row)
{
    return seq->lengths ? seq->lengths[row] : seq->T;
}

static size_t count_steps(const struct cylstm_sequence *seq, size_t row)
{
    size_t count = 0;
    if (!seq->mask) return length_of(seq, row);
    for (size_t t = 0; t < length_of(seq, row); t++) count += (size_t)cylstm_is_valid(seq, row, t);
    return count;
}

/* The steps of row r, as a direction meets them, and what it meets on its way. */
static void list_resets(const struct cylstm_order *order, const struct cylstm_sequence *seq,
                        size_t r, int reverse)
{
    const size_t row = cylstm_batch_row(order, r), length = length_of(seq, row), B = seq->B;
    unsigned char *reset = order->reset[reverse] + r, is_reset = 0;
    for (size_t n = 0; n < length; n++) {
        const size_t t = reverse ? length - 1 - n : n, boundary = reverse ? t + 1 : t;
        is_reset |= boundary < length && seq->reset[boundary * B + row];
        if (!cylstm_is_valid(seq, row, t)) continue;
        *reset = is_reset;
        reset += B;
        is_reset = 0;
    }
    *reset = is_reset;
}

static void list_steps(struct cylstm_order *order, const struct cylstm_sequence *seq)
{
    for (size_t r = 0; r < order->B; r++) {
        const size_t row = cylstm_batch_row(order, r);
        for (size_t t = 0, s = 0; order->time && s < order->length[r]; t++)
            if (cylstm_is_valid(seq, row, t)) order->time[s++ * order->B + r] = t;
        for (int reverse = 0; reverse < 2 && seq->reset; reverse++)
            list_resets(order, seq, r, reverse);
    }
}

/* Falling length, and the order of the batch among equals: with no equal keys any sort
 * is stable, so the small in-place one below will do. */
static int comes_before(size_t length_a, size_t row_a, size_t length_b, size_t row_b)
{
    return length_a > length_b || (length_a == length_b && row_a < row_b);
}

void cylstm_sort_rows(struct cylstm_order *order, const struct cylstm_sequence *seq)
{
    if (!order->row) {
        list_steps(order, seq);
        return;
    }
    for (size_t b = 0; b < seq->B; b++) {
        order->row[b] = b;
        order->length[b] = count_steps(seq, b);
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
    list_steps(order, seq);
}

ptrdiff_t *cylstm_carve_offsets(struct cylstm_arena *arena, const struct cylstm_sequence *seq)
{
    return seq->lengths || seq->mask ? cylstm_carve(arena, seq->B, sizeof(ptrdiff_t)) : NULL;
}

ptrdiff_t *cylstm_carve_outer_offsets(struct cylstm_arena *arena, const struct cylstm_sequence *seq)
{
    if (!seq->mask) return cylstm_carve_offsets(arena, seq);
    return cylstm_carve(arena, cylstm_times(seq->T, seq->B), sizeof(ptrdiff_t));
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

struct cylstm_walk cylstm_make_outer_walk(const struct cylstm_order *order, size_t real_size,
                                          int reverse, void *base, ptrdiff_t t, ptrdiff_t b,
                                          ptrdiff_t *offset)
{
    if (!order->time || !base)
        return cylstm_make_walk(order, real_size, reverse, base, t, b, offset);
    const size_t B = order->B;
    for (size_t r = 0; r < B; r++)
        for (size_t s = 0; s < order->length[r]; s++) {
            const size_t step = reverse ? order->length[r] - 1 - s : s;
            offset[s * B + r] =
                (ptrdiff_t)order->row[r] * b + (ptrdiff_t)order->time[step * B + r] * t;
        }
    return (struct cylstm_walk){.base = base, .offset = offset, .stride = b, .rows = B};
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
    if (!seq->lengths && !seq->mask) return;
    for (size_t row = 0; row < seq->B; row++)
        for (size_t step = seq->mask ? 0 : seq->lengths[row]; step < seq->T; step++)
            if (!cylstm_is_valid(seq, row, step))
                memset(cylstm_at(array, real_size, (ptrdiff_t)row * b + (ptrdiff_t)step * t), 0,
                       width * real_size);
}

void cylstm_hold_outputs(const struct cylstm_sequence *seq, int reverse, void *y, size_t width,
                         size_t real_size)
{
    for (size_t row = 0; row < seq->B; row++) {
        const size_t length = length_of(seq, row);
        const char *shown = NULL;
        for (size_t n = 0; n < length; n++) {
            const size_t t = reverse ? length - 1 - n : n;
            char *here =
                cylstm_at(y, real_size, (ptrdiff_t)row * seq->y_b + (ptrdiff_t)t * seq->y_t);
            if (cylstm_is_valid(seq, row, t))
                shown = here;
            else if (shown)
                memcpy(here, shown, width * real_size);
        }
    }
}

void cylstm_sum_held(const struct cylstm_kernels *kernels, const struct cylstm_sequence *seq,
                     int reverse, const void *dy, ptrdiff_t dy_t, ptrdiff_t dy_b, size_t width,
                     void *ones, void *sums, ptrdiff_t t, ptrdiff_t b)
{
    const size_t size = (size_t)kernels->bits / 8;
    const struct cylstm_rows one = {ones, NULL, 0};
    for (size_t row = 0; row < seq->B; row++) {
        const size_t length = length_of(seq, row);
        for (size_t n = 0, next; n < length; n = next) {
            const size_t step = reverse ? length - 1 - n : n;
            for (next = n + 1; next < length; next++)
                if (cylstm_is_valid(seq, row, reverse ? length - 1 - next : next)) break;
            if (!cylstm_is_valid(seq, row, step)) continue;
            const struct cylstm_rows held = {
                cylstm_at(dy, size, (ptrdiff_t)row * dy_b + (ptrdiff_t)step * dy_t), NULL,
                reverse ? -dy_t : dy_t};
            kernels->sum_products(&held, &one, next - n, width, 0,
                                  cylstm_at(sums, size, (ptrdiff_t)row * b + (ptrdiff_t)step * t));
        }
    }
}
