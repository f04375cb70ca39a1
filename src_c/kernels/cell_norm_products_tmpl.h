/* cell_norm_products_tmpl.h -- the LSTM whose products are normalised, each over the units of all gates
 * together, forward and, directly below it, backward. As Haste has it, with N(s) = (s - mean(s)) /
 * sqrt(variance(s) + 1e-5):
 *
 *     a = w_x * N(W_ih x_t) + w_h * N(W_hh h_{t-1}) + b               i, f, g and o side by side
 *     c_t = f * c_{t-1} + i * g,   h_t = o * tanh(w_c * N(c_t) + b_c)
 *
 * with the options of cell_lstm_any_tmpl.h but for peepholes and coupled gates. Both products keep
 * their sums, which are on the tape.
 */

static const double PRODUCTS_EPSILON = 1e-5;

/* The moments of `gates` rows of H, `each` apart, as one; what pads them counts for nothing. */
ALWAYS_INLINE struct moments joint_moments(const real *s, size_t each, size_t H, const int gates)
{
    const size_t whole = H / VL * VL;
    const real count = (real)gates * (real)H;
    vf sum[GATES] = {v_zero(), v_zero(), v_zero(), v_zero()},
       square[GATES] = {v_zero(), v_zero(), v_zero(), v_zero()};
    for (size_t u = 0; u < whole; u += VL) add_vectors(sum, s + u, each, gates, VL);
    if (whole < H) add_vectors(sum, s + whole, each, gates, H - whole);
    const vf all = v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3]));
    const vf mean = v_set1(v_sum(all) / count), means[GATES] = {mean, mean, mean, mean};
    for (size_t u = 0; u < whole; u += VL) add_squares(square, s + u, each, gates, means, VL);
    if (whole < H) add_squares(square, s + whole, each, gates, means, H - whole);
    const vf squares = v_add(v_add(square[0], square[1]), v_add(square[2], square[3]));
    return (struct moments){mean, by_variance(v_sum(squares) / count, PRODUCTS_EPSILON)};
}
NEVER_INLINE struct moments moments_of_product(const real *s, size_t each, size_t H)
{
    return joint_moments(s, each, H, GATES);
}
NEVER_INLINE struct moments moments_of_cell(const real *c, size_t H)
{
    return joint_moments(c, 0, H, 1);
}

/* A vector of pre-activations of a gate; and both sums to the tape, if there is one. */
ALWAYS_INLINE vf products_preact(const struct cylstm_cell *cell, const struct moments m[2],
                                 size_t gate, const real *s, const real *s_h, real *tape, size_t u,
                                 size_t n)
{
    const size_t H = cell->H, all = GATES * H, each = padded_units(H), at = gate * H + u;
    const vf of_x = v_load(s + gate * each + u), of_h = v_load(s_h + gate * each + u);
    if (tape) {
        v_store_n(tape + at, of_x, n);
        v_store_n(tape + all + at, of_h, n);
    }
    return v_fma(v_load_n((const real *)cell->norm + at, n), normal(&m[0], of_x),
                 v_fma(v_load_n((const real *)cell->norm_h + at, n), normal(&m[1], of_h),
                       biases(cell, at, n)));
}

/* What c is shown as, before its activation. */
ALWAYS_INLINE vf products_shown(const struct cylstm_cell *cell, const struct moments *m, vf c,
                                size_t u, size_t n)
{
    return v_fma(v_load_n((const real *)cell->norm_c + u, n), normal(m, c),
                 v_load_n((const real *)cell->bias_c + u, n));
}

