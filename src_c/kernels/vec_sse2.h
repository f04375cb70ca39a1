/* Op table for SSE2, which every x86-64 CPU has: 4 floats or 2 doubles. The contract stands in vec_scalar.h. */
#define TILE_ROWS 2

#if REAL_BITS == 32

typedef float real;
typedef __m128 vf;
#define VL 4
#define V_ROUND (0x1.8p23f + 127)

ALWAYS_INLINE vf v_zero(void) { return _mm_setzero_ps(); }
ALWAYS_INLINE vf v_set1(real a) { return _mm_set1_ps(a); }
ALWAYS_INLINE vf v_load(const real *p) { return _mm_loadu_ps(p); }
ALWAYS_INLINE void v_store(real *p, vf a) { _mm_storeu_ps(p, a); }

ALWAYS_INLINE vf v_add(vf a, vf b) { return _mm_add_ps(a, b); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { return _mm_sub_ps(a, b); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { return _mm_mul_ps(a, b); }
ALWAYS_INLINE vf v_div(vf a, vf b) { return _mm_div_ps(a, b); }
ALWAYS_INLINE vf v_sqrt(vf a) { return _mm_sqrt_ps(a); }
ALWAYS_INLINE vf v_min(vf a, vf b) { return _mm_min_ps(a, b); }
ALWAYS_INLINE vf v_max(vf a, vf b) { return _mm_max_ps(a, b); }

ALWAYS_INLINE vf v_abs(vf a) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), a); }
ALWAYS_INLINE vf v_copysign(vf x, vf s) { return _mm_or_ps(v_abs(x), _mm_and_ps(s, _mm_set1_ps(-0.0f))); }
ALWAYS_INLINE vf v_pow2(vf t) { return _mm_castsi128_ps(_mm_slli_epi32(_mm_castps_si128(t), 23)); }
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    *low = _mm_unpacklo_ps(a, b);
    *high = _mm_unpackhi_ps(a, b);
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

ALWAYS_INLINE vf v_add(vf a, vf b) { return _mm_add_pd(a, b); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { return _mm_sub_pd(a, b); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { return _mm_mul_pd(a, b); }
ALWAYS_INLINE vf v_div(vf a, vf b) { return _mm_div_pd(a, b); }
ALWAYS_INLINE vf v_sqrt(vf a) { return _mm_sqrt_pd(a); }
ALWAYS_INLINE vf v_min(vf a, vf b) { return _mm_min_pd(a, b); }
ALWAYS_INLINE vf v_max(vf a, vf b) { return _mm_max_pd(a, b); }

ALWAYS_INLINE vf v_abs(vf a) { return _mm_andnot_pd(_mm_set1_pd(-0.0), a); }
ALWAYS_INLINE vf v_copysign(vf x, vf s) { return _mm_or_pd(v_abs(x), _mm_and_pd(s, _mm_set1_pd(-0.0))); }
ALWAYS_INLINE vf v_pow2(vf t) { return _mm_castsi128_pd(_mm_slli_epi64(_mm_castpd_si128(t), 52)); }
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    *low = _mm_unpacklo_pd(a, b);
    *high = _mm_unpackhi_pd(a, b);
}

#endif

/* No fused multiply-add and no masks: two roundings, and lanes one by one. */
ALWAYS_INLINE vf v_fma(vf a, vf b, vf c) { return v_add(v_mul(a, b), c); }
ALWAYS_INLINE vf v_fnma(vf a, vf b, vf c) { return v_sub(c, v_mul(a, b)); }
ALWAYS_INLINE vf v_load_n(const real *p, size_t n) {
    real lane[VL] = {0};
    for (size_t l = 0; l < n; l++) lane[l] = p[l];
    return v_load(lane);
}
ALWAYS_INLINE void v_store_n(real *p, vf a, size_t n) {
    real lane[VL];
    v_store(lane, a);
    for (size_t l = 0; l < n; l++) p[l] = lane[l];
}
