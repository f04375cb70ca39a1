/* zoneout_tmpl.h -- zoneout around a cell or a projection, forward and, directly below it, backward.
 *
 *     h_t = k * h_{t-1} + (1 - k) * h          k drawn, 0 or 1, by a counter as of dropout; or their mean
 */

/* k of n units of row r from unit u on, and 0 in the lanes behind them. */
NEVER_INLINE vf kept_part(const struct cylstm_zoneout *z, size_t r, size_t u, size_t n)
{
    const uint64_t index = (z->first + (z->row ? z->row[r] : r)) * z->width + u,
                   threshold = (uint64_t)(z->p * 4294967296.0);
    real part[VL];
    if (!z->drawn) return v_set1((real)z->p);
    for (size_t l = 0; l < n; l++)
        part[l] = mix64(z->key + mix64(index + l)) >> 32 < threshold ? (real)1 : (real)0;
    return v_load_n(part, n);
}

/* One panel: what the cell inside makes of its sums, and then h, and y, of the same units. */
static void zoneout_forward(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                            void *sums)
{
    const struct cylstm_zoneout *z = cell->zoneout;
    const size_t vectors = PANEL_VECTORS / cell->unit_vectors, first = panel * vectors * VL;
    if (z->inner) z->inner(cell, panel, row, rows, sums);
    for (size_t k = row; k < row + rows; k++)
        for (size_t v = 0, u = first; v < vectors && u < cell->H; v++, u += VL) {
            const size_t n = valid(u, cell->H);
            real *h_row = row_of(&cell->h, k) + u;
            const vf part = kept_part(z, k, u, n), h_prev = v_load(row_of(&cell->h_prev, k) + u);
            const vf h = v_fma(part, h_prev, v_mul(v_sub(v_set1(1), part), v_load(h_row)));
            v_store(h_row, h);
            if (cell->y.base) v_store_n(row_of(&cell->y, k) + u, h, n);
        }
}

/* One panel: dh_t (rows, 4 VL) of units panel * 4 VL and on, of which dh_prev gets its part before the
 * cell inside goes back from the rest. */
static void zoneout_backward(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                             void *sums)
{
    const struct cylstm_zoneout *z = cell->zoneout;
    real *dh_row = sums;
    const size_t first = panel * PANEL_VECTORS * VL;
    for (size_t k = row; k < row + rows; k++, dh_row += PANEL_VECTORS * VL)
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < cell->H; v++, u += VL) {
            const vf part = kept_part(z, k, u, valid(u, cell->H)), dh = v_load(dh_row + v * VL);
            const vf rest = v_mul(v_sub(v_set1(1), part), dh);
            v_store(row_of(&cell->dh_prev, k) + u, v_mul(part, dh));
            v_store(z->inner ? dh_row + v * VL : row_of(&cell->h, k) + u, rest);
        }
    if (z->inner) z->inner(cell, panel, row, rows, sums);
}
