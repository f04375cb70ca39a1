/* cell_gru_tmpl.h -- both kinds of GRU, each forward and, directly below it, backward. First the one
 * whose reset gate is applied behind the product, as in cuDNN and PyTorch.
 *
 *     r, z = sigmoid(a_r), sigmoid(a_z)
 *     q = W_hn h_{t-1} + b_hn,   n = tanh(a_n + r * q)
 *     h_t = (1 - z) * n + z * h_{t-1}
 *
 * Lanes past the last unit carry zero pre-activations and zero states, which give h = 0 again.
 */

/* One panel: preact (rows, 4, VL) = a_n, a_r, a_z, q of units panel * VL and on; overwritten. Several
 * rows take two loops, as in the LSTM cell. */
ALWAYS_INLINE void gru_forward_by(const struct cylstm_cell *cell, size_t panel, size_t row,
                                  size_t rows, void *sums, const struct cylstm_options *o)
{
    real *const preact = sums;
    const size_t u = panel * VL, H = cell->H, n = valid(u, H), width = PANEL_VECTORS * VL;
    for (size_t k = 0; k < rows; k++) {
        real *a = preact + k * width;
        const vf r = gate(o, v_load(a + VL)), z = gate(o, v_load(a + 2 * VL));
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
        const vf candidate = squash(o, 1, v_load(a)), z = v_load(a + 2 * VL);
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
ALWAYS_INLINE void gru_backward_by(const struct cylstm_cell *cell, size_t panel, size_t row,
                                   size_t rows, void *sums, const struct cylstm_options *o)
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
            const vf dn = given_too(o, cell, k, 2, u, v_mul(dh, v_sub(one, z)));
            const vf dz = given_too(o, cell, k, 1, u, v_mul(dh, v_sub(h_prev, n)));
            const vf da_n = v_mul(dn, squash_slope(o, 1, n));
            const vf dr = given_too(o, cell, k, 0, u, v_mul(da_n, q));
            real *dgates = dgates_row + u;
            v_store_n(dgates, v_mul(dr, gate_slope(o, r)), m);
            v_store_n(dgates + H, v_mul(dz, gate_slope(o, z)), m);
            v_store_n(dgates + 2 * H, da_n, m);
            v_store_n(dgates + 3 * H, v_mul(da_n, r), m);
            v_store(dh_prev_row + u, kept_too(o, cell, dh_prev_row + u, v_mul(dh, z)));
        }
    }
}

/* dh_t = (1 - z) * dn + z * dh_{t-1} + dz * (h_{t-1} - n) */
ALWAYS_INLINE void blend_tangent(const struct cylstm_cell *cell, size_t k, size_t u, vf n, vf z,
                                 vf dn, vf dz)
{
    const vf h_prev = v_load(row_of(&cell->h_prev, k) + u);
    const vf dh_prev = v_load(row_of(&cell->tangent->h_prev, k) + u);
    put_tangent(cell->tangent, k, u, v_fma(z, v_sub(dh_prev, dn), v_fma(dz, v_sub(h_prev, n), dn)));
}

/* One panel: da_n, da_r, da_z, dq (rows, 4, VL) of units panel * VL and on. */
static void gru_tangent(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                        void *sums)
{
    const struct cylstm_options *o = cell->options;
    const real *da = sums;
    const size_t u = panel * VL, H = cell->H, m = valid(u, H);
    for (size_t k = row; k < row + rows; k++, da += PANEL_VECTORS * VL) {
        const real *tape = row_of(&cell->tape, k) + u;
        const vf r = v_load_n(tape, m), n = v_load_n(tape + 2 * H, m);
        const vf q = v_load_n(tape + 3 * H, m);
        const vf dr = v_mul(v_gate_slope(o, 0, r), v_load(da + VL));
        const vf da_n = v_fma(dr, q, v_fma(r, v_load(da + 3 * VL), v_load(da)));
        const vf z = v_load_n(tape + H, m);
        const vf dz = v_mul(v_gate_slope(o, 0, z), v_load(da + 2 * VL));
        blend_tangent(cell, k, u, n, z, v_mul(v_gate_slope(o, 1, n), da_n), dz);
    }
}

