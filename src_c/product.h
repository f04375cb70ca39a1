/* product.h -- every product of the library: by a packed kernel or by BLAS, with weights that are
 * packed or raw.
 *
 * In a call of one step each weight is used once. A pack made for it alone would be written
 * to memory and read again. So panels are packed when their turn comes, and do not leave the
 * cache; those that stand in the raw matrix as they are, are read there. The bits are the same.
 */
#ifndef CYLSTM_PRODUCT_H
#define CYLSTM_PRODUCT_H

#include "call.h"

/* Zero sums for a product that starts from nothing. */
extern const double cylstm_zeros[PANEL_VECTORS * MAX_VL];

/* Run a product by whichever route the context says. `caller` is true on the thread
 * that entered the library, which is the one that polls. */
void cylstm_multiply(struct cylstm_call *call, int caller, const struct cylstm_product *product);

enum { PANELS_AT_ONCE = 2 }; /* a product of one row takes two together */

struct cylstm_weights {
    const void *packed; /* NULL: from `raw` */
    const void *raw;
};

/* Bytes for the panels that one thread packs at once: of the forward pack or of the backward's. */
size_t cylstm_panels_size(const struct cylstm_kernels *kernels, const struct cylstm_dims *dims,
                          int backward);

/* Run a product with the weights of `matrix`. Its `w`, and with raw gates its `init`, point into
 * `packed` (to where they would be, where it is NULL); `panels` is the calling thread's own. */
void cylstm_multiply_weights(struct cylstm_call *call, int caller,
                             const struct cylstm_product *product,
                             const struct cylstm_weights *weights, const struct cylstm_layer *l,
                             const struct cylstm_matrix *matrix, void *panels);

#endif
