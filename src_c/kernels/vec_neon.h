/* Op table for AArch64 Advanced SIMD: 4 floats or 2 doubles. The contract stands in vec_scalar.h. */
#define V_FENCE() ((void)0)
#define TILE_ROWS 5 /* with six, gcc keeps three of the 24 sums in memory */
#define NARROW_ROWS 5
#define BF16_ROWS 4

#if REAL_BITS == 32

typedef float real;
typedef float32x4_t vf;
#define VL 4
#define V_ROUND (0x1.8p23f + 127)

ALWAYS_INLINE vf v_set1(real a) { return vdupq_n_f32(a); }
ALWAYS_INLINE vf v_load(const real *p) { return vld1q_f32(p); }
ALWAYS_INLINE void v_store(real *p, vf a) { vst1q_f32(p, a); }
ALWAYS_INLINE void v_stream(real *p, vf a) { v_store(p, a); }

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
ALWAYS_INLINE real v_sum(vf a) {
    const float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
}
ALWAYS_INLINE vf v_pow2(vf t) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(t), 23)); }
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    *low = vzip1q_f32(a, b);
    *high = vzip2q_f32(a, b);
}

/* Two bfloat16 to a lane; see bf16_tmpl.h. */
ALWAYS_INLINE vf v_low_bf16(vf pair) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(pair), 16));
}
ALWAYS_INLINE vf v_high_bf16(vf pair) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(pair), vdupq_n_u32(0xffff0000u)));
}

/* Four int8 to a lane; see int8_tmpl.h. */
typedef int8x16_t vi;
#define INT8_ROWS 4
#define CODE_OF_ZERO 0
ALWAYS_INLINE vi v_load_i(const void *p) { return vld1q_s8(p); }
ALWAYS_INLINE vi v_set1_i(int32_t a) { return vreinterpretq_s8_s32(vdupq_n_s32(a)); }
ALWAYS_INLINE vi v_add_i(vi a, vi b) {
    return vreinterpretq_s8_s32(vaddq_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}
ALWAYS_INLINE vf v_from_i(vi a) { return vcvtq_f32_s32(vreinterpretq_s32_s8(a)); }
ALWAYS_INLINE void v_store_low_bytes(void *p, vf a) {
    const uint16x4_t words = vmovn_u32(vreinterpretq_u32_f32(a));
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
    vst1_lane_u32(p, vreinterpret_u32_u8(bytes), 0);
}
#if defined(DOT_BF16)
#define BF16DOT_ROWS 5
ALWAYS_INLINE vf v_dot_bf16(vi a, vi w, vf sum) {
    return vbfdotq_f32(sum, vreinterpretq_bf16_s8(a), vreinterpretq_bf16_s8(w));
}
ALWAYS_INLINE void v_store_bf16(void *p, vf a) { vst1_u8(p, vreinterpret_u8_bf16(vcvt_bf16_f32(a))); }
#endif
#if defined(DOT_SDOT)
ALWAYS_INLINE vi v_dot(vi a, vi w, vi sum) {
    return vreinterpretq_s8_s32(vdotq_s32(vreinterpretq_s32_s8(sum), a, w));
}
#else
ALWAYS_INLINE vi v_dot(vi a, vi w, vi sum) {
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(w)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(a, w));
    return v_add_i(sum, vreinterpretq_s8_s32(vpaddq_s32(low, high)));
}
#endif

#else

typedef double real;
typedef float64x2_t vf;
#define VL 2
#define V_ROUND (0x1.8p52 + 1023)

ALWAYS_INLINE vf v_set1(real a) { return vdupq_n_f64(a); }
ALWAYS_INLINE vf v_load(const real *p) { return vld1q_f64(p); }
ALWAYS_INLINE void v_store(real *p, vf a) { vst1q_f64(p, a); }
ALWAYS_INLINE void v_stream(real *p, vf a) { v_store(p, a); }

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
ALWAYS_INLINE real v_sum(vf a) { return vgetq_lane_f64(a, 0) + vgetq_lane_f64(a, 1); }
ALWAYS_INLINE vf v_pow2(vf t) { return vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(t), 52)); }
ALWAYS_INLINE void v_zip(vf a, vf b, vf *low, vf *high) {
    *low = vzip1q_f64(a, b);
    *high = vzip2q_f64(a, b);
}

#endif

ALWAYS_INLINE vf v_zero(void) { return v_set1(0); }
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

ALWAYS_INLINE vf v_keep(vf a) { __asm__("" : "+w"(a)); return a; }