/* Whole rows, of which `sums` and `sums_h` hold what the products kept; `sums` are overwritten. */
static void norm_products_forward(const struct cylstm_cell *cell, size_t rows)
{
    const struct cylstm_options *o = cell->options;
    const size_t H = cell->H, each = padded_units(H);
    for (size_t k = 0; k < rows; k++) {
        real *s = row_of(&cell->sums, k), *s_o = s + GATE_O * each;
        const real *s_h = row_of(&cell->sums_h, k);
        real *tape = cell->tape.base ? row_of(&cell->tape, k) + GATES * H : NULL;
        const struct moments m[2] = {moments_of_product(s, each, H),
                                     moments_of_product(s_h, each, H)};
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            vf a[GATES];
    UNROLL for (size_t gate = 0; gate < GATES; gate++)
                a[gate] = products_preact(cell, m, gate, s, s_h, tape, u, n);
            v_store(s_o + u, v_gate_here(o, 0, FUNCTION_SIGMOID, a[GATE_O]));
            v_store(s + u, cell_of(cell, k, a[GATE_I], a[GATE_F], a[GATE_G], u));
        }
        const struct moments of_c = moments_of_cell(s, H);
        for (size_t u = 0; u < H; u += VL) {
            const vf shown = products_shown(cell, &of_c, v_load(s + u), u, valid(u, H));
            next_hidden(cell, k, v_load(s_o + u),
                        v_activate_here(&o->function[2], FUNCTION_TANH, shown), u);
        }
    }
}

/* Whole rows, of which `sums` holds dh. `h` gets m = o * F2(.), perhaps in its place; `dnorm` is
 * da (4, H), da * N(x's) (4, H), da * N(h's) (4, H), and of what c is shown as, likewise, (H), (H). */
static void norm_products_backward(const struct cylstm_cell *cell, size_t rows)
{
    const size_t H = cell->H, all = GATES * H;
    struct stretch s;
    for (size_t k = 0; k < rows; k++) {
        const real *tape = row_of(&cell->tape, k), *cells = tape + cell_place(cell);
        real *dc_row = row_of(&cell->dc, k), *dgates = row_of(&cell->dgates, k);
        real *da = row_of(&cell->dnorm, k), *dweight_c = da + 3 * all, *dshown = dweight_c + H;
        const struct moments of_c = moments_of_cell(cells, H);
        for (size_t from = 0; from < H; from += STRETCH) {
            begin_stretch(&s, k, from, H);
            for (size_t v = 0, u = from; v < s.count; v++, u += VL) {
                const size_t n = valid(u, H);
                v_store(s.shown + v * VL,
                        products_shown(cell, &of_c, v_load_n(cells + u, n), u, n));
            }
            hidden_back(cell, &s, row_of(&cell->sums, k) + from);
            for (size_t v = 0, u = from; v < s.count; v++, u += VL)
                v_store_n(dshown + u, v_mul(v_load(s.dh_o + v * VL), v_load(s.shown + v * VL)),
                          valid(u, H));
            store_gates(cell, &s, GATE_O, GATES, da);
        }
        /* its way through the norm passes dgates, which are overwritten below */
        norm_row_back(&of_c, cell->norm_c, cells, H, dshown, dweight_c, dgates);
        for (size_t from = 0; from < H; from += STRETCH) {
            begin_stretch(&s, k, from, H);
            for (size_t v = 0, u = from; v < s.count; v++, u += VL)
                v_store(s.dc + v * VL,
                        v_add(v_load_n(dgates + u, valid(u, H)), v_load(dc_row + u)));
            cell_back(cell, &s);
            store_gates(cell, &s, GATE_I, GATE_O, da);
        }
        const real *of_x = tape + all, *of_h = of_x + all;
        const struct moments m[2] = {moments_of_product(of_x, H, H),
                                     moments_of_product(of_h, H, H)};
        norm_row_back(&m[0], cell->norm, of_x, all, da, da + all, dgates);
        norm_row_back(&m[1], cell->norm_h, of_h, all, da, da + 2 * all, dgates + all);
    }
}

/* The tangents of the equations above. A vector of ds goes to the averages of a norm; and once they are
 * whole, d(weight * N(s)) = dweight * z + weight * (ds - mean(ds) - z * mean(ds * z)) / deviation. */
