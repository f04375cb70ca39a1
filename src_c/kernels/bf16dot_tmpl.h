/* bf16dot_tmpl.h -- rows rounded to bfloat16 times panels of bfloat16, two products to a lane at a time.
 *
 * Parameters, set by the including file (avx512_bf16.c and its like): REAL_BITS 32, BF16_KERNELS and
 * BF16_NAME, and one vec_*.h, of which v_dot_bf16 is the heart.
 *
 * Products of two bfloat16 are exact in float32. How the two sums of a pair are rounded is each CPU's
 * own affair: to nearest even one after the other (AVX-512, whatever the order, and portable C), or
 * both to odd, first that of the pair (AArch64). So a sum of K products is off by at most
 * (ceil(K / 2) + 1) 2^-23 times the sum of all magnitudes, and numbers below 2^-126 count as 0. Bits
 * may differ from CPU to CPU. On one they depend on the row and the column alone: every element is one
 * chain over k, whatever the tile.
 */
#include "rows_tmpl.h"

static float round_row(const float *x, size_t n, uint8_t *codes, uint8_t *none)
{
    enum { CODE = sizeof(uint16_t) };
    const size_t rest = n % VL, whole = n - rest;
    (void)none;
    for (size_t k = 0; k < whole; k += VL) v_store_bf16(codes + k * CODE, v_load(x + k));
    if (rest) {
        uint8_t last[(VL + BF16_GROUP) * CODE] = {0};
        v_store_bf16(last, v_load_n(x + whole, rest));
        memcpy(codes + whole * CODE, last,
               (rest + BF16_GROUP - 1) / BF16_GROUP * BF16_GROUP * CODE);
    }
    return 1;
}

ALWAYS_INLINE vi pair_of(const uint8_t *codes, size_t g)
{
    int32_t pair;
    memcpy(&pair, codes + g * sizeof pair, sizeof pair);
    return v_set1_i(pair);
}

/* sums = init + both terms, of R rows of a panel, or of a lone row of two panels if N is more than four. */
ALWAYS_INLINE void bf16dot_tile(const struct cylstm_product *p, const struct cylstm_codes codes[2],
                                size_t panel, size_t row, real *sums, const int R, const int N)
{
    const ptrdiff_t vector = VL * sizeof(real), line = PANEL_VECTORS * vector;
    vf acc[MAX_TILE_ROWS * PANEL_VECTORS];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++)
            acc[r * N + v] = first_sum(p, panel + (size_t)v / PANEL_VECTORS, row + (size_t)r, (size_t)v % PANEL_VECTORS);
    for (int n = 0; n < 2; n++) {
        const struct cylstm_term *t = &p->term[n];
        if (!t->K) continue;
        const char *w = (const char *)t->w + (ptrdiff_t)panel * p->w_panel;
        const uint8_t *a[MAX_TILE_ROWS];
        UNROLL for (int r = 0; r < R; r++) a[r] = codes[n].codes + (row - codes[n].first + (size_t)r) * codes[n].stride;
        for (size_t g = 0; g < (t->K + BF16_GROUP - 1) / BF16_GROUP; g++, w += line) {
            vi pair[MAX_TILE_ROWS];
            UNROLL for (int r = 0; r < R; r++) pair[r] = pair_of(a[r], g);
            UNROLL for (int v = 0; v < N; v++) {
                const vi wv = v_load_i(w + v / PANEL_VECTORS * p->w_panel + v % PANEL_VECTORS * vector);
                UNROLL for (int r = 0; r < R; r++) acc[r * N + v] = v_dot_bf16(pair[r], wv, acc[r * N + v]);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) v_store(sums + (r * PANEL_VECTORS + v) * VL, acc[r * N + v]);
}

typedef void bf16dot_tile_fn(const struct cylstm_product *p, const struct cylstm_codes codes[2], size_t panel, size_t row,
                             real *sums);
#define BF16DOT_TILE(NAME, R, N) \
    static void NAME(const struct cylstm_product *p, const struct cylstm_codes codes[2], size_t panel, size_t row, \
                     real *sums) \
    { bf16dot_tile(p, codes, panel, row, sums, R, N); }
#define BF16DOT_HEIGHT(R) BF16DOT_TILE(bf16dot_tile_##R, R, PANEL_VECTORS)
#define BF16DOT_NAME(R) bf16dot_tile_##R,
EVERY_HEIGHT(BF16DOT_ROWS, BF16DOT_HEIGHT)
BF16DOT_TILE(bf16dot_tile_pair, 1, 2 * PANEL_VECTORS)
static bf16dot_tile_fn *const bf16dot_tiles[BF16DOT_ROWS] = { EVERY_HEIGHT(BF16DOT_ROWS, BF16DOT_NAME) };

static void sum(const struct cylstm_product *p, const struct cylstm_codes codes[2], size_t panel,
                size_t panels, size_t row, size_t rows, float *sums)
{
    (panels == 2 ? bf16dot_tile_pair : bf16dot_tiles[rows - 1])(p, codes, panel, row, sums);
}

const struct cylstm_compact_kernels BF16_KERNELS = {
    .name = BF16_NAME,
    .lanes = VL,
    .tile_rows = BF16DOT_ROWS,
    .row_panels = 2,
    .code_size = sizeof(uint16_t),
    .quantize = round_row,
    .sum = sum,
};
