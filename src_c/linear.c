/* linear.c -- an affine map and its gradients, from raw weights:
 *
 *     y = x W^T + b,    dx = dy W,    dW = dy^T x
 *
 * Each is one product of row-major matrices, out = init + a b. Nothing is packed beforehand: the
 * thread that needs a panel of b packs a piece of it that stays in the cache, since all rows of `a`
 * meet it while it is there. A product of few rows reads b where it lies, if its rows are the panel's.
 * Weights of fewer bits are the exception: they do not change, and are packed once.
 *
 * A sum over K is cut into pieces of fixed length, and each piece is one chain; so an element depends
 * on its own row and column alone, not on the number of rows or threads. With bfloat16 the pieces are
 * the same, and so are the bits; of integers a sum is one piece, as its row has one scale.
 */
#include "product.h"
#include "check.h"
#include "compact.h"
#include "arena.h"
#include "cpu.h"
#include "split.h"

#include <string.h>

enum {
    PIECE = 256,     /* values of k that are packed at once: two panels of them fit L2 */
    TOGETHER = 2,    /* panels, which a product of one row takes at once */
    TRANSPOSED = 64, /* values of k between two vectors of a panel, while it is packed */
    FEW_ROWS = 8,    /* no more than these read b where it lies */
    PACKING_ROWS = 6 /* what packing a panel takes, as rows of the product */
};

/* out (rows, columns) = init + a (rows, K) b (K, columns). Strides count reals. */
struct multiplication {
    struct cylstm_call call;
    size_t rows, columns, K;
    const void *a, *b;
    ptrdiff_t a_row, a_k;    /* from a row to the next, from a k to the next */
    ptrdiff_t b_k, b_column; /* one of them is 1 */
    const void *init;        /* as the product's: whole panels of it */
    ptrdiff_t init_panel, init_row;
    const struct cylstm_matrix *packed; /* NULL, or b in a format of fewer bits, packed */
    int wide;                           /* which rows meet with 16 bits */
    void *out;                          /* contiguous */
    char *panels;                       /* or rows as they are quantised */
    size_t panels_bytes;                /* of each share */
    size_t shares;
    int by_panels; /* shares are panels, not rows */
};

static size_t at_most(size_t n, size_t most) { return n < most ? n : most; }

/* Rows [k, k + K) of a panel of b, each as wide as a panel, zero behind the last column. */
static void pack(const struct multiplication *m, size_t panel, size_t k, size_t K, char *out)
{
    const struct cylstm_kernels *kernels = m->call.kernels;
    const size_t size = m->call.real_size, width = cylstm_panel_width(kernels), VL = kernels->lanes,
                 first = panel * width, left = m->columns - first, columns = at_most(left, width);
    const char *from =
        cylstm_at(m->b, size, (ptrdiff_t)first * m->b_column + (ptrdiff_t)k * m->b_k);
    if (m->b_column == 1) {
        for (size_t n = 0; n < K; n++, out += width * size) {
            memcpy(out, cylstm_at(from, size, (ptrdiff_t)n * m->b_k), columns * size);
            memset(out + columns * size, 0, (width - columns) * size);
        }
        return;
    }
    for (size_t n = 0; n < K; n += TRANSPOSED)
        for (size_t v = 0; v < PANEL_VECTORS; v++) {
            const size_t u = v * VL, lanes = u < columns ? at_most(columns - u, VL) : 0;
            kernels->transpose(cylstm_at(from, size, (ptrdiff_t)u * m->b_column + (ptrdiff_t)n),
                               (size_t)m->b_column, lanes, at_most(K - n, TRANSPOSED), VL,
                               out + (n * width + u) * size, width);
        }
}

static void multiply_packed(struct multiplication *m, int caller, struct cylstm_product *g,
                            size_t k, char *codes)
{
    g->term[0].w = cylstm_at(m->b, 1, (ptrdiff_t)cylstm_panel_row(m->call.kernels, m->packed, k));
    g->w_panel = (ptrdiff_t)m->packed->panel;
    g->compact = cylstm_compact_kernels(m->call.ctx, m->packed->format);
    g->codes = codes;
    g->term[0].wide = m->wide;
    cylstm_multiply(&m->call, caller, g);
}

