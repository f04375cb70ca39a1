/* kernels_truth.h -- the arithmetic of cells in long double, each number with what the kernel's may be
 * off by: the checks of cells are their equations and nothing else.
 *
 * `within` follows from the kernels' roundings, each at most epsilon / 2 of its result, and from the
 * three units in the last place that sigmoid and tanh may be off by. A fused multiply-add rounds less
 * often than what is counted here.
 */
#ifndef KERNELS_TRUTH_H
#define KERNELS_TRUTH_H

#include "kernels_check.h"

static inline struct near exactly(long double x) { return (struct near){x, 0}; }

/* A result of one more rounding. */
static inline struct near rounded(const struct trial *t, long double x, long double within)
{
    return (struct near){x, within + epsilon(t) / 2 * fabsl(x) + smallest(t)};
}

static inline struct near plus(const struct trial *t, struct near a, struct near b)
{
    return rounded(t, a.is + b.is, a.within + b.within);
}

static inline struct near minus(const struct trial *t, struct near a, struct near b)
{
    return rounded(t, a.is - b.is, a.within + b.within);
}

static inline struct near times(const struct trial *t, struct near a, struct near b)
{
    return rounded(t, a.is * b.is,
                   fabsl(a.is) * b.within + fabsl(b.is) * a.within + a.within * b.within);
}

/* 1 - a */
static inline struct near rest(const struct trial *t, struct near a)
{
    return minus(t, exactly(1), a);
}

/* ------------------------------------------------------------- activations and their slopes */

static inline long double sigmoid(long double x) { return 1 / (1 + expl(-x)); }

static inline long double clipped(long double x, long double low, long double high)
{
    return x < low ? low : x > high ? high : x;
}

static inline long double value_of(const struct cylstm_function *f, long double x)
{
    const long double a = f->alpha, b = f->beta;
    switch (f->type) {
    case FUNCTION_SIGMOID: return sigmoid(x);
    case FUNCTION_RELU: return fmaxl(x, 0);
    case FUNCTION_HARD_SIGMOID: return clipped(a * x + b, 0, 1);
    case FUNCTION_SOFTSIGN: return x / (1 + fabsl(x));
    case FUNCTION_SOFTPLUS: return log1pl(expl(x));
    case FUNCTION_AFFINE: return a * x + b;
    case FUNCTION_LEAKY_RELU: return x < 0 ? a * x : x;
    case FUNCTION_THRESHOLDED_RELU: return x > a ? x : 0;
    case FUNCTION_SCALED_TANH: return a * tanhl(b * x);
    case FUNCTION_ELU: return x < 0 ? a * expm1l(x) : x;
    default: return tanhl(x);
    }
}

/* f(x). Its slope is nowhere more than `steepest`. */
static inline struct near apply(const struct trial *t, const struct cylstm_function *f,
                                struct near x)
{
    const long double a = f->alpha, b = f->beta, e = epsilon(t), y = value_of(f, x.is),
                      line = a * x.is + b,
                      line_in = fabsl(a) * x.within + e * (fabsl(line) + fabsl(b));
    long double steepest = 1, own = 3 * e * fabsl(y) + smallest(t);
    switch (f->type) {
    case FUNCTION_SIGMOID: steepest = 0.25L; break;
    case FUNCTION_RELU: own = 0; break;
    case FUNCTION_HARD_SIGMOID:
        if (line > 1 + line_in || line < -line_in) return exactly(y); /* at an end for sure */
        return (struct near){y, line_in};
    case FUNCTION_SOFTPLUS: own = 8 * e * (1 + fabsl(y)); break;
    case FUNCTION_AFFINE: return (struct near){y, line_in + smallest(t)};
    case FUNCTION_LEAKY_RELU: steepest = fmaxl(1, a); break;
    case FUNCTION_THRESHOLDED_RELU: /* steps from 0 to a */
        own = fabsl(x.is - a) <= x.within ? a : 0;
        break;
    case FUNCTION_SCALED_TANH:
        steepest = a * b;
        own = 4 * e * fabsl(y) + smallest(t);
        break;
    case FUNCTION_ELU:
        steepest = fmaxl(1, a);
        own = 7 * e * fabsl(y) + smallest(t);
        break;
    default: break;
    }
    return (struct near){y, steepest * x.within + own};
}

