/* cell_tmpl.h -- what cells share: activations, which options may replace, and their derivatives of
 * their results; and how a cell's math, written once, becomes two functions.
 */

/* sigmoid, or function 0 of the options. */
ALWAYS_INLINE vf gate(const struct cylstm_options *o, vf a)
{
    return o ? v_gate(o, 0, a) : v_sigmoid(a);
}
ALWAYS_INLINE vf gate_slope(const struct cylstm_options *o, vf y)
{
    return o ? v_gate_slope(o, 0, y) : v_mul(y, v_sub(v_set1(1), y));
}

/* tanh, or a function of the options. */
ALWAYS_INLINE vf squash(const struct cylstm_options *o, int function, vf a)
{
    return o ? v_gate(o, function, a) : v_tanh(a);
}
ALWAYS_INLINE vf squash_slope(const struct cylstm_options *o, int function, vf y)
{
    return o ? v_gate_slope(o, function, y) : v_fnma(y, y, v_set1(1));
}

/* NAME_by(..., options) plain, without a trace of options, and as NAME_any, by the options of each
 * call. */
#define CELL(NAME) \
    static void NAME(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows, \
                     void *sums) \
    { \
        NAME##_by(cell, panel, row, rows, sums, NULL); \
    } \
    static void NAME##_any(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows, \
                           void *sums) \
    { \
        NAME##_by(cell, panel, row, rows, sums, cell->options); \
    }

/* With options: what a cell adds to dh_{t-1}, beside what zoneout has put there. */
ALWAYS_INLINE vf kept_too(const struct cylstm_options *o, const struct cylstm_cell *cell,
                          const real *dh_prev, vf d)
{
    return o && cell->zoneout ? v_add(d, v_load(dh_prev)) : d;
}

/* With options: what a loss says of gate `gate` on the tape, beside what it does to h and c. */
ALWAYS_INLINE vf given_too(const struct cylstm_options *o, const struct cylstm_cell *cell, size_t k,
                           size_t gate, size_t u, vf d)
{
    if (!o || !cell->given_gates.base) return d;
    const real *row = row_of(&cell->given_gates, k) + gate * cell->H;
    return v_add(d, v_load_n(row + u, valid(u, cell->H)));
}

/* n reals of an array of tangents, which may be missing: zeros. */
ALWAYS_INLINE vf tangent_at(const void *array, size_t at, size_t n)
{
    return array ? v_load_n((const real *)array + at, n) : v_zero();
}

/* dh_t, to the next step and to the user. */
ALWAYS_INLINE void put_tangent(const struct cylstm_cell *d, size_t k, size_t u, vf dh)
{
    v_store(row_of(&d->h, k) + u, dh);
    if (d->y.base) v_store_n(row_of(&d->y, k) + u, dh, valid(u, d->H));
}
