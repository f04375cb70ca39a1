/* ulp.c -- how far sigmoid and tanh are from the truth, for every kernel set of this machine.
 *
 *     cc -std=c11 -O3 -ffp-contract=off -pthread -Isrc_c -o ulp tests/ulp.c src_c/[a-z]*.c src_c/kernels/[a-z]*.c -lm
 *     ./ulp                 all 2^32 floats and 2^28 doubles: a few minutes
 *     ./ulp --sample 20     2^20 of each: for every change
 *
 * float is held against libm's double, double against its long double where that is wider. The
 * error is counted in units in the last place (ulp) of the true result, and is limited to 4 where
 * that is a normal number; below, a result may be flushed to zero. Every input is computed in the
 * caller's floating-point mode and in the library's. The exit status is 1 where a limit is broken.
 */
#include "cpu.h"
#include "cylstm.h"
#include "kernels/kernels.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIMIT 4.0L

enum { BLOCK = 4096, MAX_SETS = 8, MODES = 2, FUNCTIONS = 2 };

/* What is true of a function. */
static const struct function {
    const char *name;
    long double low, high; /* its range */
} functions[FUNCTIONS] = {{"sigmoid", 0, 1}, {"tanh", -1, 1}};

static long double truth(int function, int bits, long double x)
{
    if (bits == 32) {
        const double d = (double)x;
        return function == 0 ? 1 / (1 + exp(-d)) : tanh(d);
    }
    return function == 0 ? 1 / (1 + expl(-x)) : tanhl(x);
}

/* The worst of one function in one kernel set, and how many results were plainly wrong. */
struct worst {
    long double ulp, at;
    unsigned long wrong;
};

static struct worst worst[MAX_SETS][FUNCTIONS];

static void judge(int function, int bits, const struct cylstm_kernels *k, struct worst *w, long double x,
                  long double true_y, long double y)
{
    const int digits = bits == 32 ? FLT_MANT_DIG : DBL_MANT_DIG;
    const long double smallest = bits == 32 ? FLT_MIN : DBL_MIN;
    int wrong = isnan(x) ? !isnan(y) : !(y >= functions[function].low && y <= functions[function].high);
    if (!isnan(x) && (isinf(x) || fabsl(true_y) < smallest))
        wrong |= fabsl(y - true_y) >= smallest || !!signbit(y) != !!signbit(true_y);
    else if (!isnan(x)) {
        const long double ulp = fabsl(y - true_y) / ldexpl(1, ilogbl(true_y) + 1 - digits);
        if (ulp > w->ulp) *w = (struct worst){ulp, x, w->wrong};
    }
    if (wrong && w->wrong++ < 5)
        printf("%s f%d: %s(%.21Lg) is %.21Lg, not %.21Lg\n", k->isa, bits, functions[function].name, x,
               y, true_y);
}

static long double get(const void *array, int bits, size_t n)
{
    return bits == 32 ? (long double)((const float *)array)[n] : (long double)((const double *)array)[n];
}

/* Put `count` inputs through both functions of every set, in both floating-point modes. */
static void check(const struct cylstm_kernels *const *sets, size_t set_count, const void *x, size_t count)
{
    static double y[BLOCK];
    static long double true_y[BLOCK];
    const int bits = sets[0]->bits;
    for (int f = 0; f < FUNCTIONS; f++) {
        for (size_t n = 0; n < count; n++) true_y[n] = truth(f, bits, get(x, bits, n));
        for (size_t s = 0; s < set_count; s++)
            for (int mode = 0; mode < MODES; mode++) {
                const uint32_t caller = mode ? cylstm_enter_float_mode() : 0;
                (f == 0 ? sets[s]->sigmoid : sets[s]->tanh)(x, y, count);
                if (mode) cylstm_leave_float_mode(caller);
                for (size_t n = 0; n < count; n++)
                    judge(f, bits, sets[s], &worst[s][f], get(x, bits, n), true_y[n], get(y, bits, n));
            }
    }
}

/* Every float, or where `step` is not 1 every so manieth. */
static void fill_floats(float *x, size_t count, uint64_t first, uint64_t step)
{
    for (size_t n = 0; n < count; n++) {
        const uint32_t pattern = (uint32_t)(first + n * step);
        memcpy(x + n, &pattern, sizeof pattern);
    }
}

