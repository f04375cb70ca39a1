/* kernels_norm.c -- the normalised LSTM, which goes by whole rows: forward, backward and tangent. */
#define _DEFAULT_SOURCE
#include "kernels_norm.h"

enum { NORM_TAPE = 9 };

static const long double NORM_EPSILON = 1e-8L;

/* ----------------------------------------------------------------------------- the operands */

static size_t gates_of(const struct cylstm_cell *cell)
{
    return cell->options->coupled ? GATES - 1 : GATES;
}

static int is_computed(const struct cylstm_cell *cell, size_t gate)
{
    return !(cell->options->coupled == COUPLED_F && gate == 1) &&
           !(cell->options->coupled == COUPLED_I && gate == 0);
}

/* Where a gate's own arrays lie, of which a coupled one has none. */
static ptrdiff_t own(const struct cylstm_cell *cell, size_t gate, size_t unit)
{
    const int coupled = cell->options->coupled;
    gate -= coupled == COUPLED_I || (coupled == COUPLED_F && gate > 1);
    return (ptrdiff_t)(gate * cell->H + unit);
}

static struct near of_gate(const struct trial *t, const void *array, const struct cylstm_cell *cell,
                           size_t gate, size_t unit)
{
    return exactly(array ? get(t, array, own(cell, gate, unit)) : 0);
}

static void draw_arrays(struct trial *t, struct cylstm_cell *cell)
{
    const size_t n = gates_of(cell) * cell->H;
    cell->norm = draw_vector(t, "norm", n);
    if (chance(t, 3)) return;
    cell->b_ih = draw_vector(t, "b_ih", n);
    cell->b_hh = draw_vector(t, "b_hh", n);
}

/* A call of some rows, whose cell has its options and arrays. */
static struct cylstm_product start(struct trial *t)
{
    struct cylstm_product p = {.rows = size_between(t, 1, 9, 32)};
    p.cell = (struct cylstm_cell){.H = size_between(t, 1, MOST_UNITS, 64),
                                  .unit_vectors = PANEL_VECTORS,
                                  .tape_vectors = NORM_TAPE};
    place_options(t, &p.cell);
    if (!p.cell.options) p.cell.options = &plain_lstm;
    draw_arrays(t, &p.cell);
    record = NULL; /* a sum over units is one of each lane first */
    describe(t, "%zu rows of %zu units%s", p.rows, p.cell.H, p.cell.peep ? ", peepholes" : "");
    return p;
}

static void fill_tape(struct trial *t, struct cylstm_product *p)
{
    const size_t n = NORM_TAPE * p->cell.H;
    p->cell.tape = place(t, "tape", p->rows, n);
    fill(t, &p->cell.tape, p->rows, n, n, -2, 2); /* sums and c */
    for (size_t gate = 0; gate < GATES; gate++) fill_gates(t, p, gate, p->cell.options, gate == 2);
}

/* ------------------------------------------------------------------------------------ forward */

static void place_keep(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = round_up(GATES * units, t->kernels->lanes);
    p->finish = t->kernels->cell[CYLSTM_KEEP_MATH][0].forward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .unit_vectors = PANEL_VECTORS,
                                   .sums = place(t, "sums", p->rows, GATES * padded)};
}

static void judge_keep(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                       const struct near *a)
{
    const size_t padded = round_up(p->cell.H, t->kernels->lanes);
    for (size_t gate = 0; gate < GATES; gate++)
        expect_unit(t, "sums", &p->cell.sums, row, unit, (ptrdiff_t)(gate * padded + unit),
                    a[gate]);
}

const struct ending norm_keep = {
    .gates = GATES, .pads = 1, .grain = 0.125, .place = place_keep, .judge = judge_keep};

/* w * z + b of all units of a gate. */
static void preacts(struct trial *t, const struct cylstm_cell *cell, size_t gate,
                    const struct near *s, struct near *a)
{
    struct normal n;
    normalise(t, s, cell->H, NORM_EPSILON, &n);
    for (size_t u = 0; u < cell->H; u++)
        a[u] = plus(
            t, times(t, of_gate(t, cell->norm, cell, gate, u), n.z[u]),
            plus(t, of_gate(t, cell->b_ih, cell, gate, u), of_gate(t, cell->b_hh, cell, gate, u)));
}

