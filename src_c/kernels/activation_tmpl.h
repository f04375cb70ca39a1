/* activation_tmpl.h -- sigmoid and tanh. tools/minimax.py makes every number in this file.
 *
 * Within 2.5 units in the last place wherever the result is a normal number (`make ulp`
 * measures it); never outside [0, 1] and [-1, 1], and at the ends of these for infinities;
 * NaN gives NaN, tanh(-0) is -0. Results too small for a normal number may come out as 0.
 *
 * The constant goes first in v_min and v_max: of a NaN they return the second operand.
 */
#define SIZE_OF(array) (int)(sizeof(array) / sizeof *(array))

/* ((y x + c[0]) x + c[1]) x + ... */
ALWAYS_INLINE vf v_horner(vf y, vf x, const real *c, const int count)
{
    UNROLL for (int k = 0; k < count; k++) y = v_fma(y, x, v_set1(c[k]));
    return y;
}

/* Writes x = n ln 2 / k + r, with n the nearest integer: returns r, and 2^-n in *scale. log2_e is
 * k / ln 2 and high + low is ln 2 / k. */
ALWAYS_INLINE vf v_reduce(vf x, real log2_e, real high, real low, vf *scale)
{
    const vf t = v_fnma(x, v_set1(log2_e), v_set1(V_ROUND)), n = v_sub(v_set1(V_ROUND), t);
    const vf r = v_fnma(n, v_set1(high), x);
    *scale = v_pow2(t);
    return low != 0 ? v_fnma(n, v_set1(low), r) : r;
}

#if REAL_BITS == 32
static const real SIGMOID_MIN = -89, SIGMOID_MAX = 87, TANH_MAX = 10;
static const real LOG2_E = 1.442695041f;
static const real LN2_HIGH = 0x1.62e4p-1f, LN2_LOW = 1.42860682e-6f; /* n * LN2_HIGH is exact */
static const real EXP_H[] = {-0.002765987216f, 0.1666661771f, 2.0f};
#else
static const real SIGMOID_MIN = -710, SIGMOID_MAX = 709, TANH_MAX = 20;
static const real LOG2_E = 1.44269504088896341;
static const real LN2_HIGH = 0x1.62e42fefa38p-1, LN2_LOW = 5.49792301870837117e-14;
static const real EXP_H[] = {4.13605298076254427e-8,   -1.65338373152754918e-6,
                             0.0000661375625027660298, -0.00277777777766969421,
                             0.166666666666665548,     2.0};
#endif

ALWAYS_INLINE vf v_sigmoid(vf x)
{
    vf scale;
    x = v_max(v_set1(SIGMOID_MIN), v_min(v_set1(SIGMOID_MAX), x));
    const vf r = v_reduce(x, LOG2_E, LN2_HIGH, LN2_LOW, &scale);
    const vf h = v_horner(v_set1(EXP_H[0]), v_mul(r, r), EXP_H + 1, SIZE_OF(EXP_H) - 1);
    const vf sum = v_add(h, r);
    return v_div(sum, v_fma(scale, v_sub(h, r), sum));
}

#ifndef TLO
#define TLO 0
#endif
ALWAYS_INLINE vf v_tanh(vf x)
{
    vf scale;
    const vf one = v_set1(1), half = v_set1((real)0.5);
    x = v_max(v_set1(-TANH_MAX), v_min(v_set1(TANH_MAX), x));
    const vf r = v_reduce(x, 2 * LOG2_E, TLO ? LN2_HIGH / 2 : (LN2_HIGH + LN2_LOW) / 2, TLO ? LN2_LOW / 2 : 0, &scale);
    const vf v = v_mul(r, r);
    real power = 1; for (int k = 0; k < SIZE_OF(EXP_H) - 2; k++) power *= 4;
    vf p = v_set1(EXP_H[0] * power);
    UNROLL for (int k = 1; k < SIZE_OF(EXP_H) - 1; k++) { power /= 4; p = v_fma(p, v, v_set1(EXP_H[k] * power)); }
    const vf m = v_fma(p, v, v_fnma(r, half, half));
    return v_div(v_fnma(v_sub(scale, one), m, r), v_fma(v_add(scale, one), m, r));
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
