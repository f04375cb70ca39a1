/* gemm.h -- the one seam between the packed kernels and BLAS. */
#ifndef CYLSTM_GEMM_H
#define CYLSTM_GEMM_H

#include "layout.h"

#include <stdatomic.h>
#include <time.h>

/* One call of the library: its context, and whether the caller asked it to stop. */
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

/* Run a product by whichever route the context says. `caller` is true on the thread
 * that entered the library, which is the one that polls. */
void cylstm_multiply(struct cylstm_call *call, int caller, const struct cylstm_product *product);

#endif
