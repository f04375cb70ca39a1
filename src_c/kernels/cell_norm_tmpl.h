/* cell_norm_tmpl.h -- the LSTM whose pre-activations are normalised over all units of a gate, forward
 * and, directly below it, backward. As LiteRT has it:
 *
 *     s_k = W_ih[k] x_t + W_hh[k] h_{t-1} + p_k * c_{t-1}             k in i, f, g; o sees c_t
 *     z_k = (s_k - mean(s_k)) / sqrt(variance(s_k) + 1e-8)
 *     a_k = w_k * z_k + b_k
 *
 * and from there on as cell_lstm_any_tmpl.h. A gate needs the sums of all units before any of its
 * activations, so a product keeps its sums, and when a row of them is whole, a function of whole rows
 * follows. The sums are on the tape; their mean and variance are found again.
 */

enum { GATES = 4, GATE_I = 0, GATE_F, GATE_G, GATE_O };

static const double NORM_EPSILON = 1e-8;
static const real ONES[MAX_VL] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

ALWAYS_INLINE size_t padded_units(size_t H) { return (H + VL - 1) / VL * VL; }

/* One panel of the product: sums (rows, 4, VL) go to `sums` as they are, (4, H padded). */
static void norm_keep(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                      void *sums)
{
    const real *sum = sums;
    const size_t u = panel * VL, each = padded_units(cell->H);
    for (size_t k = row; k < row + rows; k++, sum += PANEL_VECTORS * VL)
        for (size_t gate = 0; gate < GATES; gate++)
            v_store(row_of(&cell->sums, k) + gate * each + u, v_load(sum + gate * VL));
}

/* Where a gate's own arrays lie: a coupled one has none. */
ALWAYS_INLINE size_t own_place(const struct cylstm_options *o, size_t gate, size_t H)
{
    return (gate - (o->coupled == COUPLED_F ? gate > GATE_F : o->coupled == COUPLED_I)) * H;
}
ALWAYS_INLINE int is_computed(const struct cylstm_options *o, size_t gate)
{
    return !(o->coupled == COUPLED_F && gate == GATE_F) &&
           !(o->coupled == COUPLED_I && gate == GATE_I);
}

ALWAYS_INLINE real sum_of_lanes(vf v)
{
    real lane[MAX_VL];
    v_store(lane, v);
    for (size_t half = VL / 2; half; half /= 2)
        for (size_t l = 0; l < half; l++) lane[l] += lane[l + half];
    return lane[0];
}

struct moments {
    vf mean, by; /* 1 / sqrt(variance + epsilon) */
};

/* Of H sums, padded with zeros or not, for each of some gates, `each` apart: side by side, since a sum
 * waits for the one before. */
NEVER_INLINE void moments_of(const real *s, size_t each, size_t H, const int gates,
                             struct moments *m)
{
    vf sum[GATES] = {v_zero(), v_zero(), v_zero(), v_zero()}, square[GATES];
    for (size_t u = 0; u < H; u += VL) UNROLL for (int gate = 0; gate < gates; gate++)
            sum[gate] = v_add(sum[gate], v_load_n(s + (size_t)gate * each + u, valid(u, H)));
    for (int gate = 0; gate < gates; gate++) {
        m[gate].mean = v_set1(sum_of_lanes(sum[gate]) / (real)H);
        square[gate] = v_zero();
    }
    for (size_t u = 0; u < H; u += VL) {
        const size_t n = valid(u, H);
        const vf mask = v_load_n(ONES, n);
        UNROLL for (int gate = 0; gate < gates; gate++) {
            const vf d = v_sub(v_load_n(s + (size_t)gate * each + u, n), m[gate].mean);
            square[gate] = v_fma(v_mul(d, mask), d, square[gate]);
        }
    }
    for (int gate = 0; gate < gates; gate++) {
        const real variance = sum_of_lanes(square[gate]) / (real)H + (real)NORM_EPSILON;
        m[gate].by = v_div(v_set1(1), v_sqrt(v_set1(variance)));
    }
}

