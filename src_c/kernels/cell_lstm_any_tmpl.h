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

static void lstm_forward_any(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                             void *sums)
{
    const struct cylstm_options *options = cell->options;
    const real *preact = sums;
    const size_t u = panel * VL, H = cell->H, n = valid(u, H);
    const vf one = v_set1(1), zero = v_zero();
    const vf p_i = cell->peep ? peephole_i(cell, u, n) : zero;
    const vf p_f = cell->peep ? peephole_f(cell, u, n) : zero;
    const vf p_o = cell->peep ? peephole_o(cell, u, n) : zero;
    for (size_t k = row; k < row + rows; k++, preact += PANEL_VECTORS * VL) {
        vf a_i = v_load(preact), a_f = v_load(preact + VL), a_o = v_load(preact + 3 * VL);
        real *c_row = row_of(&cell->c, k) + u;
        const vf c_prev = v_load(c_row);
        if (cell->peep) {
            a_i = v_fma(p_i, c_prev, a_i);
            a_f = v_fma(p_f, c_prev, a_f);
        }
        vf i = v_gate(options, 0, a_i), f = v_gate(options, 0, a_f);
        if (options->coupled == COUPLED_F) f = v_sub(one, i);
        if (options->coupled == COUPLED_I) i = v_sub(one, f);
        const vf g = v_gate(options, 1, v_load(preact + 2 * VL));
        vf c = v_fma(f, c_prev, v_mul(i, g));
        if (options->cell_clip != 0) c = v_clip(c, options->cell_clip);
        if (cell->peep) a_o = v_fma(p_o, c, a_o);
        const vf o = v_gate(options, 0, a_o), h = v_mul(o, v_activate(&options->function[2], c));
        v_store(c_row, c);
        v_store(row_of(&cell->h, k) + u, h);
        if (cell->y.base) v_store_n(row_of(&cell->y, k) + u, h, n);
        if (!cell->tape.base) continue;
        real *tape = row_of(&cell->tape, k) + u;
        v_store_n(tape, i, n);
        v_store_n(tape + H, f, n);
        v_store_n(tape + 2 * H, g, n);
        v_store_n(tape + 3 * H, o, n);
        v_store_n(tape + 4 * H, c, n);
    }
}

/* As the equations above, each line upwards. A coupled cell has three dgates, in the order of its raw
 * gates. */
static void lstm_backward_any(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                              void *sums)
{
    const struct cylstm_options *options = cell->options;
    const real *dh_rows = sums;
    const size_t first = panel * PANEL_VECTORS * VL, H = cell->H;
    for (size_t k = row; k < row + rows; k++, dh_rows += PANEL_VECTORS * VL) {
        const real *tape_row = row_of(&cell->tape, k);
        const real *c_prev_row = cell->c_prev.base ? row_of(&cell->c_prev, k) : NULL;
        real *dc_row = row_of(&cell->dc, k), *dgates_row = row_of(&cell->dgates, k);
        for (size_t v = 0, u = first; v < PANEL_VECTORS && u < H; v++, u += VL) {
            const size_t n = valid(u, H);
            const vf i = v_load_n(tape_row + u, n), f = v_load_n(tape_row + H + u, n);
            const vf g = v_load_n(tape_row + 2 * H + u, n), o = v_load_n(tape_row + 3 * H + u, n);
            const vf c = v_load_n(tape_row + 4 * H + u, n), dh = v_load(dh_rows + v * VL);
            const vf c_prev = c_prev_row ? v_load_n(c_prev_row + u, n) : v_zero();
            const vf shown = v_activate(&options->function[2], c);
            const vf d_o = given_too(options, cell, k, 3, u, v_mul(dh, shown));
            const vf da_o = v_mul(d_o, v_gate_slope(options, 0, o));
            vf dc = v_fma(v_mul(dh, o), v_slope(&options->function[2], shown), v_load(dc_row + u));
            if (cell->peep) dc = v_fma(peephole_o(cell, u, n), da_o, dc);
            if (cell->given_c.base) dc = v_add(dc, v_load_n(row_of(&cell->given_c, k) + u, n));
            if (options->cell_clip != 0) {
                const vf limit = v_set1((real)options->cell_clip);
                dc = v_mul(dc, v_unclipped(c, v_sub(v_zero(), limit), limit));
            }
            vf di = given_too(options, cell, k, 0, u, v_mul(dc, g));
            vf df = given_too(options, cell, k, 1, u, v_mul(dc, c_prev));
            const vf dg = given_too(options, cell, k, 2, u, v_mul(dc, i));
            if (options->coupled == COUPLED_F) di = v_sub(di, df), df = v_zero();
            if (options->coupled == COUPLED_I) df = v_sub(df, di), di = v_zero();
            const vf da_i = v_mul(di, v_gate_slope(options, 0, i));
            const vf da_f = v_mul(df, v_gate_slope(options, 0, f));
            const vf da_g = v_mul(dg, v_gate_slope(options, 1, g));
            vf dc_prev = v_mul(dc, f);
            if (cell->peep) {
                dc_prev = v_fma(peephole_i(cell, u, n), da_i, dc_prev);
                dc_prev = v_fma(peephole_f(cell, u, n), da_f, dc_prev);
            }
            v_store(dc_row + u, dc_prev);
            if (cell->h.base) v_store(row_of(&cell->h, k) + u, v_mul(o, shown));
            real *dgates = dgates_row + u;
            if (options->coupled != COUPLED_I) v_store_n(dgates, da_i, n), dgates += H;
            if (options->coupled != COUPLED_F) v_store_n(dgates, da_f, n), dgates += H;
            v_store_n(dgates, da_g, n);
            v_store_n(dgates + H, da_o, n);
        }
    }
}

/* Where c is on the tape: last. */
ALWAYS_INLINE size_t cell_place(const struct cylstm_cell *cell)
{
    return (cell->tape_vectors - 1u) * cell->H;
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
