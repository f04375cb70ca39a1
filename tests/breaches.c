/* breaches.c -- calls that break the terms of cylstm.h, on a core with CYLSTM_DEBUG: each must end
 * its process by an assertion, and the same call without the breach must not.
 *
 *     cc -std=c11 -DCYLSTM_DEBUG -pthread -Isrc_c tests/breaches.c <the core> -o breaches
 */
#define _DEFAULT_SOURCE
#include "cylstm.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { T = 3, B = 2, I = 5, H = 7, REALS = 1 << 16 };

struct call {
    struct cylstm_context ctx, plan_ctx;
    struct cylstm_dims dims;
    struct cylstm_sequence seq;
    struct cylstm_tape tape;
    struct cylstm_gradients grads;
    struct cylstm_adam adam;
    size_t lengths[B], active[B], steps, rows, weights;
    void *packed, *back, *scratch, *plan, *x, *out;
};

static void *memory(void)
{
    void *p = aligned_alloc(CYLSTM_ALIGN, REALS * sizeof(float));
    if (!p) exit(2);
    memset(p, 0, REALS * sizeof(float));
    return p;
}

static void *moved(void *p, ptrdiff_t bytes) { return (char *)p + bytes; }

/* Every argument that is broken, one at a time. */
#define BREACHES(BREACH) \
    BREACH(none, (void)0) \
    BREACH(no_kernels, c->ctx.kernels = NULL) \
    BREACH(no_threads, c->ctx.threads = 0) \
    BREACH(no_layers, c->dims.layers = 0) \
    BREACH(three_directions, c->dims.directions = 3) \
    BREACH(reverse_and_forward, c->dims.directions = 2; c->dims.reverse = 1) \
    BREACH(clip_of_no_projection, c->dims.proj_clip = 1) \
    BREACH(other_type, c->dims.bits = 64) \
    BREACH(no_such_format, c->dims.format = CYLSTM_FORMATS) \
    BREACH(nobody_multiplies_int8, c->dims.format = CYLSTM_INT8; c->ctx.int8 = NULL) \
    BREACH(floats_of_wide_inputs, c->dims.wide_inputs = 1) \
    BREACH(nobody_multiplies_bfloat16, c->dims.format = CYLSTM_BFLOAT16_PRODUCTS; \
           c->ctx.bf16 = NULL) \
    BREACH(doubles_of_fewer_bits, c->dims.format = CYLSTM_BFLOAT16; c->dims.bits = 64; \
           c->ctx.kernels = cylstm_find_kernels(NULL, 64)) \
    BREACH(product_overflows, c->dims.hidden = SIZE_MAX / 64) \
    BREACH(no_steps, c->seq.T = 0) \
    BREACH(no_rows, c->seq.B = 0) \
    BREACH(length_too_long, c->lengths[1] = T + 1) \
    BREACH(no_x, c->seq.x = NULL) \
    BREACH(x_unaligned, c->seq.x = moved(c->x, 1)) \
    BREACH(x_stride_overflows, c->seq.x_t = PTRDIFF_MAX / 4) \
    BREACH(no_y, c->seq.y = NULL) \
    BREACH(rows_of_y_overlap, c->seq.y_b = H - 1) \
    BREACH(steps_of_y_overlap, c->seq.y_t = H) \
    BREACH(no_h_n, c->seq.h_n = NULL) \
    BREACH(no_packed, c->packed = NULL) \
    BREACH(packed_unaligned, c->packed = moved(c->packed, CYLSTM_ALIGN / 2)) \
    BREACH(scratch_unaligned, c->scratch = moved(c->scratch, 4)) \
    BREACH(no_cells, c->tape.cells = NULL) \
    BREACH(more_than_all_is_dropped, c->tape.dropout = 1.5) \
    BREACH(no_tape, c->seq.tape = NULL) \
    BREACH(no_dweights, c->grads.dweights = NULL) \
    BREACH(rows_of_dx_overlap, c->grads.dx_b = 1) \
    BREACH(first_step_is_0, c->adam.step = 0) \
    BREACH(too_many_weights, c->weights = SIZE_MAX / 4) \
    BREACH(weights_overlap, c->out = moved(c->x, 4)) \
    BREACH(plan_of_other_kernels, c->plan_ctx = c->ctx; \
           cylstm_init_context(&c->plan_ctx, cylstm_isa_name(cylstm_isa_count() - 1), 32); \
           c->plan_ctx.kernels = \
               c->plan_ctx.kernels == c->ctx.kernels ? NULL : c->plan_ctx.kernels) \
    BREACH(minus_one_steps, c->steps = (size_t)-1) \
    BREACH(stream_twice, c->active[1] = c->active[0]) \
    BREACH(no_such_stream, c->active[1] = B) \
    BREACH(too_many_streams, c->rows = B + 1)

