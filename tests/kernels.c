/* kernels.c -- every function of every kernel set against a plain loop in long double.
 *
 *     cc -std=c11 -ffp-contract=off -O2 -pthread -Isrc_c -o kernels tests/kernels.c src_c/[a-z]*.c \
 *         src_c/kernels/[a-z]*.c -lm
 *     ./kernels                              64 trials of each check on each set
 *     ./kernels --seed 9 --trials 1 --only product --isa avx2
 *     ./kernels --bench --only product       ticks of the fastest call, of 32 rows; --seed 1: of one
 *
 * A trial draws sizes, strides, offsets and numbers from its seed, the same for every set, and runs
 * twice: all blocks end, then start, at a page that may not be touched (guarded.h). A result must be
 * as near to the truth as its arithmetic allows: where inputs are small integers, that is exactly.
 * Sets that round alike (fused or not, so that the portable set is one of them) must agree to the
 * bit. What a kernel has no business to write must be as it was.
 *
 * A new function of the kernel set gets a row in `checks`. A new end of a product, such as the cell
 * of another network, gets a row in `endings`: where its operands lie, and what is true of a unit.
 */
#define _DEFAULT_SOURCE
#include "cpu.h"
#include "cylstm.h"
#include "guarded.h"
#include "kernels/compact.h"

#include <float.h>
#include <math.h>
#include <time.h>

enum { TRIALS = 64, MAX_GATES = 4, MAX_SETS = 16, BENCH_RUNS = 4000 };

static int bench; /* measure, and judge nothing */

/* ---------------------------------------------------------------- what is expected */

/* The distance from 1 to the next real: twice what one rounding may change, relatively. */
static long double epsilon(const struct trial *t)
{
    return t->kernels->bits == 32 ? FLT_EPSILON : DBL_EPSILON;
}

/* What may be flushed to zero. */
static long double smallest(const struct trial *t)
{
    return t->kernels->bits == 32 ? FLT_MIN : DBL_MIN;
}

/* The results of a trial on the first set of those that round alike. */
static struct record {
    const char *isa;
    double *values;
    size_t count, capacity;
} records[2];

static struct record
    *record; /* of the sets that round like this one; NULL: each set has its own problem */
static size_t recorded; /* results of this run so far */

/* Whether a * b + c is rounded once: (1 + e)(1 - e) - 1 is then -e^2, else 0. */
static int is_fused(const struct cylstm_kernels *k)
{
    double a[MAX_VL], w[MAX_VL], init[MAX_VL], out[MAX_VL];
    struct trial t = {.kernels = k};
    const double e = (double)epsilon(&t);
    memset(w, 0, sizeof w);
    memset(init, 0, sizeof init);
    put(&t, a, 0, 1 + e);
    put(&t, w, 0, 1 - e);
    put(&t, init, 0, -1);
    k->product(&(struct cylstm_product){.rows = 1,
                                        .panel_end = 1,
                                        .columns = 1,
                                        .term = {{.a = {.base = a}, .a_k = 1, .K = 1, .w = w}},
                                        .init = init,
                                        .out = {.base = out}});
    return get(&t, out, 0) != 0;
}

/* Hold a result against the truth, then put back what was there, for `untouched`. */
static void expect(struct trial *t, const char *what, size_t row, size_t column, void *base,
                   ptrdiff_t index, long double truth, long double within)
{
    if (bench || t->failed) return;
    void *at = real_at(t, base, index);
    const double got = get(t, at, 0);
    if (!(fabsl(got - truth) <= within))
        fail(t, "%s[%zu][%zu] is %.17g, but should be %.20Lg, within %.3Lg", what, row, column, got,
             truth, within);
    if (record && within > 0 && truth != 0) { /* 0 is what pads units, more of them on some sets */
        const size_t n = recorded++;
        if (n < record->count && memcmp(&record->values[n], &got, sizeof got))
            fail(t, "%s[%zu][%zu] is %.17g, but %.17g on %s, which rounds alike", what, row, column,
                 got, record->values[n], record->isa);
        if (n == record->capacity) {
            record->capacity = 2 * n + 1024;
            record->values = realloc(record->values, record->capacity * sizeof *record->values);
            if (!record->values) abort();
        }
        record->values[n] = got;
    }
    memcpy(at, before(t, at), real_size(t));
}

static void describe(struct trial *t, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(t->shape, sizeof t->shape, format, arguments);
    va_end(arguments);
}

/* ---------------------------------------------------------------------------- draws */

/* 1 in n; and never while measuring. */
static int chance(struct trial *t, size_t n) { return below(t, n) == 0 && !bench; }

/* From `least` to `most`; `usual` while measuring. */
static size_t size_between(struct trial *t, size_t least, size_t most, size_t usual)
{
    const size_t n = least + below(t, most - least + 1);
    return bench ? usual : n;
}

static size_t gap(struct trial *t) { return size_between(t, 0, 3, 0); }

/* A multiple of the grain from -4 grains to 4, or any fraction where it is 0. */
static double number(struct trial *t, double grain)
{
    return grain != 0 ? ((double)below(t, 9) - 4) * grain : fraction(t);
}

static double number_between(struct trial *t, double low, double high)
{
    return low + (high - low) * (0.5 + 0.5 * fraction(t));
}

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* -------------------------------------------------------------------- rows of reals */

static void *row_of(const struct trial *t, const struct cylstm_rows *m, size_t row)
{
    return real_at(t, m->base, m->offset ? m->offset[row] : (ptrdiff_t)row * m->stride);
}

/* Rows of `width` reals apart from one another: in order, or in any order by their offsets from a
 * base that may be in their midst. */
static struct cylstm_rows place(struct trial *t, const char *name, size_t rows, size_t width)
{
    const size_t stride = width + gap(t);
    void *memory = guarded_reals(t, name, rows ? (rows - 1) * stride + width : 0);
    if (!rows || !chance(t, 2))
        return (struct cylstm_rows){.base = memory, .stride = (ptrdiff_t)stride};
    ptrdiff_t *offset = guarded(t, "offsets", rows * sizeof *offset);
    const ptrdiff_t base = (ptrdiff_t)(below(t, rows) * stride);
    for (size_t r = 0; r < rows; r++) {
        const size_t other = below(t, r + 1);
        offset[r] = offset[other];
        offset[other] = (ptrdiff_t)(r * stride) - base;
    }
    return (struct cylstm_rows){.base = real_at(t, memory, base), .offset = offset};
}

/* Numbers of the first n of each row, zeros in what pads it to `padded`. */
static void fill(struct trial *t, const struct cylstm_rows *m, size_t rows, size_t n, size_t padded,
                 double low, double high)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t u = 0; u < padded; u++)
            put(t, row_of(t, m, r), (ptrdiff_t)u, u < n ? number_between(t, low, high) : 0);
}

/* ------------------------------------------------------------------------ one call */

static uint64_t ticks(void)
{
#if CYLSTM_X86
    return __builtin_ia32_rdtsc();
#else
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
#endif
}

static uint64_t fewest_ticks;

