/* pack.h -- one panel of a matrix, from the raw weights. */
#ifndef CYLSTM_PACK_H
#define CYLSTM_PACK_H

#include "layout.h"

void cylstm_pack_panel(const struct cylstm_kernels *kernels, const struct cylstm_layer *l,
                       const struct cylstm_matrix *matrix, const void *raw, size_t panel,
                       void *out);

/* The panel's sums with one row of each term, as a product has them, where no pack is worth while: of
 * CYLSTM_GATES, from the biases on, or of CYLSTM_ROWS; (4 VL) reals. */
void cylstm_meet_panel(const struct cylstm_kernels *kernels, const struct cylstm_layer *l,
                       const struct cylstm_matrix *matrix, const void *raw, size_t panel,
                       const struct cylstm_term *terms, void *sums);

#endif
