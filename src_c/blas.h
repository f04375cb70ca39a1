/* blas.h -- a product by a BLAS that the context holds. */
#ifndef CYLSTM_BLAS_H
#define CYLSTM_BLAS_H

#include "call.h"

/* Whether products of this context go to a BLAS, which has threads of its own. */
int cylstm_uses_blas(const struct cylstm_context *ctx);

void cylstm_multiply_by_blas(const struct cylstm_call *call, const struct cylstm_product *product);

#endif