/* As the library does: in its floating-point mode. */
#define CALL(t, call) \
    do { \
        ready(t); \
        const uint32_t mode = cylstm_enter_float_mode(); \
        fewest_ticks = UINT64_MAX; \
        for (int run = 0; run < (bench ? BENCH_RUNS : 1); run++) { \
            const uint64_t start = ticks(); \
            call; \
            const uint64_t took = ticks() - start; \
            if (took < fewest_ticks) fewest_ticks = took; \
        } \
        cylstm_leave_float_mode(mode); \
    } while (0)

struct ending;
struct check {
    const char *name;
    void (*run)(const struct check *, struct trial *);
    const struct ending *ending; /* of a product */
};

/* ------------------------------------------------------------- the end of a product */

/* The sum of a gate of a unit, and how far the kernel's may be from it. */
struct sum {
    long double is, within;
};

/* What becomes of the sums of a product: `gates` of them make one unit. */
struct ending {
    size_t gates;
    int pads;     /* units that fill the last vector are computed too, from zeros */
    double grain; /* of rows and weights; 0: any fractions, which are summed with an error */
    int narrow;   /* each term meets three vectors of a panel */
    /* Place the operands, and set `finish`, and `columns`, padded as the kernel counts them. */
    void (*place)(struct trial *, struct cylstm_product *, size_t units);
    void (*judge)(struct trial *, const struct cylstm_product *, size_t row, size_t unit,
                  const struct sum *);
};

static size_t width_of(const struct trial *t) { return PANEL_VECTORS * t->kernels->lanes; }
static size_t panels_of(const struct trial *t, const struct cylstm_product *p)
{
    return (p->columns + width_of(t) - 1) / width_of(t);
}

/* Columns that a panel holds, in whole vectors. */
static size_t filled(const struct trial *t, const struct cylstm_product *p, size_t panel)
{
    return smaller(round_up(p->columns, t->kernels->lanes) - panel * width_of(t), width_of(t));
}

/* Where a gate of a unit stands among all columns. Gates alternate by vectors; in a last panel that
 * is not whole, each is as long as a fourth of what is left. */
static size_t column_of(const struct trial *t, const struct ending *e,
                        const struct cylstm_product *p, size_t gate, size_t unit)
{
    if (e->gates == 1) return unit;
    const size_t lanes = t->kernels->lanes, first = unit / lanes * width_of(t),
                 length = smaller(lanes, (p->columns - first) / e->gates);
    return first + gate * length + unit % lanes;
}

static ptrdiff_t in_panels(const struct trial *t, size_t column, ptrdiff_t to_next)
{
    return (ptrdiff_t)(column / width_of(t)) * to_next + (ptrdiff_t)(column % width_of(t));
}

/* --- stored to rows, or to a panel after the other */

static void place_store(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t width = width_of(t), last = (units - 1) / width;
    p->columns = units;
    if (chance(t, 3)) {
        const size_t stride = width + gap(t), panel = p->rows * stride + gap(t);
        p->out_panel = (ptrdiff_t)panel;
        p->out.stride = (ptrdiff_t)stride;
        p->out.base = guarded_reals(
            t, "out", p->rows ? last * panel + (p->rows - 1) * stride + units - last * width : 0);
    } else {
        p->out_panel = (ptrdiff_t)width;
        p->out = place(t, "out", p->rows, units);
    }
}

static void judge_store(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                        const struct sum *sum)
{
    expect(t, "out", row, unit, row_of(t, &p->out, row), in_panels(t, unit, p->out_panel), sum->is,
           sum->within);
}

/* --- the LSTM cell, forward and backward */

enum { I_GATE, F_GATE, G_GATE, O_GATE, C_STATE, LSTM_TAPE };

static long double sigmoid(long double x) { return 1 / (1 + expl(-x)); }

static void place_lstm(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = round_up(4 * units, t->kernels->lanes);
    p->finish = t->kernels->cell[CYLSTM_LSTM_MATH][0].forward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .unit_vectors = PANEL_VECTORS,
                                   .tape_vectors = LSTM_TAPE,
                                   .c = place(t, "c", p->rows, padded),
                                   .h = place(t, "h", p->rows, padded)};
    fill(t, &p->cell.c, p->rows, units, padded, -2, 2);
    if (below(t, 2)) p->cell.y = place(t, "y", p->rows, units);
    if (below(t, 2)) p->cell.tape = place(t, "tape", p->rows, LSTM_TAPE * units);
}

static void judge_lstm(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                       const struct sum *sum)
{
    const struct cylstm_cell *cell = &p->cell;
    const long double e = epsilon(t), tiny = smallest(t);
    const ptrdiff_t u = (ptrdiff_t)unit, H = (ptrdiff_t)cell->H;
    void *c_row = row_of(t, &cell->c, row);
    const long double c_prev = get(t, before(t, c_row), u);
    const long double gate[] = {sigmoid(sum[I_GATE].is), sigmoid(sum[F_GATE].is),
                                tanhl(sum[G_GATE].is), sigmoid(sum[O_GATE].is)};
    const long double kept = gate[F_GATE] * c_prev, new = gate[I_GATE] * gate[G_GATE],
                      c = kept + new, h = gate[O_GATE] * tanhl(c),
                      c_within = 8 * e * (fabsl(kept) + fabsl(new)) + 4 * tiny,
                      h_within = 8 * e * fabsl(h) + gate[O_GATE] * c_within + tiny;
    expect(t, "c", row, unit, c_row, u, c, c_within);
    expect(t, "h", row, unit, row_of(t, &cell->h, row), u, h, h_within);
    if (u >= H) return;
    if (cell->y.base) expect(t, "y", row, unit, row_of(t, &cell->y, row), u, h, h_within);
    if (!cell->tape.base) return;
    void *tape = row_of(t, &cell->tape, row);
    for (ptrdiff_t n = 0; n < 4; n++)
        expect(t, "tape", row, unit, tape, n * H + u, gate[n], 4 * e * fabsl(gate[n]) + tiny);
    expect(t, "tape", row, unit, tape, C_STATE * H + u, c, c_within);
}

static void place_lstm_back(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = units;
    p->finish = t->kernels->cell[CYLSTM_LSTM_MATH][0].backward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .tape_vectors = LSTM_TAPE,
                                   .tape = place(t, "tape", p->rows, LSTM_TAPE * units),
                                   .dc = place(t, "dc", p->rows, padded),
                                   .dgates = place(t, "dgates", p->rows, 4 * units)};
    fill(t, &p->cell.tape, p->rows, LSTM_TAPE * units, LSTM_TAPE * units, 0, 1);
    fill(t, &p->cell.dc, p->rows, units, padded, -2, 2);
    if (below(t, 2)) {
        p->cell.c_prev = place(t, "c_prev", p->rows, units);
        fill(t, &p->cell.c_prev, p->rows, units, units, -2, 2);
    }
    if (below(t, 2)) p->cell.h = place(t, "h", p->rows, padded);
}

