/* calls_check.h -- what the checks of calls.c share: draws, arrays of a trial, another context to
 * compare with, and how near two results are.
 */
#ifndef CALLS_CHECK_H
#define CALLS_CHECK_H

#include "cylstm.h"
#include "guarded.h"

#include <math.h>

static inline size_t between(struct trial *t, size_t least, size_t most)
{
    return least + below(t, most - least + 1);
}

static inline void *noise(struct trial *t, const char *name, size_t count)
{
    void *array = guarded_reals(t, name, count);
    for (size_t n = 0; n < count; n++) put(t, array, (ptrdiff_t)n, 0.5 * fraction(t));
    return array;
}

/* Weights of one byte or two. */
static inline void fill_compact(struct trial *t, size_t bytes, size_t count, char *to)
{
    for (size_t n = 0; bytes < sizeof(float) && n < count; n++) {
        const float value = (float)(0.5 * fraction(t));
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        bits = bytes == 1 ? (uint32_t)between(t, 0, 254) - 127 : bits >> 16;
        memcpy(to + n * bytes, &bits, bytes); /* the low end, on the processors there are */
    }
}

static inline void *output(struct trial *t, const char *name, size_t size)
{
    void *array = guarded(t, name, size);
    block_of(t, array)->scratch = 1;
    return array;
}

static inline void be_portable(struct trial *t, struct cylstm_context *ctx)
{
    const int threads = ctx->threads;
    cylstm_init_context(ctx, "scalar", t->kernels->bits);
    ctx->threads = threads == 1 ? 2 : 1;
}

/* A format that this set can compute with. */
static inline int draw_format(struct trial *t)
{
    if (t->kernels->bits == 64) return CYLSTM_AS_COMPUTED;
    const int format = (int)below(t, CYLSTM_FORMATS);
    return format == CYLSTM_BFLOAT16_PRODUCTS && !cylstm_find_bf16(t->kernels) ? CYLSTM_INT8
                                                                               : format;
}

/* Of two results, NaN where nothing was written. */
static inline void check_close(struct trial *t, const char *name, const void *got, const void *want,
                               size_t count, double most)
{
    double largest = 0, error = 0;
    for (size_t n = 0; n < count; n++) {
        const double a = get(t, got, (ptrdiff_t)n), b = get(t, want, (ptrdiff_t)n);
        if ((a != a) != (b != b)) fail(t, "%s[%zu] is %g, %g by the portable set", name, n, a, b);
        if (fabs(b) > largest) largest = fabs(b);
        if (fabs(a - b) > error) error = fabs(a - b);
    }
    if (error > most * largest)
        fail(t, "%s is off by %g of %g from the portable set", name, error, largest);
}

void check_linear(struct trial *t); /* calls_linear.c */
void check_steps(struct trial *t);  /* calls_optim.c */

#endif
