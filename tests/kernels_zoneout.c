/* kernels_zoneout.c -- zoneout around a projection, and the gradient that it divides. */
#define _DEFAULT_SOURCE
#include "kernels_truth.h"

static const struct cylstm_zoneout *draw_zoneout(struct trial *t, size_t rows, size_t units,
                                                 cylstm_cell_fn *inner)
{
    struct cylstm_zoneout *z = guarded(t, "zoneout", sizeof *z);
    *z = (struct cylstm_zoneout){.p = chance(t, 4) ? 1 : 0.25,
                                 .drawn = chance(t, 2),
                                 .key = draw(t),
                                 .first = below(t, 1000),
                                 .width = units,
                                 .inner = inner};
    if (!chance(t, 2)) return z;
    size_t *row = guarded(t, "rows of the batch", rows * sizeof *row);
    for (size_t r = 0; r < rows; r++) row[r] = below(t, 1000);
    z->row = row;
    return z;
}

/* The part of h_{t-1} in a unit: in padding any, of zeros. */
static struct near part_of(const struct cylstm_zoneout *z, size_t row, size_t unit)
{
    const uint64_t index = (z->first + (z->row ? z->row[row] : row)) * z->width + unit;
    if (!z->drawn) return exactly(z->p);
    return exactly((double)(hash(z->key + hash(index)) >> 32) < z->p * 0x1p32);
}

static void place_zoneout(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    projection.place(t, p, units);
    p->cell.h_prev = place(t, "h_prev", p->rows, padded);
    fill(t, &p->cell.h_prev, p->rows, units, padded, -2, 2);
    p->cell.zoneout = draw_zoneout(t, p->rows, units, p->finish);
    p->finish = t->kernels->cell[CYLSTM_ZONEOUT_MATH][0].forward;
}

static void judge_zoneout(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                          const struct near *a)
{
    const struct cylstm_cell *cell = &p->cell;
    struct near h = a[0];
    if (cell->bias && unit < cell->H) h = plus(t, h, exactly(get(t, cell->bias, (ptrdiff_t)unit)));
    if (cell->options && cell->options->proj_clip != 0)
        h.is = clipped(h.is, -cell->options->proj_clip, cell->options->proj_clip);
    const struct near part = part_of(cell->zoneout, row, unit),
                      h_prev = exactly(get(t, row_of(t, &cell->h_prev, row), (ptrdiff_t)unit));
    if (part.is == 1) /* what it was, to the bit */
        h = h_prev;
    else if (part.is != 0)
        h = plus(t, times(t, part, h_prev), times(t, rest(t, part), h));
    expect_h(t, cell, row, unit, h);
}

static void place_zoneout_back(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = units;
    p->finish = t->kernels->cell[CYLSTM_ZONEOUT_MATH][0].backward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .unit_vectors = 1,
                                   .zoneout = draw_zoneout(t, p->rows, units, NULL),
                                   .h = place(t, "dh", p->rows, padded),
                                   .dh_prev = place(t, "dh_prev", p->rows, padded)};
}

static void judge_zoneout_back(struct trial *t, const struct cylstm_product *p, size_t row,
                               size_t unit, const struct near *sum)
{
    const struct near part = part_of(p->cell.zoneout, row, unit);
    expect_unit(t, "dh_prev", &p->cell.dh_prev, row, unit, (ptrdiff_t)unit, times(t, part, sum[0]));
    expect_unit(t, "dh", &p->cell.h, row, unit, (ptrdiff_t)unit, times(t, rest(t, part), sum[0]));
}

const struct ending zoneout = {.gates = 1,
                               .pads = 1,
                               .grain = 0.125,
                               .place = place_zoneout,
                               .judge = judge_zoneout},
                    zoneout_back = {.gates = 1,
                                    .pads = 1,
                                    .grain = 0.125,
                                    .place = place_zoneout_back,
                                    .judge = judge_zoneout_back};