ALWAYS_INLINE vf normal(const struct moments *m, vf s) { return v_mul(v_sub(s, m->mean), m->by); }

/* The sums of both biases. */
ALWAYS_INLINE vf biases(const struct cylstm_cell *cell, size_t at, size_t n)
{
    if (!cell->b_ih) return v_zero();
    return v_add(v_load_n((const real *)cell->b_ih + at, n),
                 v_load_n((const real *)cell->b_hh + at, n));
}

/* A gate's pre-activation. */
NEVER_INLINE vf norm_preact(const struct cylstm_cell *cell, size_t gate, const struct moments *m,
                             vf s, size_t u, size_t n)
{
    const size_t at = own_place(cell->options, gate, cell->H) + u;
    return v_fma(v_load_n((const real *)cell->norm + at, n), normal(m, s), biases(cell, at, n));
}

/* Whole rows, of which `sums` holds what the product kept. */
static void norm_forward(const struct cylstm_cell *cell, size_t rows)
{
    const struct cylstm_options *options = cell->options;
    const size_t H = cell->H, each = padded_units(H);
    const vf one = v_set1(1);
    for (size_t k = 0; k < rows; k++) {
        real *s = row_of(&cell->sums, k), *s_o = s + GATE_O * each, *c_row = row_of(&cell->c, k);
        real *tape = cell->tape.base ? row_of(&cell->tape, k) : NULL;
        for (size_t u = 0; u < H && cell->peep; u += VL) {
            const size_t n = valid(u, H);
            const vf c_prev = v_load(c_row + u);
            v_store(s + u, v_fma(peephole_i(cell, u, n), c_prev, v_load(s + u)));
            v_store(s + each + u, v_fma(peephole_f(cell, u, n), c_prev, v_load(s + each + u)));
        }
        struct moments m[GATES];
        moments_of(s, each, H, GATE_O, m);
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            const vf s_i = v_load(s + u), s_f = v_load(s + each + u),
                     s_g = v_load(s + 2 * each + u);
            vf i = one, f = one;
            if (options->coupled != COUPLED_I)
                i = v_gate(options, 0, norm_preact(cell, GATE_I, &m[0], s_i, u, n));
            if (options->coupled != COUPLED_F)
                f = v_gate(options, 0, norm_preact(cell, GATE_F, &m[1], s_f, u, n));
            if (options->coupled == COUPLED_F) f = v_sub(one, i);
            if (options->coupled == COUPLED_I) i = v_sub(one, f);
            const vf g = v_gate(options, 1, norm_preact(cell, GATE_G, &m[2], s_g, u, n));
            vf c = v_fma(f, v_load(c_row + u), v_mul(i, g));
            if (options->cell_clip != 0) c = v_clip(c, options->cell_clip);
            if (n < VL) c = v_mul(c, v_load_n(ONES, n)); /* biases of no unit: padding stays zero */
            v_store(c_row + u, c);
            if (cell->peep) v_store(s_o + u, v_fma(peephole_o(cell, u, n), c, v_load(s_o + u)));
            if (!tape) continue;
            v_store_n(tape + u, i, n);
            v_store_n(tape + H + u, f, n);
            v_store_n(tape + 2 * H + u, g, n);
            v_store_n(tape + 4 * H + u, s_i, n);
            v_store_n(tape + 5 * H + u, s_f, n);
            v_store_n(tape + 6 * H + u, s_g, n);
            v_store_n(tape + 8 * H + u, c, n);
        }
        moments_of(s_o, each, H, 1, m + GATE_O);
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            const vf sum = v_load(s_o + u), c = v_load(c_row + u);
            const vf o = v_gate(options, 0, norm_preact(cell, GATE_O, &m[3], sum, u, n));
            vf h = v_mul(o, v_activate(&options->function[2], c));
            if (n < VL) h = v_mul(h, v_load_n(ONES, n));
            v_store(row_of(&cell->h, k) + u, h);
            if (cell->y.base) v_store_n(row_of(&cell->y, k) + u, h, n);
            if (!tape) continue;
            v_store_n(tape + 3 * H + u, o, n);
            v_store_n(tape + 7 * H + u, sum, n);
        }
    }
}

