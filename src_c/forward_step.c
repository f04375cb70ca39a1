/* forward_step.c -- one step of one layer: one product, [1, x_t, h_{t-1}] by the packed gates,
 * finished by the cell while hot.
 *
 * Where few rows share a step, the input product of many steps is merged beforehand, and a step
 * starts from its sums; the bits are the same, since a sum is one chain over k either way.
 */
#include "blas.h"
#include "forward.h"

/* Fewer inputs than this are cheaper unmerged. */
enum { MERGE_INPUTS = 4 };

/* --------------------------------------------------------------------- one step */

static struct cylstm_rows state_rows(const struct forward *f, void *state, size_t width, size_t r0,
                                     const ptrdiff_t *offset)
{
    const size_t stride = cylstm_stride(f->call.kernels, width);
    if (offset) return (struct cylstm_rows){state, offset + r0, 0};
    return (struct cylstm_rows){cylstm_at(state, f->call.real_size, (ptrdiff_t)(r0 * stride)), NULL,
                                (ptrdiff_t)stride};
}

static void run_job(struct forward *f, int caller, const struct workspace *own,
                    struct cylstm_job *job)
{
    cylstm_multiply_weights(&f->call, caller, &f->weights, job, own->products);
}

/* The merged sums of a matrix: those of the second product lie behind those of the first. */
static struct cylstm_rows merged_rows(const struct forward *f, const struct forward_pass *p,
                                      const struct workspace *in, const struct cylstm_matrix *m,
                                      size_t row)
{
    const struct cylstm_kernels *k = f->call.kernels;
    const size_t stride = cylstm_merged_stride(k, &p->l, m),
                 first = m == &p->l.w ? 0 : f->merge_rows * cylstm_merged_stride(k, &p->l, &p->l.w);
    return (struct cylstm_rows){
        cylstm_at(in->merged, f->call.real_size, (ptrdiff_t)(first + row * stride)), NULL,
        (ptrdiff_t)stride};
}

static inline void start_cell(struct cylstm_product *g, const struct forward *f,
                              const struct cylstm_layer *l, const struct cylstm_matrix *m)
{
    g->finish = cylstm_cell_of(f->call.kernels, l, m->gates)->forward;
    cylstm_start_cell(&g->cell, l, m->gates);
}

/* A product of gates: [1, x_t, h], or from merged sums on. */
static inline void start_gates(struct cylstm_job *job, struct forward *f,
                               const struct forward_pass *p, const struct cylstm_matrix *m,
                               struct cylstm_rows h, size_t s, size_t r0, size_t n,
                               struct cylstm_range panels, const struct merged *merged)
{
    const struct cylstm_layer *l = &p->l;
    struct cylstm_product *g = &job->product;
    cylstm_start_job(job, l, m, n, panels);
    if (merged) {
        const struct cylstm_rows sums = merged_rows(f, p, merged->in, m, merged->row);
        g->init = sums.base;
        g->init_panel = (ptrdiff_t)cylstm_panel_width(f->call.kernels);
        g->init_row = sums.stride;
    } else {
        g->term[0] = (struct cylstm_term){cylstm_walk_rows(&p->x, f->call.real_size, r0, s), 1,
                                          l->I, NULL, 0};
    }
    g->term[1] = (struct cylstm_term){h, 1, m->K - l->I, NULL, 0};
    job->k[1] = l->I;
    /* Every other step takes the panels last to first: a sweep that does not fit its cache
     * then finds its most recent part still there. */
    g->descending = (int)((s + f->parity) & 1);
    start_cell(g, f, l, m);
    g->cell.tape = cylstm_walk_rows(&p->tape, f->call.real_size, r0, s);
}

/* What the gates of a step read and write, beyond the tape. */
static void place_cell(const struct forward *f, const struct forward_pass *p, size_t s, size_t r0,
                       struct cylstm_cell *cell)
{
    const struct cylstm_layer *l = &p->l;
    const size_t now = (s + f->parity) & 1;
    if (l->blends) cell->h_prev = state_rows(f, p->h[now], l->R, r0, f->h_offset);
    if (p->c) cell->c = state_rows(f, p->c, l->H, r0, f->c_offset);
    if (f->dims->peephole)
        cell->peep = cylstm_find_vector(&f->call, &f->weights, l, 0, CYLSTM_WEIGHT_PEEP);
    if (p->z) cell->z = state_rows(f, p->z, l->H, r0, NULL);
    if (cylstm_has_second(l)) {
        cell->h = state_rows(f, p->m, l->H, r0, NULL);
    } else {
        cell->h = state_rows(f, p->h[!now], l->R, r0, f->h_offset);
        cell->y = cylstm_walk_rows(&p->y, f->call.real_size, r0, s);
    }
}

