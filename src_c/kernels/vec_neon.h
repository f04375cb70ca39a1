/* Op table for AArch64 Advanced SIMD: 4 floats or 2 doubles. The contract stands in vec_scalar.h. */
#define TILE_ROWS 5 /* with six, gcc keeps three of the 24 sums in memory */

#if REAL_BITS == 32

typedef float real;
typedef float32x4_t vf;
#define VL 4
#define V_ROUND (0x1.8p23f + 127)

ALWAYS_INLINE vf v_set1(real a) { return vdupq_n_f32(a); }
ALWAYS_INLINE vf v_load(const real *p) { return vld1q_f32(p); }
ALWAYS_INLINE void v_store(real *p, vf a) { vst1q_f32(p, a); }

ALWAYS_INLINE vf v_add(vf a, vf b) { return vaddq_f32(a, b); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { return vsubq_f32(a, b); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { return vmulq_f32(a, b); }
ALWAYS_INLINE vf v_div(vf a, vf b) { return vdivq_f32(a, b); }
ALWAYS_INLINE vf v_sqrt(vf a) { return vsqrtq_f32(a); }
ALWAYS_INLINE vf v_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
ALWAYS_INLINE vf v_fnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
/* vminq gives NaN for either operand; the contract wants the second. */
ALWAYS_INLINE vf v_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
ALWAYS_INLINE vf v_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

ALWAYS_INLINE vf v_abs(vf a) { return vabsq_f32(a); }
ALWAYS_INLINE vf v_copysign(vf x, vf s) { return vbslq_f32(vdupq_n_u32(0x80000000u), s, x); }
ALWAYS_INLINE vf v_pow2(vf t) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(t), 23)); }
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    *low = vzip1q_f32(a, b);
    *high = vzip2q_f32(a, b);
}

#else

typedef double real;
typedef float64x2_t vf;
#define VL 2
#define V_ROUND (0x1.8p52 + 1023)

ALWAYS_INLINE vf v_set1(real a) { return vdupq_n_f64(a); }
ALWAYS_INLINE vf v_load(const real *p) { return vld1q_f64(p); }
ALWAYS_INLINE void v_store(real *p, vf a) { vst1q_f64(p, a); }

ALWAYS_INLINE vf v_add(vf a, vf b) { return vaddq_f64(a, b); }
ALWAYS_INLINE vf v_sub(vf a, vf b) { return vsubq_f64(a, b); }
ALWAYS_INLINE vf v_mul(vf a, vf b) { return vmulq_f64(a, b); }
ALWAYS_INLINE vf v_div(vf a, vf b) { return vdivq_f64(a, b); }
ALWAYS_INLINE vf v_sqrt(vf a) { return vsqrtq_f64(a); }
ALWAYS_INLINE vf v_fma(vf a, vf b, vf c) { return vfmaq_f64(c, a, b); }
ALWAYS_INLINE vf v_fnma(vf a, vf b, vf c) { return vfmsq_f64(c, a, b); }
ALWAYS_INLINE vf v_min(vf a, vf b) { return vbslq_f64(vcltq_f64(a, b), a, b); }
ALWAYS_INLINE vf v_max(vf a, vf b) { return vbslq_f64(vcgtq_f64(a, b), a, b); }

ALWAYS_INLINE vf v_abs(vf a) { return vabsq_f64(a); }
ALWAYS_INLINE vf v_copysign(vf x, vf s) { return vbslq_f64(vdupq_n_u64(UINT64_C(1) << 63), s, x); }
ALWAYS_INLINE vf v_pow2(vf t) { return vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(t), 52)); }
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    *low = vzip1q_f64(a, b);
    *high = vzip2q_f64(a, b);
}

#endif

ALWAYS_INLINE vf v_zero(void) { return v_set1(0); }
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
