/* Op table, portable C11: 16 bytes of lanes in plain loops, for compilers to turn into vectors.
 *
 * Contract of every vec_*.h. REAL_BITS (32 or 64) is set, kernels.h and the ISA's intrinsics are
 * included and its target region is open. The file defines real, VL (lanes), TILE_ROWS (rows of a
 * GEMM tile), NARROW_ROWS (of one of a narrow product), vf and:
 *   v_load, v_store       any alignment
 *   v_stream              to a place aligned to a vector, past the caches where the ISA can;
 *   V_FENCE()             before other threads may read what was written so
 *   v_load_n, v_store_n   lanes 0..n-1, 0 <= n <= VL; the others are read as 0 and not written,
 *                         and their memory is not touched
 *   v_fma, v_fnma         a * b + c and c - a * b, fused where the ISA has FMA
 *   v_keep                makes the compiler keep what it has loaded, instead of loading it for each use
 *   v_sqrt                of normal numbers
 *   v_sum                 of all lanes: those of one half and the other, and so on
 *   v_min, v_max          the second operand where it is NaN
 *   v_copysign(x, s)      |x| with the sign of s
 *   v_zip(a, b, &l, &h)   a[0], b[0], a[1], b[1], ...: the first half to l, the second to h
 *   V_ROUND, v_pow2       where t = x + V_ROUND, t - V_ROUND is the integer n nearest to x, and
 *                         v_pow2(t) is 2^n for n in [-127, 128] (64 bits: [-1023, 1024]): 0 at the
 *                         lowest n, infinity at the highest
 *
 * float32 tables also serve bf16_tmpl.h: v_low_bf16 and v_high_bf16 widen the bfloat16 in the low and
 * in the high half of each lane, and BF16_ROWS is
 * the height of a tile that leaves registers for both halves; and int8_tmpl.h, with vi: VL integers of 32 bits, or four int8 to a lane:
 *   v_dot(a, w, sum)      sum + the four products of each lane, exact: |w| and |a| are at most 127;
 *                         where CODE_OF_ZERO is 128, a is unsigned and holds the number plus 128
 *   v_store_low_bytes     the lowest byte of each lane, VL bytes
 *   INT8_ROWS             rows of a tile of integer sums
 * and, with DOT_BF16, bf16dot_tmpl.h, with two bfloat16 to a lane of vi:
 *   v_dot_bf16(a, w, sum) sum + the two products of each lane, rounded as that file says
 *   v_store_bf16          every lane rounded to bfloat16, to nearest even, VL of them
 *   BF16DOT_ROWS          rows of a tile of such sums
 * Here v_fma is not fused: libm's fma() is slow in software on CPUs without the instruction. */
#include <string.h>

#define V_FENCE() ((void)0)
#define TILE_ROWS 2
#define NARROW_ROWS 2
#define BF16_ROWS 2

#if REAL_BITS == 32
#define VL 4
typedef float real;
typedef uint32_t real_bits;
#define V_ROUND (0x1.8p23f + 127)
#define MANTISSA_BITS 23
#else
#define VL 2
typedef double real;
typedef uint64_t real_bits;
#define V_ROUND (0x1.8p52 + 1023)
#define MANTISSA_BITS 52
#endif

typedef struct { real lane[VL]; } vf;

/* Left rolled, each loop becomes one vector instruction; gcc -O3 would unroll it into scalar ones
 * (3 to 5 times slower). */
#if defined(__GNUC__) && !defined(__clang__)
#define EACH_LANE _Pragma("GCC unroll 1") for (size_t l = 0; l < VL; l++)
#else
#define EACH_LANE for (size_t l = 0; l < VL; l++)
#endif
#define LANES(expression) vf r; EACH_LANE r.lane[l] = (expression); return r
#define A a.lane[l]
#define B b.lane[l]
#define C c.lane[l]

ALWAYS_INLINE vf v_set1(real a) { LANES(a); }
ALWAYS_INLINE vf v_zero(void) { return v_set1(0); }
ALWAYS_INLINE vf v_load(const real *p) { LANES(p[l]); }
ALWAYS_INLINE void v_store(real *p, vf a) { EACH_LANE p[l] = A; }
ALWAYS_INLINE void v_stream(real *p, vf a) { v_store(p, a); }
NEVER_INLINE vf load_part(const real *p, size_t n) { LANES(l < n ? p[l] : 0); }
NEVER_INLINE void store_part(real *p, vf a, size_t n) { for (size_t l = 0; l < n; l++) p[l] = A; }
ALWAYS_INLINE vf v_load_n(const real *p, size_t n) { return n < VL ? load_part(p, n) : v_load(p); }
ALWAYS_INLINE void v_store_n(real *p, vf a, size_t n) {
    if (n < VL) store_part(p, a, n);
    else v_store(p, a);
}

