/* backward_gradients.c -- what the dgates of a chunk of steps are used for. Its inputs are gathered
 * into one matrix z = [x_t, h_{t-1}], in panels, and products over all its rows at once give
 *
 *     dx = dgates W_ih,    [dW_ih, dW_hh] += dgates^T z,    db += 1^T dgates
 *
 * The weights' gradients come out where the caller wants them, in the order of the raw
 * weights: dgates keep that order too (not panel order), so nothing is taken apart at
 * the end, and a width that is no multiple of a vector costs no more terms.
 */
#include "backward.h"

#include <string.h>

/* ------------------------------------------------------------ products over a chunk */

/* A row of the chunk, and the step and row of the batch that it belongs to. */
struct chunk_row {
    size_t flat, s, r;
};

static void next_row(const struct backward *b, struct chunk_row *at)
{
    at->flat++;
    at->r++;
    while (at->s < b->step_end &&
           at->r >= b->start[at->s + 1 - b->step_begin] - b->start[at->s - b->step_begin]) {
        at->s++;
        at->r = 0;
    }
}

static struct chunk_row find_row(const struct backward *b, size_t flat)
{
    struct chunk_row at = {flat, b->step_begin, 0};
    while (at.s + 1 < b->step_end && b->start[at.s + 1 - b->step_begin] <= flat) at.s++;
    at.r = flat - b->start[at.s - b->step_begin];
    return at;
}

/* z = [x_t, h_{t-1}] for a share of the chunk's rows, dropout and all. */
void cylstm_gather_inputs(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    const struct backward_pass *p = b->now;
    const size_t size = b->call.real_size, I = p->l.I, R = p->l.R, width = backward_width_of(b);
    const struct cylstm_range mine =
        cylstm_share(b->start[b->step_end - b->step_begin], b->shares, share);
    const int drop = b->layer && b->seq->tape->dropout > 0;
    const struct cylstm_dropout dropout = cylstm_layer_dropout(b->seq->tape, b->layer);
    (void)caller;
    struct chunk_row at = find_row(b, mine.begin);
    for (size_t n = mine.begin; n < mine.end; n++, next_row(b, &at)) {
        const void *x = cylstm_at(p->x.base, size, cylstm_walk_offset(&p->x, at.r, at.s));
        const void *h = cylstm_h_before(b, p, at.r, at.s);
        const size_t element = drop ? backward_dropout_element(b, p, at.r, at.s) : 0;
        for (size_t k = 0, panel = 0; k < I; k += width, panel++) {
            const size_t count = I - k < width ? I - k : width;
            const void *from = cylstm_at(x, size, (ptrdiff_t)k);
            if (drop)
                b->call.kernels->dropout(&dropout, element + k, count, from,
                                         backward_z_at(b, panel, n));
            else
                memcpy(backward_z_at(b, panel, n), from, count * size);
        }
        for (size_t k = 0, panel = backward_panels_of(b, I); k < R; k += width, panel++) {
            const size_t bytes = (R - k < width ? R - k : width) * size;
            if (h)
                memcpy(backward_z_at(b, panel, n), cylstm_at(h, size, (ptrdiff_t)k), bytes);
            else
                memset(backward_z_at(b, panel, n), 0, bytes);
        }
        b->dx_offset[n] = cylstm_walk_offset(&p->dx, at.r, at.s);
    }
}

/* dx = dgates W_ih for a share of the chunk's rows, or of the inputs where rows are too few; the
 * second direction adds to the first. */
static void input_gradient(struct backward *b, int caller, size_t share, size_t shares)
{
    const struct backward_pass *p = b->now;
    const size_t rows = b->start[b->step_end - b->step_begin];
    const int few = rows < shares;
    const struct cylstm_range mine = cylstm_share(rows, few ? 1 : shares, few ? 0 : share),
                              panels = cylstm_share(backward_panels_of(b, p->l.I), few ? shares : 1,
                                                    few ? share : 0);
    if (!p->dx.base) return;
    struct cylstm_job job;
    backward_start_dgates(
        &job, b, p, &p->l.ih_t, p->l.kind->ih,
        backward_padded_rows(b, b->dgates, backward_stride_of(b, p->l.dgates), mine.begin),
        mine.end - mine.begin, panels);
    job.product.out = (struct cylstm_rows){p->dx.base, b->dx_offset + mine.begin, 0};
    job.product.out_panel = (ptrdiff_t)backward_width_of(b);
    const int again = !b->layer && b->step_begin >= b->seen; /* a window before has been here */
    if (b->direction || again) job.product.addend = job.product.out;
    backward_multiply(b, caller, share, &job);
}

