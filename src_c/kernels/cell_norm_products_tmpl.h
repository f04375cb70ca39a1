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

ALWAYS_INLINE void add_vectors(vf *sum, const real *s, size_t each, size_t gates, size_t n)
{
    UNROLL for (size_t g = 0; g < gates; g++) sum[g] = v_add(sum[g], v_load_n(s + g * each, n));
}
ALWAYS_INLINE void add_squares(vf *sum, const real *s, size_t each, size_t gates, vf mean, size_t n)
{
    UNROLL for (size_t g = 0; g < gates; g++)
    {
        vf d = v_sub(v_load_n(s + g * each, n), mean);
        if (n < VL) d = v_mul(d, v_load_n(ONES, n));
        sum[g] = v_fma(d, d, sum[g]);
    }
}

/* The moments of `gates` rows of H, `each` apart, as one; what pads them counts for nothing. */
ALWAYS_INLINE struct moments joint_moments(const real *s, size_t each, size_t H, size_t gates)
{
    const size_t whole = H / VL * VL;
    const real count = (real)(gates * H);
    vf sum[GATES] = {v_zero(), v_zero(), v_zero(), v_zero()},
       square[GATES] = {v_zero(), v_zero(), v_zero(), v_zero()};
    for (size_t u = 0; u < whole; u += VL) add_vectors(sum, s + u, each, gates, VL);
    if (whole < H) add_vectors(sum, s + whole, each, gates, H - whole);
    const vf all = v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3]));
    const vf mean = v_set1(sum_of_lanes(all) / count);
    for (size_t u = 0; u < whole; u += VL) add_squares(square, s + u, each, gates, mean, VL);
    if (whole < H) add_squares(square, s + whole, each, gates, mean, H - whole);
    const vf squares = v_add(v_add(square[0], square[1]), v_add(square[2], square[3]));
    const real variance = sum_of_lanes(squares) / count + (real)PRODUCTS_EPSILON;
    return (struct moments){mean, v_div(v_set1(1), v_sqrt(v_set1(variance)))};
}
NEVER_INLINE struct moments moments_of_product(const real *s, size_t each, size_t H)
{
    return joint_moments(s, each, H, GATES);
}
NEVER_INLINE struct moments moments_of_cell(const real *c, size_t H)
{
    return joint_moments(c, 0, H, 1);
}

NEVER_INLINE vf products_preact(const struct cylstm_cell *cell, size_t gate,
                                const struct moments *m, vf of_x, vf of_h, size_t u, size_t n)
{
    const size_t at = gate * cell->H + u;
    const vf a = v_fma(v_load_n((const real *)cell->norm_h + at, n), normal(&m[1], of_h),
                       biases(cell, at, n));
    return v_fma(v_load_n((const real *)cell->norm + at, n), normal(&m[0], of_x), a);
}

/* What c is shown as, before its activation. */
NEVER_INLINE vf products_shown(const struct cylstm_cell *cell, const struct moments *m, vf c,
                               size_t u, size_t n)
{
    return v_fma(v_load_n((const real *)cell->norm_c + u, n), normal(m, c),
                 v_load_n((const real *)cell->bias_c + u, n));
}

