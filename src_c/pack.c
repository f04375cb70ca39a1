/* pack.c -- weights into panel order: all of them, or a panel. */
#include "pack.h"

#include "cpu.h"
#include "split.h"

#include <string.h>

enum {
    BLOCK = 64,    /* values of k of a panel that are written together, in the order they lie */
    ROWS_AHEAD = 8 /* raw rows are too far apart for the hardware to foresee */
};

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
