/* pack.c -- weights into panel order, once. */
#include "cpu.h"
#include "layout.h"
#include "threads.h"

#include <string.h>

/* Values of k that are transposed together, while their lines are in L1. */
enum { BLOCK = 8 };

struct counts {
    size_t raw, forward, backward;
};

static struct counts count_layer(const struct cylstm_dims *dims, const struct cylstm_layer *l,
                                 size_t VL)
{
    const size_t panel = PANEL_VECTORS * VL, gates = 4 * l->H;
    return (struct counts){
        .raw = gates * (l->I + l->R) + (dims->bias ? 2 * gates : 0) + l->P * l->H,
        .forward = cylstm_round_up(l->columns, panel) * l->K + cylstm_round_up(l->P, panel) * l->H,
        .backward = 4 * l->H * (cylstm_round_up(l->R, panel) + cylstm_round_up(l->I, panel)) +
                    (l->P ? cylstm_round_up(l->H, panel) * l->P : 0),
    };
}

static struct cylstm_layer shape_layer(const struct cylstm_dims *dims, size_t layer, size_t VL)
{
    const size_t R = cylstm_hidden_width(dims);
    struct cylstm_layer l = {.I = layer ? dims->directions * R : dims->input,
                             .H = dims->hidden,
                             .R = R,
                             .P = dims->proj};
    l.columns = cylstm_round_up(4 * l.H, VL);
    l.K = 1 + l.I + l.R;
    return l;
}

/* The first layer has a size of its own; all above it are alike. */
static struct counts count_before(const struct cylstm_dims *dims, size_t layer, size_t direction,
                                  size_t VL)
{
    const struct cylstm_layer first = shape_layer(dims, 0, VL), other = shape_layer(dims, 1, VL);
    const struct counts a = count_layer(dims, &first, VL), b = count_layer(dims, &other, VL);
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
    const size_t VL = kernels->lanes, panel = PANEL_VECTORS * VL;
    const struct counts before = count_before(dims, layer, direction, VL);
    struct cylstm_layer l = shape_layer(dims, layer, VL);
    l.raw_ih = before.raw;
    l.raw_hh = l.raw_ih + 4 * l.H * l.I;
    l.raw_b_ih = l.raw_hh + 4 * l.H * l.R;
    l.raw_b_hh = l.raw_b_ih + (dims->bias ? 4 * l.H : 0);
    l.raw_hr = l.raw_b_hh + (dims->bias ? 4 * l.H : 0);
    l.gates = before.forward;
    l.hr = l.gates + cylstm_round_up(l.columns, panel) * l.K;
    l.hh_t = before.backward;
    l.ih_t = l.hh_t + 4 * l.H * cylstm_round_up(l.R, panel);
    l.hr_t = l.ih_t + 4 * l.H * cylstm_round_up(l.I, panel);
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

#define real float
#define NAME(name) name##_f32
#include "pack_tmpl.h"
#undef real
#undef NAME
#define real double
#define NAME(name) name##_f64
#include "pack_tmpl.h"

struct packing {
    const struct cylstm_kernels *kernels;
    const struct cylstm_dims *dims;
    const void *raw;
    void *packed;
    int backward;
    size_t shares;
};

static void pack_share(void *arg, size_t share, int caller)
{
    (void)caller;
    const struct packing *p = arg;
    const size_t VL = p->kernels->lanes;
    for (size_t layer = 0; layer < p->dims->layers; layer++)
        for (size_t d = 0; d < p->dims->directions; d++) {
            const struct cylstm_layer l = cylstm_find_layer(p->kernels, p->dims, layer, d);
            if (p->backward)
                (p->dims->bits == 32 ? pack_backward_f32 : pack_backward_f64)(
                    &l, VL, p->raw, p->packed, p->shares, share);
            else
                (p->dims->bits == 32 ? pack_forward_f32 : pack_forward_f64)(
                    &l, VL, p->dims->bias, p->raw, p->packed, p->shares, share);
        }
}

static void pack(const struct cylstm_context *ctx, const struct cylstm_dims *dims, const void *raw,
                 void *packed, int backward)
{
    const uint32_t mode = cylstm_enter_float_mode(); /* the biases are summed */
    struct packing p = {ctx->kernels, dims, raw, packed, backward, 1};
    cylstm_run_over_weights(ctx->threads, cylstm_raw_count(dims), pack_share, &p, &p.shares);
    cylstm_leave_float_mode(mode);
}

void cylstm_pack_weights(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                         const void *raw, void *packed)
{
    pack(ctx, dims, raw, packed, 0);
}

void cylstm_pack_backward(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                          const void *raw, void *packed_backward)
{
    pack(ctx, dims, raw, packed_backward, 1);
}
