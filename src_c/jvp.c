/* jvp.c -- forward-mode derivatives: how a forward pass changes with what it was given.
 *
 * The tangent of a step's pre-activations,
 *
 *     da = [1, x, h] (db, dW) + [dx, dh] W            h: of the step before
 *
 * is two products with panels of the same kind, the second of which starts from the sums of the first
 * and is finished by the cell's tangent while hot. Gates and states are those that the tape has kept.
 * Layers and directions follow one another through all steps; threads share out the rows.
 */
#include "check.h"
#include "product.h"

#include <string.h>

/* Arrays that have a walk. */
enum { X, HIDDEN, TAPE, DX, DY, ARRAYS };

/* A value and its tangent. */
enum { VALUE, TANGENT, DUAL };

struct jvp {
    struct cylstm_call call;
    const struct cylstm_dims *dims;
    const struct cylstm_sequence *seq;
    struct cylstm_weights weights[DUAL]; /* the latter NULL for zeros */
    struct cylstm_order order;
    size_t shares;
    /* Padded, (B, .) each: states before a step, of which dh alternates, [s % 2] before step s; what a
     * second product is made with; a gate that waits for it; inputs after dropout. */
    void *h, *dh[2], *c[DUAL], *m[DUAL], *dz, *dropped[DUAL];
    void *sums;       /* of the first product, in panel order */
    void *norm_sums;  /* (B, 4 H): of a cell that waits for whole rows; else NULL */
    void *between[2]; /* (T, B, D*R): dy of inner layers */
    ptrdiff_t *offset[ARRAYS];
    /* the layer and direction of now */
    struct cylstm_layer l;
    size_t layer, direction;
    struct cylstm_walk walk[ARRAYS];
    const unsigned char *reset;
    struct cylstm_zoneout zoneout; /* p is 0: none */
};

/* Columns of the sums of any product of a layer: their rows are as far apart in all of them, since
 * threads share them out. */
static size_t sums_width(const struct cylstm_layer *l)
{
    return cylstm_larger(l->w.columns, cylstm_larger(l->second.columns, l->P));
}

static struct cylstm_rows padded(const struct jvp *j, void *base, size_t width, size_t r0)
{
    const size_t stride = cylstm_stride(j->call.kernels, width);
    if (!base) return (struct cylstm_rows){NULL, NULL, 0};
    return (struct cylstm_rows){cylstm_at(base, j->call.real_size, (ptrdiff_t)(r0 * stride)), NULL,
                                (ptrdiff_t)stride};
}

static struct cylstm_rows walked(const struct jvp *j, int array, size_t s, size_t r0)
{
    return cylstm_walk_rows(&j->walk[array], j->call.real_size, r0, s);
}

/* ------------------------------------------------------------------------- one step */

/* Rows and their tangents. */
struct dual {
    struct cylstm_rows at[DUAL];
};

/* x or dx of rows [r0, r0 + n), above the first layer after dropout, which has a mask for both. */
static struct cylstm_rows inputs(const struct jvp *j, int which, size_t s, size_t r0, size_t n)
{
    const struct cylstm_walk *walk = &j->walk[which == TANGENT ? DX : X];
    const struct cylstm_rows rows = padded(j, j->dropped[which], j->l.I, r0);
    const struct cylstm_dropout dropout = cylstm_layer_dropout(j->seq->tape, j->layer);
    if (!j->layer || !(dropout.p > 0)) return cylstm_walk_rows(walk, j->call.real_size, r0, s);
    for (size_t r = r0; r < r0 + n; r++) {
        const size_t t = j->direction ? cylstm_row_length(&j->order, r) - 1 - s : s,
                     element = (t * j->order.B + cylstm_batch_row(&j->order, r)) * j->l.I;
        j->call.kernels->dropout(
            &dropout, element, j->l.I,
            cylstm_at(walk->base, j->call.real_size, cylstm_walk_offset(walk, r, s)),
            cylstm_at(rows.base, j->call.real_size, (ptrdiff_t)(r - r0) * rows.stride));
    }
    return rows;
}