/* d of what an activation gave, back through it and the clip before. */
NEVER_INLINE vf through_gate(const struct cylstm_options *o, int function, vf y, vf d)
{
    return v_mul(d, v_gate_slope(o, function, y));
}

/* A gate backward: sums over its units of dz and of dz * z. */
struct norm_back {
    struct moments m;
    vf dz, dz_z;
};

/* A vector of da = d(weight * z), where z is the norm of s; da * z goes to `dweight`, of which the
 * gradient of the weight is a sum. */
ALWAYS_INLINE void take_vector(struct norm_back *b, const real *weight, const real *s,
                               real *dweight, vf da, size_t n)
{
    vf z = normal(&b->m, v_load_n(s, n));
    if (n < VL) z = v_mul(z, v_load_n(ONES, n));
    const vf dz = v_mul(da, v_load_n(weight, n));
    v_store_n(dweight, v_mul(da, z), n);
    b->dz = v_add(b->dz, dz);
    b->dz_z = v_fma(dz, z, b->dz_z);
}
NEVER_INLINE void take(struct norm_back *b, const real *weight, const real *s, real *dweight,
                       vf da, size_t n)
{
    take_vector(b, weight, s, dweight, da, n);
}

/* And a vector of ds, once all units have been taken: (dz - mean(dz) - z * mean(dz * z)) / deviation. */
ALWAYS_INLINE void norm_average(struct norm_back *b, size_t count)
{
    b->dz = v_set1(sum_of_lanes(b->dz) / (real)count);
    b->dz_z = v_set1(sum_of_lanes(b->dz_z) / (real)count);
}
ALWAYS_INLINE vf give_vector(const struct norm_back *b, const real *weight, const real *s, vf da,
                             real *ds, size_t n)
{
    const vf z = normal(&b->m, v_load_n(s, n)), dz = v_mul(da, v_load_n(weight, n));
    const vf d = v_mul(b->m.by, v_fnma(z, b->dz_z, v_sub(dz, b->dz)));
    v_store_n(ds, d, n);
    return d;
}
NEVER_INLINE vf give(const struct norm_back *b, const real *weight, const real *s, vf da, real *ds,
                     size_t n)
{
    return v_mul(give_vector(b, weight, s, da, ds, n), v_load_n(ONES, n));
}

/* Both for a gate: `dnorm` is (2, gates, H), of which the gradients of the biases and of the weights
 * are sums. */
ALWAYS_INLINE void norm_take(const struct cylstm_cell *cell, size_t gate, struct norm_back *b,
                             const real *tape, real *dnorm, vf da, size_t u, size_t n)
{
    const size_t H = cell->H, at = own_place(cell->options, gate, H) + u,
                 all = (cell->options->coupled ? GATES - 1 : GATES) * H;
    v_store_n(dnorm + at, da, n);
    take(b, (const real *)cell->norm + at, tape + (GATES + gate) * H + u, dnorm + all + at, da, n);
}
ALWAYS_INLINE vf norm_give(const struct cylstm_cell *cell, size_t gate, const struct norm_back *b,
                           const real *tape, const real *dnorm, real *dgates, size_t u, size_t n)
{
    const size_t H = cell->H, at = own_place(cell->options, gate, H) + u;
    return give(b, (const real *)cell->norm + at, tape + (GATES + gate) * H + u,
                v_load_n(dnorm + at, n), dgates + at, n);
}

