/* projection_tmpl.h -- what follows the product of a projection, forward and, directly below it,
 * backward.
 *
 *     h_t = clip(W_hr m_t + b)
 */

/* One panel: W_hr m (rows, 4 VL) of units panel * 4 VL and on. */
static void projection_forward(const struct cylstm_cell *cell, size_t panel, size_t row,
                               size_t rows, void *sums)
{
    const real *sum = sums, *bias = cell->bias;
    const double clip = cell->options ? cell->options->proj_clip : 0;
    const size_t first = panel * PANEL_VECTORS * VL, P = cell->H;
    for (size_t k = row; k < row + rows; k++, sum += PANEL_VECTORS * VL)
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < P; v++, u += VL) {
            const size_t n = valid(u, P);
            vf h = v_load(sum + v * VL);
            if (bias) h = v_add(h, v_load_n(bias + u, n));
            if (clip != 0) h = v_clip(h, clip);
            v_store(row_of(&cell->h, k) + u, h);
            v_store_n(row_of(&cell->y, k) + u, h, n);
        }
}

/* One panel: dh (rows, 4 VL) of the same units, kept where no clip has changed h. `h_prev` is h_t, and
 * `h` takes its gradient. */
static void projection_backward(const struct cylstm_cell *cell, size_t panel, size_t row,
                                size_t rows, void *sums)
{
    const real *dh = sums;
    const vf limit = v_set1((real)cell->options->proj_clip), least = v_sub(v_zero(), limit);
    const size_t first = panel * PANEL_VECTORS * VL, P = cell->H;
    for (size_t k = row; k < row + rows; k++, dh += PANEL_VECTORS * VL)
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < P; v++, u += VL) {
            const vf h = v_load_n(row_of(&cell->h_prev, k) + u, valid(u, P));
            v_store(row_of(&cell->h, k) + u,
                    v_mul(v_load(dh + v * VL), v_unclipped(h, least, limit)));
        }
}

/* One panel: W_hr dm + dW_hr m (rows, 4 VL) of the same units; `y` is h_t. */
static void projection_tangent(const struct cylstm_cell *cell, size_t panel, size_t row,
                               size_t rows, void *sums)
{
    const real *sum = sums;
    const double clip = cell->options->proj_clip;
    const vf limit = v_set1((real)clip), least = v_sub(v_zero(), limit);
    const size_t first = panel * PANEL_VECTORS * VL, P = cell->H;
    for (size_t k = row; k < row + rows; k++, sum += PANEL_VECTORS * VL)
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < P; v++, u += VL) {
            const size_t n = valid(u, P);
            vf dh = v_add(v_load(sum + v * VL), tangent_at(cell->tangent->bias, u, n));
            if (clip != 0)
                dh = v_mul(dh, v_unclipped(v_load_n(row_of(&cell->y, k) + u, n), least, limit));
            put_tangent(cell->tangent, k, u, dh);
        }
}