/* A product with the matrix of one step, for rows [r0, r0 + n): of x, of which some meet no column,
 * and of h, or what replaces it; as far as they are there. */
static struct cylstm_job start_product(const struct jvp *j, const struct cylstm_matrix *matrix,
                                       const struct dual *x, const struct dual *h, int which,
                                       size_t n)
{
    const struct cylstm_range all = {0, cylstm_panels_of(j->call.kernels, matrix->columns)};
    struct cylstm_job job;
    cylstm_start_job(&job, &j->l, matrix, n, all);
    job.product.term[0] =
        (struct cylstm_term){x->at[which], 1, x->at[which].base ? matrix->first : 0, NULL, 0};
    job.product.term[1] = (struct cylstm_term){
        h->at[which], 1, h->at[which].base ? matrix->K - matrix->first : 0, NULL, 0};
    job.k[1] = matrix->first;
    return job;
}

static void multiply(struct jvp *j, int caller, const struct cylstm_matrix *matrix,
                     const struct dual *x, const struct dual *h, size_t r0, size_t n,
                     enum cylstm_cell_math math, const struct cylstm_cell *cell)
{
    struct cylstm_job job = start_product(j, matrix, x, h, TANGENT, n);
    job.product.init = cylstm_zeros;
    if (j->weights[TANGENT].packed) {
        struct cylstm_job first = start_product(j, matrix, x, h, VALUE, n);
        first.product.out = padded(j, j->sums, sums_width(&j->l), r0);
        first.product.out_panel = (ptrdiff_t)cylstm_panel_width(j->call.kernels);
        job.product.init = first.product.out.base;
        job.product.init_row = first.product.out.stride;
        job.product.init_panel = first.product.out_panel;
        cylstm_multiply_weights(&j->call, caller, &j->weights[TANGENT], &first, NULL);
    }
    job.product.finish = j->call.kernels->tangent[math];
    job.product.cell = *cell;
    cylstm_multiply_weights(&j->call, caller, &j->weights[VALUE], &job, NULL);
}

/* An array that is met unit by unit, or its tangent; NULL for zeros. */
static const void *find_vector(const struct jvp *j, int which, enum cylstm_array_type type)
{
    if (!j->weights[which].packed) return NULL;
    return cylstm_find_vector(&j->call, &j->weights[which], &j->l, 0, type);
}

/* A cell and its tangent, which a product finishes for rows from r0 on. `last`: with dh_t. */
static void place_cells(const struct jvp *j, const struct cylstm_panels *gates, size_t s, size_t r0,
                        int last, struct cylstm_cell cell[DUAL])
{
    const struct cylstm_layer *l = &j->l;
    for (int n = 0; n < DUAL; n++) {
        cell[n] = (struct cylstm_cell){0};
        cylstm_start_cell(&cell[n], l, gates);
        cell[n].options = &l->options;
        if (j->dims->peephole) cell[n].peep = find_vector(j, n, CYLSTM_WEIGHT_PEEP);
        if (l->kind->norm && j->weights[n].packed)
            cylstm_find_norm(&j->call, &j->weights[n], l, 0, &cell[n]);
        if (!last) cell[n].h = padded(j, j->m[n], l->H, r0);
    }
    cell[VALUE].tape = walked(j, TAPE, s, r0);
    cell[VALUE].h_prev = padded(j, j->h, l->R, r0);
    cell[VALUE].c_prev = padded(j, j->c[VALUE], l->H, r0);
    cell[VALUE].tangent = &cell[TANGENT];
    cell[TANGENT].h_prev = padded(j, j->dh[s & 1], l->R, r0);
    cell[TANGENT].c = padded(j, j->c[TANGENT], l->H, r0);
    cell[TANGENT].z = padded(j, j->dz, l->H, r0);
    if (!last) return;
    cell[TANGENT].h = padded(j, j->dh[!(s & 1)], l->R, r0);
    cell[TANGENT].y = walked(j, DY, s, r0);
}