#define NAME(name, breach) #name,
static const char *const names[] = {BREACHES(NAME)};
enum { COUNT = sizeof names / sizeof names[0] };

#define FUNCTION(name, breach) \
    static void break_##name(struct call *c) \
    { \
        (void)c; \
        breach; \
    }
BREACHES(FUNCTION)

#define POINTER(name, breach) break_##name,
static void (*const breaches[])(struct call *) = {BREACHES(POINTER)};

/* Everything in order, for breach n and no other. */
static void call_all(int n)
{
    struct call c = {.dims = {1, 1, I, H, 0, 1, 32},
                     .seq = {.T = T, .B = B, .x_t = B * I, .x_b = I, .y_t = B * H, .y_b = H},
                     .grads = {.dy_t = B * H, .dy_b = H, .dx_t = B * I, .dx_b = I},
                     .adam = {.lr = 1, .step = 1},
                     .lengths = {T, 1},
                     .active = {1, 0},
                     .steps = 2,
                     .rows = B,
                     .weights = 8};
    if (!cylstm_init_context(&c.ctx, NULL, 32)) exit(2);
    c.plan_ctx = c.ctx;
    void *raw = memory();
    c.packed = memory();
    c.back = memory();
    c.scratch = memory();
    c.plan = memory();
    c.x = memory();
    c.out = c.x;
    cylstm_pack_weights(&c.ctx, &c.dims, raw, c.packed);
    cylstm_pack_backward(&c.ctx, &c.dims, raw, c.back);
    c.seq.x = c.x;
    c.seq.y = memory();
    c.seq.h_n = memory();
    c.seq.c_n = memory();
    c.seq.lengths = c.lengths;
    c.seq.tape = &c.tape;
    c.tape.cells = memory();
    c.grads.dy = memory();
    c.grads.dx = memory();
    c.grads.dh_0 = memory();
    c.grads.dc_0 = memory();
    c.grads.dweights = memory();
    void *y = memory(), *grads = memory(), *mean = memory(), *square = memory();
    breaches[n](&c);
    cylstm_forward(&c.ctx, &c.dims, c.packed, &c.seq, c.scratch);
    cylstm_backward(&c.ctx, &c.dims, c.back, &c.seq, &c.grads, c.scratch);
    struct cylstm_plan *plan = cylstm_plan_init(&c.ctx, &c.dims, B, c.plan);
    cylstm_plan_run(plan, &c.plan_ctx, c.packed, c.steps, c.active, c.rows, c.x, y);
    cylstm_adam_step(&c.ctx, &c.adam, c.weights, c.x, grads, mean, square, c.out, mean, square);
}

int main(void)
{
    int wrong = 0;
    for (int n = 0; n < COUNT; n++) {
        int status;
        const pid_t child = fork();
        if (child < 0) return 2;
        if (!child) {
            if (n && !freopen("/dev/null", "w", stderr)) _exit(2);
            call_all(n);
            _exit(0);
        }
        if (waitpid(child, &status, 0) != child) return 2;
        const int stopped = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT,
                  ended = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        if (n ? stopped : ended) continue;
        printf("%s: status %d\n", names[n], status);
        wrong++;
    }
    printf("%d breaches, %d not found\n", COUNT - 1, wrong);
    return wrong != 0;
}
