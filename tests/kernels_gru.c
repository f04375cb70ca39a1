/* kernels_gru.c -- both kinds of GRU, and the plain recurrent cell: each plain and by options, forward
 * and backward. */
#define _DEFAULT_SOURCE
#include "kernels_truth.h"

static const struct cylstm_options plain_rnn = {.function = {{FUNCTION_TANH, 0, 0}}};

static const struct cylstm_options *options_of(const struct cylstm_cell *cell)
{
    return cell->options ? cell->options : &plain_lstm; /* whose first two are those of a GRU */
}

static const struct cylstm_options *options_of_rnn(const struct cylstm_cell *cell)
{
    return cell->options ? cell->options : &plain_rnn;
}

/* What goes out of a step, and h_{t-1}, padded. */
static void place_states(struct trial *t, struct cylstm_product *p, size_t tape_vectors)
{
    struct cylstm_cell *cell = &p->cell;
    const size_t H = cell->H, padded = round_up(H, t->kernels->lanes);
    cell->tape_vectors = (unsigned char)tape_vectors;
    cell->h = place(t, "h", p->rows, padded);
    cell->h_prev = place(t, "h_prev", p->rows, padded);
    fill(t, &cell->h_prev, p->rows, H, padded, -2, 2);
    if (below(t, 2)) cell->y = place(t, "y", p->rows, H);
    if (below(t, 2)) cell->tape = place(t, "tape", p->rows, tape_vectors * H);
}

/* The same of a step back: a tape of r, z, n and perhaps q; and h_{t-1}, unpadded, or none. */
static void place_back(struct trial *t, struct cylstm_product *p, size_t tape_vectors)
{
    struct cylstm_cell *cell = &p->cell;
    const size_t H = cell->H;
    const struct cylstm_options *o = options_of(cell);
    cell->tape_vectors = (unsigned char)tape_vectors;
    cell->tape = place(t, "tape", p->rows, tape_vectors * H);
    fill(t, &cell->tape, p->rows, tape_vectors * H, tape_vectors * H, -2, 2);
    for (size_t n = 0; n < 3; n++) fill_gates(t, p, n, o, n == 2);
    cell->dgates = place(t, "dgates", p->rows, tape_vectors * H);
    cell->dh_prev = place(t, "dh_prev", p->rows, round_up(H, t->kernels->lanes));
    place_given(t, p, 3);
    if (!below(t, 2)) return;
    cell->h_prev = place(t, "h_prev", p->rows, H);
    fill(t, &cell->h_prev, p->rows, H, H, -2, 2);
}

/* --- the GRU whose reset gate comes behind the product; in a panel: */

enum { N_OF_X, R_GATE, Z_GATE, N_OF_H };

static void place_gru(struct trial *t, struct cylstm_product *p, size_t units)
{
    p->columns = round_up(4 * units, t->kernels->lanes);
    p->finish = t->kernels->cell[CYLSTM_GRU_MATH][by_options(t)].forward;
    p->cell = (struct cylstm_cell){
        .H = units, .unit_vectors = PANEL_VECTORS, .options = draw_options(t, 0)};
    place_states(t, p, 4);
}

static void judge_gru(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                      const struct near *a)
{
    const struct cylstm_cell *cell = &p->cell;
    const struct cylstm_options *o = options_of(cell);
    const struct near r = gate_of(t, o, 0, a[R_GATE]), z = gate_of(t, o, 0, a[Z_GATE]),
                      q = a[N_OF_H], n = gate_of(t, o, 1, plus(t, a[N_OF_X], times(t, r, q))),
                      h_prev = read_unit(t, &cell->h_prev, row, (ptrdiff_t)unit, cell->H);
    expect_h(t, cell, row, unit, plus(t, n, times(t, z, minus(t, h_prev, n))));
    expect_vectors(t, "tape", &cell->tape, row, unit, cell->H, (const struct near[]){r, z, n, q},
                   4);
}

static void place_gru_back(struct trial *t, struct cylstm_product *p, size_t units)
{
    p->columns = units;
    p->finish = t->kernels->cell[CYLSTM_GRU_MATH][by_options(t)].backward;
    p->cell = (struct cylstm_cell){.H = units, .options = draw_options(t, 0)};
    place_back(t, p, 4);
}