static void judge_lstm_back(struct trial *t, const struct cylstm_product *p, size_t row,
                            size_t unit, const struct sum *sum)
{
    const struct cylstm_cell *cell = &p->cell;
    const long double e = epsilon(t), tiny = 4 * smallest(t), dh = sum->is;
    const ptrdiff_t u = (ptrdiff_t)unit, H = (ptrdiff_t)cell->H;
    const void *tape = row_of(t, &cell->tape, row);
    long double v[LSTM_TAPE];
    for (ptrdiff_t n = 0; n < LSTM_TAPE; n++) v[n] = u < H ? get(t, tape, n * H + u) : 0;
    const long double i = v[I_GATE], f = v[F_GATE], g = v[G_GATE], o = v[O_GATE],
                      tanh_c = tanhl(v[C_STATE]),
                      c_prev =
                          cell->c_prev.base && u < H ? get(t, row_of(t, &cell->c_prev, row), u) : 0;
    void *dc_row = row_of(t, &cell->dc, row);
    const long double dc_after = get(t, before(t, dc_row), u),
                      dc = dc_after + dh * o * (1 - tanh_c * tanh_c),
                      dc_within = 12 * e * (fabsl(dh * o) + fabsl(dc_after));
    const struct sum want[] = {
        {dc * g * i * (1 - i), dc_within * g * i * (1 - i)},
        {dc * c_prev * f * (1 - f), dc_within * fabsl(c_prev) * f * (1 - f)},
        {dc * i * (1 - g * g), dc_within * i * (1 - g * g) + 2 * e * fabsl(dc * i)},
        {dh * tanh_c * o * (1 - o), 8 * e * fabsl(dh * tanh_c * o * (1 - o))}};
    expect(t, "dc", row, unit, dc_row, u, dc * f, dc_within * f + e * fabsl(dc * f) + tiny);
    if (cell->h.base)
        expect(t, "h", row, unit, row_of(t, &cell->h, row), u, o * tanh_c,
               6 * e * fabsl(o * tanh_c) + tiny);
    for (ptrdiff_t n = 0; n < 4 && u < H; n++)
        expect(t, "dgates", row, unit, row_of(t, &cell->dgates, row), n * H + u, want[n].is,
               want[n].within + 4 * e * fabsl(want[n].is) + tiny);
}

/* --- the GRU cell, forward and backward */

enum { N_OF_X, R_GATE, Z_GATE, N_OF_H }; /* in a panel */

static void place_gru(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = round_up(4 * units, t->kernels->lanes);
    p->finish = t->kernels->cell[CYLSTM_GRU_MATH][0].forward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .unit_vectors = PANEL_VECTORS,
                                   .tape_vectors = 4,
                                   .h_prev = place(t, "h_prev", p->rows, padded),
                                   .h = place(t, "h", p->rows, padded)};
    fill(t, &p->cell.h_prev, p->rows, units, padded, -2, 2);
    if (below(t, 2)) p->cell.y = place(t, "y", p->rows, units);
    if (below(t, 2)) p->cell.tape = place(t, "tape", p->rows, 4 * units);
}

static void judge_gru(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                      const struct sum *sum)
{
    const struct cylstm_cell *cell = &p->cell;
    const long double e = epsilon(t), tiny = smallest(t);
    const ptrdiff_t u = (ptrdiff_t)unit, H = (ptrdiff_t)cell->H;
    const long double r = sigmoid(sum[R_GATE].is), z = sigmoid(sum[Z_GATE].is), q = sum[N_OF_H].is,
                      n = tanhl(sum[N_OF_X].is + r * q),
                      h_prev = get(t, row_of(t, &cell->h_prev, row), u),
                      h = (1 - z) * n + z * h_prev,
                      n_within =
                          4 * e * fabsl(n) + 8 * e * (fabsl(sum[N_OF_X].is) + fabsl(r * q)) + tiny,
                      h_within = n_within + 8 * e * (fabsl(n) + fabsl(h_prev)) + tiny;
    expect(t, "h", row, unit, row_of(t, &cell->h, row), u, h, h_within);
    if (u >= H) return;
    if (cell->y.base) expect(t, "y", row, unit, row_of(t, &cell->y, row), u, h, h_within);
    if (!cell->tape.base) return;
    void *tape = row_of(t, &cell->tape, row);
    expect(t, "tape", row, unit, tape, u, r, 4 * e * r + tiny);
    expect(t, "tape", row, unit, tape, H + u, z, 4 * e * z + tiny);
    expect(t, "tape", row, unit, tape, 2 * H + u, n, n_within);
    expect(t, "tape", row, unit, tape, 3 * H + u, q, 0);
}

static void place_gru_back(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes);
    p->columns = units;
    p->finish = t->kernels->cell[CYLSTM_GRU_MATH][0].backward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .tape_vectors = 4,
                                   .tape = place(t, "tape", p->rows, 4 * units),
                                   .dh_prev = place(t, "dh_prev", p->rows, padded),
                                   .dgates = place(t, "dgates", p->rows, 4 * units)};
    fill(t, &p->cell.tape, p->rows, 4 * units, 4 * units, 0, 1);
    if (!below(t, 2)) return;
    p->cell.h_prev = place(t, "h_prev", p->rows, units);
    fill(t, &p->cell.h_prev, p->rows, units, units, -2, 2);
}

static void judge_gru_back(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                           const struct sum *sum)
{
    const struct cylstm_cell *cell = &p->cell;
    const long double e = epsilon(t), tiny = 4 * smallest(t), dh = sum->is;
    const ptrdiff_t u = (ptrdiff_t)unit, H = (ptrdiff_t)cell->H;
    const void *tape = row_of(t, &cell->tape, row);
    long double v[4] = {0, 0, 0, 0}, h_prev = 0;
    for (ptrdiff_t n = 0; n < 4 && u < H; n++) v[n] = get(t, tape, n * H + u);
    if (cell->h_prev.base && u < H) h_prev = get(t, row_of(t, &cell->h_prev, row), u);
    const long double r = v[0], z = v[1], n = v[2], q = v[3], da_n = dh * (1 - z) * (1 - n * n);
    const long double want[] = {da_n * q * r * (1 - r), dh * (h_prev - n) * z * (1 - z), da_n,
                                da_n * r};
    expect(t, "dh_prev", row, unit, row_of(t, &cell->dh_prev, row), u, dh * z,
           e * fabsl(dh * z) + tiny);
    for (ptrdiff_t g = 0; g < 4 && u < H; g++)
        expect(t, "dgates", row, unit, row_of(t, &cell->dgates, row), g * H + u, want[g],
               8 * e * (fabsl(want[g]) + fabsl(dh) * (1 + fabsl(h_prev))) + tiny);
}

/* --- the plain cell: tanh, and by its options ReLU */

static const struct cylstm_options relu = {.function = {{FUNCTION_RELU, 0, 0}}};

static void place_rnn(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t padded = round_up(units, t->kernels->lanes), any = below(t, 2);
    p->columns = padded;
    p->finish = t->kernels->cell[CYLSTM_RNN_MATH][any].forward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .unit_vectors = 1,
                                   .tape_vectors = 1,
                                   .options = any ? &relu : NULL,
                                   .h = place(t, "h", p->rows, padded)};
    if (below(t, 2)) p->cell.y = place(t, "y", p->rows, units);
    if (below(t, 2)) p->cell.tape = place(t, "tape", p->rows, units);
}

