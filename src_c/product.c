/* product.c -- where a product goes: to a packed kernel or to BLAS, with packed or with raw weights. */
#include "product.h"

#include "blas.h"
#include "compact.h"
#include "pack.h"

const _Alignas(CYLSTM_ALIGN) double cylstm_zeros[PANEL_VECTORS * MAX_VL];

/* A product longer than this is polled within: 6 ms or so, or 20 on the scalar set. */
static const double PART_FLOPS_PER_LANE = 4e7;

static void multiply(struct cylstm_call *call, const struct cylstm_product *product)
{
    if (product->compact)
        cylstm_multiply_compact(call, product);
    else if (cylstm_uses_blas(call->ctx))
        cylstm_multiply_by_blas(call, product);
    else
        call->kernels->product(product);
}

void cylstm_multiply(struct cylstm_call *call, int caller, const struct cylstm_product *product)
{
    if (!product->rows || product->panel_begin >= product->panel_end) return;
    if (!call->ctx->poll) {
        multiply(call, product);
        return;
    }
    const double panel_flops = 2.0 * (double)product->rows *
                               (double)(product->term[0].K + product->term[1].K) *
                               (double)cylstm_panel_width(call->kernels);
    const double part_flops = PART_FLOPS_PER_LANE * (double)call->kernels->lanes;
    const double flops = panel_flops * (double)(product->panel_end - product->panel_begin);
    if (flops <= part_flops) {
        if (cylstm_stopped(call)) return; /* helpers too */
        multiply(call, product);
        if (caller) cylstm_poll_caller(call, flops);
        return;
    }
    struct cylstm_product part = *product;
    while (part.panel_begin < product->panel_end && !cylstm_stopped(call)) {
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
    }
}

/* --------------------------------------------------------------------- weights */

enum {
    RAW_ROWS = 8,  /* more of them hide what packing takes, and threads would all do it */
    RAW_PANELS = 2 /* fewer for each thread are packed: it takes no longer, or as much memory */
};

struct cylstm_panel_sizes cylstm_panels_size(const struct cylstm_kernels *kernels,
                                             const struct cylstm_dims *dims)
{
    struct cylstm_panel_sizes size = {0, 0};
    for (size_t layer = 0; layer < 2 && layer < dims->layers; layer++) { /* the others are alike */
        const struct cylstm_layer l = cylstm_find_layer(kernels, dims, layer, 0);
        const struct cylstm_matrix *const forward[] = {&l.w, &l.second, &l.hr};
        for (int n = 0; n < 3; n++) size.forward = cylstm_larger(size.forward, forward[n]->panel);
        size.backward = cylstm_larger(size.backward, cylstm_larger(l.hh_t.panel, l.hr_t.panel));
    }
    return size;
}

size_t cylstm_quantized_size(const struct cylstm_kernels *kernels, const struct cylstm_dims *dims)
{
    const enum cylstm_format_type format = (enum cylstm_format_type)dims->format;
    size_t K = 0;
    if (!cylstm_codes_size(format, 0)) return 0;
    for (size_t layer = 0; layer < 2 && layer < dims->layers; layer++) {
        const struct cylstm_layer l = cylstm_find_layer(kernels, dims, layer, 0);
        K = cylstm_larger(K, cylstm_larger(l.w.K, cylstm_larger(l.second.K, l.hr.K)));
        if (l.wide_inputs) K = cylstm_larger(K, 2 * l.I + cylstm_larger(l.R, l.H));
    }
    return cylstm_codes_size(format, K);
}

int cylstm_reads_raw(const struct cylstm_context *ctx, const struct cylstm_dims *dims, size_t T,
                     size_t B)
{
    if (T != 1 || B > RAW_ROWS || dims->format != CYLSTM_AS_COMPUTED) return 0;
    const double panels_at_least = RAW_PANELS * (ctx->threads > 1 ? ctx->threads : 1);
    const struct cylstm_panel_sizes panels = cylstm_panels_size(ctx->kernels, dims);
    return panels_at_least * (double)panels.forward <= (double)cylstm_packed_size(ctx, dims) &&
           panels_at_least * (double)panels.backward <=
               (double)cylstm_packed_backward_size(ctx, dims);
}

/* The addresses of a job's weights, whose panel 0 is or would be at `panels`. */
static void place_weights(const struct cylstm_kernels *k, struct cylstm_job *job,
                          const char *panels)
{
    struct cylstm_product *g = &job->product;
    const struct cylstm_matrix *m = job->matrix;
    g->narrow = m->type == CYLSTM_GATES && m->gates->narrow;
    g->w_k = (ptrdiff_t)(cylstm_row_vectors(m) * k->lanes);
    g->w_panel = (ptrdiff_t)(m->format == CYLSTM_AS_COMPUTED ? m->panel_weights : m->panel);
    for (int t = 0; t < 2; t++)
        g->term[t].w = cylstm_at(panels, 1, (ptrdiff_t)cylstm_panel_row(k, m, job->k[t]));
    if (g->init) return;
    g->init = cylstm_zeros;
    if (m->type != CYLSTM_GATES) return;
    g->init = panels; /* its row of biases */
    g->init_panel = (ptrdiff_t)m->panel_reals;
}

/* Packed panels, of which panel 0 is or would be at `panels`. */
static void multiply_panels(struct cylstm_call *call, int caller, struct cylstm_job *job,
                            const char *panels)
{
    place_weights(call->kernels, job, panels);
    cylstm_multiply(call, caller, &job->product);
}

