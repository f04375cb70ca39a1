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
static const real SOFTPLUS_Q[] = {0.1400599340f, 0.1400090264f, 0.2001076362f, 0.3333320814f};
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
static const real SOFTPLUS_Q[] = {0.088698744407937180, 0.049514126634074174, 0.067931567415419294,
                                  0.076821477974860525, 0.090914070344767325, 0.11111096452376139,
                                  0.14285714528997909,  0.19999999998024856,  0.33333333333338849};
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

/* --- activations chosen at run time: a function for many vectors, for a choice takes as long as some
 * of them */

/* 1 where x is positive, else 0. The smallest normal number times V_HUGE is 1. */
ALWAYS_INLINE vf v_is_positive(vf x)
{
    return v_max(v_zero(), v_min(v_set1(1), v_mul(x, v_set1(V_HUGE))));
}

/* e^x - 1 of x <= 0, by t = tanh(x / 2): 2 t / (1 - t). */
NEVER_INLINE vf v_expm1_negative(vf x)
{
    const struct ratio t = tanh_ratio(v_mul(x, v_set1((real)0.5)));
    return v_div(v_add(t.over, t.over), v_sub(t.under, t.over));
}

/* log(1 + e^x) = max(x, 0) + log(1 + u), u = e^-|x|; log(1 + u) = 2 atanh(z), z = u / (2 + u) <= 1/3,
 * atanh(z) = z (1 + z^2 SOFTPLUS_Q(z^2)), and u = (1 + t) / (1 - t), t = tanh(-|x| / 2) */
ALWAYS_INLINE vf v_softplus(vf x)
{
    const struct ratio t = tanh_ratio(v_mul(v_abs(x), v_set1((real)-0.5)));
    const vf u = v_add(t.under, t.over), under = v_sub(t.under, t.over);
    const vf z = v_div(u, v_add(v_add(under, under), u)), v = v_mul(z, z);
    const vf sum = v_fma(v_polynomial(SOFTPLUS_Q, LENGTH(SOFTPLUS_Q), v), v, v_set1(1));
    return v_fma(v_add(z, z), sum, v_max(v_zero(), x));
}

/* The functions of a plain cell, and their derivatives of their results. */
ALWAYS_INLINE vf usual_function(const int usual, vf v)
{
    return usual == FUNCTION_SIGMOID ? v_sigmoid(v) : v_tanh(v);
}
ALWAYS_INLINE vf usual_slope(const int usual, vf y)
{
    const vf one = v_set1(1);
    return usual == FUNCTION_SIGMOID ? v_mul(y, v_sub(one, y)) : v_fnma(y, y, one);
}

/* Of v, each of `count` vectors in `rows` rows, `stride` reals apart, in place. */
#define IN_PLACE(expression) \
    do { \
        for (size_t r = 0; r < rows; r++) \
            for (size_t n = 0; n < count; n++) { \
                const vf v = v_load(x + r * stride + n * VL); \
                (void)v; \
                v_store(x + r * stride + n * VL, expression); \
            } \
        return; \
    } while (0)

/* The others, each an expression of v, alpha and beta: F(type, expression). */
#define OTHER_FUNCTIONS(F) \
    F(FUNCTION_RELU, v_max(zero, v)) \
    F(FUNCTION_HARD_SIGMOID, v_max(zero, v_min(one, v_fma(a, v, b)))) \
    F(FUNCTION_SOFTSIGN, v_div(v, v_add(one, v_abs(v)))) \
    F(FUNCTION_SOFTPLUS, v_softplus(v)) \
    F(FUNCTION_AFFINE, v_fma(a, v, b)) \
    F(FUNCTION_LEAKY_RELU, v_fma(a, v_min(zero, v), v_max(zero, v))) \
    F(FUNCTION_THRESHOLDED_RELU, v_mul(v_is_positive(v_sub(v, a)), v_max(a, v))) \
    F(FUNCTION_SCALED_TANH, v_mul(a, v_tanh(v_mul(b, v)))) \
    F(FUNCTION_ELU, v_fma(a, v_expm1_negative(v_min(zero, v)), v_max(zero, v)))

/* They call others, and need more of a stack: they are apart from the two that are in every cell. */
NEVER_INLINE void activate_otherwise(const struct cylstm_function *f, real *x, size_t stride,
                                     size_t rows, size_t count)
{
    const vf a = v_set1((real)f->alpha), b = v_set1((real)f->beta), zero = v_zero();
    const vf one = v_set1(1);
#define CASE(type, expression) case type: IN_PLACE(expression);
    switch (f->type) { OTHER_FUNCTIONS(CASE) }
#undef CASE
}
NEVER_INLINE void activate(const struct cylstm_function *f, real *x, size_t stride, size_t rows,
                           size_t count)
{
    switch (f->type) {
    case FUNCTION_SIGMOID: IN_PLACE(usual_function(FUNCTION_SIGMOID, v));
    case FUNCTION_TANH: IN_PLACE(usual_function(FUNCTION_TANH, v));
    default: activate_otherwise(f, x, stride, rows, count);
    }
}

/* Of one vector. */
NEVER_INLINE vf v_activate(const struct cylstm_function *f, vf v)
{
    const vf a = v_set1((real)f->alpha), b = v_set1((real)f->beta), zero = v_zero();
    const vf one = v_set1(1);
#define CASE(type, expression) case type: return expression;
    switch (f->type) {
    case FUNCTION_SIGMOID: return v_sigmoid(v);
    default: return v_tanh(v);
    OTHER_FUNCTIONS(CASE)
    }
#undef CASE
}