/* f'(x) of y = f(x). */
static inline struct near slope(const struct trial *t, const struct cylstm_function *f,
                                struct near y)
{
    const long double e = epsilon(t);
    const struct near one = exactly(1), a = exactly(f->alpha), size = {fabsl(y.is), y.within};
    switch (f->type) {
    case FUNCTION_SIGMOID: return times(t, y, rest(t, y));
    case FUNCTION_RELU: return exactly(y.is > 0);
    case FUNCTION_HARD_SIGMOID:
        if (y.within > 0 && (fabsl(y.is) <= y.within || fabsl(y.is - 1) <= y.within))
            return (struct near){a.is / 2, a.is / 2}; /* either */
        return exactly(y.is > 0 && y.is < 1 ? a.is : 0);
    case FUNCTION_SOFTSIGN: return times(t, rest(t, size), rest(t, size));
    case FUNCTION_SOFTPLUS: return (struct near){-expm1l(-y.is), y.within + 7 * e};
    case FUNCTION_AFFINE: return a;
    case FUNCTION_LEAKY_RELU: return exactly(y.is > 0 ? 1 : a.is);
    case FUNCTION_THRESHOLDED_RELU: return exactly(y.is != 0);
    case FUNCTION_SCALED_TANH: {
        const struct near square = times(t, y, y),
                          share = rounded(t, square.is / a.is, square.within / a.is);
        return times(t, exactly(f->beta), minus(t, a, share));
    }
    case FUNCTION_ELU: return y.is > 0 ? one : plus(t, y, a);
    default: return rest(t, times(t, y, y));
    }
}

/* --------------------------------------------------------------------------- options */

static const struct cylstm_options plain_lstm = {
    .function = {{FUNCTION_SIGMOID, 0, 0}, {FUNCTION_TANH, 0, 0}, {FUNCTION_TANH, 0, 0}}};

/* Half of the trials are of the plain cell, which has none. */
static inline int by_options(const struct trial *t) { return t->seed / 2 % 2 != 0; }

/* `coupled` too: of an LSTM. NULL: none. */
static inline const struct cylstm_options *draw_options(struct trial *t, int coupled)
{
    if (!by_options(t)) return NULL;
    struct cylstm_options *o = guarded(t, "options", sizeof *o);
    *o = (struct cylstm_options){0};
    for (int n = 0; n < 3; n++) { /* numbers that float32 holds */
        o->function[n].type = FUNCTION_SIGMOID + (int)below(t, FUNCTION_ELU);
        o->function[n].alpha = (float)number_between(t, 0.25, 1.25);
        o->function[n].beta = (float)number_between(t, 0.25, 1.25);
    }
    if (coupled) o->coupled = (int)below(t, 3);
    if (chance(t, 2)) o->clip = 0.5 + 0.25 * (double)below(t, 4);
    if (chance(t, 2)) o->cell_clip = 0.5 + 0.25 * (double)below(t, 4);
    if (chance(t, 2)) o->proj_clip = 0.5 + 0.25 * (double)below(t, 4);
    return o;
}

/* What a gate's activation makes of a pre-activation, and the slope of both behind the clip. */
static inline struct near gate_of(const struct trial *t, const struct cylstm_options *o,
                                  int function, struct near a)
{
    if (o->clip != 0) a.is = clipped(a.is, -o->clip, o->clip);
    return apply(t, &o->function[function], a);
}

static inline struct near gate_slope(const struct trial *t, const struct cylstm_options *o,
                                     int function, long double y)
{
    const struct cylstm_function *f = &o->function[function];
    const struct near all = slope(t, f, exactly(y));
    if (o->clip == 0) return all;
    const struct near low = apply(t, f, exactly(-o->clip)), high = apply(t, f, exactly(o->clip));
    for (int n = 0; n < 2; n++) { /* the kernel's own limit may be either side of y */
        const struct near limit = n ? high : low;
        if (limit.within > 0 && fabsl(y - limit.is) <= limit.within)
            return (struct near){all.is / 2, fabsl(all.is) * (0.5L + epsilon(t)) + all.within};
    }
    return y > low.is && y < high.is ? all : exactly(0);
}