static void judge_rnn(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                      const struct sum *sum)
{
    const struct cylstm_cell *cell = &p->cell;
    const ptrdiff_t u = (ptrdiff_t)unit, H = (ptrdiff_t)cell->H;
    const long double h = !cell->options ? tanhl(sum->is)
                          : sum->is > 0  ? sum->is
                                         : 0,
                      within = cell->options ? 0 : 4 * epsilon(t) * fabsl(h) + smallest(t);
    expect(t, "h", row, unit, row_of(t, &cell->h, row), u, h, within);
    if (u >= H) return;
    if (cell->y.base) expect(t, "y", row, unit, row_of(t, &cell->y, row), u, h, within);
    if (cell->tape.base) expect(t, "tape", row, unit, row_of(t, &cell->tape, row), u, h, within);
}

static void place_rnn_back(struct trial *t, struct cylstm_product *p, size_t units)
{
    const size_t any = below(t, 2);
    p->columns = units;
    p->finish = t->kernels->cell[CYLSTM_RNN_MATH][any].backward;
    p->cell = (struct cylstm_cell){.H = units,
                                   .tape_vectors = 1,
                                   .options = any ? &relu : NULL,
                                   .tape = place(t, "tape", p->rows, units),
                                   .dgates = place(t, "dgates", p->rows, units)};
    fill(t, &p->cell.tape, p->rows, units, units, 0, 1);
    for (size_t r = 0; r < p->rows; r += 3) put(t, row_of(t, &p->cell.tape, r), 0, 0);
}

static void judge_rnn_back(struct trial *t, const struct cylstm_product *p, size_t row, size_t unit,
                           const struct sum *sum)
{
    const struct cylstm_cell *cell = &p->cell;
    const ptrdiff_t u = (ptrdiff_t)unit;
    const long double h = get(t, row_of(t, &cell->tape, row), u), dh = sum->is,
                      da = dh * (!cell->options ? 1 - h * h
                                 : h > 0        ? 1
                                                : 0);
    expect(t, "dgates", row, unit, row_of(t, &cell->dgates, row), u, da,
           4 * epsilon(t) * fabsl(dh) + smallest(t));
}

static const struct ending store = {1, 0, 0, 0, place_store, judge_store},
                           store_exactly = {1, 0, 1, 0, place_store, judge_store},
                           store_narrow = {1, 0, 1, 1, place_store, judge_store},
                           lstm = {4, 1, 0.125, 0, place_lstm, judge_lstm},
                           lstm_back = {1, 1, 0.125, 0, place_lstm_back, judge_lstm_back},
                           gru = {4, 1, 0.125, 0, place_gru, judge_gru},
                           gru_back = {1, 1, 0.125, 0, place_gru_back, judge_gru_back},
                           rnn = {1, 1, 0.125, 0, place_rnn, judge_rnn},
                           rnn_back = {1, 0, 0.125, 0, place_rnn_back, judge_rnn_back};

/* --------------------------------------------------------------------- the product */

/* Memory for (major, minor) rows of the columns of a panel, of which the last holds fewer. */
static void *place_panels(struct trial *t, const char *name, const struct cylstm_product *p,
                          size_t panel_stride, size_t rows, size_t row_stride)
{
    const size_t last = panels_of(t, p) - 1;
    return guarded_reals(t, name,
                         last * panel_stride + (rows - 1) * row_stride + filled(t, p, last));
}

/* Numbers in the columns of a row of panels. Columns that only pad hold zeros where the ending
 * computes them too, and else must not matter. */
static void fill_panels(struct trial *t, const struct ending *e, const struct cylstm_product *p,
                        size_t units, void *row, ptrdiff_t panel_stride)
{
    for (size_t c = 0; e->pads && c < round_up(p->columns, t->kernels->lanes); c++)
        put(t, row, in_panels(t, c, panel_stride), 0);
    for (size_t gate = 0; gate < e->gates; gate++)
        for (size_t u = 0; u < units; u++)
            put(t, row, in_panels(t, column_of(t, e, p, gate, u), panel_stride),
                number(t, e->grain));
}

/* Weights: packed, panel after panel, or in rows as long as all columns. */
static void place_terms(struct trial *t, const struct ending *e, struct cylstm_product *p,
                        size_t units, const size_t K[2])
{
    const size_t width = width_of(t), longer = K[0] > K[1] ? K[0] : K[1],
                 met = e->narrow ? NARROW_VECTORS * t->kernels->lanes : width;
    const int packed = e->narrow || !chance(t, 3);
    const size_t w_k = (packed ? met : round_up(p->columns, t->kernels->lanes)) + gap(t);
    p->w_k = (ptrdiff_t)w_k;
    p->w_panel = packed ? (ptrdiff_t)(longer * w_k + gap(t)) : (ptrdiff_t)width;
    for (size_t n = 0; n < 2; n++) {
        struct cylstm_term *term = &p->term[n];
        if (!K[n]) continue;
        /* columns of a matrix: here and there so far apart that the kernel asks for them ahead */
        const size_t step = t->seed % 16 == 5 && !bench ? 1025 : chance(t, 4) ? 1 + below(t, 9) : 1;
        term->K = K[n];
        term->a_k = (ptrdiff_t)step;
        term->a = place(t, n ? "a of term 1" : "a of term 0", p->rows, (K[n] - 1) * step + 1);
        for (size_t r = 0; r < p->rows; r++)
            for (size_t k = 0; k < K[n]; k++)
                put(t, row_of(t, &term->a, r), (ptrdiff_t)(k * step), number(t, e->grain));
        const char *name = n ? "w of term 1" : "w of term 0";
        if (e->narrow) {
            const size_t all = (panels_of(t, p) - 1) * (size_t)p->w_panel + (K[n] - 1) * w_k + met;
            void *w = guarded_reals(t, name, all);
            for (size_t c = 0; c < all; c++) put(t, w, (ptrdiff_t)c, number(t, e->grain));
            term->w = w;
            continue;
        }
        void *w = place_panels(t, name, p, (size_t)p->w_panel, K[n], w_k);
        for (size_t k = 0; k < K[n]; k++)
            fill_panels(t, e, p, units, real_at(t, w, (ptrdiff_t)(k * w_k)), p->w_panel);
        term->w = w;
    }
}

/* What sums start from: the same for all rows, or sums of each row, panel by panel or in rows. */
static void place_init(struct trial *t, const struct ending *e, struct cylstm_product *p,
                       size_t units)
{
    const size_t style = size_between(t, 0, 2, 0),
                 row =
                     (style == 2 ? round_up(p->columns, t->kernels->lanes) : width_of(t)) + gap(t),
                 rows = style && p->rows ? p->rows : 1;
    p->init_row = style ? (ptrdiff_t)row : 0;
    p->init_panel = style == 2 ? (ptrdiff_t)width_of(t) : (ptrdiff_t)(rows * row + gap(t));
    void *init = place_panels(t, "init", p, (size_t)p->init_panel, rows, row);
    for (size_t r = 0; r < rows; r++)
        fill_panels(t, e, p, units, real_at(t, init, (ptrdiff_t)(r * row)), p->init_panel);
    p->init = init;
}

