/* sizes.h -- sizes that do not wrap: what overflows is SIZE_MAX, and stays it. */
#ifndef CYLSTM_SIZES_H
#define CYLSTM_SIZES_H

#include <stddef.h>
#include <stdint.h>

static inline size_t cylstm_plus(size_t a, size_t b) { return a > SIZE_MAX - b ? SIZE_MAX : a + b; }

static inline size_t cylstm_times(size_t a, size_t b)
{
#if defined(__GNUC__)
    size_t product; /* without a division, which costs more than all else here */
    return __builtin_mul_overflow(a, b, &product) ? SIZE_MAX : product;
#else
    return b && a > SIZE_MAX / b ? SIZE_MAX : a * b;
#endif
}

/* `to` is a power of two. */
static inline size_t cylstm_round_up(size_t n, size_t to)
{
    return n > SIZE_MAX - to ? SIZE_MAX : (n + to - 1) & ~(to - 1);
}

#endif
