/* int8_tmpl.h -- quantised rows times int8 panels, for one way of multiplying bytes.
 *
 * Parameters, set by the including file (avx2_int8.c and its like): REAL_BITS 32, INT8_KERNELS and
 * INT8_NAME, and one vec_*.h, of which v_dot is the heart.
 *
 * Integer sums are exact, so their order is free: a lone row takes several chains over k, which hide
 * the latency of the dot product.
 */
#include "rows_tmpl.h"

/* Adding it rounds a number of less than 2^22 to an integer, which the low bits then hold. */
static const real INT8_ROUND = 0x1.8p23f;
static const real INT8_LEAST = 0x1p-119f; /* its scale is still a normal number */

/* Of lanes that are not negative, which sort like their bits: NaN is above all. */
static real largest_lane(vf a)
{
    real lane[VL], largest;
    int32_t bits[VL], most = 0;
    v_store(lane, a);
    memcpy(bits, lane, sizeof bits);
    for (int l = 0; l < VL; l++) most = bits[l] > most ? bits[l] : most;
    memcpy(&largest, &most, sizeof largest);
    return largest;
}

/* The codes of a vector of multiples of the scale, and of what they leave. */
ALWAYS_INLINE void put_codes(vf multiples, uint8_t *codes, uint8_t *rest)
{
    const vf round = v_set1(INT8_ROUND + CODE_OF_ZERO), whole = v_add(multiples, round);
    v_store_low_bytes(codes, whole);
    if (rest) {
        const vf left = v_sub(multiples, v_sub(whole, round));
        v_store_low_bytes(rest, v_add(v_mul(left, v_set1(INT8_UNIT)), round));
    }
}

/* The same of the last lanes of a row, up to a whole group. */
ALWAYS_INLINE void put_last_codes(vf multiples, size_t n, uint8_t *codes, uint8_t *rest)
{
    uint8_t last[2][VL + INT8_GROUP];
    const size_t size = (n + INT8_GROUP - 1) / INT8_GROUP * INT8_GROUP;
    put_codes(multiples, last[0], rest ? last[1] : NULL);
    for (int i = 0; i <= !!rest; i++) {
        memset(last[i] + VL, CODE_OF_ZERO, INT8_GROUP);
        memcpy(i ? rest : codes, last[i], size);
    }
}

ALWAYS_INLINE float quantize_row(const float *x, size_t n, uint8_t *codes, uint8_t *rest)
{
    const size_t tail = n % VL, whole = n - tail;
    vf most = v_zero(), poison = v_zero(); /* 0 times a number is 0, and else NaN */
    for (size_t k = 0; k < whole; k += VL) {
        const vf a = v_load(x + k);
        most = v_max(most, v_abs(a));
        poison = v_fma(a, v_zero(), poison);
    }
    if (tail) {
        const vf a = v_load_n(x + whole, tail);
        most = v_max(most, v_abs(a));
        poison = v_fma(a, v_zero(), poison);
    }
    const real largest = largest_lane(v_abs(v_add(most, poison)));
    if (!(largest >= INT8_LEAST)) {
        const size_t size = (n + INT8_GROUP - 1) / INT8_GROUP * INT8_GROUP;
        memset(codes, CODE_OF_ZERO, size);
        if (rest) memset(rest, CODE_OF_ZERO, size);
        return largest != largest ? largest : 0;
    }
    const vf by = v_set1(127 / largest);
    for (size_t k = 0; k < whole; k += VL)
        put_codes(v_mul(v_load(x + k), by), codes + k, rest ? rest + k : NULL);
    if (tail)
        put_last_codes(v_mul(v_load_n(x + whole, tail), by), tail, codes + whole,
                       rest ? rest + whole : NULL);
    return largest / 127;
}

static float quantize(const float *x, size_t n, uint8_t *codes, uint8_t *rest)
{
    return rest ? quantize_row(x, n, codes, rest) : quantize_row(x, n, codes, NULL);
}

ALWAYS_INLINE int32_t group_of(const uint8_t *codes, size_t g)
{
    int32_t four;
    memcpy(&four, codes + g * INT8_GROUP, sizeof four);
    return four;
}

