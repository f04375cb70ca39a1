/* layout.h -- where everything lies: raw weights, packed panels, padded rows. */
#ifndef CYLSTM_LAYOUT_H
#define CYLSTM_LAYOUT_H

#include "cylstm.h"
#include "kernels/kernels.h"

/* One layer and direction. Offsets count reals from the start of their array. Packed
 * matrices are panels one after another, each (K, 4 VL):
 *     gates  H/VL panels of 4 gates by VL units;   K = 1 + I + R: bias, W_ih, W_hh.
 *            The last one's gates are as many units long as fill whole vectors together.
 *     hr     P/4VL panels of 4 VL projected units; K = H
 *     hh_t   R/4VL panels of 4 VL units of h;      K = 4H
 *     ih_t   I/4VL panels of 4 VL inputs;          K = 4H
 *     hr_t   H/4VL panels of 4 VL hidden units;    K = P                        */
struct cylstm_layer {
    size_t I, H, R, P;
    size_t columns; /* of the gates' panels: 4 H rounded up to whole vectors */
    size_t K;       /* 1 + I + R */
    size_t raw_ih, raw_hh, raw_b_ih, raw_b_hh, raw_hr; /* in the raw weights */
    size_t gates, hr;                                  /* in the forward pack */
    size_t hh_t, ih_t, hr_t;                           /* in the backward pack */
};

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

#endif
