/* cell_tmpl.h -- the LSTM cell, forward and, directly below it, backward.
 *
 *     i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);   g = tanh(a_g)
 *     c_t = f * c_{t-1} + i * g
 *     h_t = o * tanh(c_t)
 *
 * Lanes past the last unit carry zero pre-activations and zero cells, which give
 * h = 0 and c = 0 again: padding stays zero without being masked out.
 */

ALWAYS_INLINE real *row_of(const struct cylstm_rows *m, size_t r);

/* Lanes of the vector at unit u that hold one of n units. */
ALWAYS_INLINE size_t valid(size_t u, size_t n) { return n - u < VL ? n - u : VL; }

/* One panel: preact (rows, 4, VL) = a_i, a_f, a_g, a_o of units panel * VL and on. */
static void cell_forward(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                         const real *preact)
{
    const size_t u = panel * VL, H = cell->H, n = valid(u, H);
    for (size_t r = row; r < row + rows; r++, preact += PANEL_VECTORS * VL) {
        real *c_row = row_of(&cell->c, r) + u;
        const vf i = v_sigmoid(v_load(preact));
        const vf f = v_sigmoid(v_load(preact + VL));
        const vf g = v_tanh(v_load(preact + 2 * VL));
        const vf o = v_sigmoid(v_load(preact + 3 * VL));
        const vf c = v_fma(f, v_load(c_row), v_mul(i, g));
        const vf h = v_mul(o, v_tanh(c));
        v_store(c_row, c);
        v_store(row_of(&cell->h, r) + u, h);
        if (cell->y.base) v_store_n(row_of(&cell->y, r) + u, h, n);
        if (cell->tape.base) {
            real *tape = row_of(&cell->tape, r) + u;
            v_store_n(tape, i, n);
            v_store_n(tape + H, f, n);
            v_store_n(tape + 2 * H, g, n);
            v_store_n(tape + 3 * H, o, n);
            v_store_n(tape + 4 * H, c, n);
        }
    }
}

/* One panel: dh (rows, 4 VL) of units panel * 4 VL and on, with
 *     dc   += dh * o * (1 - tanh(c)^2)
 *     da_i  = dc * g * i (1 - i)          da_f = dc * c_{t-1} * f (1 - f)
 *     da_g  = dc * i * (1 - g^2)          da_o = dh * tanh(c) * o (1 - o)
 *     dc_{t-1} = dc * f
 */
static void cell_backward(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                          const real *dh_rows)
{
    const size_t first = panel * PANEL_VECTORS * VL, H = cell->H;
    const vf one = v_set1(1);
    for (size_t r = row; r < row + rows; r++, dh_rows += PANEL_VECTORS * VL) {
        const real *tape_row = row_of(&cell->tape, r);
        const real *c_prev_row = cell->c_prev.base ? row_of(&cell->c_prev, r) : NULL;
        real *dc_row = row_of(&cell->dc, r), *dgates_row = row_of(&cell->dgates, r);
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v++, u += VL) {
            const size_t n = valid(u, H);
            const vf i = v_load_n(tape_row + u, n), f = v_load_n(tape_row + H + u, n);
            const vf g = v_load_n(tape_row + 2 * H + u, n), o = v_load_n(tape_row + 3 * H + u, n);
            const vf c_prev = c_prev_row ? v_load_n(c_prev_row + u, n) : v_zero();
            const vf tanh_c = v_tanh(v_load_n(tape_row + 4 * H + u, n));
            const vf dh = v_load(dh_rows + v * VL);
            const vf dc = v_fma(v_mul(dh, o), v_fnma(tanh_c, tanh_c, one), v_load(dc_row + u));
            real *dgates = dgates_row + u;
            v_store_n(dgates, v_mul(v_mul(dc, g), v_mul(i, v_sub(one, i))), n);
            v_store_n(dgates + H, v_mul(v_mul(dc, c_prev), v_mul(f, v_sub(one, f))), n);
            v_store_n(dgates + 2 * H, v_mul(v_mul(dc, i), v_fnma(g, g, one)), n);
            v_store_n(dgates + 3 * H, v_mul(v_mul(dh, tanh_c), v_mul(o, v_sub(one, o))), n);
            v_store(dc_row + u, v_mul(dc, f));
            if (cell->h.base) v_store(row_of(&cell->h, r) + u, v_mul(o, tanh_c));
        }
    }
}
