/* kernels_norm_products.c -- the LSTM whose products are normalised, by whole rows: forward, backward and
 * tangent. Sums of x and of h are (4, H) each, normalised together. */
#define _DEFAULT_SOURCE
#include "kernels_norm.h"

enum { OF_X = 4, OF_H = 8, CELL = 12, TAPE = 13, PRODUCTS = 2 };

static const long double PRODUCTS_EPSILON = 1e-5L;

static struct near at(const struct trial *t, const void *array, size_t n)
{
    return exactly(array ? get(t, array, (ptrdiff_t)n) : 0);
}

static void draw_arrays(struct trial *t, struct cylstm_cell *cell)
{
    const size_t n = GATES * cell->H;
    cell->norm = draw_vector(t, "norm of x", n);
    cell->norm_h = draw_vector(t, "norm of h", n);
    cell->norm_c = draw_vector(t, "norm of c", cell->H);
    cell->bias_c = draw_vector(t, "bias of c", cell->H);
    if (chance(t, 3)) return;
    cell->b_ih = draw_vector(t, "b_ih", n);
    cell->b_hh = draw_vector(t, "b_hh", n);
}

static struct cylstm_product start(struct trial *t)
{
    struct cylstm_product p = {.rows = size_between(t, 1, 9, 32)};
    p.cell = (struct cylstm_cell){.H = size_between(t, 1, MOST_UNITS, 64),
                                  .unit_vectors = PANEL_VECTORS,
                                  .tape_vectors = TAPE,
                                  .options = draw_options(t, 0)};
    if (!p.cell.options) p.cell.options = &plain_lstm;
    draw_arrays(t, &p.cell);
    record = NULL; /* a sum over units is one of each lane first */
    describe(t, "%zu rows of %zu units", p.rows, p.cell.H);
    return p;
}

static void fill_tape(struct trial *t, struct cylstm_product *p)
{
    const size_t n = TAPE * p->cell.H;
    p->cell.tape = place(t, "tape", p->rows, n);
    fill(t, &p->cell.tape, p->rows, n, n, -2, 2); /* sums and c */
    for (size_t gate = 0; gate < GATES; gate++) fill_gates(t, p, gate, p->cell.options, gate == 2);
    for (size_t r = 0; r < p->rows && p->cell.options->cell_clip != 0; r += 3) /* one was clipped */
        put(t, row_of(t, &p->cell.tape, r), (ptrdiff_t)(CELL * p->cell.H),
            p->cell.options->cell_clip);
}

/* The norms of a step on the tape: of the sums of x and of h, and of c. */
struct norms {
    struct normal of[PRODUCTS], c;
};

static void find_norms(struct trial *t, const struct cylstm_cell *cell, size_t row, struct norms *n)
{
    struct near s[MOST_SUMS] = {{0, 0}};
    for (size_t product = 0; product < PRODUCTS; product++) {
        for (size_t gate = 0; gate < GATES; gate++)
            for (size_t u = 0; u < cell->H; u++)
                s[gate * cell->H + u] = taped(t, cell, row, u, (product ? OF_H : OF_X) + gate);
        normalise(t, s, GATES * cell->H, PRODUCTS_EPSILON, &n->of[product]);
    }
    for (size_t u = 0; u < cell->H; u++) s[u] = taped(t, cell, row, u, CELL);
    normalise(t, s, cell->H, PRODUCTS_EPSILON, &n->c);
}

static struct near shown_of(const struct trial *t, const struct cylstm_cell *cell,
                            const struct normal *c, size_t u)
{
    const struct near in =
        plus(t, times(t, at(t, cell->norm_c, u), c->z[u]), at(t, cell->bias_c, u));
    return apply(t, &cell->options->function[2], in);
}

/* ------------------------------------------------------------------------------------ forward */

