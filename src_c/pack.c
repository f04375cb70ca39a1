/* pack.c -- weights into panel order: all of them, or a panel. */
#include "pack.h"
#include "check.h"

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
    const struct cylstm_layer *layer;
    const void *raw;
    void *out;
    size_t size, width; /* of a real, of a row of the panel */
};

static size_t at_most(size_t n, size_t most) { return n < most ? n : most; }

/* The raw array `type`, from its element `at` on. */
static const void *raw_at(const struct panel *p, enum cylstm_array_type type, size_t at)
{
    return cylstm_at(p->raw, p->size, (ptrdiff_t)(p->layer->raw[type] + at));
}

/* Rows of the panel, `width` apart from `out` on: its vector v holds n[v] rows of a raw matrix (., K)
 * from row[v] on, one row of the panel for each of the K. */
static void transpose_rows(const struct panel *p, enum cylstm_array_type matrix, size_t K,
                           const size_t *row, const size_t *n, size_t vectors, size_t lanes,
                           size_t width, char *out)
{
    for (size_t j = 0; j < K; j += BLOCK)
        for (size_t v = 0; v < vectors; v++)
            p->kernels->transpose(raw_at(p, matrix, row[v] * K + j), K, n[v], at_most(K - j, BLOCK),
                                  lanes, out + (j * width + v * lanes) * p->size, width);
}

/* The same in a format of fewer bits: groups of k to a lane, the lanes of row[v] from v * lanes on. With
 * int8 the scales of the rows and the corrections for unsigned codes follow. */
static void pack_compact(const struct panel *p, const struct cylstm_matrix *m,
                         enum cylstm_array_type matrix, size_t K, const size_t *row,
                         const size_t *n, size_t lanes, char *out)
{
    const int int8 = m->format == CYLSTM_INT8;
    const size_t each = int8 ? 1 : 2, group = int8 ? INT8_GROUP : BF16_GROUP,
                 line = p->width * m->weight, rows = cylstm_format_rows(m->format, K);
    const enum cylstm_array_type scales =
        (enum cylstm_array_type)(matrix == CYLSTM_WEIGHT_IH   ? CYLSTM_SCALE_IH
                                 : matrix == CYLSTM_WEIGHT_HH ? CYLSTM_SCALE_HH
                                                              : CYLSTM_SCALE_HR);
    memset(out, 0, rows * line);
    for (size_t v = 0; v < PANEL_VECTORS; v++)
        for (size_t l = 0; l < n[v]; l++) {
            const char *from = (const char *)raw_at(p, matrix, 0) + (row[v] + l) * K * each;
            char *to = out + (v * lanes + l) * m->weight;
            int32_t sum = 0;
            for (size_t k = 0; k < K; k++)
                memcpy(to + k / group * line + k % group * each, from + k * each, each);
            if (!int8) continue;
            for (size_t k = 0; k < K; k++) sum += ((const int8_t *)from)[k];
            sum *= -128;
            to += (rows - INT8_EXTRA_ROWS) * line;
            memcpy(to, raw_at(p, scales, row[v] + l), sizeof(float));
            memcpy(to + line, &sum, sizeof sum);
        }
}

/* The units of a panel of gates. Its vector v holds n[v] units from unit[v] on. */
struct units {
    size_t unit[PANEL_VECTORS], n[PANEL_VECTORS];
    size_t lanes; /* from a vector to the next */
};

static struct units find_units(const struct panel *p, const struct cylstm_matrix *m, size_t panel)
{
    const size_t VL = p->kernels->lanes, H = p->layer->H, V = m->gates->unit_vectors;
    struct units units = {.lanes = VL};
    for (size_t v = 0; v < PANEL_VECTORS; v++) {
        const size_t u = (panel * (PANEL_VECTORS / V) + v / V) * VL;
        units.unit[v] = u;
        units.n[v] = u < H ? at_most(H - u, VL) : 0;
    }
    if (V == PANEL_VECTORS) units.lanes = at_most(m->columns / V - panel * VL, VL);
    return units;
}

static struct cylstm_vector gate_of(const struct cylstm_matrix *m, size_t v)
{
    return m->gates->vector[v % m->gates->unit_vectors];
}

/* The biases that a vector's gates have in both arrays are summed. */
static void pack_biases(const struct panel *p, const struct cylstm_matrix *m,
                        const struct units *units)
{
    const struct cylstm_layer *l = p->layer;
    memset(p->out, 0, p->width * p->size);
    for (size_t v = 0; l->bias && !l->kind->norm && v < PANEL_VECTORS; v++) {
        const struct cylstm_vector gate = gate_of(m, v);
        const size_t n = units->n[v];
        const void *ih = raw_at(p, CYLSTM_BIAS_IH, (size_t)gate.ih * l->H + units->unit[v]),
                   *hh = raw_at(p, CYLSTM_BIAS_HH, (size_t)gate.hh * l->H + units->unit[v]);
        void *out = cylstm_at(p->out, p->size, (ptrdiff_t)(v * units->lanes));
        if (gate.ih != CYLSTM_NONE && gate.hh != CYLSTM_NONE)
            p->kernels->sum_biases(ih, hh, n, out);
        else
            memcpy(out, gate.ih != CYLSTM_NONE ? ih : hh, n * p->size);
    }
}

