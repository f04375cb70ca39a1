/* plan.c -- plans: a forward pass prepared for many short calls, whose states stay inside it. */
#include "forward.h"
#include "check.h"

#include <string.h>

enum { PLAN_STEPS = 16 }; /* a plan's block */

struct cylstm_plan {
    struct forward f;
    struct cylstm_context ctx; /* for its kernels: a plan outlives the context it was made with */
    struct cylstm_dims dims;
    size_t B;
    ptrdiff_t *h_offset, *c_offset; /* (B): the rows of the active streams */
};

static void carve_plan(struct cylstm_arena *arena, size_t B, struct cylstm_plan *plan)
{
    struct forward *f = &plan->f;
    const struct cylstm_kernels *k = plan->ctx.kernels;
    const size_t L = plan->dims.layers, size = cylstm_real_size(k),
                 R = cylstm_hidden_width(&plan->dims);
    f->call.ctx = &plan->ctx;
    f->call.kernels = k;
    f->call.real_size = size;
    f->dims = &plan->dims;
    cylstm_carve_passes(arena, B, f);
    cylstm_carve_workspaces(arena, f);
    plan->h_offset = cylstm_carve(arena, B, sizeof(ptrdiff_t));
    plan->c_offset = cylstm_carve(arena, B, sizeof(ptrdiff_t));
    for (size_t n = 0; n < 2 && n + 1 < L; n++)
        f->between[n] = cylstm_carve(arena, cylstm_times(B, PLAN_STEPS * R), size);
    f->block = PLAN_STEPS;
}

size_t cylstm_plan_size(const struct cylstm_context *ctx, const struct cylstm_dims *dims, size_t B)
{
    CYLSTM_CHECK(cylstm_check_dims(ctx, dims));
    struct cylstm_plan plan = {.ctx = *ctx, .dims = *dims};
    struct cylstm_arena arena = {NULL, cylstm_round_up(sizeof plan, CYLSTM_ALIGN)};
    carve_plan(&arena, B, &plan);
    return arena.used;
}

struct cylstm_plan *cylstm_plan_init(const struct cylstm_context *ctx,
                                     const struct cylstm_dims *dims, size_t B, void *mem)
{
    CYLSTM_CHECK(cylstm_check_plan(ctx, ctx, dims, B, mem));
    struct cylstm_plan *plan = mem;
    struct cylstm_arena arena = {mem, cylstm_round_up(sizeof *plan, CYLSTM_ALIGN)};
    *plan = (struct cylstm_plan){.ctx = *ctx, .dims = *dims, .B = B};
    plan->f.order.B = B;
    carve_plan(&arena, B, plan);
    cylstm_plan_set_states(plan, NULL, NULL);
    return plan;
}

void cylstm_plan_get_states(const struct cylstm_plan *plan, void *h, void *c)
{
    const struct cylstm_order order = {.B = plan->B, .T = plan->f.parity};
    cylstm_store_states(&plan->f, &order, h, c);
}

void cylstm_plan_set_states(struct cylstm_plan *plan, const void *h, const void *c)
{
    const struct cylstm_order order = {.B = plan->B};
    plan->f.parity = 0;
    cylstm_load_states(&plan->f, &order, h, c);
}

void cylstm_plan_reset_row(struct cylstm_plan *plan, size_t row)
{
    struct forward *f = &plan->f;
    const size_t size = f->call.real_size;
    for (size_t n = 0; n < plan->dims.layers; n++) {
        struct forward_pass *p = &f->pass[n];
        const size_t R = cylstm_stride(f->call.kernels, p->l.R),
                     H = cylstm_stride(f->call.kernels, p->l.H);
        memset(cylstm_at(p->h[f->parity], size, (ptrdiff_t)(row * R)), 0, R * size);
        if (p->c) memset(cylstm_at(p->c, size, (ptrdiff_t)(row * H)), 0, H * size);
    }
}

/* The rows named by `active` have taken an odd number of steps and the others none: copy
 * their h to where the others have theirs. */
static void keep_parity(struct cylstm_plan *plan, const size_t *active, size_t rows)
{
    struct forward *f = &plan->f;
    const size_t size = f->call.real_size;
    for (size_t n = 0; n < plan->dims.layers; n++) {
        struct forward_pass *p = &f->pass[n];
        const size_t R = cylstm_stride(f->call.kernels, p->l.R);
        for (size_t r = 0; r < rows; r++) {
            const ptrdiff_t at = (ptrdiff_t)(active[r] * R);
            memcpy(cylstm_at(p->h[f->parity], size, at), cylstm_at(p->h[!f->parity], size, at),
                   p->l.R * size);
        }
    }
}

void cylstm_plan_run(struct cylstm_plan *plan, const struct cylstm_context *ctx, const void *packed,
                     size_t T, const size_t *active, size_t rows, const void *x, void *y)
{
    CYLSTM_CHECK(cylstm_check_plan(ctx, &plan->ctx, &plan->dims, plan->B, plan));
    CYLSTM_CHECK(cylstm_check_run(ctx, &plan->dims, plan->B, packed, T, active, rows, x, y));
    struct forward *f = &plan->f;
    struct forward_pass *first = &f->pass[0], *last = &f->pass[plan->dims.layers - 1];
    struct cylstm_context now =
        *ctx; /* threads, BLAS and poll may change; the memory was laid out once */
    if ((size_t)now.threads > f->workspaces) now.threads = (int)f->workspaces;
    cylstm_begin_call(&f->call, &now);
    f->weights.packed = packed;
    f->order = (struct cylstm_order){.B = active ? rows : plan->B, .T = T};
    f->h_offset = f->c_offset = NULL;
    if (active) {
        for (size_t r = 0; r < rows; r++) {
            plan->h_offset[r] = (ptrdiff_t)(active[r] * cylstm_stride(f->call.kernels, first->l.R));
            plan->c_offset[r] = (ptrdiff_t)(active[r] * cylstm_stride(f->call.kernels, first->l.H));
        }
        f->h_offset = plan->h_offset;
        f->c_offset = plan->c_offset;
    }
    const ptrdiff_t I = (ptrdiff_t)first->l.I, R = (ptrdiff_t)last->l.R, B = (ptrdiff_t)f->order.B;
    first->x = (struct cylstm_walk){(void *)(uintptr_t)x, NULL, I, B * I, 0};
    last->y = (struct cylstm_walk){y, NULL, R, B * R, 0};
    if (B) cylstm_run_forward(f, T);
    if (active && (T & 1))
        keep_parity(plan, active, rows);
    else
        f->parity = (f->parity + T) & 1;
    f->call.ctx = &plan->ctx;
    cylstm_end_call(&f->call);
}