static void judge_norm_row(struct trial *t, const struct cylstm_cell *cell, size_t row)
{
    const struct cylstm_options *o = cell->options;
    const size_t H = cell->H;
    struct near s[GATES][MOST_UNITS], a[GATES][MOST_UNITS], v[MOST_UNITS][NORM_TAPE];
    for (size_t u = 0; u < H; u++)
        for (size_t gate = 0; gate < GATES; gate++) {
            s[gate][u] = sum_before(t, cell, &cell->sums, row, gate, u);
            if (gate < 2)
                s[gate][u] = plus(t, s[gate][u],
                                  times(t, peephole(t, cell, gate, u), dc_before(t, cell, row, u)));
        }
    for (size_t gate = 0; gate < O; gate++)
        if (is_computed(cell, gate)) preacts(t, cell, gate, s[gate], a[gate]);
    for (size_t u = 0; u < H; u++) {
        struct near i = exactly(0), f = exactly(0);
        if (is_computed(cell, 0)) i = gate_of(t, o, 0, a[0][u]);
        if (is_computed(cell, 1)) f = gate_of(t, o, 0, a[1][u]);
        if (o->coupled == COUPLED_F) f = rest(t, i);
        if (o->coupled == COUPLED_I) i = rest(t, f);
        const struct near g = gate_of(t, o, 1, a[2][u]);
        struct near c = plus(t, times(t, f, dc_before(t, cell, row, u)), times(t, i, g));
        if (o->cell_clip != 0) c.is = clipped(c.is, -o->cell_clip, o->cell_clip);
        s[O][u] = plus(t, s[O][u], times(t, peephole(t, cell, 2, u), c));
        const struct near so_far[] = {i, f, g, i, s[0][u], s[1][u], s[2][u], s[O][u], c};
        memcpy(v[u], so_far, sizeof so_far);
    }
    preacts(t, cell, O, s[O], a[O]);
    for (size_t u = 0; u < H; u++) {
        const struct near c = v[u][NORM_TAPE - 1], shows = v[u][O] = gate_of(t, o, 0, a[O][u]);
        expect_vectors(t, "tape", &cell->tape, row, u, H, v[u], NORM_TAPE);
        expect_h(t, cell, row, u, times(t, shows, apply(t, &o->function[2], c)));
        expect_unit(t, "c", &cell->c, row, u, (ptrdiff_t)u, c);
    }
}

void check_norm(const struct check *check, struct trial *t)
{
    (void)check;
    struct cylstm_product p = start(t);
    const size_t H = p.cell.H, padded = round_up(H, t->kernels->lanes);
    p.cell.sums = place_sums(t, &p, GATES);
    p.cell.c = place(t, "c", p.rows, padded);
    fill(t, &p.cell.c, p.rows, H, padded, -2, 2);
    p.cell.h = place(t, "h", p.rows, padded);
    if (below(t, 2)) p.cell.y = place(t, "y", p.rows, H);
    if (below(t, 2)) p.cell.tape = place(t, "tape", p.rows, NORM_TAPE * H);
    CALL(t, t->kernels->norm[CYLSTM_GATES_NORM].forward(&p.cell, p.rows));
    for (size_t row = 0; row < p.rows; row++) {
        judge_norm_row(t, &p.cell, row);
        expect_zeros(t, "c", &p.cell.c, row, H);
        expect_zeros(t, "h", &p.cell.h, row, H);
    }
}

/* ----------------------------------------------------------------------------------- backward */

/* The gradients of a gate's sums, of those of its pre-activations. */
static void back_through(struct trial *t, const struct cylstm_cell *cell, size_t row, size_t gate,
                         const struct near *da, struct near *ds)
{
    struct near s[MOST_UNITS] = {{0, 0}}, dz[MOST_UNITS] = {{0, 0}};
    struct normal n;
    const size_t H = cell->H, all = gates_of(cell) * H;
    for (size_t u = 0; u < H; u++) {
        ds[u] = exactly(0);
        s[u] = taped(t, cell, row, u, GATES + gate);
    }
    if (!is_computed(cell, gate)) return;
    normalise(t, s, H, NORM_EPSILON, &n);
    for (size_t u = 0; u < H; u++) {
        dz[u] = times(t, da[u], of_gate(t, cell->norm, cell, gate, u));
        expect_unit(t, "dnorm", &cell->dnorm, row, u, own(cell, gate, u), da[u]);
        expect_unit(t, "dnorm", &cell->dnorm, row, u, (ptrdiff_t)all + own(cell, gate, u),
                    times(t, da[u], n.z[u]));
    }
    go_through(t, &n, dz, H, ds);
    for (size_t u = 0; u < H; u++)
        expect_unit(t, "dgates", &cell->dgates, row, u, own(cell, gate, u), ds[u]);
}

