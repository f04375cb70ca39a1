/* cells.c -- the table of cells. */
#include "cells.h"

#define LSTM_FUNCTIONS {FUNCTION_SIGMOID, FUNCTION_TANH, FUNCTION_TANH}
#define GRU_FUNCTIONS {FUNCTION_SIGMOID, FUNCTION_TANH}

static const struct cylstm_cell_kind cells[CYLSTM_CELLS] =
    {
        [CYLSTM_LSTM] =
            {
                .shape = {.gates = 4, .states = 2, .tape_gates = 4, .tape_vectors = 5},
                .function = LSTM_FUNCTIONS,
                .first = {.math = CYLSTM_LSTM_MATH,
                          .unit_vectors = PANEL_VECTORS,
                          .vector = {{0, 0}, {1, 1}, {2, 2}, {3, 3}}}, /* i, f, g, o */
                .dgates = 4,
                .peepholes = 3,
                .peep_dgate = {0, 1, 3},
                .ih = {{0, 4}},
                .hh = {{0, 4}},
            },
        [CYLSTM_LSTM_COUPLED_F] = /* a panel as wide as ever, with nothing where f would be */
        {
            .shape = {.gates = 3, .states = 2, .tape_gates = 4, .tape_vectors = 5},
            .function = LSTM_FUNCTIONS,
            .coupled = 1,
            .first = {.math = CYLSTM_LSTM_MATH,
                      .unit_vectors = PANEL_VECTORS,
                      .vector = {{0, 0}, {CYLSTM_NONE, CYLSTM_NONE}, {1, 1}, {2, 2}}},
            .dgates = 3,
            .peepholes = 2,
            .peep_dgate = {0, 2},
            .ih = {{0, 3}},
            .hh = {{0, 3}},
        },
        [CYLSTM_LSTM_COUPLED_I] =
            {
                .shape = {.gates = 3, .states = 2, .tape_gates = 4, .tape_vectors = 5},
                .function = LSTM_FUNCTIONS,
                .coupled = 2,
                .first = {.math = CYLSTM_LSTM_MATH,
                          .unit_vectors = PANEL_VECTORS,
                          .vector = {{CYLSTM_NONE, CYLSTM_NONE}, {0, 0}, {1, 1}, {2, 2}}},
                .dgates = 3,
                .peepholes = 2,
                .peep_dgate = {0, 2},
                .ih = {{0, 3}},
                .hh = {{0, 3}},
            },
        [CYLSTM_GRU] =
            {
                .shape = {.gates = 3, .states = 1, .tape_gates = 3, .tape_vectors = 4},
                .function = GRU_FUNCTIONS,
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
                .shape = {.gates = 3, .states = 1, .tape_gates = 3, .tape_vectors = 3},
                .function = GRU_FUNCTIONS,
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
                .shape = {.gates = 1, .states = 1, .tape_gates = 1, .tape_vectors = 1},
                .function = {FUNCTION_TANH},
                .first = {.math = CYLSTM_RNN_MATH, .unit_vectors = 1, .vector = {{0, 0}}},
                .dgates = 1,
                .ih = {{0, 1}},
                .hh = {{0, 1}},
            },
};

/* The same of normalised LSTMs: the tape has the sums too. A step back leaves the gradients of the sums
 * as dgates, and for the arrays of the norm those of pre-activations, and their products with what the
 * norm gave. */
#define NORMED_LSTM(GATES, COUPLED, ...) \
    { \
        .shape = {.gates = GATES, .states = 2, .tape_gates = 4, .tape_vectors = 9}, \
        .function = LSTM_FUNCTIONS, \
        .coupled = COUPLED, \
        .first = {.math = CYLSTM_KEEP_MATH, \
                  .unit_vectors = PANEL_VECTORS, \
                  .vector = {__VA_ARGS__}}, \
        .dgates = GATES, \
        .peepholes = GATES - 1, \
        .peep_dgate = {0, GATES == 4 ? 1 : 2, 3}, \
        .norm = 2 * GATES, \
        .norm_sums = {{CYLSTM_BIAS_IH, {0, GATES}}, {CYLSTM_WEIGHT_LN, {GATES, GATES}}}, \
        .norm_math = CYLSTM_GATES_NORM, \
        .ih = {{0, GATES}}, \
        .hh = {{0, GATES}}, \
    }