/* sums = before + one term, of R rows of a panel; a lone row as CHAINS chains over k. `before` may be `sums`. */
ALWAYS_INLINE void int8_term(const struct cylstm_codes *c, const char *w, size_t groups, size_t row,
                             const float *before, ptrdiff_t before_row, float *sums, const int R,
                             const int CHAINS)
{
    const ptrdiff_t vector = VL * sizeof(int32_t), line = PANEL_VECTORS * vector;
    const float *scale = (const float *)(w + (ptrdiff_t)groups * line);
    const char *correction = (const char *)scale + line;
    const uint8_t *codes[MAX_TILE_ROWS];
    vi acc[MAX_TILE_ROWS * PANEL_VECTORS];
    UNROLL for (int r = 0; r < R; r++) codes[r] = c->codes + (row + (size_t)r) * c->stride;
    UNROLL for (int n = 0; n < R * CHAINS; n++)
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++)
            acc[n * PANEL_VECTORS + v] = CODE_OF_ZERO && n % CHAINS == 0 ? v_load_i(correction + v * vector) : v_set1_i(0);
    size_t g = 0;
    for (; groups - g >= (size_t)CHAINS; g += (size_t)CHAINS, w += CHAINS * line)
        UNROLL for (int n = 0; n < CHAINS; n++) {
            vi a[MAX_TILE_ROWS];
            UNROLL for (int r = 0; r < R; r++) a[r] = v_set1_i(group_of(codes[r], g + (size_t)n));
            UNROLL for (int v = 0; v < PANEL_VECTORS; v++) {
                const vi wv = v_load_i(w + n * line + v * vector);
                UNROLL for (int r = 0; r < R; r++)
                    acc[(r * CHAINS + n) * PANEL_VECTORS + v] = v_dot(a[r], wv, acc[(r * CHAINS + n) * PANEL_VECTORS + v]);
            }
        }
    for (; CHAINS > 1 && g < groups; g++, w += line)
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++)
            acc[v] = v_dot(v_set1_i(group_of(codes[0], g)), v_load_i(w + v * vector), acc[v]);
    UNROLL for (int r = 0; r < R; r++) {
        const vf by = v_set1(c->scales[row + (size_t)r]);
        UNROLL for (int v = 0; v < PANEL_VECTORS; v++) {
            vi sum = acc[r * CHAINS * PANEL_VECTORS + v];
            UNROLL for (int n = 1; n < CHAINS; n++) sum = v_add_i(sum, acc[(r * CHAINS + n) * PANEL_VECTORS + v]);
            v_store(sums + (r * PANEL_VECTORS + v) * VL,
                    v_fma(v_from_i(sum), v_mul(by, v_load(scale + v * VL)), v_load(before + r * before_row + v * VL)));
        }
    }
}

/* One instance per height. */
typedef void int8_tile_fn(const struct cylstm_codes *c, const char *w, size_t groups, size_t row,
                          const float *before, ptrdiff_t before_row, float *sums);
#define INT8_TILE(R) \
    static void int8_tile_##R(const struct cylstm_codes *c, const char *w, size_t groups, size_t row, \
                              const float *before, ptrdiff_t before_row, float *sums) \
    { int8_term(c, w, groups, row, before, before_row, sums, R, R == 1 ? INT8_ROWS : 1); }
#define INT8_NAME_OF(R) int8_tile_##R,
EVERY_HEIGHT(INT8_ROWS, INT8_TILE)
static int8_tile_fn *const int8_tiles[INT8_ROWS] = { EVERY_HEIGHT(INT8_ROWS, INT8_NAME_OF) };

static void sum(const struct cylstm_product *p, const struct cylstm_codes codes[2], size_t panel,
                size_t panels, size_t row, size_t rows, float *sums)
{
    enum { SUMS_ROW = PANEL_VECTORS * VL };
    (void)panels; /* one */
    const float *before = (const float *)p->init + (ptrdiff_t)panel * p->init_panel + (ptrdiff_t)row * p->init_row;
    ptrdiff_t before_row = p->init_row;
    if ((panel + 1) * SUMS_ROW > p->columns || !(p->term[0].K || p->term[1].K)) {
        for (size_t r = 0; r < rows; r++)
            for (size_t v = 0; v < PANEL_VECTORS; v++)
                v_store(sums + r * SUMS_ROW + v * VL, first_sum(p, panel, row + r, v));
        before = sums, before_row = SUMS_ROW;
    }
    for (int n = 0; n < 2; n++) {
        const struct cylstm_term *t = &p->term[n];
        for (const struct cylstm_codes *c = t->K ? &codes[n] : NULL; c; c = c->rest) {
            int8_tiles[rows - 1](c, (const char *)t->w + (ptrdiff_t)panel * p->w_panel,
                                 (t->K + INT8_GROUP - 1) / INT8_GROUP, row - c->first, before, before_row, sums);
            before = sums, before_row = SUMS_ROW;
        }
    }
}

const struct cylstm_compact_kernels INT8_KERNELS = {
    .name = INT8_NAME,
    .lanes = VL,
    .tile_rows = INT8_ROWS,
    .row_panels = 1,
    .code_size = sizeof(int8_t),
    .quantize = quantize,
    .sum = sum,
};
