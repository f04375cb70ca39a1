/* walk.c -- the order of rows and the walks over arrays. */
#include "walk.h"

#include <string.h>

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
