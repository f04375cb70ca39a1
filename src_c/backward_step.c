/* backward_step.c -- one step back: one product, dh_t = dy_t + dgates_{t+1} W_hh, finished by the
 * cell's backward, which leaves dgates_t (4H) for the step before. */
#include "backward.h"

/* What the gates of a step read and write, of a cell that is else empty. */
static void place_cell(const struct backward *b, const struct backward_pass *p,
                       const struct cylstm_panels *gates, size_t s, size_t r0,
                       struct cylstm_cell *cell)
{
    const struct cylstm_layer *l = &p->l;
    const size_t size = b->call.real_size, H = l->H, flat = b->start[s - b->step_begin] + r0;
    cylstm_start_cell(cell, l, gates);
    cell->unit_vectors = 1; /* dh is one vector of each unit */
    cell->tape = b->again ? backward_padded_rows(b, b->again->tape, l->tape, flat)
                          : cylstm_walk_rows(&p->tape, size, r0, s);
    if (s >= b->loss_begin) {
        cell->given_gates = cylstm_walk_rows(&p->dgates, size, r0, s);
        cell->given_c = cylstm_walk_rows(&p->dcells, size, r0, s);
    }
    cell->dgates = backward_padded_rows(b, b->dgates, backward_stride_of(b, l->dgates), flat);
    if (p->dc) {
        cell->dc = backward_padded_rows(b, p->dc, backward_stride_of(b, H), r0);
        cell->c_prev = backward_cells_before(b, p, s, r0);
    }
    if (l->blends) {
        cell->dh_prev = backward_padded_rows(b, p->dh, backward_stride_of(b, l->R), r0);
        if (b->h_before)
            cell->h_prev = (struct cylstm_rows){p->h.base, b->h_before + flat, 0};
        else if (s)
            cell->h_prev = cylstm_walk_rows(&p->h, size, r0, s - 1);
        else if (p->h_0)
            cell->h_prev = (struct cylstm_rows){p->h_0, b->r0_offset + r0, 0};
    }
    if (b->dims->peephole)
        cell->peep = cylstm_find_vector(&b->call, &b->weights, l, 1, CYLSTM_WEIGHT_PEEP);
    if (b->m) cell->h = backward_padded_rows(b, b->m, backward_stride_of(b, H), flat);
}

/* dgates of the step after s for rows from r0 on: in the chunk, or left by the one before. */
static struct cylstm_rows dgates_after(const struct backward *b, const struct backward_pass *p,
                                       size_t s, size_t r0)
{
    const size_t stride = backward_stride_of(b, p->l.dgates);
    if (b->after) return (struct cylstm_rows){b->dgates, b->after + backward_flat(b, s, r0), 0};
    if (s + 1 == b->step_end) return backward_padded_rows(b, p->next, stride, r0);
    return backward_padded_rows(b, b->dgates, stride, b->start[s + 1 - b->step_begin] + r0);
}

/* What goes back from h_t, inside of zoneout if there is any: which the step has, in `zoneout`. */
static void surround(const struct backward *b, const struct backward_pass *p, size_t s, size_t r0,
                     struct cylstm_product *g, struct cylstm_zoneout *zoneout)
{
    if (p->zoneout.p == 0) return;
    *zoneout = cylstm_step_zoneout(&p->zoneout, &b->order, s, r0);
    zoneout->inner = g->finish;
    if (!g->finish) g->cell = (struct cylstm_cell){.H = p->l.R, .unit_vectors = 1, .h = g->out};
    g->finish = b->call.kernels->cell[CYLSTM_ZONEOUT_MATH][0].backward;
    g->cell.zoneout = zoneout;
    g->cell.dh_prev = backward_padded_rows(b, p->dh, backward_stride_of(b, p->l.R), r0);
}

/* dh of step s for rows [r0, r1): a product for the rows that go on after s, from where the cell of
 * the step after has left off in p->dh; and dh_n, which is there, for those that end here. Finished by the cell, or stored where it must first be projected. */
static void step_back(struct backward *b, int caller, size_t share, const struct backward_pass *p,
                      size_t s, size_t r0, size_t r1, struct cylstm_range panels)
{
    const size_t size = b->call.real_size;
    const size_t active = cylstm_active_rows(&b->order, r1, s);
    size_t continuing = cylstm_active_rows(&b->order, r1, s + 1);
    if (continuing < r0 || s + 1 == b->window_end) continuing = r0;
    for (int part = 0; part < 2; part++) {
        const size_t from = part ? continuing : r0, to = part ? active : continuing;
        if (to <= from) continue;
        struct cylstm_job job;
        backward_start_dgates(&job, b, p, &p->l.hh_t, p->l.kind->hh, dgates_after(b, p, s, from),
                              to - from, panels);
        struct cylstm_product *g = &job.product;
        if (part) g->term[0].K = g->term[1].K = 0; /* no step after */
        if (part || p->l.blends) backward_start_from_dh(b, p, g, from);
        g->descending = (int)(s & 1);
        if (s >= b->loss_begin || b->layer + 1 < b->dims->layers)
            g->addend = cylstm_walk_rows(&p->dy, size, from, s);
        const struct cylstm_rows dh = backward_padded_rows(b, b->dh, backward_stride_of(b, p->l.R),
                                                           b->start[s - b->step_begin] + from);
        if (p->l.P && p->l.options.proj_clip != 0) {
            g->finish = b->call.kernels->cell[CYLSTM_PROJECTION_MATH][1].backward;
            g->cell = (struct cylstm_cell){.H = p->l.P,
                                           .unit_vectors = 1,
                                           .options = &p->l.options,
                                           .h_prev = cylstm_walk_rows(&p->h, size, from, s),
                                           .h = dh};
        } else if (p->l.P || p->l.kind->norm) {
            g->out = dh;
            g->out_panel = (ptrdiff_t)backward_width_of(b);
        } else {
            const struct cylstm_matrix *last = p->l.second.columns ? &p->l.second : &p->l.w;
            g->finish = cylstm_cell_of(b->call.kernels, &p->l, last->gates)->backward;
            place_cell(b, p, last->gates, s, from, &g->cell);
        }
        struct cylstm_zoneout zoneout;
        surround(b, p, s, from, g, &zoneout);
        backward_multiply(b, caller, share, &job);
    }
}

