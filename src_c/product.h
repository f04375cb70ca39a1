/* product.h -- every product of the library: by a packed kernel or by BLAS, with weights that are
 * packed or raw.
 *
 * In a call of one step each weight is used once. A pack made for it alone would be written
 * to memory and read again. So panels are packed when their turn comes, and do not leave the
 * cache; those that stand in the raw matrix as they are, are read there, and one row of a forward
 * pass meets rows of the raw matrix as they are transposed. The bits are the same.
 */
#ifndef CYLSTM_PRODUCT_H
#define CYLSTM_PRODUCT_H

#include "call.h"
#include "split.h"

/* Zero sums for a product that starts from nothing. */
extern const double cylstm_zeros[PANEL_VECTORS * MAX_VL];

/* Run a product by whichever route the context says. `caller` is true on the thread
 * that entered the library, which is the one that polls. */
void cylstm_multiply(struct cylstm_call *call, int caller, const struct cylstm_product *product);

struct cylstm_weights {
    const void *packed; /* NULL: from `raw` */
    const void *raw;
};

/* Bytes for the rows that one thread quantises at once; 0 where nothing is. */
size_t cylstm_quantized_size(const struct cylstm_kernels *kernels, const struct cylstm_dims *dims);

/* Bytes for the panel that a thread packs at a time: of the forward pack or of the backward's. */
struct cylstm_panel_sizes {
    size_t forward, backward;
};
struct cylstm_panel_sizes cylstm_panels_size(const struct cylstm_kernels *kernels,
                                             const struct cylstm_dims *dims);

/* An array that is met unit by unit, in the forward pack or the backward's, or raw. */
const void *cylstm_find_vector(const struct cylstm_call *call, const struct cylstm_weights *weights,
                               const struct cylstm_layer *l, int backward,
                               enum cylstm_array_type type);

/* Let a normalised cell see the arrays that are its own. */
void cylstm_find_norm(const struct cylstm_call *call, const struct cylstm_weights *weights,
                      const struct cylstm_layer *l, int backward, struct cylstm_cell *cell);

/* A product with the weights of one matrix. Term t of `product` meets the matrix's rows from k[t] on.
 * Where they lie, and in which format, is found when it runs: w of the terms, w_panel, w_k and narrow
 * are not the caller's to fill in. Where `init` is NULL it starts from the matrix's biases, or from
 * zeros. */
struct cylstm_job {
    const struct cylstm_layer *layer;
    const struct cylstm_matrix *matrix;
    size_t k[2];
    struct cylstm_product product;
};

/* In place: a small step would feel a copy. */
static inline void cylstm_start_job(struct cylstm_job *job, const struct cylstm_layer *layer,
                                    const struct cylstm_matrix *matrix, size_t rows,
                                    struct cylstm_range panels)
{
    *job = (struct cylstm_job){.layer = layer,
                               .matrix = matrix,
                               .product = {.rows = rows,
                                           .panel_begin = panels.begin,
                                           .panel_end = panels.end,
                                           .columns = matrix->columns}};
}

/* Run it. `own` is memory of the calling thread's: of cylstm_panels_size where weights are raw, of
 * cylstm_quantized_size where their format has it. */
void cylstm_multiply_weights(struct cylstm_call *call, int caller,
                             const struct cylstm_weights *weights, struct cylstm_job *job,
                             void *own);

#endif
