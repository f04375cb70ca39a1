/* layout.h -- where everything lies: raw weights, packed panels, padded rows. */
#ifndef CYLSTM_LAYOUT_H
#define CYLSTM_LAYOUT_H

#include "cylstm.h"
#include "kernels/kernels.h"

/* A packed matrix: panels one after another, each (K, 4 VL). */
struct cylstm_matrix {
    enum cylstm_kind {
        CYLSTM_GATES,  /* panels of 4 gates by VL units; k over bias, W_ih, W_hh. The last one's
                          gates are as many units long as fill whole vectors together. */
        CYLSTM_ROWS,   /* panels of 4 VL rows of a raw matrix (columns, K) */
        CYLSTM_COLUMNS /* panels of 4 VL columns of a raw matrix (K, columns) */
    } kind;
    size_t K, columns; /* of the gates: 1 + I + R, and 4 H rounded up to whole vectors */
    size_t at;         /* where it starts in its pack */
    size_t raw;        /* where the raw matrix starts; the gates have several */
};

/* One layer and direction. Offsets count reals from the start of their array. */
struct cylstm_layer {
    size_t I, H, R, P;
    int bias;
    size_t raw_ih, raw_hh, raw_b_ih, raw_b_hh, raw_hr; /* where each starts in the raw weights */
    struct cylstm_matrix gates, hr;                    /* in the forward pack */
    struct cylstm_matrix hh_t, ih_t, hr_t; /* in the backward pack, to multiply dgates and dh */
};

static inline size_t cylstm_larger(size_t a, size_t b) { return a > b ? a : b; }
static inline size_t cylstm_round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* Reals from one padded row to the next. The extra vector keeps rows whose width is a
 * power of two from falling into the same cache sets. */
static inline size_t cylstm_stride(const struct cylstm_kernels *k, size_t n)
{
    return cylstm_round_up(n, k->lanes) + k->lanes;
}

static inline size_t cylstm_real_size(const struct cylstm_kernels *k)
{
    return (size_t)k->bits / 8;
}

/* In integers: a walk over a block counts from a base that may lie outside its array. */
static inline void *cylstm_at(const void *base, size_t real_size, ptrdiff_t index)
{
    return (void *)((uintptr_t)base + (uintptr_t)index * real_size);
}

static inline size_t cylstm_hidden_width(const struct cylstm_dims *dims)
{
    return dims->proj ? dims->proj : dims->hidden;
}

struct cylstm_layer cylstm_find_layer(const struct cylstm_kernels *kernels,
                                      const struct cylstm_dims *dims, size_t layer,
                                      size_t direction);

static inline size_t cylstm_panel_width(const struct cylstm_kernels *k)
{
    return PANEL_VECTORS * k->lanes;
}
static inline size_t cylstm_panels_of(const struct cylstm_kernels *k, size_t columns)
{
    return (columns + cylstm_panel_width(k) - 1) / cylstm_panel_width(k);
}

#endif