/* One piece of the sum, for the rows and panels of `g`. */
static void multiply_piece(struct multiplication *m, int caller, struct cylstm_product g, size_t k,
                           size_t K, char *panels)
{
    const size_t size = m->call.real_size, width = cylstm_panel_width(m->call.kernels),
                 end = g.panel_end, whole = m->columns / width;
    g.term[0].K = K;
    g.term[0].a.base = cylstm_at(g.term[0].a.base, size, (ptrdiff_t)k * m->a_k);
    if (k) {
        g.init = cylstm_zeros;
        g.init_panel = g.init_row = 0;
        g.addend = g.out;
    }
    if (m->packed) {
        multiply_packed(m, caller, &g, k, panels);
        return;
    }
    if (m->b_column == 1 && g.rows <= FEW_ROWS && g.panel_begin < whole) {
        g.term[0].w = cylstm_at(m->b, size, (ptrdiff_t)k * m->b_k);
        g.w_panel = (ptrdiff_t)width;
        g.w_k = m->b_k;
        if (g.panel_end > whole) g.panel_end = whole;
        cylstm_multiply(&m->call, caller, &g);
        g.panel_begin = g.panel_end;
    }
    g.w_panel = (ptrdiff_t)(K * width);
    g.w_k = (ptrdiff_t)width;
    for (; g.panel_begin < end && !cylstm_stopped(&m->call); g.panel_begin = g.panel_end) {
        g.panel_end = g.panel_begin + at_most(end - g.panel_begin, TOGETHER);
        for (size_t n = g.panel_begin; n < g.panel_end; n++)
            pack(m, n, k, K, panels + (n - g.panel_begin) * K * width * size);
        g.term[0].w = cylstm_at(panels, size, -(ptrdiff_t)g.panel_begin * g.w_panel);
        cylstm_multiply(&m->call, caller, &g);
    }
}

static void multiply_share(void *arg, size_t share, int caller)
{
    struct multiplication *m = arg;
    const struct cylstm_kernels *k = m->call.kernels;
    const size_t panels = cylstm_panels_of(k, m->columns), shares = m->shares,
                 piece = m->packed && m->packed->format == CYLSTM_INT8 ? m->K : PIECE;
    const struct cylstm_range rows = m->by_panels ? (struct cylstm_range){0, m->rows}
                                                  : cylstm_share(m->rows, shares, share),
                              mine = m->by_panels ? cylstm_share(panels, shares, share)
                                                  : (struct cylstm_range){0, panels};
    const ptrdiff_t first = (ptrdiff_t)rows.begin;
    const struct cylstm_product g = {
        .rows = rows.end - rows.begin,
        .panel_begin = mine.begin,
        .panel_end = mine.end,
        .columns = m->columns,
        .term[0].a = {cylstm_at(m->a, m->call.real_size, first * m->a_row), NULL, m->a_row},
        .term[0].a_k = m->a_k,
        .init = cylstm_at(m->init, m->call.real_size, first * m->init_row),
        .init_panel = m->init_panel,
        .init_row = m->init_row,
        .out = {cylstm_at(m->out, m->call.real_size, first * (ptrdiff_t)m->columns), NULL,
                (ptrdiff_t)m->columns},
        .out_panel = (ptrdiff_t)cylstm_panel_width(k),
    };
    if (!g.rows || mine.begin == mine.end) return;
    for (size_t at = 0; at < m->K && !cylstm_stopped(&m->call); at += piece)
        multiply_piece(m, caller, g, at, at_most(m->K - at, piece),
                       m->panels + share * m->panels_bytes);
}

static void multiply(struct multiplication *m, struct cylstm_team *team, size_t threads)
{
    const size_t panels = cylstm_panels_of(m->call.kernels, m->columns);
    m->by_panels = panels >= threads;
    m->shares = threads;
    cylstm_run_phase(team, multiply_share, m, threads);
}

/* ---------------------------------------------------------------------- the calls */

/* Scratch of both calls. */
struct scratch {
    char *panels; /* of each thread, or codes of its rows */
    size_t panels_bytes;
    void *init; /* the biases, as a product starts from them */
    void *y;    /* transposed, where it is computed so */
};

/* Whether y^T = W x^T takes less than y = x W^T: panels then hold rows of x, not of W. Counted in
 * vectors for each k. */
static int transposes(const struct cylstm_kernels *k, const struct cylstm_linear *l)
{
    if (l->format != CYLSTM_AS_COMPUTED) return 0;
    const double in_rows = (double)((l->rows + k->lanes - 1) / k->lanes),
                 in_outputs = (double)((l->outputs + k->lanes - 1) / k->lanes);
    return (double)(l->outputs + PACKING_ROWS) * in_rows <
           (double)(l->rows + PACKING_ROWS) * in_outputs;
}

static struct scratch carve(struct cylstm_arena *arena, const struct cylstm_context *ctx,
                            const struct cylstm_linear *l)
{
    const struct cylstm_kernels *k = ctx->kernels;
    const size_t threads = ctx->threads > 1 ? (size_t)ctx->threads : 1,
                 width = cylstm_panel_width(k), size = cylstm_real_size(k),
                 transposed = (size_t)transposes(k, l),
                 K = cylstm_larger(l->rows, cylstm_larger(l->inputs, l->outputs));
    struct scratch s = {.panels_bytes = TOGETHER * at_most(K, PIECE) * width * size};
    if (l->format != CYLSTM_AS_COMPUTED)
        s.panels_bytes = cylstm_codes_size((enum cylstm_format_type)l->format,
                                           l->wide_inputs ? 2 * l->inputs : l->inputs);
    s.panels = cylstm_carve(arena, threads, s.panels_bytes);
    s.init = cylstm_carve(
        arena, transposed ? l->outputs * width : cylstm_round_up(l->outputs, width), size);
    s.y = cylstm_carve(arena, transposed * l->rows * l->outputs, size);
    return s;
}

