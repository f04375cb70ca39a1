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

static const double NORM_EPSILON = 1e-8;

ALWAYS_INLINE size_t padded_units(size_t H) { return (H + VL - 1) / VL * VL; }

/* One panel of the product: sums (rows, 4, VL) go to `sums` as they are, (4, H padded). */
static void norm_keep(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                      void *sums)
{
    const real *sum = sums;
    const size_t u = panel * VL, each = padded_units(cell->H);
    for (size_t k = row; k < row + rows; k++, sum += PANEL_VECTORS * VL) {
        real *out = row_of(&cell->sums, k) + u;
    UNROLL for (size_t gate = 0; gate < GATES; gate++)
            v_store(out + gate * each, v_load(sum + gate * VL));
    }
}

struct moments {
    vf mean, by; /* 1 / sqrt(variance + epsilon) */
};

/* To sums of one vector of each gate, `each` apart; what pads it counts for nothing. */
ALWAYS_INLINE void add_vectors(vf *sum, const real *s, size_t each, const int gates, size_t n)
{
    UNROLL for (int gate = 0; gate < gates; gate++)
        sum[gate] = v_add(sum[gate], v_load_n(s + (size_t)gate * each, n));
}
ALWAYS_INLINE void add_squares(vf *sum, const real *s, size_t each, const int gates, const vf *mean,
                               size_t n)
{
    UNROLL for (int gate = 0; gate < gates; gate++) {
        vf d = v_sub(v_load_n(s + (size_t)gate * each, n), mean[gate]);
        if (n < VL) d = v_mul(d, v_load_n(ONES, n));
        sum[gate] = v_fma(d, d, sum[gate]);
    }
}
ALWAYS_INLINE vf by_variance(real variance, const double epsilon)
{
    return v_div(v_set1(1), v_sqrt(v_set1(variance + (real)epsilon)));
}

/* Of H sums for each of some gates, `each` apart: side by side, since a sum waits for the one before. */
ALWAYS_INLINE void moments_of(const real *s, size_t each, size_t H, const int gates,
                              struct moments *m)
{
    const size_t whole = H / VL * VL;
    vf sum[GATES], square[GATES], mean[GATES];
    UNROLL for (int gate = 0; gate < gates; gate++) sum[gate] = square[gate] = v_zero();
    for (size_t u = 0; u < whole; u += VL) add_vectors(sum, s + u, each, gates, VL);
    if (whole < H) add_vectors(sum, s + whole, each, gates, H - whole);
    UNROLL for (int gate = 0; gate < gates; gate++) mean[gate] = v_set1(v_sum(sum[gate]) / (real)H);
    for (size_t u = 0; u < whole; u += VL) add_squares(square, s + u, each, gates, mean, VL);
    if (whole < H) add_squares(square, s + whole, each, gates, mean, H - whole);
    UNROLL for (int gate = 0; gate < gates; gate++)
        m[gate] = (struct moments){mean[gate], by_variance(v_sum(square[gate]) / (real)H, NORM_EPSILON)};
}
NEVER_INLINE void moments_of_gates(const real *s, size_t each, size_t H, struct moments *m)
{
    moments_of(s, each, H, GATES, m);
}

ALWAYS_INLINE vf normal(const struct moments *m, vf s) { return v_mul(v_sub(s, m->mean), m->by); }

/* The sums of both biases. */
ALWAYS_INLINE vf biases(const struct cylstm_cell *cell, size_t at, size_t n)
{
    if (!cell->b_ih) return v_zero();
    return v_add(v_load_n((const real *)cell->b_ih + at, n),
                 v_load_n((const real *)cell->b_hh + at, n));
}

/* A vector of a gate's pre-activations, of its sums `s`, which go to the tape, if there is one. A gate
 * that is coupled has none. */
ALWAYS_INLINE vf norm_preact(const struct cylstm_cell *cell, size_t gate, const struct moments *m,
                             vf s, real *tape, size_t u, size_t n)
{
    const size_t own = own_place(cell->options, gate, cell->H) + u;
    if (tape) v_store_n(tape + gate * cell->H + u, s, n);
    if (!is_computed(cell->options, gate)) return v_zero();
    return v_fma(v_load_n((const real *)cell->norm + own, n), normal(&m[gate], s),
                 biases(cell, own, n));
}

