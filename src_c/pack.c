/* pack.c -- weights into panel order, once. */
#include "cpu.h"
#include "layout.h"
#include "threads.h"

#include <string.h>

/* Values of k of a panel that are written together, in the order in which they lie. */
enum { BLOCK = 64 };

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

struct packing {
    const struct cylstm_kernels *kernels;
    const struct cylstm_dims *dims;
    const void *raw;
    void *packed;
    int backward;
    size_t shares, size, width; /* of a real, of a panel */
};

/* A panel whose vector v holds n[v] rows of `matrix` (., K) from row v * next on, one row per k. */
static void transpose_rows(const struct packing *p, const void *matrix, size_t K, size_t next,
                           const size_t n[PANEL_VECTORS], size_t lanes, void *panel)
{
    for (size_t k = 0; k < K; k += BLOCK)
        for (size_t v = 0; v < PANEL_VECTORS; v++)
            p->kernels->transpose(cylstm_at(matrix, p->size, (ptrdiff_t)(v * next * K + k)), K,
                                  n[v], K - k < BLOCK ? K - k : BLOCK, lanes,
                                  cylstm_at(panel, p->size, (ptrdiff_t)(k * p->width + v * lanes)));
}

static struct cylstm_range share_panels(const struct packing *p, size_t columns, size_t share)
{
    return cylstm_share((columns + p->width - 1) / p->width, p->shares, share);
}

static void pack_gates(const struct packing *p, const struct cylstm_layer *l, size_t share)
{
    const size_t VL = p->kernels->lanes;
    const struct cylstm_range panels = share_panels(p, l->columns, share);
    for (size_t i = panels.begin; i < panels.end; i++) {
        const size_t u = i * VL, n = l->H - u < VL ? l->H - u : VL,
                     left = l->columns - i * p->width,
                     lanes = left < p->width ? left / PANEL_VECTORS : VL;
        const size_t units[PANEL_VECTORS] = {n, n, n, n};
        const ptrdiff_t panel = (ptrdiff_t)(l->gates + i * l->K * p->width);
        void *biases = cylstm_at(p->packed, p->size, panel);
        memset(biases, 0, p->width * p->size);
        for (size_t gate = 0; p->dims->bias && gate < PANEL_VECTORS; gate++) {
            const ptrdiff_t row = (ptrdiff_t)(gate * l->H + u);
            p->kernels->sum_biases(cylstm_at(p->raw, p->size, (ptrdiff_t)l->raw_b_ih + row),
                                   cylstm_at(p->raw, p->size, (ptrdiff_t)l->raw_b_hh + row), n,
                                   cylstm_at(biases, p->size, (ptrdiff_t)(gate * lanes)));
        }
        transpose_rows(p, cylstm_at(p->raw, p->size, (ptrdiff_t)(l->raw_ih + u * l->I)), l->I, l->H,
                       units, lanes, cylstm_at(biases, p->size, (ptrdiff_t)p->width));
        transpose_rows(p, cylstm_at(p->raw, p->size, (ptrdiff_t)(l->raw_hh + u * l->R)), l->R, l->H,
                       units, lanes,
                       cylstm_at(biases, p->size, (ptrdiff_t)((1 + l->I) * p->width)));
    }
}

static void pack_projection(const struct packing *p, const struct cylstm_layer *l, size_t share)
{
    const size_t VL = p->kernels->lanes;
    const struct cylstm_range panels = share_panels(p, l->P, share);
    for (size_t i = panels.begin; i < panels.end; i++) {
        const size_t u = i * p->width, left = l->P - u;
        size_t units[PANEL_VECTORS];
        for (size_t v = 0; v < PANEL_VECTORS; v++)
            units[v] = left <= v * VL ? 0 : left - v * VL < VL ? left - v * VL : VL;
        transpose_rows(p, cylstm_at(p->raw, p->size, (ptrdiff_t)(l->raw_hr + u * l->H)), l->H, VL,
                       units, VL, cylstm_at(p->packed, p->size, (ptrdiff_t)(l->hr + u * l->H)));
    }
}

/* Panels of 4 VL columns of the raw matrix (rows, columns), one row per k. */
static void pack_columns(const struct packing *p, size_t raw, size_t rows, size_t columns,
                         size_t packed, size_t share)
{
    const struct cylstm_range panels = share_panels(p, columns, share);
    for (size_t i = panels.begin; i < panels.end; i++) {
        const size_t c = i * p->width, left = columns - c,
                     bytes = (left < p->width ? left : p->width) * p->size;
        const char *from = cylstm_at(p->raw, p->size, (ptrdiff_t)(raw + c));
        char *to = cylstm_at(p->packed, p->size, (ptrdiff_t)(packed + c * rows));
        for (size_t k = 0; k < rows; k++, from += columns * p->size, to += p->width * p->size) {
            memcpy(to, from, bytes);
            memset(to + bytes, 0, p->width * p->size - bytes);
        }
    }
}

static void pack_share(void *arg, size_t share, int caller)
{
    const struct packing *p = arg;
    (void)caller;
    for (size_t layer = 0; layer < p->dims->layers; layer++)
        for (size_t d = 0; d < p->dims->directions; d++) {
            const struct cylstm_layer l = cylstm_find_layer(p->kernels, p->dims, layer, d);
            if (p->backward) {
                pack_columns(p, l.raw_hh, 4 * l.H, l.R, l.hh_t, share);
                pack_columns(p, l.raw_ih, 4 * l.H, l.I, l.ih_t, share);
                pack_columns(p, l.raw_hr, l.P, l.H, l.hr_t, share);
            } else {
                pack_gates(p, &l, share);
                pack_projection(p, &l, share);
            }
        }
}

static void pack(const struct cylstm_context *ctx, const struct cylstm_dims *dims, const void *raw,
                 void *packed, int backward)
{
    const uint32_t mode = cylstm_enter_float_mode(); /* the biases are summed */
    struct packing p = {ctx->kernels,
                        dims,
                        raw,
                        packed,
                        backward,
                        1,
                        cylstm_real_size(ctx->kernels),
                        PANEL_VECTORS * ctx->kernels->lanes};
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
