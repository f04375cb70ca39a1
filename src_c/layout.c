/* layout.c -- the sizes and places of a layer's weights, raw and packed. */
#include "layout.h"

struct counts {
    size_t raw, forward, backward;
};

/* A layer without its place among the others. */
static struct cylstm_layer shape_layer(const struct cylstm_dims *dims, size_t layer, size_t VL)
{
    const size_t R = cylstm_hidden_width(dims), H = dims->hidden, P = dims->proj,
                 I = layer ? dims->directions * R : dims->input;
    return (struct cylstm_layer){
        .I = I,
        .H = H,
        .R = R,
        .P = P,
        .bias = dims->bias,
        .gates = {.kind = CYLSTM_GATES, .K = 1 + I + R, .columns = cylstm_round_up(4 * H, VL)},
        .hr = {.kind = CYLSTM_ROWS, .K = H, .columns = P},
        .hh_t = {.kind = CYLSTM_COLUMNS, .K = 4 * H, .columns = R},
        .ih_t = {.kind = CYLSTM_COLUMNS, .K = 4 * H, .columns = I},
        .hr_t = {.kind = CYLSTM_COLUMNS, .K = P, .columns = H},
    };
}

static size_t size_of(const struct cylstm_matrix *m, size_t VL)
{
    return m->K * cylstm_round_up(m->columns, PANEL_VECTORS * VL);
}

static struct counts count_layer(const struct cylstm_layer *l, size_t VL)
{
    return (struct counts){
        .raw = 4 * l->H * (l->I + l->R + (l->bias ? 2 : 0)) + l->P * l->H,
        .forward = size_of(&l->gates, VL) + size_of(&l->hr, VL),
        .backward = size_of(&l->hh_t, VL) + size_of(&l->ih_t, VL) + size_of(&l->hr_t, VL),
    };
}

/* The first layer has a size of its own; all above it are alike. */
static struct counts count_before(const struct cylstm_dims *dims, size_t layer, size_t direction,
                                  size_t VL)
{
    const struct cylstm_layer first = shape_layer(dims, 0, VL), other = shape_layer(dims, 1, VL);
    const struct counts a = count_layer(&first, VL), b = count_layer(&other, VL);
    const size_t n_first = layer ? dims->directions : direction;
    const size_t n_other = layer ? (layer - 1) * dims->directions + direction : 0;
    return (struct counts){
        .raw = n_first * a.raw + n_other * b.raw,
        .forward = n_first * a.forward + n_other * b.forward,
        .backward = n_first * a.backward + n_other * b.backward,
    };
}

struct cylstm_layer cylstm_find_layer(const struct cylstm_kernels *kernels,
                                      const struct cylstm_dims *dims, size_t layer,
                                      size_t direction)
{
    const size_t VL = kernels->lanes;
    const struct counts before = count_before(dims, layer, direction, VL);
    struct cylstm_layer l = shape_layer(dims, layer, VL);
    l.raw_ih = before.raw;
    l.raw_hh = l.raw_ih + 4 * l.H * l.I;
    l.raw_b_ih = l.raw_hh + 4 * l.H * l.R;
    l.raw_b_hh = l.raw_b_ih + (l.bias ? 4 * l.H : 0);
    l.raw_hr = l.raw_b_hh + (l.bias ? 4 * l.H : 0);
    l.hh_t.raw = l.raw_hh;
    l.ih_t.raw = l.raw_ih;
    l.hr.raw = l.hr_t.raw = l.raw_hr;
    l.gates.at = before.forward;
    l.hr.at = l.gates.at + size_of(&l.gates, VL);
    l.hh_t.at = before.backward;
    l.ih_t.at = l.hh_t.at + size_of(&l.hh_t, VL);
    l.hr_t.at = l.ih_t.at + size_of(&l.ih_t, VL);
    return l;
}

size_t cylstm_raw_count(const struct cylstm_dims *dims)
{
    return count_before(dims, dims->layers, 0, 1).raw;
}

size_t cylstm_packed_size(const struct cylstm_context *ctx, const struct cylstm_dims *dims)
{
    return count_before(dims, dims->layers, 0, ctx->kernels->lanes).forward *
           cylstm_real_size(ctx->kernels);
}

size_t cylstm_packed_backward_size(const struct cylstm_context *ctx, const struct cylstm_dims *dims)
{
    return count_before(dims, dims->layers, 0, ctx->kernels->lanes).backward *
           cylstm_real_size(ctx->kernels);
}
