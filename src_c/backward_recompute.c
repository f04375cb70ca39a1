/* backward_recompute.c -- the gates of a chunk once more, where the tape has kept h and c alone: one
 * step forward for all rows of the chunk at once, each from its own x, h and c. A sum of our own
 * kernels is one chain over k however its rows were computed, and so the bits are those of the forward
 * pass; a BLAS may round otherwise.
 */
#include "backward.h"
#include "forward.h"

#include <string.h>

enum { AT_ONCE = 64 }; /* rows between two polls */

void cylstm_carve_recompute(struct cylstm_arena *arena, struct backward *b)
{
    const struct cylstm_kernels *k = b->call.kernels;
    const size_t size = b->call.real_size, rows = b->chunk_rows,
                 width = cylstm_hidden_width(b->dims);
    const struct cylstm_layer l =
        cylstm_find_layer(k, b->dims, b->dims->layers > 1, 0); /* the others are alike */
    const size_t H = cylstm_times(rows, cylstm_stride(k, l.H)),
                 R = cylstm_times(rows, cylstm_stride(k, width));
    struct cylstm_recompute again = {.tape = cylstm_carve(arena, cylstm_times(rows, l.tape), size)};
    b->again = cylstm_carve(arena, 1, sizeof again);
    for (int n = 0; n < 2; n++) again.h[n] = cylstm_carve(arena, R, size);
    if (l.kind->shape.states > 1) again.c = cylstm_carve(arena, H, size);
    if (cylstm_has_second(&l)) again.m = cylstm_carve(arena, H, size);
    if (l.second.columns) again.z = cylstm_carve(arena, H, size);
    if (l.kind->norm)
        again.sums = cylstm_carve(arena, cylstm_times(rows, cylstm_sums_stride(k, &l)), size);
    if (b->seq->tape->dropout > 0) again.x = cylstm_carve(arena, cylstm_times(rows, l.I), size);
    again.x_offset = cylstm_carve(arena, rows, sizeof(ptrdiff_t));
    if (arena->base) *b->again = again;
}

/* A row of `width` reals, or of zeros, into padded row `flat`. */
static void put_row(const struct backward *b, void *rows, size_t flat, size_t width,
                    const void *from)
{
    const size_t size = b->call.real_size, stride = backward_stride_of(b, width) * size,
                 used = from ? width * size : 0;
    char *row = (char *)rows + flat * stride;
    if (used) memcpy(row, from, used);
    memset(row + used, 0, stride - used);
}

/* What rows [mine) of the chunk start from. */
static void gather(const struct backward *b, const struct backward_pass *p,
                   struct cylstm_range mine)
{
    const struct cylstm_recompute *again = b->again;
    const int drop = b->layer && b->seq->tape->dropout > 0;
    const struct cylstm_dropout dropout = cylstm_layer_dropout(b->seq->tape, b->layer);
    for (size_t s = b->step_begin; s < b->step_end; s++) {
        const size_t first = backward_flat(b, s, 0), end = backward_flat(b, s + 1, 0);
        for (size_t flat = mine.begin > first ? mine.begin : first; flat < end && flat < mine.end;
             flat++) {
            const size_t r = flat - first;
            put_row(b, again->h[0], flat, p->l.R, cylstm_h_before(b, p, r, s));
            if (again->c) put_row(b, again->c, flat, p->l.H, cylstm_c_before(b, p, r, s));
            again->x_offset[flat] = cylstm_walk_offset(&p->x, r, s);
            if (drop)
                b->call.kernels->dropout(
                    &dropout, backward_dropout_element(b, p, r, s), p->l.I,
                    cylstm_at(p->x.base, b->call.real_size, again->x_offset[flat]),
                    cylstm_at(again->x, b->call.real_size, (ptrdiff_t)(flat * p->l.I)));
        }
    }
}

/* A pass of one step, whose batch are the chunk's rows. */
static struct forward_pass pass_of_chunk(const struct backward *b, const struct backward_pass *p)
{
    const struct cylstm_recompute *again = b->again;
    struct forward_pass q = {
        .l = p->l, .c = again->c, .m = again->m, .z = again->z, .sums = again->sums};
    q.l.any = cylstm_cell_options(b->dims, b->direction, &q.l.options); /* as it was forward */
    q.h[0] = again->h[0];
    q.h[1] = again->h[1];
    q.tape = (struct cylstm_walk){.base = again->tape, .stride = (ptrdiff_t)p->l.tape};
    if (b->layer && b->seq->tape->dropout > 0)
        q.x = (struct cylstm_walk){.base = again->x, .stride = (ptrdiff_t)p->l.I};
    else
        q.x = (struct cylstm_walk){.base = p->x.base, .offset = again->x_offset};
    return q;
}

void cylstm_recompute_gates(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    const struct backward_pass *p = b->now;
    const struct cylstm_range mine =
        cylstm_share(b->start[b->step_end - b->step_begin], b->shares, share);
    const struct forward_pass q = pass_of_chunk(b, p);
    const struct workspace none = {0};
    struct cylstm_context quiet = *b->call.ctx; /* it is polled here */
    quiet.poll = NULL;
    struct forward f = {
        .call = {.ctx = &quiet, .kernels = b->call.kernels, .real_size = b->call.real_size},
        .dims = b->dims,
        .weights.packed = b->seq->packed};
    gather(b, p, mine);
    for (size_t r = mine.begin; r < mine.end && !cylstm_stopped(&b->call); r += AT_ONCE) {
        const size_t n = mine.end - r < AT_ONCE ? mine.end - r : AT_ONCE;
        cylstm_forward_step(&f, 0, &q, &none, 0, r, n, cylstm_step_panels(&f, &q), NULL);
        if (q.sums) cylstm_forward_rows(&f, &q, 0, r, n, NULL);
        if (q.l.second.columns)
            cylstm_forward_second(&f, 0, &q, &none, 0, r, n, cylstm_second_panels(&f, &q), NULL);
        if (caller && b->call.ctx->poll)
            cylstm_poll_caller(&b->call, 2.0 * (double)n * (double)(q.l.gates * q.l.w.K));
    }
}
