/* pack.h -- one panel of a matrix, from the raw weights. */
#ifndef CYLSTM_PACK_H
#define CYLSTM_PACK_H

#include "layout.h"

void cylstm_pack_panel(const struct cylstm_kernels *kernels, const struct cylstm_layer *l,
                       const struct cylstm_matrix *matrix, const void *raw, size_t panel,
                       void *out);

#endif
