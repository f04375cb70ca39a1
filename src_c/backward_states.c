/* backward_states.c -- the states in the backward pass: what a step had before it, and resets, where a row's
 * states began as zeros, no gradient passes, and what a step reads of the one before is zero; the
 * gradients that the last states come with, and those of the first ones.
 */
#include "backward.h"

#include <string.h>

/* From one row of reals to another, wherever both lie. */
static ptrdiff_t offset_to(const struct backward *b, const void *base, const void *row)
{
    return ((ptrdiff_t)(uintptr_t)row - (ptrdiff_t)(uintptr_t)base) / (ptrdiff_t)b->call.real_size;
}

static const void *or_nothing(const struct backward *b, const void *row)
{
    return row ? row : b->nothing;
}

const void *cylstm_h_before(const struct backward *b, const struct backward_pass *p, size_t r,
                            size_t s)
{
    const size_t size = b->call.real_size;
    if (cylstm_is_reset(p->reset, &b->order, r, s)) return NULL;
    if (s) return cylstm_at(p->h.base, size, cylstm_walk_offset(&p->h, r, s - 1));
    return p->h_0 ? cylstm_at(p->h_0, size, b->r0_offset[r]) : NULL;
}

const void *cylstm_c_before(const struct backward *b, const struct backward_pass *p, size_t r,
                            size_t s)
{
    const size_t size = b->call.real_size;
    if (cylstm_is_reset(p->reset, &b->order, r, s)) return NULL;
    if (s)
        return cylstm_at(p->tape.base, size,
                         cylstm_walk_offset(&p->tape, r, s - 1) +
                             (ptrdiff_t)cylstm_tape_cell(b->seq->tape, &p->l));
    return p->c_0 ? cylstm_at(p->c_0, size, b->c0_offset[r]) : NULL;
}

static const void *dgates_after(const struct backward *b, const struct backward_pass *p, size_t r,
                                size_t s)
{
    const size_t stride = backward_stride_of(b, p->l.dgates), size = b->call.real_size;
    if (r >= cylstm_active_rows(&b->order, b->order.B, s + 1) ||
        cylstm_is_reset(p->reset, &b->order, r, s + 1))
        return b->nothing;
    if (s + 1 == b->step_end) return cylstm_at(p->next, size, (ptrdiff_t)(r * stride));
    return cylstm_at(b->dgates, size, (ptrdiff_t)(backward_flat(b, s + 1, r) * stride));
}

void cylstm_list_states(struct backward *b, const struct backward_pass *p)
{
    for (size_t s = b->step_begin; p->reset && s < b->step_end; s++) {
        const size_t active = cylstm_active_rows(&b->order, b->order.B, s);
        for (size_t r = 0; r < active; r++) {
            const size_t flat = backward_flat(b, s, r);
            b->h_before[flat] = offset_to(b, p->h.base, or_nothing(b, cylstm_h_before(b, p, r, s)));
            if (p->dc)
                b->c_before[flat] =
                    offset_to(b, p->tape.base, or_nothing(b, cylstm_c_before(b, p, r, s)));
            b->after[flat] = offset_to(b, b->dgates, dgates_after(b, p, r, s));
        }
    }
}

static void clear_row(const struct backward *b, void *rows, size_t width, size_t r)
{
    const size_t bytes = backward_stride_of(b, width) * b->call.real_size;
    if (rows) memset((char *)rows + r * bytes, 0, bytes);
}

/* What step s + 1 has left in dh and dc. At a row's length: dh_n and dc_n. */
void cylstm_forget_states(const struct backward *b, const struct backward_pass *p, size_t s,
                          size_t r0, size_t r1)
{
    for (size_t r = r0; p->reset && r < r1; r++)
        if (cylstm_is_reset(p->reset, &b->order, r, s + 1)) {
            clear_row(b, p->dh, p->l.R, r);
            clear_row(b, p->dc, p->l.H, r);
        }
}

/* Zeros in (B, width) gradients of a first state, where a reset stands before the first step. */
static void forget_first(const struct backward *b, const struct backward_pass *p, void *gradient,
                         size_t width)
{
    const size_t bytes = width * b->call.real_size;
    for (size_t r = 0; gradient && p->reset && r < b->order.B; r++)
        if (cylstm_is_reset(p->reset, &b->order, r, 0))
            memset((char *)gradient + cylstm_batch_row(&b->order, r) * bytes, 0, bytes);
}

/* ---------------------------------------------------------------- the first and the last states */

/* dh_0 = dgates_0 W_hh (and what the cell adds), for a share of its units, and dc_0; rows without a step pass dh_n and dc_n
 * on. */