static void project(struct jvp *j, int caller, const struct dual *x, const struct dual *m, size_t s,
                    size_t r0, size_t n)
{
    const struct cylstm_cell tangent = {
        .H = j->l.P,
        .bias = j->dims->proj_bias ? find_vector(j, TANGENT, CYLSTM_BIAS_HR) : NULL,
        .h = padded(j, j->dh[!(s & 1)], j->l.R, r0),
        .y = walked(j, DY, s, r0)};
    const struct cylstm_cell cell = {.H = j->l.P,
                                     .unit_vectors = 1,
                                     .options = &j->l.options,
                                     .y = walked(j, HIDDEN, s, r0),
                                     .tangent = &tangent};
    multiply(j, caller, &j->l.hr, x, m, r0, n, CYLSTM_PROJECTION_MATH, &cell);
}

/* Zoneout, which is linear: of dh_t as of h_t. */
static void keep_some(const struct jvp *j, size_t s, size_t r0, size_t n)
{
    const struct cylstm_kernels *k = j->call.kernels;
    const struct cylstm_zoneout zoneout = cylstm_step_zoneout(&j->zoneout, &j->order, s, r0);
    const struct cylstm_cell cell = {.H = j->l.R,
                                     .unit_vectors = 1,
                                     .h_prev = padded(j, j->dh[s & 1], j->l.R, r0),
                                     .h = padded(j, j->dh[!(s & 1)], j->l.R, r0),
                                     .y = walked(j, DY, s, r0),
                                     .zoneout = &zoneout};
    for (size_t panel = 0; zoneout.p != 0 && panel < cylstm_panels_of(k, j->l.R); panel++)
        k->cell[CYLSTM_ZONEOUT_MATH][0].forward(&cell, panel, 0, n, NULL);
}

/* The sums of a cell that waits for whole rows, or those of x and those of h. */
static void keep_sums(struct jvp *j, int caller, const struct dual *x, const struct dual *h,
                      size_t r0, size_t n, struct cylstm_cell *cell)
{
    const struct cylstm_kernels *k = j->call.kernels;
    const struct cylstm_layer *l = &j->l;
    const size_t stride = cylstm_sums_stride(k, l), size = j->call.real_size;
    const struct dual none = {0};
    cell->sums = (struct cylstm_rows){cylstm_at(j->norm_sums, size, (ptrdiff_t)(r0 * stride)), NULL,
                                      (ptrdiff_t)stride};
    multiply(j, caller, &l->w, x, l->kind->apart ? &none : h, r0, n, CYLSTM_KEEP_MATH, cell);
    if (!l->kind->apart) return;
    cell->sums_h = cell->sums;
    cell->sums_h.base = cylstm_at(cell->sums.base, size, (ptrdiff_t)cylstm_sums_width(k, l));
    struct cylstm_cell of_h = *cell;
    of_h.sums = cell->sums_h;
    multiply(j, caller, &l->w, &none, h, r0, n, CYLSTM_KEEP_MATH, &of_h);
}

static void step(struct jvp *j, int caller, size_t s, size_t r0, size_t n)
{
    const struct cylstm_layer *l = &j->l;
    const struct dual x = {{inputs(j, VALUE, s, r0, n), inputs(j, TANGENT, s, r0, n)}},
                      h = {{padded(j, j->h, l->R, r0), padded(j, j->dh[s & 1], l->R, r0)}},
                      m = {{padded(j, j->m[VALUE], l->H, r0), padded(j, j->m[TANGENT], l->H, r0)}};
    struct cylstm_cell cell[DUAL];
    place_cells(j, l->w.gates, s, r0, !cylstm_has_second(l), cell);
    if (l->kind->norm) {
        keep_sums(j, caller, &x, &h, r0, n, &cell[VALUE]);
        j->call.kernels->norm[l->kind->norm_math].tangent(&cell[VALUE], n);
    } else {
        multiply(j, caller, &l->w, &x, &h, r0, n, l->w.gates->math, &cell[VALUE]);
    }
    if (l->P) project(j, caller, &x, &m, s, r0, n);
    if (l->second.columns) {
        place_cells(j, l->second.gates, s, r0, 1, cell);
        multiply(j, caller, &l->second, &x, &m, r0, n, l->second.gates->math, &cell[VALUE]);
    }
    keep_some(j, s, r0, n);
}