static const struct cylstm_cell_kind normed[] = {
    [CYLSTM_LSTM] = NORMED_LSTM(4, 0, {0, 0}, {1, 1}, {2, 2}, {3, 3}),
    [CYLSTM_LSTM_COUPLED_F] = NORMED_LSTM(3, 1, {0, 0}, {CYLSTM_NONE, CYLSTM_NONE}, {1, 1}, {2, 2}),
    [CYLSTM_LSTM_COUPLED_I] = NORMED_LSTM(3, 2, {CYLSTM_NONE, CYLSTM_NONE}, {0, 0}, {1, 1}, {2, 2}),
};

/* The LSTM whose products are normalised: the tape has the sums of each, and a step back leaves the
 * gradients of each. For the arrays of the norms: those of pre-activations; their products with what the
 * norms of x and h gave; and of what c is shown as, with what its norm gave, and by itself. */
static const struct cylstm_cell_kind normed_products = {
    .shape = {.gates = 4, .states = 2, .tape_gates = 4, .tape_vectors = 13},
    .function = LSTM_FUNCTIONS,
    .first = {.math = CYLSTM_KEEP_MATH,
              .unit_vectors = PANEL_VECTORS,
              .vector = {{0, 0}, {1, 1}, {2, 2}, {3, 3}}},
    .dgates = 8,
    .norm = 14,
    .norm_sums = {{CYLSTM_BIAS_IH, {0, 4}},
                  {CYLSTM_WEIGHT_LN_IH, {4, 4}},
                  {CYLSTM_WEIGHT_LN_HH, {8, 4}},
                  {CYLSTM_WEIGHT_LN_CELL, {12, 1}},
                  {CYLSTM_BIAS_LN_CELL, {13, 1}}},
    .norm_math = CYLSTM_PRODUCTS_NORM,
    .apart = 1,
    .ih = {{0, 4}},
    .hh = {{4, 4}},
};

/* The kernels know nothing of cylstm.h: both lists of activations are the same. */
_Static_assert((int)CYLSTM_OF_CELL == FUNCTION_OF_CELL && (int)CYLSTM_SIGMOID == FUNCTION_SIGMOID &&
                   (int)CYLSTM_SOFTPLUS == FUNCTION_SOFTPLUS && (int)CYLSTM_ELU == FUNCTION_ELU,
               "activations");

int cylstm_cell_options(const struct cylstm_dims *dims, size_t direction,
                        struct cylstm_options *options)
{
    const struct cylstm_cell_kind *kind = cylstm_cell_kind(dims);
    *options = (struct cylstm_options){.coupled = kind->coupled,
                                       .clip = dims->clip,
                                       .cell_clip = dims->cell_clip,
                                       .proj_clip = dims->proj_clip};
    int any = (kind->blends && dims->zoneout != 0) || kind->norm || kind->coupled ||
              dims->peephole || dims->clip != 0 || dims->cell_clip != 0;
    for (size_t n = 0; n < sizeof kind->function / sizeof *kind->function; n++) {
        const struct cylstm_activation *a = &dims->activation[direction][n];
        const int own = a->type == CYLSTM_OF_CELL;
        options->function[n] =
            (struct cylstm_function){own ? (int)kind->function[n] : a->type, a->alpha, a->beta};
        any |= !own;
    }
    return any;
}

const struct cylstm_cell_kind *cylstm_cell_kind(const struct cylstm_dims *dims)
{
    switch (dims->layer_norm) {
    case CYLSTM_LITERT_NORM: return &normed[dims->cell];
    case CYLSTM_HASTE_NORM: return &normed_products;
    default: return &cells[dims->cell];
    }
}

struct cylstm_cell_shape cylstm_find_cell(const struct cylstm_dims *dims)
{
    return cylstm_cell_kind(dims)->shape;
}
