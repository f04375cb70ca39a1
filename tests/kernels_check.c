/* kernels_check.c -- what the checks of kernels.c share. */
#define _DEFAULT_SOURCE
#include "kernels_check.h"

#include <time.h>

int bench;
struct record *record;
size_t recorded;
int padding;
uint64_t fewest_ticks;

void expect(struct trial *t, const char *what, size_t row, size_t column, void *base,
            ptrdiff_t index, long double truth, long double within)
{
    if (bench || t->failed) return;
    void *at = real_at(t, base, index);
    const double got = get(t, at, 0);
    if (!(fabsl(got - truth) <= within) && got != truth && !(isnan(got) && isnan(truth)))
        fail(t, "%s[%zu][%zu] is %.17g, but should be %.20Lg, within %.3Lg", what, row, column, got,
             truth, within);
    if (record && !padding && within > 0) {
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

void describe(struct trial *t, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(t->shape, sizeof t->shape, format, arguments);
    va_end(arguments);
}

struct cylstm_rows place(struct trial *t, const char *name, size_t rows, size_t width)
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

void fill(struct trial *t, const struct cylstm_rows *m, size_t rows, size_t n, size_t padded,
          double low, double high)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t u = 0; u < padded; u++)
            put(t, row_of(t, m, r), (ptrdiff_t)u, u < n ? number_between(t, low, high) : 0);
}

uint64_t ticks(void)
{
#if CYLSTM_X86
    return __builtin_ia32_rdtsc();
#else
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
#endif
}
