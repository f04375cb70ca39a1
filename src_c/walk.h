/* walk.h -- how a pass walks a batch of sequences: rows in order of falling length, steps counted
 * from each row's own start.
 *
 * Step s of a row is time s going forward and time length - 1 - s in reverse. Rows are
 * sorted by falling length, so that the rows still active at a step are the first ones
 * and the cost follows the valid steps.
 */
#ifndef CYLSTM_WALK_H
#define CYLSTM_WALK_H

#include "arena.h"

/* -------------------------------------------------------------------- rows and steps */

struct cylstm_order {
    size_t B, T; /* T: the longest length */
    size_t *row,
        *length; /* (B): batch index and length of the r-th row; NULL: all rows are of length T, in place */
    /* With a mask, lengths count the steps that it leaves, and this is (T, B), when they are. */
    size_t *time;
    /* (T + 1, B) by the way a direction goes: whether the states are zero before step s of row r; at
     * its length, whether they are behind its last step. NULL: never. */
    unsigned char *reset[2];
};

/* Fill `order`, whose arrays have been carved, or make it plain where all lengths are equal. */
void cylstm_carve_order(struct cylstm_arena *arena, struct cylstm_order *order,
                        const struct cylstm_sequence *seq);
void cylstm_sort_rows(struct cylstm_order *order, const struct cylstm_sequence *seq);

static inline size_t cylstm_batch_row(const struct cylstm_order *o, size_t r)
{
    return o->row ? o->row[r] : r;
}
static inline size_t cylstm_row_length(const struct cylstm_order *o, size_t r)
{
    return o->length ? o->length[r] : o->T;
}

