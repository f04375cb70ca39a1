/* product.c -- where a product goes: to a packed kernel or to BLAS, with packed or with raw weights. */
#include "product.h"

#include "blas.h"
#include "pack.h"

const _Alignas(CYLSTM_ALIGN) double cylstm_zeros[PANEL_VECTORS * MAX_VL];

/* A product longer than this is polled within: 14 ms or so, or 50 on the scalar set. */
static const double PART_FLOPS_PER_LANE = 1e8;

static void multiply(struct cylstm_call *call, const struct cylstm_product *product)
{
    if (cylstm_uses_blas(call->ctx))
        cylstm_multiply_by_blas(call, product);
    else
        call->kernels->product(product);
}

void cylstm_multiply(struct cylstm_call *call, int caller, const struct cylstm_product *product)
{
    if (!product->rows || product->panel_begin == product->panel_end) return;
    if (!call->ctx->poll) {
        multiply(call, product);
        return;
    }
    const double panel_flops = 2.0 * (double)product->rows *
                               (double)(product->term[0].K + product->term[1].K) *
                               (double)cylstm_panel_width(call->kernels);
    const double part_flops = PART_FLOPS_PER_LANE * (double)call->kernels->lanes;
    struct cylstm_product part = *product;
    do { /* helpers too must stop */
        const size_t left = product->panel_end - part.panel_begin;
        size_t panels = left;
        if (panel_flops * (double)left > part_flops) {
            panels = (size_t)(part_flops / panel_flops);
            panels = panels ? panels : 1;
        }
        part.panel_end = part.panel_begin + panels;
        multiply(call, &part);
        if (caller) cylstm_poll_caller(call, panel_flops * (double)panels);
        part.panel_begin = part.panel_end;
    } while (part.panel_begin < product->panel_end && !cylstm_stopped(call));
}

enum { RAW_ROWS = 8 }; /* more of them hide what packing takes, and threads would all do it */

size_t cylstm_panels_size(const struct cylstm_kernels *kernels, const struct cylstm_dims *dims,
                          int backward)
{
    size_t K = 0;
    for (size_t layer = 0; layer < 2 && layer < dims->layers; layer++) { /* the others are alike */
        const struct cylstm_layer l = cylstm_find_layer(kernels, dims, layer, 0);
        K = cylstm_larger(K, backward ? cylstm_larger(l.hh_t.K, l.hr_t.K)
                                      : cylstm_larger(l.gates.K, l.hr.K));
    }
    return PANELS_AT_ONCE * K * cylstm_panel_width(kernels) * cylstm_real_size(kernels);
}

int cylstm_reads_raw(const struct cylstm_context *ctx, const struct cylstm_dims *dims, size_t T,
                     size_t B)
{
    const double threads = ctx->threads > 1 ? ctx->threads : 1;
    const struct cylstm_kernels *k = ctx->kernels;
    return T == 1 && B <= RAW_ROWS &&
           threads * (double)cylstm_panels_size(k, dims, 0) <=
               (double)cylstm_packed_size(ctx, dims) &&
           threads * (double)cylstm_panels_size(k, dims, 1) <=
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
                             const struct cylstm_matrix *matrix, void *panels)
{
    if (weights->packed || product->term[0].K + product->term[1].K == 0) {
        cylstm_multiply(call, caller, product);
        return;
    }
    if (!product->rows) return;
    const size_t panel = matrix->K * cylstm_panel_width(call->kernels),
                 at_once = product->rows == 1 ? PANELS_AT_ONCE : 1;
    size_t first = multiply_in_place(call, caller, product, weights->raw, matrix);
    while (first < product->panel_end && !cylstm_stopped(call)) {
        struct cylstm_product part = *product;
        part.panel_begin = first;
        if (product->panel_end - first > at_once) part.panel_end = first + at_once;
        for (size_t i = first; i < part.panel_end; i++)
            cylstm_pack_panel(call->kernels, l, matrix, weights->raw, i,
                              cylstm_at(panels, call->real_size, (ptrdiff_t)((i - first) * panel)));
        const void *packed =
            cylstm_at(weights->packed, call->real_size, (ptrdiff_t)(matrix->at + first * panel));
        const uintptr_t by = (uintptr_t)panels - (uintptr_t)packed;
        for (int t = 0; t < 2; t++) part.term[t].w = moved(product->term[t].w, by);
        if (matrix->kind == CYLSTM_GATES) part.init = moved(product->init, by);
        cylstm_multiply(call, caller, &part);
        first = part.panel_end;
    }
}
