/* gemm_tmpl.h -- the panel product: rows times packed panels, finished while hot.
 *
 * A tile is R rows by NV vectors of accumulators that stay in registers for the whole
 * chain over k. The finished tile goes to a small buffer in L1, where a rolled loop
 * finishes it: that keeps the gate math out of the register allocation of the sum.
 */

enum {
    L1_BYTES = 16 << 10,  /* what surely stays in the L1 cache of a core, */
    L2_BYTES = 384 << 10, /* and in its L2 */
    SHORT_PANEL_BYTES = 2 << 10,
    PAGE_BYTES = 4096,
    FETCH_AHEAD = 24 /* in k, some 80 ns */
};

/* Add k in [from, to) of one term to NV of the accumulators, from `first` on. The order, broadcasts first, then
 * vector, then row, is the one that gcc and clang both keep in registers. (Of two rows, gcc would load the vector
 * for each.) `prefetch`: ask in time for the
 * last row; where rows are columns of a matrix, the others lie beside it or in the line of the tile
 * before. A narrow tile does not, as its loads take longer than its sums. */
ALWAYS_INLINE void tile_term(vf acc[MAX_TILE_ROWS][PANEL_VECTORS], const struct cylstm_term *t,
                             size_t row, const real *w, ptrdiff_t w_k, size_t from, size_t to,
                             const int R, const int first, const int NV, const int prefetch)
{
    const real *a[MAX_TILE_ROWS];
    UNROLL for (int r = 0; r < R; r++) a[r] = row_of(&t->a, row + (size_t)r);
    const ptrdiff_t a_end = (ptrdiff_t)to * t->a_k;
    w += (ptrdiff_t)from * w_k;
    for (ptrdiff_t k = (ptrdiff_t)from * t->a_k; k != a_end; k += t->a_k, w += w_k) {
        if (R > TILE_ROWS) { /* more rows than vectors: these are fewer to hold */
            vf wv[PANEL_VECTORS];
            UNROLL for (int v = 0; v < NV; v++) wv[v] = v_load(w + v * VL);
            UNROLL for (int r = 0; r < R; r++) {
                const vf b = v_set1(a[r][k]);
                UNROLL for (int v = 0; v < NV; v++) acc[r][first + v] = v_fma(b, wv[v], acc[r][first + v]);
            }
            continue;
        }
        vf b[MAX_TILE_ROWS];
        if (prefetch && NV == PANEL_VECTORS) FETCH(a[R - 1] + k + FETCH_AHEAD * t->a_k);
        UNROLL for (int r = 0; r < R; r++) b[r] = v_set1(a[r][k]);
        UNROLL for (int v = 0; v < NV; v++) {
            const vf loaded = v_load(w + v * VL), wv = R == 2 ? v_keep(loaded) : loaded;
            UNROLL for (int r = 0; r < R; r++) acc[r][first + v] = v_fma(b[r], wv, acc[r][first + v]);
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
    if (!p->finish) {
        if (p->streams) return;
        const real *out = row_of(&p->out, row) + (ptrdiff_t)panel * p->out_panel;
        UNROLL for (int v = 0; v < NV; v++) FETCH_TO_WRITE(out + v * VL);
        return;
    }
    const struct cylstm_cell *cell = &p->cell;
    const real *tape = row_of(&cell->tape, row);
    if (cell->dgates.base) { /* backward: dh of a whole panel's units */
        for (size_t n = 0; n < cell->tape_vectors; n++)
            UNROLL for (int v = 0; v < NV; v++) FETCH(tape + n * H + first + v * VL);
        const struct cylstm_rows *prev = cell->h_prev.base ? &cell->h_prev : &cell->c_prev;
        if (!prev->base) return;
        const real *state = row_of(prev, row) + first;
        UNROLL for (int v = 0; v < NV; v++) FETCH(state + v * VL);
        return;
    }
    const size_t each = PANEL_VECTORS / cell->unit_vectors, u = panel * each * VL;
    for (size_t v = u; v < u + each * VL && v < H; v += VL) {
        for (size_t n = 0; n < cell->tape_vectors; n++) FETCH_TO_WRITE(tape + n * H + v);
        if (cell->y.base) FETCH_TO_WRITE(row_of(&cell->y, row) + v);
    }
}

/* sums (R, 4 VL) = init + both terms, for R rows of one panel. `prefetch`: ask in time for what the tile
 * and its end meet. Rows take turns, each under its part of the longer sum, since asking for all of
 * them at once would hold up the loads of the sum. */
ALWAYS_INLINE void tile(const struct cylstm_product *p, size_t panel, size_t row, real *sums,
                        const int R, const int NV, const int prefetch, const int narrow)
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
            const size_t end = K - k < part ? K : k + part;
            if (narrow && t)
                tile_term(acc, term, row, w, p->w_k, k, end, R, 1, NV - 1, prefetch);
            else
                tile_term(acc, term, row, w, p->w_k, k, end, R, 0, NV - narrow, prefetch);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < NV; v++)
            v_store(sums + (r * PANEL_VECTORS + v) * VL, acc[r][v]);
}