static void judge_forward(struct trial *t, const struct cylstm_cell *cell, size_t row)
{
    const struct cylstm_options *o = cell->options;
    const size_t H = cell->H;
    struct near s[PRODUCTS][MOST_SUMS] = {{{0, 0}}}, v[MOST_UNITS][TAPE],
                cells[MOST_UNITS] = {{0, 0}};
    struct norms n;
    for (size_t product = 0; product < PRODUCTS; product++) {
        for (size_t k = 0; k < GATES * H; k++)
            s[product][k] =
                sum_before(t, cell, product ? &cell->sums_h : &cell->sums, row, k / H, k % H);
        normalise(t, s[product], GATES * H, PRODUCTS_EPSILON, &n.of[product]);
    }
    for (size_t u = 0; u < H; u++) {
        for (size_t gate = 0; gate < GATES; gate++) {
            const size_t k = gate * H + u;
            const struct near b = plus(t, at(t, cell->b_ih, k), at(t, cell->b_hh, k)),
                              of_h = times(t, at(t, cell->norm_h, k), n.of[1].z[k]),
                              of_x = times(t, at(t, cell->norm, k), n.of[0].z[k]);
            v[u][gate] = gate_of(t, o, gate == 2, plus(t, of_x, plus(t, of_h, b)));
            v[u][OF_X + gate] = s[0][k];
            v[u][OF_H + gate] = s[1][k];
        }
        struct near c =
            plus(t, times(t, v[u][1], dc_before(t, cell, row, u)), times(t, v[u][0], v[u][2]));
        if (o->cell_clip != 0) c.is = clipped(c.is, -o->cell_clip, o->cell_clip);
        v[u][CELL] = cells[u] = c;
    }
    normalise(t, cells, H, PRODUCTS_EPSILON, &n.c);
    for (size_t u = 0; u < H; u++) {
        expect_vectors(t, "tape", &cell->tape, row, u, H, v[u], TAPE);
        expect_h(t, cell, row, u, times(t, v[u][O], shown_of(t, cell, &n.c, u)));
        expect_unit(t, "c", &cell->c, row, u, (ptrdiff_t)u, cells[u]);
    }
}

void check_norm_products(const struct check *check, struct trial *t)
{
    (void)check;
    struct cylstm_product p = start(t);
    const size_t H = p.cell.H, padded = round_up(H, t->kernels->lanes);
    p.cell.sums = place_sums(t, &p, GATES);
    p.cell.sums_h = place_sums(t, &p, GATES);
    p.cell.c = place(t, "c", p.rows, padded);
    fill(t, &p.cell.c, p.rows, H, padded, -2, 2);
    p.cell.h = place(t, "h", p.rows, padded);
    if (below(t, 2)) p.cell.y = place(t, "y", p.rows, H);
    if (below(t, 2)) p.cell.tape = place(t, "tape", p.rows, TAPE * H);
    CALL(t, t->kernels->norm[CYLSTM_PRODUCTS_NORM].forward(&p.cell, p.rows));
    for (size_t row = 0; row < p.rows; row++) {
        judge_forward(t, &p.cell, row);
        expect_zeros(t, "c", &p.cell.c, row, H);
        expect_zeros(t, "h", &p.cell.h, row, H);
    }
}

/* ----------------------------------------------------------------------------------- backward */

