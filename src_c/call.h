/* call.h -- one call of the library: its context, its floating-point mode, and whether the caller
 * has asked it to stop. */
#ifndef CYLSTM_CALL_H
#define CYLSTM_CALL_H

#include "layout.h"

#include <stdatomic.h>
#include <time.h>

struct cylstm_call {
    const struct cylstm_context *ctx;
    const struct cylstm_kernels *kernels;
    size_t real_size;
    atomic_int stopped;
    uint32_t mode; /* the caller's floating-point mode, in which it is polled */
    double flops;  /* since the clock was last read; the calling thread's own */
    struct timespec polled;
};

/* Begin a call, which computes in a mode of its own, and end it in the caller's. */
void cylstm_begin_call(struct cylstm_call *call, const struct cylstm_context *ctx);
void cylstm_end_call(struct cylstm_call *call);

static inline int cylstm_stopped(struct cylstm_call *call)
{
    return atomic_load_explicit(&call->stopped, memory_order_relaxed);
}

/* Poll the caller if it is time. On the calling thread, after each `flops` of work. */
void cylstm_poll_caller(struct cylstm_call *call, double flops);

#endif
