/* weights.h -- the weights that a call reads: packed, or raw ones that are packed panel by
 * panel when their turn comes.
 *
 * In a call of one step each weight is used once. A pack made for it alone would be written
 * to memory and read again; a panel at a time never leaves the cache. The bits are the same.
 */
#ifndef CYLSTM_WEIGHTS_H
#define CYLSTM_WEIGHTS_H

#include "gemm.h"

enum { PANELS_IN_HAND = 2 }; /* a product of one row takes two together */

struct cylstm_weights {
    const void *packed; /* NULL: from `raw` */
    const void *raw;
};

/* Bytes for the panels that one thread has in hand: of the forward pack or of the backward's. */
size_t cylstm_panel_room(const struct cylstm_kernels *kernels, const struct cylstm_dims *dims,
                         int backward);

/* Run a product with the weights of `matrix`. Its `w`, and a gate's `init`, point into `packed`
 * (wherever that would lie, where it is NULL); `room` is the calling thread's own. */
void cylstm_multiply_weights(struct cylstm_call *call, int caller,
                             const struct cylstm_product *product,
                             const struct cylstm_weights *weights, const struct cylstm_layer *l,
                             const struct cylstm_matrix *matrix, void *room);

#endif