static void judge_backward(struct trial *t, const struct cylstm_cell *cell, size_t row)
{
    const struct cylstm_options *options = cell->options;
    const size_t H = cell->H;
    struct near da[MOST_SUMS] = {{0, 0}}, dz[MOST_SUMS] = {{0, 0}}, ds[MOST_SUMS];
    struct norms n;
    find_norms(t, cell, row, &n);
    for (size_t u = 0; u < H; u++) {
        const struct near shown = shown_of(t, cell, &n.c, u), o = taped(t, cell, row, u, O),
                          dh = read_unit(t, &cell->sums, row, (ptrdiff_t)u, H),
                          d = times(t, times(t, dh, o), slope(t, &options->function[2], shown)),
                          d_o = given_too(t, cell, row, u, O, times(t, dh, shown));
        da[O * H + u] = times(t, d_o, gate_slope(t, options, 0, o.is));
        dz[u] = times(t, d, at(t, cell->norm_c, u));
        expect_unit(t, "dnorm", &cell->dnorm, row, u, (ptrdiff_t)(12 * H + u),
                    times(t, d, n.c.z[u]));
        expect_unit(t, "dnorm", &cell->dnorm, row, u, (ptrdiff_t)(13 * H + u), d);
        if (cell->h.base) expect_unit(t, "m", &cell->h, row, u, (ptrdiff_t)u, times(t, o, shown));
    }
    go_through(t, &n.c, dz, H, ds);
    for (size_t u = 0; u < H; u++) {
        const struct near i = taped(t, cell, row, u, 0), f = taped(t, cell, row, u, 1),
                          g = taped(t, cell, row, u, 2), c = taped(t, cell, row, u, CELL),
                          c_prev = read_unit(t, &cell->c_prev, row, (ptrdiff_t)u, H),
                          after =
                              exactly(get(t, before(t, row_of(t, &cell->dc, row)), (ptrdiff_t)u));
        struct near dc =
            plus(t, plus(t, ds[u], after), read_unit(t, &cell->given_c, row, (ptrdiff_t)u, H));
        if (options->cell_clip != 0 && fabsl(c.is) >= options->cell_clip) dc = exactly(0);
        const struct near di = given_too(t, cell, row, u, 0, times(t, dc, g)),
                          df = given_too(t, cell, row, u, 1, times(t, dc, c_prev)),
                          dg = given_too(t, cell, row, u, 2, times(t, dc, i));
        da[u] = times(t, di, gate_slope(t, options, 0, i.is));
        da[H + u] = times(t, df, gate_slope(t, options, 0, f.is));
        da[2 * H + u] = times(t, dg, gate_slope(t, options, 1, g.is));
        expect_unit(t, "dc", &cell->dc, row, u, (ptrdiff_t)u, times(t, dc, f));
    }
    for (size_t product = 0; product < PRODUCTS; product++) {
        const void *weight = product ? cell->norm_h : cell->norm;
        for (size_t k = 0; k < GATES * H; k++) {
            dz[k] = times(t, da[k], at(t, weight, k));
            if (!product) expect_unit(t, "dnorm", &cell->dnorm, row, k % H, (ptrdiff_t)k, da[k]);
            expect_unit(t, "dnorm", &cell->dnorm, row, k % H,
                        (ptrdiff_t)((product + 1) * GATES * H + k),
                        times(t, da[k], n.of[product].z[k]));
        }
        go_through(t, &n.of[product], dz, GATES * H, ds);
        for (size_t k = 0; k < GATES * H; k++)
            expect_unit(t, "dgates", &cell->dgates, row, k % H,
                        (ptrdiff_t)(product * GATES * H + k), ds[k]);
    }
}

void check_norm_products_back(const struct check *check, struct trial *t)
{
    (void)check;
    struct cylstm_product p = start(t);
    struct cylstm_cell *cell = &p.cell;
    const size_t H = cell->H, padded = round_up(H, t->kernels->lanes);
    fill_tape(t, &p);
    cell->sums = place(t, "dh", p.rows, H);
    fill(t, &cell->sums, p.rows, H, H, -2, 2);
    cell->dc = place(t, "dc", p.rows, padded);
    fill(t, &cell->dc, p.rows, H, padded, -2, 2);
    cell->dgates = place(t, "dgates", p.rows, PRODUCTS * GATES * H);
    cell->dnorm = place(t, "dnorm", p.rows, (3 * GATES + 2) * H);
    if (below(t, 2)) cell->h = place(t, "m", p.rows, padded);
    if (below(t, 2)) {
        cell->c_prev = place(t, "c_prev", p.rows, H);
        fill(t, &cell->c_prev, p.rows, H, H, -2, 2);
    }
    place_given(t, &p, GATES);
    if (chance(t, 2)) {
        cell->given_c = place(t, "given c", p.rows, H);
        fill(t, &cell->given_c, p.rows, H, H, -2, 2);
    }
    CALL(t, t->kernels->norm[CYLSTM_PRODUCTS_NORM].backward(cell, p.rows));
    for (size_t row = 0; row < p.rows; row++) {
        judge_backward(t, cell, row);
        expect_zeros(t, "dc", &cell->dc, row, H);
        if (cell->h.base) expect_zeros(t, "m", &cell->h, row, H);
    }
}

