/* cell_lstm_any_tmpl.h -- the LSTM cell with every option, forward and, directly below it, backward.
 *
 *     a_i += p_i * c_{t-1},   a_f += p_f * c_{t-1}                    peepholes (Gers et al. 2002)
 *     i, f = F0(a_i), F0(a_f);   g = F1(a_g)                          f = 1 - i or i = 1 - f, coupled
 *     c_t = clip(f * c_{t-1} + i * g)
 *     a_o += p_o * c_t;   o = F0(a_o)
 *     h_t = o * F2(c_t)
 *
 * and F0, F1 of clipped pre-activations. The plain cell is apart, in cell_lstm_tmpl.h, for it divides
 * products of activations once; these may be any.
 */

enum { COUPLED_F = 1, COUPLED_I = 2 };
enum { GATES = 4, GATE_I = 0, GATE_F, GATE_G, GATE_O };

static const real ONES[MAX_VL] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

/* Where c is on the tape: last. */
ALWAYS_INLINE size_t cell_place(const struct cylstm_cell *cell)
{
    return (cell->tape_vectors - 1u) * cell->H;
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

/* What gates see of c: vectors of the peepholes, of n units from u on; those of the gates that are
 * computed follow one another. */
ALWAYS_INLINE vf peephole(const struct cylstm_cell *cell, size_t gate, size_t u, size_t n)
{
    return v_load_n((const real *)cell->peep + gate * cell->H + u, n);
}
ALWAYS_INLINE vf peephole_i(const struct cylstm_cell *cell, size_t u, size_t n)
{
    return cell->options->coupled == COUPLED_I ? v_zero() : peephole(cell, 0, u, n);
}
ALWAYS_INLINE vf peephole_f(const struct cylstm_cell *cell, size_t u, size_t n)
{
    const int coupled = cell->options->coupled;
    return coupled == COUPLED_F ? v_zero() : peephole(cell, coupled == COUPLED_I ? 0 : 1, u, n);
}
ALWAYS_INLINE vf peephole_o(const struct cylstm_cell *cell, size_t u, size_t n)
{
    return peephole(cell, cell->options->coupled ? 1 : 2, u, n);
}

/* A vector of c_t. A gate that is coupled may be anything. */
ALWAYS_INLINE vf next_cell(const struct cylstm_cell *cell, size_t k, vf i, vf f, vf g, size_t u)
{
    const struct cylstm_options *o = cell->options;
    const size_t H = cell->H, n = valid(u, H);
    real *c_row = row_of(&cell->c, k) + u;
    const vf one = v_set1(1);
    if (o->coupled == COUPLED_F) f = v_sub(one, i);
    if (o->coupled == COUPLED_I) i = v_sub(one, f);
    vf c = v_fma(f, v_load(c_row), v_mul(i, g));
    if (o->cell_clip != 0) c = v_clip(c, o->cell_clip);
    if (cell->norm && n < VL) c = v_mul(c, v_load_n(ONES, n)); /* biases of no unit; c stays zero */
    v_store(c_row, c);
    if (cell->tape.base) {
        real *tape = row_of(&cell->tape, k) + u;
        v_store_n(tape, i, n);
        v_store_n(tape + H, f, n);
        v_store_n(tape + 2 * H, g, n);
        v_store_n(tape + cell_place(cell), c, n);
    }
    return c;
}

/* The same, of gates `each` reals apart. */
ALWAYS_INLINE vf next_cell_at(const struct cylstm_cell *cell, size_t k, const real *y, size_t each,
                              size_t u)
{
    return next_cell(cell, k, v_load(y), v_load(y + each), v_load(y + GATE_G * each), u);
}

/* And of h_t = o * shown. */
ALWAYS_INLINE void next_hidden(const struct cylstm_cell *cell, size_t k, vf o, vf shown, size_t u)
{
    const size_t n = valid(u, cell->H);
    vf h = v_mul(o, shown);
    if (cell->norm && n < VL) h = v_mul(h, v_load_n(ONES, n));
    v_store(row_of(&cell->h, k) + u, h);
    if (cell->y.base) v_store_n(row_of(&cell->y, k) + u, h, n);
    if (cell->tape.base) v_store_n(row_of(&cell->tape, k) + GATE_O * cell->H + u, o, n);
}

/* The same of pre-activations, in registers: one row would wait for what goes through memory. */
NEVER_INLINE vf cell_of(const struct cylstm_cell *cell, size_t k, vf a_i, vf a_f, vf a_g, size_t u)
{
    const struct cylstm_options *o = cell->options;
    const vf g = v_gate_here(o, 1, FUNCTION_TANH, a_g); /* first: it may be a call */
    const vf i = o->coupled == COUPLED_I ? v_zero() : v_gate_here(o, 0, FUNCTION_SIGMOID, a_i);
    const vf f = o->coupled == COUPLED_F ? v_zero() : v_gate_here(o, 0, FUNCTION_SIGMOID, a_f);
    return next_cell(cell, k, i, f, g, u);
}
ALWAYS_INLINE void hidden_of(const struct cylstm_cell *cell, size_t k, vf a_o, vf c, size_t u)
{
    const struct cylstm_options *o = cell->options;
    const vf shown = v_activate_here(&o->function[2], FUNCTION_TANH, c);
    next_hidden(cell, k, v_gate_here(o, 0, FUNCTION_SIGMOID, a_o), shown, u);
}
ALWAYS_INLINE void lstm_forward_row(const struct cylstm_cell *cell, size_t u, size_t k,
                                    const real *a)
{
    const size_t n = valid(u, cell->H);
    vf a_i = v_load(a), a_f = v_load(a + VL), a_o = v_load(a + GATE_O * VL);
    if (cell->peep) {
        const vf c_prev = v_load(row_of(&cell->c, k) + u);
        a_i = v_fma(peephole_i(cell, u, n), c_prev, a_i);
        a_f = v_fma(peephole_f(cell, u, n), c_prev, a_f);
    }
    const vf c = cell_of(cell, k, a_i, a_f, v_load(a + GATE_G * VL), u);
    if (cell->peep) a_o = v_fma(peephole_o(cell, u, n), c, a_o);
    hidden_of(cell, k, a_o, c, u);
}

/* One panel: preact (rows, 4, VL); overwritten. */
static void lstm_forward_any(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                             void *sums)
{
    const struct cylstm_options *o = cell->options;
    real *const preact = sums;
    const size_t u = panel * VL, n = valid(u, cell->H), width = PANEL_VECTORS * VL;
    if (rows == 1) {
        lstm_forward_row(cell, u, row, preact);
        return;
    }
    for (size_t k = 0; k < rows && cell->peep; k++) {
        real *a = preact + k * width;
        const vf c_prev = v_load(row_of(&cell->c, row + k) + u);
        v_store(a, v_fma(peephole_i(cell, u, n), c_prev, v_load(a)));
        v_store(a + VL, v_fma(peephole_f(cell, u, n), c_prev, v_load(a + VL)));
    }
    if (o->clip != 0) clip_rows(preact, o->clip, width, rows, GATE_O);
    if (o->coupled)
        activate_here(&o->function[0], FUNCTION_SIGMOID, preact + (o->coupled == COUPLED_I) * VL,
                      width, rows, 1);
    else
        activate_here(&o->function[0], FUNCTION_SIGMOID, preact, width, rows, 2);
    activate_here(&o->function[1], FUNCTION_TANH, preact + GATE_G * VL, width, rows, 1);
    for (size_t k = 0; k < rows; k++) {
        real *a = preact + k * width, *a_o = a + GATE_O * VL;
        const vf c = next_cell_at(cell, row + k, a, VL, u);
        v_store(a, c);
        if (cell->peep) v_store(a_o, v_fma(peephole_o(cell, u, n), c, v_load(a_o)));
    }
    if (o->clip != 0) clip_rows(preact + GATE_O * VL, o->clip, width, rows, 1);
    activate_here(&o->function[0], FUNCTION_SIGMOID, preact + GATE_O * VL, width, rows, 1);
    activate_here(&o->function[2], FUNCTION_TANH, preact, width, rows, 1);
    for (size_t k = 0; k < rows; k++) {
        const real *a = preact + k * width;
        next_hidden(cell, row + k, v_load(a + GATE_O * VL), v_load(a), u);
    }
}

/* As the equations above, each line upwards, for a stretch of a row: as many units as a panel of dh
 * has. What a line needs stands in arrays, for activations are chosen once for all of it. */
enum { STRETCH = PANEL_VECTORS * VL };
struct stretch {
    size_t row, u, count;            /* of the first of `count` vectors */
    real shown[STRETCH];             /* what F2 is of, and then its slope */
    real dc[STRETCH], dh_o[STRETCH]; /* dh * o */
    real y[GATES * STRETCH], da[GATES * STRETCH];
};
ALWAYS_INLINE void begin_stretch(struct stretch *s, size_t row, size_t u, size_t H)
{
    s->row = row;
    s->u = u;
    s->count = H - u < STRETCH ? (H - u + VL - 1) / VL : PANEL_VECTORS;
}

/* da of gates [from, to), whose function is `function` and usually `usual`, of d that stands in its
 * place. */
ALWAYS_INLINE void gates_back(const struct cylstm_options *o, struct stretch *s, int function,
                              const int usual, size_t from, size_t to)
{
    const struct cylstm_function *f = &o->function[function];
    const int plain = o->clip == 0 && f->type == usual;
    if (!plain)
        differentiate_gates(o, function, s->y + from * STRETCH, STRETCH, to - from, s->count);
    for (size_t gate = from; gate < to; gate++)
        for (size_t v = 0, at = gate * STRETCH; v < s->count; v++, at += VL) {
            const vf y = v_load(s->y + at);
            v_store(s->da + at, v_mul(v_load(s->da + at), plain ? usual_slope(usual, y) : y));
        }
}

/* h = o * F2(shown), of dh: da_o, what there is for dc, and o * F2(.) once more. */
NEVER_INLINE void hidden_back(const struct cylstm_cell *cell, struct stretch *s, const real *dh)
{
    const struct cylstm_options *o = cell->options;
    activate_here(&o->function[2], FUNCTION_TANH, s->shown, 0, 1, s->count);
    for (size_t v = 0; v < s->count; v++) {
        const size_t u = s->u + v * VL, n = valid(u, cell->H);
        const vf out = v_load_n(row_of(&cell->tape, s->row) + GATE_O * cell->H + u, n);
        const vf d = v_load_n(dh + v * VL, n), shown = v_load(s->shown + v * VL);
        v_store(s->y + GATE_O * STRETCH + v * VL, out);
        v_store(s->da + GATE_O * STRETCH + v * VL,
                given_too(o, cell, s->row, GATE_O, u, v_mul(d, shown)));
        v_store(s->dh_o + v * VL, v_mul(d, out));
        if (cell->h.base) v_store(row_of(&cell->h, s->row) + u, v_mul(out, shown));
    }
    differentiate_here(&o->function[2], FUNCTION_TANH, s->shown, 0, 1, s->count);
    gates_back(o, s, 0, FUNCTION_SIGMOID, GATE_O, GATES);
}

/* c_t of dc, which lacks what is given: da of the gates it is made of, and dc_{t-1}. */
NEVER_INLINE void cell_back(const struct cylstm_cell *cell, struct stretch *s)
{
    const struct cylstm_options *o = cell->options;
    const size_t H = cell->H;
    const real *c_prev_row = cell->c_prev.base ? row_of(&cell->c_prev, s->row) : NULL;
    for (size_t v = 0; v < s->count; v++) {
        const size_t u = s->u + v * VL, n = valid(u, H);
        const real *tape = row_of(&cell->tape, s->row) + u;
        const vf i = v_load_n(tape, n), f = v_load_n(tape + H, n), g = v_load_n(tape + 2 * H, n);
        const vf c_prev = c_prev_row ? v_load_n(c_prev_row + u, n) : v_zero();
        vf dc = v_load(s->dc + v * VL);
        if (cell->given_c.base) dc = v_add(dc, v_load_n(row_of(&cell->given_c, s->row) + u, n));
        if (o->cell_clip != 0) {
            const vf limit = v_set1((real)o->cell_clip);
            const vf c = v_load_n(tape + cell_place(cell), n);
            dc = v_mul(dc, v_unclipped(c, v_sub(v_zero(), limit), limit));
        }
        vf di = given_too(o, cell, s->row, GATE_I, u, v_mul(dc, g));
        vf df = given_too(o, cell, s->row, GATE_F, u, v_mul(dc, c_prev));
        const vf dg = given_too(o, cell, s->row, GATE_G, u, v_mul(dc, i));
        if (o->coupled == COUPLED_F) di = v_sub(di, df), df = v_zero();
        if (o->coupled == COUPLED_I) df = v_sub(df, di), di = v_zero();
        real *y = s->y + v * VL, *da = s->da + v * VL;
        v_store(y, i), v_store(y + STRETCH, f), v_store(y + 2 * STRETCH, g);
        v_store(da, di), v_store(da + STRETCH, df), v_store(da + 2 * STRETCH, dg);
        v_store(row_of(&cell->dc, s->row) + u, v_mul(dc, f));
    }
    gates_back(o, s, 0, FUNCTION_SIGMOID, GATE_I, GATE_G);
    gates_back(o, s, 1, FUNCTION_TANH, GATE_G, GATE_O);
}

/* da of gates [from, to) that are computed, to a row of (computed gates, H). */
ALWAYS_INLINE void store_gates(const struct cylstm_cell *cell, const struct stretch *s, size_t from,
                               size_t to, real *row)
{
    const size_t H = cell->H;
    for (size_t gate = from; gate < to; gate++) {
        if (!is_computed(cell->options, gate)) continue;
        real *out = row + own_place(cell->options, gate, H);
        for (size_t v = 0, u = s->u; v < s->count; v++, u += VL)
            v_store_n(out + u, v_load(s->da + gate * STRETCH + v * VL), valid(u, H));
    }
}

static void lstm_backward_any(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                              void *sums)
{
    const real *dh = sums;
    const size_t H = cell->H;
    struct stretch s;
    for (size_t k = row; k < row + rows; k++, dh += STRETCH) {
        begin_stretch(&s, k, panel * STRETCH, H);
        real *dc_row = row_of(&cell->dc, k);
        for (size_t v = 0, u = s.u; v < s.count; v++, u += VL)
            v_store(s.shown + v * VL,
                    v_load_n(row_of(&cell->tape, k) + cell_place(cell) + u, valid(u, H)));
        hidden_back(cell, &s, dh);
        for (size_t v = 0, u = s.u; v < s.count; v++, u += VL) {
            vf dc = v_fma(v_load(s.dh_o + v * VL), v_load(s.shown + v * VL), v_load(dc_row + u));
            if (cell->peep)
                dc = v_fma(peephole_o(cell, u, valid(u, H)),
                           v_load(s.da + GATE_O * STRETCH + v * VL), dc);
            v_store(s.dc + v * VL, dc);
        }
        cell_back(cell, &s);
        for (size_t v = 0, u = s.u; v < s.count && cell->peep; v++, u += VL) {
            const size_t n = valid(u, H);
            const vf dc = v_fma(peephole_i(cell, u, n), v_load(s.da + v * VL), v_load(dc_row + u));
            v_store(dc_row + u, v_fma(peephole_f(cell, u, n), v_load(s.da + STRETCH + v * VL), dc));
        }
        store_gates(cell, &s, GATE_I, GATES, row_of(&cell->dgates, k));
    }
}

/* da, and what it makes of a peephole, p * dc + dp * c, if there is one. */
typedef vf peephole_fn(const struct cylstm_cell *cell, size_t u, size_t n);
NEVER_INLINE vf see_tangent(const struct cylstm_cell *cell, peephole_fn *of, size_t u, vf da,
                            const real *c, vf dc)
{
    const struct cylstm_cell *d = cell->tangent;
    const size_t n = valid(u, cell->H);
    if (cell->peep) da = v_fma(of(cell, u, n), dc, da);
    if (d->peep) da = v_fma(of(d, u, n), v_load_n(c + u, n), da);
    return da;
}
NEVER_INLINE vf sees_i(const struct cylstm_cell *c, size_t u, size_t n)
{
    return peephole_i(c, u, n);
}
NEVER_INLINE vf sees_f(const struct cylstm_cell *c, size_t u, size_t n)
{
    return peephole_f(c, u, n);
}
NEVER_INLINE vf sees_o(const struct cylstm_cell *c, size_t u, size_t n)
{
    return peephole_o(c, u, n);
}

/* The tangents of the equations above, each line as it stands. First dc_t, of da of the gates that c
 * is made of. */
NEVER_INLINE vf cell_tangent(const struct cylstm_cell *cell, size_t k, size_t u, vf da_i, vf da_f,
                             vf da_g)
{
    const struct cylstm_options *options = cell->options;
    const size_t H = cell->H, n = valid(u, H);
    const real *tape = row_of(&cell->tape, k) + u;
    const vf i = v_load_n(tape, n), f = v_load_n(tape + H, n), g = v_load_n(tape + 2 * H, n);
    const vf c_prev = v_load(row_of(&cell->c_prev, k) + u);
    vf di = v_mul(v_gate_slope(options, 0, i), da_i), df = v_mul(v_gate_slope(options, 0, f), da_f);
    if (options->coupled == COUPLED_F) df = v_sub(v_zero(), di);
    if (options->coupled == COUPLED_I) di = v_sub(v_zero(), df);
    const vf dg = v_mul(v_gate_slope(options, 1, g), da_g);
    vf dc = v_mul(f, v_load(row_of(&cell->tangent->c, k) + u));
    dc = v_fma(df, c_prev, v_fma(di, g, v_fma(i, dg, dc)));
    if (options->cell_clip != 0) {
        const vf limit = v_set1((real)options->cell_clip), c = v_load_n(tape + cell_place(cell), n);
        dc = v_mul(dc, v_unclipped(c, v_sub(v_zero(), limit), limit));
    }
    v_store(row_of(&cell->tangent->c, k) + u, dc);
    return dc;
}

/* And dh_t, or dm. */
NEVER_INLINE void hidden_tangent(const struct cylstm_cell *cell, size_t k, size_t u, vf da_o, vf dc)
{
    const struct cylstm_options *options = cell->options;
    const size_t n = valid(u, cell->H);
    const real *tape = row_of(&cell->tape, k) + u;
    const vf o = v_load_n(tape + 3 * cell->H, n);
    const vf shown = v_activate(&options->function[2], v_load_n(tape + cell_place(cell), n));
    const vf d_o = v_mul(v_gate_slope(options, 0, o), da_o);
    const vf d_shown = v_mul(v_slope(&options->function[2], shown), dc);
    put_tangent(cell->tangent, k, u, v_fma(d_o, shown, v_mul(o, d_shown)));
    if (cell->h.base) v_store(row_of(&cell->h, k) + u, v_mul(o, shown));
}

/* One panel: da (rows, 4, VL), without what the peepholes add. */
static void lstm_tangent(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                         void *sums)
{
    const real *da = sums;
    const size_t u = panel * VL;
    for (size_t k = row; k < row + rows; k++, da += PANEL_VECTORS * VL) {
        const real *c_prev = row_of(&cell->c_prev, k),
                   *c = row_of(&cell->tape, k) + cell_place(cell);
        const vf dc_prev = v_load(row_of(&cell->tangent->c, k) + u);
        const vf da_i = see_tangent(cell, sees_i, u, v_load(da), c_prev, dc_prev);
        const vf da_f = see_tangent(cell, sees_f, u, v_load(da + VL), c_prev, dc_prev);
        const vf dc = cell_tangent(cell, k, u, da_i, da_f, v_load(da + 2 * VL));
        hidden_tangent(cell, k, u, see_tangent(cell, sees_o, u, v_load(da + 3 * VL), c, dc), dc);
    }
}
