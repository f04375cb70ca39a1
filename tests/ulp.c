/* ulp.c -- how far sigmoid and tanh are from the truth, in every kernel set that this machine runs.
 *
 *     cc -std=c11 -O3 -ffp-contract=off -pthread -Isrc_c -o ulp tests/ulp.c src_c/[a-z]*.c \
 *         src_c/kernels/[a-z]*.c -lm
 *     ./ulp                 all 2^32 floats and 2^28 doubles: a quarter of an hour
 *     ./ulp --sample 20     2^20 of each: a second
 *
 * float is held against libm's double, double against its long double where that is wider.
 * Errors are counted in units in the last place (ulp) of the true result; below the normal numbers,
 * where a result may be flushed to zero, in the smallest of these; at an infinity the result is to
 * be exact. Every input is computed in the caller's floating-point mode and in the library's. The
 * exit status is 1 where an error is above LIMIT, or a result is outside its range, has the wrong
 * sign, or is or is not NaN when it should not or should.
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

enum { BLOCK = 4096, MAX_SETS = 8 };

enum function { SIGMOID, TANH, FUNCTIONS };
static const char *const names[FUNCTIONS] = {"sigmoid", "tanh"};

/* A block of inputs, and what is true of one function there. */
struct block {
    int bits;
    union {
        float f[BLOCK];
        double d[BLOCK];
    } x;
    long double y[BLOCK], per_ulp[BLOCK];
};

struct worst {
    long double ulp, at;
    unsigned long wrong;
};

static long double get(const void *array, int bits, size_t n)
{
    return bits == 32 ? ((const float *)array)[n] : (long double)((const double *)array)[n];
}

static void find_truth(struct block *b, enum function function)
{
    const int digits = b->bits == 32 ? FLT_MANT_DIG : DBL_MANT_DIG;
    const int lowest = b->bits == 32 ? FLT_MIN_EXP - 1 : DBL_MIN_EXP - 1;
    for (size_t n = 0; n < BLOCK; n++) {
        const long double x = get(&b->x, b->bits, n);
        const double f = (double)x;
        if (b->bits == 32)
            b->y[n] = function == SIGMOID ? 1 / (1 + exp(-f)) : tanh(f);
        else
            b->y[n] = function == SIGMOID ? 1 / (1 + expl(-x)) : tanhl(x);
        const int exponent = b->y[n] != 0 && !isnan(b->y[n]) ? ilogbl(b->y[n]) : lowest - 1;
        b->per_ulp[n] = exponent < lowest ? ldexpl(1, -lowest) : ldexpl(1, digits - 1 - exponent);
        if (isinf(x)) b->per_ulp[n] = LDBL_MAX; /* exact, or far beyond the limit */
    }
}

static void judge(const struct block *b, enum function function, const char *isa, const void *got,
                  struct worst *worst)
{
    const long double low = function == SIGMOID ? 0 : -1;
    for (size_t n = 0; n < BLOCK; n++) {
        const long double y = get(got, b->bits, n), error = fabsl(y - b->y[n]) * b->per_ulp[n];
        const int in_place = y >= low && y <= 1 && !signbit(y) == !signbit(b->y[n]);
        if (in_place && error <= worst->ulp) continue;
        const long double x = get(&b->x, b->bits, n);
        if (isnan(x) && isnan(y)) continue;
        if (in_place && error > worst->ulp) {
            worst->ulp = error;
            worst->at = x;
        }
        if (in_place && error <= LIMIT) continue;
        if (worst->wrong++ < 5)
            printf("%s f%d: %s(%.17Lg) is %.17Lg, but should be %.17Lg\n", isa, b->bits,
                   names[function], x, y, b->y[n]);
    }
}

/* Put a block through both functions of every set, in both floating-point modes. */
static void check(struct block *b, const struct cylstm_kernels *const *sets, size_t set_count,
                  struct worst worst[][FUNCTIONS])
{
    static double y[2][BLOCK];
    for (enum function f = 0; f < FUNCTIONS; f++) {
        find_truth(b, f);
        for (size_t s = 0; s < set_count; s++) {
            void (*const kernel)(const void *, void *, size_t) =
                f == SIGMOID ? sets[s]->sigmoid : sets[s]->tanh;
            kernel(&b->x, y[0], BLOCK);
            const uint32_t caller = cylstm_enter_float_mode();
            kernel(&b->x, y[1], BLOCK);
            cylstm_leave_float_mode(caller);
            judge(b, f, sets[s]->isa, y[0], &worst[s][f]);
            if (memcmp(y[0], y[1], sizeof y[0])) judge(b, f, sets[s]->isa, y[1], &worst[s][f]);
        }
    }
}