/* Panels of columns stand in the raw matrix as they are, but for a last one that is not whole, of
 * which kernels read more. Returns the first panel that is still to do. */
static size_t multiply_in_place(struct cylstm_call *call, int caller, const struct cylstm_job *job,
                                const void *raw)
{
    const struct cylstm_matrix *m = job->matrix;
    const size_t width = cylstm_panel_width(call->kernels), whole = m->columns / width;
    if (m->type != CYLSTM_COLUMNS || job->product.panel_begin >= whole)
        return job->product.panel_begin;
    struct cylstm_product part = job->product;
    const char *first = cylstm_at(raw, call->real_size, (ptrdiff_t)job->layer->raw[m->raw]);
    if (part.panel_end > whole) part.panel_end = whole;
    part.w_panel = (ptrdiff_t)width;
    part.w_k = (ptrdiff_t)m->columns;
    for (int t = 0; t < 2; t++) part.term[t].w = first + job->k[t] * m->columns * call->real_size;
    if (!part.init) part.init = cylstm_zeros;
    cylstm_multiply(call, caller, &part);
    return part.panel_end;
}

/* One row meets each weight once: the panels are not even packed. */
static void multiply_row(struct cylstm_call *call, int caller, const void *raw,
                         const struct cylstm_job *job)
{
    _Alignas(CYLSTM_ALIGN) char sums[PANEL_VECTORS * MAX_VL * sizeof(float)];
    const struct cylstm_product *g = &job->product;
    const double flops =
        2.0 * (double)(g->term[0].K + g->term[1].K) * (double)cylstm_panel_width(call->kernels);
    for (size_t panel = g->panel_begin; panel < g->panel_end && !cylstm_stopped(call); panel++) {
        cylstm_meet_panel(call->kernels, job->layer, job->matrix, raw, panel, g->term, sums);
        call->kernels->finish(g, panel, 0, 1, sums);
        if (caller && call->ctx->poll) cylstm_poll_caller(call, flops);
    }
}

/* The panels are packed when their turn comes. */
static void multiply_raw(struct cylstm_call *call, int caller, const void *raw,
                         const struct cylstm_job *job, char *panels)
{
    const struct cylstm_matrix *m = job->matrix;
    if (job->product.rows == 1 && m->type != CYLSTM_COLUMNS && !job->product.init &&
        !cylstm_uses_blas(call->ctx)) {
        multiply_row(call, caller, raw, job);
        return;
    }
    const size_t end = job->product.panel_end;
    for (size_t i = multiply_in_place(call, caller, job, raw); i < end && !cylstm_stopped(call);
         i++) {
        struct cylstm_job part = *job;
        part.product.panel_begin = i;
        part.product.panel_end = i + 1;
        cylstm_pack_panel(call->kernels, job->layer, m, raw, i, panels);
        multiply_panels(call, caller, &part, cylstm_at(panels, m->panel, -(ptrdiff_t)i));
    }
}

void cylstm_multiply_weights(struct cylstm_call *call, int caller,
                             const struct cylstm_weights *weights, struct cylstm_job *job,
                             void *own)
{
    struct cylstm_product *g = &job->product;
    if (!g->rows || g->panel_begin >= g->panel_end) return;
    g->compact = cylstm_compact_kernels(call->ctx, job->matrix->format);
    g->codes = own;
    for (int t = 0; t < 2; t++)
        g->term[t].wide = job->layer->wide_inputs && job->k[t] < job->matrix->first;
    if (weights->packed || g->term[0].K + g->term[1].K == 0)
        multiply_panels(call, caller, job,
                        cylstm_at(weights->packed, 1, (ptrdiff_t)job->matrix->at));
    else
        multiply_raw(call, caller, weights->raw, job, own);
}

const void *cylstm_find_vector(const struct cylstm_call *call, const struct cylstm_weights *weights,
                               const struct cylstm_layer *l, int backward,
                               enum cylstm_array_type type)
{
    if (weights->packed) return (const char *)weights->packed + l->vector[backward][type];
    return cylstm_at(weights->raw, call->real_size, (ptrdiff_t)l->raw[type]);
}

void cylstm_find_norm(const struct cylstm_call *call, const struct cylstm_weights *weights,
                      const struct cylstm_layer *l, int backward, struct cylstm_cell *cell)
{
    if (l->kind->apart) {
        cell->norm = cylstm_find_vector(call, weights, l, backward, CYLSTM_WEIGHT_LN_IH);
        cell->norm_h = cylstm_find_vector(call, weights, l, backward, CYLSTM_WEIGHT_LN_HH);
        cell->norm_c = cylstm_find_vector(call, weights, l, backward, CYLSTM_WEIGHT_LN_CELL);
        cell->bias_c = cylstm_find_vector(call, weights, l, backward, CYLSTM_BIAS_LN_CELL);
    } else {
        cell->norm = cylstm_find_vector(call, weights, l, backward, CYLSTM_WEIGHT_LN);
    }
    if (!l->bias) return;
    cell->b_ih = cylstm_find_vector(call, weights, l, backward, CYLSTM_BIAS_IH);
    cell->b_hh = cylstm_find_vector(call, weights, l, backward, CYLSTM_BIAS_HH);
}