/* The rows of a raw matrix (., K) that the vectors of a panel hold: n[v] from row[v] on. */
struct raw_rows {
    enum cylstm_array_type matrix;
    size_t K, row[PANEL_VECTORS], n[PANEL_VECTORS];
};

/* Of W_ih, or of W_hh (`h`). */
static struct raw_rows rows_of_gates(const struct panel *p, const struct cylstm_matrix *m,
                                     const struct units *units, int h)
{
    const struct cylstm_layer *l = p->layer;
    struct raw_rows r = {h ? CYLSTM_WEIGHT_HH : CYLSTM_WEIGHT_IH, h ? l->R : l->I, {0}, {0}};
    for (size_t v = 0; v < PANEL_VECTORS; v++) {
        const struct cylstm_vector both = gate_of(m, v);
        const int gate = h ? both.hh : both.ih;
        if (gate == CYLSTM_NONE) continue;
        r.row[v] = (size_t)gate * l->H + units->unit[v];
        r.n[v] = units->n[v];
    }
    return r;
}

/* Of a matrix that has a row for each column of the panels. */
static struct raw_rows rows_of_columns(const struct panel *p, const struct cylstm_matrix *m,
                                       size_t panel)
{
    struct raw_rows r = {m->raw, m->K, {0}, {0}};
    for (size_t v = 0; v < PANEL_VECTORS; v++) {
        r.row[v] = panel * p->width + v * p->kernels->lanes;
        r.n[v] = r.row[v] < m->columns ? at_most(m->columns - r.row[v], p->kernels->lanes) : 0;
    }
    return r;
}

/* `vectors` vectors from `first` on. */
static void pack_raw_rows(const struct panel *p, const struct cylstm_matrix *m,
                          const struct raw_rows *r, size_t first, size_t vectors, size_t lanes,
                          char *out)
{
    if (m->format == CYLSTM_AS_COMPUTED)
        transpose_rows(p, r->matrix, r->K, r->row + first, r->n + first, vectors, lanes,
                       cylstm_row_vectors(m) * p->kernels->lanes, out);
    else
        pack_compact(p, m, r->matrix, r->K, r->row + first, r->n + first, lanes, out);
}

static void pack_gates(const struct panel *p, const struct cylstm_matrix *m, size_t panel)
{
    const struct units units = find_units(p, m, panel);
    const int partial = panel >= m->columns / p->width; /* its four fit in three vectors */
    const size_t vectors = partial ? PANEL_VECTORS : cylstm_row_vectors(m);
    pack_biases(p, m, &units);
    for (int h = 0; h < 2; h++) {
        const struct raw_rows r = rows_of_gates(p, m, &units, h);
        pack_raw_rows(p, m, &r, h ? PANEL_VECTORS - vectors : 0, vectors, units.lanes,
                      (char *)p->out + cylstm_panel_row(p->kernels, m, h ? p->layer->I : 0));
    }
}

static void pack_rows(const struct panel *p, const struct cylstm_matrix *m, size_t panel)
{
    const struct raw_rows r = rows_of_columns(p, m, panel);
    pack_raw_rows(p, m, &r, 0, PANEL_VECTORS, p->kernels->lanes, p->out);
}

static void pack_columns(const struct panel *p, const struct cylstm_matrix *m, size_t first)
{
    const size_t row = p->width * p->size, stride = m->columns * p->size,
                 bytes = at_most(m->columns - first, p->width) * p->size;
    const char *from = raw_at(p, m->raw, first);
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
    const struct panel p = {
        kernels, l, raw, out, cylstm_real_size(kernels), cylstm_panel_width(kernels)};
    switch (matrix->type) {
    case CYLSTM_GATES: pack_gates(&p, matrix, panel); break;
    case CYLSTM_ROWS: pack_rows(&p, matrix, panel); break;
    case CYLSTM_COLUMNS: pack_columns(&p, matrix, panel * p.width); break;
    }
}

/* The sums of a panel whose vectors are `lanes` apart go on by a row of `a`. */
static void meet_rows(const struct panel *p, const struct raw_rows *r, const struct cylstm_term *a,
                      size_t lanes)
{
    const void *x = cylstm_at(a->a.base, p->size, a->a.offset ? a->a.offset[0] : 0);
    for (size_t v = 0; v < PANEL_VECTORS && a->K; v++)
        if (r->n[v])
            p->kernels->dot_rows(raw_at(p, r->matrix, r->row[v] * r->K), r->K, r->n[v], r->K, x,
                                 lanes, cylstm_at(p->out, p->size, (ptrdiff_t)(v * lanes)));
}