static void judge_gru_back(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                           const struct near *sum)
{
    const struct cylstm_cell *cell = &p->cell;
    const struct cylstm_options *o = options_of(cell);
    const struct near r = taped(t, cell, row, unit, 0), z = taped(t, cell, row, unit, 1),
                      n = taped(t, cell, row, unit, 2), q = taped(t, cell, row, unit, 3),
                      dh = sum[0],
                      h_prev = read_unit(t, &cell->h_prev, row, (ptrdiff_t)unit, cell->H),
                      dn = given_too(t, cell, row, unit, 2, times(t, dh, rest(t, z))),
                      dz = given_too(t, cell, row, unit, 1, times(t, dh, minus(t, h_prev, n))),
                      da_n = times(t, dn, gate_slope(t, o, 1, n.is)),
                      dr = given_too(t, cell, row, unit, 0, times(t, da_n, q)),
                      da_r = times(t, dr, gate_slope(t, o, 0, r.is)),
                      da_z = times(t, dz, gate_slope(t, o, 0, z.is));
    expect_unit(t, "dh_prev", &cell->dh_prev, row, unit, (ptrdiff_t)unit, times(t, dh, z));
    expect_vectors(t, "dgates", &cell->dgates, row, unit, cell->H,
                   (const struct near[]){da_r, da_z, da_n, times(t, da_n, r)}, 4);
}

/* --- the GRU whose reset gate comes before it: the gates of its first product */

static void place_gates(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = 2 * padded;
    p->finish = t->kernels->cell[CYLSTM_GRU_GATES_MATH][by_options(t)].forward;
    p->cell = (struct cylstm_cell){.H = units, .unit_vectors = 2, .options = draw_options(t, 0)};
    place_states(t, p, 3);
    p->cell.y.base = NULL; /* h of this product is no output */
    p->cell.z = place(t, "z", p->rows, padded);
}

static void judge_gates(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                        const struct near *a)
{
    const struct cylstm_cell *cell = &p->cell;
    const struct cylstm_options *o = options_of(cell);
    const struct near r = gate_of(t, o, 0, a[0]), z = gate_of(t, o, 0, a[1]),
                      h_prev = read_unit(t, &cell->h_prev, row, (ptrdiff_t)unit, cell->H);
    expect_unit(t, "r * h", &cell->h, row, unit, (ptrdiff_t)unit, times(t, r, h_prev));
    expect_unit(t, "z", &cell->z, row, unit, (ptrdiff_t)unit, z);
    expect_vectors(t, "tape", &cell->tape, row, unit, cell->H, (const struct near[]){r, z}, 2);
}

static void place_gates_back(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = units;
    p->finish = t->kernels->cell[CYLSTM_GRU_GATES_MATH][by_options(t)].backward;
    p->cell = (struct cylstm_cell){.H = units, .options = draw_options(t, 0)};
    place_back(t, p, 3);
    fill(t, &p->cell.dh_prev, p->rows, units, padded, -2, 2);
    p->cell.h = place(t, "h", p->rows, padded);
}

static void judge_gates_back(struct trial *t, const struct cylstm_product *p, size_t row,
                             size_t unit, const struct near *sum)
{
    const struct cylstm_cell *cell = &p->cell;
    const ptrdiff_t u = (ptrdiff_t)unit;
    const struct near r = taped(t, cell, row, unit, 0), dm = sum[0],
                      h_prev = read_unit(t, &cell->h_prev, row, u, cell->H),
                      dh = exactly(get(t, before(t, row_of(t, &cell->dh_prev, row)), u)),
                      dr = given_too(t, cell, row, unit, 0, times(t, dm, h_prev)),
                      da_r = times(t, dr, gate_slope(t, options_of(cell), 0, r.is));
    expect_unit(t, "dh_prev", &cell->dh_prev, row, unit, u, plus(t, dh, times(t, dm, r)));
    expect_unit(t, "r * h", &cell->h, row, unit, u, times(t, r, h_prev));
    expect_vectors(t, "dgates", &cell->dgates, row, unit, cell->H, &da_r, 1);
}

/* --- and the candidate, of the second */

