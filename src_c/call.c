/* call.c -- the beginning and the end of a call, and Ctrl-C in between. */
#include "call.h"

#include "cpu.h"

enum { POLL_MILLISECONDS = 12 };
/* Between looks at the clock: 0.2 ms, or 2 ms on the scalar set. */
static const double CLOCK_FLOPS = 2e7;

void cylstm_begin_call(struct cylstm_call *call, const struct cylstm_context *ctx)
{
    call->ctx = ctx;
    call->kernels = ctx->kernels;
    call->real_size = cylstm_real_size(ctx->kernels);
    atomic_init(&call->stopped, 0);
    call->flops = 0;
    call->mode = cylstm_enter_float_mode();
    if (ctx->poll) timespec_get(&call->polled, TIME_UTC);
}

void cylstm_end_call(struct cylstm_call *call) { cylstm_leave_float_mode(call->mode); }

void cylstm_poll_caller(struct cylstm_call *call, double flops)
{
    call->flops += flops;
    if (call->flops < CLOCK_FLOPS) return;
    call->flops = 0;
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    const double ms = 1e3 * (double)(now.tv_sec - call->polled.tv_sec) +
                      1e-6 * (double)(now.tv_nsec - call->polled.tv_nsec);
    if (ms >= 0 && ms < POLL_MILLISECONDS) return;
    call->polled = now;
    cylstm_leave_float_mode(call->mode);
    const int stop = call->ctx->poll(call->ctx->poll_arg);
    (void)cylstm_enter_float_mode();
    if (stop) atomic_store_explicit(&call->stopped, 1, memory_order_relaxed);
}