/* Apart, for it is met twice. */
NEVER_INLINE void norm_hidden(const struct cylstm_cell *cell, size_t k, vf a_o, vf c, size_t u)
{
    hidden_of(cell, k, a_o, c, u);
}

/* Whole rows, of which `sums` holds what the product kept; overwritten. */
static void norm_forward(const struct cylstm_cell *cell, size_t rows)
{
    const size_t H = cell->H, each = padded_units(H);
    for (size_t k = 0; k < rows; k++) {
        real *s = row_of(&cell->sums, k), *s_o = s + GATE_O * each;
        real *tape = cell->tape.base ? row_of(&cell->tape, k) + GATES * H : NULL;
        for (size_t u = 0; u < H && cell->peep; u += VL) {
            const size_t n = valid(u, H);
            const vf c_prev = v_load(row_of(&cell->c, k) + u);
            v_store(s + u, v_fma(peephole_i(cell, u, n), c_prev, v_load(s + u)));
            v_store(s + each + u, v_fma(peephole_f(cell, u, n), c_prev, v_load(s + each + u)));
        }
        struct moments m[GATES];
        moments_of_gates(s, each, H, m);
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            vf a[GATE_O];
            UNROLL for (size_t gate = 0; gate < GATE_O; gate++)
                a[gate] = norm_preact(cell, gate, m, v_load(s + gate * each + u), tape, u, n);
            const vf c = cell_of(cell, k, a[GATE_I], a[GATE_F], a[GATE_G], u), of_o = v_load(s_o + u);
            if (cell->peep)
                v_store(s_o + u, v_fma(peephole_o(cell, u, n), c, of_o));
            else
                norm_hidden(cell, k, norm_preact(cell, GATE_O, m, of_o, tape, u, n), c, u);
        }
        if (!cell->peep) continue;
        moments_of(s_o, each, H, 1, m + GATE_O);
        for (size_t u = 0; u < H; u += VL)
            norm_hidden(cell, k, norm_preact(cell, GATE_O, m, v_load(s_o + u), tape, u, valid(u, H)),
                      v_load(row_of(&cell->c, k) + u), u);
    }
}

/* A row of da = d(weight * z), where z is the norm of s: da * z goes to `dweight`, of which the gradient
 * of the weight is a sum, and to `ds` (dz - mean(dz) - z * mean(dz * z)) / deviation. */
struct norm_back {
    struct moments m;
    vf dz, dz_z; /* sums, and then means */
};
ALWAYS_INLINE void norm_average(struct norm_back *b, size_t count)
{
    b->dz = v_set1(v_sum(b->dz) / (real)count);
    b->dz_z = v_set1(v_sum(b->dz_z) / (real)count);
}
ALWAYS_INLINE void take(struct norm_back *b, const real *weight, const real *s, const real *da,
                        real *dweight, size_t n)
{
    const vf d = v_load_n(da, n), dz = v_mul(d, v_load_n(weight, n));
    vf z = normal(&b->m, v_load_n(s, n));
    if (n < VL) z = v_mul(z, v_load_n(ONES, n));
    v_store_n(dweight, v_mul(d, z), n);
    b->dz = v_add(b->dz, dz);
    b->dz_z = v_fma(dz, z, b->dz_z);
}
ALWAYS_INLINE void give(const struct norm_back *b, const real *weight, const real *s,
                        const real *da, real *ds, size_t n)
{
    const vf z = normal(&b->m, v_load_n(s, n)), dz = v_mul(v_load_n(da, n), v_load_n(weight, n));
    v_store_n(ds, v_mul(b->m.by, v_fnma(z, b->dz_z, v_sub(dz, b->dz))), n);
}
NEVER_INLINE void norm_row_back(const struct moments *m, const real *weight, const real *s,
                                size_t count, const real *da, real *dweight, real *ds)
{
    struct norm_back b = {*m, v_zero(), v_zero()};
    const size_t whole = count / VL * VL, n = count - whole; /* without partial vectors */
    for (size_t u = 0; u < whole; u += VL) take(&b, weight + u, s + u, da + u, dweight + u, VL);
    if (n) take(&b, weight + whole, s + whole, da + whole, dweight + whole, n);
    norm_average(&b, count);
    for (size_t u = 0; u < whole; u += VL) give(&b, weight + u, s + u, da + u, ds + u, VL);
    if (n) give(&b, weight + whole, s + whole, da + whole, ds + whole, n);
}