/* --- The GRU whose reset gate is applied before the product (Cho et al. 2014):
 *
 *     r, z = sigmoid(a_r), sigmoid(a_z)                           of the first product
 *     n = tanh(W_in x_t + W_hn (r * h_{t-1}) + biases)            of the second
 *     h_t = (1 - z) * n + z * h_{t-1}
 */

/* One panel of the first product: preact (rows, 2, 2, VL) = a_r, a_z of units panel * 2 VL and on, VL
 * at a time. `h` gets r * h_{t-1}. */
ALWAYS_INLINE void gru_gates_forward_by(const struct cylstm_cell *cell, size_t panel, size_t row,
                                        size_t rows, void *sums, const struct cylstm_options *o)
{
    const real *preact = sums;
    const size_t first = panel * 2 * VL, H = cell->H;
    for (size_t k = row; k < row + rows; k++, preact += PANEL_VECTORS * VL)
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v += 2, u += VL) {
            const vf r = gate(o, v_load(preact + v * VL));
            const vf z = gate(o, v_load(preact + (v + 1) * VL));
            v_store(row_of(&cell->h, k) + u, v_mul(r, v_load(row_of(&cell->h_prev, k) + u)));
            v_store(row_of(&cell->z, k) + u, z);
            if (!cell->tape.base) continue;
            v_store_n(row_of(&cell->tape, k) + u, r, valid(u, H));
            v_store_n(row_of(&cell->tape, k) + H + u, z, valid(u, H));
        }
}

/* One panel: dm (rows, 4 VL), the gradient of m = r * h_{t-1}, of units panel * 4 VL and on, with
 *     da_r = dm * h_{t-1} * r (1 - r)      dh_{t-1} += dm * r
 * `h` gets m again, which the gradient of W_hn is a product with. */
ALWAYS_INLINE void gru_gates_backward_by(const struct cylstm_cell *cell, size_t panel, size_t row,
                                         size_t rows, void *sums, const struct cylstm_options *o)
{
    const real *dm_rows = sums;
    const size_t first = panel * PANEL_VECTORS * VL, H = cell->H;
    for (size_t k = row; k < row + rows; k++, dm_rows += PANEL_VECTORS * VL) {
        const real *tape = row_of(&cell->tape, k);
        const real *h_prev_row = cell->h_prev.base ? row_of(&cell->h_prev, k) : NULL;
        real *dgates = row_of(&cell->dgates, k), *dh_prev = row_of(&cell->dh_prev, k);
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v++, u += VL) {
            const size_t n = valid(u, H);
            const vf r = v_load_n(tape + u, n), dm = v_load(dm_rows + v * VL);
            const vf h_prev = h_prev_row ? v_load_n(h_prev_row + u, n) : v_zero();
            const vf dr = given_too(o, cell, k, 0, u, v_mul(dm, h_prev));
            v_store_n(dgates + u, v_mul(dr, gate_slope(o, r)), n);
            v_store(dh_prev + u, v_fma(dm, r, v_load(dh_prev + u)));
            v_store(row_of(&cell->h, k) + u, v_mul(r, h_prev));
        }
    }
}

/* One panel: da_r, da_z (rows, 2, 2, VL), as they come. The tangent of `h` gets dm, that of `z` dz, and
 * `h` m again. */
static void gru_gates_tangent(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                              void *sums)
{
    const struct cylstm_options *o = cell->options;
    const struct cylstm_cell *d = cell->tangent;
    const real *da = sums;
    const size_t first = panel * 2 * VL, H = cell->H;
    for (size_t k = row; k < row + rows; k++, da += PANEL_VECTORS * VL)
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v += 2, u += VL) {
            const real *tape = row_of(&cell->tape, k) + u;
            const vf r = v_load_n(tape, valid(u, H)), z = v_load_n(tape + H, valid(u, H));
            const vf h_prev = v_load(row_of(&cell->h_prev, k) + u);
            const vf dr = v_mul(v_gate_slope(o, 0, r), v_load(da + v * VL));
            v_store(row_of(&d->z, k) + u, v_mul(v_gate_slope(o, 0, z), v_load(da + (v + 1) * VL)));
            v_store(row_of(&d->h, k) + u,
                    v_fma(dr, h_prev, v_mul(r, v_load(row_of(&d->h_prev, k) + u))));
            v_store(row_of(&cell->h, k) + u, v_mul(r, h_prev));
        }
}

