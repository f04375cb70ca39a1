/* activation_tmpl.h -- sigmoid and tanh. tools/minimax.py computes the tables.
 *
 * Within 3 units in the last place wherever the result is a normal number (`make ulp` measures
 * it); a smaller one may come out as 0. Never outside [0, 1] or [-1, 1], and at their ends for
 * infinities. tanh is odd to the bit, -0 included. NaN gives NaN: of a NaN, v_min and v_max
 * return their second operand, so the constant comes first.
 *
 * Both divide, so the exponential that both need is left as a quotient:
 *
 *     e^-r = (h - r) / (h + r)    h = r coth(r / 2), an even function of r
 *
 * A polynomial in r^2 for h has half the terms of one in r for e^-r.
 */

#if REAL_BITS == 32
static const real LOG2_E = 1.442695041f;
static const real LN2_HIGH = 0.6931457520f;
static const real LN2_LOW = 1.428606820e-06f;
static const real SIGMOID_H[] = {-0.002765987216f, 0.1666661771f, 2.000000000f};
static const real TANH_M[] = {-0.01106394886f, 0.1666661771f};
static const real SIGMOID_MIN = -89, SIGMOID_MAX = 88, TANH_MAX = 10, V_HUGE = 0x1p126f;
enum { SOFTPLUS_TERMS = 8 };
#else
static const real LOG2_E = 1.4426950408889634;
static const real LN2_HIGH = 0.69314718055989033;
static const real LN2_LOW = 5.4979230187083712e-14;
static const real SIGMOID_H[] = {4.1360529807625442e-08, -1.6533837315275491e-06,
                                 6.6137562502766026e-05, -0.0027777777776696942,
                                 0.16666666666666555,    2.0000000000000000};
static const real TANH_M[] = {1.0588295630752113e-05, -0.00010581655881776315,
                              0.0010582010000442564, -0.011111111110678777, 0.16666666666666555};
static const real SIGMOID_MIN = -710, SIGMOID_MAX = 709, TANH_MAX = 20, V_HUGE = 0x1p1022;
enum { SOFTPLUS_TERMS = 17 };
#endif

#define LENGTH(array) (int)(sizeof(array) / sizeof *(array))

/* c[0] x^(count - 1) + ... + c[count - 1] */
ALWAYS_INLINE vf v_polynomial(const real *c, const int count, vf x)
{
    vf y = v_set1(c[0]);
    UNROLL for (int k = 1; k < count; k++) y = v_fma(y, x, v_set1(c[k]));
    return y;
}

/* A result that is still to be divided: products of such results need one division only. */
struct ratio {
    vf over, under;
};

/* 1 / (1 + e^-x), where x = n ln 2 + r. At SIGMOID_MIN 2^-n is infinite and the quotient 0. n times
 * LN2_HIGH is exact, so that where the result is small its relative error is small too. */
ALWAYS_INLINE struct ratio sigmoid_ratio(vf x)
{
    x = v_max(v_set1(SIGMOID_MIN), v_min(v_set1(SIGMOID_MAX), x));
    const vf t = v_fnma(x, v_set1(LOG2_E), v_set1(V_ROUND)), n = v_sub(v_set1(V_ROUND), t);
    const vf r = v_fnma(n, v_set1(LN2_LOW), v_fnma(n, v_set1(LN2_HIGH), x));
    const vf h = v_polynomial(SIGMOID_H, LENGTH(SIGMOID_H), v_mul(r, r));
    const vf sum = v_add(h, r);
    return (struct ratio){sum, v_fma(v_pow2(t), v_sub(h, r), sum)};
}

/* (1 - E) / (1 + E), where E = e^-2|x|. With |x| = n ln 2 / 2 + r, s = 2^-n and
 * m = (r coth r - r) / 2 = 1/2 - r / 2 + r^2 TANH_M(r^2), E is s m / (m + r) and the quotient is
 *
 *     ((1 - s) m + r) / ((1 - s) m + r + 2 s m)
 *
 * Its numerator loses nothing to cancellation near 0, and its denominator cannot come out as the
 * smaller of the two. One constant for ln 2 is enough here: where n is large, E is small. */
