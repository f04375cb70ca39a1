/* kernels_lstm.c -- the LSTM cell, plain and by options, forward and backward. */
#define _DEFAULT_SOURCE
#include "kernels_truth.h"

enum { LSTM_TAPE = 5 };

static void place_lstm(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = round_up(4 * units, t->kernels->lanes);
    p->finish = t->kernels->cell[CYLSTM_LSTM_MATH][by_options(t)].forward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .unit_vectors = PANEL_VECTORS,
                                   .tape_vectors = LSTM_TAPE,
                                   .c = place(t, "c", p->rows, padded),
                                   .h = place(t, "h", p->rows, padded)};
    fill(t, &p->cell.c, p->rows, units, padded, -2, 2);
    if (below(t, 2)) p->cell.y = place(t, "y", p->rows, units);
    if (below(t, 2)) p->cell.tape = place(t, "tape", p->rows, LSTM_TAPE * units);
    place_options(t, &p->cell);
}

static void judge_lstm(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                       const struct near *a)
{
    const struct cylstm_cell *cell = &p->cell;
    const struct cylstm_options *o = cell->options ? cell->options : &plain_lstm;
    const struct near c_prev =
        exactly(get(t, before(t, row_of(t, &cell->c, row)), (ptrdiff_t)unit));
    struct near a_i = a[0], a_f = a[1], a_o = a[3];
    if (cell->peep) {
        a_i = plus(t, a_i, times(t, peephole(t, cell, 0, unit), c_prev));
        a_f = plus(t, a_f, times(t, peephole(t, cell, 1, unit), c_prev));
    }
    struct near i = gate_of(t, o, 0, a_i), f = gate_of(t, o, 0, a_f);
    if (o->coupled == COUPLED_F) f = rest(t, i);
    if (o->coupled == COUPLED_I) i = rest(t, f);
    const struct near g = gate_of(t, o, 1, a[2]);
    struct near c = plus(t, times(t, f, c_prev), times(t, i, g));
    if (o->cell_clip != 0) c.is = clipped(c.is, -o->cell_clip, o->cell_clip);
    if (cell->peep) a_o = plus(t, a_o, times(t, peephole(t, cell, 2, unit), c));
    const struct near shows = gate_of(t, o, 0, a_o);
    expect_unit(t, "c", &cell->c, row, unit, (ptrdiff_t)unit, c);
    expect_h(t, cell, row, unit, times(t, shows, apply(t, &o->function[2], c)));
    expect_vectors(t, "tape", &cell->tape, row, unit, cell->H,
                   (const struct near[]){i, f, g, shows, c}, LSTM_TAPE);
}

static void place_lstm_back(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = units;
    p->finish = t->kernels->cell[CYLSTM_LSTM_MATH][by_options(t)].backward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .tape_vectors = LSTM_TAPE,
                                   .tape = place(t, "tape", p->rows, LSTM_TAPE * units),
                                   .dc = place(t, "dc", p->rows, padded),
                                   .dgates = place(t, "dgates", p->rows, 4 * units)};
    place_options(t, &p->cell);
    const struct cylstm_options *o = p->cell.options ? p->cell.options : &plain_lstm;
    fill(t, &p->cell.tape, p->rows, LSTM_TAPE * units, LSTM_TAPE * units, -2, 2); /* c */
    for (size_t n = 0; n < 4; n++) fill_gates(t, p, n, o, n == 2);
    for (size_t r = 0; r < p->rows && o->cell_clip != 0; r += 3) /* a cell that was clipped */
        put(t, row_of(t, &p->cell.tape, r), (ptrdiff_t)(4 * units),
            r % 2 ? o->cell_clip : -o->cell_clip);
    fill(t, &p->cell.dc, p->rows, units, padded, -2, 2);
    if (below(t, 2)) {
        p->cell.c_prev = place(t, "c_prev", p->rows, units);
        fill(t, &p->cell.c_prev, p->rows, units, units, -2, 2);
    }
    if (below(t, 2)) p->cell.h = place(t, "h", p->rows, padded);
    place_given(t, p, 4);
    if (!by_options(t) || !chance(t, 2)) return;
    p->cell.given_c = place(t, "given c", p->rows, units);
    fill(t, &p->cell.given_c, p->rows, units, units, -2, 2);
}