ALWAYS_INLINE void take_tangent(struct norm_back *b, const real *s, vf ds, size_t n)
{
    b->dz = v_add(b->dz, ds);
    b->dz_z = v_fma(ds, normal(&b->m, v_load_n(s, n)), b->dz_z);
}
NEVER_INLINE vf give_tangent(const struct norm_back *b, const void *weight, const void *dweight,
                             size_t at, const real *s, vf ds, size_t n)
{
    const vf z = normal(&b->m, v_load_n(s, n));
    const vf dz = v_mul(b->m.by, v_fnma(z, b->dz_z, v_sub(ds, b->dz)));
    return v_fma(v_load_n((const real *)weight + at, n), dz, v_mul(tangent_at(dweight, at, n), z));
}

/* Of a product's sums, (4, H padded), whose values are on the tape. */
NEVER_INLINE struct norm_back product_tangents(const real *tape, const real *ds, size_t H)
{
    struct norm_back b = {moments_of_product(tape, H, H), v_zero(), v_zero()};
    for (size_t gate = 0; gate < GATES; gate++)
        for (size_t u = 0; u < H; u += VL)
            take_tangent(&b, tape + gate * H + u, v_load(ds + gate * padded_units(H) + u),
                         valid(u, H));
    norm_average(&b, GATES * H);
    return b;
}

/* Whole rows, of which `sums` and `sums_h` hold the tangents of the products' sums, zero past the last
 * unit. */
static void norm_products_tangent(const struct cylstm_cell *cell, size_t rows)
{
    const struct cylstm_cell *d = cell->tangent;
    const struct cylstm_options *options = cell->options;
    const size_t H = cell->H, each = padded_units(H);
    for (size_t k = 0; k < rows; k++) {
        const real *tape = row_of(&cell->tape, k), *cells = tape + 3 * GATES * H;
        real *s = row_of(&cell->sums, k), *da_o = s + GATE_O * each;
        const real *s_h = row_of(&cell->sums_h, k);
        const struct norm_back of_x = product_tangents(tape + GATES * H, s, H),
                               of_h = product_tangents(tape + 2 * GATES * H, s_h, H);
        struct norm_back of_c = {moments_of_cell(cells, H), v_zero(), v_zero()};
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            vf da[GATES];
            for (size_t gate = 0; gate < GATES; gate++) {
                const size_t at = gate * H + u;
                const vf ds_x = v_load(s + gate * each + u),
                         ds_h = v_load(s_h + gate * each + u);
                da[gate] = v_add(tangent_at(d->b_ih, at, n), tangent_at(d->b_hh, at, n));
                da[gate] = v_add(da[gate], give_tangent(&of_x, cell->norm, d->norm, at,
                                                        tape + GATES * H + at, ds_x, n));
                da[gate] = v_add(da[gate], give_tangent(&of_h, cell->norm_h, d->norm_h, at,
                                                        tape + 2 * GATES * H + at, ds_h, n));
            }
            const vf dc = cell_tangent(cell, k, u, da[GATE_I], da[GATE_F], da[GATE_G]);
            take_tangent(&of_c, cells + u, dc, n);
            v_store(da_o + u, da[GATE_O]);
        }
        norm_average(&of_c, H);
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            const vf dc = v_load(row_of(&d->c, k) + u), o = v_load_n(tape + GATE_O * H + u, n);
            const vf shown = v_activate(
                &options->function[2], products_shown(cell, &of_c.m, v_load_n(cells + u, n), u, n));
            const vf d_in = v_add(give_tangent(&of_c, cell->norm_c, d->norm_c, u, cells + u, dc, n),
                                  tangent_at(d->bias_c, u, n));
            const vf d_o = v_mul(v_load(da_o + u), v_gate_slope(options, 0, o));
            const vf d_shown = v_mul(v_slope(&options->function[2], shown), d_in);
            const vf mask = v_load_n(ONES, n);
            put_tangent(d, k, u, v_mul(v_fma(d_o, shown, v_mul(o, d_shown)), mask));
            if (cell->h.base) v_store(row_of(&cell->h, k) + u, v_mul(v_mul(o, shown), mask));
        }
    }
}