/* A matrix by whose rows something is multiplied, as panels or as rows. */
struct operand {
    const void *w;
    size_t panel, k; /* reals from a panel to the next, from a row to the next */
};

/* Rows of the chunk whose products are added up: all of it, or those of one sequence. */
struct sum {
    size_t first, step, count;
    size_t at; /* where their gradients begin */
    int adds;  /* to what is there: chunks of later steps have been before this one */
};

/* out (rows, columns) += a^T w over rows of the chunk, where `a` has a row of the chunk every `stride`
 * reals. */
static void weight_gradient(struct backward *b, int caller, const struct sum *sum, const void *a,
                            size_t stride, size_t rows, struct operand by, size_t columns,
                            size_t raw)
{
    const size_t size = b->call.real_size;
    void *out = cylstm_at(b->grads->dweights, size, (ptrdiff_t)(sum->at + raw));
    struct cylstm_product g = {
        .rows = rows,
        .panel_end = backward_panels_of(b, columns),
        .columns = columns,
        .w_panel = (ptrdiff_t)by.panel,
        .w_k = (ptrdiff_t)(sum->step * by.k),
        .init = cylstm_zeros,
        .term[0] = {.a = {cylstm_at(a, size, (ptrdiff_t)(sum->first * stride)), NULL, 1},
                    .a_k = (ptrdiff_t)(sum->step * stride),
                    .K = sum->count,
                    .w = cylstm_at(by.w, size, (ptrdiff_t)(sum->first * by.k))},
        .out = {out, NULL, (ptrdiff_t)columns},
        .out_panel = (ptrdiff_t)backward_width_of(b),
    };
    if (sum->adds)
        g.addend = g.out;
    else
        g.streams = b->streams;
    cylstm_multiply(&b->call, caller, &g);
}

/* Column `column` of the chunk's dgates. */
static void *dgates_at(const struct backward *b, size_t column)
{
    return cylstm_at(b->dgates, b->call.real_size, (ptrdiff_t)column);
}

/* The gradient of those raw rows of a matrix of gates that are a run's, of `rows` of them all. The
 * run's start at `first`; returns where they end. */
static size_t run_gradient(struct backward *b, int caller, const struct sum *sum,
                           enum cylstm_array_type type, struct cylstm_run run, size_t first,
                           struct cylstm_range rows, struct operand by, size_t columns)
{
    const struct cylstm_layer *l = &b->now->l;
    const size_t end = first + run.count * l->H, from = rows.begin > first ? rows.begin : first,
                 to = rows.end < end ? rows.end : end;
    if (from < to)
        weight_gradient(b, caller, sum, dgates_at(b, run.from * l->H + from - first),
                        backward_stride_of(b, l->dgates), to - from, by, columns,
                        l->raw[type] + from * columns);
    return end;
}

/* The gradient of a bias: a sum over the rows of the chunk. */
static void bias_gradient(struct backward *b, int caller, const struct sum *sum,
                          enum cylstm_array_type type, const struct cylstm_run runs[CYLSTM_RUNS])
{
    const struct cylstm_layer *l = &b->now->l;
    for (size_t n = 0, first = 0; n < CYLSTM_RUNS; n++) {
        const struct operand by = {dgates_at(b, runs[n].from * l->H), backward_width_of(b),
                                   backward_stride_of(b, l->dgates)};
        const size_t columns = runs[n].count * l->H;
        weight_gradient(b, caller, sum, b->ones, 1, 1, by, columns, l->raw[type] + first);
        first += columns;
    }
}

/* The gradient of an array that a normalised cell meets unit by unit: a sum of some of dnorm. */
static void norm_gradient(struct backward *b, int caller, const struct sum *sum,
                          const struct cylstm_norm_sum *n)
{
    const struct cylstm_layer *l = &b->now->l;
    if (n->type == CYLSTM_BIAS_IH && !l->bias) return;
    const struct operand by = {
        cylstm_at(b->dnorm, b->call.real_size, (ptrdiff_t)(n->of.from * l->H)),
        backward_width_of(b), backward_stride_of(b, l->kind->norm * l->H)};
    weight_gradient(b, caller, sum, b->ones, 1, 1, by, n->of.count * l->H, l->raw[n->type]);
}

/* The gradient of peepholes: no product of matrices, but sums over all rows of what i and f do with c
 * before a step, and o with c after it. A share is some of the units. */