static void place_addend(struct trial *t, const struct ending *e, struct cylstm_product *p,
                         size_t units)
{
    if (!chance(t, 3)) return;
    p->addend = place(t, "addend", p->rows, p->columns);
    for (size_t r = 0; r < p->rows; r++) {
        void *row = row_of(t, &p->addend, r);
        for (size_t c = 0; e->pads && c < p->columns; c++) put(t, row, (ptrdiff_t)c, 0);
        for (size_t gate = 0; gate < e->gates; gate++)
            for (size_t u = 0; u < units; u++)
                put(t, row, (ptrdiff_t)column_of(t, e, p, gate, u), number(t, e->grain));
    }
}

/* init + both terms + addend, from what `init` is. */
static struct sum sum_of(struct trial *t, const struct cylstm_product *p, size_t row, size_t column,
                         double init)
{
    long double sum = init, size = fabs(init);
    size_t links = 2;
    for (size_t n = 0; n < 2; n++) {
        const struct cylstm_term *term = &p->term[n];
        const void *a = term->K ? row_of(t, &term->a, row) : NULL;
        const size_t VL = t->kernels->lanes, vector = column % width_of(t) / VL;
        if (p->narrow && vector == (n ? 0 : NARROW_VECTORS)) continue; /* the term has none of it */
        const ptrdiff_t at = in_panels(t, column, p->w_panel) - (ptrdiff_t)(p->narrow ? n * VL : 0);
        for (size_t k = 0; k < term->K; k++) {
            const long double link = (long double)get(t, a, (ptrdiff_t)k * term->a_k) *
                                     get(t, term->w, at + (ptrdiff_t)k * p->w_k);
            sum += link;
            size += fabsl(link);
        }
        links += term->K;
    }
    if (p->addend.base) {
        const double add = get(t, row_of(t, &p->addend, row), (ptrdiff_t)column);
        sum += add;
        size += fabs(add);
    }
    return (struct sum){sum, (long double)links * epsilon(t) * size};
}

/* Judge the units of panels [begin, end) in rows [row, row_end). The sums started from `init`. */
static void judge_units(struct trial *t, const struct ending *e, const struct cylstm_product *p,
                        size_t units, size_t row, size_t row_end)
{
    const size_t all = e->pads ? round_up(units, t->kernels->lanes) : units;
    for (; row < row_end && !bench; row++)
        for (size_t u = 0; u < all; u++) {
            struct sum sum[MAX_GATES] = {{0, 0}};
            const size_t panel = e->gates == 1 ? u / width_of(t) : u / t->kernels->lanes;
            if (panel < p->panel_begin || panel >= p->panel_end) continue;
            for (size_t gate = 0; gate < e->gates && u < units; gate++) {
                const size_t column = column_of(t, e, p, gate, u);
                const ptrdiff_t at = in_panels(t, column, p->init_panel);
                sum[gate] =
                    sum_of(t, p, row, column, get(t, p->init, at + (ptrdiff_t)row * p->init_row));
                if (e->grain != 0) sum[gate].within = 0;
            }
            e->judge(t, p, row, u, sum);
        }
}

/* Some sizes come in some trials only, as they take time: rows that do not fit L2 with a K for which
 * panels take turns, and a result that does not. */
static void check_product(const struct check *check, struct trial *t)
{
    const struct ending *e = check->ending;
    const int long_K = t->seed % 64 == 17 && e->gates == 1 && !bench,
              large = t->seed % 64 == 41 && e->gates == 1 && !bench;
    size_t rows = size_between(t, 0, 26, t->seed % 2 ? 1 : 32), units = size_between(t, 1, 75, 64),
           K[2] = {size_between(t, 0, 40, 64), size_between(t, 0, 40, 64)};
    for (int n = 0; n < 2; n++) K[n] = chance(t, 5) ? 0 : K[n];
    if (chance(t, 5)) rows = 1;
    if (long_K) rows += 100, units += 90, K[0] += 1000;
    if (large) rows += 240, units += 410, K[0] %= 3, K[1] %= 3;
    if (e->narrow) units = round_up(units, width_of(t)), record = NULL;
    struct cylstm_product p = {.rows = rows, .descending = (int)below(t, 2), .narrow = e->narrow};
    e->place(t, &p, units);
    place_terms(t, e, &p, units, K);
    place_init(t, e, &p, units);
    place_addend(t, e, &p, units);
    p.panel_end = panels_of(t, &p);
    if (chance(t, 2)) { /* a part of the panels, other columns on each set */
        p.panel_begin = below(t, p.panel_end + 1);
        p.panel_end = p.panel_begin + below(t, p.panel_end - p.panel_begin + 1);
        record = NULL;
    }
    describe(t,
             "%zu rows, %zu units, K %zu + %zu, panels %zu to %zu of %zu%s, a_k %td, w_panel %td, "
             "w_k %td, init_row %td%s%s%s%s",
             rows, units, K[0], K[1], p.panel_begin, p.panel_end, panels_of(t, &p),
             p.descending ? ", descending" : "", p.term[0].a_k, p.w_panel, p.w_k, p.init_row,
             p.addend.base ? ", addend" : "", p.cell.tape.base ? ", tape" : "",
             p.cell.y.base ? ", y" : "", p.cell.h.base ? ", h" : "");
    CALL(t, t->kernels->product(&p));
    judge_units(t, e, &p, units, 0, rows);
}

/* The end alone, of sums that came from elsewhere: they are taken for `init`. */
static void check_finish(const struct check *check, struct trial *t)
{
    const struct ending *e = check->ending;
    const size_t all_rows = size_between(t, 1, 26, t->seed % 2 ? 1 : 32),
                 units = size_between(t, 1, 75, 64);
    struct cylstm_product p = {.rows = all_rows};
    e->place(t, &p, units);
    place_addend(t, e, &p, units);
    const size_t panel = below(t, panels_of(t, &p)), row = bench ? 0 : below(t, all_rows),
                 rows = size_between(t, 1, all_rows - row, all_rows), width = width_of(t);
    void *sums = guarded_reals(t, "sums", rows * width),
         *given = guarded_reals(t, "copy of sums", all_rows * width);
    memset(given, 0, all_rows * width * real_size(t)); /* as are all columns that only pad */
    for (size_t r = row; r < row + rows; r++)
        for (size_t gate = 0; gate < e->gates; gate++)
            for (size_t u = 0; u < units; u++) {
                const size_t column = column_of(t, e, &p, gate, u);
                if (column / width == panel)
                    put(t, given, (ptrdiff_t)(r * width + column % width),
                        number(t, e->grain) * number(t, 1));
            }
    memcpy(sums, real_at(t, given, (ptrdiff_t)(row * width)), rows * width * real_size(t));
    block_of(t, sums)->scratch = 1;
    p.init = given;
    p.init_row = (ptrdiff_t)width;
    p.panel_begin = panel;
    p.panel_end = panel + 1;
    record = NULL;
    describe(t, "rows %zu to %zu of %zu, %zu units, panel %zu of %zu%s", row, row + rows, all_rows,
             units, panel, panels_of(t, &p), p.addend.base ? ", addend" : "");
    CALL(t, t->kernels->finish(&p, panel, row, rows, sums));
    judge_units(t, e, &p, units, row, row + rows);
}