ALWAYS_INLINE struct ratio tanh_ratio(vf x)
{
    const vf one = v_set1(1), half = v_set1((real)0.5);
    const vf z = v_min(v_set1(TANH_MAX), v_abs(x));
    const vf t = v_fnma(z, v_set1(2 * LOG2_E), v_set1(V_ROUND)), n = v_sub(v_set1(V_ROUND), t);
    const vf r = v_fnma(n, v_set1((LN2_HIGH + LN2_LOW) / 2), z), v = v_mul(r, r);
    const vf m = v_fma(v_polynomial(TANH_M, LENGTH(TANH_M), v), v, v_fnma(half, r, half));
    const vf s = v_pow2(t), numerator = v_fma(v_sub(one, s), m, r);
    return (struct ratio){v_copysign(numerator, x), v_fma(v_add(s, s), m, numerator)};
}

ALWAYS_INLINE vf divided(struct ratio a) { return v_div(a.over, a.under); }

/* A denominator of tanh is between 2/5 and 6/5: it takes no product out of range. */
ALWAYS_INLINE vf product_of(struct ratio sigmoid, struct ratio tanh)
{
    return v_div(v_mul(sigmoid.over, tanh.over), v_mul(sigmoid.under, tanh.under));
}

ALWAYS_INLINE vf v_sigmoid(vf x) { return divided(sigmoid_ratio(x)); }
ALWAYS_INLINE vf v_tanh(vf x) { return divided(tanh_ratio(x)); }

/* --- activations chosen at run time: functions of their own, for a cell has up to five */

/* 1 where x is positive, else 0. The smallest normal number times V_HUGE is 1. */
ALWAYS_INLINE vf v_is_positive(vf x)
{
    return v_max(v_zero(), v_min(v_set1(1), v_mul(x, v_set1(V_HUGE))));
}

/* e^x - 1 of x <= 0, by t = tanh(x / 2). */
NEVER_INLINE vf v_expm1_negative(vf x)
{
    const vf t = v_tanh(v_mul(x, v_set1((real)0.5)));
    return v_div(v_add(t, t), v_sub(v_set1(1), t));
}

/* log(1 + e^x) = max(x, 0) + log(1 + u), u = e^-|x|; log(1 + u) = 2 atanh(z), z = u / (2 + u) <= 1/3 */
ALWAYS_INLINE vf v_softplus(vf x)
{
    const vf u = v_add(v_set1(1), v_expm1_negative(v_sub(v_zero(), v_abs(x))));
    const vf z = v_div(u, v_add(v_set1(2), u)), v = v_mul(z, z);
    vf sum = v_set1((real)1 / (2 * SOFTPLUS_TERMS + 1));
    for (int k = SOFTPLUS_TERMS - 1; k >= 0; k--)
        sum = v_fma(sum, v, v_set1((real)1 / (real)(2 * k + 1)));
    return v_fma(v_add(z, z), sum, v_max(v_zero(), x));
}

NEVER_INLINE vf v_activate(const struct cylstm_function *f, vf x)
{
    const vf a = v_set1((real)f->alpha), b = v_set1((real)f->beta), zero = v_zero();
    switch (f->type) {
    case FUNCTION_SIGMOID: return v_sigmoid(x);
    case FUNCTION_RELU: return v_max(zero, x);
    case FUNCTION_HARD_SIGMOID: return v_max(zero, v_min(v_set1(1), v_fma(a, x, b)));
    case FUNCTION_SOFTSIGN: return v_div(x, v_add(v_set1(1), v_abs(x)));
    case FUNCTION_SOFTPLUS: return v_softplus(x);
    case FUNCTION_AFFINE: return v_fma(a, x, b);
    case FUNCTION_LEAKY_RELU: return v_fma(a, v_min(zero, x), v_max(zero, x));
    case FUNCTION_THRESHOLDED_RELU: return v_mul(v_is_positive(v_sub(x, a)), v_max(a, x));
    case FUNCTION_SCALED_TANH: return v_mul(a, v_tanh(v_mul(b, x)));
    case FUNCTION_ELU: return v_fma(a, v_expm1_negative(v_min(zero, x)), v_max(zero, x));
    default: return v_tanh(x);
    }
}