static void first_states(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    const struct backward_pass *p = b->now;
    const size_t size = b->call.real_size, R = p->l.R, H = p->l.H, B = b->order.B,
                 n = b->layer * b->dims->directions + b->direction;
    void *dh_0 = cylstm_at(b->grads->dh_0, size, (ptrdiff_t)(n * B * R)),
         *dc_0 = cylstm_at(b->grads->dc_0, size, (ptrdiff_t)(n * B * H));
    const size_t active = cylstm_active_rows(&b->order, B, 0);
    struct cylstm_job job;
    backward_start_dgates(&job, b, p, &p->l.hh_t, p->l.kind->hh,
                          backward_padded_rows(b, p->next, backward_stride_of(b, p->l.dgates), 0),
                          active, cylstm_share(backward_panels_of(b, R), b->shares, share));
    job.product.out = (struct cylstm_rows){dh_0, b->r0_offset, 0};
    job.product.out_panel = (ptrdiff_t)backward_width_of(b);
    if (p->l.blends) backward_start_from_dh(b, p, &job.product, 0);
    if (b->seen == 0) job.product.addend = job.product.out;
    backward_multiply(b, caller, share, &job);
    for (size_t r = 0; share == 0 && r < B; r++) {
        if (r >= active)
            memcpy(cylstm_at(dh_0, size, b->r0_offset[r]),
                   cylstm_at(p->dh, size, (ptrdiff_t)(r * backward_stride_of(b, R))), R * size);
        if (!p->dc) continue;
        if (b->seen) {
            memcpy(cylstm_at(dc_0, size, b->c0_offset[r]),
                   cylstm_at(p->dc, size, (ptrdiff_t)(r * backward_stride_of(b, H))), H * size);
            continue;
        }
        const struct cylstm_rows one = {b->unit_ones, NULL, 0},
                                 dc = backward_padded_rows(b, p->dc, backward_stride_of(b, H), r);
        b->call.kernels->sum_products(&dc, &one, 1, H, 1, cylstm_at(dc_0, size, b->c0_offset[r]));
    }
}

/* The gradients of the first states, which a window begins with. */
void cylstm_reach_first_states(struct backward *b)
{
    const size_t D = b->dims->directions, R = cylstm_hidden_width(b->dims), H = b->dims->hidden,
                 B = b->order.B, size = b->call.real_size;
    for (size_t n = 0; n < b->dims->layers * D && !cylstm_stopped(&b->call); n++) {
        const struct backward_pass *p = b->now = &b->pass[n];
        b->layer = n / D;
        b->direction = n % D;
        cylstm_run_phase(&b->team, first_states, b, b->shares);
        forget_first(b, p, cylstm_at(b->grads->dh_0, size, (ptrdiff_t)(n * B * R)), R);
        if (p->dc) forget_first(b, p, cylstm_at(b->grads->dc_0, size, (ptrdiff_t)(n * B * H)), H);
    }
}

/* Whether a row's last states are of the loss from a window's loss_begin on. */
static int ends_in_window(const struct backward *b, size_t r)
{
    const size_t length = cylstm_row_length(&b->order, r);
    return length <= b->window_end && (length > b->loss_begin || !b->loss_begin);
}

void cylstm_load_last_states(struct backward *b)
{
    const size_t LD = b->dims->layers * b->dims->directions, B = b->order.B,
                 size = b->call.real_size;
    for (size_t n = 0; n < LD; n++) {
        const struct backward_pass *p = &b->pass[n];
        const size_t R = p->l.R, H = p->l.H, R_bytes = backward_stride_of(b, R) * size,
                     H_bytes = backward_stride_of(b, H) * size;
        const void *dh_n = b->grads->dh_n, *dc_n = b->grads->dc_n;
        cylstm_load_rows(&b->order, size, R,
                         dh_n ? cylstm_at(dh_n, size, (ptrdiff_t)(n * B * R)) : NULL,
                         backward_stride_of(b, R), p->dh);
        if (p->dc)
            cylstm_load_rows(&b->order, size, H,
                             dc_n ? cylstm_at(dc_n, size, (ptrdiff_t)(n * B * H)) : NULL,
                             backward_stride_of(b, H), p->dc);
        for (size_t r = 0; r < B; r++) {
            if (ends_in_window(b, r)) continue;
            memset((char *)p->dh + r * R_bytes, 0, R_bytes);
            if (p->dc) memset((char *)p->dc + r * H_bytes, 0, H_bytes);
        }
    }
}