/* Of whole rows: all sums, or those of x (part 0) or of h. */
static struct cylstm_rows sums_rows(const struct forward *f, const struct forward_pass *p,
                                    size_t r0, int part)
{
    const struct cylstm_kernels *k = f->call.kernels;
    const size_t stride = cylstm_sums_stride(k, &p->l),
                 at = r0 * stride + (part ? cylstm_sums_width(k, &p->l) : 0);
    return (struct cylstm_rows){cylstm_at(p->sums, f->call.real_size, (ptrdiff_t)at), NULL,
                                (ptrdiff_t)stride};
}

/* What makes h_t, inside of zoneout if there is any: which the step has, in `zoneout`. */
static void surround(const struct forward *f, const struct forward_pass *p, size_t s, size_t r0,
                     struct cylstm_product *g, struct cylstm_zoneout *zoneout)
{
    if (p->zoneout.p == 0) return;
    *zoneout = cylstm_step_zoneout(&p->zoneout, &f->order, s, r0);
    zoneout->inner = g->finish;
    g->finish = f->call.kernels->cell[CYLSTM_ZONEOUT_MATH][0].forward;
    g->cell.zoneout = zoneout;
}

/* The sums of a cell that waits for whole rows, or those of x, unless they are merged, and those of h. */
static void keep_sums(struct forward *f, int caller, const struct forward_pass *p,
                      const struct workspace *own, struct cylstm_rows h, size_t s, size_t r0,
                      size_t n, struct cylstm_range panels, const struct merged *merged)
{
    const int apart = p->l.kind->apart;
    for (int part = apart && merged; part <= apart; part++) {
        struct cylstm_job job;
        start_gates(&job, f, p, &p->l.w, h, s, r0, n, panels, apart ? NULL : merged);
        if (apart) job.product.term[!part].K = 0;
        job.product.cell.sums = sums_rows(f, p, r0, part);
        run_job(f, caller, own, &job);
    }
}

void cylstm_forward_step(struct forward *f, int caller, const struct forward_pass *p,
                         const struct workspace *own, size_t s, size_t r0, size_t n,
                         struct cylstm_range panels, const struct merged *merged)
{
    const struct cylstm_rows h = state_rows(f, p->h[(s + f->parity) & 1], p->l.R, r0, f->h_offset);
    if (p->sums) {
        keep_sums(f, caller, p, own, h, s, r0, n, panels, merged);
        return;
    }
    struct cylstm_job job;
    struct cylstm_zoneout zoneout;
    start_gates(&job, f, p, &p->l.w, h, s, r0, n, panels, merged);
    place_cell(f, p, s, r0, &job.product.cell);
    if (!cylstm_has_second(&p->l)) surround(f, p, s, r0, &job.product, &zoneout);
    run_job(f, caller, own, &job);
}

void cylstm_forward_rows(struct forward *f, const struct forward_pass *p, size_t s, size_t r0,
                         size_t n, const struct merged *merged)
{
    struct cylstm_cell cell = {0};
    cylstm_start_cell(&cell, &p->l, p->l.w.gates);
    cell.tape = cylstm_walk_rows(&p->tape, f->call.real_size, r0, s);
    place_cell(f, p, s, r0, &cell);
    cell.sums = p->l.kind->apart && merged ? merged_rows(f, p, merged->in, &p->l.w, merged->row)
                                           : sums_rows(f, p, r0, 0);
    cell.sums_h = sums_rows(f, p, r0, 1);
    cylstm_find_norm(&f->call, &f->weights, &p->l, 0, &cell);
    f->call.kernels->norm[p->l.kind->norm_math].forward(&cell, n);
    if (p->zoneout.p == 0 || cylstm_has_second(&p->l)) return;
    const struct cylstm_zoneout zoneout = cylstm_step_zoneout(&p->zoneout, &f->order, s, r0);
    cell.zoneout = &zoneout;
    for (size_t panel = 0; panel < cylstm_step_panels(f, p).end; panel++)
        f->call.kernels->cell[CYLSTM_ZONEOUT_MATH][0].forward(&cell, panel, 0, n, NULL);
}

/* h = W_hr m, with what may follow. */
static void start_projection(struct cylstm_job *job, const struct forward *f,
                             const struct forward_pass *p, struct cylstm_rows m, size_t n,
                             struct cylstm_range panels)
{
    struct cylstm_product *g = &job->product;
    cylstm_start_job(job, &p->l, &p->l.hr, n, panels);
    g->term[0] = (struct cylstm_term){m, 1, p->l.H, NULL, 0};
    g->finish = f->call.kernels->cell[CYLSTM_PROJECTION_MATH][p->l.any].forward;
    g->cell = (struct cylstm_cell){.H = p->l.P, .unit_vectors = 1, .options = &p->l.options};
    if (f->dims->proj_bias)
        g->cell.bias = cylstm_find_vector(&f->call, &f->weights, &p->l, 0, CYLSTM_BIAS_HR);
}

