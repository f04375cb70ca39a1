/* layout.h -- where everything lies: raw weights, packed panels, padded rows. */
#ifndef CYLSTM_LAYOUT_H
#define CYLSTM_LAYOUT_H

#include "cells.h"
#include "kernels/compact.h"
#include "sizes.h"

/* A packed matrix: panels one after another, each of them its row of biases, if it has one, and K
 * rows of weights. */
struct cylstm_matrix {
    enum cylstm_matrix_type {
        CYLSTM_GATES,  /* panels of gates by units, as the cell says; k over W_ih, W_hh, behind the
                          biases. A last one's gates are as many units long as fill whole vectors
                          together; in a format of fewer bits, as long as in any. */
        CYLSTM_ROWS,   /* panels of 4 VL rows of a raw matrix (columns, K) */
        CYLSTM_COLUMNS /* panels of 4 VL columns of a raw matrix (K, columns) */
    } type;
    size_t K, columns;          /* of the gates: I + R, and the units' columns in whole vectors */
    size_t first;               /* of the K, those of the first raw matrix: I */
    enum cylstm_array_type raw; /* the raw matrix; the gates have several */
    enum cylstm_format_type format;
    int narrow;                        /* rows of weights are three vectors wide */
    const struct cylstm_panels *gates; /* of gates: what a panel holds */
    size_t weight, panel, at;          /* bytes: of a weight, of a panel; the start in its pack */
    size_t panel_weights, panel_reals; /* a panel again, counted in either */
};

/* One layer and direction. */
struct cylstm_layer {
    const struct cylstm_cell_kind *kind;
    int any;    /* the cell has options */
    int blends; /* h_t holds a part of h_{t-1}: it is read, and a part of its gradient */
    struct cylstm_options options; /* which then are these */
    /* Where arrays that are met unit by unit start in the forward pack and in the backward's, in bytes;
     * they stand there as they do in the raw weights. */
    size_t vector[2][CYLSTM_ARRAYS];
    size_t I, H, R, P;
    int bias;
    int wide_inputs;            /* x_t meets its weights with 16 bits */
    size_t gates, dgates, tape; /* reals: rows of the raw gates, a step's dgates, its tape */
    size_t raw[CYLSTM_ARRAYS];  /* where each array starts in the raw weights, in reals */
    /* In the forward pack: the gates of a step's product, and of its second; the projection. */
    struct cylstm_matrix w, second, hr;
    struct cylstm_matrix hh_t, ih_t, hr_t; /* in the backward pack, to multiply dgates and dh */
};

/* Whether a step takes a second product: of the cell's own, or its projection. */
static inline int cylstm_has_second(const struct cylstm_layer *l)
{
    return l->P || l->second.columns;
}

/* The math of some gates, and what it always needs to know of a cell that is else empty. */
static inline const struct cylstm_cell_fns *cylstm_cell_of(const struct cylstm_kernels *k,
                                                           const struct cylstm_layer *l,
                                                           const struct cylstm_panels *gates)
{
    return &k->cell[gates->math][l->any];
}
static inline void cylstm_start_cell(struct cylstm_cell *cell, const struct cylstm_layer *l,
                                     const struct cylstm_panels *gates)
{
    cell->H = l->H;
    cell->unit_vectors = gates->unit_vectors;
    cell->tape_vectors = (unsigned char)l->kind->shape.tape_vectors;
    cell->options = l->any ? &l->options : NULL;
}

static inline size_t cylstm_larger(size_t a, size_t b) { return a > b ? a : b; }

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

/* Whether a direction begins with the last step of the arrays outside. What lies between layers that
 * look one way is in the order of their steps. */
static inline int cylstm_is_reverse(const struct cylstm_dims *dims, size_t direction)
{
    return direction == 1 || dims->reverse;
}

struct cylstm_layer cylstm_find_layer(const struct cylstm_kernels *kernels,
                                      const struct cylstm_dims *dims, size_t layer,
                                      size_t direction);

/* The matrix of an affine map in a format of fewer bits, as the projection `hr` of a layer that has
 * nothing else. */
struct cylstm_layer cylstm_find_linear(const struct cylstm_kernels *kernels,
                                       const struct cylstm_linear *linear);

static inline size_t cylstm_panel_width(const struct cylstm_kernels *k)
{
    return PANEL_VECTORS * k->lanes;
}
static inline size_t cylstm_panels_of(const struct cylstm_kernels *k, size_t columns)
{
    return (columns + cylstm_panel_width(k) - 1) / cylstm_panel_width(k);
}

/* Whether an array is met unit by unit, and by no product. */
int cylstm_is_vector(const struct cylstm_cell_kind *kind, enum cylstm_array_type type);

/* Reals of a row of sums that wait until it is whole, one after another if they are `apart`. */
static inline size_t cylstm_sums_width(const struct cylstm_kernels *k, const struct cylstm_layer *l)
{
    return cylstm_times(PANEL_VECTORS, cylstm_round_up(l->H, k->lanes));
}
static inline size_t cylstm_sums_stride(const struct cylstm_kernels *k,
                                        const struct cylstm_layer *l)
{
    return cylstm_times(1 + l->kind->apart, cylstm_sums_width(k, l)) + k->lanes;
}

/* Of a row of weights in a panel. */
static inline size_t cylstm_row_vectors(const struct cylstm_matrix *m)
{
    return m->narrow ? NARROW_VECTORS : PANEL_VECTORS;
}

/* Rows of a panel that K values of k fill, in a format. */
static inline size_t cylstm_format_rows(enum cylstm_format_type format, size_t K)
{
    switch (format) {
    case CYLSTM_BFLOAT16:
    case CYLSTM_BFLOAT16_PRODUCTS: return cylstm_round_up(K, BF16_GROUP) / BF16_GROUP;
    case CYLSTM_INT8: return K ? cylstm_round_up(K, INT8_GROUP) / INT8_GROUP + INT8_EXTRA_ROWS : 0;
    default: return K;
    }
}

/* Where value k of the weights of a panel starts, from the panel's start, in bytes. In a format of
 * fewer bits k is where one of the raw matrices begins. */
static inline size_t cylstm_panel_row(const struct cylstm_kernels *k, const struct cylstm_matrix *m,
                                      size_t row)
{
    const size_t biases = m->type == CYLSTM_GATES ? cylstm_panel_width(k) * cylstm_real_size(k) : 0;
    return biases +
           cylstm_format_rows(m->format, row) * cylstm_row_vectors(m) * k->lanes * m->weight;
}

#endif