/* ------------------------------------------------------- weights of fewer bits than a real */

/* Store a weight: one of the values of k that share a lane. */
static void put_compact(const struct cylstm_compact_kernels *k, unsigned char *lane, size_t n,
                        int q)
{
    if (k->quantize) {
        lane[n] = (unsigned char)q;
        return;
    }
    const float value = (float)q; /* of 7 bits, all of which bfloat16 keeps */
    uint32_t bits, both;
    memcpy(&bits, &value, sizeof bits);
    memcpy(&both, lane, sizeof both);
    both = n ? (both & 0xffff) | (bits & 0xffff0000) : (both & 0xffff0000) | bits >> 16;
    memcpy(lane, &both, sizeof both);
}

/* sums += both terms, of some rows of one panel, or of a lone row of as many as go together. All
 * numbers are whole and scales powers of two, so that the sums are exact: each row holds a 127,
 * which makes its scale 1. */
static void check_compact(struct trial *t, const struct cylstm_compact_kernels *k)
{
    if (!k) return; /* none of this type */
    enum { WORD = 4 };
    const size_t group = k->quantize ? INT8_GROUP : BF16_GROUP, VL = k->lanes,
                 line = PANEL_VECTORS * VL * WORD, extra = k->quantize ? INT8_EXTRA_ROWS : 0,
                 rows = size_between(t, 1, k->tile_rows, k->tile_rows),
                 row = size_between(t, 0, 3, 0),
                 panels = rows == 1 ? size_between(t, 1, k->row_panels, k->row_panels) : 1,
                 panel = size_between(t, 0, 2, 0), columns = panels * width_of(t);
    struct cylstm_product p = {.compact = k};
    struct cylstm_codes codes[2] = {{0}};
    size_t K[2], longer = 0;
    for (int n = 0; n < 2; n++) {
        K[n] = chance(t, 5) ? 0 : size_between(t, 1, 40, 64);
        longer = K[n] > longer ? K[n] : longer;
    }
    p.w_panel = (ptrdiff_t)((round_up(longer, group) / group + extra) * line + gap(t) * WORD);
    for (int n = 0; n < 2; n++) {
        struct cylstm_term *term = &p.term[n];
        if (!K[n]) continue;
        const size_t groups = round_up(K[n], group) / group, all = row + rows;
        term->K = K[n];
        term->a_k = 1;
        term->a = place(t, "a", all, K[n]);
        for (size_t r = 0; r < all; r++)
            for (size_t j = 0; j < K[n]; j++)
                put(t, row_of(t, &term->a, r), (ptrdiff_t)j,
                    j == r % K[n] ? 127 : (double)below(t, 255) - 127);
        unsigned char *w = guarded(t, "w",
                                   (panel + panels - 1) * (size_t)p.w_panel +
                                       (groups + extra) * line);
        term->w = w;
        for (size_t c = 0; c < columns; c++) {
            unsigned char *lane =
                w + (panel + c / width_of(t)) * (size_t)p.w_panel + c % width_of(t) * WORD;
            int32_t sum = 0;
            for (size_t j = 0; j < groups * group; j++) {
                const int q = j < K[n] ? (int)below(t, 255) - 127 : 0;
                put_compact(k, lane + j / group * line, j % group, q);
                sum += q;
            }
            if (!k->quantize) continue;
            const float scale = (float)ldexp(1, -(int)below(t, 3));
            sum *= -128;
            memcpy(lane + groups * line, &scale, sizeof scale);
            memcpy(lane + (groups + 1) * line, &sum, sizeof sum);
        }
        if (!k->quantize) continue;
        codes[n] = (struct cylstm_codes){guarded(t, "codes", all * groups * group), groups * group,
                                         guarded(t, "scales", all * sizeof(float))};
        for (size_t r = 0; r < all; r++)
            codes[n].scales[r] =
                k->quantize(row_of(t, &term->a, r), K[n], codes[n].codes + r * groups * group);
    }
    float *sums = guarded(t, "sums", (rows > 1 ? rows : panels) * line);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < columns; c++) sums[r * width_of(t) + c] = (float)number(t, 1);
    describe(t, "%s: %zu rows from %zu, %zu panels from %zu, K %zu + %zu", k->name, rows, row, panels,
             panel, K[0], K[1]);
    CALL(t, k->add_terms(&p, codes, panel, panels, row, rows, sums));
    for (size_t r = 0; r < rows && !bench; r++)
        for (size_t c = 0; c < columns; c++) {
            const ptrdiff_t at = (ptrdiff_t)(r * width_of(t) + c);
            long double want = get(t, before(t, sums), at);
            for (int n = 0; n < 2; n++) {
                const unsigned char *lane = (const unsigned char *)p.term[n].w +
                                            (panel + c / width_of(t)) * (size_t)p.w_panel +
                                            c % width_of(t) * WORD;
                long double sum = 0;
                float scale = 1;
                for (size_t j = 0; j < K[n]; j++) {
                    uint32_t both;
                    memcpy(&both, lane + j / group * line, sizeof both);
                    both = j % group ? both & 0xffff0000 : both << 16;
                    float value;
                    memcpy(&value, &both, sizeof value);
                    if (k->quantize) value = (float)(signed char)lane[j / group * line + j % group];
                    sum +=
                        get(t, row_of(t, &p.term[n].a, row + r), (ptrdiff_t)j) * (long double)value;
                }
                if (k->quantize && K[n])
                    memcpy(&scale, lane + round_up(K[n], group) / group * line, sizeof scale);
                want += sum * scale;
            }
            expect(t, "sums", r, c, sums, at, want, 0);
        }
}

static void check_bf16(const struct check *check, struct trial *t)
{
    (void)check;
    check_compact(t, t->kernels->bf16);
}

/* Every way of multiplying int8 that serves a set, by turns. */
static void check_int8(const struct check *check, struct trial *t)
{
    (void)check;
    const struct cylstm_compact_kernels *ways[MAX_SETS];
    size_t count = 0;
    for (size_t n = 0; n < cylstm_int8_count() && count < MAX_SETS; n++)
        if ((ways[count] = cylstm_find_int8(cylstm_int8_name(n), t->kernels))) count++;
    check_compact(t, count ? ways[t->seed % count] : NULL);
}

/* ----------------------------------------------------------------- packing and dropout */

