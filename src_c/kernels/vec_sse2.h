/* Op table for SSE2, which every x86-64 CPU has: 4 floats or 2 doubles. The contract stands in vec_scalar.h. */
#include <string.h>

#define V_FENCE() _mm_sfence()
#define TILE_ROWS 2
#define NARROW_ROWS 2
#define BF16_ROWS 2

#if REAL_BITS == 32

typedef float real;
typedef __m128 vf;
#define VL 4
#define V_ROUND (0x1.8p23f + 127)

ALWAYS_INLINE vf v_zero(void) { return _mm_setzero_ps(); }
ALWAYS_INLINE vf v_set1(real a) { return _mm_set1_ps(a); }
ALWAYS_INLINE vf v_load(const real *p) { return _mm_loadu_ps(p); }
ALWAYS_INLINE void v_store(real *p, vf a) { _mm_storeu_ps(p, a); }
ALWAYS_INLINE void v_stream(real *p, vf a) { _mm_stream_ps(p, a); }

ALWAYS_INLINE vf v_add(vf a, vf b) { return _mm_add_ps(a, b); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { return _mm_sub_ps(a, b); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { return _mm_mul_ps(a, b); }
ALWAYS_INLINE vf v_div(vf a, vf b) { return _mm_div_ps(a, b); }
ALWAYS_INLINE vf v_sqrt(vf a) { return _mm_sqrt_ps(a); }
ALWAYS_INLINE vf v_min(vf a, vf b) { return _mm_min_ps(a, b); }
ALWAYS_INLINE vf v_max(vf a, vf b) { return _mm_max_ps(a, b); }

ALWAYS_INLINE vf v_abs(vf a) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), a); }
ALWAYS_INLINE vf v_copysign(vf x, vf s) { return _mm_or_ps(v_abs(x), _mm_and_ps(s, _mm_set1_ps(-0.0f))); }
ALWAYS_INLINE real v_sum(vf a) {
    const __m128 b = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
ALWAYS_INLINE vf v_pow2(vf t) { return _mm_castsi128_ps(_mm_slli_epi32(_mm_castps_si128(t), 23)); }
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    *low = _mm_unpacklo_ps(a, b);
    *high = _mm_unpackhi_ps(a, b);
}

/* Two bfloat16 to a lane; see bf16_tmpl.h. */
ALWAYS_INLINE vf v_low_bf16(vf pair) {
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_castps_si128(pair), 16));
}
ALWAYS_INLINE vf v_high_bf16(vf pair) {
    return _mm_and_ps(pair, _mm_castsi128_ps(_mm_set1_epi32(-65536)));
}

/* Four int8 to a lane; see int8_tmpl.h. */
typedef __m128i vi;
#define INT8_ROWS 2
#define CODE_OF_ZERO 0
ALWAYS_INLINE vi v_load_i(const void *p) { return _mm_loadu_si128(p); }
ALWAYS_INLINE vi v_set1_i(int32_t a) { return _mm_set1_epi32(a); }
ALWAYS_INLINE vi v_add_i(vi a, vi b) { return _mm_add_epi32(a, b); }
ALWAYS_INLINE vf v_from_i(vi a) { return _mm_cvtepi32_ps(a); }
ALWAYS_INLINE void v_store_low_bytes(void *p, vf a) {
    const __m128i low = _mm_and_si128(_mm_castps_si128(a), _mm_set1_epi32(0xff));
    const __m128i words = _mm_packs_epi32(low, low), bytes = _mm_packus_epi16(words, words);
    const int32_t four = _mm_cvtsi128_si32(bytes);
    memcpy(p, &four, sizeof four);
}
ALWAYS_INLINE vi even_bytes(vi a) { return _mm_srai_epi16(_mm_slli_epi16(a, 8), 8); }
ALWAYS_INLINE vi odd_bytes(vi a) { return _mm_srai_epi16(a, 8); }
ALWAYS_INLINE vi v_dot(vi a, vi w, vi sum) {
    sum = v_add_i(sum, _mm_madd_epi16(even_bytes(a), even_bytes(w)));
    return v_add_i(sum, _mm_madd_epi16(odd_bytes(a), odd_bytes(w)));
}

#else

typedef double real;
typedef __m128d vf;
#define VL 2
#define V_ROUND (0x1.8p52 + 1023)

ALWAYS_INLINE vf v_zero(void) { return _mm_setzero_pd(); }
ALWAYS_INLINE vf v_set1(real a) { return _mm_set1_pd(a); }
ALWAYS_INLINE vf v_load(const real *p) { return _mm_loadu_pd(p); }
ALWAYS_INLINE void v_store(real *p, vf a) { _mm_storeu_pd(p, a); }
ALWAYS_INLINE void v_stream(real *p, vf a) { _mm_stream_pd(p, a); }

ALWAYS_INLINE vf v_add(vf a, vf b) { return _mm_add_pd(a, b); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { return _mm_sub_pd(a, b); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { return _mm_mul_pd(a, b); }
ALWAYS_INLINE vf v_div(vf a, vf b) { return _mm_div_pd(a, b); }
ALWAYS_INLINE vf v_sqrt(vf a) { return _mm_sqrt_pd(a); }
ALWAYS_INLINE vf v_min(vf a, vf b) { return _mm_min_pd(a, b); }
ALWAYS_INLINE vf v_max(vf a, vf b) { return _mm_max_pd(a, b); }

ALWAYS_INLINE vf v_abs(vf a) { return _mm_andnot_pd(_mm_set1_pd(-0.0), a); }
ALWAYS_INLINE vf v_copysign(vf x, vf s) { return _mm_or_pd(v_abs(x), _mm_and_pd(s, _mm_set1_pd(-0.0))); }
ALWAYS_INLINE real v_sum(vf a) { return _mm_cvtsd_f64(_mm_add_sd(a, _mm_unpackhi_pd(a, a))); }
ALWAYS_INLINE vf v_pow2(vf t) { return _mm_castsi128_pd(_mm_slli_epi64(_mm_castpd_si128(t), 52)); }
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    *low = _mm_unpacklo_pd(a, b);
    *high = _mm_unpackhi_pd(a, b);
}

#endif

/* No fused multiply-add and no masks: two roundings, and lanes one by one. */
ALWAYS_INLINE vf v_fma(vf a, vf b, vf c) { return v_add(v_mul(a, b), c); }
ALWAYS_INLINE vf v_fnma(vf a, vf b, vf c) { return v_sub(c, v_mul(a, b)); }
NEVER_INLINE vf load_part(const real *p, size_t n) {
    real lane[VL] = {0};
    for (size_t l = 0; l < n; l++) lane[l] = p[l];
    return v_load(lane);
}
NEVER_INLINE void store_part(real *p, vf a, size_t n) {
    real lane[VL];
    v_store(lane, a);
    for (size_t l = 0; l < n; l++) p[l] = lane[l];
}
ALWAYS_INLINE vf v_load_n(const real *p, size_t n) { return n < VL ? load_part(p, n) : v_load(p); }
ALWAYS_INLINE void v_store_n(real *p, vf a, size_t n) {
    if (n < VL) store_part(p, a, n);
    else v_store(p, a);
}

ALWAYS_INLINE vf v_keep(vf a) { __asm__("" : "+x"(a)); return a; }