void cylstm_forward_second(struct forward *f, int caller, const struct forward_pass *p,
                           const struct workspace *own, size_t s, size_t r0, size_t n,
                           struct cylstm_range panels, const struct merged *merged)
{
    const struct cylstm_layer *l = &p->l;
    const size_t now = (s + f->parity) & 1;
    const struct cylstm_rows m = state_rows(f, p->m, l->H, r0, NULL);
    struct cylstm_zoneout zoneout;
    struct cylstm_job job;
    if (l->P)
        start_projection(&job, f, p, m, n, panels);
    else
        start_gates(&job, f, p, &l->second, m, s, r0, n, panels, merged);
    struct cylstm_cell *cell = &job.product.cell;
    cell->h_prev = state_rows(f, p->h[now], l->R, r0, f->h_offset);
    if (p->z) cell->z = state_rows(f, p->z, l->H, r0, NULL);
    cell->h = state_rows(f, p->h[!now], l->R, r0, f->h_offset);
    cell->y = cylstm_walk_rows(&p->y, f->call.real_size, r0, s);
    surround(f, p, s, r0, &job.product, &zoneout);
    run_job(f, caller, own, &job);
}

struct cylstm_range cylstm_step_panels(const struct forward *f, const struct forward_pass *p)
{
    return (struct cylstm_range){0, cylstm_panels_of(f->call.kernels, p->l.w.columns)};
}

struct cylstm_range cylstm_second_panels(const struct forward *f, const struct forward_pass *p)
{
    return (struct cylstm_range){
        0, cylstm_panels_of(f->call.kernels, p->l.P ? p->l.P : p->l.second.columns)};
}

/* ------------------------------------------------------- the merged input product */

/* Raw weights are not: each of the two products would pack whole panels. The sums of x that stand by
 * themselves anyway are merged as long as two steps fit. */
int cylstm_is_merged(const struct forward *f, const struct forward_pass *p, size_t rows,
                     size_t steps)
{
    if (f->weights.raw || steps < 2 || p->l.I < MERGE_INPUTS) return 0;
    if (p->l.kind->apart) return 2 * rows <= f->merge_rows;
    /* more rows suit BLAS always */
    return cylstm_uses_blas(f->call.ctx) ? rows <= f->merge_rows
                                         : rows < f->call.kernels->tile_rows;
}

size_t cylstm_chunk_end(const struct forward *f, size_t rows, size_t s, size_t end)
{
    const size_t steps = rows < f->merge_rows ? f->merge_rows / rows : 1;
    return end - s < steps ? end : s + steps;
}

size_t cylstm_list_rows(const struct forward *f, const struct forward_pass *p,
                        struct workspace *own, struct cylstm_range chunk, size_t r0, size_t r1)
{
    size_t count = 0;
    for (size_t s = chunk.begin; s < chunk.end; s++) {
        const size_t end = cylstm_active_rows(&f->order, r1, s);
        for (size_t r = r0; r < end; r++) own->offset[count++] = cylstm_walk_offset(&p->x, r, s);
    }
    return count;
}

void cylstm_merge_inputs(struct forward *f, int caller, const struct forward_pass *p,
                         const struct workspace *own, const struct workspace *in, size_t rows,
                         size_t shares, size_t share)
{
    const struct cylstm_matrix *const matrices[] = {&p->l.w, &p->l.second};
    for (size_t n = 0; n < 2 && matrices[n]->columns; n++) {
        const struct cylstm_matrix *m = matrices[n];
        const size_t panels = cylstm_panels_of(f->call.kernels, m->columns);
        struct cylstm_job job;
        cylstm_start_job(&job, &p->l, m, rows, cylstm_share(panels, shares, share));
        job.product.term[0] = (struct cylstm_term){{p->x.base, in->offset, 0}, 1, p->l.I, NULL, 0};
        if (p->l.kind->apart) {
            start_cell(&job.product, f, &p->l, m);
            job.product.cell.sums = merged_rows(f, p, in, m, 0);
        } else {
            job.product.out = merged_rows(f, p, in, m, 0);
            job.product.out_panel = (ptrdiff_t)cylstm_panel_width(f->call.kernels);
        }
        run_job(f, caller, own, &job);
    }
}