static void judge_lstm_back(struct trial *t, const struct cylstm_product *p, size_t row,
                            size_t unit, const struct near *sum)
{
    const struct cylstm_cell *cell = &p->cell;
    const struct cylstm_options *options = cell->options ? cell->options : &plain_lstm;
    const ptrdiff_t u = (ptrdiff_t)unit, H = (ptrdiff_t)cell->H;
    struct near v[LSTM_TAPE];
    for (ptrdiff_t n = 0; n < LSTM_TAPE; n++)
        v[n] = exactly(u < H ? get(t, row_of(t, &cell->tape, row), n * H + u) : 0);
    const struct near i = v[0], f = v[1], g = v[2], o = v[3], c = v[4], dh = sum[0],
                      c_prev = read_unit(t, &cell->c_prev, row, u, cell->H),
                      shown = apply(t, &options->function[2], c),
                      d_o = given_too(t, cell, row, unit, 3, times(t, dh, shown)),
                      da_o = times(t, d_o, gate_slope(t, options, 0, o.is)),
                      dc_after = exactly(get(t, before(t, row_of(t, &cell->dc, row)), u));
    struct near dc =
        plus(t, dc_after, times(t, times(t, dh, o), slope(t, &options->function[2], shown)));
    dc = plus(t, dc, times(t, peephole(t, cell, 2, unit), da_o));
    dc = plus(t, dc, read_unit(t, &cell->given_c, row, u, cell->H));
    if (options->cell_clip != 0 && fabsl(c.is) >= options->cell_clip) dc = exactly(0);
    struct near di = given_too(t, cell, row, unit, 0, times(t, dc, g)),
                df = given_too(t, cell, row, unit, 1, times(t, dc, c_prev));
    if (options->coupled == COUPLED_F) di = minus(t, di, df), df = exactly(0);
    if (options->coupled == COUPLED_I) df = minus(t, df, di), di = exactly(0);
    const struct near da_i = times(t, di, gate_slope(t, options, 0, i.is)),
                      da_f = times(t, df, gate_slope(t, options, 0, f.is)),
                      dg = given_too(t, cell, row, unit, 2, times(t, dc, i)),
                      da_g = times(t, dg, gate_slope(t, options, 1, g.is));
    struct near dc_prev = times(t, dc, f);
    dc_prev = plus(t, dc_prev, times(t, peephole(t, cell, 0, unit), da_i));
    dc_prev = plus(t, dc_prev, times(t, peephole(t, cell, 1, unit), da_f));
    expect_unit(t, "dc", &cell->dc, row, unit, u, dc_prev);
    if (cell->h.base) expect_unit(t, "h", &cell->h, row, unit, u, times(t, o, shown));
    struct near want[4];
    size_t count = 0; /* a coupled cell has three */
    if (options->coupled != COUPLED_I) want[count++] = da_i;
    if (options->coupled != COUPLED_F) want[count++] = da_f;
    want[count++] = da_g;
    want[count++] = da_o;
    expect_vectors(t, "dgates", &cell->dgates, row, unit, cell->H, want, count);
}

/* --- its tangent */

static void place_lstm_tangent(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = round_up(4 * units, t->kernels->lanes);
    p->cell = (struct cylstm_cell){.H = units,
                                   .unit_vectors = PANEL_VECTORS,
                                   .tape_vectors = LSTM_TAPE,
                                   .tape = place(t, "tape", p->rows, LSTM_TAPE * units),
                                   .c_prev = place(t, "c_prev", p->rows, padded)};
    place_options(t, &p->cell);
    const struct cylstm_options *o = p->cell.options ? p->cell.options : &plain_lstm;
    struct cylstm_cell *d = place_tangent(t, p, CYLSTM_LSTM_MATH, o);
    fill(t, &p->cell.tape, p->rows, LSTM_TAPE * units, LSTM_TAPE * units, -2, 2); /* c */
    for (size_t n = 0; n < 4; n++) fill_gates(t, p, n, o, n == 2);
    fill(t, &p->cell.c_prev, p->rows, units, padded, -2, 2);
    d->peep = draw_peephole_tangents(t, &p->cell);
    d->c = place(t, "dc", p->rows, padded);
    fill(t, &d->c, p->rows, units, padded, -2, 2);
    if (below(t, 2)) p->cell.h = place(t, "m", p->rows, padded);
}

static void judge_lstm_tangent(struct trial *t, const struct cylstm_product *p, size_t row,
                               size_t unit, const struct near *da)
{
    const struct cylstm_cell *cell = &p->cell;
    const struct near c_prev = read_unit(t, &cell->c_prev, row, (ptrdiff_t)unit, cell->H),
                      dc_prev = dc_before(t, cell->tangent, row, unit),
                      c = taped(t, cell, row, unit, LSTM_TAPE - 1),
                      da_i = plus(t, da[0], peephole_tangent(t, cell, 0, unit, c_prev, dc_prev)),
                      da_f = plus(t, da[1], peephole_tangent(t, cell, 1, unit, c_prev, dc_prev)),
                      dc = cell_tangent(t, cell, row, unit, da_i, da_f, da[2]),
                      da_o = plus(t, da[3], peephole_tangent(t, cell, 2, unit, c, dc));
    expect_unit(t, "dc", &cell->tangent->c, row, unit, (ptrdiff_t)unit, dc);
    expect_hidden_tangent(t, cell, row, unit, da_o, dc);
}

/* --- what follows a projection */