static uint64_t draw(uint64_t *state)
{
    *state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static double uniform(uint64_t *state, double half_width)
{
    return ((double)(draw(state) >> 11) * 0x1p-53 * 2 - 1) * half_width;
}

/* Doubles of five kinds, in turn: near the middle, over the whole range of results, close to the
 * multiples of ln 2 / 4 where the argument reduction turns over, of small size, and any pattern at all. */
static void fill_doubles(double *x, size_t count, uint64_t *state)
{
    for (size_t n = 0; n < count; n++) switch (n % 5) {
        case 0: x[n] = uniform(state, 3); break;
        case 1: x[n] = uniform(state, n % 2 ? 20 : 750); break;
        case 2: {
            const double middle = trunc(uniform(state, n % 2 ? 100 : 4400)) * (0.69314718055994531 / 4);
            x[n] = middle * (1 + uniform(state, n % 3 ? 0x1p-46 : 0x1p-20));
            break;
        }
        case 3: x[n] = ldexp(uniform(state, 2), -(int)(draw(state) % 60)); break;
        default: {
            const uint64_t pattern = draw(state);
            memcpy(x + n, &pattern, sizeof pattern);
        }
        }
}

static int report(const struct cylstm_kernels *const *sets, size_t set_count)
{
    int failed = 0;
    for (size_t s = 0; s < set_count; s++)
        for (int f = 0; f < FUNCTIONS; f++) {
            const struct worst *w = &worst[s][f];
            printf("%-7s f%d %-8s %.3Lf ulp at %.17Lg", sets[s]->isa, sets[s]->bits, functions[f].name,
                   w->ulp, w->at);
            printf(w->wrong ? ", %lu wrong\n" : "\n", w->wrong);
            failed |= w->wrong || w->ulp > LIMIT;
        }
    return failed;
}

static int check_type(int bits, int log_floats, int log_doubles)
{
    static union {
        float f[BLOCK];
        double d[BLOCK];
    } x;
    static const double special[] = {0, -0.0, INFINITY, -INFINITY, NAN, DBL_MIN, -DBL_MIN, DBL_MAX, -DBL_MAX};
    enum { SPECIALS = sizeof special / sizeof *special };
    const struct cylstm_kernels *sets[MAX_SETS];
    size_t set_count = 0;
    for (size_t n = 0; n < cylstm_isa_count() && set_count < MAX_SETS; n++)
        if (cylstm_isa_usable(n)) sets[set_count++] = cylstm_find_kernels(cylstm_isa_name(n), bits);

    memset(worst, 0, sizeof worst);
    for (size_t n = 0; n < SPECIALS; n++)
        if (bits == 32) x.f[n] = (float)special[n];
        else x.d[n] = special[n];
    check(sets, set_count, &x, SPECIALS);

    uint64_t state = 1;
    const uint64_t total = UINT64_C(1) << (bits == 32 ? log_floats : log_doubles);
    const uint64_t step = UINT64_C(1) << (32 - log_floats);
    for (uint64_t first = 0; first < total; first += BLOCK) {
        if (bits == 32) fill_floats(x.f, BLOCK, first * step + (step - 1) / 3, step);
        else fill_doubles(x.d, BLOCK, &state);
        check(sets, set_count, &x, BLOCK);
    }
    return report(sets, set_count);
}

int main(int argc, char **argv)
{
    int log_floats = 32, log_doubles = 28;
    if (argc == 3 && !strcmp(argv[1], "--sample")) log_floats = log_doubles = atoi(argv[2]);
    if ((argc != 1 && argc != 3) || log_floats < 12 || log_floats > 32) {
        fprintf(stderr, "usage: %s [--sample LOG2_COUNT, 12 to 32]\n", argv[0]);
        return 2;
    }
    int failed = check_type(32, log_floats, log_doubles);
    if (LDBL_MANT_DIG > DBL_MANT_DIG) failed |= check_type(64, log_floats, log_doubles);
    else printf("f64 is not checked: long double is no wider than double here\n");
    return failed;
}