/* Whole rows, of which `sums` holds what the products kept, (2, 4, H padded). */
static void norm_products_forward(const struct cylstm_cell *cell, size_t rows)
{
    const struct cylstm_options *options = cell->options;
    const size_t H = cell->H, each = padded_units(H);
    for (size_t k = 0; k < rows; k++) {
        real *s = row_of(&cell->sums, k), *c_row = row_of(&cell->c, k), *o_row = s + GATE_O * each;
        real *tape = cell->tape.base ? row_of(&cell->tape, k) : NULL;
        const struct moments m[2] = {moments_of_product(s, each, H),
                                     moments_of_product(s + GATES * each, each, H)};
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            vf y[GATES];
            for (size_t gate = 0; gate < GATES; gate++) {
                const vf of_x = v_load(s + gate * each + u),
                         of_h = v_load(s + (GATES + gate) * each + u);
                y[gate] = v_gate(options, gate == GATE_G,
                                 products_preact(cell, gate, m, of_x, of_h, u, n));
                if (!tape) continue;
                v_store_n(tape + gate * H + u, y[gate], n);
                v_store_n(tape + (GATES + gate) * H + u, of_x, n);
                v_store_n(tape + (2 * GATES + gate) * H + u, of_h, n);
            }
            vf c = v_fma(y[GATE_F], v_load(c_row + u), v_mul(y[GATE_I], y[GATE_G]));
            if (options->cell_clip != 0) c = v_clip(c, options->cell_clip);
            if (n < VL) c = v_mul(c, v_load_n(ONES, n)); /* padding stays zero */
            v_store(c_row + u, c);
            v_store(o_row + u, y[GATE_O]);
            if (tape) v_store_n(tape + 3 * GATES * H + u, c, n);
        }
        const struct moments of_c = moments_of_cell(c_row, H);
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            const vf shown = products_shown(cell, &of_c, v_load(c_row + u), u, n);
            vf h = v_mul(v_load(o_row + u), v_activate(&options->function[2], shown));
            if (n < VL) h = v_mul(h, v_load_n(ONES, n));
            v_store(row_of(&cell->h, k) + u, h);
            if (cell->y.base) v_store_n(row_of(&cell->y, k) + u, h, n);
        }
    }
}

/* A row's da of all gates are in `dnorm`: the gradients of the sums of one product, (4, H) each. */
NEVER_INLINE void product_back(const struct moments *m, const real *weight, const real *s, size_t H,
                               const real *da, real *dweight, real *ds)
{
    struct norm_back back = {*m, v_zero(), v_zero()};
    const size_t N = GATES * H, whole = N / VL * VL, n = N - whole; /* gates follow one another */
    for (size_t u = 0; u < whole; u += VL)
        take_vector(&back, weight + u, s + u, dweight + u, v_load(da + u), VL);
    if (n) take(&back, weight + whole, s + whole, dweight + whole, v_load_n(da + whole, n), n);
    norm_average(&back, N);
    for (size_t u = 0; u < whole; u += VL)
        (void)give_vector(&back, weight + u, s + u, v_load(da + u), ds + u, VL);
    if (n) (void)give(&back, weight + whole, s + whole, v_load_n(da + whole, n), ds + whole, n);
}

/* A vector of d of what a gate gave: its da, to `dnorm`. */
NEVER_INLINE void gate_back(const struct cylstm_cell *cell, size_t k, size_t gate, size_t u, vf d)
{
    const size_t at = gate * cell->H + u, n = valid(u, cell->H);
    const vf y = v_load_n(row_of(&cell->tape, k) + at, n);
    d = given_too(cell->options, cell, k, gate, u, d);
    v_store_n(row_of(&cell->dnorm, k) + at, through_gate(cell->options, gate == GATE_G, y, d), n);
}

/* Whole rows, of which `sums` holds dh. `h` gets m = o * F2(.), perhaps in its place; `dnorm` is
 * da (4, H), da * N(x's) (4, H), da * N(h's) (4, H), and of what c is shown as, likewise, (H), (H). */