/* ------------------------------------------------------------------------- the states */

static void *row_at(const struct jvp *j, void *rows, size_t width, size_t r)
{
    return cylstm_at(rows, j->call.real_size,
                     (ptrdiff_t)(r * cylstm_stride(j->call.kernels, width)));
}

/* Zeros, where a reset stands before step s of row r. */
static void reset_row(const struct jvp *j, size_t s, size_t r)
{
    const size_t R = j->l.R * j->call.real_size, C = j->l.H * j->call.real_size;
    if (!cylstm_is_reset(j->reset, &j->order, r, s)) return;
    memset(row_at(j, j->h, j->l.R, r), 0, R);
    memset(row_at(j, j->dh[s & 1], j->l.R, r), 0, R);
    for (int n = 0; n < DUAL && j->c[n]; n++) memset(row_at(j, j->c[n], j->l.H, r), 0, C);
}

/* h and c after step s of row r, from the tape. */
static void keep_row(const struct jvp *j, size_t s, size_t r)
{
    const size_t size = j->call.real_size;
    const struct cylstm_walk *h = &j->walk[HIDDEN], *tape = &j->walk[TAPE];
    const ptrdiff_t cell = (ptrdiff_t)cylstm_tape_cell(j->seq->tape, &j->l);
    memcpy(row_at(j, j->h, j->l.R, r), cylstm_at(h->base, size, cylstm_walk_offset(h, r, s)),
           j->l.R * size);
    if (j->c[VALUE])
        memcpy(row_at(j, j->c[VALUE], j->l.H, r),
               cylstm_at(tape->base, size, cylstm_walk_offset(tape, r, s) + cell), j->l.H * size);
}

/* State n of those of all layers and directions, (B, width) each, into padded rows. */
static void load(const struct jvp *j, const void *states, size_t n, size_t width, void *rows)
{
    const size_t size = j->call.real_size, B = j->order.B;
    if (!rows) return;
    cylstm_load_rows(&j->order, size, width,
                     states ? cylstm_at(states, size, (ptrdiff_t)(n * B * width)) : NULL,
                     cylstm_stride(j->call.kernels, width), rows);
}

static void store(const struct jvp *j, void *states, size_t n, size_t width, void *rows, size_t r)
{
    const size_t size = j->call.real_size, row = n * j->order.B + cylstm_batch_row(&j->order, r);
    if (rows)
        memcpy(cylstm_at(states, size, (ptrdiff_t)(row * width)), row_at(j, rows, width, r),
               width * size);
}

/* ------------------------------------------------------------------------- the stack */

/* All steps of a layer and direction, for a share of the rows. */
static void run_rows(void *arg, size_t share, int caller)
{
    struct jvp *j = arg;
    const struct cylstm_range rows = cylstm_share_rows(&j->order, j->shares, share);
    for (size_t s = 0; s < j->order.T && !cylstm_stopped(&j->call); s++) {
        const size_t end = cylstm_active_rows(&j->order, rows.end, s);
        if (end <= rows.begin) return;
        for (size_t r = rows.begin; r < end; r++) reset_row(j, s, r);
        step(j, caller, s, rows.begin, end - rows.begin);
        for (size_t r = rows.begin; r < end; r++) keep_row(j, s, r);
    }
}

/* (T, B, width) between layers, or outside of them. */
static struct cylstm_walk inner(const struct jvp *j, int array, void *base, size_t column)
{
    const ptrdiff_t width = (ptrdiff_t)(j->dims->directions * j->l.R);
    return cylstm_make_walk(&j->order, j->call.real_size, (int)j->direction,
                            cylstm_at(base, j->call.real_size, (ptrdiff_t)column),
                            (ptrdiff_t)j->order.B * width, width, j->offset[array]);
}
static struct cylstm_walk outer(const struct jvp *j, int array, const void *base, size_t column,
                                ptrdiff_t t, ptrdiff_t b)
{
    void *first = base ? cylstm_at(base, j->call.real_size, (ptrdiff_t)column) : NULL;
    return cylstm_make_outer_walk(&j->order, j->call.real_size,
                                  cylstm_is_reverse(j->dims, j->direction), first, t, b,
                                  j->offset[array]);
}

