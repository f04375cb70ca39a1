/* weights.c -- products with weights that may not have been packed. */
#include "weights.h"

enum { RAW_ROWS = 8 }; /* more of them hide what packing takes, and threads would all do it */

size_t cylstm_panel_room(const struct cylstm_kernels *kernels, const struct cylstm_dims *dims,
                         int backward)
{
    size_t K = 0;
    for (size_t layer = 0; layer < 2 && layer < dims->layers; layer++) { /* the others are alike */
        const struct cylstm_layer l = cylstm_find_layer(kernels, dims, layer, 0);
        K = cylstm_larger(K, backward ? cylstm_larger(l.hh_t.K, l.hr_t.K)
                                      : cylstm_larger(l.gates.K, l.hr.K));
    }
    return PANELS_IN_HAND * K * cylstm_panel_width(kernels) * cylstm_real_size(kernels);
}

int cylstm_reads_raw(const struct cylstm_context *ctx, const struct cylstm_dims *dims, size_t T,
                     size_t B)
{
    const double threads = ctx->threads > 1 ? ctx->threads : 1;
    const struct cylstm_kernels *k = ctx->kernels;
    return T == 1 && B <= RAW_ROWS &&
           threads * (double)cylstm_panel_room(k, dims, 0) <=
               (double)cylstm_packed_size(ctx, dims) &&
           threads * (double)cylstm_panel_room(k, dims, 1) <=
               (double)cylstm_packed_backward_size(ctx, dims);
}

static const void *moved(const void *pointer, uintptr_t by)
{
    return (const void *)((uintptr_t)pointer + by);
}

/* Panels of columns stand in the raw matrix as they are, but for a last one that is not whole, of
 * which kernels read more. Returns the first panel that is still to do. */
static size_t multiply_in_place(struct cylstm_call *call, int caller,
                                const struct cylstm_product *product, const void *raw,
                                const struct cylstm_matrix *matrix)
{
    const size_t width = cylstm_panel_width(call->kernels), whole = matrix->columns / width;
    if (matrix->kind != CYLSTM_COLUMNS || product->panel_begin >= whole)
        return product->panel_begin;
    struct cylstm_product part = *product;
    part.panel_end = product->panel_end < whole ? product->panel_end : whole;
    part.term[0].w = cylstm_at(raw, call->real_size, (ptrdiff_t)matrix->raw);
    part.w_panel = (ptrdiff_t)width;
    part.w_k = (ptrdiff_t)matrix->columns;
    cylstm_multiply(call, caller, &part);
    return part.panel_end;
}

void cylstm_multiply_weights(struct cylstm_call *call, int caller,
                             const struct cylstm_product *product,
                             const struct cylstm_weights *weights, const struct cylstm_layer *l,
                             const struct cylstm_matrix *matrix, void *room)
{
    if (weights->packed || product->term[0].K + product->term[1].K == 0) {
        cylstm_multiply(call, caller, product);
        return;
    }
    if (!product->rows) return;
    const size_t panel = matrix->K * cylstm_panel_width(call->kernels),
                 in_hand = product->rows == 1 ? PANELS_IN_HAND : 1;
    size_t first = multiply_in_place(call, caller, product, weights->raw, matrix);
    while (first < product->panel_end && !cylstm_stopped(call)) {
        struct cylstm_product part = *product;
        part.panel_begin = first;
        if (product->panel_end - first > in_hand) part.panel_end = first + in_hand;
        for (size_t i = first; i < part.panel_end; i++)
            cylstm_pack_panel(call->kernels, l, matrix, weights->raw, i,
                              cylstm_at(room, call->real_size, (ptrdiff_t)((i - first) * panel)));
        const void *packed =
            cylstm_at(weights->packed, call->real_size, (ptrdiff_t)(matrix->at + first * panel));
        const uintptr_t by = (uintptr_t)room - (uintptr_t)packed;
        for (int t = 0; t < 2; t++) part.term[t].w = moved(product->term[t].w, by);
        if (matrix->kind == CYLSTM_GATES) part.init = moved(product->init, by);
        cylstm_multiply(call, caller, &part);
        first = part.panel_end;
    }
}