/* The sum of one term in tile_pair: NV vectors of a panel from `first` on, of N in both panels. */
ALWAYS_INLINE void pair_term(vf acc[2 * PANEL_VECTORS], const struct cylstm_product *p,
                             const struct cylstm_term *t, size_t panel, const int first, const int NV, const int N)
{
    if (!t->K) return;
    const real *a = row_of(&t->a, 0);
    const real *w = (const real *)t->w + (ptrdiff_t)panel * p->w_panel;
    const ptrdiff_t a_end = (ptrdiff_t)t->K * t->a_k;
    for (ptrdiff_t k = 0; k != a_end; k += t->a_k, w += p->w_k) {
        const vf b = v_set1(a[k]);
        UNROLL for (int v = 0; v < N; v++) {
            vf *sum = &acc[v / NV * PANEL_VECTORS + first + v % NV];
            *sum = v_fma(b, v_load(w + (v / NV) * p->w_panel + (v % NV) * VL), *sum);
        }
    }
}

/* The same for a single row of two neighbouring panels, the second of NV vectors: eight chains
 * hide the latency of the multiply-add where one row of one panel has only four. */
ALWAYS_INLINE void tile_pair(const struct cylstm_product *p, size_t panel, real *sums, const int NV, const int narrow)
{
    const int N = PANEL_VECTORS + NV, M = PANEL_VECTORS - narrow;
    vf acc[2 * PANEL_VECTORS];
    const real *init = (const real *)p->init + (ptrdiff_t)panel * p->init_panel;
    UNROLL for (int v = 0; v < N; v++)
        acc[v] = v_load(init + (v / PANEL_VECTORS) * p->init_panel + (v % PANEL_VECTORS) * VL);
    for (int i = 0; i < 2; i++) {
        if (narrow && i)
            pair_term(acc, p, &p->term[i], panel, 1, M, 2 * M);
        else
            pair_term(acc, p, &p->term[i], panel, 0, M, narrow ? 2 * M : N);
    }
    UNROLL for (int v = 0; v < N; v++) v_store(sums + v * VL, acc[v]);
}

/* One instance of the tile per height and width, and of whole panels for what they meet; those of narrow
 * products are four vectors wide. */
typedef void tile_fn(const struct cylstm_product *p, size_t panel, size_t row, real *sums);
#define TILE(NAME, R, NV, PREFETCH, NARROW) \
    static void NAME(const struct cylstm_product *p, size_t panel, size_t row, real *sums) \
    { tile(p, panel, row, sums, R, NV, PREFETCH, NARROW); }
