/* kernels_arrays.c -- packing, dropout, sums, activations and optimisers: all that goes over arrays. */
#define _DEFAULT_SOURCE
#include "kernels_check.h"

/* -------------------------------------------------------------------------- arrays */

static void *numbers(struct trial *t, const char *name, size_t n, double low, double high)
{
    void *array = guarded_reals(t, name, n);
    for (size_t k = 0; k < n; k++)
        put(t, array, (ptrdiff_t)k, chance(t, 20) ? 0 : number_between(t, low, high));
    return array;
}

void check_transpose(const struct check *check, struct trial *t)
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

void check_dot_rows(const struct check *check, struct trial *t)
{
    (void)check;
    const size_t VL = t->kernels->lanes, K = size_between(t, 0, 80, 512),
                 n = bench || chance(t, 2) ? VL : below(t, VL + 1),
                 lanes = bench || chance(t, 2) ? VL : n + below(t, VL - n + 1), stride = K + gap(t);
    void *rows = guarded_reals(t, "rows", n && K ? (n - 1) * stride + K : 0),
         *x = numbers(t, "x", K, -1, 1), *sums = numbers(t, "sums", lanes, -1, 1);
    for (size_t l = 0; l < n; l++)
        for (size_t k = 0; k < K; k++) put(t, rows, (ptrdiff_t)(l * stride + k), fraction(t));
    record = NULL; /* sets have other lanes */
    describe(t, "%zu rows of %zu, %zu apart, to %zu lanes", n, K, stride, lanes);
    CALL(t, t->kernels->dot_rows(rows, stride, n, K, x, lanes, sums));
    for (size_t l = 0; l < lanes; l++) {
        long double sum = get(t, before(t, sums), (ptrdiff_t)l), size = fabsl(sum);
        for (size_t k = 0; k < K && l < n; k++) {
            const long double link =
                (long double)get(t, rows, (ptrdiff_t)(l * stride + k)) * get(t, x, (ptrdiff_t)k);
            sum += link;
            size += fabsl(link);
        }
        expect(t, "sums", 0, l, sums, (ptrdiff_t)l, sum, (long double)(K + 1) * epsilon(t) * size);
    }
}

void check_sum_biases(const struct check *check, struct trial *t)
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

/* By column, over rows: the gradient of a peephole. */
void check_sum_products(const struct check *check, struct trial *t)
{
    (void)check;
    const size_t rows = size_between(t, 0, 40, 32), n = size_between(t, 0, 75, 64);
    const int adds = chance(t, 2);
    struct cylstm_rows a = place(t, "a", rows, n), b = place(t, "b", rows, n);
    fill(t, &a, rows, n, n, -2, 2);
    fill(t, &b, rows, n, n, -2, 2);
    void *out = guarded_reals(t, "out", n);
    for (size_t k = 0; k < n && adds; k++) put(t, out, (ptrdiff_t)k, fraction(t));
    describe(t, "%zu rows of %zu%s", rows, n, adds ? ", added" : "");
    CALL(t, t->kernels->sum_products(&a, &b, rows, n, adds, out));
    for (size_t k = 0; k < n; k++) {
        long double sum = adds ? get(t, before(t, out), (ptrdiff_t)k) : 0, size = fabsl(sum);
        for (size_t r = 0; r < rows; r++) {
            const long double link = (long double)get(t, row_of(t, &a, r), (ptrdiff_t)k) *
                                     get(t, row_of(t, &b, r), (ptrdiff_t)k);
            sum += link;
            size += fabsl(link);
        }
        expect(t, "out", 0, k, out, (ptrdiff_t)k, sum, (long double)(rows + 1) * epsilon(t) * size);
    }
}

void check_dropout(const struct check *check, struct trial *t)
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

static long double sigmoidl(long double x) { return 1 / (1 + expl(-x)); }

void check_sigmoid(const struct check *check, struct trial *t)
{
    (void)check;
    check_activation(t, t->kernels->sigmoid, sigmoidl);
}

void check_tanh(const struct check *check, struct trial *t)
{
    (void)check;
    check_activation(t, t->kernels->tanh, tanhl);
}

void check_adam(const struct check *check, struct trial *t)
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
    const struct cylstm_update update = {
        w, g, {m, v}, out, {m_out, v_out}, .streams = (int)below(t, 2)};
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

void check_sgd(const struct check *check, struct trial *t)
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