/* Results of an activation in vector `n` of the tape. */
static inline void fill_gates(struct trial *t, const struct cylstm_product *p, size_t n,
                              const struct cylstm_options *o, int function)
{
    const ptrdiff_t H = (ptrdiff_t)p->cell.H;
    for (size_t r = 0; r < p->rows; r++)
        for (ptrdiff_t u = 0; u < H; u++) {
            const long double a = number_between(t, -2, 2);
            const struct near y = gate_of(t, o, function, exactly(chance(t, 9) ? 0 : a));
            put(t, row_of(t, &p->cell.tape, r), (ptrdiff_t)n * H + u, (double)y.is);
        }
}

/* --------------------------------------------------------------------------- operands */

/* An operand that is there, or NULL, which means zeros; and zero past the last unit. */
static inline struct near read_unit(struct trial *t, const struct cylstm_rows *m, size_t row,
                                    ptrdiff_t u, size_t H)
{
    return exactly(m->base && u < (ptrdiff_t)H ? get(t, row_of(t, m, row), u) : 0);
}

static inline void expect_unit(struct trial *t, const char *what, const struct cylstm_rows *m,
                               size_t row, size_t unit, ptrdiff_t index, struct near truth)
{
    expect(t, what, row, unit, row_of(t, m, row), index, truth.is, truth.within);
}

/* h_t, and what it is copied to. */
static inline void expect_h(struct trial *t, const struct cylstm_cell *cell, size_t row,
                            size_t unit, struct near h)
{
    expect_unit(t, "h", &cell->h, row, unit, (ptrdiff_t)unit, h);
    if (cell->y.base && unit < cell->H)
        expect_unit(t, "y", &cell->y, row, unit, (ptrdiff_t)unit, h);
}

/* A vector of the tape. */
static inline struct near taped(struct trial *t, const struct cylstm_cell *cell, size_t row,
                                size_t unit, size_t n)
{
    return exactly(
        unit < cell->H ? get(t, row_of(t, &cell->tape, row), (ptrdiff_t)(n * cell->H + unit)) : 0);
}

/* By options: what a loss says of the gates on a tape, `gates` of them, beside what follows from h. */
static inline void place_given(struct trial *t, struct cylstm_product *p, size_t gates)
{
    const size_t n = gates * p->cell.H;
    if (!by_options(t) || !chance(t, 2)) return;
    p->cell.given_gates = place(t, "given gates", p->rows, n);
    fill(t, &p->cell.given_gates, p->rows, n, n, -2, 2);
}

static inline struct near given_too(struct trial *t, const struct cylstm_cell *cell, size_t row,
                                    size_t unit, size_t gate, struct near d)
{
    if (!cell->given_gates.base || unit >= cell->H) return d;
    return plus(
        t, d,
        exactly(get(t, row_of(t, &cell->given_gates, row), (ptrdiff_t)(gate * cell->H + unit))));
}

/* The end of a product of tangents: the cell's own options, and the cell of the tangents, which are
 * returned: h_{t-1} in, h_t out. */
static inline struct cylstm_cell *place_tangent(struct trial *t, struct cylstm_product *p,
                                                enum cylstm_cell_math math,
                                                const struct cylstm_options *options)
{
    const size_t H = p->cell.H, padded = round_up(H, t->kernels->lanes);
    struct cylstm_cell *d = guarded(t, "tangent", sizeof *d);
    *d = (struct cylstm_cell){.H = H,
                              .options = options,
                              .h = place(t, "dh", p->rows, padded),
                              .h_prev = place(t, "dh_prev", p->rows, padded)};
    fill(t, &d->h_prev, p->rows, H, padded, -2, 2);
    if (below(t, 2)) d->y = place(t, "dy", p->rows, H);
    p->finish = t->kernels->tangent[math];
    p->cell.options = options;
    p->cell.tangent = d;
    return d;
}

/* Vectors of H on a row of the tape, or of dgates. */
static inline void expect_vectors(struct trial *t, const char *what, const struct cylstm_rows *m,
                                  size_t row, size_t unit, size_t H, const struct near *truth,
                                  size_t count)
{
    for (size_t n = 0; n < count && m->base && unit < H; n++)
        expect_unit(t, what, m, row, unit, (ptrdiff_t)(n * H + unit), truth[n]);
}

/* --------------------------------------------------------------- what LSTMs have of their own */

enum { PEEPHOLES = 3, COUPLED_F = 1, COUPLED_I = 2 };