static void place_walks(struct jvp *j, const struct cylstm_tangents *tangents)
{
    const struct cylstm_sequence *seq = j->seq;
    const size_t D = j->dims->directions, R = j->l.R, T = seq->T, B = seq->B,
                 size = j->call.real_size, column = j->direction * R, hidden = T * B * D * R,
                 cells = cylstm_tape_row(seq->tape, &j->l), n = j->layer * D + j->direction;
    if (j->layer) {
        void *below = cylstm_at(seq->tape->hidden, size, (ptrdiff_t)((j->layer - 1) * hidden));
        j->walk[X] = inner(j, X, below, 0);
        j->walk[DX] = inner(j, DX, j->between[(j->layer - 1) % 2], 0);
    } else {
        j->walk[X] = outer(j, X, seq->x, 0, seq->x_t, seq->x_b);
        j->walk[DX] = outer(j, DX, tangents->dx, 0, tangents->dx_t, tangents->dx_b);
    }
    if (j->layer + 1 < j->dims->layers) {
        void *own = cylstm_at(seq->tape->hidden, size, (ptrdiff_t)(j->layer * hidden));
        j->walk[HIDDEN] = inner(j, HIDDEN, own, column);
        j->walk[DY] = inner(j, DY, j->between[j->layer % 2], column);
    } else {
        j->walk[HIDDEN] = outer(j, HIDDEN, seq->y, column, seq->y_t, seq->y_b);
        j->walk[DY] = outer(j, DY, tangents->dy, column, tangents->dy_t, tangents->dy_b);
    }
    j->walk[TAPE] = outer(j, TAPE, seq->tape->cells, n * T * B * cells, (ptrdiff_t)(B * cells),
                          (ptrdiff_t)cells);
    j->reset = j->order.reset[cylstm_is_reverse(j->dims, j->direction)];
}

static void run_pass(struct jvp *j, struct cylstm_team *team,
                     const struct cylstm_tangents *tangents, size_t n)
{
    j->layer = n / j->dims->directions;
    j->direction = n % j->dims->directions;
    j->l = cylstm_find_layer(j->call.kernels, j->dims, j->layer, j->direction);
    j->zoneout = cylstm_pass_zoneout(j->dims, j->seq->tape, n);
    place_walks(j, tangents);
    load(j, j->seq->h_0, n, j->l.R, j->h);
    load(j, j->seq->c_0, n, j->l.H, j->c[VALUE]);
    load(j, tangents->dh_0, n, j->l.R, j->dh[0]);
    load(j, NULL, n, j->l.R, j->dh[1]);
    load(j, tangents->dc_0, n, j->l.H, j->c[TANGENT]);
    load(j, NULL, n, sums_width(&j->l), j->sums); /* a partial last vector is read whole */
    cylstm_run_phase(team, run_rows, j, j->shares);
    for (size_t r = 0; r < j->order.B; r++) {
        const size_t length = cylstm_row_length(&j->order, r);
        reset_row(j, length, r);
        store(j, tangents->dh_n, n, j->l.R, j->dh[length & 1], r);
        store(j, tangents->dc_n, n, j->l.H, j->c[TANGENT], r);
    }
}

/* Zeros where there is no step, or what dy shows there instead. */
static void clear_padding(const struct jvp *j, const struct cylstm_tangents *tangents)
{
    struct cylstm_sequence seq = *j->seq;
    const size_t D = j->dims->directions, R = j->l.R, size = j->call.real_size;
    seq.y_t = tangents->dy_t;
    seq.y_b = tangents->dy_b;
    cylstm_clear_padding(&seq, tangents->dy, seq.y_t, seq.y_b, D * R, size);
    for (size_t d = 0; seq.mask && seq.hold_output && d < D; d++)
        cylstm_hold_outputs(&seq, cylstm_is_reverse(j->dims, d),
                            cylstm_at(tangents->dy, size, (ptrdiff_t)(d * R)), R, size);
}