/* Its derivative, of its result y. */
NEVER_INLINE vf v_slope(const struct cylstm_function *f, vf y)
{
    const vf a = v_set1((real)f->alpha), b = v_set1((real)f->beta), one = v_set1(1);
    const vf positive = v_is_positive(y), negative = v_sub(one, positive);
    switch (f->type) {
    case FUNCTION_SIGMOID: return v_mul(y, v_sub(one, y));
    case FUNCTION_RELU: return positive;
    case FUNCTION_HARD_SIGMOID: return v_mul(a, v_mul(positive, v_is_positive(v_sub(one, y))));
    case FUNCTION_SOFTSIGN: return v_mul(v_sub(one, v_abs(y)), v_sub(one, v_abs(y)));
    case FUNCTION_SOFTPLUS: return v_sub(v_zero(), v_expm1_negative(v_sub(v_zero(), y)));
    case FUNCTION_AFFINE: return a;
    case FUNCTION_LEAKY_RELU: return v_fma(negative, a, positive);
    case FUNCTION_THRESHOLDED_RELU: return v_is_positive(v_abs(y));
    case FUNCTION_SCALED_TANH: return v_mul(b, v_sub(a, v_div(v_mul(y, y), a)));
    case FUNCTION_ELU: return v_fma(negative, v_add(y, a), positive);
    default: return v_fnma(y, y, one);
    }
}

/* x in [-limit, limit]; NaN stays. */
ALWAYS_INLINE vf v_clip(vf x, double limit)
{
    return v_max(v_set1((real)-limit), v_min(v_set1((real)limit), x));
}

/* 1 where y is the result of an x that no clip has changed, else 0. */
ALWAYS_INLINE vf v_unclipped(vf y, vf lowest, vf highest)
{
    return v_mul(v_is_positive(v_sub(y, lowest)), v_is_positive(v_sub(highest, y)));
}

/* The same of the result y of an activation behind a clip. An activation may fall; and below a
 * threshold, where its slope is 0 anyway, one is 0, not what it is at either end. */
NEVER_INLINE vf v_inside_clip(const struct cylstm_function *f, double clip, vf y)
{
    const vf limit = v_set1((real)clip), least = v_sub(v_zero(), limit);
    const vf a = v_activate(f, least), b = v_activate(f, limit);
    const vf lowest = f->type == FUNCTION_THRESHOLDED_RELU ? least : v_min(a, b);
    return v_unclipped(y, lowest, v_max(a, b));
}

/* An activation behind a clip, and its derivative. */
ALWAYS_INLINE vf v_gate(const struct cylstm_options *o, int function, vf x)
{
    return v_activate(&o->function[function], o->clip != 0 ? v_clip(x, o->clip) : x);
}

ALWAYS_INLINE vf v_gate_slope(const struct cylstm_options *o, int function, vf y)
{
    const struct cylstm_function *f = &o->function[function];
    const vf slope = v_slope(f, y);
    return o->clip == 0 ? slope : v_mul(slope, v_inside_clip(f, o->clip, y));
}

static void sigmoid_array(const void *in, void *out, size_t n)
{
    const real *x = in;
    real *y = out;
    for (; n >= VL; n -= VL, x += VL, y += VL) v_store(y, v_sigmoid(v_load(x)));
    v_store_n(y, v_sigmoid(v_load_n(x, n)), n);
}

static void tanh_array(const void *in, void *out, size_t n)
{
    const real *x = in;
    real *y = out;
    for (; n >= VL; n -= VL, x += VL, y += VL) v_store(y, v_tanh(v_load(x)));
    v_store_n(y, v_tanh(v_load_n(x, n)), n);
}