/* The same of a gate: `dnorm` is (2, gates, H), of which the gradients of the biases and of the weights
 * are sums, and holds da. */
NEVER_INLINE void norm_gate_back(const struct cylstm_cell *cell, size_t gate,
                                 const struct moments *m, const real *tape, real *dnorm,
                                 real *dgates)
{
    const size_t H = cell->H, own = own_place(cell->options, gate, H),
                 all = (cell->options->coupled ? GATES - 1 : GATES) * H;
    norm_row_back(&m[gate], (const real *)cell->norm + own, tape + (GATES + gate) * H, H,
                  dnorm + own, dnorm + all + own, dgates + own);
}

/* Whole rows, of which `sums` holds dh. `h` gets m = o * F2(c), perhaps in its place. */
static void norm_backward(const struct cylstm_cell *cell, size_t rows)
{
    const size_t H = cell->H;
    struct stretch s;
    for (size_t k = 0; k < rows; k++) {
        const real *tape = row_of(&cell->tape, k), *dh_row = row_of(&cell->sums, k);
        real *dc_row = row_of(&cell->dc, k), *dgates = row_of(&cell->dgates, k);
        real *dnorm = row_of(&cell->dnorm, k);
        struct moments m[GATES];
        moments_of_gates(tape + GATES * H, H, H, m);
        for (size_t from = 0; from < H; from += STRETCH) {
            begin_stretch(&s, k, from, H);
            for (size_t v = 0, u = from; v < s.count; v++, u += VL)
                v_store(s.shown + v * VL, v_load_n(tape + cell_place(cell) + u, valid(u, H)));
            hidden_back(cell, &s, dh_row + from);
            for (size_t v = 0, u = from; v < s.count; v++, u += VL)
                v_store(dc_row + u, v_fma(v_load(s.dh_o + v * VL), v_load(s.shown + v * VL),
                                          v_load(dc_row + u)));
            store_gates(cell, &s, GATE_O, GATES, dnorm);
        }
        norm_gate_back(cell, GATE_O, m, tape, dnorm, dgates);
        const real *ds_o = dgates + own_place(cell->options, GATE_O, H);
        for (size_t from = 0; from < H; from += STRETCH) {
            begin_stretch(&s, k, from, H);
            for (size_t v = 0, u = from; v < s.count; v++, u += VL) {
                const size_t n = valid(u, H);
                vf dc = v_load(dc_row + u);
                if (cell->peep) dc = v_fma(peephole_o(cell, u, n), v_load_n(ds_o + u, n), dc);
                v_store(s.dc + v * VL, dc);
            }
            cell_back(cell, &s);
            store_gates(cell, &s, GATE_I, GATE_O, dnorm);
        }
        for (size_t gate = 0; gate < GATE_O; gate++)
            if (is_computed(cell->options, gate))
                norm_gate_back(cell, gate, m, tape, dnorm, dgates);
        if (!cell->peep) continue;
        for (size_t u = 0; u < H; u += VL) {
            const size_t n = valid(u, H);
            vf dc = v_load(dc_row + u);
            for (size_t gate = 0; gate <= GATE_F; gate++)
                if (is_computed(cell->options, gate)) {
                    const vf p = gate ? peephole_f(cell, u, n) : peephole_i(cell, u, n);
                    const size_t own = own_place(cell->options, gate, H);
                    dc = v_fma(p, v_load_n(dgates + own + u, n), dc);
                }
            v_store(dc_row + u, dc);
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
        moments_of_gates(tape + GATES * H, H, H, m);
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