static void judge_norm_back_row(struct trial *t, const struct cylstm_cell *cell, size_t row)
{
    const struct cylstm_options *o = cell->options;
    struct near da[GATES][MOST_UNITS], ds[GATES][MOST_UNITS], kept[MOST_UNITS];
    for (size_t u = 0; u < cell->H; u++) {
        const struct near dh = read_unit(t, &cell->sums, row, (ptrdiff_t)u, cell->H),
                          shown = apply(t, &o->function[2], taped(t, cell, row, u, NORM_TAPE - 1)),
                          d_o = given_too(t, cell, row, u, O, times(t, dh, shown));
        da[O][u] = times(t, d_o, gate_slope(t, o, 0, taped(t, cell, row, u, O).is));
    }
    back_through(t, cell, row, O, da[O], ds[O]);
    for (size_t u = 0; u < cell->H; u++) {
        const struct near i = taped(t, cell, row, u, 0), f = taped(t, cell, row, u, 1),
                          g = taped(t, cell, row, u, 2), shows = taped(t, cell, row, u, O),
                          c = taped(t, cell, row, u, NORM_TAPE - 1),
                          shown = apply(t, &o->function[2], c),
                          dh = read_unit(t, &cell->sums, row, (ptrdiff_t)u, cell->H),
                          c_prev = read_unit(t, &cell->c_prev, row, (ptrdiff_t)u, cell->H),
                          after =
                              exactly(get(t, before(t, row_of(t, &cell->dc, row)), (ptrdiff_t)u));
        struct near dc =
            plus(t, after, times(t, times(t, dh, shows), slope(t, &o->function[2], shown)));
        dc = plus(t, dc, times(t, peephole(t, cell, 2, u), ds[O][u]));
        dc = plus(t, dc, read_unit(t, &cell->given_c, row, (ptrdiff_t)u, cell->H));
        if (o->cell_clip != 0 && fabsl(c.is) >= o->cell_clip) dc = exactly(0);
        struct near di = given_too(t, cell, row, u, 0, times(t, dc, g)),
                    df = given_too(t, cell, row, u, 1, times(t, dc, c_prev));
        const struct near dg = given_too(t, cell, row, u, 2, times(t, dc, i));
        if (o->coupled == COUPLED_F) di = minus(t, di, df);
        if (o->coupled == COUPLED_I) df = minus(t, df, di);
        da[0][u] = times(t, di, gate_slope(t, o, 0, i.is));
        da[1][u] = times(t, df, gate_slope(t, o, 0, f.is));
        da[2][u] = times(t, dg, gate_slope(t, o, 1, g.is));
        kept[u] = times(t, dc, f);
        if (cell->h.base)
            expect_unit(t, "m", &cell->h, row, u, (ptrdiff_t)u, times(t, shows, shown));
    }
    for (size_t gate = 0; gate < O; gate++) back_through(t, cell, row, gate, da[gate], ds[gate]);
    for (size_t u = 0; u < cell->H; u++) {
        struct near dc = plus(t, kept[u], times(t, peephole(t, cell, 0, u), ds[0][u]));
        dc = plus(t, dc, times(t, peephole(t, cell, 1, u), ds[1][u]));
        expect_unit(t, "dc", &cell->dc, row, u, (ptrdiff_t)u, dc);
    }
}

void check_norm_back(const struct check *check, struct trial *t)
{
    (void)check;
    struct cylstm_product p = start(t);
    struct cylstm_cell *cell = &p.cell;
    const size_t H = cell->H, padded = round_up(H, t->kernels->lanes), n = gates_of(cell) * H;
    fill_tape(t, &p);
    for (size_t r = 0; r < p.rows && cell->options->cell_clip != 0; r += 3) /* one was clipped */
        put(t, row_of(t, &cell->tape, r), (ptrdiff_t)((NORM_TAPE - 1) * H),
            cell->options->cell_clip);
    cell->sums = place(t, "dh", p.rows, H);
    fill(t, &cell->sums, p.rows, H, H, -2, 2);
    cell->dc = place(t, "dc", p.rows, padded);
    fill(t, &cell->dc, p.rows, H, padded, -2, 2);
    cell->dgates = place(t, "dgates", p.rows, n);
    cell->dnorm = place(t, "dnorm", p.rows, 2 * n);
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
    CALL(t, t->kernels->norm[CYLSTM_GATES_NORM].backward(cell, p.rows));
    for (size_t row = 0; row < p.rows; row++) {
        judge_norm_back_row(t, cell, row);
        expect_zeros(t, "dc", &cell->dc, row, H);
        if (cell->h.base) expect_zeros(t, "m", &cell->h, row, H);
    }
}

