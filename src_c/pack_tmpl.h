/* pack_tmpl.h -- the permutations of pack.c for one type.
 * Parameters: real (float or double) and NAME(name), which gives a static its suffix. */

/* A row of 4 VL reals per k, from `n` rows of `matrix` (n, K), the rest zero: a transposition
 * in blocks that stay in L1. */
static void NAME(transpose)(const real *matrix, size_t n, size_t K, size_t lanes, size_t pitch,
                            real *out)
{
    enum { BLOCK = 16 };
    for (size_t k0 = 0; k0 < K; k0 += BLOCK) {
        const size_t k1 = k0 + BLOCK < K ? k0 + BLOCK : K;
        for (size_t lane = 0; lane < n; lane++)
            for (size_t k = k0; k < k1; k++) out[k * pitch + lane] = matrix[lane * K + k];
        for (size_t lane = n; lane < lanes; lane++)
            for (size_t k = k0; k < k1; k++) out[k * pitch + lane] = 0;
    }
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
    const struct cylstm_range gates = cylstm_share(l->Hp / VL, shares, share);
    for (size_t p = gates.begin; p < gates.end; p++) {
        const size_t u = p * VL, n = l->H - u < VL ? l->H - u : VL;
        for (size_t gate = 0; gate < 4; gate++) {
            const size_t row = gate * l->H + u;
            const real *b_ih = raw + l->raw_b_ih + row, *b_hh = raw + l->raw_b_hh + row;
            real *column = (real *)packed + l->gates + p * l->K * width + gate * VL;
            for (size_t lane = 0; lane < VL; lane++)
                column[lane] = bias && lane < n ? b_ih[lane] + b_hh[lane] : 0;
            NAME(transpose)(raw + l->raw_ih + row * l->I, n, l->I, VL, width, column + width);
            NAME(transpose)(raw + l->raw_hh + row * l->R, n, l->R, VL, width,
                            column + (1 + l->I) * width);
        }
    }
    const struct cylstm_range projected = cylstm_share((l->P + width - 1) / width, shares, share);
    for (size_t p = projected.begin; p < projected.end; p++) {
        const size_t u = p * width, n = l->P - u < width ? l->P - u : width;
        NAME(transpose)(raw + l->raw_hr + u * l->H, n, l->H, width, width,
                        (real *)packed + l->hr + u * l->H);
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
