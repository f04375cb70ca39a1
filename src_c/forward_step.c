/* forward_step.c -- one step of one layer: one product, [1, x_t, h_{t-1}] by the packed gates,
 * finished by the cell while hot.
 *
 * Where few rows share a step, the input product of many steps is merged beforehand, and a step
 * starts from its sums; the bits are the same, since a sum is one chain over k either way.
 */
#include "blas.h"
#include "forward.h"

#include <string.h>

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

static size_t merged_stride(const struct forward *f, const struct forward_pass *p)
{
    return p->l.w.columns + f->call.kernels->lanes;
}

static void run_job(struct forward *f, int caller, const struct workspace *own,
                    struct cylstm_job *job)
{
    cylstm_multiply_weights(&f->call, caller, &f->weights, job, own->panels);
}

void cylstm_forward_step(struct forward *f, int caller, const struct forward_pass *p,
                         const struct workspace *own, size_t s, size_t r0, size_t n,
                         struct cylstm_range panels, const void *merged)
{
    const struct cylstm_layer *l = &p->l;
    const size_t size = f->call.real_size;
    const size_t now = (s + f->parity) & 1;
    struct cylstm_job job = cylstm_start_job(l, &l->w, n, panels);
    struct cylstm_product *g = &job.product;
    const struct cylstm_rows h = state_rows(f, p->h[now], l->R, r0, f->h_offset);
    if (merged) {
        g->init = merged;
        g->init_panel = (ptrdiff_t)cylstm_panel_width(f->call.kernels);
        g->init_row = (ptrdiff_t)merged_stride(f, p);
    } else {
        g->term[0] = (struct cylstm_term){cylstm_walk_rows(&p->x, size, r0, s), 1, l->I, NULL};
    }
    g->term[1] = (struct cylstm_term){h, 1, l->R, NULL};
    job.k[1] = l->I;
    /* Every other step takes the panels last to first: a sweep that does not fit its cache
     * then finds its most recent part still there. */
    g->descending = (int)now;
    g->finish = cylstm_cell_of(f->call.kernels, l)->forward;
    g->cell = cylstm_start_cell(l);
    if (l->kind->blends) g->cell.h_prev = h;
    if (p->c) g->cell.c = state_rows(f, p->c, l->H, r0, f->c_offset);
    if (l->P) {
        g->cell.h = state_rows(f, p->m, l->H, r0, NULL);
    } else {
        g->cell.h = state_rows(f, p->h[!now], l->R, r0, f->h_offset);
        g->cell.y = cylstm_walk_rows(&p->y, size, r0, s);
    }
    g->cell.tape = cylstm_walk_rows(&p->tape, size, r0, s);
    run_job(f, caller, own, &job);
}

void cylstm_forward_project(struct forward *f, int caller, const struct forward_pass *p,
                            const struct workspace *own, size_t s, size_t r0, size_t n,
                            struct cylstm_range panels)
{
    const size_t size = f->call.real_size, width = cylstm_panel_width(f->call.kernels);
    const struct cylstm_rows h =
        state_rows(f, p->h[!((s + f->parity) & 1)], p->l.R, r0, f->h_offset);
    const struct cylstm_rows y = cylstm_walk_rows(&p->y, size, r0, s);
    struct cylstm_job job = cylstm_start_job(&p->l, &p->l.hr, n, panels);
    job.product.term[0] =
        (struct cylstm_term){state_rows(f, p->m, p->l.H, r0, NULL), 1, p->l.H, NULL};
    job.product.out = h;
    job.product.out_panel = (ptrdiff_t)width;
    run_job(f, caller, own, &job);
    const size_t first = panels.begin * width,
                 end = panels.end * width < p->l.P ? panels.end * width : p->l.P;
    for (size_t r = 0; r < n; r++)
        memcpy(cylstm_at(y.base, size,
                         (y.offset ? y.offset[r] : (ptrdiff_t)r * y.stride) + (ptrdiff_t)first),
               cylstm_at(h.base, size,
                         (h.offset ? h.offset[r] : (ptrdiff_t)r * h.stride) + (ptrdiff_t)first),
               (end - first) * size);
}

struct cylstm_range cylstm_gate_panels(const struct forward *f, const struct forward_pass *p)
{
    return (struct cylstm_range){0, cylstm_panels_of(f->call.kernels, p->l.w.columns)};
}

struct cylstm_range cylstm_projection_panels(const struct forward *f, const struct forward_pass *p)
{
    return (struct cylstm_range){0, cylstm_panels_of(f->call.kernels, p->l.P)};
}

/* ------------------------------------------------------- the merged input product */

/* Raw weights are not: each of the two products would pack whole panels. */
int cylstm_is_merged(const struct forward *f, const struct forward_pass *p, size_t rows,
                     size_t steps)
{
    if (f->weights.raw || steps < 2 || p->l.I < MERGE_INPUTS) return 0;
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
                         const struct workspace *own, size_t rows, struct cylstm_range panels)
{
    struct cylstm_job job = cylstm_start_job(&p->l, &p->l.w, rows, panels);
    job.product.term[0] = (struct cylstm_term){{p->x.base, own->offset, 0}, 1, p->l.I, NULL};
    job.product.out = (struct cylstm_rows){own->merged, NULL, (ptrdiff_t)merged_stride(f, p)};
    job.product.out_panel = (ptrdiff_t)cylstm_panel_width(f->call.kernels);
    run_job(f, caller, own, &job);
}

const void *cylstm_merged_row(const struct forward *f, const struct forward_pass *p,
                              const struct workspace *own, size_t done)
{
    return cylstm_at(own->merged, f->call.real_size, (ptrdiff_t)(done * merged_stride(f, p)));
}