/* ------------------------------------------------------------------------------------ tangent */

/* da of all units of a gate, of ds. */
static void preact_tangents(struct trial *t, const struct cylstm_cell *cell, size_t row,
                            size_t gate, const struct near *ds, struct near *da)
{
    const struct cylstm_cell *d = cell->tangent;
    struct near s[MOST_UNITS] = {{0, 0}}, dz[MOST_UNITS];
    struct normal n;
    for (size_t u = 0; u < cell->H; u++) {
        da[u] = exactly(0);
        s[u] = taped(t, cell, row, u, GATES + gate);
    }
    if (!is_computed(cell, gate)) return;
    normalise(t, s, cell->H, NORM_EPSILON, &n);
    go_through(t, &n, ds, cell->H, dz);
    for (size_t u = 0; u < cell->H; u++) {
        const struct near db = plus(t, of_gate(t, d->b_ih, cell, gate, u),
                                    of_gate(t, d->b_hh, cell, gate, u)),
                          dw = times(t, of_gate(t, d->norm, cell, gate, u), n.z[u]);
        da[u] = plus(t, times(t, of_gate(t, cell->norm, cell, gate, u), dz[u]), plus(t, dw, db));
    }
}

static void judge_norm_tangent_row(struct trial *t, const struct cylstm_cell *cell, size_t row)
{
    const struct cylstm_cell *d = cell->tangent;
    const size_t H = cell->H;
    struct near ds[GATES][MOST_UNITS], da[GATES][MOST_UNITS], dc[MOST_UNITS];
    for (size_t u = 0; u < H; u++)
        for (size_t gate = 0; gate < GATES; gate++) {
            const struct near c = read_unit(t, &cell->c_prev, row, (ptrdiff_t)u, H);
            ds[gate][u] = sum_before(t, cell, &cell->sums, row, gate, u);
            if (gate < 2)
                ds[gate][u] = plus(t, ds[gate][u],
                                   peephole_tangent(t, cell, gate, u, c, dc_before(t, d, row, u)));
        }
    for (size_t gate = 0; gate < O; gate++) preact_tangents(t, cell, row, gate, ds[gate], da[gate]);
    for (size_t u = 0; u < H; u++) {
        dc[u] = cell_tangent(t, cell, row, u, da[0][u], da[1][u], da[2][u]);
        const struct near c = taped(t, cell, row, u, NORM_TAPE - 1);
        ds[O][u] = plus(t, ds[O][u], peephole_tangent(t, cell, 2, u, c, dc[u]));
    }
    preact_tangents(t, cell, row, O, ds[O], da[O]);
    for (size_t u = 0; u < H; u++) {
        expect_hidden_tangent(t, cell, row, u, da[O][u], dc[u]);
        expect_unit(t, "dc", &d->c, row, u, (ptrdiff_t)u, dc[u]);
    }
}

void check_norm_tangent(const struct check *check, struct trial *t)
{
    (void)check;
    struct cylstm_product p = start(t);
    const size_t H = p.cell.H, padded = round_up(H, t->kernels->lanes);
    fill_tape(t, &p);
    p.cell.sums = place_sums(t, &p, GATES);
    p.cell.c_prev = place(t, "c_prev", p.rows, padded);
    fill(t, &p.cell.c_prev, p.rows, H, padded, -2, 2);
    struct cylstm_cell *d = place_tangent(t, &p, CYLSTM_KEEP_MATH, p.cell.options);
    if (chance(t, 2)) draw_arrays(t, d); /* else all weights stay as they are */
    d->peep = draw_peephole_tangents(t, &p.cell);
    d->c = place(t, "dc", p.rows, padded);
    fill(t, &d->c, p.rows, H, padded, -2, 2);
    if (below(t, 2)) p.cell.h = place(t, "m", p.rows, padded);
    CALL(t, t->kernels->norm[CYLSTM_GATES_NORM].tangent(&p.cell, p.rows));
    for (size_t row = 0; row < p.rows; row++) {
        judge_norm_tangent_row(t, &p.cell, row);
        expect_zeros(t, "dc", &d->c, row, H);
        expect_zeros(t, "dh", &d->h, row, H);
        if (p.cell.h.base) expect_zeros(t, "m", &p.cell.h, row, H);
    }
}
