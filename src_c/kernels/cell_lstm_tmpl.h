/* cell_lstm_tmpl.h -- the LSTM cell, forward and, directly below it, backward.
 *
 *     i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);   g = tanh(a_g)
 *     c_t = f * c_{t-1} + i * g
 *     h_t = o * tanh(c_t)
 *
 * Lanes past the last unit carry zero pre-activations and zero cells, which give
 * h = 0 and c = 0 again: padding stays zero without being masked out.
 */

ALWAYS_INLINE void hidden_row(const struct cylstm_cell *cell, size_t r, size_t u, vf c,
                              struct ratio o)
{
    const vf h = product_of(o, tanh_ratio(c));
    v_store(row_of(&cell->h, r) + u, h);
    if (cell->y.base) v_store_n(row_of(&cell->y, r) + u, h, valid(u, cell->H));
}

/* One panel: preact (rows, 4, VL) = a_i, a_f, a_g, a_o of units panel * VL and on; overwritten.
 * Several rows take two loops: a CPU looks no further ahead than two or three rows of the whole
 * cell, which is not enough to do while tanh(c) waits for c. */
static void lstm_forward(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                         void *sums)
{
    real *const preact = sums;
    const size_t u = panel * VL, H = cell->H, n = valid(u, H), width = PANEL_VECTORS * VL;
    for (size_t k = 0; k < rows; k++) {
        real *a = preact + k * width, *c_row = row_of(&cell->c, row + k) + u;
        const struct ratio i = sigmoid_ratio(v_load(a));
        const struct ratio f = sigmoid_ratio(v_load(a + VL));
        const struct ratio g = tanh_ratio(v_load(a + 2 * VL));
        const struct ratio o = sigmoid_ratio(v_load(a + 3 * VL));
        const vf forget = divided(f);
        const vf c = v_fma(forget, v_load(c_row), product_of(i, g));
        v_store(c_row, c);
        if (cell->tape.base) {
            real *tape = row_of(&cell->tape, row + k) + u;
            v_store_n(tape, divided(i), n);
            v_store_n(tape + H, forget, n);
            v_store_n(tape + 2 * H, divided(g), n);
            v_store_n(tape + 3 * H, divided(o), n);
            v_store_n(tape + 4 * H, c, n);
        }
        if (rows == 1) {
            hidden_row(cell, row, u, c, o);
            return;
        }
        v_store(a, o.over);
        v_store(a + VL, o.under);
    }
    for (size_t k = 0; k < rows; k++) {
        const real *a = preact + k * width;
        const struct ratio o = {v_load(a), v_load(a + VL)};
        hidden_row(cell, row + k, u, v_load(row_of(&cell->c, row + k) + u), o);
    }
}

/* One panel: dh (rows, 4 VL) of units panel * 4 VL and on, with
 *     dc   += dh * o * (1 - tanh(c)^2)
 *     da_i  = dc * g * i (1 - i)          da_f = dc * c_{t-1} * f (1 - f)
 *     da_g  = dc * i * (1 - g^2)          da_o = dh * tanh(c) * o (1 - o)
 *     dc_{t-1} = dc * f
 */
static void lstm_backward(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                          void *sums)
{
    const real *dh_rows = sums;
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