/* Whole rows, of which `sums` holds dh. `h` gets m = o * F2(c), perhaps in its place. */
static void norm_backward(const struct cylstm_cell *cell, size_t rows)
{
    const struct cylstm_options *options = cell->options;
    const size_t H = cell->H;
    for (size_t k = 0; k < rows; k++) {
        const real *tape = row_of(&cell->tape, k), *dh_row = row_of(&cell->sums, k);
        const real *c_prev_row = cell->c_prev.base ? row_of(&cell->c_prev, k) : NULL;
        real *dc_row = row_of(&cell->dc, k), *dgates = row_of(&cell->dgates, k);
        real *dnorm = row_of(&cell->dnorm, k);
        struct norm_back back[GATES];
        struct moments m[GATES];
        moments_of(tape + GATES * H, H, H, GATES, m);
        for (size_t gate = 0; gate < GATES; gate++)
            back[gate] = (struct norm_back){m[gate], v_zero(), v_zero()};
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            const vf shown = v_activate(&options->function[2], v_load_n(tape + 8 * H + u, n));
            const vf d_o =
                given_too(options, cell, k, GATE_O, u, v_mul(v_load_n(dh_row + u, n), shown));
            const vf da_o = through_gate(options, 0, v_load_n(tape + 3 * H + u, n), d_o);
            norm_take(cell, GATE_O, &back[GATE_O], tape, dnorm, da_o, u, n);
        }
        norm_average(&back[GATE_O], H);
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            const vf i = v_load_n(tape + u, n), f = v_load_n(tape + H + u, n);
            const vf g = v_load_n(tape + 2 * H + u, n), o = v_load_n(tape + 3 * H + u, n);
            const vf c = v_load_n(tape + 8 * H + u, n), dh = v_load_n(dh_row + u, n);
            const vf c_prev = c_prev_row ? v_load_n(c_prev_row + u, n) : v_zero();
            const vf shown = v_activate(&options->function[2], c);
            const vf ds_o = norm_give(cell, GATE_O, &back[GATE_O], tape, dnorm, dgates, u, n);
            vf dc = v_fma(v_mul(dh, o), v_slope(&options->function[2], shown), v_load(dc_row + u));
            if (cell->peep) dc = v_fma(peephole_o(cell, u, n), ds_o, dc);
            if (cell->given_c.base) dc = v_add(dc, v_load_n(row_of(&cell->given_c, k) + u, n));
            if (options->cell_clip != 0) {
                const vf limit = v_set1((real)options->cell_clip);
                dc = v_mul(dc, v_unclipped(c, v_sub(v_zero(), limit), limit));
            }
            vf di = given_too(options, cell, k, 0, u, v_mul(dc, g));
            vf df = given_too(options, cell, k, 1, u, v_mul(dc, c_prev));
            const vf dg = given_too(options, cell, k, 2, u, v_mul(dc, i));
            if (options->coupled == COUPLED_F) di = v_sub(di, df);
            if (options->coupled == COUPLED_I) df = v_sub(df, di);
            const vf da[GATE_O] = {through_gate(options, 0, i, di), through_gate(options, 0, f, df),
                                   through_gate(options, 1, g, dg)};
            for (size_t gate = 0; gate < GATE_O; gate++)
                if (is_computed(options, gate))
                    norm_take(cell, gate, &back[gate], tape, dnorm, da[gate], u, n);
            v_store(dc_row + u, v_mul(dc, f));
            if (cell->h.base) v_store(row_of(&cell->h, k) + u, v_mul(o, shown));
        }
        for (size_t gate = 0; gate < GATE_O; gate++) norm_average(&back[gate], H);
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            vf dc = v_load(dc_row + u), ds[GATE_O];
            for (size_t gate = 0; gate < GATE_O; gate++)
                ds[gate] = is_computed(options, gate)
                               ? norm_give(cell, gate, &back[gate], tape, dnorm, dgates, u, n)
                               : v_zero();
            if (!cell->peep) continue;
            dc = v_fma(peephole_i(cell, u, n), ds[GATE_I], dc);
            v_store(dc_row + u, v_fma(peephole_f(cell, u, n), ds[GATE_F], dc));
        }
    }
}

/* The tangent of what norm_preact gives, of that of the sum: with the averages of ds and ds * z,
 *     dz = (ds - mean(ds) - z * mean(ds * z)) / deviation,   da = dw * z + w * dz + db
 */