static void check_transpose(const struct check *check, struct trial *t)
{
    (void)check;
    const size_t VL = t->kernels->lanes, K = size_between(t, 0, 80, 64),
                 width = chance(t, 3) ? NARROW_VECTORS * VL : width_of(t),
                 n = bench || chance(t, 2) ? VL : below(t, VL + 1),
                 lanes = bench || chance(t, 2) ? VL : n + below(t, VL - n + 1), stride = K + gap(t);
    void *rows = guarded_reals(t, "rows", n && K ? (n - 1) * stride + K : 0),
         *out = guarded_reals(t, "out", K ? (K - 1) * width + lanes : 0);
    for (size_t l = 0; l < n; l++)
        for (size_t k = 0; k < K; k++) put(t, rows, (ptrdiff_t)(l * stride + k), fraction(t));
    describe(t, "%zu rows of %zu, %zu apart, to %zu lanes", n, K, stride, lanes);
    CALL(t, t->kernels->transpose(rows, stride, n, K, lanes, out, width));
    for (size_t k = 0; k < K; k++)
        for (size_t l = 0; l < lanes; l++)
            expect(t, "out", k, l, out, (ptrdiff_t)(k * width + l),
                   l < n ? get(t, rows, (ptrdiff_t)(l * stride + k)) : 0, 0);
}

static void check_sum_biases(const struct check *check, struct trial *t)
{
    (void)check;
    const size_t VL = t->kernels->lanes, n = bench ? VL : below(t, VL + 1);
    void *a = guarded_reals(t, "b_ih", n), *b = guarded_reals(t, "b_hh", n),
         *out = guarded_reals(t, "out", n);
    for (size_t l = 0; l < n; l++) {
        put(t, a, (ptrdiff_t)l, number(t, 0.25));
        put(t, b, (ptrdiff_t)l, number(t, 0.25));
    }
    describe(t, "%zu pairs", n);
    CALL(t, t->kernels->sum_biases(a, b, n, out));
    for (size_t l = 0; l < n; l++)
        expect(t, "out", 0, l, out, (ptrdiff_t)l, get(t, a, (ptrdiff_t)l) + get(t, b, (ptrdiff_t)l),
               0);
}

