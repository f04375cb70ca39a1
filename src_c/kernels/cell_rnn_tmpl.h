/* cell_rnn_tmpl.h -- the plain recurrent cell, forward and, directly below it, backward.
 *
 *     h_t = f(a)         f = tanh, or whatever the options name
 *
 * Lanes past the last unit carry whatever f makes of 0, which reaches no unit.
 */

/* One panel: preact (rows, 4 VL) of units panel * 4 VL and on. */
ALWAYS_INLINE void rnn_forward_by(const struct cylstm_cell *cell, size_t panel, size_t row,
                                  size_t rows, void *sums, const struct cylstm_options *o)
{
    const real *preact = sums;
    const size_t first = panel * PANEL_VECTORS * VL, H = cell->H;
    for (size_t k = row; k < row + rows; k++, preact += PANEL_VECTORS * VL) {
        real *h_row = row_of(&cell->h, k), *y_row = cell->y.base ? row_of(&cell->y, k) : NULL,
             *tape_row = cell->tape.base ? row_of(&cell->tape, k) : NULL;
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v++, u += VL) {
            const vf h = squash(o, 0, v_load(preact + v * VL));
            v_store(h_row + u, h);
            if (y_row) v_store_n(y_row + u, h, valid(u, H));
            if (tape_row) v_store_n(tape_row + u, h, valid(u, H));
        }
    }
}

/* One panel: dh (rows, 4 VL) of the same units, with da = dh * f'(a), of which h_t = f(a) tells. */
ALWAYS_INLINE void rnn_backward_by(const struct cylstm_cell *cell, size_t panel, size_t row,
                                   size_t rows, void *sums, const struct cylstm_options *o)
{
    const real *dh_rows = sums;
    const size_t first = panel * PANEL_VECTORS * VL, H = cell->H;
    for (size_t k = row; k < row + rows; k++, dh_rows += PANEL_VECTORS * VL) {
        const real *tape_row = row_of(&cell->tape, k);
        real *dgates_row = row_of(&cell->dgates, k);
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v++, u += VL) {
            const vf h = v_load_n(tape_row + u, valid(u, H));
            const vf dh = given_too(o, cell, k, 0, u, v_load(dh_rows + v * VL));
            v_store_n(dgates_row + u, v_mul(dh, squash_slope(o, 0, h)), valid(u, H));
        }
    }
}

/* One panel: da (rows, 4 VL) of the same units. */
static void rnn_tangent(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                        void *sums)
{
    const real *da = sums;
    const size_t first = panel * PANEL_VECTORS * VL, H = cell->H;
    for (size_t k = row; k < row + rows; k++, da += PANEL_VECTORS * VL)
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v++, u += VL) {
            const vf h = v_load_n(row_of(&cell->tape, k) + u, valid(u, H));
            put_tangent(cell->tangent, k, u,
                        v_mul(v_gate_slope(cell->options, 0, h), v_load(da + v * VL)));
        }
}

/* clang-format off */
CELL(rnn_forward) CELL(rnn_backward)