static void place_projection(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = units;
    p->finish = t->kernels->cell[CYLSTM_PROJECTION_MATH][by_options(t)].forward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .unit_vectors = 1,
                                   .options = draw_options(t, 1),
                                   .h = place(t, "h", p->rows, padded),
                                   .y = place(t, "y", p->rows, units)};
    if (!below(t, 2)) return;
    void *bias = guarded_reals(t, "bias", units);
    for (size_t u = 0; u < units; u++) put(t, bias, (ptrdiff_t)u, number(t, 0.25));
    p->cell.bias = bias;
}

static void judge_projection(struct trial *t, const struct cylstm_product *p, size_t row,
                             size_t unit, const struct near *a)
{
    const struct cylstm_cell *cell = &p->cell;
    struct near h = a[0];
    if (cell->bias && unit < cell->H) h = plus(t, h, exactly(get(t, cell->bias, (ptrdiff_t)unit)));
    if (cell->options && cell->options->proj_clip != 0)
        h.is = clipped(h.is, -cell->options->proj_clip, cell->options->proj_clip);
    expect_h(t, cell, row, unit, h);
}

static const struct cylstm_options clip_only = {.proj_clip = 0.75};

static void place_projection_back(struct trial *t, struct cylstm_product *p, size_t units)
{
    p->columns = units;
    p->finish = t->kernels->cell[CYLSTM_PROJECTION_MATH][1].backward;
    p->cell =
        (struct cylstm_cell){.H = units,
                             .unit_vectors = 1,
                             .options = &clip_only,
                             .h_prev = place(t, "h of the step", p->rows, units),
                             .h = place(t, "dh", p->rows, round_up(units, t->kernels->lanes))};
    fill(t, &p->cell.h_prev, p->rows, units, units, -0.7, 0.7);
    for (size_t r = 0; r < p->rows; r += 2) /* one that was clipped */
        put(t, row_of(t, &p->cell.h_prev, r), 0, r % 4 ? 0.75 : -0.75);
}

static void judge_projection_back(struct trial *t, const struct cylstm_product *p, size_t row,
                                  size_t unit, const struct near *sum)
{
    const struct near h = read_unit(t, &p->cell.h_prev, row, (ptrdiff_t)unit, p->cell.H);
    expect_unit(t, "dh", &p->cell.h, row, unit, (ptrdiff_t)unit,
                fabsl(h.is) < 0.75L ? sum[0] : exactly(0));
}

static void place_projection_tangent(struct trial *t, struct cylstm_product *p, size_t units)
{
    static const struct cylstm_options no_clip;
    p->columns = units;
    p->cell =
        (struct cylstm_cell){.H = units, .unit_vectors = 1, .y = place(t, "y", p->rows, units)};
    fill(t, &p->cell.y, p->rows, units, units, -0.7, 0.7);
    for (size_t r = 0; r < p->rows; r += 2) /* one that was clipped */
        put(t, row_of(t, &p->cell.y, r), 0, r % 4 ? 0.75 : -0.75);
    struct cylstm_cell *d =
        place_tangent(t, p, CYLSTM_PROJECTION_MATH, by_options(t) ? &clip_only : &no_clip);
    if (!below(t, 2)) return;
    void *bias = guarded_reals(t, "tangent of the bias", units);
    for (size_t u = 0; u < units; u++) put(t, bias, (ptrdiff_t)u, number(t, 0.25));
    d->bias = bias;
}

static void judge_projection_tangent(struct trial *t, const struct cylstm_product *p, size_t row,
                                     size_t unit, const struct near *sum)
{
    const struct cylstm_cell *d = p->cell.tangent;
    const struct near h = read_unit(t, &p->cell.y, row, (ptrdiff_t)unit, p->cell.H);
    struct near dh = sum[0];
    if (d->bias && unit < d->H) dh = plus(t, dh, exactly(get(t, d->bias, (ptrdiff_t)unit)));
    if (p->cell.options->proj_clip != 0 && fabsl(h.is) >= 0.75L) dh = exactly(0);
    expect_h(t, d, row, unit, dh);
}

const struct ending
    lstm_tangent = {.gates = 4,
                    .pads = 1,
                    .grain = 0.125,
                    .place = place_lstm_tangent,
                    .judge = judge_lstm_tangent},
    projection_tangent = {.gates = 1,
                          .pads = 1,
                          .grain = 0.125,
                          .place = place_projection_tangent,
                          .judge = judge_projection_tangent},
    projection = {.gates = 1,
                  .pads = 1,
                  .grain = 0.125,
                  .place = place_projection,
                  .judge = judge_projection},
    projection_back = {.gates = 1,
                       .pads = 1,
                       .grain = 0.125,
                       .place = place_projection_back,
                       .judge = judge_projection_back},
    lstm = {.gates = 4, .pads = 1, .grain = 0.125, .place = place_lstm, .judge = judge_lstm},
    lstm_back = {
        .gates = 1, .pads = 1, .grain = 0.125, .place = place_lstm_back, .judge = judge_lstm_back};
