/* Op table for AVX2 with FMA: 8 floats or 4 doubles. The contract stands in vec_scalar.h. */
#define V_FENCE() _mm_sfence()
#define TILE_ROWS 3
#define NARROW_ROWS 4 /* by three vectors: twelve sums, the vectors and one number are sixteen registers */
#define BF16_ROWS 2

#if REAL_BITS == 32

typedef float real;
typedef __m256 vf;
#define VL 8
#define V_ROUND (0x1.8p23f + 127)

ALWAYS_INLINE vf v_zero(void) { return _mm256_setzero_ps(); }
ALWAYS_INLINE vf v_set1(real a) { return _mm256_set1_ps(a); }
ALWAYS_INLINE vf v_load(const real *p) { return _mm256_loadu_ps(p); }
ALWAYS_INLINE void v_store(real *p, vf a) { _mm256_storeu_ps(p, a); }
ALWAYS_INLINE void v_stream(real *p, vf a) { _mm256_stream_ps(p, a); }
ALWAYS_INLINE __m256i first_lanes(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
ALWAYS_INLINE vf v_load_n(const real *p, size_t n) {
    return n < VL ? _mm256_maskload_ps(p, first_lanes(n)) : v_load(p);
}
ALWAYS_INLINE void v_store_n(real *p, vf a, size_t n) {
    if (n < VL) _mm256_maskstore_ps(p, first_lanes(n), a); /* dozens of cycles on some CPUs */
    else v_store(p, a);
}

ALWAYS_INLINE vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
ALWAYS_INLINE vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
ALWAYS_INLINE vf v_sqrt(vf a) { return _mm256_sqrt_ps(a); }
ALWAYS_INLINE vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
ALWAYS_INLINE vf v_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
ALWAYS_INLINE vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
ALWAYS_INLINE vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }

ALWAYS_INLINE vf v_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
ALWAYS_INLINE vf v_copysign(vf x, vf s) {
    return _mm256_or_ps(v_abs(x), _mm256_and_ps(s, _mm256_set1_ps(-0.0f)));
}
ALWAYS_INLINE real v_sum(vf a) {
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}
ALWAYS_INLINE vf v_pow2(vf t) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t), 23));
}
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    const vf l = _mm256_unpacklo_ps(a, b), h = _mm256_unpackhi_ps(a, b); /* of each half */
    *low = _mm256_permute2f128_ps(l, h, 0x20);
    *high = _mm256_permute2f128_ps(l, h, 0x31);
}

/* Two bfloat16 to a lane; see bf16_tmpl.h. */
ALWAYS_INLINE vf v_low_bf16(vf pair) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pair), 16));
}
ALWAYS_INLINE vf v_high_bf16(vf pair) {
    return _mm256_and_ps(pair, _mm256_castsi256_ps(_mm256_set1_epi32(-65536)));
}

/* Four int8 to a lane; see int8_tmpl.h. */
typedef __m256i vi;
ALWAYS_INLINE vi v_load_i(const void *p) { return _mm256_loadu_si256(p); }
ALWAYS_INLINE vi v_set1_i(int32_t a) { return _mm256_set1_epi32(a); }
ALWAYS_INLINE vi v_add_i(vi a, vi b) { return _mm256_add_epi32(a, b); }
ALWAYS_INLINE vf v_from_i(vi a) { return _mm256_cvtepi32_ps(a); }
ALWAYS_INLINE void v_store_low_bytes(void *p, vf a) {
    const __m256i first = _mm256_set1_epi32(0x0c080400), quad = _mm256_shuffle_epi8(_mm256_castps_si256(a), first);
    const __m256i both = _mm256_permutevar8x32_epi32(quad, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    _mm_storel_epi64(p, _mm256_castsi256_si128(both));
}
#if defined(DOT_VNNI)
#define INT8_ROWS 3
#define CODE_OF_ZERO 128
/* Not by its intrinsic: gcc 12 copies and spills the sums of a tile then, which takes 1.6 times as long. */
ALWAYS_INLINE vi v_dot(vi a, vi w, vi sum) { __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(w)); return sum; }
#else
#define INT8_ROWS 3
#define CODE_OF_ZERO 0
/* |a| times w with the sign of a: two products of at most 127 * 127 fit 16 bits, nothing saturates. */
ALWAYS_INLINE vi v_dot(vi a, vi w, vi sum) {
    const vi pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(w, a));
    return v_add_i(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

#else

typedef double real;
typedef __m256d vf;
#define VL 4
#define V_ROUND (0x1.8p52 + 1023)

ALWAYS_INLINE vf v_zero(void) { return _mm256_setzero_pd(); }
ALWAYS_INLINE vf v_set1(real a) { return _mm256_set1_pd(a); }
ALWAYS_INLINE vf v_load(const real *p) { return _mm256_loadu_pd(p); }
ALWAYS_INLINE void v_store(real *p, vf a) { _mm256_storeu_pd(p, a); }
ALWAYS_INLINE void v_stream(real *p, vf a) { _mm256_stream_pd(p, a); }
ALWAYS_INLINE __m256i first_lanes(size_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x((long long)n), _mm256_setr_epi64x(0, 1, 2, 3));
}
ALWAYS_INLINE vf v_load_n(const real *p, size_t n) {
    return n < VL ? _mm256_maskload_pd(p, first_lanes(n)) : v_load(p);
}
ALWAYS_INLINE void v_store_n(real *p, vf a, size_t n) {
    if (n < VL) _mm256_maskstore_pd(p, first_lanes(n), a); /* dozens of cycles on some CPUs */
    else v_store(p, a);
}

ALWAYS_INLINE vf v_add(vf a, vf b) { return _mm256_add_pd(a, b); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { return _mm256_sub_pd(a, b); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { return _mm256_mul_pd(a, b); }
ALWAYS_INLINE vf v_div(vf a, vf b) { return _mm256_div_pd(a, b); }
ALWAYS_INLINE vf v_sqrt(vf a) { return _mm256_sqrt_pd(a); }
ALWAYS_INLINE vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_pd(a, b, c); }
ALWAYS_INLINE vf v_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_pd(a, b, c); }
ALWAYS_INLINE vf v_min(vf a, vf b) { return _mm256_min_pd(a, b); }
ALWAYS_INLINE vf v_max(vf a, vf b) { return _mm256_max_pd(a, b); }

ALWAYS_INLINE vf v_abs(vf a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
ALWAYS_INLINE vf v_copysign(vf x, vf s) {
    return _mm256_or_pd(v_abs(x), _mm256_and_pd(s, _mm256_set1_pd(-0.0)));
}
ALWAYS_INLINE real v_sum(vf a) {
    const __m128d b = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(b, _mm_unpackhi_pd(b, b)));
}
ALWAYS_INLINE vf v_pow2(vf t) {
    return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(t), 52));
}
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    const vf l = _mm256_unpacklo_pd(a, b), h = _mm256_unpackhi_pd(a, b); /* of each half */
    *low = _mm256_permute2f128_pd(l, h, 0x20);
    *high = _mm256_permute2f128_pd(l, h, 0x31);
}

#endif

ALWAYS_INLINE vf v_keep(vf a) { __asm__("" : "+x"(a)); return a; }
