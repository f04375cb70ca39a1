/* cells.h -- the kinds of cell: the one place that knows how many gates, states and vectors of tape a
 * cell has, and which of its gates meet which weights. */
#ifndef CYLSTM_CELLS_H
#define CYLSTM_CELLS_H

#include "cylstm.h"
#include "kernels/kernels.h"

#include <string.h>

enum { CYLSTM_NONE = -1 };

/* One vector of a panel of gates: the raw gates whose rows it holds, of weight_ih and bias_ih, and of
 * weight_hh and bias_hh; or CYLSTM_NONE. */
struct cylstm_vector {
    signed char ih, hh;
};

/* Neighbouring dgates, [from, from + count) times H, that belong to neighbouring raw gates. */
struct cylstm_run {
    unsigned char from, count;
};

enum { CYLSTM_RUNS = 2 }; /* a product has as many terms */

struct cylstm_cell_kind {
    struct cylstm_cell_shape shape;
    enum cylstm_cell_math math;
    /* Vectors of a panel that belong to the same units: all 4, as `vector` says; or 1, and a panel
     * is 4 VL units of the gate vector[0]. */
    unsigned char unit_vectors;
    unsigned char narrow; /* x meets all vectors but the last, h all but the first */
    struct cylstm_vector vector[PANEL_VECTORS];
    unsigned char dgates; /* vectors of H that a step back leaves: its d pre-activations */
    unsigned char
        blends; /* h_t holds a part of h_{t-1}: the cell reads it, and adds to its gradient */
    /* The dgates that weight_ih and bias_ih meet, and weight_hh and bias_hh, in raw order. */
    struct cylstm_run ih[CYLSTM_RUNS], hh[CYLSTM_RUNS];
};

/* Whether the two biases are added to the same sums, so that they have the same gradient. */
static inline int cylstm_biases_alike(const struct cylstm_cell_kind *kind)
{
    return !memcmp(kind->ih, kind->hh, sizeof kind->ih);
}

const struct cylstm_cell_kind *cylstm_cell_kind(const struct cylstm_dims *dims);

/* What `dims` ask for beyond the plain cell. Returns whether it is anything. */
int cylstm_cell_options(const struct cylstm_dims *dims, struct cylstm_options *options);

#endif