/* ------------------------------------------------------------------------------------ tangent */

static void judge_tangent(struct trial *t, const struct cylstm_cell *cell, size_t row)
{
    const struct cylstm_cell *d = cell->tangent;
    const size_t H = cell->H;
    struct near da[MOST_SUMS], ds[MOST_SUMS] = {{0, 0}}, dz[MOST_SUMS], dc[MOST_UNITS] = {{0, 0}};
    struct norms n;
    find_norms(t, cell, row, &n);
    for (size_t k = 0; k < GATES * H; k++) da[k] = plus(t, at(t, d->b_ih, k), at(t, d->b_hh, k));
    for (size_t product = 0; product < PRODUCTS; product++) {
        const void *weight = product ? cell->norm_h : cell->norm,
                   *dweight = product ? d->norm_h : d->norm;
        for (size_t k = 0; k < GATES * H; k++)
            ds[k] = sum_before(t, cell, product ? &cell->sums_h : &cell->sums, row, k / H, k % H);
        go_through(t, &n.of[product], ds, GATES * H, dz);
        for (size_t k = 0; k < GATES * H; k++)
            da[k] = plus(t, da[k],
                         plus(t, times(t, at(t, weight, k), dz[k]),
                              times(t, at(t, dweight, k), n.of[product].z[k])));
    }
    for (size_t u = 0; u < H; u++) {
        dc[u] = cell_tangent(t, cell, row, u, da[u], da[H + u], da[2 * H + u]);
        expect_unit(t, "dc", &d->c, row, u, (ptrdiff_t)u, dc[u]);
    }
    go_through(t, &n.c, dc, H, dz);
    for (size_t u = 0; u < H; u++) {
        const struct near shown = shown_of(t, cell, &n.c, u), o = taped(t, cell, row, u, O),
                          norm = plus(t, times(t, at(t, cell->norm_c, u), dz[u]),
                                      times(t, at(t, d->norm_c, u), n.c.z[u])),
                          in = plus(t, norm, at(t, d->bias_c, u)),
                          d_o = times(t, gate_slope(t, cell->options, 0, o.is), da[O * H + u]),
                          d_shown = times(t, slope(t, &cell->options->function[2], shown), in);
        expect_h(t, d, row, u, plus(t, times(t, d_o, shown), times(t, o, d_shown)));
        if (cell->h.base) expect_unit(t, "m", &cell->h, row, u, (ptrdiff_t)u, times(t, o, shown));
    }
}

void check_norm_products_tangent(const struct check *check, struct trial *t)
{
    (void)check;
    struct cylstm_product p = start(t);
    const size_t H = p.cell.H, padded = round_up(H, t->kernels->lanes);
    fill_tape(t, &p);
    p.cell.sums = place_sums(t, &p, GATES);
    p.cell.sums_h = place_sums(t, &p, GATES);
    p.cell.c_prev = place(t, "c_prev", p.rows, padded);
    fill(t, &p.cell.c_prev, p.rows, H, padded, -2, 2);
    struct cylstm_cell *d = place_tangent(t, &p, CYLSTM_KEEP_MATH, p.cell.options);
    if (chance(t, 2)) draw_arrays(t, d); /* else all weights stay as they are */
    d->c = place(t, "dc", p.rows, padded);
    fill(t, &d->c, p.rows, H, padded, -2, 2);
    if (below(t, 2)) p.cell.h = place(t, "m", p.rows, padded);
    CALL(t, t->kernels->norm[CYLSTM_PRODUCTS_NORM].tangent(&p.cell, p.rows));
    for (size_t row = 0; row < p.rows; row++) {
        judge_tangent(t, &p.cell, row);
        expect_zeros(t, "dc", &d->c, row, H);
        expect_zeros(t, "dh", &d->h, row, H);
        if (p.cell.h.base) expect_zeros(t, "m", &p.cell.h, row, H);
    }
}
