/* pack_tmpl.h -- a vector of a panel from rows of raw weights: a transposition, and the sum of the biases.
 *
 * Both only move or add, lane by lane, so that every set packs the same numbers.
 */

/* r[k] of lane l = row[l][k] for VL values of k. `whole`: all lanes hold a row and all k are there;
 * else lanes from n on are zero, and `count` values of k are read.
 *
 * Zipping the first half of the vectors with the second is a perfect shuffle of all their elements:
 * done log2(VL) times it turns the index (lane, k) into (k, lane). */
ALWAYS_INLINE void load_transposed(const real *rows, size_t stride, size_t n, size_t count,
                                   vf r[VL], const int whole)
{
    /* rows are too many for the hardware to follow: the same place of the next panel's */
    if (whole) UNROLL for (int l = 0; l < VL; l++) FETCH_LATER(rows + (size_t)(VL + l) * stride);
    UNROLL for (int l = 0; l < VL; l++)
        r[l] = whole ? v_load(rows + (size_t)l * stride)
               : (size_t)l < n ? v_load_n(rows + (size_t)l * stride, count)
                               : v_zero();
    UNROLL for (int round = 1; round < VL; round *= 2) {
        vf zipped[VL];
        UNROLL for (int l = 0; l < VL / 2; l++)
            v_zip(r[l], r[l + VL / 2], &zipped[2 * l], &zipped[2 * l + 1]);
        UNROLL for (int l = 0; l < VL; l++) r[l] = zipped[l];
    }
}

/* out[k][lane] = row[lane][k]; of those that are not `whole` `count` values of k, `lanes` lanes each. */
ALWAYS_INLINE void transpose_block(const real *rows, size_t stride, size_t n, size_t count,
                                   size_t lanes, real *out, size_t width, const int whole)
{
    vf r[VL];
    load_transposed(rows, stride, n, count, r, whole);
    if (whole)
        UNROLL for (int k = 0; k < VL; k++) v_store(out + (size_t)k * width, r[k]);
    else
        for (size_t k = 0; k < count; k++) v_store_n(out + k * width, r[k], lanes);
}

static void transpose(const void *rows, size_t stride, size_t n, size_t K, size_t lanes, void *out,
                      size_t width)
{
    const real *from = rows;
    real *to = out;
    size_t k = 0;
    if (n == VL && lanes == VL)
        for (; K - k >= VL; k += VL)
            transpose_block(from + k, stride, VL, VL, VL, to + k * width, width, 1);
    for (; k < K; k += VL)
        transpose_block(from + k, stride, n, valid(k, K), lanes, to + k * width, width, 0);
}

/* The same rows, which are met by x at once: the chain of multiply-adds of each is that of a product. */
static void dot_rows(const void *rows, size_t stride, size_t n, size_t K, const void *x, size_t lanes,
                     void *sums)
{
    const real *from = rows, *a = x;
    vf r[VL], sum = v_load_n(sums, lanes);
    size_t k = 0;
    if (n == VL)
        for (; K - k >= VL; k += VL) {
            load_transposed(from + k, stride, VL, VL, r, 1);
            UNROLL for (size_t j = 0; j < VL; j++) sum = v_fma(v_set1(a[k + j]), r[j], sum);
        }
    for (; k < K; k += VL) {
        real some[VL * VL];
        const size_t count = valid(k, K);
        transpose_block(from + k, stride, n, count, VL, some, VL, 0);
        for (size_t j = 0; j < count; j++)
            sum = v_fma(v_set1(a[k + j]), v_load(some + j * VL), sum);
    }
    v_store_n(sums, sum, lanes);
}

static void sum_biases(const void *b_ih, const void *b_hh, size_t n, void *out)
{
    v_store_n(out, v_add(v_load_n(b_ih, n), v_load_n(b_hh, n)), n);
}

/* Of `count` vectors from unit u on, each one chain over the rows: side by side they do not wait for
 * their own. `n` lanes of the last. */
ALWAYS_INLINE void sum_products_of(const struct cylstm_rows *a, const struct cylstm_rows *b,
                                   size_t rows, size_t u, const int count, size_t n, int adds,
                                   real *out)
{
    vf sum[PANEL_VECTORS];
    UNROLL for (int v = 0; v < count; v++) sum[v] = v_zero();
    for (size_t r = 0; r < rows; r++) {
        const real *x = row_of(a, r) + u, *y = row_of(b, r) + u;
        UNROLL for (int v = 0; v < count; v++)
            sum[v] = n == VL ? v_fma(v_load(x + v * VL), v_load(y + v * VL), sum[v])
                             : v_fma(v_load_n(x + v * VL, n), v_load_n(y + v * VL, n), sum[v]);
    }
    UNROLL for (int v = 0; v < count; v++) {
        if (adds) sum[v] = v_add(v_load_n(out + u + v * VL, n), sum[v]);
        v_store_n(out + u + v * VL, sum[v], n);
    }
}

static void sum_products(const struct cylstm_rows *a, const struct cylstm_rows *b, size_t rows,
                         size_t n, int adds, void *out)
{
    size_t u = 0;
    for (; n - u >= PANEL_VECTORS * VL; u += PANEL_VECTORS * VL)
        sum_products_of(a, b, rows, u, PANEL_VECTORS, VL, adds, out);
    for (; n - u >= VL; u += VL) sum_products_of(a, b, rows, u, 1, VL, adds, out);
    if (u < n) sum_products_of(a, b, rows, u, 1, n - u, adds, out);
}
