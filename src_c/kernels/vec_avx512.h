/* Op table for AVX-512 F, DQ, VL, BW: 16 floats or 8 doubles. The contract: vec_scalar.h. */
#define V_FENCE() _mm_sfence()
#define TILE_ROWS 6
#define NARROW_ROWS 6
#define BF16_ROWS 4

#if REAL_BITS == 32

typedef float real;
typedef __m512 vf;
#define VL 16
#define V_ROUND (0x1.8p23f + 127)

ALWAYS_INLINE vf v_zero(void) { return _mm512_setzero_ps(); }
ALWAYS_INLINE vf v_set1(real a) { return _mm512_set1_ps(a); }
ALWAYS_INLINE vf v_load(const real *p) { return _mm512_loadu_ps(p); }
ALWAYS_INLINE void v_store(real *p, vf a) { _mm512_storeu_ps(p, a); }
ALWAYS_INLINE void v_stream(real *p, vf a) { _mm512_stream_ps(p, a); }
ALWAYS_INLINE __mmask16 first_lanes(size_t n) { return (__mmask16)((1u << n) - 1u); }
ALWAYS_INLINE vf v_load_n(const real *p, size_t n) {
    return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
ALWAYS_INLINE void v_store_n(real *p, vf a, size_t n) {
    _mm512_mask_storeu_ps(p, first_lanes(n), a);
}

ALWAYS_INLINE vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
ALWAYS_INLINE vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
ALWAYS_INLINE vf v_sqrt(vf a) { return _mm512_sqrt_ps(a); }
ALWAYS_INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
ALWAYS_INLINE vf v_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
ALWAYS_INLINE vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
ALWAYS_INLINE vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }

ALWAYS_INLINE vf v_abs(vf a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
ALWAYS_INLINE vf v_copysign(vf x, vf s) {
    __m512i sign = _mm512_castps_si512(_mm512_set1_ps(-0.0f));  /* 0xac: sign ? s : x, bit by bit */
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(sign, _mm512_castps_si512(x), _mm512_castps_si512(s), 0xac));
}
ALWAYS_INLINE real v_sum(vf a) {
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), high);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
ALWAYS_INLINE vf v_pow2(vf t) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(t), 23));
}
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    const __m512i l = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    *low = _mm512_permutex2var_ps(a, l, b);
    *high = _mm512_permutex2var_ps(a, _mm512_add_epi32(l, _mm512_set1_epi32(8)), b);
}

/* Two bfloat16 to a lane; see bf16_tmpl.h. */
ALWAYS_INLINE vf v_low_bf16(vf pair) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pair), 16));
}
ALWAYS_INLINE vf v_high_bf16(vf pair) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pair), _mm512_set1_epi32(-65536)));
}

/* Four int8 to a lane; see int8_tmpl.h. */
typedef __m512i vi;
ALWAYS_INLINE vi v_load_i(const void *p) { return _mm512_loadu_si512(p); }
ALWAYS_INLINE vi v_set1_i(int32_t a) { return _mm512_set1_epi32(a); }
ALWAYS_INLINE vi v_add_i(vi a, vi b) { return _mm512_add_epi32(a, b); }
ALWAYS_INLINE vf v_from_i(vi a) { return _mm512_cvtepi32_ps(a); }
ALWAYS_INLINE void v_store_low_bytes(void *p, vf a) {
    _mm_storeu_si128(p, _mm512_cvtepi32_epi8(_mm512_castps_si512(a)));
}
#if defined(DOT_BF16)
#define BF16DOT_ROWS 6
ALWAYS_INLINE vf v_dot_bf16(vi a, vi w, vf sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)w); }
ALWAYS_INLINE void v_store_bf16(void *p, vf a) {
    _mm256_storeu_si256(p, (__m256i)_mm512_cvtneps_pbh(a));
}
#endif
#if defined(DOT_VNNI)
#define INT8_ROWS 6
#define CODE_OF_ZERO 128
/* Not by its intrinsic: gcc 12 copies and spills the sums of a tile then, which takes 1.6 times as long. */
ALWAYS_INLINE vi v_dot(vi a, vi w, vi sum) { __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(w)); return sum; }
#else
#define INT8_ROWS 4
#define CODE_OF_ZERO 0
ALWAYS_INLINE vi even_bytes(vi a) { return _mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8); }
ALWAYS_INLINE vi odd_bytes(vi a) { return _mm512_srai_epi16(a, 8); }
ALWAYS_INLINE vi v_dot(vi a, vi w, vi sum) {
    sum = v_add_i(sum, _mm512_madd_epi16(even_bytes(a), even_bytes(w)));
    return v_add_i(sum, _mm512_madd_epi16(odd_bytes(a), odd_bytes(w)));
}
#endif

#else

typedef double real;
typedef __m512d vf;
#define VL 8
#define V_ROUND (0x1.8p52 + 1023)

ALWAYS_INLINE vf v_zero(void) { return _mm512_setzero_pd(); }
ALWAYS_INLINE vf v_set1(real a) { return _mm512_set1_pd(a); }
ALWAYS_INLINE vf v_load(const real *p) { return _mm512_loadu_pd(p); }
ALWAYS_INLINE void v_store(real *p, vf a) { _mm512_storeu_pd(p, a); }
ALWAYS_INLINE void v_stream(real *p, vf a) { _mm512_stream_pd(p, a); }
ALWAYS_INLINE __mmask8 first_lanes(size_t n) { return (__mmask8)((1u << n) - 1u); }
ALWAYS_INLINE vf v_load_n(const real *p, size_t n) {
    return _mm512_maskz_loadu_pd(first_lanes(n), p);
}
ALWAYS_INLINE void v_store_n(real *p, vf a, size_t n) {
    _mm512_mask_storeu_pd(p, first_lanes(n), a);
}

ALWAYS_INLINE vf v_add(vf a, vf b) { return _mm512_add_pd(a, b); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { return _mm512_sub_pd(a, b); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { return _mm512_mul_pd(a, b); }
ALWAYS_INLINE vf v_div(vf a, vf b) { return _mm512_div_pd(a, b); }
ALWAYS_INLINE vf v_sqrt(vf a) { return _mm512_sqrt_pd(a); }
ALWAYS_INLINE vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_pd(a, b, c); }
ALWAYS_INLINE vf v_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_pd(a, b, c); }
ALWAYS_INLINE vf v_min(vf a, vf b) { return _mm512_min_pd(a, b); }
ALWAYS_INLINE vf v_max(vf a, vf b) { return _mm512_max_pd(a, b); }

ALWAYS_INLINE vf v_abs(vf a) { return _mm512_andnot_pd(_mm512_set1_pd(-0.0), a); }
ALWAYS_INLINE vf v_copysign(vf x, vf s) {
    __m512i sign = _mm512_castpd_si512(_mm512_set1_pd(-0.0));
    return _mm512_castsi512_pd(
        _mm512_ternarylogic_epi64(sign, _mm512_castpd_si512(x), _mm512_castpd_si512(s), 0xac));
}
ALWAYS_INLINE real v_sum(vf a) {
    const __m256d b = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    const __m128d c = _mm_add_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
    return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}
ALWAYS_INLINE vf v_pow2(vf t) {
    return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(t), 52));
}
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    const __m512i l = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
    *low = _mm512_permutex2var_pd(a, l, b);
    *high = _mm512_permutex2var_pd(a, _mm512_add_epi64(l, _mm512_set1_epi64(4)), b);
}

#endif

ALWAYS_INLINE vf v_keep(vf a) { __asm__("" : "+v"(a)); return a; }