static void place_candidate(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = padded;
    p->finish = t->kernels->cell[CYLSTM_GRU_CANDIDATE_MATH][by_options(t)].forward;
    p->cell = (struct cylstm_cell){.H = units, .unit_vectors = 1, .options = draw_options(t, 0)};
    place_states(t, p, 3);
    p->cell.z = place(t, "z", p->rows, padded);
    fill(t, &p->cell.z, p->rows, units, padded, 0, 1);
}

static void judge_candidate(struct trial *t, const struct cylstm_product *p, size_t row,
                            size_t unit, const struct near *a)
{
    const struct cylstm_cell *cell = &p->cell;
    const ptrdiff_t u = (ptrdiff_t)unit;
    const struct near n = gate_of(t, options_of(cell), 1, a[0]),
                      z = read_unit(t, &cell->z, row, u, cell->H),
                      h_prev = read_unit(t, &cell->h_prev, row, u, cell->H);
    expect_h(t, cell, row, unit, plus(t, n, times(t, z, minus(t, h_prev, n))));
    if (cell->tape.base && unit < cell->H)
        expect_unit(t, "tape", &cell->tape, row, unit, (ptrdiff_t)(2 * cell->H + unit), n);
}

static void place_candidate_back(struct trial *t, struct cylstm_product *p, size_t units)
{
    p->columns = units;
    p->finish = t->kernels->cell[CYLSTM_GRU_CANDIDATE_MATH][by_options(t)].backward;
    p->cell = (struct cylstm_cell){.H = units, .options = draw_options(t, 0)};
    place_back(t, p, 3);
}

static void judge_candidate_back(struct trial *t, const struct cylstm_product *p, size_t row,
                                 size_t unit, const struct near *sum)
{
    const struct cylstm_cell *cell = &p->cell;
    const struct cylstm_options *o = options_of(cell);
    const struct near z = taped(t, cell, row, unit, 1), n = taped(t, cell, row, unit, 2),
                      dh = sum[0],
                      h_prev = read_unit(t, &cell->h_prev, row, (ptrdiff_t)unit, cell->H),
                      dz = given_too(t, cell, row, unit, 1, times(t, dh, minus(t, h_prev, n))),
                      dn = given_too(t, cell, row, unit, 2, times(t, dh, rest(t, z))),
                      da_z = times(t, dz, gate_slope(t, o, 0, z.is)),
                      da_n = times(t, dn, gate_slope(t, o, 1, n.is));
    expect_unit(t, "dh_prev", &cell->dh_prev, row, unit, (ptrdiff_t)unit, times(t, dh, z));
    if (unit >= cell->H) return;
    expect_unit(t, "dgates", &cell->dgates, row, unit, (ptrdiff_t)(cell->H + unit), da_z);
    expect_unit(t, "dgates", &cell->dgates, row, unit, (ptrdiff_t)(2 * cell->H + unit), da_n);
}

/* --- the plain cell */

static void place_rnn(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = padded;
    p->finish = t->kernels->cell[CYLSTM_RNN_MATH][by_options(t)].forward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .unit_vectors = 1,
                                   .tape_vectors = 1,
                                   .options = draw_options(t, 0),
                                   .h = place(t, "h", p->rows, padded)};
    if (below(t, 2)) p->cell.y = place(t, "y", p->rows, units);
    if (below(t, 2)) p->cell.tape = place(t, "tape", p->rows, units);
}

static void judge_rnn(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                      const struct near *a)
{
    const struct cylstm_cell *cell = &p->cell;
    const struct near h = gate_of(t, options_of_rnn(cell), 0, a[0]);
    expect_h(t, cell, row, unit, h);
    expect_vectors(t, "tape", &cell->tape, row, unit, cell->H, &h, 1);
}

static void place_rnn_back(struct trial *t, struct cylstm_product *p, size_t units)
{
    p->columns = units;
    p->finish = t->kernels->cell[CYLSTM_RNN_MATH][by_options(t)].backward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .tape_vectors = 1,
                                   .options = draw_options(t, 0),
                                   .tape = place(t, "tape", p->rows, units),
                                   .dgates = place(t, "dgates", p->rows, units)};
    fill_gates(t, p, 0, options_of_rnn(&p->cell), 0);
    place_given(t, p, 1);
}