void cylstm_meet_panel(const struct cylstm_kernels *kernels, const struct cylstm_layer *l,
                       const struct cylstm_matrix *matrix, const void *raw, size_t panel,
                       const struct cylstm_term *terms, void *sums)
{
    const struct panel p = {
        kernels, l, raw, sums, cylstm_real_size(kernels), cylstm_panel_width(kernels)};
    if (matrix->type == CYLSTM_GATES) {
        const struct units units = find_units(&p, matrix, panel);
        pack_biases(&p, matrix, &units);
        for (int h = 0; h < 2; h++) {
            const struct raw_rows r = rows_of_gates(&p, matrix, &units, h);
            meet_rows(&p, &r, &terms[h], units.lanes);
        }
    } else {
        const struct raw_rows r = rows_of_columns(&p, matrix, panel);
        memset(sums, 0, p.width * p.size);
        meet_rows(&p, &r, &terms[0], kernels->lanes);
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
    const struct cylstm_layer *linear; /* instead of dims */
};

static void pack_matrix(const struct packing *p, const struct cylstm_layer *l,
                        const struct cylstm_matrix *m, size_t share)
{
    const struct cylstm_range mine =
        cylstm_share(cylstm_panels_of(p->kernels, m->columns), p->shares, share);
    for (size_t i = mine.begin; i < mine.end; i++)
        cylstm_pack_panel(p->kernels, l, m, p->raw, i, (char *)p->packed + m->at + i * m->panel);
}

/* What is met unit by unit. */
static void pack_vectors(const struct packing *p, const struct cylstm_layer *l, size_t layer,
                         size_t direction)
{
    struct cylstm_array arrays[CYLSTM_ARRAYS];
    const size_t count = cylstm_list_arrays(p->dims, layer, direction, arrays),
                 size = cylstm_real_size(p->kernels);
    for (size_t n = 0; n < count; n++)
        if (cylstm_is_vector(l->kind, arrays[n].type))
            memcpy((char *)p->packed + l->vector[p->backward][arrays[n].type],
                   cylstm_at(p->raw, size, (ptrdiff_t)arrays[n].at), arrays[n].rows * size);
}

static void pack_share(void *arg, size_t share, int caller)
{
    const struct packing *p = arg;
    (void)caller;
    for (size_t layer = 0; layer < p->dims->layers; layer++)
        for (size_t d = 0; d < p->dims->directions; d++) {
            const struct cylstm_layer l = cylstm_find_layer(p->kernels, p->dims, layer, d);
            if (!share) pack_vectors(p, &l, layer, d);
            if (p->backward) {
                pack_matrix(p, &l, &l.hh_t, share);
                pack_matrix(p, &l, &l.ih_t, share);
                pack_matrix(p, &l, &l.hr_t, share);
            } else {
                pack_matrix(p, &l, &l.w, share);
                pack_matrix(p, &l, &l.second, share);
                pack_matrix(p, &l, &l.hr, share);
            }
        }
}

static void pack(const struct cylstm_context *ctx, const struct cylstm_dims *dims, const void *raw,
                 void *packed, int backward)
{
    const uint32_t mode = cylstm_enter_float_mode(); /* the biases are summed */
    struct packing p = {ctx->kernels, dims, raw, packed, backward, 1, NULL};
    cylstm_run_over_weights(ctx->threads, cylstm_raw_count(dims), pack_share, &p, &p.shares);
    cylstm_leave_float_mode(mode);
}

void cylstm_pack_weights(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                         const void *raw, void *packed)
{
    CYLSTM_CHECK(cylstm_check_pack(ctx, dims, raw, packed));
    pack(ctx, dims, raw, packed, 0);
}

void cylstm_pack_backward(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                          const void *raw, void *packed_backward)
{
    CYLSTM_CHECK(cylstm_check_pack(ctx, dims, raw, packed_backward));
    pack(ctx, dims, raw, packed_backward, 1);
}

static void pack_linear_share(void *arg, size_t share, int caller)
{
    const struct packing *p = arg;
    (void)caller;
    pack_matrix(p, p->linear, &p->linear->hr, share);
}

void cylstm_pack_linear(const struct cylstm_context *ctx, const struct cylstm_linear *linear,
                        const void *raw, void *packed)
{
    CYLSTM_CHECK(cylstm_check_pack_linear(ctx, linear, raw, packed));
    const struct cylstm_layer l = cylstm_find_linear(ctx->kernels, linear);
    struct packing p = {ctx->kernels, NULL, raw, packed, 0, 1, &l};
    cylstm_run_over_weights(ctx->threads, cylstm_times(linear->inputs, linear->outputs),
                            pack_linear_share, &p, &p.shares);
}
