/* gemm_tmpl.h -- the panel product: rows times packed panels, finished while hot.
 *
 * A tile is R rows by NV vectors of accumulators that stay in registers for the whole
 * chain over k. The finished tile goes to a small buffer in L1, where a rolled loop
 * finishes it: that keeps the gate math out of the register allocation of the sum.
 */

enum {
    L2_BYTES = 384 << 10, /* what surely stays in the L2 cache of a core */
    PAGE_BYTES = 4096,
    FETCH_AHEAD = 24 /* in k, some 80 ns */
};

/* Add k in [from, to) of one term to the accumulators. The order, broadcasts first, then
 * vector, then row, is the one that gcc and clang both keep in registers. `prefetch`: ask in time for the
 * last row; where rows are columns of a matrix, the others lie beside it or in the line of the tile
 * before. A narrow tile does not, as its loads take longer than its sums. */
ALWAYS_INLINE void tile_term(vf acc[MAX_TILE_ROWS][PANEL_VECTORS], const struct cylstm_term *t,
                             size_t row, const real *w, ptrdiff_t w_k, size_t from, size_t to,
                             const int R, const int NV, const int prefetch)
{
    const real *a[MAX_TILE_ROWS];
    UNROLL for (int r = 0; r < R; r++) a[r] = row_of(&t->a, row + (size_t)r);
    const ptrdiff_t a_end = (ptrdiff_t)to * t->a_k;
    w += (ptrdiff_t)from * w_k;
    for (ptrdiff_t k = (ptrdiff_t)from * t->a_k; k != a_end; k += t->a_k, w += w_k) {
        vf b[MAX_TILE_ROWS];
        if (prefetch && NV == PANEL_VECTORS) FETCH(a[R - 1] + k + FETCH_AHEAD * t->a_k);
        UNROLL for (int r = 0; r < R; r++) b[r] = v_set1(a[r][k]);
        UNROLL for (int v = 0; v < NV; v++) {
            const vf wv = v_load(w + v * VL);
            UNROLL for (int r = 0; r < R; r++) acc[r][v] = v_fma(b[r], wv, acc[r][v]);
        }
    }
}

/* Ask for what the end of the tile will read or write in a row. */
ALWAYS_INLINE void fetch_row(const struct cylstm_product *p, size_t panel, size_t row, const int NV)
{
    const size_t first = panel * PANEL_VECTORS * VL, H = p->cell.H;
    if (p->addend.base) {
        const real *add = row_of(&p->addend, row) + first;
        UNROLL for (int v = 0; v < NV; v++) FETCH(add + v * VL);
    }
    if (p->finish == CYLSTM_STORE) {
        const real *out = row_of(&p->out, row) + (ptrdiff_t)panel * p->out_panel;
        UNROLL for (int v = 0; v < NV; v++) FETCH_TO_WRITE(out + v * VL);
    } else if (p->finish == CYLSTM_CELL_FORWARD) {
        const real *tape = row_of(&p->cell.tape, row) + panel * VL;
        for (size_t n = 0; n < TAPE_VECTORS; n++) FETCH_TO_WRITE(tape + n * H);
        if (p->cell.y.base) FETCH_TO_WRITE(row_of(&p->cell.y, row) + panel * VL);
    } else if (p->finish == CYLSTM_CELL_BACKWARD) {
        const real *tape = row_of(&p->cell.tape, row) + first;
        for (size_t n = 0; n < TAPE_VECTORS; n++)
            UNROLL for (int v = 0; v < NV; v++) FETCH(tape + n * H + v * VL);
        if (!p->cell.c_prev.base) return;
        const real *c_prev = row_of(&p->cell.c_prev, row) + first;
        UNROLL for (int v = 0; v < NV; v++) FETCH(c_prev + v * VL);
    }
}

/* sums (R, 4 VL) = init + both terms, for R rows of one panel. `prefetch`: ask in time for what the tile
 * and its end meet. Rows take turns, each under its part of the longer sum, since asking for all of
 * them at once would hold up the loads of the sum. */
ALWAYS_INLINE void tile(const struct cylstm_product *p, size_t panel, size_t row, real *sums,
                        const int R, const int NV, const int prefetch)
{
    vf acc[MAX_TILE_ROWS][PANEL_VECTORS];
    const real *init = (const real *)p->init + (ptrdiff_t)panel * p->init_panel +
                       (ptrdiff_t)row * p->init_row;
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < NV; v++) acc[r][v] = v_load(init + r * p->init_row + v * VL);
    const int longer = p->term[1].K > p->term[0].K;
    for (int t = 0; t < 2; t++) {
        const struct cylstm_term *term = &p->term[t];
        const real *w = (const real *)term->w + (ptrdiff_t)panel * p->w_panel;
        const int fetches = prefetch && t == longer;
        const size_t K = term->K, part = fetches ? K / (size_t)R + 1 : K;
        for (size_t k = 0, r = row; k < K; k += part, r++) {
            if (fetches) fetch_row(p, panel, r, NV);
            tile_term(acc, term, row, w, p->w_k, k, K - k < part ? K : k + part, R, NV, prefetch);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < NV; v++)
            v_store(sums + (r * PANEL_VECTORS + v) * VL, acc[r][v]);
}

