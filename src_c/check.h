/* check.h -- what cylstm.h asks of its callers, asserted where CYLSTM_DEBUG is defined: a breach is
 * printed and ends the process before any memory is touched. Elsewhere nothing is checked.
 *
 * How large an array is, nobody can see; all else that the header states is here.
 */
#ifndef CYLSTM_CHECK_H
#define CYLSTM_CHECK_H

#include "cylstm.h"
#include "kernels/kernels.h"

#ifdef CYLSTM_DEBUG

#define CYLSTM_CHECK(call) (call)

void cylstm_check_dims(const struct cylstm_context *ctx, const struct cylstm_dims *dims);
void cylstm_check_pack(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                       const void *raw, const void *packed);
void cylstm_check_forward(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                          const void *packed, const struct cylstm_sequence *seq,
                          const void *scratch);
void cylstm_check_backward(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                           const void *packed_backward, const struct cylstm_sequence *seq,
                           const struct cylstm_gradients *grads, const void *scratch);
void cylstm_check_jvp(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                      const void *packed, const struct cylstm_sequence *seq,
                      const struct cylstm_tangents *tangents, const void *scratch);
/* `made` is the context that the plan was made with, or `ctx` itself as it is made. */
void cylstm_check_plan(const struct cylstm_context *ctx, const struct cylstm_context *made,
                       const struct cylstm_dims *dims, size_t B, const void *plan);
void cylstm_check_run(const struct cylstm_context *ctx, const struct cylstm_dims *dims, size_t B,
                      const void *packed, size_t T, const size_t *active, size_t rows,
                      const void *x, const void *y);
/* `out`, of n reals, is what is written. */
void cylstm_check_pack_linear(const struct cylstm_context *ctx, const struct cylstm_linear *linear,
                              const void *raw, const void *packed);
void cylstm_check_linear(const struct cylstm_context *ctx, const struct cylstm_linear *linear,
                         const void *x, const void *out, size_t n, const void *scratch);
void cylstm_check_step(const struct cylstm_context *ctx, uint64_t step, size_t n,
                       const struct cylstm_update *update);

#else
#define CYLSTM_CHECK(call) ((void)0)
#endif
#endif
