/* kernels_norm.h -- what the checks of both normalised LSTMs share: a norm, and whole rows. */
#ifndef KERNELS_NORM_H
#define KERNELS_NORM_H

#include "kernels_truth.h"

enum { GATES = 4, MOST_UNITS = 75, MOST_SUMS = GATES * MOST_UNITS, O = 3 };

static inline struct near mean_of(const struct trial *t, const struct near *x, size_t count)
{
    long double sum = 0, within = 0, size = 0;
    for (size_t u = 0; u < count; u++) {
        sum += x[u].is;
        within += x[u].within;
        size += fabsl(x[u].is);
    }
    const long double n = (long double)count;
    return rounded(t, sum / n, within / n + epsilon(t) * size);
}

/* Some sums, normalised together. */
struct normal {
    struct near by, z[MOST_SUMS];
};

static inline void normalise(const struct trial *t, const struct near *s, size_t count,
                             long double least, struct normal *n)
{
    struct near square[MOST_SUMS];
    const struct near mean = mean_of(t, s, count);
    for (size_t u = 0; u < count; u++) {
        n->z[u] = minus(t, s[u], mean);
        square[u] = times(t, n->z[u], n->z[u]);
    }
    const struct near variance = plus(t, mean_of(t, square, count), rounded(t, least, 0));
    n->by.is = 1 / sqrtl(variance.is);
    n->by.within = n->by.is * (variance.within / variance.is + 4 * epsilon(t));
    for (size_t u = 0; u < count; u++) n->z[u] = times(t, n->z[u], n->by);
}

/* What goes through a norm either way: (d - mean(d) - z * mean(d * z)) / deviation. */
static inline void go_through(const struct trial *t, const struct normal *n, const struct near *d,
                              size_t count, struct near *out)
{
    struct near product[MOST_SUMS];
    for (size_t u = 0; u < count; u++) product[u] = times(t, d[u], n->z[u]);
    const struct near mean = mean_of(t, d, count), of_products = mean_of(t, product, count);
    for (size_t u = 0; u < count; u++)
        out[u] = times(t, n->by, minus(t, minus(t, d[u], mean), times(t, n->z[u], of_products)));
}

static inline void *draw_vector(struct trial *t, const char *name, size_t n)
{
    void *array = guarded_reals(t, name, n);
    for (size_t k = 0; k < n; k++) put(t, array, (ptrdiff_t)k, number_between(t, -1.5, 1.5));
    return array;
}

/* (vectors, H padded), which the kernel may change. */
static inline struct cylstm_rows place_sums(struct trial *t, const struct cylstm_product *p,
                                            size_t vectors)
{
    const size_t H = p->cell.H, padded = round_up(H, t->kernels->lanes);
    const struct cylstm_rows sums = place(t, "sums", p->rows, vectors * padded);
    for (size_t n = 0; n < vectors; n++) {
        struct cylstm_rows of_gate = sums;
        of_gate.base = real_at(t, of_gate.base, (ptrdiff_t)(n * padded));
        fill(t, &of_gate, p->rows, H, padded, -2, 2);
    }
    block_of(t, sums.base)->scratch = 1;
    return sums;
}

static inline struct near sum_before(struct trial *t, const struct cylstm_cell *cell,
                                     const struct cylstm_rows *sums, size_t row, size_t vector,
                                     size_t unit)
{
    const size_t padded = round_up(cell->H, t->kernels->lanes);
    return exactly(get(t, before(t, row_of(t, sums, row)), (ptrdiff_t)(vector * padded + unit)));
}

static inline void expect_zeros(struct trial *t, const char *what, const struct cylstm_rows *m,
                                size_t row, size_t H)
{
    for (size_t u = H; u < round_up(H, t->kernels->lanes); u++)
        expect_unit(t, what, m, row, u, (ptrdiff_t)u, exactly(0));
}

#endif