/* dm, back through the second product of a step: dh W_hr, or of its own gates, finished by the cell.
 */
static void second_back(struct backward *b, int caller, size_t share, const struct backward_pass *p,
                        size_t s, size_t r0, size_t r1, struct cylstm_range panels)
{
    const struct cylstm_layer *l = &p->l;
    const size_t active = cylstm_active_rows(&b->order, r1, s),
                 flat = b->start[s - b->step_begin] + r0;
    if (active <= r0) return;
    struct cylstm_job job;
    cylstm_start_job(&job, l, l->P ? &l->hr_t : &l->hh_t, active - r0, panels);
    if (l->P) {
        job.product.term[0] = (struct cylstm_term){
            backward_padded_rows(b, b->dh, backward_stride_of(b, l->R), flat), 1, l->P, NULL, 0};
    } else {
        struct cylstm_rows dgates =
            backward_padded_rows(b, b->dgates, backward_stride_of(b, l->dgates), flat);
        dgates.base =
            cylstm_at(dgates.base, b->call.real_size, (ptrdiff_t)(l->kind->second_hh.from * l->H));
        job.product.term[0] =
            (struct cylstm_term){dgates, 1, l->kind->second_hh.count * l->H, NULL, 0};
        job.k[0] = l->gates - job.product.term[0].K;
    }
    if (l->kind->norm) {
        job.product.out = backward_padded_rows(b, b->m, backward_stride_of(b, l->H), flat);
        job.product.out_panel = (ptrdiff_t)backward_width_of(b);
    } else {
        job.product.finish = cylstm_cell_of(b->call.kernels, l, l->w.gates)->backward;
        place_cell(b, p, l->w.gates, s, r0, &job.product.cell);
    }
    backward_multiply(b, caller, share, &job);
}

/* Whole rows [r0, r1) of a cell that waits for them: dh, or dm, is there. */
static void rows_back(struct backward *b, const struct backward_pass *p, size_t s, size_t r0,
                      size_t r1)
{
    const size_t active = cylstm_active_rows(&b->order, r1, s);
    if (active <= r0) return;
    struct cylstm_cell cell = {0};
    place_cell(b, p, p->l.w.gates, s, r0, &cell);
    cell.sums = backward_padded_rows(b, p->l.P ? b->m : b->dh, backward_stride_of(b, p->l.H),
                                     b->start[s - b->step_begin] + r0);
    cell.dnorm = backward_padded_rows(b, b->dnorm, backward_stride_of(b, p->l.kind->norm * p->l.H),
                                      b->start[s - b->step_begin] + r0);
    cylstm_find_norm(&b->call, &b->weights, &p->l, 1, &cell);
    b->call.kernels->norm[p->l.kind->norm_math].backward(&cell, active - r0);
}

void cylstm_backward_rows(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    const struct backward_pass *p = b->now;
    const struct cylstm_range rows = cylstm_share_rows(&b->order, b->split.rows, share);
    for (size_t s = b->step_end; s-- > b->step_begin && !cylstm_stopped(&b->call);) {
        cylstm_forget_states(b, p, s, rows.begin, cylstm_active_rows(&b->order, rows.end, s));
        step_back(b, caller, share, p, s, rows.begin, rows.end,
                  (struct cylstm_range){0, backward_panels_of(b, p->l.R)});
        if (cylstm_has_second(&p->l))
            second_back(b, caller, share, p, s, rows.begin, rows.end,
                        (struct cylstm_range){0, backward_panels_of(b, p->l.H)});
        if (p->l.kind->norm) rows_back(b, p, s, rows.begin, rows.end);
    }
}

void cylstm_backward_units(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    step_back(b, caller, share, b->now, b->step, 0, b->order.B,
              cylstm_share(backward_panels_of(b, b->now->l.R), b->shares, share));
}

void cylstm_backward_second(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    second_back(b, caller, share, b->now, b->step, 0, b->order.B,
                cylstm_share(backward_panels_of(b, b->now->l.H), b->shares, share));
}

void cylstm_backward_whole_rows(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    const struct cylstm_range mine =
        cylstm_share(cylstm_active_rows(&b->order, b->order.B, b->step), b->shares, share);
    (void)caller;
    rows_back(b, b->now, b->step, mine.begin, mine.end);
}