/* ------------------------------------------------------------------------ the whole call */

static void carve(struct cylstm_arena *arena, const struct cylstm_context *ctx,
                  const struct cylstm_dims *dims, const struct cylstm_sequence *seq, struct jvp *j)
{
    const struct cylstm_kernels *k = ctx->kernels;
    const size_t size = cylstm_real_size(k), B = seq->B, L = dims->layers;
    const struct cylstm_layer l =
        cylstm_find_layer(k, dims, L > 1, 0); /* but for I all are alike */
    const size_t R = cylstm_times(B, cylstm_stride(k, l.R)),
                 C = cylstm_times(B, cylstm_stride(k, l.H)),
                 between = cylstm_times(cylstm_times(seq->T, B), dims->directions * l.R);
    j->dims = dims;
    j->seq = seq;
    j->call.kernels = k;
    j->call.real_size = size;
    cylstm_carve_order(arena, &j->order, seq);
    j->h = cylstm_carve(arena, R, size);
    j->sums = cylstm_carve(arena, cylstm_times(B, cylstm_stride(k, sums_width(&l))), size);
    for (int n = 0; n < DUAL; n++) {
        j->dh[n] = cylstm_carve(arena, R, size);
        if (l.kind->shape.states > 1) j->c[n] = cylstm_carve(arena, C, size);
        if (cylstm_has_second(&l)) j->m[n] = cylstm_carve(arena, C, size);
        if (L > 1 && seq->tape->dropout > 0)
            j->dropped[n] = cylstm_carve(arena, cylstm_times(B, cylstm_stride(k, l.I)), size);
        if (L > 1) j->between[n] = cylstm_carve(arena, between, size);
    }
    if (l.second.columns) j->dz = cylstm_carve(arena, C, size);
    if (l.kind->norm)
        j->norm_sums = cylstm_carve(arena, cylstm_times(B, cylstm_sums_stride(k, &l)), size);
    for (int n = 0; n < ARRAYS; n++) j->offset[n] = cylstm_carve_outer_offsets(arena, seq);
}

size_t cylstm_jvp_scratch(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                          const struct cylstm_sequence *seq)
{
    struct cylstm_arena arena = {NULL, 0};
    struct jvp j = {0};
    CYLSTM_CHECK(cylstm_check_dims(ctx, dims));
    carve(&arena, ctx, dims, seq, &j);
    return arena.used;
}

void cylstm_jvp(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                const void *packed, const struct cylstm_sequence *seq,
                const struct cylstm_tangents *tangents, void *scratch)
{
    struct cylstm_arena arena = {scratch, 0};
    struct jvp j = {.weights = {{.packed = packed}, {.packed = tangents->dweights}}};
    CYLSTM_CHECK(cylstm_check_jvp(ctx, dims, packed, seq, tangents, scratch));
    carve(&arena, ctx, dims, seq, &j);
    cylstm_begin_call(&j.call, ctx);
    cylstm_sort_rows(&j.order, seq);
    const struct cylstm_sharing sharing =
        cylstm_share_flops(ctx, 2 * cylstm_forward_flops(dims, (double)seq->B * (double)j.order.T));
    struct cylstm_team team = cylstm_begin_team(sharing.threads, sharing.small);
    j.shares = seq->B < (size_t)team.threads ? seq->B : (size_t)team.threads;
    for (size_t n = 0; n < dims->layers * dims->directions && !cylstm_stopped(&j.call); n++)
        run_pass(&j, &team, tangents, n);
    cylstm_end_team(&team);
    if (!cylstm_stopped(&j.call)) clear_padding(&j, tangents);
    cylstm_end_call(&j.call);
}