static void judge_rnn_back(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                           const struct near *sum)
{
    const struct cylstm_cell *cell = &p->cell;
    const struct near h = taped(t, cell, row, unit, 0),
                      dh = given_too(t, cell, row, unit, 0, sum[0]),
                      da = times(t, dh, gate_slope(t, options_of_rnn(cell), 0, h.is));
    expect_vectors(t, "dgates", &cell->dgates, row, unit, cell->H, &da, 1);
}

/* --- their tangents */

/* What the tangent of a GRU's step reads: gates, and h_{t-1}, padded. */
static struct cylstm_cell *place_gru_tangents(struct trial *t, struct cylstm_product *p,
                                              size_t units, enum cylstm_cell_math math,
                                              size_t unit_vectors, size_t tape_vectors)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    const struct cylstm_options *o = draw_options(t, 0);
    p->cell = (struct cylstm_cell){.H = units,
                                   .unit_vectors = (unsigned char)unit_vectors,
                                   .tape_vectors = (unsigned char)tape_vectors,
                                   .tape = place(t, "tape", p->rows, tape_vectors * units),
                                   .h_prev = place(t, "h_prev", p->rows, padded)};
    struct cylstm_cell *d = place_tangent(t, p, math, o ? o : &plain_lstm);
    fill(t, &p->cell.h_prev, p->rows, units, padded, -2, 2);
    fill(t, &p->cell.tape, p->rows, tape_vectors * units, tape_vectors * units, -2, 2);
    for (size_t n = 0; n < 3; n++) fill_gates(t, p, n, p->cell.options, n == 2);
    return d;
}

/* (1 - z) * dn + z * dh_{t-1} + dz * (h_{t-1} - n) */
static void judge_blend(struct trial *t, const struct cylstm_cell *cell, size_t row, size_t unit,
                        struct near n, struct near z, struct near dn, struct near dz)
{
    const ptrdiff_t u = (ptrdiff_t)unit;
    const struct near h_prev = read_unit(t, &cell->h_prev, row, u, cell->H),
                      dh_prev = read_unit(t, &cell->tangent->h_prev, row, u, cell->H),
                      own = plus(t, dn, times(t, dz, minus(t, h_prev, n)));
    expect_h(t, cell->tangent, row, unit, plus(t, own, times(t, z, minus(t, dh_prev, dn))));
}

static void place_gru_tangent(struct trial *t, struct cylstm_product *p, size_t units)
{
    p->columns = round_up(4 * units, t->kernels->lanes);
    place_gru_tangents(t, p, units, CYLSTM_GRU_MATH, PANEL_VECTORS, 4);
}

static void judge_gru_tangent(struct trial *t, const struct cylstm_product *p, size_t row,
                              size_t unit, const struct near *da)
{
    const struct cylstm_cell *cell = &p->cell;
    const struct cylstm_options *o = cell->options;
    const struct near r = taped(t, cell, row, unit, 0), z = taped(t, cell, row, unit, 1),
                      n = taped(t, cell, row, unit, 2), q = taped(t, cell, row, unit, 3),
                      dr = times(t, gate_slope(t, o, 0, r.is), da[R_GATE]),
                      dz = times(t, gate_slope(t, o, 0, z.is), da[Z_GATE]),
                      of_h = plus(t, da[N_OF_X], times(t, r, da[N_OF_H])),
                      dn = times(t, gate_slope(t, o, 1, n.is), plus(t, of_h, times(t, dr, q)));
    judge_blend(t, cell, row, unit, n, z, dn, dz);
}

static void place_gates_tangent(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = 2 * padded;
    struct cylstm_cell *d = place_gru_tangents(t, p, units, CYLSTM_GRU_GATES_MATH, 2, 3);
    d->y.base = NULL; /* h of this product is no output */
    d->z = place(t, "dz", p->rows, padded);
    p->cell.h = place(t, "m", p->rows, padded);
}

static void judge_gates_tangent(struct trial *t, const struct cylstm_product *p, size_t row,
                                size_t unit, const struct near *da)
{
    const struct cylstm_cell *cell = &p->cell, *d = cell->tangent;
    const ptrdiff_t u = (ptrdiff_t)unit;
    const struct near r = taped(t, cell, row, unit, 0), z = taped(t, cell, row, unit, 1),
                      dr = times(t, gate_slope(t, cell->options, 0, r.is), da[0]),
                      dz = times(t, gate_slope(t, cell->options, 0, z.is), da[1]),
                      h_prev = read_unit(t, &cell->h_prev, row, u, cell->H),
                      dh_prev = read_unit(t, &d->h_prev, row, u, cell->H);
    expect_unit(t, "dm", &d->h, row, unit, u, plus(t, times(t, r, dh_prev), times(t, dr, h_prev)));
    expect_unit(t, "dz", &d->z, row, unit, u, dz);
    expect_unit(t, "m", &cell->h, row, unit, u, times(t, r, h_prev));
}

