/* cells.h -- the kinds of cell: the one place that knows how many gates, states and vectors of tape a
 * cell has, and which of its gates meet which weights. */
#ifndef CYLSTM_CELLS_H
#define CYLSTM_CELLS_H

#include "cylstm.h"
#include "kernels/kernels.h"

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

enum {
    CYLSTM_RUNS = 2, /* a product has as many terms */
    CYLSTM_NORM_ARRAYS = 5
};

/* A packed matrix of gates. */
struct cylstm_panels {
    enum cylstm_cell_math math; /* what becomes of its sums */
    /* Vectors of a panel that belong to the same units: all 4, as `vector` says; or 2 or 1, and a
     * panel is 2 VL or 4 VL units of the gates vector[0] and [1]. 0: there is no such matrix. */
    unsigned char unit_vectors;
    unsigned char narrow; /* x meets all vectors but the last, h all but the first */
    struct cylstm_vector vector[PANEL_VECTORS];
};

struct cylstm_cell_kind {
    struct cylstm_cell_shape shape;
    enum cylstm_function_type function[3]; /* its activations, where no others are asked for */
    int coupled;                           /* as of struct cylstm_options */
    /* The gates of a step's product; and those of a second one, in which h is replaced by what the
     * first gates have made of it. */
    struct cylstm_panels first, second;
    unsigned char dgates;     /* vectors of H that a step back leaves: its d pre-activations */
    unsigned char blends;     /* h_t holds a part of h_{t-1} */
    unsigned char two_biases; /* b_ih and b_hh are not all added to the same sums */
    /* Gates that can see c, in order, and the dgates that are theirs: the last one sees c after the
     * step, and the others before it. */
    unsigned char peepholes, peep_dgate[3];
    /* The cell waits for whole rows of sums, which are normalised. Then biases and weights of the norm
     * are met unit by unit, and a step back leaves so many vectors of H more, `dnorm`, of which their
     * gradients are sums. */
    unsigned char norm;
    struct cylstm_norm_sum {
        enum cylstm_array_type type;
        struct cylstm_run of;
    } norm_sums[CYLSTM_NORM_ARRAYS];
    enum cylstm_norm_math norm_math;
    unsigned char apart; /* the products of x and of h are kept by themselves */
    /* The dgates that weight_ih and bias_ih meet, and bias_hh, and those that weight_hh meets with
     * h_{t-1}, all in raw order; and those behind them, which it meets in the second product. */
    struct cylstm_run ih[CYLSTM_RUNS], hh[CYLSTM_RUNS], second_hh;
};

const struct cylstm_cell_kind *cylstm_cell_kind(const struct cylstm_dims *dims);

/* What the cells of a direction are told at run time. Returns whether it is anything beyond the plain
 * cell. */
int cylstm_cell_options(const struct cylstm_dims *dims, size_t direction,
                        struct cylstm_options *options);

#endif
