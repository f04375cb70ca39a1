/* calls_optim.c -- what takes one real after another, between guard pages: the optimisers' steps and
 * activations of calls.c. */
#define _DEFAULT_SOURCE
#include "calls_check.h"

enum { WEIGHTS_NOW, MEAN, SQUARE, AFTER };

/* A step of an optimiser; what is remembered is in after[MEAN], and Adam's squares beside it. */
static void step(const struct cylstm_context *ctx, const void *settings, int adam, size_t n,
                 const void *const before[AFTER], const void *grads, void *after[AFTER])
{
    if (adam)
        cylstm_adam_step(ctx, settings, n, before[WEIGHTS_NOW], grads, before[MEAN], before[SQUARE],
                         after[WEIGHTS_NOW], after[MEAN], after[SQUARE]);
    else
        cylstm_sgd_step(ctx, settings, n, before[WEIGHTS_NOW], grads, before[MEAN],
                        after[WEIGHTS_NOW], after[MEAN]);
}

/* An optimiser's step gives the same in place and apart, and nearly so by the portable set. */
void check_steps(struct trial *t)
{
    const size_t n = between(t, 1, 300), size = real_size(t);
    const int adam = (int)below(t, 2), momentum = (int)below(t, 2);
    const struct cylstm_adam adams = {.lr = 0.01,
                                      .beta1 = 0.9,
                                      .beta2 = 0.99,
                                      .eps = 1e-3,
                                      .weight_decay = below(t, 2) ? 0.1 : 0,
                                      .decoupled = (int)below(t, 2),
                                      .step = between(t, 1, 3)};
    const struct cylstm_sgd sgds = {.lr = 0.01,
                                    .momentum = momentum ? 0.9 : 0,
                                    .dampening = momentum && below(t, 2) ? 0.2 : 0,
                                    .weight_decay = below(t, 2) ? 0.1 : 0,
                                    .nesterov = momentum && below(t, 2),
                                    .step = between(t, 1, 3)};
    const void *settings = adam ? (const void *)&adams : &sgds;
    struct cylstm_context ctx;
    cylstm_init_context(&ctx, cylstm_kernels_isa(t->kernels), t->kernels->bits);
    ctx.threads = (int)between(t, 1, 3);
    snprintf(t->shape, sizeof t->shape, "%s, %zu weights, %d threads", adam ? "Adam" : "SGD", n,
             ctx.threads);
    const int kept = adam ? AFTER : momentum ? SQUARE : MEAN; /* arrays from step to step */
    const void *grads = noise(t, "grads", n), *before[AFTER] = {NULL};
    static const char *const called[AFTER] = {"weights", "mean", "square"};
    for (int k = 0; k < kept; k++) {
        void *array = noise(t, called[k], n);
        for (size_t j = 0; k == SQUARE && j < n; j++)
            put(t, array, (ptrdiff_t)j, fabs(get(t, array, (ptrdiff_t)j)));
        before[k] = array;
    }
    void *apart[AFTER] = {NULL}, *in_place[AFTER] = {NULL}, *portable[AFTER] = {NULL};
    ready(t);
    for (int k = 0; k < kept; k++) {
        apart[k] = output(t, called[k], n * size);
        in_place[k] = output(t, called[k], n * size);
        portable[k] = output(t, called[k], n * size);
        memcpy(in_place[k], before[k], n * size);
    }
    step(&ctx, settings, adam, n, before, grads, apart);
    step(&ctx, settings, adam, n, (const void *const *)in_place, grads, in_place);
    be_portable(t, &ctx);
    step(&ctx, settings, adam, n, before, grads, portable);
    for (int k = 0; k < kept; k++) {
        if (memcmp(apart[k], in_place[k], n * size)) fail(t, "%s differ in place", called[k]);
        check_close(t, called[k], apart[k], portable[k], n, t->kernels->bits == 32 ? 1e-5 : 1e-12);
    }
    void *y[2] = {output(t, "y", n * size), output(t, "y", n * size)};
    for (int k = 0; k < 2; k++) {
        cylstm_apply_activation(t->kernels, k, before[WEIGHTS_NOW], y[0], n);
        cylstm_apply_activation(ctx.kernels, k, before[WEIGHTS_NOW], y[1], n);
        check_close(t, k ? "tanh" : "sigmoid", y[0], y[1], n,
                    t->kernels->bits == 32 ? 1e-6 : 1e-14);
    }
    untouched(t);
}