#define TILES(R) \
    TILE(tile_##R##x1, R, 1, 0, 0) TILE(tile_##R##x2, R, 2, 0, 0) TILE(tile_##R##x3, R, 3, 0, 0) \
    TILE(tile_##R##x4, R, 4, 0, 0) TILE(prefetch_tile_##R##x4, R, 4, 1, 0)
#define NARROW_TILES(R) TILE(narrow_tile_##R##x4, R, 4, 0, 1) TILE(narrow_prefetch_tile_##R##x4, R, 4, 1, 1)
#define NAMES(R) { tile_##R##x1, tile_##R##x2, tile_##R##x3, tile_##R##x4 },
#define PREFETCH_NAMES(R) { tile_##R##x1, tile_##R##x2, tile_##R##x3, prefetch_tile_##R##x4 },
#define NARROW_NAME(R) narrow_tile_##R##x4,
#define NARROW_PREFETCH_NAME(R) narrow_prefetch_tile_##R##x4,
EVERY_HEIGHT(TILE_ROWS, TILES)
EVERY_HEIGHT(NARROW_ROWS, NARROW_TILES)
static tile_fn *const tiles[2][TILE_ROWS][PANEL_VECTORS] = {
    { EVERY_HEIGHT(TILE_ROWS, NAMES) },
    { EVERY_HEIGHT(TILE_ROWS, PREFETCH_NAMES) },
};
static tile_fn *const narrow_tiles[2][NARROW_ROWS] = {
    { EVERY_HEIGHT(NARROW_ROWS, NARROW_NAME) },
    { EVERY_HEIGHT(NARROW_ROWS, NARROW_PREFETCH_NAME) },
};

typedef void tile_pair_fn(const struct cylstm_product *p, size_t panel, real *sums);
#define TILE_PAIR(NAME, NV, NARROW) \
    static void NAME(const struct cylstm_product *p, size_t panel, real *sums) \
    { tile_pair(p, panel, sums, NV, NARROW); }
TILE_PAIR(tile_pair_1, 1, 0)
TILE_PAIR(tile_pair_2, 2, 0)
TILE_PAIR(tile_pair_3, 3, 0)
TILE_PAIR(tile_pair_4, 4, 0)
TILE_PAIR(narrow_tile_pair_4, 4, 1)
static tile_pair_fn *const tile_pairs[PANEL_VECTORS] = {tile_pair_1, tile_pair_2, tile_pair_3, tile_pair_4};

/* A large result of sums: the gradient of a matrix. */
static int is_large(const struct cylstm_product *p)
{
    return !p->finish && p->rows * p->columns * sizeof(real) > L2_BYTES;
}

/* Whether a tile meets memory that may lie beyond L2: what is added, a tape, a large result, or
 * columns of a matrix where the next k is a page on, which the hardware does not foresee. */
static int needs_prefetch(const struct cylstm_product *p)
{
    if (p->term[0].a_k * (ptrdiff_t)sizeof(real) >= PAGE_BYTES || p->addend.base) return 1;
    return p->finish ? p->cell.tape.base != NULL : is_large(p) && !p->streams;
}

/* Of a panel's vectors, those that hold columns, less one. */
static size_t last_vector(const struct cylstm_product *p, size_t panel)
{
    const size_t left = p->columns - panel * PANEL_VECTORS * VL;
    return (left < PANEL_VECTORS * VL ? (left + VL - 1) / VL : PANEL_VECTORS) - 1;
}

/* In a partial panel of a narrow product a term meets all four gates, `lanes` columns each, with zeros for the
 * weights of the one that is not its own. An infinity makes NaN of all of that one: then once more, by the
 * other term alone. */
static void mend_gates(const struct cylstm_product *p, size_t panel, size_t row, size_t rows, size_t last, real *sums)
{
    const size_t lanes = (last + 1) * VL / PANEL_VECTORS;
    real again[PANEL_VECTORS * VL];
    for (size_t r = 0; r < rows; r++, sums += PANEL_VECTORS * VL)
        for (size_t t = 0; t < 2; t++) {
            const size_t gate = t * (PANEL_VECTORS - 1) * lanes;
            if (sums[gate] == sums[gate]) continue;
            struct cylstm_product one = *p;
            one.term[!t].K = 0;
            tiles[0][0][last](&one, panel, row + r, again);
            v_store_n(sums + gate, v_load_n(again + gate, lanes), lanes);
        }
}

/* The sums of some rows of a panel, which in a narrow product may be more than tiles of a partial one are high. */
NEVER_INLINE void sum_rows(const struct cylstm_product *p, size_t panel, size_t row, size_t rows, int prefetch, real *sums)
{
    const size_t last = last_vector(p, panel);
    if (p->narrow && last == PANEL_VECTORS - 1) {
        narrow_tiles[prefetch][rows - 1](p, panel, row, sums);
        return;
    }
    for (size_t r = 0; r < rows; r += TILE_ROWS) {
        const size_t n = rows - r < TILE_ROWS ? rows - r : TILE_ROWS;
        tiles[prefetch][n - 1][last](p, panel, row + r, sums + r * PANEL_VECTORS * VL);
    }
    if (p->narrow) mend_gates(p, panel, row, rows, last, sums);
}

/* Write a finished tile to its rows of `out`, columns past the last one left alone. */
static void store_tile(const struct cylstm_product *p, size_t panel, size_t row, size_t rows,
                       const real *sums)
{
    const size_t first = panel * PANEL_VECTORS * VL;
    for (size_t r = 0; r < rows; r++, sums += PANEL_VECTORS * VL) {
        real *out = row_of(&p->out, row + r) + (ptrdiff_t)panel * p->out_panel;
        for (size_t u = first, v = 0; v < PANEL_VECTORS && u < p->columns; v++, u += VL) {
            const vf sum = v_load(sums + v * VL);
            const size_t n = valid(u, p->columns);
            if (p->streams && n == VL && (uintptr_t)(out + v * VL) % sizeof(vf) == 0)
                v_stream(out + v * VL, sum);
            else
                v_store_n(out + v * VL, sum, n);
        }
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
    if (!p->finish) {
        store_tile(p, panel, row, rows, sums);
        return;
    }
    if (left < PANEL_VECTORS * VL && p->cell.unit_vectors == PANEL_VECTORS)
        spread_gates(sums, rows, left / PANEL_VECTORS);
    p->finish(&p->cell, panel, row, rows, sums);
}

/* A lone row, two panels at once; but a partial one of a narrow product by itself. */
static void row_product(const struct cylstm_product *p)
{
    _Alignas(64) real sums[2 * PANEL_VECTORS * VL];
    const size_t width = PANEL_VECTORS * VL, count = p->panel_end - p->panel_begin;
    for (size_t i = 0, step; i < count; i += step) {
        const size_t next = p->descending ? p->panel_end - 1 - i : p->panel_begin + i + 1; /* the upper one */
        step = i + 1 < count && (!p->narrow || last_vector(p, next) == PANEL_VECTORS - 1) ? 2 : 1;
        const size_t panel = p->descending ? p->panel_end - i - step : p->panel_begin + i;
        if (step == 2)
            (p->narrow ? narrow_tile_pair_4 : tile_pairs[last_vector(p, panel + 1)])(p, panel, sums);
        else
            sum_rows(p, panel, 0, 1, 0, sums);
        for (size_t n = 0; n < step; n++) finish(p, panel + n, 0, 1, sums + n * width);
    }
}

/* How many panels meet a tile's rows before the next rows come: one, which then stays in L1 or L2
 * while all rows pass. Rows that come from beyond L2 stay for as many panels as L2 holds; and where
 * sums are so short that a large result is what takes the time, its rows are written whole. */
static size_t panels_together(const struct cylstm_product *p)
{
    const size_t K = p->term[0].K + p->term[1].K, panel = K * PANEL_VECTORS * VL * sizeof(real);
    if (is_large(p) && panel && panel <= SHORT_PANEL_BYTES) return L1_BYTES / panel;
    if (p->rows * K * sizeof(real) <= L2_BYTES || panel > L2_BYTES) return 1;
    return L2_BYTES / panel;
}

static void rows_product(const struct cylstm_product *p)
{
    _Alignas(64) real sums[MAX_TILE_ROWS * PANEL_VECTORS * VL];
    const size_t count = p->panel_end - p->panel_begin, together = panels_together(p);
    const int prefetch = needs_prefetch(p);
    const size_t most = p->narrow ? NARROW_ROWS : TILE_ROWS, tile_count = (p->rows + most - 1) / most;
    for (size_t first = 0; first < count; first += together) {
        const size_t end = count - first < together ? count : first + together;
        /* tiles of nearly equal height: 32 rows as 6, 6, 5, 5, 5, 5, not 6, 6, 6, 6, 6, 2 */
        for (size_t n = 0, row = 0, rows; n < tile_count; n++, row += rows) {
            rows = (p->rows - row + tile_count - n - 1) / (tile_count - n);
            for (size_t i = first; i < end; i++) {
                const size_t panel = p->descending ? p->panel_end - 1 - i : p->panel_begin + i;
                sum_rows(p, panel, row, rows, prefetch, sums);
                finish(p, panel, row, rows, sums);
            }
        }
    }
}

static void product(const struct cylstm_product *p)
{
    if (p->rows == 1)
        row_product(p);
    else
        rows_product(p);
    if (p->streams) V_FENCE();
}