/* One panel of the second product: preact (rows, 4 VL) = a_n of units panel * 4 VL and on. */
ALWAYS_INLINE void gru_candidate_forward_by(const struct cylstm_cell *cell, size_t panel,
                                            size_t row, size_t rows, void *sums,
                                            const struct cylstm_options *o)
{
    const real *preact = sums;
    const size_t first = panel * PANEL_VECTORS * VL, H = cell->H;
    for (size_t k = row; k < row + rows; k++, preact += PANEL_VECTORS * VL)
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v++, u += VL) {
            const vf n = squash(o, 1, v_load(preact + v * VL)), z = v_load(row_of(&cell->z, k) + u);
            const vf h = v_fma(z, v_sub(v_load(row_of(&cell->h_prev, k) + u), n), n);
            v_store(row_of(&cell->h, k) + u, h);
            if (cell->y.base) v_store_n(row_of(&cell->y, k) + u, h, valid(u, H));
            if (cell->tape.base) v_store_n(row_of(&cell->tape, k) + 2 * H + u, n, valid(u, H));
        }
}

/* One panel: dh (rows, 4 VL) of the same units, with
 *     da_n = dh * (1 - z) * (1 - n^2)      da_z = dh * (h_{t-1} - n) * z (1 - z)
 *     dh_{t-1} = dh * z, and what both products add to it
 */
ALWAYS_INLINE void gru_candidate_backward_by(const struct cylstm_cell *cell, size_t panel,
                                             size_t row, size_t rows, void *sums,
                                             const struct cylstm_options *o)
{
    const real *dh_rows = sums;
    const size_t first = panel * PANEL_VECTORS * VL, H = cell->H;
    const vf one = v_set1(1);
    for (size_t k = row; k < row + rows; k++, dh_rows += PANEL_VECTORS * VL) {
        const real *tape = row_of(&cell->tape, k);
        const real *h_prev_row = cell->h_prev.base ? row_of(&cell->h_prev, k) : NULL;
        real *dgates = row_of(&cell->dgates, k), *dh_prev = row_of(&cell->dh_prev, k);
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v++, u += VL) {
            const size_t m = valid(u, H);
            const vf z = v_load_n(tape + H + u, m), n = v_load_n(tape + 2 * H + u, m);
            const vf h_prev = h_prev_row ? v_load_n(h_prev_row + u, m) : v_zero();
            const vf dh = v_load(dh_rows + v * VL);
            const vf dz = given_too(o, cell, k, 1, u, v_mul(dh, v_sub(h_prev, n)));
            const vf dn = given_too(o, cell, k, 2, u, v_mul(dh, v_sub(one, z)));
            v_store_n(dgates + H + u, v_mul(dz, gate_slope(o, z)), m);
            v_store_n(dgates + 2 * H + u, v_mul(dn, squash_slope(o, 1, n)), m);
            v_store(dh_prev + u, kept_too(o, cell, dh_prev + u, v_mul(dh, z)));
        }
    }
}

/* One panel: da_n (rows, 4 VL) of the same units. */
static void gru_candidate_tangent(const struct cylstm_cell *cell, size_t panel, size_t row,
                                  size_t rows, void *sums)
{
    const real *da = sums;
    const size_t first = panel * PANEL_VECTORS * VL, H = cell->H;
    for (size_t k = row; k < row + rows; k++, da += PANEL_VECTORS * VL)
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v++, u += VL) {
            const real *tape = row_of(&cell->tape, k) + u;
            const vf z = v_load_n(tape + H, valid(u, H)), n = v_load_n(tape + 2 * H, valid(u, H));
            const vf dn = v_mul(v_gate_slope(cell->options, 1, n), v_load(da + v * VL));
            blend_tangent(cell, k, u, n, z, dn, v_load(row_of(&cell->tangent->z, k) + u));
        }
}

/* clang-format off */
CELL(gru_forward) CELL(gru_backward)
CELL(gru_gates_forward) CELL(gru_gates_backward)
CELL(gru_candidate_forward) CELL(gru_candidate_backward)
