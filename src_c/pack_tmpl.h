/* pack_tmpl.h -- the permutations of pack.c for one type.
 * Parameters: real (float or double) and NAME(name), which gives a static its suffix. */

/* The raw weights of one layer and direction. */
struct NAME(raw) {
    const real *ih, *hh, *b_ih, *b_hh, *hr; /* (4H, I), (4H, R), (4H), (4H), (P, H) */
};

static struct NAME(raw) NAME(split_raw)(const struct cylstm_layer *l, int bias, const real *raw)
{
    const size_t gates = 4 * l->H;
    struct NAME(raw) w = {.ih = raw + l->raw};
    w.hh = w.ih + gates * l->I;
    w.b_ih = w.hh + gates * l->R;
    w.b_hh = w.b_ih + gates;
    w.hr = bias ? w.b_hh + gates : w.b_ih;
    return w;
}

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

/* Panels of 4 VL columns of `matrix` (rows, columns), one row per k; `next` reals from a
 * panel to the next. */
static void NAME(pack_columns)(const real *matrix, size_t rows, size_t columns, size_t width,
                               size_t next, real *out)
{
    for (size_t c = 0; c < columns; c += width, out += next) {
        const size_t n = columns - c < width ? columns - c : width;
        for (size_t k = 0; k < rows; k++) {
            memcpy(out + k * width, matrix + k * columns + c, n * sizeof(real));
            memset(out + k * width + n, 0, (width - n) * sizeof(real));
        }
    }
}

static void NAME(pack_forward)(const struct cylstm_layer *l, size_t VL, int bias, const void *raw,
                               void *packed)
{
    const struct NAME(raw) w = NAME(split_raw)(l, bias, raw);
    const size_t width = PANEL_VECTORS * VL;
    real *out = (real *)packed + l->gates;
    for (size_t u = 0; u < l->H; u += VL, out += l->K * width) {
        const size_t n = l->H - u < VL ? l->H - u : VL;
        for (size_t gate = 0; gate < 4; gate++) {
            const size_t row = gate * l->H + u;
            real *column = out + gate * VL;
            for (size_t lane = 0; lane < VL; lane++)
                column[lane] = bias && lane < n ? w.b_ih[row + lane] + w.b_hh[row + lane] : 0;
            NAME(transpose)(w.ih + row * l->I, n, l->I, VL, width, column + width);
            NAME(transpose)(w.hh + row * l->R, n, l->R, VL, width, column + (1 + l->I) * width);
        }
    }
    out = (real *)packed + l->hr;
    for (size_t u = 0; u < l->P; u += width, out += l->H * width)
        NAME(transpose)(w.hr + u * l->H, l->P - u < width ? l->P - u : width, l->H, width, width,
                        out);
}

/* Panels of a recurrent or input matrix for products with dgates: k runs over the gates
 * in panel order, which takes `matrix` (4H, columns) by blocks of VL rows. */
static void NAME(pack_gate_rows)(const struct cylstm_layer *l, size_t VL, const real *matrix,
                                 size_t columns, real *out)
{
    const size_t width = PANEL_VECTORS * VL, next = 4 * l->Hp * width;
    for (size_t u = 0; u < l->H; u += VL)
        for (size_t gate = 0; gate < 4; gate++) {
            const size_t n = l->H - u < VL ? l->H - u : VL, k = u * 4 + gate * VL;
            NAME(pack_columns)(matrix + (gate * l->H + u) * columns, n, columns, width, next,
                               out + k * width);
            for (size_t c = 0; c < columns; c += width)
                memset(out + c / width * next + (k + n) * width, 0,
                       (VL - n) * width * sizeof(real));
        }
}

static void NAME(pack_backward)(const struct cylstm_layer *l, size_t VL, int bias, const void *raw,
                                void *packed)
{
    const struct NAME(raw) w = NAME(split_raw)(l, bias, raw);
    const size_t width = PANEL_VECTORS * VL;
    NAME(pack_gate_rows)(l, VL, w.hh, l->R, (real *)packed + l->hh_t);
    NAME(pack_gate_rows)(l, VL, w.ih, l->I, (real *)packed + l->ih_t);
    if (l->P) NAME(pack_columns)(w.hr, l->P, l->H, width, l->P * width, (real *)packed + l->hr_t);
}

static void NAME(unpack_gradient)(const struct cylstm_layer *l, size_t VL, int bias,
                                  const void *dgates, const void *dhr, size_t hr_stride, void *draw)
{
    const size_t gates = 4 * l->H, width = PANEL_VECTORS * VL;
    real *d_ih = (real *)draw + l->raw, *d_hh = d_ih + gates * l->I, *d_b = d_hh + gates * l->R;
    real *d_hr = bias ? d_b + 2 * gates : d_b;
    const real *panel = dgates;
    for (size_t u = 0; u < l->H; u += VL, panel += l->K * width)
        for (size_t gate = 0; gate < 4; gate++)
            for (size_t lane = 0; lane < VL && u + lane < l->H; lane++) {
                const size_t row = gate * l->H + u + lane;
                const real *column = panel + gate * VL + lane;
                if (bias) d_b[row] = d_b[gates + row] = column[0];
                for (size_t k = 0; k < l->I; k++) d_ih[row * l->I + k] = column[(1 + k) * width];
                for (size_t k = 0; k < l->R; k++)
                    d_hh[row * l->R + k] = column[(1 + l->I + k) * width];
            }
    for (size_t p = 0; p < l->P; p++)
        memcpy(d_hr + p * l->H, (const real *)dhr + p * hr_stride, l->H * sizeof(real));
}
