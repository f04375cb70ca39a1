/* optim.c -- a step of an optimiser: its hyperparameters become the terms of the kernels,
 * and the weights are shared out among the threads. */
#include "cpu.h"
#include "check.h"
#include "split.h"

/* New weights of more than so much of the L3 are not found there by the next forward pass. */
static const double STREAMED_OF_L3 = 1;

struct step {
    const struct cylstm_kernels *kernels;
    const struct cylstm_adam_terms *adam; /* one of the two is set */
    const struct cylstm_sgd_terms *sgd;
    struct cylstm_update update;
    size_t n, shares;
    uint64_t number; /* 1 at the first */
};

static void run_share(void *arg, size_t share, int caller)
{
    (void)caller;
    const struct step *s = arg;
    const size_t size = cylstm_real_size(s->kernels);
    const struct cylstm_range mine = cylstm_share(s->n, s->shares, share);
    const ptrdiff_t begin = (ptrdiff_t)mine.begin;
    struct cylstm_update part = {.weights = cylstm_at(s->update.weights, size, begin),
                                 .grads = cylstm_at(s->update.grads, size, begin),
                                 .out = cylstm_at(s->update.out, size, begin),
                                 .streams = s->update.streams};
    for (int k = 0; k < 2; k++)
        if (s->update.state[k]) {
            part.state[k] = cylstm_at(s->update.state[k], size, begin);
            part.state_out[k] = cylstm_at(s->update.state_out[k], size, begin);
        }
    if (s->adam)
        s->kernels->adam(s->adam, &part, mine.end - mine.begin);
    else
        s->kernels->sgd(s->sgd, &part, mine.end - mine.begin);
}

static void run_step(const struct cylstm_context *ctx, struct step *s)
{
    CYLSTM_CHECK(cylstm_check_step(ctx, s->number, s->n, &s->update));
    const uint32_t mode = cylstm_enter_float_mode();
    s->kernels = ctx->kernels;
    s->update.streams =
        cylstm_part_of_l3((double)s->n, cylstm_real_size(ctx->kernels)) > STREAMED_OF_L3;
    cylstm_run_over_weights(ctx->threads, s->n, run_share, s, &s->shares);
    cylstm_leave_float_mode(mode);
}

/* base^n, for whole n: the core needs no libm. */
static double power(double base, uint64_t n)
{
    double result = 1;
    for (; n; n >>= 1, base *= base)
        if (n & 1) result *= base;
    return result;
}

/* Of a number in (0, 1], by Heron's method. */
static double square_root(double x)
{
    double y = 1;
    for (int k = 0; k < 40; k++) y = (y + x / y) / 2;
    return y;
}

/* Both bias corrections go into the step size and eps:
 * lr m' / (sqrt(v') + eps) = (lr r / (1 - beta1^t)) m / (sqrt(v) + eps r), r = sqrt(1 - beta2^t) */
void cylstm_adam_step(const struct cylstm_context *ctx, const struct cylstm_adam *adam, size_t n,
                      const void *weights, const void *grads, const void *mean, const void *square,
                      void *out, void *mean_out, void *square_out)
{
    const double r = square_root(1 - power(adam->beta2, adam->step));
    const struct cylstm_adam_terms terms = {
        .keep = adam->decoupled ? 1 - adam->lr * adam->weight_decay : 1,
        .penalty = adam->decoupled ? 0 : adam->weight_decay,
        .beta1 = adam->beta1,
        .beta2 = adam->beta2,
        .step_size = adam->lr * r / (1 - power(adam->beta1, adam->step)),
        .eps = adam->eps * r,
    };
    struct step s = {
        .adam = &terms,
        .update = {.weights = weights,
                   .grads = grads,
                   .state = {mean, square},
                   .out = out,
                   .state_out = {mean_out, square_out}},
        .n = n,
        .number = adam->step,
    };
    run_step(ctx, &s);
}

void cylstm_sgd_step(const struct cylstm_context *ctx, const struct cylstm_sgd *sgd, size_t n,
                     const void *weights, const void *grads, const void *buffer, void *out,
                     void *buffer_out)
{
    const struct cylstm_sgd_terms terms = {
        .penalty = sgd->weight_decay,
        .momentum = sgd->momentum,
        .undampened = 1 - sgd->dampening,
        .lr = sgd->lr,
        .nesterov = sgd->nesterov,
        .first = sgd->step == 1,
    };
    struct step s = {
        .sgd = &terms,
        .update = {.weights = weights,
                   .grads = grads,
                   .state = {buffer},
                   .out = out,
                   .state_out = {buffer_out}},
        .n = n,
        .number = sgd->step,
    };
    run_step(ctx, &s);
}
