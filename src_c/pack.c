/* pack.c -- weights into panel order: all of them, or a panel. */
#include "cpu.h"
#include "layout.h"
#include "threads.h"

#include <string.h>

enum {
    BLOCK = 64,    /* values of k of a panel that are written together, in the order they lie */
    ROWS_AHEAD = 8 /* raw rows are too far apart for the hardware to foresee */
};

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

/* ------------------------------------------------------------------------ one panel */

/* Where a panel comes from and goes to. */
struct panel {
    const struct cylstm_kernels *kernels;
    const void *raw;
    void *out;
    size_t size, width; /* of a real, of a row of the panel */
};

/* Rows of the panel from its k-th on: its vector v holds n[v] rows of the raw matrix at `from`
 * (., K), from row v * next on, one row of the panel for each of the K. */
static void transpose_rows(const struct panel *p, size_t k, size_t from, size_t K, size_t next,
                           const size_t n[PANEL_VECTORS], size_t lanes)
{
    for (size_t j = 0; j < K; j += BLOCK)
        for (size_t v = 0; v < PANEL_VECTORS; v++)
            p->kernels->transpose(
                cylstm_at(p->raw, p->size, (ptrdiff_t)(from + v * next * K + j)), K, n[v],
                K - j < BLOCK ? K - j : BLOCK, lanes,
                cylstm_at(p->out, p->size, (ptrdiff_t)((k + j) * p->width + v * lanes)));
}

static size_t at_most(size_t n, size_t most) { return n < most ? n : most; }

static void pack_gates(const struct panel *p, const struct cylstm_layer *l, size_t panel)
{
    const size_t VL = p->kernels->lanes, u = panel * VL, n = at_most(l->H - u, VL),
                 lanes = at_most(l->gates.columns / PANEL_VECTORS - u, VL);
    const size_t units[PANEL_VECTORS] = {n, n, n, n};
    memset(p->out, 0, p->width * p->size);
    for (size_t gate = 0; l->bias && gate < PANEL_VECTORS; gate++) {
        const ptrdiff_t row = (ptrdiff_t)(gate * l->H + u);
        p->kernels->sum_biases(cylstm_at(p->raw, p->size, (ptrdiff_t)l->raw_b_ih + row),
                               cylstm_at(p->raw, p->size, (ptrdiff_t)l->raw_b_hh + row), n,
                               cylstm_at(p->out, p->size, (ptrdiff_t)(gate * lanes)));
    }
    transpose_rows(p, 1, l->raw_ih + u * l->I, l->I, l->H, units, lanes);
    transpose_rows(p, 1 + l->I, l->raw_hh + u * l->R, l->R, l->H, units, lanes);
}

static void pack_rows(const struct panel *p, const struct cylstm_matrix *m, size_t first)
{
    const size_t VL = p->kernels->lanes, left = m->columns - first;
    size_t rows[PANEL_VECTORS];
    for (size_t v = 0; v < PANEL_VECTORS; v++)
        rows[v] = left > v * VL ? at_most(left - v * VL, VL) : 0;
    transpose_rows(p, 0, m->raw + first * m->K, m->K, VL, rows, VL);
}

static void pack_columns(const struct panel *p, const struct cylstm_matrix *m, size_t first)
{
    const size_t row = p->width * p->size, stride = m->columns * p->size,
                 bytes = at_most(m->columns - first, p->width) * p->size;
    const char *from = cylstm_at(p->raw, p->size, (ptrdiff_t)(m->raw + first));
    char *out = p->out;
    for (size_t k = 0; k < m->K; k++, from += stride, out += row) {
        for (size_t line = 0; line < row; line += CYLSTM_ALIGN)
            FETCH(from + ROWS_AHEAD * stride + line);
        memcpy(out, from, bytes);
        memset(out + bytes, 0, row - bytes);
    }
}

void cylstm_pack_panel(const struct cylstm_kernels *kernels, const struct cylstm_layer *l,
                       const struct cylstm_matrix *matrix, const void *raw, size_t panel, void *out)
{
    const struct panel p = {kernels, raw, out, cylstm_real_size(kernels),
                            cylstm_panel_width(kernels)};
    switch (matrix->kind) {
    case CYLSTM_GATES: pack_gates(&p, l, panel); break;
    case CYLSTM_ROWS: pack_rows(&p, matrix, panel * p.width); break;
    case CYLSTM_COLUMNS: pack_columns(&p, matrix, panel * p.width); break;
    }
}

/* ---------------------------------------------------------------------- all of them */

struct packing {
    const struct cylstm_kernels *kernels;
    const struct cylstm_dims *dims;
    const void *raw;
    void *packed;
    int backward;
    size_t shares;
};

static void pack_matrix(const struct packing *p, const struct cylstm_layer *l,
                        const struct cylstm_matrix *m, size_t share)
{
    const struct cylstm_range mine =
        cylstm_share(cylstm_panels_of(p->kernels, m->columns), p->shares, share);
    const size_t panel = m->K * cylstm_panel_width(p->kernels);
    for (size_t i = mine.begin; i < mine.end; i++)
        cylstm_pack_panel(
            p->kernels, l, m, p->raw, i,
            cylstm_at(p->packed, cylstm_real_size(p->kernels), (ptrdiff_t)(m->at + i * panel)));
}

static void pack_share(void *arg, size_t share, int caller)
{
    const struct packing *p = arg;
    (void)caller;
    for (size_t layer = 0; layer < p->dims->layers; layer++)
        for (size_t d = 0; d < p->dims->directions; d++) {
            const struct cylstm_layer l = cylstm_find_layer(p->kernels, p->dims, layer, d);
            if (p->backward) {
                pack_matrix(p, &l, &l.hh_t, share);
                pack_matrix(p, &l, &l.ih_t, share);
                pack_matrix(p, &l, &l.hr_t, share);
            } else {
                pack_matrix(p, &l, &l.gates, share);
                pack_matrix(p, &l, &l.hr, share);
            }
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
