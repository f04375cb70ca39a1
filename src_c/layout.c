/* layout.c -- the sizes and places of a layer's weights, raw and packed. */
#include "layout.h"

struct counts {
    size_t raw, forward, backward; /* reals, bytes, bytes */
};

/* How a weight is stored, by enum cylstm_format_type. */
static const struct {
    size_t raw;  /* bytes; 0: a real */
    size_t lane; /* bytes of a lane of a panel; 0: a real */
    int scaled;  /* every row has a scale */
} formats[CYLSTM_FORMATS] = {
    [CYLSTM_AS_COMPUTED] = {0, 0, 0},
    [CYLSTM_BFLOAT16] = {2, 4, 0},
    [CYLSTM_INT8] = {1, 4, 1},
    [CYLSTM_BFLOAT16_PRODUCTS] = {2, 4, 0},
};

/* ---------------------------------------------------------------------- raw arrays */

static size_t layer_inputs(const struct cylstm_dims *dims, size_t layer)
{
    return layer ? dims->directions * cylstm_hidden_width(dims) : dims->input;
}

/* In reals. */
static size_t array_size(const struct cylstm_array *a, size_t real_size)
{
    const size_t count = cylstm_times(a->rows, a->columns ? a->columns : 1);
    if (a->bytes == real_size) return count;
    return cylstm_round_up(cylstm_times(count, a->bytes), real_size) / real_size;
}

/* The arrays that a layer may have, in the order in which they lie. */
static const struct {
    enum cylstm_array_type type;
    const char *name;
    enum { GATES, PEEPHOLES, UNITS, PROJECTED } rows;
    enum { NO_COLUMNS, INPUTS, HIDDEN, CELLS } columns;
} known[CYLSTM_ARRAYS] = {
    {CYLSTM_WEIGHT_IH, "weight_ih", GATES, INPUTS},
    {CYLSTM_SCALE_IH, "weight_ih_scale", GATES, NO_COLUMNS},
    {CYLSTM_WEIGHT_HH, "weight_hh", GATES, HIDDEN},
    {CYLSTM_SCALE_HH, "weight_hh_scale", GATES, NO_COLUMNS},
    {CYLSTM_BIAS_IH, "bias_ih", GATES, NO_COLUMNS},
    {CYLSTM_BIAS_HH, "bias_hh", GATES, NO_COLUMNS},
    {CYLSTM_WEIGHT_PEEP, "weight_peep", PEEPHOLES, NO_COLUMNS},
    {CYLSTM_WEIGHT_HR, "weight_hr", PROJECTED, CELLS},
    {CYLSTM_SCALE_HR, "weight_hr_scale", PROJECTED, NO_COLUMNS},
    {CYLSTM_BIAS_HR, "bias_hr", PROJECTED, NO_COLUMNS},
    {CYLSTM_WEIGHT_LN, "weight_ln", GATES, NO_COLUMNS},
    {CYLSTM_WEIGHT_LN_IH, "weight_ln_ih", GATES, NO_COLUMNS},
    {CYLSTM_WEIGHT_LN_HH, "weight_ln_hh", GATES, NO_COLUMNS},
    {CYLSTM_WEIGHT_LN_CELL, "weight_ln_cell", UNITS, NO_COLUMNS},
    {CYLSTM_BIAS_LN_CELL, "bias_ln_cell", UNITS, NO_COLUMNS},
};

static int has_array(const struct cylstm_dims *dims, enum cylstm_array_type type)
{
    switch (type) {
    case CYLSTM_BIAS_IH:
    case CYLSTM_BIAS_HH: return dims->bias;
    case CYLSTM_WEIGHT_PEEP: return dims->peephole;
    case CYLSTM_BIAS_HR: return dims->proj_bias;
    case CYLSTM_WEIGHT_LN: return dims->layer_norm == CYLSTM_LITERT_NORM;
    case CYLSTM_WEIGHT_LN_IH:
    case CYLSTM_WEIGHT_LN_HH:
    case CYLSTM_WEIGHT_LN_CELL:
    case CYLSTM_BIAS_LN_CELL: return dims->layer_norm == CYLSTM_HASTE_NORM;
    case CYLSTM_SCALE_IH:
    case CYLSTM_SCALE_HH:
    case CYLSTM_SCALE_HR: return formats[dims->format].scaled;
    default: return 1; /* as large as the layer says */
    }
}