size_t cylstm_linear_scratch(const struct cylstm_context *ctx, const struct cylstm_linear *l)
{
    struct cylstm_arena arena = {NULL, 0};
    carve(&arena, ctx, l);
    return arena.used;
}

static void copy_real(void *out, const void *in, size_t size) { memcpy(out, in, size); }

/* The sums of a product start from the bias of their output: a row of it where outputs are columns,
 * else a panel for each output. */
static void start_from_biases(struct multiplication *m, const void *bias, int transposed,
                              size_t outputs, char *init)
{
    const size_t size = m->call.real_size, width = cylstm_panel_width(m->call.kernels);
    m->init = init;
    if (transposed) {
        m->init_row = (ptrdiff_t)width;
        for (size_t n = 0; n < outputs; n++)
            for (size_t lane = 0; lane < width; lane++)
                copy_real(init + (n * width + lane) * size, (const char *)bias + n * size, size);
    } else {
        m->init_panel = (ptrdiff_t)width;
        memcpy(init, bias, outputs * size);
        memset(init + outputs * size, 0, (cylstm_round_up(outputs, width) - outputs) * size);
    }
}

static double flops_of(const struct cylstm_linear *l)
{
    return 2.0 * (double)l->rows * (double)l->inputs * (double)l->outputs;
}

void cylstm_linear_forward(const struct cylstm_context *ctx, const struct cylstm_linear *l,
                           const void *x, const void *bias, void *y, void *scratch)
{
    CYLSTM_CHECK(cylstm_check_linear(ctx, l, x, y, l->rows * l->outputs, scratch));
    struct cylstm_arena arena = {scratch, 0};
    const struct scratch s = carve(&arena, ctx, l);
    const int transposed = transposes(ctx->kernels, l);
    const ptrdiff_t in = (ptrdiff_t)l->inputs;
    const size_t size = cylstm_real_size(ctx->kernels);
    const struct cylstm_layer packed = l->format == CYLSTM_AS_COMPUTED
                                           ? (struct cylstm_layer){0}
                                           : cylstm_find_linear(ctx->kernels, l);
    struct multiplication m = {
        .packed = l->format == CYLSTM_AS_COMPUTED ? NULL : &packed.hr,
        .wide = l->wide_inputs,
        .rows = transposed ? l->outputs : l->rows,
        .columns = transposed ? l->rows : l->outputs,
        .K = l->inputs,
        .a = transposed ? l->weight : x,
        .a_row = in,
        .a_k = 1,
        .b = transposed ? x : l->weight,
        .b_k = 1,
        .b_column = in,
        .init = cylstm_zeros,
        .out = transposed && l->outputs > 1 ? s.y : y,
        .panels = s.panels,
        .panels_bytes = s.panels_bytes,
    };
    cylstm_begin_call(&m.call, ctx);
    if (bias) start_from_biases(&m, bias, transposed, l->outputs, s.init);
    const struct cylstm_sharing sharing = cylstm_share_flops(ctx, flops_of(l));
    struct cylstm_team team = cylstm_begin_team(sharing.threads, sharing.small);
    multiply(&m, &team, (size_t)sharing.threads);
    cylstm_end_team(&team);
    if (m.out != y && !cylstm_stopped(&m.call))
        for (size_t r = 0; r < l->rows; r++)
            for (size_t n = 0; n < l->outputs; n++)
                copy_real((char *)y + (r * l->outputs + n) * size,
                          (const char *)s.y + (n * l->rows + r) * size, size);
    cylstm_end_call(&m.call);
}

void cylstm_linear_backward(const struct cylstm_context *ctx, const struct cylstm_linear *l,
                            const struct cylstm_linear_gradients *g, void *scratch)
{
    CYLSTM_CHECK(cylstm_check_linear(ctx, l, g->x, g->dweight, l->inputs * l->outputs, scratch));
    struct cylstm_arena arena = {scratch, 0};
    const struct scratch s = carve(&arena, ctx, l);
    const ptrdiff_t in = (ptrdiff_t)l->inputs, out = (ptrdiff_t)l->outputs;
    struct multiplication m = {
        .rows = l->outputs,
        .columns = l->inputs,
        .K = l->rows,
        .a = g->dy,
        .a_row = 1,
        .a_k = out,
        .b = g->x,
        .b_k = in,
        .b_column = 1,
        .init = cylstm_zeros,
        .out = g->dweight,
        .panels = s.panels,
        .panels_bytes = s.panels_bytes,
    };
    cylstm_begin_call(&m.call, ctx);
    const struct cylstm_sharing sharing = cylstm_share_flops(ctx, 2 * flops_of(l));
    struct cylstm_team team = cylstm_begin_team(sharing.threads, sharing.small);
    multiply(&m, &team, (size_t)sharing.threads);
    if (g->dx) {
        m.rows = l->rows;
        m.columns = l->inputs;
        m.K = l->outputs;
        m.a = g->dy;
        m.a_row = out;
        m.a_k = 1;
        m.b = l->weight;
        m.b_k = in;
        m.out = g->dx;
        multiply(&m, &team, (size_t)sharing.threads);
    }
    cylstm_end_team(&team);
    cylstm_end_call(&m.call);
}
