/* cell_gru_tmpl.h -- the GRU whose reset gate is applied behind the product (Cho et al. 2014 as cuDNN
 * and PyTorch have it), forward and, directly below it, backward.
 *
 *     r, z = sigmoid(a_r), sigmoid(a_z)
 *     q = W_hn h_{t-1} + b_hn,   n = tanh(a_n + r * q)
 *     h_t = (1 - z) * n + z * h_{t-1}
 *
 * Lanes past the last unit carry zero pre-activations and zero states, which give h = 0 again.
 */

/* One panel: preact (rows, 4, VL) = a_n, a_r, a_z, q of units panel * VL and on; overwritten. Several
 * rows take two loops, as in the LSTM cell. */
static void gru_forward(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                        void *sums)
{
    real *const preact = sums;
    const size_t u = panel * VL, H = cell->H, n = valid(u, H), width = PANEL_VECTORS * VL;
    for (size_t k = 0; k < rows; k++) {
        real *a = preact + k * width;
        const vf r = v_sigmoid(v_load(a + VL)), z = v_sigmoid(v_load(a + 2 * VL));
        const vf q = v_load(a + 3 * VL);
        v_store(a, v_fma(r, q, v_load(a)));
        v_store(a + 2 * VL, z);
        if (!cell->tape.base) continue;
        real *tape = row_of(&cell->tape, row + k) + u;
        v_store_n(tape, r, n);
        v_store_n(tape + H, z, n);
        v_store_n(tape + 3 * H, q, n);
    }
    for (size_t k = 0; k < rows; k++) {
        const real *a = preact + k * width;
        const vf candidate = v_tanh(v_load(a)), z = v_load(a + 2 * VL);
        const vf h_prev = v_load(row_of(&cell->h_prev, row + k) + u);
        const vf h = v_fma(z, v_sub(h_prev, candidate), candidate);
        v_store(row_of(&cell->h, row + k) + u, h);
        if (cell->y.base) v_store_n(row_of(&cell->y, row + k) + u, h, n);
        if (cell->tape.base) v_store_n(row_of(&cell->tape, row + k) + 2 * H + u, candidate, n);
    }
}

/* One panel: dh (rows, 4 VL) of units panel * 4 VL and on, with
 *     da_n = dh * (1 - z) * (1 - n^2)      dq   = da_n * r
 *     da_r = da_n * q * r (1 - r)          da_z = dh * (h_{t-1} - n) * z (1 - z)
 *     dh_{t-1} = dh * z, and what W_hh adds to it
 */
static void gru_backward(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                         void *sums)
{
    const real *dh_rows = sums;
    const size_t first = panel * PANEL_VECTORS * VL, H = cell->H;
    const vf one = v_set1(1);
    for (size_t k = row; k < row + rows; k++, dh_rows += PANEL_VECTORS * VL) {
        const real *tape_row = row_of(&cell->tape, k);
        const real *h_prev_row = cell->h_prev.base ? row_of(&cell->h_prev, k) : NULL;
        real *dgates_row = row_of(&cell->dgates, k), *dh_prev_row = row_of(&cell->dh_prev, k);
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v++, u += VL) {
            const size_t m = valid(u, H);
            const vf r = v_load_n(tape_row + u, m), z = v_load_n(tape_row + H + u, m);
            const vf n = v_load_n(tape_row + 2 * H + u, m), q = v_load_n(tape_row + 3 * H + u, m);
            const vf h_prev = h_prev_row ? v_load_n(h_prev_row + u, m) : v_zero();
            const vf dh = v_load(dh_rows + v * VL);
            const vf da_n = v_mul(v_mul(dh, v_sub(one, z)), v_fnma(n, n, one));
            real *dgates = dgates_row + u;
            v_store_n(dgates, v_mul(v_mul(da_n, q), v_mul(r, v_sub(one, r))), m);
            v_store_n(dgates + H, v_mul(v_mul(dh, v_sub(h_prev, n)), v_mul(z, v_sub(one, z))), m);
            v_store_n(dgates + 2 * H, da_n, m);
            v_store_n(dgates + 3 * H, v_mul(da_n, r), m);
            v_store(dh_prev_row + u, v_mul(dh, z));
        }
    }
}
