/* backward_reset.c -- what a step had before it, and resets: where a row's states began as zeros,
 * no gradient passes, and what a step reads of the one before is zero.
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

void cylstm_forget_first(const struct backward *b, const struct backward_pass *p, void *gradient,
                         size_t width)
{
    const size_t bytes = width * b->call.real_size;
    for (size_t r = 0; gradient && p->reset && r < b->order.B; r++)
        if (cylstm_is_reset(p->reset, &b->order, r, 0))
            memset((char *)gradient + cylstm_batch_row(&b->order, r) * bytes, 0, bytes);
}