ALWAYS_INLINE vf v_add(vf a, vf b) { LANES(A + B); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { LANES(A - B); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { LANES(A * B); }
ALWAYS_INLINE vf v_div(vf a, vf b) { LANES(A / B); }
ALWAYS_INLINE vf v_fma(vf a, vf b, vf c) { LANES(A * B + C); }
ALWAYS_INLINE vf v_fnma(vf a, vf b, vf c) { LANES(C - A * B); }
ALWAYS_INLINE vf v_min(vf a, vf b) { LANES(A < B ? A : B); }
ALWAYS_INLINE vf v_max(vf a, vf b) { LANES(A > B ? A : B); }

ALWAYS_INLINE real_bits bits_of(real a) { real_bits u; memcpy(&u, &a, sizeof u); return u; }
ALWAYS_INLINE real real_of(real_bits u) { real a; memcpy(&a, &u, sizeof a); return a; }
#define SIGN_BIT ((real_bits)1 << (REAL_BITS - 1))

ALWAYS_INLINE vf v_abs(vf a) { LANES(real_of(bits_of(A) & ~SIGN_BIT)); }
ALWAYS_INLINE vf v_copysign(vf a, vf b) {
    LANES(real_of((bits_of(A) & ~SIGN_BIT) | (bits_of(B) & SIGN_BIT)));
}
/* Heron's method, since sqrt() may need libm: its start, half the exponent, is within 6.1 %, and each
 * round squares the error. */
ALWAYS_INLINE real root_of(real a) {
    real y = real_of((bits_of(a) >> 1) + ((real_bits)((1 << (REAL_BITS - MANTISSA_BITS - 2)) - 1) << (MANTISSA_BITS - 1)));
    for (int k = 0; k < 4; k++) y = (y + a / y) / 2;
    return a > 0 && a - a == 0 ? y : a; /* 0, infinity, NaN: themselves */
}
ALWAYS_INLINE vf v_sqrt(vf a) { LANES(root_of(A)); }
ALWAYS_INLINE real v_sum(vf a) {
    for (size_t half = VL / 2; half; half /= 2)
        for (size_t l = 0; l < half; l++) A += a.lane[l + half];
    return a.lane[0];
}
ALWAYS_INLINE vf v_pow2(vf a) { LANES(real_of(bits_of(A) << MANTISSA_BITS)); }
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    EACH_LANE low->lane[l] = (l % 2 ? b : a).lane[l / 2];
    EACH_LANE high->lane[l] = (l % 2 ? b : a).lane[(VL + l) / 2];
}

#if REAL_BITS == 32
ALWAYS_INLINE vf v_low_bf16(vf a) { LANES(real_of(bits_of(A) << 16)); }
ALWAYS_INLINE vf v_high_bf16(vf a) { LANES(real_of(bits_of(A) & 0xffff0000u)); }

typedef struct { int32_t lane[VL]; } vi;
#define INT8_ROWS 2
#define CODE_OF_ZERO 0
ALWAYS_INLINE vi v_load_i(const void *p) { vi r; memcpy(&r, p, sizeof r); return r; }
ALWAYS_INLINE vi v_set1_i(int32_t a) { vi r; EACH_LANE r.lane[l] = a; return r; }
ALWAYS_INLINE vi v_add_i(vi a, vi b) { EACH_LANE a.lane[l] += b.lane[l]; return a; }
ALWAYS_INLINE vf v_from_i(vi a) { LANES((real)A); }
ALWAYS_INLINE void v_store_low_bytes(void *p, vf a) { EACH_LANE ((uint8_t *)p)[l] = (uint8_t)bits_of(A); }
#if defined(DOT_BF16)
#define BF16DOT_ROWS 2
ALWAYS_INLINE vf v_dot_bf16(vi a, vi w, vf sum) {
    EACH_LANE sum.lane[l] += real_of((uint32_t)a.lane[l] << 16) * real_of((uint32_t)w.lane[l] << 16);
    EACH_LANE sum.lane[l] += real_of((uint32_t)a.lane[l] & 0xffff0000u) * real_of((uint32_t)w.lane[l] & 0xffff0000u);
    return sum;
}
/* To nearest even; a NaN stays one. */
ALWAYS_INLINE uint16_t bf16_of(real a) {
    const uint32_t bits = bits_of(a);
    return (uint16_t)(a != a ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
ALWAYS_INLINE void v_store_bf16(void *p, vf a) {
    uint16_t r[VL];
    EACH_LANE r[l] = bf16_of(A);
    memcpy(p, r, sizeof r);
}
#endif
/* Byte k of a lane, with its sign. */
ALWAYS_INLINE int32_t byte_of(int32_t a, int k) { return (int32_t)((uint32_t)a << (24 - 8 * k)) >> 24; }
ALWAYS_INLINE vi v_dot(vi a, vi w, vi sum) {
    EACH_LANE sum.lane[l] += byte_of(a.lane[l], 0) * byte_of(w.lane[l], 0) + byte_of(a.lane[l], 1) * byte_of(w.lane[l], 1)
                           + byte_of(a.lane[l], 2) * byte_of(w.lane[l], 2) + byte_of(a.lane[l], 3) * byte_of(w.lane[l], 3);
    return sum;
}
#endif

#undef LANES
#undef A
#undef B
#undef C

ALWAYS_INLINE vf v_keep(vf a) { return a; }
