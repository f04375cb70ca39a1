/* cells.c -- the table of cells. */
#include "cells.h"

static const struct cylstm_cell_kind cells[CYLSTM_CELLS] =
    {
        [CYLSTM_LSTM] =
            {
                .shape = {.gates = 4, .states = 2, .tape_vectors = 5}, /* i, f, g, o, c */
                .first = {.math = CYLSTM_LSTM_MATH,
                          .unit_vectors = PANEL_VECTORS,
                          .vector = {{0, 0}, {1, 1}, {2, 2}, {3, 3}}},
                .dgates = 4,
                .ih = {{0, 4}},
                .hh = {{0, 4}},
            },
        [CYLSTM_GRU] =
            {
                .shape = {.gates = 3, .states = 1, .tape_vectors = 4}, /* r, z, n, W_hn h + b_hn */
                .first = {.math = CYLSTM_GRU_MATH,
                          .unit_vectors = PANEL_VECTORS,
                          .narrow = 1, /* n of x, r, z, n of h */
                          .vector = {{2, CYLSTM_NONE}, {0, 0}, {1, 1}, {CYLSTM_NONE, 2}}},
                .dgates = 4, /* r, z, n of x, n of h */
                .blends = 1,
                .two_biases = 1,
                .ih = {{0, 3}},
                .hh = {{0, 2}, {3, 1}},
            },
        [CYLSTM_GRU_RESET_BEFORE] =
            {
                .shape = {.gates = 3, .states = 1, .tape_vectors = 3}, /* r, z, n */
                .first = {.math = CYLSTM_GRU_GATES_MATH,
                          .unit_vectors = 2,
                          .vector = {{0, 0}, {1, 1}}},
                .second = {.math = CYLSTM_GRU_CANDIDATE_MATH,
                           .unit_vectors = 1,
                           .vector = {{2, 2}}},
                .dgates = 3,
                .blends = 1,
                .ih = {{0, 3}},
                .hh = {{0, 2}},
                .second_hh = {2, 1},
            },
        [CYLSTM_RNN] =
            {
                .shape = {.gates = 1, .states = 1, .tape_vectors = 1}, /* h */
                .first = {.math = CYLSTM_RNN_MATH, .unit_vectors = 1, .vector = {{0, 0}}},
                .dgates = 1,
                .ih = {{0, 1}},
                .hh = {{0, 1}},
            },
};

/* The kernels know nothing of cylstm.h: both lists of activations are the same. */
_Static_assert((int)CYLSTM_OF_CELL == FUNCTION_OF_CELL && (int)CYLSTM_SIGMOID == FUNCTION_SIGMOID &&
                   (int)CYLSTM_TANH == FUNCTION_TANH && (int)CYLSTM_RELU == FUNCTION_RELU,
               "activations");

int cylstm_cell_options(const struct cylstm_dims *dims, struct cylstm_options *options)
{
    int any = 0;
    for (size_t n = 0; n < sizeof dims->activation / sizeof *dims->activation; n++) {
        const struct cylstm_activation *a = &dims->activation[n];
        options->function[n] = (struct cylstm_function){a->type, a->alpha, a->beta};
        any |= a->type != CYLSTM_OF_CELL;
    }
    return any;
}

const struct cylstm_cell_kind *cylstm_cell_kind(const struct cylstm_dims *dims)
{
    return &cells[dims->cell];
}

struct cylstm_cell_shape cylstm_find_cell(const struct cylstm_dims *dims)
{
    return cylstm_cell_kind(dims)->shape;
}
