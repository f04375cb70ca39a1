/* cells.c -- the table of cells. */
#include "cells.h"

static const struct cylstm_cell_kind cells[CYLSTM_CELLS] = {
    [CYLSTM_LSTM] =
        {
            .shape = {.gates = 4, .states = 2, .tape_vectors = 5},
            .math = CYLSTM_LSTM_MATH,
            .unit_vectors = PANEL_VECTORS,
            .vector = {{0, 0}, {1, 1}, {2, 2}, {3, 3}}, /* i, f, g, o */
            .dgates = 4,
            .ih = {{0, 4}},
            .hh = {{0, 4}},
        },
};

const struct cylstm_cell_kind *cylstm_cell_kind(const struct cylstm_dims *dims)
{
    return &cells[dims->cell];
}

struct cylstm_cell_shape cylstm_find_cell(const struct cylstm_dims *dims)
{
    return cylstm_cell_kind(dims)->shape;
}