/* The same for a single row of two neighbouring panels, the second of NV vectors: eight chains
 * hide the latency of the multiply-add where one row of one panel has only four. */
ALWAYS_INLINE void tile_pair(const struct cylstm_product *p, size_t panel, real *sums, const int NV)
{
    const int N = PANEL_VECTORS + NV;
    vf acc[2 * PANEL_VECTORS];
    const real *init = (const real *)p->init + (ptrdiff_t)panel * p->init_panel;
    UNROLL for (int v = 0; v < N; v++)
        acc[v] = v_load(init + (v / PANEL_VECTORS) * p->init_panel + (v % PANEL_VECTORS) * VL);
    for (int i = 0; i < 2; i++) {
        const struct cylstm_term *t = &p->term[i];
        if (!t->K) continue;
        const real *a = row_of(&t->a, 0);
        const real *w = (const real *)t->w + (ptrdiff_t)panel * p->w_panel;
        const ptrdiff_t a_end = (ptrdiff_t)t->K * t->a_k;
        for (ptrdiff_t k = 0; k != a_end; k += t->a_k, w += p->w_k) {
            const vf b = v_set1(a[k]);
            UNROLL for (int v = 0; v < N; v++)
                acc[v] = v_fma(b, v_load(w + (v / PANEL_VECTORS) * p->w_panel + (v % PANEL_VECTORS) * VL), acc[v]);
        }
    }
    UNROLL for (int v = 0; v < N; v++) v_store(sums + v * VL, acc[v]);
}

/* One instance of the tile per height and width, and for what it meets. */
#define TILE(R, NV) \
    static void tile_##R##x##NV(const struct cylstm_product *p, size_t panel, size_t row, real *sums) \
    { tile(p, panel, row, sums, R, NV, 0); } \
    static void prefetch_tile_##R##x##NV(const struct cylstm_product *p, size_t panel, size_t row, real *sums) \
    { tile(p, panel, row, sums, R, NV, 1); }
#define TILES(R) TILE(R, 1) TILE(R, 2) TILE(R, 3) TILE(R, 4)
#define NAMES(R) { tile_##R##x1, tile_##R##x2, tile_##R##x3, tile_##R##x4 },
#define PREFETCH_NAMES(R) { prefetch_tile_##R##x1, prefetch_tile_##R##x2, prefetch_tile_##R##x3, prefetch_tile_##R##x4 },
#define UP_TO_2(M) M(1) M(2)
#define UP_TO_3(M) UP_TO_2(M) M(3)
#define UP_TO_5(M) UP_TO_3(M) M(4) M(5)
#define UP_TO_6(M) UP_TO_5(M) M(6)
#define UP_TO(rows) UP_TO_##rows
#define EVERY_HEIGHT(rows, M) UP_TO(rows)(M)

EVERY_HEIGHT(TILE_ROWS, TILES)
typedef void tile_fn(const struct cylstm_product *p, size_t panel, size_t row, real *sums);
static tile_fn *const tiles[2][TILE_ROWS][PANEL_VECTORS] = {
    { EVERY_HEIGHT(TILE_ROWS, NAMES) },
    { EVERY_HEIGHT(TILE_ROWS, PREFETCH_NAMES) },
};

#define TILE_PAIR(NV) \
    static void tile_pair_##NV(const struct cylstm_product *p, size_t panel, real *sums) \
    { tile_pair(p, panel, sums, NV); }
TILE_PAIR(1) TILE_PAIR(2) TILE_PAIR(3) TILE_PAIR(4)
typedef void tile_pair_fn(const struct cylstm_product *p, size_t panel, real *sums);
static tile_pair_fn *const tile_pairs[PANEL_VECTORS] = {tile_pair_1, tile_pair_2, tile_pair_3, tile_pair_4};

/* Whether a tile meets memory that may lie beyond L2: what is added, a tape, a large result, or
 * columns of a matrix where the next k is a page on, which the hardware does not foresee. */
static int needs_prefetch(const struct cylstm_product *p)
{
    if (p->term[0].a_k * (ptrdiff_t)sizeof(real) >= PAGE_BYTES || p->addend.base) return 1;
    return p->finish == CYLSTM_STORE ? p->rows * p->columns * sizeof(real) > L2_BYTES
                                     : p->cell.tape.base != NULL;
}

/* Vectors of a panel that hold columns. */
static size_t vectors_of(const struct cylstm_product *p, size_t panel)
{
    const size_t left = p->columns - panel * PANEL_VECTORS * VL;
    return left < PANEL_VECTORS * VL ? (left + VL - 1) / VL : PANEL_VECTORS;
}

