/* forward_states.c -- the states in the forward pass: the first ones, and the last of each row; in
 * between, resets, before which a row's states become zeros, and c where the tape keeps nothing else.
 */
#include "forward.h"

#include <string.h>

void cylstm_reset_rows(const struct forward *f, const struct forward_pass *p, size_t s, size_t r0,
                       size_t r1)
{
    const size_t size = f->call.real_size, R = cylstm_stride(f->call.kernels, p->l.R) * size,
                 H = cylstm_stride(f->call.kernels, p->l.H) * size;
    for (size_t r = r0; p->reset && r < r1; r++) {
        if (!cylstm_is_reset(p->reset, &f->order, r, s)) continue;
        memset((char *)p->h[(s + f->parity) & 1] + r * R, 0, R);
        if (p->c) memset((char *)p->c + r * H, 0, H);
    }
}

void cylstm_keep_cells(const struct forward *f, const struct forward_pass *p, size_t s, size_t r0,
                       size_t r1)
{
    const size_t size = f->call.real_size, stride = cylstm_stride(f->call.kernels, p->l.H);
    for (size_t r = r0; p->kept.base && r < r1; r++)
        memcpy(cylstm_at(p->kept.base, size, cylstm_walk_offset(&p->kept, r, s)),
               cylstm_at(p->c, size, (ptrdiff_t)(r * stride)), p->l.H * size);
}

void cylstm_load_states(struct forward *f, const struct cylstm_order *order, const void *h,
                        const void *c)
{
    const size_t LD = f->dims->layers * f->dims->directions, size = f->call.real_size, B = order->B;
    for (size_t n = 0; n < LD; n++) {
        const struct forward_pass *p = &f->pass[n];
        const size_t R = cylstm_stride(f->call.kernels, p->l.R),
                     H = cylstm_stride(f->call.kernels, p->l.H);
        cylstm_load_rows(order, size, p->l.R,
                         h ? cylstm_at(h, size, (ptrdiff_t)(n * B * p->l.R)) : NULL, R, p->h[0]);
        if (p->c)
            cylstm_load_rows(order, size, p->l.H,
                             c ? cylstm_at(c, size, (ptrdiff_t)(n * B * p->l.H)) : NULL, H, p->c);
        memset(p->h[1], 0, B * R * size);
        if (p->m) memset(p->m, 0, B * H * size);
    }
}

void cylstm_store_states(const struct forward *f, const struct cylstm_order *order, void *h,
                         void *c)
{
    const size_t LD = f->dims->layers * f->dims->directions, size = f->call.real_size, B = order->B;
    for (size_t n = 0; n < LD; n++) {
        const struct forward_pass *p = &f->pass[n];
        const size_t R = cylstm_stride(f->call.kernels, p->l.R),
                     H = cylstm_stride(f->call.kernels, p->l.H);
        for (size_t r = 0; r < B; r++) {
            const size_t b = n * B + cylstm_batch_row(order, r),
                         length = cylstm_row_length(order, r), last = length & 1;
            cylstm_reset_rows(f, p, length, r, r + 1);
            memcpy(cylstm_at(h, size, (ptrdiff_t)(b * p->l.R)),
                   cylstm_at(p->h[last], size, (ptrdiff_t)(r * R)), p->l.R * size);
            if (p->c)
                memcpy(cylstm_at(c, size, (ptrdiff_t)(b * p->l.H)),
                       cylstm_at(p->c, size, (ptrdiff_t)(r * H)), p->l.H * size);
        }
    }
}
