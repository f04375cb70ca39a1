/* activation_tmpl.h -- sigmoid and tanh. tools/minimax.py computes the tables.
 *
 * Within 2.6 units in the last place wherever the result is a normal number (`make ulp`
 * measures it); a smaller result may come out as 0. Never outside [0, 1] or [-1, 1], and at
 * their ends for infinities. tanh is odd to the bit, -0 included. NaN gives NaN: v_min and
 * v_max return their second operand then, so the constant comes first.
 *
 * Both rest on an exponential that is left as a quotient, because they divide in any case:
 *
 *     e^-x = 2^-n (h - r) / (h + r)    x = n ln 2 + r, |r| <= ln 2 / 2, h = r coth(r / 2)
 *
 * h is an even function of r, and half as many terms of it are needed as of e^r itself.
 */

#if REAL_BITS == 32
static const real LOG2_E = 1.442695041f;
static const real LN2_HIGH = 0.693145752f, LN2_LOW = 1.42860682e-06f; /* n LN2_HIGH is exact */
static const real SIGMOID_H[] = {-0.002765987216f, 0.1666661771f, 2.0f};
static const real TANH_M[] = {-0.01106394886f, 0.1666661771f};
static const real SIGMOID_MIN = -89.0f, SIGMOID_MAX = 88.0f, TANH_MAX = 10.0f;
#else
static const real LOG2_E = 1.4426950408889634;
static const real LN2_HIGH = 0.69314718055989033, LN2_LOW = 5.4979230187083712e-14;
static const real SIGMOID_H[] = {4.1360529807625443e-08, -1.6533837315275492e-06,
                                 6.613756250276603e-05,  -0.0027777777776696942,
                                 0.16666666666666555,    2.0};
static const real TANH_M[] = {1.0588295630752113e-05, -0.00010581655881776315,
                              0.0010582010000442565,  -0.011111111110678777, 0.16666666666666555};
static const real SIGMOID_MIN = -710.0, SIGMOID_MAX = 709.0, TANH_MAX = 20.0;
#endif

#define LENGTH(array) (int)(sizeof(array) / sizeof *(array))

/* c[0] x^(count - 1) + ... + c[count - 1] */
ALWAYS_INLINE vf v_polynomial(const real *c, const int count, vf x)
{
    vf y = v_set1(c[0]);
    UNROLL for (int k = 1; k < count; k++) y = v_fma(y, x, v_set1(c[k]));
    return y;
}

/* 1 / (1 + e^-x). Below SIGMOID_MIN, 2^-n is infinite and the quotient 0. */
ALWAYS_INLINE vf v_sigmoid(vf x)
{
    x = v_max(v_set1(SIGMOID_MIN), v_min(v_set1(SIGMOID_MAX), x));
    const vf t = v_fnma(x, v_set1(LOG2_E), v_set1(V_ROUND)), n = v_sub(v_set1(V_ROUND), t);
    const vf r = v_fnma(n, v_set1(LN2_LOW), v_fnma(n, v_set1(LN2_HIGH), x));
    const vf h = v_polynomial(SIGMOID_H, LENGTH(SIGMOID_H), v_mul(r, r));
    const vf sum = v_add(h, r);
    return v_div(sum, v_fma(v_pow2(t), v_sub(h, r), sum));
}

/* (1 - E) / (1 + E), E = e^-2|x| = s m / (m + r), where |x| = n ln 2 / 2 + r, s = 2^-n and
 * m = (h(2 r) / 2 - r) / 2 = 1/2 - r / 2 + r^2 TANH_M(r^2). The numerator is spelt so that nothing cancels
 * near 0, the denominator so that it cannot come out as the smaller one. A single constant
 * for ln 2 is enough here: where n is large, E is small. */
ALWAYS_INLINE vf v_tanh(vf x)
{
    const vf one = v_set1(1), half = v_set1((real)0.5);
    const vf z = v_min(v_set1(TANH_MAX), v_abs(x));
    const vf t = v_fnma(z, v_set1(2 * LOG2_E), v_set1(V_ROUND)), n = v_sub(v_set1(V_ROUND), t);
    const vf r = v_fnma(n, v_set1((LN2_HIGH + LN2_LOW) / 2), z), v = v_mul(r, r);
    const vf m = v_fma(v_polynomial(TANH_M, LENGTH(TANH_M), v), v, v_fnma(half, r, half));
    const vf s = v_pow2(t), numerator = v_fma(v_sub(one, s), m, r);
    return v_copysign(v_div(numerator, v_fma(v_add(s, s), m, numerator)), x);
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
