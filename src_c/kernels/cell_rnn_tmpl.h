/* cell_rnn_tmpl.h -- the plain recurrent cell, forward and, directly below it, backward.
 *
 *     h_t = f(a)         f = tanh, or whatever the options name
 *
 * Lanes past the last unit carry whatever f makes of 0, which reaches no unit.
 */

/* One panel: preact (rows, 4 VL) of units panel * 4 VL and on. */
ALWAYS_INLINE void rnn_forward_by(const struct cylstm_cell *cell, size_t panel, size_t row,
                                  size_t rows, const real *preact, const struct cylstm_options *o)
{
    const size_t first = panel * PANEL_VECTORS * VL, H = cell->H;
    for (size_t k = row; k < row + rows; k++, preact += PANEL_VECTORS * VL) {
        real *h_row = row_of(&cell->h, k), *y_row = cell->y.base ? row_of(&cell->y, k) : NULL,
             *tape_row = cell->tape.base ? row_of(&cell->tape, k) : NULL;
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v++, u += VL) {
            const vf a = v_load(preact + v * VL), h = o ? v_gate(o, 0, a) : v_tanh(a);
            v_store(h_row + u, h);
            if (y_row) v_store_n(y_row + u, h, valid(u, H));
            if (tape_row) v_store_n(tape_row + u, h, valid(u, H));
        }
    }
}

/* One panel: dh (rows, 4 VL) of the same units, with da = dh * f'(a), of which h_t = f(a) tells. */
ALWAYS_INLINE void rnn_backward_by(const struct cylstm_cell *cell, size_t panel, size_t row,
                                   size_t rows, const real *dh_rows, const struct cylstm_options *o)
{
    const size_t first = panel * PANEL_VECTORS * VL, H = cell->H;
    for (size_t k = row; k < row + rows; k++, dh_rows += PANEL_VECTORS * VL) {
        const real *tape_row = row_of(&cell->tape, k);
        real *dgates_row = row_of(&cell->dgates, k);
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v++, u += VL) {
            const vf h = v_load_n(tape_row + u, valid(u, H)), dh = v_load(dh_rows + v * VL);
            const vf slope = o ? v_gate_slope(o, 0, h) : v_fnma(h, h, v_set1(1));
            v_store_n(dgates_row + u, v_mul(dh, slope), valid(u, H));
        }
    }
}

#define RNN(NAME) \
    static void NAME(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows, \
                     void *sums) \
    { \
        NAME##_by(cell, panel, row, rows, sums, NULL); \
    } \
    static void NAME##_any(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows, \
                           void *sums) \
    { \
        NAME##_by(cell, panel, row, rows, sums, cell->options); \
    }
RNN(rnn_forward) RNN(rnn_backward)