NEVER_INLINE vf norm_preact_tangent(const struct cylstm_cell *cell, size_t gate,
                                    const struct norm_back *b, size_t k, vf ds, size_t u)
{
    const struct cylstm_cell *d = cell->tangent;
    const size_t H = cell->H, n = valid(u, H), at = own_place(cell->options, gate, H) + u;
    const real *tape = row_of(&cell->tape, k) + (GATES + gate) * H;
    const vf z = normal(&b->m, v_load_n(tape + u, n));
    const vf dz = v_mul(b->m.by, v_fnma(z, b->dz_z, v_sub(ds, b->dz)));
    const vf db = v_add(tangent_at(d->b_ih, at, n), tangent_at(d->b_hh, at, n));
    return v_fma(v_load_n((const real *)cell->norm + at, n), dz,
                 v_fma(tangent_at(d->norm, at, n), z, db));
}

/* ds of a gate, with what its peephole adds, is whole: into the sums, and to the averages. */
NEVER_INLINE void norm_sum_tangent(const struct cylstm_cell *cell, size_t gate,
                                    struct norm_back *b, size_t k, vf ds, size_t u)
{
    const size_t H = cell->H;
    const real *tape = row_of(&cell->tape, k) + (GATES + gate) * H;
    v_store(row_of(&cell->sums, k) + gate * padded_units(H) + u, ds);
    b->dz = v_add(b->dz, ds);
    b->dz_z = v_fma(ds, normal(&b->m, v_load_n(tape + u, valid(u, H))), b->dz_z);
}

/* Whole rows, of which `sums` holds the tangents of the products' sums, zero past the last unit. */
static void norm_tangent(const struct cylstm_cell *cell, size_t rows)
{
    const size_t H = cell->H, each = padded_units(H);
    for (size_t k = 0; k < rows; k++) {
        const real *tape = row_of(&cell->tape, k), *s = row_of(&cell->sums, k);
        const real *c_prev_row = row_of(&cell->c_prev, k), *dc_row = row_of(&cell->tangent->c, k);
        struct norm_back b[GATES];
        struct moments m[GATES];
        moments_of(tape + GATES * H, H, H, GATES, m);
        for (size_t gate = 0; gate < GATES; gate++)
            b[gate] = (struct norm_back){m[gate], v_zero(), v_zero()};
        for (size_t u = 0; u < H; u += VL) {
            const vf dc = v_load(dc_row + u);
            const vf ds_i = see_tangent(cell, sees_i, u, v_load(s + u), c_prev_row, dc);
            const vf ds_f = see_tangent(cell, sees_f, u, v_load(s + each + u), c_prev_row, dc);
            norm_sum_tangent(cell, GATE_I, &b[GATE_I], k, ds_i, u);
            norm_sum_tangent(cell, GATE_F, &b[GATE_F], k, ds_f, u);
            norm_sum_tangent(cell, GATE_G, &b[GATE_G], k, v_load(s + 2 * each + u), u);
        }
        for (size_t gate = 0; gate < GATE_O; gate++) norm_average(&b[gate], H);
        for (size_t u = 0; u < H; u += VL) {
            vf da[GATE_O];
            for (size_t gate = 0; gate < GATE_O; gate++)
                da[gate] = is_computed(cell->options, gate)
                               ? norm_preact_tangent(cell, gate, &b[gate], k,
                                                     v_load(s + gate * each + u), u)
                               : v_zero();
            const vf dc = cell_tangent(cell, k, u, da[GATE_I], da[GATE_F], da[GATE_G]);
            const vf ds_o = see_tangent(cell, sees_o, u, v_load(s + GATE_O * each + u),
                                        tape + cell_place(cell), dc);
            norm_sum_tangent(cell, GATE_O, &b[GATE_O], k, ds_o, u);
        }
        norm_average(&b[GATE_O], H);
        for (size_t u = 0; u < H; u += VL) {
            const vf da_o = norm_preact_tangent(cell, GATE_O, &b[GATE_O], k,
                                                v_load(s + GATE_O * each + u), u);
            hidden_tangent(cell, k, u, da_o, v_load(dc_row + u));
        }
    }
}