/* The arrays of a layer, whose first starts at `at`. Returns where the last one ends. */
static size_t place_arrays(const struct cylstm_dims *dims, size_t layer, size_t at,
                           struct cylstm_array arrays[CYLSTM_ARRAYS], size_t *count)
{
    const struct cylstm_cell_kind *kind = cylstm_cell_kind(dims);
    const size_t real_size = (size_t)dims->bits / 8,
                 narrow = formats[dims->format].raw ? formats[dims->format].raw : real_size;
    const size_t rows[] = {[GATES] = cylstm_times(kind->shape.gates, dims->hidden),
                           [PEEPHOLES] = cylstm_times(kind->peepholes, dims->hidden),
                           [UNITS] = dims->hidden,
                           [PROJECTED] = dims->proj},
                 columns[] = {[INPUTS] = layer_inputs(dims, layer),
                              [HIDDEN] = cylstm_hidden_width(dims),
                              [CELLS] = dims->hidden};
    *count = 0;
    for (size_t n = 0; n < CYLSTM_ARRAYS; n++) {
        if (!has_array(dims, known[n].type) || !rows[known[n].rows]) continue;
        struct cylstm_array *a = &arrays[(*count)++];
        *a = (struct cylstm_array){.type = known[n].type,
                                   .name = known[n].name,
                                   .rows = rows[known[n].rows],
                                   .columns = columns[known[n].columns],
                                   .bytes = known[n].columns == NO_COLUMNS ? real_size : narrow,
                                   .at = at};
        at = cylstm_plus(at, array_size(a, real_size));
    }
    return at;
}

int cylstm_is_vector(const struct cylstm_cell_kind *kind, enum cylstm_array_type type)
{
    switch (type) {
    case CYLSTM_BIAS_IH:
    case CYLSTM_BIAS_HH: return kind->norm;
    case CYLSTM_WEIGHT_PEEP:
    case CYLSTM_BIAS_HR:
    case CYLSTM_WEIGHT_LN:
    case CYLSTM_WEIGHT_LN_IH:
    case CYLSTM_WEIGHT_LN_HH:
    case CYLSTM_WEIGHT_LN_CELL:
    case CYLSTM_BIAS_LN_CELL: return 1;
    default: return 0;
    }
}

/* ------------------------------------------------------------------ packed matrices */

/* Rows of weights of a panel. */
static size_t panel_rows(const struct cylstm_matrix *m)
{
    return cylstm_plus(cylstm_format_rows(m->format, m->first),
                       cylstm_format_rows(m->format, m->K - m->first));
}

/* Its bytes, and those of a panel, which are filled in. */
static size_t measure(struct cylstm_matrix *m, size_t VL, size_t real_size)
{
    if (!m->columns) return 0;
    const size_t width = PANEL_VECTORS * VL,
                 biases = m->type == CYLSTM_GATES ? width * real_size : 0;
    m->panel =
        cylstm_plus(biases, cylstm_times(panel_rows(m), cylstm_row_vectors(m) * VL * m->weight));
    m->panel_reals = m->panel / real_size;
    m->panel_weights = m->weight == real_size ? m->panel_reals : m->panel / m->weight;
    return cylstm_times(cylstm_round_up(m->columns, width) / width, m->panel);
}

/* Columns of a matrix of gates. In a partial panel the gates stand together in whole vectors only
 * where all of them are of the same units, and where tiles then are narrower. */
static size_t gates_columns(const struct cylstm_panels *gates, size_t H, size_t VL,
                            enum cylstm_format_type format)
{
    if (gates->unit_vectors == PANEL_VECTORS && format == CYLSTM_AS_COMPUTED)
        return cylstm_round_up(cylstm_times(gates->unit_vectors, H), VL);
    return cylstm_times(gates->unit_vectors, cylstm_round_up(H, VL));
}

/* Of K values of k, those of the first raw matrix and of the second. In a format of fewer bits no panel
 * is narrow. */
static struct cylstm_matrix gates_matrix(const struct cylstm_panels *gates, size_t first,
                                         size_t second, size_t H, size_t VL,
                                         enum cylstm_format_type format)
{
    return (struct cylstm_matrix){.type = CYLSTM_GATES,
                                  .K = cylstm_plus(first, second),
                                  .first = first,
                                  .columns = gates_columns(gates, H, VL, format),
                                  .format = format,
                                  .narrow = gates->narrow && format == CYLSTM_AS_COMPUTED,
                                  .gates = gates};
}