/* Write a finished tile to its rows of `out`, columns past the last one left alone. */
static void store_tile(const struct cylstm_product *p, size_t panel, size_t row, size_t rows,
                       const real *sums)
{
    const size_t first = panel * PANEL_VECTORS * VL;
    for (size_t r = 0; r < rows; r++, sums += PANEL_VECTORS * VL) {
        real *out = row_of(&p->out, row + r) + (ptrdiff_t)panel * p->out_panel;
        for (size_t u = first, v = 0; v < PANEL_VECTORS && u < p->columns; v++, u += VL)
            v_store_n(out + v * VL, v_load(sums + v * VL), valid(u, p->columns));
    }
}

static void add_rows(const struct cylstm_product *p, size_t panel, size_t row, size_t rows, real *sums)
{
    const size_t first = panel * PANEL_VECTORS * VL;
    for (size_t r = 0; r < rows; r++, sums += PANEL_VECTORS * VL) {
        const real *add = row_of(&p->addend, row + r);
        for (size_t u = first, v = 0; v < PANEL_VECTORS && u < p->columns; v++, u += VL)
            v_store(sums + v * VL, v_add(v_load(sums + v * VL), v_load_n(add + u, valid(u, p->columns))));
    }
}

/* In a last panel that is not whole, gates are shorter than a vector: each to its own, the other
 * lanes zero. From the last gate down, since they move up. */
static void spread_gates(real *preact, size_t rows, size_t lanes)
{
    for (size_t r = 0; r < rows; r++, preact += PANEL_VECTORS * VL)
        for (size_t gate = PANEL_VECTORS; gate-- > 0;)
            v_store(preact + gate * VL, v_load_n(preact + gate * lanes, lanes));
}

static void finish(const struct cylstm_product *p, size_t panel, size_t row, size_t rows, void *sums)
{
    const size_t left = p->columns - panel * PANEL_VECTORS * VL;
    if (p->addend.base) add_rows(p, panel, row, rows, sums);
    switch (p->finish) {
    case CYLSTM_STORE: store_tile(p, panel, row, rows, sums); break;
    case CYLSTM_CELL_FORWARD:
        if (left < PANEL_VECTORS * VL) spread_gates(sums, rows, left / PANEL_VECTORS);
        cell_forward(&p->cell, panel, row, rows, sums);
        break;
    case CYLSTM_CELL_BACKWARD: cell_backward(&p->cell, panel, row, rows, sums); break;
    }
}

/* A lone row, two panels at once. */
static void row_product(const struct cylstm_product *p)
{
    _Alignas(64) real sums[2 * PANEL_VECTORS * VL];
    const size_t width = PANEL_VECTORS * VL, count = p->panel_end - p->panel_begin;
    for (size_t i = 0, step; i < count; i += step) {
        step = i + 1 < count ? 2 : 1;
        const size_t panel = p->descending ? p->panel_end - i - step : p->panel_begin + i;
        const size_t nv = vectors_of(p, panel + step - 1);
        if (step == 2)
            tile_pairs[nv - 1](p, panel, sums);
        else
            tiles[0][0][nv - 1](p, panel, 0, sums);
        for (size_t n = 0; n < step; n++) finish(p, panel + n, 0, 1, sums + n * width);
    }
}

/* How many panels meet a tile's rows before the next rows come: one, which then stays in L1 or L2
 * while all rows pass. Rows that come from beyond L2 stay for as many panels as L2 holds. */
static size_t panels_together(const struct cylstm_product *p)
{
    const size_t K = p->term[0].K + p->term[1].K, panel = K * PANEL_VECTORS * VL * sizeof(real);
    if (p->rows * K * sizeof(real) <= L2_BYTES || panel > L2_BYTES) return 1;
    return L2_BYTES / panel;
}

static void product(const struct cylstm_product *p)
{
    if (p->rows == 1) {
        row_product(p);
        return;
    }
    _Alignas(64) real sums[MAX_TILE_ROWS * PANEL_VECTORS * VL];
    const size_t count = p->panel_end - p->panel_begin, together = panels_together(p);
    const int prefetch = needs_prefetch(p);
    const size_t tile_count = (p->rows + TILE_ROWS - 1) / TILE_ROWS;
    for (size_t first = 0; first < count; first += together) {
        const size_t end = count - first < together ? count : first + together;
        /* tiles of nearly equal height: 32 rows as 6, 6, 5, 5, 5, 5, not 6, 6, 6, 6, 6, 2 */
        for (size_t n = 0, row = 0, rows; n < tile_count; n++, row += rows) {
            rows = (p->rows - row + tile_count - n - 1) / (tile_count - n);
            for (size_t i = first; i < end; i++) {
                const size_t panel = p->descending ? p->panel_end - 1 - i : p->panel_begin + i;
                tiles[prefetch][rows - 1][vectors_of(p, panel) - 1](p, panel, row, sums);
                finish(p, panel, row, rows, sums);
            }
        }
    }
}