/* Their derivatives, of their results. */
NEVER_INLINE void differentiate_otherwise(const struct cylstm_function *f, real *x, size_t stride,
                                          size_t rows, size_t count)
{
    const vf a = v_set1((real)f->alpha), b = v_set1((real)f->beta), one = v_set1(1);
    switch (f->type) {
    case FUNCTION_RELU: IN_PLACE(v_is_positive(v));
    case FUNCTION_HARD_SIGMOID:
        IN_PLACE(v_mul(a, v_mul(v_is_positive(v), v_is_positive(v_sub(one, v)))));
    case FUNCTION_SOFTSIGN: IN_PLACE(v_mul(v_sub(one, v_abs(v)), v_sub(one, v_abs(v))));
    case FUNCTION_SOFTPLUS: IN_PLACE(v_sub(v_zero(), v_expm1_negative(v_sub(v_zero(), v))));
    case FUNCTION_AFFINE: IN_PLACE(a);
    case FUNCTION_LEAKY_RELU: IN_PLACE(v_fma(v_sub(one, v_is_positive(v)), a, v_is_positive(v)));
    case FUNCTION_THRESHOLDED_RELU: IN_PLACE(v_is_positive(v_abs(v)));
    case FUNCTION_SCALED_TANH: IN_PLACE(v_mul(b, v_sub(a, v_div(v_mul(v, v), a))));
    default: /* ELU */
        IN_PLACE(v_fma(v_sub(one, v_is_positive(v)), v_add(v, a), v_is_positive(v)));
    }
}
NEVER_INLINE void differentiate(const struct cylstm_function *f, real *x, size_t stride,
                                size_t rows, size_t count)
{
    switch (f->type) {
    case FUNCTION_SIGMOID: IN_PLACE(usual_slope(FUNCTION_SIGMOID, v));
    case FUNCTION_TANH: IN_PLACE(usual_slope(FUNCTION_TANH, v));
    default: differentiate_otherwise(f, x, stride, rows, count);
    }
}

/* The same, but for a cell's usual function, which needs no call: a call takes as long as a vector or
 * two. */
ALWAYS_INLINE void activate_here(const struct cylstm_function *f, const int usual, real *x,
                                 size_t stride, size_t rows, size_t count)
{
    if (f->type == usual) IN_PLACE(usual_function(usual, v));
    activate(f, x, stride, rows, count);
}
ALWAYS_INLINE void differentiate_here(const struct cylstm_function *f, const int usual, real *x,
                                      size_t stride, size_t rows, size_t count)
{
    if (f->type == usual) IN_PLACE(usual_slope(usual, v));
    differentiate(f, x, stride, rows, count);
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

/* Activations behind a clip, in place. */
NEVER_INLINE void clip_rows(real *x, double limit, size_t stride, size_t rows, size_t count)
{
    IN_PLACE(v_clip(v, limit));
}

static const real SIGNS[MAX_VL] = {-1, 1};

/* Derivatives of activations behind one, of their results, at most PANEL_VECTORS in a row. One may
 * fall; and below a threshold, where its slope is 0 anyway, one is 0, not what it is at either end. */
NEVER_INLINE void differentiate_gates(const struct cylstm_options *o, int function, real *y,
                                      size_t stride, size_t rows, size_t count)
{
    const struct cylstm_function *f = &o->function[function];
    if (o->clip == 0) {
        differentiate(f, y, stride, rows, count);
        return;
    }
    const vf limit = v_set1((real)o->clip), least = v_sub(v_zero(), limit);
    real ends[MAX_VL], inside[PANEL_VECTORS * MAX_VL];
    v_store(ends, v_mul(v_load(SIGNS), limit));
    activate(f, ends, 0, 1, 1);
    const vf a = v_set1(ends[0]), b = v_set1(ends[1]), highest = v_max(a, b);
    const vf lowest = f->type == FUNCTION_THRESHOLDED_RELU ? least : v_min(a, b);
    for (size_t r = 0; r < rows; r++, y += stride) {
        for (size_t n = 0; n < count; n++)
            v_store(inside + n * VL, v_unclipped(v_load(y + n * VL), lowest, highest));
        differentiate(f, y, 0, 1, count);
        for (size_t n = 0; n < count; n++)
            v_store(y + n * VL, v_mul(v_load(y + n * VL), v_load(inside + n * VL)));
    }
}

/* Of one vector. */
#define OF_ONE_VECTOR(call) \
    real x[MAX_VL]; \
    v_store(x, v); \
    call; \
    return v_load(x)
NEVER_INLINE vf v_slope(const struct cylstm_function *f, vf v)
{
    OF_ONE_VECTOR(differentiate(f, x, 0, 1, 1));
}
NEVER_INLINE vf v_gate(const struct cylstm_options *o, int function, vf v)
{
    return v_activate(&o->function[function], o->clip != 0 ? v_clip(v, o->clip) : v);
}
NEVER_INLINE vf v_gate_slope(const struct cylstm_options *o, int function, vf v)
{
    OF_ONE_VECTOR(differentiate_gates(o, function, x, 0, 1, 1));
}

/* The same, but for a cell's usual function, which stays in registers. */
ALWAYS_INLINE vf v_activate_here(const struct cylstm_function *f, const int usual, vf v)
{
    return f->type == usual ? usual_function(usual, v) : v_activate(f, v);
}
ALWAYS_INLINE vf v_gate_here(const struct cylstm_options *o, int function, const int usual, vf v)
{
    return v_activate_here(&o->function[function], usual, o->clip != 0 ? v_clip(v, o->clip) : v);
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