/* A layer without its place among the others, and what it takes. */
static struct counts shape_layer(const struct cylstm_dims *dims, size_t layer, size_t direction,
                                 size_t VL, struct cylstm_layer *l)
{
    const struct cylstm_cell_kind *kind = cylstm_cell_kind(dims);
    const size_t R = cylstm_hidden_width(dims), H = dims->hidden, P = dims->proj,
                 I = layer_inputs(dims, layer), real_size = (size_t)dims->bits / 8;
    const size_t gates = cylstm_times(kind->shape.gates, H), stored = formats[dims->format].lane;
    const enum cylstm_format_type format = (enum cylstm_format_type)dims->format;
    *l = (struct cylstm_layer){
        .kind = kind,
        .blends = kind->blends || dims->zoneout != 0,
        .I = I,
        .H = H,
        .R = R,
        .P = P,
        .bias = dims->bias,
        .wide_inputs = dims->wide_inputs,
        .gates = gates,
        .dgates = cylstm_times(kind->dgates, H),
        .tape = cylstm_times(kind->shape.tape_vectors, H),
        .w = gates_matrix(&kind->first, I, R, H, VL, format),
        .second = gates_matrix(&kind->second, I, H, H, VL, format),
        .hr = {.type = CYLSTM_ROWS, .K = H, .columns = P, .raw = CYLSTM_WEIGHT_HR},
        .hh_t = {.type = CYLSTM_COLUMNS, .K = gates, .columns = R, .raw = CYLSTM_WEIGHT_HH},
        .ih_t = {.type = CYLSTM_COLUMNS, .K = gates, .columns = I, .raw = CYLSTM_WEIGHT_IH},
        .hr_t = {.type = CYLSTM_COLUMNS, .K = P, .columns = H, .raw = CYLSTM_WEIGHT_HR},
    };
    l->any = cylstm_cell_options(dims, direction, &l->options);
    l->hr.format = format;
    l->w.weight = l->second.weight = l->hr.weight = stored ? stored : real_size;
    l->hh_t.weight = l->ih_t.weight = l->hr_t.weight = real_size;

    struct cylstm_array arrays[CYLSTM_ARRAYS];
    size_t count;
    struct counts c = {.raw = place_arrays(dims, layer, 0, arrays, &count)};
    for (size_t n = 0; n < count; n++) l->raw[arrays[n].type] = arrays[n].at;
    struct cylstm_matrix *const forward[] = {&l->w, &l->second, &l->hr}, *const backward[] = {
                                                                             &l->hh_t, &l->ih_t,
                                                                             &l->hr_t};
    for (size_t n = 0; n < sizeof forward / sizeof *forward; n++) {
        forward[n]->at = c.forward;
        c.forward = cylstm_plus(c.forward, measure(forward[n], VL, real_size));
    }
    for (size_t n = 0; n < sizeof backward / sizeof *backward; n++) {
        backward[n]->at = c.backward;
        c.backward = cylstm_plus(c.backward, measure(backward[n], VL, real_size));
    }
    for (size_t n = 0; n < count; n++) { /* in whole cache lines, as all matrices are */
        if (!cylstm_is_vector(kind, arrays[n].type)) continue;
        const size_t size = cylstm_round_up(cylstm_times(arrays[n].rows, real_size), CYLSTM_ALIGN);
        l->vector[0][arrays[n].type] = c.forward;
        l->vector[1][arrays[n].type] = c.backward;
        c.forward = cylstm_plus(c.forward, size);
        c.backward = cylstm_plus(c.backward, size);
    }
    return c;
}

/* The first layer has a size of its own; all above it are alike. */
static struct counts count_before(const struct cylstm_dims *dims, size_t layer, size_t direction,
                                  size_t VL)
{
    if (!layer && !direction) return (struct counts){0, 0, 0};
    struct cylstm_layer l;
    const size_t n_a = layer ? dims->directions : direction;
    const size_t n_b = layer ? (layer - 1) * dims->directions + direction : 0;
    const struct counts a = shape_layer(dims, 0, 0, VL, &l),
                        b = n_b ? shape_layer(dims, 1, 0, VL, &l) : a;
    return (struct counts){
        .raw = cylstm_plus(cylstm_times(n_a, a.raw), cylstm_times(n_b, b.raw)),
        .forward = cylstm_plus(cylstm_times(n_a, a.forward), cylstm_times(n_b, b.forward)),
        .backward = cylstm_plus(cylstm_times(n_a, a.backward), cylstm_times(n_b, b.backward)),
    };
}

