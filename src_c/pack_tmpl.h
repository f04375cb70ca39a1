/* pack_tmpl.h -- the permutations of pack.c for one type.
 * Parameters: real (float or double), NAME(name), which gives a static its suffix, and BLOCK. */

/* out[k][lane] = matrix[lane][k] for `n` lanes and `count` values of k, the other lanes zero. */
static void NAME(transpose)(const real *matrix, size_t K, size_t n, size_t count, size_t lanes,
                            size_t pitch, real *out)
{
    for (size_t lane = 0; lane < n; lane++)
        for (size_t k = 0; k < count; k++) out[k * pitch + lane] = matrix[lane * K + k];
    for (size_t lane = n; lane < lanes; lane++)
        for (size_t k = 0; k < count; k++) out[k * pitch + lane] = 0;
}

/* Rows of four gates' `lanes` reals per k, from four times `n` rows of `matrix` (., K), `next` rows
 * apart. All four in step, so that memory is written in the order in which it lies. */
static void NAME(pack_gates)(const real *matrix, size_t K, size_t next, size_t n, size_t lanes,
                             size_t width, real *out)
{
    for (size_t k = 0; k < K; k += BLOCK, out += BLOCK * width)
        for (size_t gate = 0; gate < PANEL_VECTORS; gate++)
            NAME(transpose)(matrix + gate * next * K + k, K, n, K - k < BLOCK ? K - k : BLOCK,
                            lanes, width, out + gate * lanes);
}

/* Share `share` of the panels of 4 VL columns of `matrix` (rows, columns), one row per k. */
static void NAME(pack_columns)(const real *matrix, size_t rows, size_t columns, size_t width,
                               real *out, size_t shares, size_t share)
{
    const struct cylstm_range panels = cylstm_share((columns + width - 1) / width, shares, share);
    for (size_t p = panels.begin; p < panels.end; p++) {
        const size_t c = p * width, n = columns - c < width ? columns - c : width;
        real *panel = out + c * rows;
        for (size_t k = 0; k < rows; k++) {
            memcpy(panel + k * width, matrix + k * columns + c, n * sizeof(real));
            memset(panel + k * width + n, 0, (width - n) * sizeof(real));
        }
    }
}

static void NAME(pack_forward)(const struct cylstm_layer *l, size_t VL, int bias,
                               const void *weights, void *packed, size_t shares, size_t share)
{
    const size_t width = PANEL_VECTORS * VL;
    const real *raw = weights;
    const struct cylstm_range gates = cylstm_share((l->columns + width - 1) / width, shares, share);
    for (size_t p = gates.begin; p < gates.end; p++) {
        const size_t u = p * VL, n = l->H - u < VL ? l->H - u : VL, left = l->columns - p * width,
                     lanes = left < width ? left / PANEL_VECTORS : VL;
        real *panel = (real *)packed + l->gates + p * l->K * width;
        for (size_t gate = 0; gate < PANEL_VECTORS; gate++) {
            const size_t row = gate * l->H + u;
            const real *b_ih = raw + l->raw_b_ih + row, *b_hh = raw + l->raw_b_hh + row;
            for (size_t lane = 0; lane < lanes; lane++)
                panel[gate * lanes + lane] = bias && lane < n ? b_ih[lane] + b_hh[lane] : 0;
        }
        NAME(pack_gates)(raw + l->raw_ih + u * l->I, l->I, l->H, n, lanes, width, panel + width);
        NAME(pack_gates)(raw + l->raw_hh + u * l->R, l->R, l->H, n, lanes, width,
                         panel + (1 + l->I) * width);
    }
    const struct cylstm_range projected = cylstm_share((l->P + width - 1) / width, shares, share);
    for (size_t p = projected.begin; p < projected.end; p++) {
        const size_t u = p * width, n = l->P - u < width ? l->P - u : width;
        real *panel = (real *)packed + l->hr + u * l->H;
        for (size_t k = 0; k < l->H; k += BLOCK)
            NAME(transpose)(raw + l->raw_hr + u * l->H + k, l->H, n,
                            l->H - k < BLOCK ? l->H - k : BLOCK, width, width, panel + k * width);
    }
}

static void NAME(pack_backward)(const struct cylstm_layer *l, size_t VL, const void *weights,
                                void *packed, size_t shares, size_t share)
{
    const size_t width = PANEL_VECTORS * VL, gates = 4 * l->H;
    const real *raw = weights;
    real *out = packed;
    NAME(pack_columns)(raw + l->raw_hh, gates, l->R, width, out + l->hh_t, shares, share);
    NAME(pack_columns)(raw + l->raw_ih, gates, l->I, width, out + l->ih_t, shares, share);
    NAME(pack_columns)(raw + l->raw_hr, l->P, l->H, width, out + l->hr_t, shares, share);
}