static void peephole_gradients(struct backward *b, const struct sum *sum, size_t share,
                               size_t shares)
{
    const struct backward_pass *p = b->now;
    const struct cylstm_layer *l = &p->l;
    const size_t size = b->call.real_size;
    const struct cylstm_range mine = cylstm_share(l->H, shares, share);
    for (size_t gate = 0; gate < l->kind->peepholes; gate++) {
        void *out =
            cylstm_at(b->grads->dweights, size,
                      (ptrdiff_t)(sum->at + l->raw[CYLSTM_WEIGHT_PEEP] + gate * l->H + mine.begin));
        const size_t dgate = l->kind->peep_dgate[gate], after = gate + 1 == l->kind->peepholes;
        int adds = sum->adds;
        for (size_t s = b->step_end; s-- > b->step_begin;) {
            const size_t flat = backward_flat(b, s, sum->first),
                         rows = b->seq->per_sample ? 1 : backward_flat(b, s + 1, 0) - flat;
            struct cylstm_rows c = after ? backward_cells(b, p, s, sum->first)
                                         : backward_cells_before(b, p, s, sum->first),
                               da = backward_padded_rows(b, b->dgates,
                                                         backward_stride_of(b, l->dgates), flat);
            if (!c.base && adds) continue;
            c.base = cylstm_at(c.base, size, (ptrdiff_t)mine.begin);
            da.base = cylstm_at(da.base, size, (ptrdiff_t)(dgate * l->H + mine.begin));
            b->call.kernels->sum_products(&da, &c, c.offset || c.stride ? rows : 0,
                                          mine.end - mine.begin, adds, out);
            adds = 1;
        }
    }
}

static void weight_gradients(struct backward *b, int caller, const struct sum *sum, size_t share,
                             size_t shares)
{
    const struct cylstm_layer *l = &b->now->l;
    const size_t width = backward_width_of(b);
    const struct cylstm_range mine = cylstm_share(l->gates, shares, share);
    const struct operand x = {b->z, b->chunk_rows * width, width},
                         h = {backward_z_at(b, backward_panels_of(b, l->I), 0), x.panel, x.k};
    const struct operand m = {b->m, width, backward_stride_of(b, l->H)};
    size_t ih = 0, hh = 0;
    for (size_t n = 0; n < CYLSTM_RUNS; n++) {
        ih = run_gradient(b, caller, sum, CYLSTM_WEIGHT_IH, l->kind->ih[n], ih, mine, x, l->I);
        hh = run_gradient(b, caller, sum, CYLSTM_WEIGHT_HH, l->kind->hh[n], hh, mine, h, l->R);
    }
    run_gradient(b, caller, sum, CYLSTM_WEIGHT_HH, l->kind->second_hh, hh, mine, m, l->R);
    if (l->P) {
        const struct cylstm_range projected = cylstm_share(l->P, shares, share);
        weight_gradient(b, caller, sum,
                        cylstm_at(b->dh, b->call.real_size, (ptrdiff_t)projected.begin),
                        backward_stride_of(b, l->R), projected.end - projected.begin, m, l->H,
                        l->raw[CYLSTM_WEIGHT_HR] + projected.begin * l->H);
    }
    if (b->dims->peephole) peephole_gradients(b, sum, share, shares);
    if (share) return;
    if (b->dims->proj_bias) {
        const struct operand by = {b->dh, width, backward_stride_of(b, l->R)};
        weight_gradient(b, caller, sum, b->ones, 1, 1, by, l->P, l->raw[CYLSTM_BIAS_HR]);
    }
    if (l->kind->norm) {
        for (size_t n = 0; n < CYLSTM_NORM_ARRAYS && l->kind->norm_sums[n].of.count; n++)
            norm_gradient(b, caller, sum, &l->kind->norm_sums[n]);
        return;
    }
    if (!l->bias) return;
    bias_gradient(b, caller, sum, CYLSTM_BIAS_IH, l->kind->ih);
    if (l->kind->two_biases) bias_gradient(b, caller, sum, CYLSTM_BIAS_HH, l->kind->hh);
}

void cylstm_use_chunk(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    const size_t shares = b->shares;
    input_gradient(b, caller, share, shares);
    const size_t rows = b->start[1], raw = cylstm_raw_count(b->dims);
    if (!b->seq->per_sample) {
        const struct sum all = {0, 1, b->start[b->step_end - b->step_begin], 0,
                                b->step_end < b->order.T};
        weight_gradients(b, caller, &all, share, shares);
        return;
    }
    for (size_t r = 0; r < rows && !cylstm_stopped(&b->call); r++) {
        const struct sum own = {r, rows, b->step_end - b->step_begin,
                                cylstm_batch_row(&b->order, r) * raw,
                                b->step_end < cylstm_row_length(&b->order, r)};
        weight_gradients(b, caller, &own, share, shares);
    }
}