/* Steele, Lea and Flood's SplitMix64. */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static double draw_within(double width, uint64_t *state)
{
    return ((double)(draw(state) >> 11) * 0x1p-52 - 1) * width;
}

/* Every 2^spacing-th float from the first-th on. */
static void fill_floats(float *x, uint64_t first, int spacing)
{
    for (size_t n = 0; n < BLOCK; n++) {
        const uint32_t bits = (uint32_t)((first + n) << spacing) + (1u << spacing) / 3;
        memcpy(x + n, &bits, sizeof bits);
    }
}

/* Any pattern of bits; the middle; where the results change; about the multiples of ln 2 / 4, where
 * the argument reductions turn over; and of every small size. */
static void fill_doubles(double *x, uint64_t *state)
{
    for (size_t n = 0; n < BLOCK; n++) {
        const uint64_t bits = draw(state);
        switch (n % 8) {
        case 0: memcpy(x + n, &bits, sizeof bits); break;
        case 1: x[n] = draw_within(750, state); break;
        case 2: x[n] = draw_within(25, state); break;
        case 3: x[n] = ldexp(draw_within(2, state), -(int)(bits % 60)); break;
        case 4: x[n] = (double)(bits % 8800) - 4400; break;
        case 5: x[n] = (double)(bits % 200) - 100; break;
        default: x[n] = draw_within(3, state);
        }
        if (n % 8 == 4 || n % 8 == 5)
            x[n] *= (0.69314718055994531 / 4) *
                    (1 + draw_within(bits >> 63 ? 0x1p-46 : 0x1p-16, state));
    }
}

static int check_type(int bits, int log_count)
{
    static const double special[] = {0,    -0.0,  INFINITY, -INFINITY, NAN,     DBL_MIN, -DBL_MIN,
                                     1000, -1000, 89,       -89,       DBL_MAX, -DBL_MAX};
    enum { SPECIALS = sizeof special / sizeof *special };
    static struct block b;
    const struct cylstm_kernels *sets[MAX_SETS];
    struct worst worst[MAX_SETS][FUNCTIONS] = {0};
    size_t set_count = 0;
    for (size_t n = 0; n < cylstm_isa_count() && set_count < MAX_SETS; n++)
        if (cylstm_isa_usable(n)) sets[set_count++] = cylstm_find_kernels(cylstm_isa_name(n), bits);

    b.bits = bits;
    for (size_t n = 0; n < BLOCK; n++)
        if (bits == 32)
            b.x.f[n] = (float)special[n % SPECIALS];
        else
            b.x.d[n] = special[n % SPECIALS];
    check(&b, sets, set_count, worst);

    uint64_t state = 1;
    for (uint64_t first = 0; first < UINT64_C(1) << log_count; first += BLOCK) {
        if (bits == 32)
            fill_floats(b.x.f, first, 32 - log_count);
        else
            fill_doubles(b.x.d, &state);
        check(&b, sets, set_count, worst);
    }

    int failed = 0;
    for (size_t s = 0; s < set_count; s++)
        for (enum function f = 0; f < FUNCTIONS; f++) {
            const struct worst *w = &worst[s][f];
            printf("%-7s f%d %-8s %.4Lg ulp at %.17Lg", sets[s]->isa, bits, names[f], w->ulp,
                   w->at);
            printf(w->wrong ? ", %lu WRONG\n" : "\n", w->wrong);
            failed |= w->wrong != 0;
        }
    return failed;
}

int main(int argc, char **argv)
{
    const int sampled = argc == 3 && !strcmp(argv[1], "--sample");
    const int log_count = sampled ? atoi(argv[2]) : 32;
    if ((argc != 1 && !sampled) || log_count < 12 || log_count > 32) {
        fprintf(stderr, "usage: %s [--sample N]    2^N inputs of each type, 12 <= N <= 32\n",
                argv[0]);
        return 2;
    }
    int failed = check_type(32, log_count);
    if (LDBL_MANT_DIG > DBL_MANT_DIG)
        failed |= check_type(64, sampled ? log_count : 28);
    else
        printf("f64 is not checked: here long double is no wider than double\n");
    return failed;
}