struct cylstm_layer cylstm_find_layer(const struct cylstm_kernels *kernels,
                                      const struct cylstm_dims *dims, size_t layer,
                                      size_t direction)
{
    struct cylstm_layer l;
    const struct counts before = count_before(dims, layer, direction, kernels->lanes);
    shape_layer(dims, layer, direction, kernels->lanes, &l);
    for (size_t n = 0; n < CYLSTM_ARRAYS; n++) {
        l.raw[n] += before.raw;
        l.vector[0][n] += before.forward;
        l.vector[1][n] += before.backward;
    }
    l.w.at += before.forward;
    l.second.at += before.forward;
    l.hr.at += before.forward;
    l.hh_t.at += before.backward;
    l.ih_t.at += before.backward;
    l.hr_t.at += before.backward;
    return l;
}

struct cylstm_layer cylstm_find_linear(const struct cylstm_kernels *kernels,
                                       const struct cylstm_linear *linear)
{
    const struct cylstm_array raw = {
        .rows = linear->outputs, .columns = linear->inputs, .bytes = formats[linear->format].raw};
    struct cylstm_layer l = {.hr = {.type = CYLSTM_ROWS,
                                    .K = linear->inputs,
                                    .columns = linear->outputs,
                                    .raw = CYLSTM_WEIGHT_HR,
                                    .format = (enum cylstm_format_type)linear->format,
                                    .weight = formats[linear->format].lane}};
    l.raw[CYLSTM_SCALE_HR] = array_size(&raw, cylstm_real_size(kernels));
    measure(&l.hr, kernels->lanes, cylstm_real_size(kernels));
    return l;
}

/* -------------------------------------------------------------------- public sizes */

size_t cylstm_list_arrays(const struct cylstm_dims *dims, size_t layer, size_t direction,
                          struct cylstm_array arrays[CYLSTM_ARRAYS])
{
    size_t count;
    place_arrays(dims, layer, count_before(dims, layer, direction, 1).raw, arrays, &count);
    return count;
}

size_t cylstm_raw_count(const struct cylstm_dims *dims)
{
    return count_before(dims, dims->layers, 0, 1).raw;
}

size_t cylstm_packed_size(const struct cylstm_context *ctx, const struct cylstm_dims *dims)
{
    return cylstm_round_up(count_before(dims, dims->layers, 0, ctx->kernels->lanes).forward,
                           CYLSTM_ALIGN);
}

size_t cylstm_packed_backward_size(const struct cylstm_context *ctx, const struct cylstm_dims *dims)
{
    return cylstm_round_up(count_before(dims, dims->layers, 0, ctx->kernels->lanes).backward,
                           CYLSTM_ALIGN);
}

size_t cylstm_linear_packed_size(const struct cylstm_context *ctx,
                                 const struct cylstm_linear *linear)
{
    const struct cylstm_layer l = cylstm_find_linear(ctx->kernels, linear);
    return cylstm_round_up(cylstm_times(cylstm_panels_of(ctx->kernels, l.hr.columns), l.hr.panel),
                           CYLSTM_ALIGN);
}

/* Bytes of (passes, T, B, width) reals. */
static size_t series_size(const struct cylstm_dims *dims, size_t passes, size_t T, size_t B,
                          size_t width)
{
    const size_t row = cylstm_times(width, (size_t)dims->bits / 8);
    return cylstm_times(cylstm_times(passes, row), cylstm_times(T, B));
}

size_t cylstm_tape_cells_size(const struct cylstm_dims *dims, size_t T, size_t B)
{
    const size_t step = cylstm_times(cylstm_cell_kind(dims)->shape.tape_vectors, dims->hidden);
    return cylstm_round_up(series_size(dims, dims->layers * dims->directions, T, B, step),
                           CYLSTM_ALIGN);
}

size_t cylstm_checkpoint_cells_size(const struct cylstm_dims *dims, size_t T, size_t B)
{
    const size_t cells = cylstm_cell_kind(dims)->shape.states > 1 ? dims->hidden : 0;
    return cylstm_round_up(series_size(dims, dims->layers * dims->directions, T, B, cells),
                           CYLSTM_ALIGN);
}

size_t cylstm_tape_hidden_size(const struct cylstm_dims *dims, size_t T, size_t B)
{
    return series_size(dims, dims->layers - 1, T, B, dims->directions * cylstm_hidden_width(dims));
}
