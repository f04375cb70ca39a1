/* bf16_tmpl.h -- rows times panels of bfloat16: two values of k to a 32-bit lane, the even one below.
 *
 * One load feeds two multiply-adds, where a lone row waits for loads. Float32 sets only.
 */

/* The values k, and k + 1 if `both`, of R rows and N vectors; those from the fifth on are of the next
 * panel. */
ALWAYS_INLINE void bf16_pair(vf acc[MAX_TILE_ROWS * PANEL_VECTORS],
                             const real *const a[MAX_TILE_ROWS], size_t k, const char *w,
                             ptrdiff_t w_panel, const int R, const int N, const int both)
{
    vf even[MAX_TILE_ROWS], odd[MAX_TILE_ROWS];
    UNROLL for (int r = 0; r < R; r++) {
        even[r] = v_set1(a[r][k]);
        odd[r] = both ? v_set1(a[r][k + 1]) : v_zero();
    }
    UNROLL for (int v = 0; v < N; v++) {
        const ptrdiff_t at = v / PANEL_VECTORS * w_panel + v % PANEL_VECTORS * (ptrdiff_t)(VL * sizeof(real));
        const vf loaded = v_load((const real *)(w + at)), pair = R == 1 ? v_keep(loaded) : loaded, low = v_low_bf16(pair), high = v_high_bf16(pair);
        UNROLL for (int r = 0; r < R; r++) acc[r * N + v] = v_fma(even[r], low, acc[r * N + v]);
        if (both)
            UNROLL for (int r = 0; r < R; r++) acc[r * N + v] = v_fma(odd[r], high, acc[r * N + v]);
    }
}

/* sums = init + both terms, of R rows of a panel, or of a lone row of two panels if N is more than four. */
ALWAYS_INLINE void bf16_tile(const struct cylstm_product *p, size_t panel, size_t row, real *sums, const int R,
                             const int N)
{
    const ptrdiff_t line = PANEL_VECTORS * VL * sizeof(real);
    vf acc[MAX_TILE_ROWS * PANEL_VECTORS];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++)
            acc[r * N + v] = first_sum(p, panel + (size_t)v / PANEL_VECTORS, row + (size_t)r, (size_t)v % PANEL_VECTORS);
    for (int n = 0; n < 2; n++) {
        const struct cylstm_term *t = &p->term[n];
        if (!t->K) continue;
        const char *w = (const char *)t->w + (ptrdiff_t)panel * p->w_panel;
        const real *a[MAX_TILE_ROWS];
        UNROLL for (int r = 0; r < R; r++) a[r] = row_of(&t->a, row + (size_t)r);
        size_t k = 0;
        for (; t->K - k >= BF16_GROUP; k += BF16_GROUP, w += line) bf16_pair(acc, a, k, w, p->w_panel, R, N, 1);
        if (k < t->K) bf16_pair(acc, a, k, w, p->w_panel, R, N, 0);
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) v_store(sums + (r * PANEL_VECTORS + v) * VL, acc[r * N + v]);
}

typedef void bf16_tile_fn(const struct cylstm_product *p, size_t panel, size_t row, real *sums);
#define BF16_TILE(NAME, R, N) \
    static void NAME(const struct cylstm_product *p, size_t panel, size_t row, real *sums) \
    { bf16_tile(p, panel, row, sums, R, N); }
#define BF16_HEIGHT(R) BF16_TILE(bf16_tile_##R, R, PANEL_VECTORS)
#define BF16_NAME(R) bf16_tile_##R,
EVERY_HEIGHT(BF16_ROWS, BF16_HEIGHT)
BF16_TILE(bf16_tile_pair, 1, 2 * PANEL_VECTORS)
static bf16_tile_fn *const bf16_tiles[BF16_ROWS] = { EVERY_HEIGHT(BF16_ROWS, BF16_NAME) };

static void bf16_sum(const struct cylstm_product *p, const struct cylstm_codes codes[2], size_t panel,
                           size_t panels, size_t row, size_t rows, float *sums)
{
    (void)codes;
    (panels == 2 ? bf16_tile_pair : bf16_tiles[rows - 1])(p, panel, row, sums);
}

static const struct cylstm_compact_kernels bf16_kernels = {
    .name = ISA_NAME,
    .lanes = VL,
    .tile_rows = BF16_ROWS,
    .row_panels = 2,
    .sum = bf16_sum,
};
