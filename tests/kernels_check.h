/* kernels_check.h -- what the checks of kernels.c share: what is expected of a result, draws, rows of
 * reals, a call, and what an end of a product is.
 */
#ifndef KERNELS_CHECK_H
#define KERNELS_CHECK_H

#include "cpu.h"
#include "cylstm.h"
#include "guarded.h"
#include "kernels/compact.h"

#include <float.h>
#include <math.h>

enum { MAX_GATES = 4, MAX_SETS = 16, BENCH_RUNS = 4000 };

extern int bench; /* measure, and judge nothing */

/* ---------------------------------------------------------------- what is expected */

/* The distance from 1 to the next real: twice what one rounding may change, relatively. */
static inline long double epsilon(const struct trial *t)
{
    return t->kernels->bits == 32 ? FLT_EPSILON : DBL_EPSILON;
}

/* What may be flushed to zero. */
static inline long double smallest(const struct trial *t)
{
    return t->kernels->bits == 32 ? FLT_MIN : DBL_MIN;
}

/* The results of a trial on the first set of those that round alike. */
struct record {
    const char *isa;
    double *values;
    size_t count, capacity;
};

extern struct record
    *record; /* of the sets that round like this one; NULL: each set has its own problem */
extern size_t recorded; /* results of this run so far */
extern int padding;     /* what is judged only pads, more of it on some sets: it is not recorded */

/* Hold a result against the truth, then put back what was there, for `untouched`. */
void expect(struct trial *t, const char *what, size_t row, size_t column, void *base,
            ptrdiff_t index, long double truth, long double within);

void describe(struct trial *t, const char *format, ...);

/* ---------------------------------------------------------------------------- draws */

/* 1 in n; and never while measuring. */
static inline int chance(struct trial *t, size_t n) { return below(t, n) == 0 && !bench; }

/* From `least` to `most`; `usual` while measuring. */
static inline size_t size_between(struct trial *t, size_t least, size_t most, size_t usual)
{
    const size_t n = least + below(t, most - least + 1);
    return bench ? usual : n;
}

static inline size_t gap(struct trial *t) { return size_between(t, 0, 3, 0); }

/* A multiple of the grain from -4 grains to 4, or any fraction where it is 0. */
static inline double number(struct trial *t, double grain)
{
    return grain != 0 ? ((double)below(t, 9) - 4) * grain : fraction(t);
}

static inline double number_between(struct trial *t, double low, double high)
{
    return low + (high - low) * (0.5 + 0.5 * fraction(t));
}

static inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
static inline size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* The finaliser of SplitMix64, as docs/numerics.md names it. */
static inline uint64_t hash(uint64_t z)
{
    z += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* -------------------------------------------------------------------- rows of reals */

static inline void *row_of(const struct trial *t, const struct cylstm_rows *m, size_t row)
{
    return real_at(t, m->base, m->offset ? m->offset[row] : (ptrdiff_t)row * m->stride);
}

/* Rows of `width` reals apart from one another: in order, or in any order by their offsets from a
 * base that may be in their midst. */
struct cylstm_rows place(struct trial *t, const char *name, size_t rows, size_t width);

/* Numbers of the first n of each row, zeros in what pads it to `padded`. */
void fill(struct trial *t, const struct cylstm_rows *m, size_t rows, size_t n, size_t padded,
          double low, double high);

/* ------------------------------------------------------------------------ one call */

uint64_t ticks(void);
extern uint64_t fewest_ticks;

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

/* Each a check, or what several share. */
void check_product(const struct check *, struct trial *); /* kernels_product.c */
void check_finish(const struct check *, struct trial *);
void check_bf16(const struct check *, struct trial *); /* kernels_compact.c */
void check_bf16_products(const struct check *, struct trial *);
void check_bf16_rounded(const struct check *, struct trial *);
void check_round_row(const struct check *, struct trial *);
void check_int8(const struct check *, struct trial *);
void check_quantize(const struct check *, struct trial *);
void check_transpose(const struct check *, struct trial *); /* kernels_arrays.c */
void check_dot_rows(const struct check *, struct trial *);
void check_sum_biases(const struct check *, struct trial *);
void check_sum_products(const struct check *, struct trial *);
void check_dropout(const struct check *, struct trial *);
void check_sigmoid(const struct check *, struct trial *);
void check_tanh(const struct check *, struct trial *);
void check_adam(const struct check *, struct trial *);
void check_sgd(const struct check *, struct trial *);
void check_norm(const struct check *, struct trial *); /* kernels_norm.c */
void check_norm_back(const struct check *, struct trial *);
void check_norm_tangent(const struct check *, struct trial *);
void check_norm_products(const struct check *, struct trial *); /* kernels_norm_products.c */
void check_norm_products_back(const struct check *, struct trial *);
void check_norm_products_tangent(const struct check *, struct trial *);

/* ------------------------------------------------------------- the end of a product */

/* A number, such as the sum of a gate of a unit, and how far the kernel's may be from it. */
struct near {
    long double is, within;
};

/* What becomes of the sums of a product: `gates` of them make one unit. */
struct ending {
    size_t gates;
    int pads;     /* units that fill the last vector are computed too, from zeros */
    double grain; /* of rows and weights; 0: any fractions, which are summed with an error */
    int narrow;   /* each term meets three of a panel's four gates */
    /* Place the operands, and set `finish`, and `columns`, padded as the kernel counts them. */
    void (*place)(struct trial *, struct cylstm_product *, size_t units);
    void (*judge)(struct trial *, const struct cylstm_product *, size_t row, size_t unit,
                  const struct near *);
};

static inline size_t width_of(const struct trial *t) { return PANEL_VECTORS * t->kernels->lanes; }
static inline size_t panels_of(const struct trial *t, const struct cylstm_product *p)
{
    return (p->columns + width_of(t) - 1) / width_of(t);
}

/* Columns that a panel holds, in whole vectors. */
static inline size_t filled(const struct trial *t, const struct cylstm_product *p, size_t panel)
{
    return smaller(round_up(p->columns, t->kernels->lanes) - panel * width_of(t), width_of(t));
}

static inline ptrdiff_t in_panels(const struct trial *t, size_t column, ptrdiff_t to_next)
{
    return (ptrdiff_t)(column / width_of(t)) * to_next + (ptrdiff_t)(column % width_of(t));
}

extern const struct ending store, store_exactly, store_narrow;           /* kernels_product.c */
extern const struct ending lstm, lstm_back, projection, projection_back; /* kernels_lstm.c */
extern const struct ending gru, gru_back, gru_gates, gru_gates_back,
    gru_candidate; /* kernels_gru.c */
extern const struct ending gru_candidate_back, rnn, rnn_back;
/* and the tangents of all these */
extern const struct ending lstm_tangent, projection_tangent, gru_tangent, gru_gates_tangent,
    gru_candidate_tangent, rnn_tangent;
extern const struct ending norm_keep;             /* kernels_norm.c */
extern const struct ending zoneout, zoneout_back; /* kernels_zoneout.c */

#endif