static void norm_products_backward(const struct cylstm_cell *cell, size_t rows)
{
    const struct cylstm_options *options = cell->options;
    const size_t H = cell->H;
    for (size_t k = 0; k < rows; k++) {
        const real *tape = row_of(&cell->tape, k), *dh_row = row_of(&cell->sums, k),
                   *cells = tape + 3 * GATES * H, *weight_c = cell->norm_c;
        const real *c_prev_row = cell->c_prev.base ? row_of(&cell->c_prev, k) : NULL;
        real *dc_row = row_of(&cell->dc, k), *dgates = row_of(&cell->dgates, k);
        real *dnorm = row_of(&cell->dnorm, k), *dweight_c = dnorm + 3 * GATES * H,
             *dshown = dweight_c + H;
        struct norm_back of_c = {moments_of_cell(cells, H), v_zero(), v_zero()};
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            const vf shown = v_activate(
                &options->function[2], products_shown(cell, &of_c.m, v_load_n(cells + u, n), u, n));
            const vf o = v_load_n(tape + GATE_O * H + u, n), dh = v_load_n(dh_row + u, n);
            const vf d = v_mul(v_mul(dh, o), v_slope(&options->function[2], shown));
            gate_back(cell, k, GATE_O, u, v_mul(dh, shown));
            v_store_n(dshown + u, d, n);
            take(&of_c, weight_c + u, cells + u, dweight_c + u, d, n);
            if (cell->h.base)
                v_store(row_of(&cell->h, k) + u, v_mul(v_mul(o, shown), v_load_n(ONES, n)));
        }
        norm_average(&of_c, H);
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            const vf i = v_load_n(tape + u, n), f = v_load_n(tape + GATE_F * H + u, n);
            const vf g = v_load_n(tape + GATE_G * H + u, n), c = v_load_n(cells + u, n);
            const vf c_prev = c_prev_row ? v_load_n(c_prev_row + u, n) : v_zero();
            /* its way through the norm passes dgates, which are overwritten below */
            vf dc =
                v_add(give(&of_c, weight_c + u, cells + u, v_load_n(dshown + u, n), dgates + u, n),
                      v_load(dc_row + u));
            if (cell->given_c.base) dc = v_add(dc, v_load_n(row_of(&cell->given_c, k) + u, n));
            if (options->cell_clip != 0) {
                const vf limit = v_set1((real)options->cell_clip);
                dc = v_mul(dc, v_unclipped(c, v_sub(v_zero(), limit), limit));
            }
            gate_back(cell, k, GATE_I, u, v_mul(dc, g));
            gate_back(cell, k, GATE_F, u, v_mul(dc, c_prev));
            gate_back(cell, k, GATE_G, u, v_mul(dc, i));
            v_store(dc_row + u, v_mul(dc, f));
        }
        const struct moments of_x = moments_of_product(tape + GATES * H, H, H),
                             of_h = moments_of_product(tape + 2 * GATES * H, H, H);
        product_back(&of_x, cell->norm, tape + GATES * H, H, dnorm, dnorm + GATES * H, dgates);
        product_back(&of_h, cell->norm_h, tape + 2 * GATES * H, H, dnorm, dnorm + 2 * GATES * H,
                     dgates + GATES * H);
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

/* Whole rows, of which `sums` holds the tangents of both products' sums, zero past the last unit. */
static void norm_products_tangent(const struct cylstm_cell *cell, size_t rows)
{
    const struct cylstm_cell *d = cell->tangent;
    const struct cylstm_options *options = cell->options;
    const size_t H = cell->H, each = padded_units(H);
    for (size_t k = 0; k < rows; k++) {
        const real *tape = row_of(&cell->tape, k), *cells = tape + 3 * GATES * H;
        real *s = row_of(&cell->sums, k), *da_o = s + GATE_O * each;
        const struct norm_back of_x = product_tangents(tape + GATES * H, s, H),
                               of_h = product_tangents(tape + 2 * GATES * H, s + GATES * each, H);
        struct norm_back of_c = {moments_of_cell(cells, H), v_zero(), v_zero()};
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            vf da[GATES];
            for (size_t gate = 0; gate < GATES; gate++) {
                const size_t at = gate * H + u;
                const vf ds_x = v_load(s + gate * each + u),
                         ds_h = v_load(s + (GATES + gate) * each + u);
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
            const vf d_o = through_gate(options, 0, o, v_load(da_o + u));
            const vf d_shown = v_mul(v_slope(&options->function[2], shown), d_in);
            const vf mask = v_load_n(ONES, n);
            put_tangent(d, k, u, v_mul(v_fma(d_o, shown, v_mul(o, d_shown)), mask));
            if (cell->h.base) v_store(row_of(&cell->h, k) + u, v_mul(v_mul(o, shown), mask));
        }
    }
}