/* Options, and weights of peepholes. */
static inline void place_options(struct trial *t, struct cylstm_cell *cell)
{
    cell->options = draw_options(t, 1);
    if (!cell->options || !chance(t, 2)) return;
    const size_t count = (cell->options->coupled ? PEEPHOLES - 1 : PEEPHOLES) * cell->H;
    void *peep = guarded_reals(t, "peep", count);
    for (size_t u = 0; u < count; u++) put(t, peep, (ptrdiff_t)u, number(t, 0.25));
    cell->peep = peep;
}

/* What gate `n` of i, f, o sees of c: nothing where it is coupled, and the others follow it. */
static inline struct near peephole(const struct trial *t, const struct cylstm_cell *cell, size_t n,
                                   size_t unit)
{
    const int coupled = cell->options ? cell->options->coupled : 0;
    if (!cell->peep || unit >= cell->H || (coupled == COUPLED_F && n == 1) ||
        (coupled == COUPLED_I && n == 0))
        return exactly(0);
    if (coupled == COUPLED_I || (coupled == COUPLED_F && n > 1)) n--;
    return exactly(get(t, cell->peep, (ptrdiff_t)(n * cell->H + unit)));
}

static inline const void *draw_peephole_tangents(struct trial *t, const struct cylstm_cell *cell)
{
    const size_t count = (cell->options->coupled ? PEEPHOLES - 1 : PEEPHOLES) * cell->H;
    if (!cell->peep || chance(t, 2)) return NULL;
    void *peep = guarded_reals(t, "tangent of peep", count);
    for (size_t u = 0; u < count; u++) put(t, peep, (ptrdiff_t)u, number(t, 0.25));
    return peep;
}

/* p * dc + dp * c */
static inline struct near peephole_tangent(const struct trial *t, const struct cylstm_cell *cell,
                                           size_t n, size_t unit, struct near c, struct near dc)
{
    return plus(t, times(t, peephole(t, cell->tangent, n, unit), c),
                times(t, peephole(t, cell, n, unit), dc));
}

/* dc before a step, which the kernel has replaced. */
static inline struct near dc_before(struct trial *t, const struct cylstm_cell *d, size_t row,
                                    size_t unit)
{
    return exactly(get(t, before(t, row_of(t, &d->c, row)), (ptrdiff_t)unit));
}

/* dc, of the tangents of pre-activations. */
static inline struct near cell_tangent(struct trial *t, const struct cylstm_cell *cell, size_t row,
                                       size_t unit, struct near da_i, struct near da_f,
                                       struct near da_g)
{
    const struct cylstm_options *options = cell->options;
    const struct near i = taped(t, cell, row, unit, 0), f = taped(t, cell, row, unit, 1),
                      g = taped(t, cell, row, unit, 2),
                      c = taped(t, cell, row, unit, cell->tape_vectors - 1u),
                      c_prev = read_unit(t, &cell->c_prev, row, (ptrdiff_t)unit, cell->H),
                      dg = times(t, gate_slope(t, options, 1, g.is), da_g);
    struct near di = times(t, gate_slope(t, options, 0, i.is), da_i),
                df = times(t, gate_slope(t, options, 0, f.is), da_f);
    if (options->coupled == COUPLED_F) df = minus(t, exactly(0), di);
    if (options->coupled == COUPLED_I) di = minus(t, exactly(0), df);
    const struct near kept = times(t, f, dc_before(t, cell->tangent, row, unit)),
                      dc = plus(t, plus(t, kept, times(t, i, dg)), times(t, di, g));
    if (options->cell_clip != 0 && fabsl(c.is) >= options->cell_clip) return exactly(0);
    return plus(t, dc, times(t, df, c_prev));
}

static inline void expect_hidden_tangent(struct trial *t, const struct cylstm_cell *cell,
                                         size_t row, size_t unit, struct near da_o, struct near dc)
{
    const struct cylstm_function *shows = &cell->options->function[2];
    const struct near o = taped(t, cell, row, unit, 3),
                      shown = apply(t, shows, taped(t, cell, row, unit, cell->tape_vectors - 1u)),
                      d_o = times(t, gate_slope(t, cell->options, 0, o.is), da_o),
                      d_shown = times(t, slope(t, shows, shown), dc);
    expect_h(t, cell->tangent, row, unit, plus(t, times(t, d_o, shown), times(t, o, d_shown)));
    if (cell->h.base) expect_unit(t, "m", &cell->h, row, unit, (ptrdiff_t)unit, times(t, o, shown));
}

#endif