static void place_candidate_tangent(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = padded;
    struct cylstm_cell *d = place_gru_tangents(t, p, units, CYLSTM_GRU_CANDIDATE_MATH, 1, 3);
    d->z = place(t, "dz", p->rows, padded);
    fill(t, &d->z, p->rows, units, padded, -1, 1);
}

static void judge_candidate_tangent(struct trial *t, const struct cylstm_product *p, size_t row,
                                    size_t unit, const struct near *da)
{
    const struct cylstm_cell *cell = &p->cell;
    const struct near z = taped(t, cell, row, unit, 1), n = taped(t, cell, row, unit, 2),
                      dn = times(t, gate_slope(t, cell->options, 1, n.is), da[0]),
                      dz = read_unit(t, &cell->tangent->z, row, (ptrdiff_t)unit, cell->H);
    judge_blend(t, cell, row, unit, n, z, dn, dz);
}

static void place_rnn_tangent(struct trial *t, struct cylstm_product *p, size_t units)
{
    const struct cylstm_options *o = draw_options(t, 0);
    p->columns = round_up(units, t->kernels->lanes);
    p->cell = (struct cylstm_cell){
        .H = units, .unit_vectors = 1, .tape_vectors = 1, .tape = place(t, "tape", p->rows, units)};
    place_tangent(t, p, CYLSTM_RNN_MATH, o ? o : &plain_rnn);
    fill_gates(t, p, 0, p->cell.options, 0);
}

static void judge_rnn_tangent(struct trial *t, const struct cylstm_product *p, size_t row,
                              size_t unit, const struct near *da)
{
    const struct near h = taped(t, &p->cell, row, unit, 0);
    expect_h(t, p->cell.tangent, row, unit,
             times(t, gate_slope(t, p->cell.options, 0, h.is), da[0]));
}

const struct ending
    gru_tangent = {.gates = 4,
                   .pads = 1,
                   .grain = 0.125,
                   .place = place_gru_tangent,
                   .judge = judge_gru_tangent},
    gru_gates_tangent = {.gates = 2,
                         .pads = 1,
                         .grain = 0.125,
                         .place = place_gates_tangent,
                         .judge = judge_gates_tangent},
    gru_candidate_tangent = {.gates = 1,
                             .pads = 1,
                             .grain = 0.125,
                             .place = place_candidate_tangent,
                             .judge = judge_candidate_tangent},
    rnn_tangent = {.gates = 1,
                   .pads = 1,
                   .grain = 0.125,
                   .place = place_rnn_tangent,
                   .judge = judge_rnn_tangent},
    gru = {.gates = 4, .pads = 1, .grain = 0.125, .place = place_gru, .judge = judge_gru},
    gru_back = {.gates = 1,
                .pads = 1,
                .grain = 0.125,
                .place = place_gru_back,
                .judge = judge_gru_back},
    gru_gates = {.gates = 2, .pads = 1, .grain = 0.125, .place = place_gates, .judge = judge_gates},
    gru_gates_back = {.gates = 1,
                      .pads = 1,
                      .grain = 0.125,
                      .place = place_gates_back,
                      .judge = judge_gates_back},
    gru_candidate = {.gates = 1,
                     .pads = 1,
                     .grain = 0.125,
                     .place = place_candidate,
                     .judge = judge_candidate},
    gru_candidate_back = {.gates = 1,
                          .pads = 1,
                          .grain = 0.125,
                          .place = place_candidate_back,
                          .judge = judge_candidate_back},
    rnn = {.gates = 1, .pads = 1, .grain = 0.125, .place = place_rnn, .judge = judge_rnn},
    rnn_back = {
        .gates = 1, .pads = 0, .grain = 0.125, .place = place_rnn_back, .judge = judge_rnn_back};