/* How many of the first `rows` rows are active at step s. */
static inline size_t cylstm_active_rows(const struct cylstm_order *o, size_t rows, size_t s)
{
    if (!o->length) return s < o->T ? rows : 0;
    size_t low = 0, high = rows; /* rows below low are active, from high on are not */
    while (low < high) {
        const size_t mid = (low + high) / 2;
        if (o->length[mid] > s)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* A (T, B, .) array as one direction walks it: row r of step s starts at
 * base + s * step + (offset[r], or r * stride). */
struct cylstm_walk {
    void *base;
    ptrdiff_t *offset; /* (B), carved where the rows have lengths of their own; else NULL */
    ptrdiff_t stride, step;
    size_t rows; /* B: `offset` is (T, B), for every step its own; or 0 */
};

/* The walk of direction `reverse` over an array with strides t and b. `offset` is
 * memory for (B) offsets or NULL, as cylstm_carve_offsets gave it. Where there is a mask, the array
 * has a place for every step that it leaves, one after another. */
struct cylstm_walk cylstm_make_walk(const struct cylstm_order *order, size_t real_size, int reverse,
                                    void *base, ptrdiff_t t, ptrdiff_t b, ptrdiff_t *offset);
ptrdiff_t *cylstm_carve_offsets(struct cylstm_arena *arena, const struct cylstm_sequence *seq);

/* Likewise over an array from outside or of the tape, which has a place for every step. */
struct cylstm_walk cylstm_make_outer_walk(const struct cylstm_order *order, size_t real_size,
                                          int reverse, void *base, ptrdiff_t t, ptrdiff_t b,
                                          ptrdiff_t *offset);
ptrdiff_t *cylstm_carve_outer_offsets(struct cylstm_arena *arena,
                                      const struct cylstm_sequence *seq);

static inline ptrdiff_t cylstm_walk_offset(const struct cylstm_walk *w, size_t r, size_t s)
{
    return (w->offset ? w->offset[s * w->rows + r] : (ptrdiff_t)r * w->stride) +
           (ptrdiff_t)s * w->step;
}

/* Rows r0 and on of step s. */
static inline struct cylstm_rows cylstm_walk_rows(const struct cylstm_walk *w, size_t real_size,
                                                  size_t r0, size_t s)
{
    struct cylstm_rows rows = {NULL, NULL, w->stride};
    if (!w->base) return rows;
    const ptrdiff_t first = w->offset ? 0 : (ptrdiff_t)r0 * w->stride;
    rows.base = cylstm_at(w->base, real_size, first + (ptrdiff_t)s * w->step);
    rows.offset = w->offset ? w->offset + s * w->rows + r0 : NULL;
    return rows;
}

/* ---------------------------------------------------------------------- moving states */

/* A state array (B, n), in the order of the batch, into padded rows in sorted order. NULL
 * stands for zeros; padding is set to zero. */
void cylstm_load_rows(const struct cylstm_order *order, size_t real_size, size_t n,
                      const void *state, size_t stride, void *rows);

/* Whether step s of a row begins with states of zero. */
static inline int cylstm_is_reset(const unsigned char *reset, const struct cylstm_order *o,
                                  size_t r, size_t s)
{
    return reset && reset[s * o->B + r];
}

/* Whether a sequence has a step at time t. */
static inline int cylstm_is_valid(const struct cylstm_sequence *seq, size_t row, size_t t)
{
    return (!seq->lengths || t < seq->lengths[row]) && (!seq->mask || seq->mask[t * seq->B + row]);
}

/* Of a direction's `width` reals of y, and back: what a step shows until the next one, and what a loss
 * says of all that it shows. `ones` is `width` times 1, `sums` is (T, B, .) with its own strides. */
void cylstm_hold_outputs(const struct cylstm_sequence *seq, int reverse, void *y, size_t width,
                         size_t real_size);
void cylstm_sum_held(const struct cylstm_kernels *kernels, const struct cylstm_sequence *seq,
                     int reverse, const void *dy, ptrdiff_t dy_t, ptrdiff_t dy_b, size_t width,
                     void *ones, void *sums, ptrdiff_t t, ptrdiff_t b);

/* Set the steps of a (T, B, width) array that no sequence has to zero. */
void cylstm_clear_padding(const struct cylstm_sequence *seq, void *array, ptrdiff_t t, ptrdiff_t b,
                          size_t width, size_t real_size);

/* Reals of a step on the tape, and where in them c begins. */
static inline size_t cylstm_tape_row(const struct cylstm_tape *tape, const struct cylstm_layer *l)
{
    if (!tape->checkpoint) return l->tape;
    return l->kind->shape.states > 1 ? l->H : 0;
}
static inline size_t cylstm_tape_cell(const struct cylstm_tape *tape, const struct cylstm_layer *l)
{
    return tape->checkpoint ? 0 : l->tape - l->H;
}

/* Of a pass, layer n / D in direction n % D; and of its step s, of rows r0 and on. */
static inline struct cylstm_zoneout cylstm_pass_zoneout(const struct cylstm_dims *dims,
                                                        const struct cylstm_tape *tape, size_t n)
{
    struct cylstm_zoneout z = {.p = dims->zoneout, .width = cylstm_hidden_width(dims)};
    if (!tape) return z;
    z.drawn = tape->draws_zoneout;
    z.key = tape->dropout_key + ((UINT64_C(1) << 32) + n) * UINT64_C(0x9e3779b97f4a7c15);
    return z;
}
static inline struct cylstm_zoneout cylstm_step_zoneout(const struct cylstm_zoneout *pass,
                                                        const struct cylstm_order *order, size_t s,
                                                        size_t r0)
{
    struct cylstm_zoneout z = *pass;
    z.row = order->row ? order->row + r0 : NULL;
    z.first = s * order->B + (order->row ? 0 : r0);
    return z;
}

/* The dropout between layer - 1 and layer. */
static inline struct cylstm_dropout cylstm_layer_dropout(const struct cylstm_tape *tape,
                                                         size_t layer)
{
    return (struct cylstm_dropout){tape->dropout,
                                   tape->dropout_key + layer * UINT64_C(0x9e3779b97f4a7c15)};
}

#endif