/* The finaliser of SplitMix64, as docs/numerics.md names it. */
static uint64_t hash(uint64_t z)
{
    z += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void check_dropout(const struct check *check, struct trial *t)
{
    (void)check;
    const size_t n = size_between(t, 0, 200, 256);
    const double p = chance(t, 6) ? 0 : chance(t, 6) ? 1 : number_between(t, 0, 1);
    const struct cylstm_dropout drop = {p, draw(t)};
    const uint64_t index = draw(t);
    void *in = guarded_reals(t, "in", n), *out = chance(t, 2) ? in : guarded_reals(t, "out", n);
    for (size_t k = 0; k < n; k++) put(t, in, (ptrdiff_t)k, fraction(t));
    describe(t, "%zu reals, p = %g%s", n, p, in == out ? ", in place" : "");
    CALL(t, t->kernels->dropout(&drop, index, n, in, out));
    for (size_t k = 0; k < n; k++) {
        const int kept = (double)(hash(drop.key + hash(index + k)) >> 32) >= p * 0x1p32;
        const long double x = get(t, before(t, in), (ptrdiff_t)k), y = kept ? x / (1 - p) : 0;
        expect(t, "out", 0, k, out, (ptrdiff_t)k, y, epsilon(t) * fabsl(y));
    }
}

/* -------------------------------------------------------------------------- arrays */

static void *numbers(struct trial *t, const char *name, size_t n, double low, double high)
{
    void *array = guarded_reals(t, name, n);
    for (size_t k = 0; k < n; k++)
        put(t, array, (ptrdiff_t)k, chance(t, 20) ? 0 : number_between(t, low, high));
    return array;
}

static void check_activation(struct trial *t, void (*kernel)(const void *, void *, size_t),
                             long double (*truth)(long double))
{
    const size_t n = size_between(t, 0, 100, 256);
    const double width = bench ? 4 : ldexp(1, (int)below(t, 9));
    void *x = numbers(t, "x", n, -width, width), *y = chance(t, 2) ? x : guarded_reals(t, "y", n);
    describe(t, "%zu reals within %g%s", n, width, x == y ? ", in place" : "");
    CALL(t, kernel(x, y, n));
    for (size_t k = 0; k < n; k++) {
        const long double want = truth(get(t, before(t, x), (ptrdiff_t)k));
        expect(t, "y", 0, k, y, (ptrdiff_t)k, want, 4 * epsilon(t) * fabsl(want) + smallest(t));
    }
}

static void check_sigmoid(const struct check *check, struct trial *t)
{
    (void)check;
    check_activation(t, t->kernels->sigmoid, sigmoid);
}

static void check_tanh(const struct check *check, struct trial *t)
{
    (void)check;
    check_activation(t, t->kernels->tanh, tanhl);
}

static void check_adam(const struct check *check, struct trial *t)
{
    (void)check;
    const size_t n = size_between(t, 0, 100, 256);
    const struct cylstm_adam_terms s = {.keep = number_between(t, 0.9, 1),
                                        .penalty = chance(t, 2) ? 0 : number_between(t, 0, 0.1),
                                        .beta1 = number_between(t, 0, 1),
                                        .beta2 = number_between(t, 0, 1),
                                        .step_size = number_between(t, 0, 0.1),
                                        .eps = chance(t, 2) ? 0 : number_between(t, 0, 1e-4)};
    void *w = numbers(t, "weights", n, -1, 1), *g = numbers(t, "grads", n, -1, 1),
         *m = numbers(t, "mean", n, -1, 1), *v = numbers(t, "square", n, 0, 1),
         *out = chance(t, 2) ? w : guarded_reals(t, "out", n),
         *m_out = chance(t, 2) ? m : guarded_reals(t, "mean_out", n),
         *v_out = chance(t, 2) ? v : guarded_reals(t, "square_out", n);
    record = NULL; /* the portable square root is another */
    describe(t, "%zu weights%s, penalty %g, eps %g", n, out == w ? ", in place" : "", s.penalty,
             s.eps);
    const struct cylstm_update update = {w, g, {m, v}, out, {m_out, v_out}};
    CALL(t, t->kernels->adam(&s, &update, n));
    for (size_t k = 0; k < n; k++) {
        const ptrdiff_t at = (ptrdiff_t)k;
        const long double e = epsilon(t), w_0 = get(t, before(t, w), at), b1 = s.beta1,
                          b2 = s.beta2, m_0 = get(t, before(t, m), at),
                          v_0 = get(t, before(t, v), at);
        const long double g_1 = get(t, g, at) + s.penalty * w_0,
                          g_in = s.penalty != 0 ? 2 * e * (fabs(get(t, g, at)) + fabsl(w_0)) : 0;
        const long double m_1 = b1 * m_0 + (1 - b1) * g_1,
                          m_in = 3 * e * (fabsl(m_0) + fabsl(g_1)) + g_in + smallest(t);
        const long double v_1 = b2 * v_0 + (1 - b2) * g_1 * g_1,
                          v_in = 5 * e * v_1 + 2 * fabsl(g_1) * g_in + smallest(t);
        const long double root = sqrtl(fmaxl(v_1, smallest(t))), under = root + s.eps,
                          under_in = v_in / root + 4 * e * under, step = m_1 / under,
                          step_in = (m_in + fabsl(step) * under_in) / under + e * fabsl(step);
        expect(t, "mean", 0, k, m_out, at, m_1, m_in);
        expect(t, "square", 0, k, v_out, at, v_1, v_in);
        expect(t, "out", 0, k, out, at, s.keep * w_0 - s.step_size * step,
               3 * e * (fabsl(w_0) + s.step_size * fabsl(step)) + s.step_size * step_in);
    }
}

static void check_sgd(const struct check *check, struct trial *t)
{
    (void)check;
    const size_t n = size_between(t, 0, 100, 256);
    const int first = chance(t, 4), has_buffer = bench || chance(t, 2);
    const struct cylstm_sgd_terms s = {.penalty = chance(t, 2) ? 0 : number_between(t, 0, 0.1),
                                       .momentum = has_buffer ? number_between(t, 0, 1) : 0,
                                       .undampened = number_between(t, 0, 1),
                                       .lr = number_between(t, 0, 0.5),
                                       .nesterov = has_buffer && chance(t, 2),
                                       .first = first};
    void *w = numbers(t, "weights", n, -1, 1), *g = numbers(t, "grads", n, -1, 1), *b = NULL;
    if (has_buffer) b = first ? guarded_reals(t, "buffer", n) : numbers(t, "buffer", n, -1, 1);
    void *out = chance(t, 2) ? w : guarded_reals(t, "out", n),
         *b_out = !b || chance(t, 2) ? b : guarded_reals(t, "buffer_out", n);
    describe(t, "%zu weights%s%s%s%s", n, out == w ? ", in place" : "", b ? ", momentum" : "",
             first ? ", first" : "", s.nesterov ? ", Nesterov" : "");
    const struct cylstm_update update = {w, g, {b, NULL}, out, {b_out, NULL}};
    CALL(t, t->kernels->sgd(&s, &update, n));
    for (size_t k = 0; k < n; k++) {
        const ptrdiff_t at = (ptrdiff_t)k;
        const long double e = epsilon(t), w_0 = get(t, before(t, w), at);
        long double step = get(t, g, at) + s.penalty * w_0,
                    step_in = 2 * e * (fabs(get(t, g, at)) + fabsl(w_0)) + smallest(t);
        if (b) {
            const long double g_1 = step, b_0 = first ? 0 : get(t, before(t, b), at),
                              b_1 = first ? g_1 : s.momentum * b_0 + s.undampened * g_1;
            step = s.nesterov ? g_1 + s.momentum * b_1 : b_1;
            step_in = 2 * step_in + 6 * e * (fabsl(b_0) + fabsl(g_1));
            expect(t, "buffer", 0, k, b_out, at, b_1, step_in);
        }
        expect(t, "out", 0, k, out, at, w_0 - s.lr * step,
               2 * e * (fabsl(w_0) + s.lr * fabsl(step)) + s.lr * step_in);
    }
}

/* ------------------------------------------------------------------------ all of them */

static const struct check checks[] = {
    {"product", check_product, &store_exactly},
    {"product_rounded", check_product, &store},
    {"product_narrow", check_product, &store_narrow},
    {"product_lstm", check_product, &lstm},
    {"product_lstm_back", check_product, &lstm_back},
    {"product_gru", check_product, &gru},
    {"product_gru_back", check_product, &gru_back},
    {"product_rnn", check_product, &rnn},
    {"product_rnn_back", check_product, &rnn_back},
    {"finish", check_finish, &store_exactly},
    {"finish_lstm", check_finish, &lstm},
    {"finish_lstm_back", check_finish, &lstm_back},
    {"finish_gru", check_finish, &gru},
    {"finish_gru_back", check_finish, &gru_back},
    {"finish_rnn", check_finish, &rnn},
    {"finish_rnn_back", check_finish, &rnn_back},
    {"bf16", check_bf16, NULL},
    {"int8", check_int8, NULL},
    {"transpose", check_transpose, NULL},
    {"sum_biases", check_sum_biases, NULL},
    {"dropout", check_dropout, NULL},
    {"adam", check_adam, NULL},
    {"sgd", check_sgd, NULL},
    {"sigmoid", check_sigmoid, NULL},
    {"tanh", check_tanh, NULL},
};
enum { CHECKS = sizeof checks / sizeof checks[0] };

/* One trial of a check on one set. Returns whether it failed. */
static int run(const struct check *check, const struct cylstm_kernels *kernels, uint64_t seed)
{
    int failed = 0;
    record = &records[is_fused(kernels)];
    for (int at_end = 1; at_end >= 0 && !failed; at_end--) {
        struct trial t = {.kernels = kernels, .seed = seed, .state = seed, .at_end = at_end};
        snprintf(t.title, sizeof t.title, "%s f%d: --seed %llu --trials 1 --only %s --isa %s",
                 kernels->isa, kernels->bits, (unsigned long long)seed, check->name, kernels->isa);
        watch(&t);
        if (record) recorded = 0;
        check->run(check, &t);
        if (!bench) untouched(&t);
        if (record && !record->isa) {
            record->isa = kernels->isa;
            record->count = recorded;
        }
        if (bench && !at_end) /* masked lanes beyond the end take long where nothing is mapped */
            printf("%-18s %-7s f%d %8llu  %s\n", check->name, kernels->isa, kernels->bits,
                   (unsigned long long)fewest_ticks, t.shape);
        failed = t.failed;
        release(&t);
    }
    return failed;
}

int main(int argc, char **argv)
{
    uint64_t seed = 0, trials = TRIALS;
    const char *only = "", *isa = NULL;
    for (int n = 1; n < argc; n++) {
        const char *value = n + 1 < argc ? argv[n + 1] : "";
        if (!strcmp(argv[n], "--bench")) {
            bench = 1;
            trials = 1;
            continue;
        }
        if (!strcmp(argv[n], "--seed"))
            seed = strtoull(value, NULL, 10);
        else if (!strcmp(argv[n], "--trials"))
            trials = strtoull(value, NULL, 10);
        else if (!strcmp(argv[n], "--only"))
            only = value;
        else if (!strcmp(argv[n], "--isa"))
            isa = value;
        else {
            fprintf(stderr,
                    "usage: %s [--seed N] [--trials N] [--only CHECK] [--isa NAME] [--bench]\n",
                    argv[0]);
            return 2;
        }
        n++;
    }
    size_t done = 0, failures = 0;
    for (size_t c = 0; c < CHECKS; c++) {
        if (strncmp(checks[c].name, only, strlen(only))) continue;
        for (uint64_t n = 0; n < trials; n++)
            for (int bits = 32; bits <= 64; bits += 32) {
                for (int fused = 0; fused < 2; fused++)
                    records[fused].isa = NULL, records[fused].count = 0;
                for (size_t s = 0; s < cylstm_isa_count(); s++) {
                    if (!cylstm_isa_usable(s) || (isa && strcmp(isa, cylstm_isa_name(s)))) continue;
                    failures += (size_t)run(
                        &checks[c], cylstm_find_kernels(cylstm_isa_name(s), bits), seed + n);
                    done++;
                }
            }
    }
    if (!bench) printf("%zu trials, %zu failed\n", done, failures);
    return failures || !done;
}
