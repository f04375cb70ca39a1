/* forward.c -- the forward pass: who computes which rows or units of which step.
 *
 * A pass is one layer in one direction. Its step is one product, [1, x_t, h_{t-1}] by
 * the packed gates, finished by the cell while hot. Where few rows share a step, the
 * input product of many steps is merged beforehand, and a step starts from its sums; the
 * bits are the same, since a sum is one chain over k either way.
 *
 * Layers that look one way go through time together, block by block, so that what
 * lies between them is never longer than a block. Bidirectional layers wait for one
 * another, each reading the whole of what is below it.
 *
 * Nothing here computes: this file moves pointers, and the kernels do the arithmetic.
 */
#include "sequence.h"
#include "weights.h"

#include <string.h>

enum {
    MERGE_ROWS = 48, /* rows of a merged input product */
    BLAS_MERGE_ROWS = 256,
    MERGE_INPUTS = 4,        /* fewer inputs than this are cheaper unmerged */
    BLOCK_BYTES = 256 << 10, /* of one layer's output, between layers */
    PLAN_STEPS = 16          /* a plan's block */
};

/* Zero sums for a product that starts from nothing. */
static const _Alignas(CYLSTM_ALIGN) double zeros[PANEL_VECTORS * MAX_VL];

struct pass {
    struct cylstm_layer l;
    struct cylstm_walk x, y, tape; /* (T, B, I), (T, B, D*R) at this direction, (T, B, 5, H) */
    void *h[2];                    /* (B, R) padded: step s reads h[s % 2] and writes the other */
    void *c;                       /* (B, H) padded */
    void *m;                       /* (B, H) padded: h before its projection */
};

/* One thread's own memory. */
struct lane {
    void *xg;          /* (merge_rows, columns) padded: merged input products, in panel order */
    ptrdiff_t *offset; /* (merge_rows): where their rows of x start */
    void *panels;      /* for weights that have not been packed */
};

struct forward {
    struct cylstm_call call;
    const struct cylstm_dims *dims;
    struct cylstm_weights weights;
    const struct cylstm_tape *tape;
    struct cylstm_order order;
    struct pass *pass; /* (L * D) */
    struct lane *lane; /* (lanes) */
    size_t lanes, merge_rows;
    size_t parity;                        /* of the steps already done, for plans */
    const ptrdiff_t *h_offset, *c_offset; /* rows of the states; NULL: all, in order */
    void *between[2]; /* (block, B, D*R): outputs of inner layers, in inference */
    void *dropped;    /* (block, B, D*R): an inner layer's output after dropout */
    size_t block;     /* steps that a unidirectional stack takes together */
    ptrdiff_t *x_offset[2], *inner_offset[2], *y_offset[2], *tape_offset[2];
    /* the piece of work that the threads share now */
    struct cylstm_split split;
    struct cylstm_team team;
    size_t layer_begin, layer_end, step_begin, step_end, direction;
    struct cylstm_range chunk; /* unit split: steps whose input product is merged */
    const size_t *chunk_rows;
};

/* --------------------------------------------------------------------- one step */

static struct cylstm_rows state_rows(const struct forward *f, void *state, size_t width, size_t r0,
                                     const ptrdiff_t *offset)
{
    const size_t stride = cylstm_stride(f->call.kernels, width);
    if (offset) return (struct cylstm_rows){state, offset + r0, 0};
    return (struct cylstm_rows){cylstm_at(state, f->call.real_size, (ptrdiff_t)(r0 * stride)), NULL,
                                (ptrdiff_t)stride};
}

static size_t xg_stride(const struct forward *f, const struct pass *p)
{
    return p->l.gates.columns + f->call.kernels->lanes;
}

/* The gates' product, as far as it is the same for a step and for merged inputs. */
static struct cylstm_product gates_product(const struct forward *f, const struct pass *p,
                                           size_t rows, struct cylstm_range panels)
{
    const size_t width = cylstm_panel_width(f->call.kernels);
    const struct cylstm_matrix *gates = &p->l.gates;
    const void *w = cylstm_at(f->weights.packed, f->call.real_size, (ptrdiff_t)gates->at);
    return (struct cylstm_product){
        .rows = rows,
        .panel_begin = panels.begin,
        .panel_end = panels.end,
        .columns = gates->columns,
        .w_panel = (ptrdiff_t)(gates->K * width),
        .w_k = (ptrdiff_t)width,
        .init = w, /* the row of biases */
        .init_panel = (ptrdiff_t)(gates->K * width),
        .term[0] = {.a_k = 1, .K = p->l.I, .w = cylstm_at(w, f->call.real_size, (ptrdiff_t)width)},
    };
}

/* One step of rows [r0, r0 + n): from x, or from the sums `xg` (n, columns) where they are given. */
static void step(struct forward *f, int caller, const struct pass *p, const struct lane *lane,
                 size_t s, size_t r0, size_t n, struct cylstm_range panels, const void *xg)
{
    const size_t size = f->call.real_size, width = cylstm_panel_width(f->call.kernels);
    const size_t now = (s + f->parity) & 1;
    struct cylstm_product g = gates_product(f, p, n, panels);
    if (xg) {
        g.init = xg;
        g.init_panel = (ptrdiff_t)width;
        g.init_row = (ptrdiff_t)xg_stride(f, p);
        g.term[0].K = 0;
    } else {
        g.term[0].a = cylstm_walk_rows(&p->x, size, r0, s);
    }
    g.term[1] = (struct cylstm_term){
        .a = state_rows(f, p->h[now], p->l.R, r0, f->h_offset),
        .a_k = 1,
        .K = p->l.R,
        .w = cylstm_at(f->weights.packed, size, (ptrdiff_t)(p->l.gates.at + (1 + p->l.I) * width)),
    };
    /* Every other step takes the panels last to first: a sweep that does not fit its cache
     * then finds its most recent part still there. */
    g.turned = (int)now;
    g.finish = CYLSTM_CELL_FORWARD;
    g.cell.H = p->l.H;
    g.cell.c = state_rows(f, p->c, p->l.H, r0, f->c_offset);
    if (p->l.P) {
        g.cell.h = state_rows(f, p->m, p->l.H, r0, NULL);
    } else {
        g.cell.h = state_rows(f, p->h[!now], p->l.R, r0, f->h_offset);
        g.cell.y = cylstm_walk_rows(&p->y, size, r0, s);
    }
    g.cell.tape = cylstm_walk_rows(&p->tape, size, r0, s);
    cylstm_multiply_weights(&f->call, caller, &g, &f->weights, &p->l, &p->l.gates, lane->panels);
}

/* h = W_hr m for rows [r0, r0 + n) of step s, and its copy to y. */
static void project(struct forward *f, int caller, const struct pass *p, const struct lane *lane,
                    size_t s, size_t r0, size_t n, struct cylstm_range panels)
{
    const size_t size = f->call.real_size, width = cylstm_panel_width(f->call.kernels);
    const struct cylstm_rows h =
        state_rows(f, p->h[!((s + f->parity) & 1)], p->l.R, r0, f->h_offset);
    const struct cylstm_rows y = cylstm_walk_rows(&p->y, size, r0, s);
    const struct cylstm_product project = {
        .rows = n,
        .panel_begin = panels.begin,
        .panel_end = panels.end,
        .columns = p->l.P,
        .w_panel = (ptrdiff_t)(p->l.H * width),
        .w_k = (ptrdiff_t)width,
        .init = zeros,
        .term[0] = {.a = state_rows(f, p->m, p->l.H, r0, NULL),
                    .a_k = 1,
                    .K = p->l.H,
                    .w = cylstm_at(f->weights.packed, size, (ptrdiff_t)p->l.hr.at)},
        .finish = CYLSTM_STORE,
        .out = h,
        .out_panel = (ptrdiff_t)width,
    };
    cylstm_multiply_weights(&f->call, caller, &project, &f->weights, &p->l, &p->l.hr, lane->panels);
    const size_t first = panels.begin * width,
                 end = panels.end * width < p->l.P ? panels.end * width : p->l.P;
    for (size_t r = 0; r < n; r++)
        memcpy(cylstm_at(y.base, size,
                         (y.offset ? y.offset[r] : (ptrdiff_t)r * y.stride) + (ptrdiff_t)first),
               cylstm_at(h.base, size,
                         (h.offset ? h.offset[r] : (ptrdiff_t)r * h.stride) + (ptrdiff_t)first),
               (end - first) * size);
}

static struct cylstm_range gate_panels(const struct forward *f, const struct pass *p)
{
    return (struct cylstm_range){0, cylstm_panels_of(f->call.kernels, p->l.gates.columns)};
}

static struct cylstm_range projection_panels(const struct forward *f, const struct pass *p)
{
    return (struct cylstm_range){0, cylstm_panels_of(f->call.kernels, p->l.P)};
}

/* ------------------------------------------------------- the merged input product */

/* Raw weights are not: each of the two products would pack whole panels. */
static int is_merged(const struct forward *f, const struct pass *p, size_t rows, size_t steps)
{
    if (f->weights.raw || steps < 2 || p->l.I < MERGE_INPUTS) return 0;
    const int blas = f->call.ctx->sgemm || f->call.ctx->dgemm; /* more rows suit it always */
    return blas ? rows <= f->merge_rows : rows < f->call.kernels->tile_rows;
}

/* The end of the chunk of steps from s whose inputs are merged, of at most merge_rows rows. */
static size_t chunk_end(const struct forward *f, size_t rows, size_t s, size_t end)
{
    const size_t steps = rows < f->merge_rows ? f->merge_rows / rows : 1;
    return end - s < steps ? end : s + steps;
}

/* Where the rows [r0, r1) of the chunk's steps start in x, all in a row. Returns how many. */
static size_t list_rows(const struct forward *f, const struct pass *p, struct lane *lane,
                        struct cylstm_range chunk, size_t r0, size_t r1)
{
    size_t count = 0;
    for (size_t s = chunk.begin; s < chunk.end; s++) {
        const size_t end = cylstm_active_rows(&f->order, r1, s);
        for (size_t r = r0; r < end; r++) lane->offset[count++] = cylstm_walk_offset(&p->x, r, s);
    }
    return count;
}

static void merge_inputs(struct forward *f, int caller, const struct pass *p,
                         const struct lane *lane, size_t rows, struct cylstm_range panels)
{
    struct cylstm_product g = gates_product(f, p, rows, panels);
    g.term[0].a = (struct cylstm_rows){p->x.base, lane->offset, 0};
    g.finish = CYLSTM_STORE;
    g.out = (struct cylstm_rows){lane->xg, NULL, (ptrdiff_t)xg_stride(f, p)};
    g.out_panel = (ptrdiff_t)cylstm_panel_width(f->call.kernels);
    cylstm_multiply(&f->call, caller, &g);
}

/* ------------------------------------------------ rows and directions, split by thread */

static void run_steps(struct forward *f, int caller, const struct pass *p, struct lane *lane,
                      size_t r0, size_t r1)
{
    const struct cylstm_range all = gate_panels(f, p), projected = projection_panels(f, p);
    struct cylstm_range chunk = {f->step_begin, f->step_begin};
    size_t done = 0; /* rows of the chunk behind us */
    for (size_t s = f->step_begin; s < f->step_end && !cylstm_stopped(&f->call); s++) {
        const size_t end = cylstm_active_rows(&f->order, r1, s);
        if (end <= r0) return;
        const size_t n = end - r0;
        if (s == chunk.end && is_merged(f, p, n, f->step_end - s)) {
            chunk = (struct cylstm_range){s, chunk_end(f, n, s, f->step_end)};
            merge_inputs(f, caller, p, lane, list_rows(f, p, lane, chunk, r0, r1), all);
            done = 0;
        }
        const int merged = s < chunk.end;
        if (!merged) chunk.end = s + 1;
        step(f, caller, p, lane, s, r0, n, all,
             merged ? cylstm_at(lane->xg, f->call.real_size, (ptrdiff_t)(done * xg_stride(f, p)))
                    : NULL);
        if (p->l.P) project(f, caller, p, lane, s, r0, n, projected);
        done += n;
    }
}

/* Dropout of layer - 1's output into this layer's input, rows [r0, r1). */
static void drop_rows(struct forward *f, size_t layer, size_t r0, size_t r1)
{
    const size_t D = f->dims->directions, width = D * cylstm_hidden_width(f->dims), B = f->order.B;
    const struct cylstm_dropout drop = cylstm_layer_dropout(f->tape, layer);
    const struct cylstm_walk *out = &f->pass[layer * D].x;
    const struct cylstm_walk *in = &f->pass[(layer - 1) * D].y;
    for (size_t s = f->step_begin; s < f->step_end; s++) {
        const size_t end = cylstm_active_rows(&f->order, r1, s);
        for (size_t r = r0; r < end; r++)
            f->call.kernels->dropout(
                &drop, (s * B + cylstm_batch_row(&f->order, r)) * width, width,
                cylstm_at(in->base, f->call.real_size, cylstm_walk_offset(in, r, s)),
                cylstm_at(out->base, f->call.real_size, cylstm_walk_offset(out, r, s)));
    }
}

static void run_rows(void *arg, size_t share, int caller)
{
    struct forward *f = arg;
    const size_t D = f->dims->directions;
    const struct cylstm_split *split = &f->split;
    const struct cylstm_range rows =
        cylstm_share_rows(&f->order, split->rows, share / split->directions);
    const struct cylstm_range directions =
        cylstm_share(D, split->directions, share % split->directions);
    for (size_t layer = f->layer_begin; layer < f->layer_end; layer++) {
        if (layer && f->dropped && D == 1) drop_rows(f, layer, rows.begin, rows.end);
        for (size_t d = directions.begin; d < directions.end; d++)
            run_steps(f, caller, &f->pass[layer * D + d], &f->lane[share], rows.begin, rows.end);
    }
}

static void drop_all(void *arg, size_t share, int caller)
{
    struct forward *f = arg;
    const struct cylstm_range rows =
        cylstm_share_rows(&f->order, f->split.rows * f->split.directions, share);
    (void)caller;
    drop_rows(f, f->layer_begin, rows.begin, rows.end);
}

/* ------------------------------------------------------------- units, split by thread */

/* The xg of the first lane is everybody's here: each thread fills its own panels of it. */
static void run_units(void *arg, size_t share, int caller)
{
    struct forward *f = arg;
    const struct pass *p = &f->pass[f->layer_begin * f->dims->directions + f->direction];
    const struct cylstm_range panels =
        cylstm_share(gate_panels(f, p).end, (size_t)f->split.threads, share);
    const size_t s = f->step_begin, n = cylstm_active_rows(&f->order, f->order.B, s);
    const void *xg = NULL;
    if (f->chunk_rows) {
        if (s == f->chunk.begin) merge_inputs(f, caller, p, f->lane, f->chunk_rows[1], panels);
        xg = cylstm_at(f->lane->xg, f->call.real_size,
                       (ptrdiff_t)(f->chunk_rows[0] * xg_stride(f, p)));
    }
    step(f, caller, p, &f->lane[share], s, 0, n, panels, xg);
}

static void run_projected(void *arg, size_t share, int caller)
{
    struct forward *f = arg;
    const struct pass *p = &f->pass[f->layer_begin * f->dims->directions + f->direction];
    const struct cylstm_range panels =
        cylstm_share(projection_panels(f, p).end, (size_t)f->split.threads, share);
    const size_t s = f->step_begin;
    project(f, caller, p, &f->lane[share], s, 0, cylstm_active_rows(&f->order, f->order.B, s),
            panels);
}

/* All steps of one pass from f->step_begin to `end`, a phase for each. */
static void run_pass_by_units(struct forward *f, const struct pass *p, size_t end)
{
    const size_t begin = f->step_begin;
    size_t rows[2] = {0, 0}; /* of the chunk: behind us, in all */
    f->chunk = (struct cylstm_range){begin, begin};
    for (size_t s = begin; s < end && !cylstm_stopped(&f->call); s++) {
        const size_t n = cylstm_active_rows(&f->order, f->order.B, s);
        if (!n) break;
        f->step_begin = s;
        if (s == f->chunk.end) {
            f->chunk_rows = NULL;
            f->chunk.end = s + 1;
            if (is_merged(f, p, n, end - s)) {
                f->chunk = (struct cylstm_range){s, chunk_end(f, n, s, end)};
                rows[0] = 0;
                rows[1] = list_rows(f, p, f->lane, f->chunk, 0, f->order.B);
                f->chunk_rows = rows;
            }
        }
        cylstm_run_phase(&f->team, run_units, f, (size_t)f->split.threads);
        if (p->l.P) cylstm_run_phase(&f->team, run_projected, f, (size_t)f->split.threads);
        rows[0] += n;
    }
    f->chunk_rows = NULL;
    f->step_begin = begin;
}

/* ----------------------------------------------------------------------- the stack */

/* Inner arrays hold one block, at step_begin's place: shift their base so that a walk
 * counts from step 0. */
static void place_block(struct forward *f)
{
    const size_t D = f->dims->directions, width = D * cylstm_hidden_width(f->dims),
                 L = f->dims->layers;
    const size_t first = D == 1 ? f->step_begin : 0;
    const ptrdiff_t t = (ptrdiff_t)(f->order.B * width), b = (ptrdiff_t)width;
    const size_t size = f->call.real_size;
    if (!f->between[0] && !f->dropped) return;
    for (size_t layer = f->layer_begin; layer < f->layer_end; layer++)
        for (size_t d = 0; d < D; d++) {
            struct pass *p = &f->pass[layer * D + d];
            const ptrdiff_t column = (ptrdiff_t)(d * p->l.R), back = -(ptrdiff_t)first * t;
            if (layer + 1 < L && f->between[0])
                p->y = cylstm_make_walk(&f->order, size, (int)d,
                                        cylstm_at(f->between[layer % 2], size, back + column), t, b,
                                        f->inner_offset[d]);
            if (layer && (f->dropped || f->between[0]))
                p->x = cylstm_make_walk(
                    &f->order, size, (int)d,
                    cylstm_at(f->dropped ? f->dropped : f->between[(layer - 1) % 2], size, back), t,
                    b, f->inner_offset[d]);
        }
}

/* Layers [begin, end) over steps [s, s_end). */
static void run_block(struct forward *f, size_t layer_begin, size_t layer_end, size_t s,
                      size_t s_end)
{
    f->layer_begin = layer_begin;
    f->layer_end = layer_end;
    f->step_begin = s;
    f->step_end = s_end;
    place_block(f);
    if (!f->split.by_units) {
        cylstm_run_phase(&f->team, run_rows, f, f->split.directions * f->split.rows);
        return;
    }
    for (size_t layer = layer_begin; layer < layer_end; layer++) {
        if (layer && f->dropped && f->dims->directions == 1) drop_rows(f, layer, 0, f->order.B);
        f->layer_begin = layer;
        for (f->direction = 0; f->direction < f->dims->directions; f->direction++)
            run_pass_by_units(f, &f->pass[layer * f->dims->directions + f->direction], s_end);
    }
}

double cylstm_forward_flops(const struct cylstm_dims *dims, double rows)
{
    const double R = (double)cylstm_hidden_width(dims), H = (double)dims->hidden,
                 D = (double)dims->directions;
    const double first = 8 * H * ((double)dims->input + R) + 2 * H * (double)dims->proj;
    const double other = 8 * H * (D * R + R) + 2 * H * (double)dims->proj;
    return rows * D * (first + (double)(dims->layers - 1) * other);
}

static void run(struct forward *f, size_t T)
{
    const size_t L = f->dims->layers, D = f->dims->directions;
    const struct pass *last = &f->pass[(L - 1) * D];
    const size_t threads = f->call.ctx->threads > 1 ? (size_t)f->call.ctx->threads : 1;
    const size_t K = is_merged(f, last, f->order.B / threads, T) ? last->l.R : last->l.gates.K;
    const double rows = (double)f->order.B * (double)T + (f->weights.raw ? ROWS_FOR_WEIGHTS : 0);
    f->split = cylstm_split_work(f->call.ctx, f->dims, f->order.B, rows, gate_panels(f, last).end,
                                 last->l.gates.columns * K + last->l.P * last->l.H, 1);
    f->team = cylstm_begin_team(f->split.threads, f->split.small);
    const size_t together = D == 1 ? L : 1; /* layers that share a block */
    for (size_t layer = 0; layer < L; layer += together) {
        if (layer && f->dropped && D == 2) {
            f->layer_begin = layer;
            f->layer_end = layer + 1;
            f->step_begin = 0;
            f->step_end = T;
            place_block(f);
            cylstm_run_phase(&f->team, drop_all, f, f->split.directions * f->split.rows);
        }
        for (size_t s = 0; s < T && !cylstm_stopped(&f->call); s += f->block)
            run_block(f, layer, layer + together, s, T - s < f->block ? T : s + f->block);
    }
    cylstm_end_team(&f->team);
}

/* ------------------------------------------------------------------- whole sequences */

static size_t block_steps(const struct cylstm_dims *dims, size_t B, size_t T, size_t real_size)
{
    const size_t bytes = B * dims->directions * cylstm_hidden_width(dims) * real_size;
    const size_t steps = bytes < BLOCK_BYTES / 4 ? BLOCK_BYTES / bytes : 4;
    return steps < T ? steps : T;
}

static void carve_pass(struct cylstm_arena *arena, const struct cylstm_kernels *k, size_t B,
                       struct pass *p)
{
    const size_t size = cylstm_real_size(k);
    const size_t R = cylstm_stride(k, p->l.R), H = cylstm_stride(k, p->l.H);
    p->h[0] = cylstm_carve(arena, B * R, size);
    p->h[1] = cylstm_carve(arena, B * R, size);
    p->c = cylstm_carve(arena, B * H, size);
    p->m = p->l.P ? cylstm_carve(arena, B * H, size) : NULL;
}

static void carve_lanes(struct cylstm_arena *arena, const struct cylstm_dims *dims,
                        struct forward *f)
{
    const size_t panels = f->weights.raw ? cylstm_panel_room(f->call.kernels, dims, 0) : 0;
    const struct cylstm_kernels *k = f->call.kernels;
    const int blas = f->call.ctx->sgemm || f->call.ctx->dgemm;
    f->lanes = blas || f->call.ctx->threads < 1 ? 1 : (size_t)f->call.ctx->threads;
    f->merge_rows = blas ? BLAS_MERGE_ROWS : MERGE_ROWS;
    f->lane = cylstm_carve(arena, f->lanes, sizeof *f->lane);
    for (size_t n = 0; n < f->lanes; n++) {
        struct lane lane;
        lane.xg = cylstm_carve(
            arena, f->merge_rows * (cylstm_round_up(4 * dims->hidden, k->lanes) + k->lanes),
            cylstm_real_size(k));
        lane.offset = cylstm_carve(arena, f->merge_rows, sizeof(ptrdiff_t));
        lane.panels = cylstm_carve(arena, panels, 1);
        if (arena->base) f->lane[n] = lane;
    }
}

/* All memory of a forward call. */
static void carve_forward(struct cylstm_arena *arena, const struct cylstm_context *ctx,
                          const struct cylstm_dims *dims, const struct cylstm_sequence *seq,
                          struct forward *f)
{
    const size_t L = dims->layers, D = dims->directions, size = cylstm_real_size(ctx->kernels);
    const size_t width = D * cylstm_hidden_width(dims);
    f->dims = dims;
    f->weights.raw = seq->raw;
    f->tape = seq->tape;
    f->call.ctx = ctx;
    f->call.kernels = ctx->kernels;
    f->call.real_size = size;
    cylstm_carve_order(arena, &f->order, seq);
    f->pass = cylstm_carve(arena, L * D, sizeof *f->pass);
    for (size_t n = 0; n < L * D; n++) {
        struct pass p = {.l = cylstm_find_layer(ctx->kernels, dims, n / D, n % D)};
        carve_pass(arena, ctx->kernels, seq->B, &p);
        if (arena->base) f->pass[n] = p;
    }
    carve_lanes(arena, dims, f);
    for (size_t d = 0; d < D; d++) {
        f->x_offset[d] = cylstm_carve_offsets(arena, seq);
        f->inner_offset[d] = cylstm_carve_offsets(arena, seq);
        f->y_offset[d] = cylstm_carve_offsets(arena, seq);
        f->tape_offset[d] = seq->tape ? cylstm_carve_offsets(arena, seq) : NULL;
    }
    f->block = block_steps(dims, seq->B, seq->T, size);
    const size_t inner = (D == 1 ? f->block : seq->T) * seq->B * width;
    if (L > 1 && !seq->tape)
        for (int n = 0; n < 2; n++)
            f->between[n] = L > 2 || n == 0 ? cylstm_carve(arena, inner, size) : NULL;
    if (L > 1 && seq->tape && seq->tape->dropout > 0) f->dropped = cylstm_carve(arena, inner, size);
}

size_t cylstm_forward_scratch(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                              const struct cylstm_sequence *seq)
{
    struct cylstm_arena arena = {NULL, 0};
    struct forward f = {0};
    carve_forward(&arena, ctx, dims, seq, &f);
    return arena.used;
}

static void place_walks(struct forward *f, const struct cylstm_sequence *seq)
{
    const size_t L = f->dims->layers, D = f->dims->directions, H = f->dims->hidden, B = seq->B;
    const size_t width = D * cylstm_hidden_width(f->dims), size = f->call.real_size;
    const ptrdiff_t t = (ptrdiff_t)(B * width), b = (ptrdiff_t)width;
    const size_t cells = TAPE_VECTORS * H;
    for (size_t n = 0; n < L * D; n++) {
        struct pass *p = &f->pass[n];
        const size_t layer = n / D, d = n % D;
        const ptrdiff_t column = (ptrdiff_t)(d * p->l.R);
        if (!layer)
            p->x = cylstm_make_walk(&f->order, size, (int)d, (void *)(uintptr_t)seq->x, seq->x_t,
                                    seq->x_b, f->x_offset[d]);
        if (layer + 1 == L)
            p->y = cylstm_make_walk(&f->order, size, (int)d, cylstm_at(seq->y, size, column),
                                    seq->y_t, seq->y_b, f->y_offset[d]);
        if (!seq->tape) continue;
        p->tape =
            cylstm_make_walk(&f->order, size, (int)d,
                             cylstm_at(seq->tape->cells, size, (ptrdiff_t)(n * seq->T * B * cells)),
                             (ptrdiff_t)(B * cells), (ptrdiff_t)cells, f->tape_offset[d]);
        if (layer + 1 < L)
            p->y = cylstm_make_walk(&f->order, size, (int)d,
                                    cylstm_at(seq->tape->hidden, size,
                                              (ptrdiff_t)layer * (ptrdiff_t)seq->T * t + column),
                                    t, b, f->inner_offset[d]);
        if (layer)
            p->x = cylstm_make_walk(
                &f->order, size, (int)d,
                cylstm_at(seq->tape->hidden, size, (ptrdiff_t)(layer - 1) * (ptrdiff_t)seq->T * t),
                t, b, f->inner_offset[d]);
    }
}

/* The last states, each from its row's own last step, and zeros past the lengths. */
static void finish_states(const struct forward *f, const struct cylstm_sequence *seq)
{
    const size_t L = f->dims->layers, D = f->dims->directions, size = f->call.real_size, B = seq->B;
    const struct cylstm_kernels *k = f->call.kernels;
    for (size_t n = 0; n < L * D; n++) {
        const struct pass *p = &f->pass[n];
        for (size_t r = 0; r < B; r++) {
            const size_t b = n * B + cylstm_batch_row(&f->order, r),
                         last = cylstm_row_length(&f->order, r) & 1;
            memcpy(cylstm_at(seq->h_n, size, (ptrdiff_t)(b * p->l.R)),
                   cylstm_at(p->h[last], size, (ptrdiff_t)(r * cylstm_stride(k, p->l.R))),
                   p->l.R * size);
            memcpy(cylstm_at(seq->c_n, size, (ptrdiff_t)(b * p->l.H)),
                   cylstm_at(p->c, size, (ptrdiff_t)(r * cylstm_stride(k, p->l.H))), p->l.H * size);
        }
        if (seq->tape) {
            const size_t cells = TAPE_VECTORS * p->l.H;
            cylstm_clear_padding(
                seq, cylstm_at(seq->tape->cells, size, (ptrdiff_t)(n * seq->T * B * cells)),
                (ptrdiff_t)(B * cells), (ptrdiff_t)cells, cells, size);
        }
    }
    cylstm_clear_padding(seq, seq->y, seq->y_t, seq->y_b, D * cylstm_hidden_width(f->dims), size);
}

void cylstm_forward(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                    const void *packed, const struct cylstm_sequence *seq, void *scratch)
{
    struct cylstm_arena arena = {scratch, 0};
    struct forward f = {.weights.packed = seq->raw ? NULL : packed};
    carve_forward(&arena, ctx, dims, seq, &f);
    cylstm_begin_call(&f.call, ctx);
    cylstm_sort_rows(&f.order, seq);
    place_walks(&f, seq);
    const size_t LD = dims->layers * dims->directions, size = f.call.real_size;
    for (size_t n = 0; n < LD; n++) {
        const struct pass *p = &f.pass[n];
        const size_t R = cylstm_stride(ctx->kernels, p->l.R),
                     H = cylstm_stride(ctx->kernels, p->l.H);
        cylstm_load_rows(&f.order, size, p->l.R,
                         seq->h_0 ? cylstm_at(seq->h_0, size, (ptrdiff_t)(n * seq->B * p->l.R))
                                  : NULL,
                         R, p->h[0]);
        memset(p->h[1], 0, seq->B * R * size);
        cylstm_load_rows(
            &f.order, size, p->l.H,
            seq->c_0 ? cylstm_at(seq->c_0, size, (ptrdiff_t)(n * seq->B * p->l.H)) : NULL, H, p->c);
        if (p->m) memset(p->m, 0, seq->B * H * size);
    }
    run(&f, f.order.T);
    if (!cylstm_stopped(&f.call)) finish_states(&f, seq);
    cylstm_end_call(&f.call);
}

/* ---------------------------------------------------------------------------- plans */

struct cylstm_plan {
    struct forward f;
    struct cylstm_context ctx; /* for its kernels: a plan outlives the context it was made with */
    struct cylstm_dims dims;
    size_t B;
    ptrdiff_t *h_offset, *c_offset; /* (B): the rows of the active streams */
};

static void carve_plan(struct cylstm_arena *arena, size_t B, struct cylstm_plan *plan)
{
    struct forward *f = &plan->f;
    const struct cylstm_kernels *k = plan->ctx.kernels;
    const size_t L = plan->dims.layers, size = cylstm_real_size(k),
                 R = cylstm_hidden_width(&plan->dims);
    f->call.ctx = &plan->ctx;
    f->call.kernels = k;
    f->call.real_size = size;
    f->dims = &plan->dims;
    f->pass = cylstm_carve(arena, L, sizeof *f->pass);
    for (size_t n = 0; n < L; n++) {
        struct pass p = {.l = cylstm_find_layer(k, &plan->dims, n, 0)};
        carve_pass(arena, k, B, &p);
        if (arena->base) f->pass[n] = p;
    }
    carve_lanes(arena, &plan->dims, f);
    plan->h_offset = cylstm_carve(arena, B, sizeof(ptrdiff_t));
    plan->c_offset = cylstm_carve(arena, B, sizeof(ptrdiff_t));
    for (size_t n = 0; n < 2 && n + 1 < L; n++)
        f->between[n] = cylstm_carve(arena, PLAN_STEPS * B * R, size);
    f->block = PLAN_STEPS;
}

size_t cylstm_plan_size(const struct cylstm_context *ctx, const struct cylstm_dims *dims, size_t B)
{
    struct cylstm_plan plan = {.ctx = *ctx, .dims = *dims};
    struct cylstm_arena arena = {NULL, cylstm_round_up(sizeof plan, CYLSTM_ALIGN)};
    carve_plan(&arena, B, &plan);
    return arena.used;
}

struct cylstm_plan *cylstm_plan_init(const struct cylstm_context *ctx,
                                     const struct cylstm_dims *dims, size_t B, void *mem)
{
    struct cylstm_plan *plan = mem;
    struct cylstm_arena arena = {mem, cylstm_round_up(sizeof *plan, CYLSTM_ALIGN)};
    *plan = (struct cylstm_plan){.ctx = *ctx, .dims = *dims, .B = B};
    plan->f.order.B = B;
    carve_plan(&arena, B, plan);
    cylstm_plan_set_states(plan, NULL, NULL);
    return plan;
}

void cylstm_plan_get_states(const struct cylstm_plan *plan, void *h, void *c)
{
    const struct forward *f = &plan->f;
    const size_t size = f->call.real_size, B = plan->B;
    for (size_t n = 0; n < plan->dims.layers; n++) {
        const struct pass *p = &f->pass[n];
        const size_t R = p->l.R, H = p->l.H;
        for (size_t r = 0; r < B; r++) {
            memcpy(cylstm_at(h, size, (ptrdiff_t)((n * B + r) * R)),
                   cylstm_at(p->h[f->parity], size,
                             (ptrdiff_t)(r * cylstm_stride(f->call.kernels, R))),
                   R * size);
            memcpy(cylstm_at(c, size, (ptrdiff_t)((n * B + r) * H)),
                   cylstm_at(p->c, size, (ptrdiff_t)(r * cylstm_stride(f->call.kernels, H))),
                   H * size);
        }
    }
}

void cylstm_plan_set_states(struct cylstm_plan *plan, const void *h, const void *c)
{
    struct forward *f = &plan->f;
    const struct cylstm_order order = {.B = plan->B};
    const size_t size = f->call.real_size, B = plan->B;
    f->parity = 0;
    for (size_t n = 0; n < plan->dims.layers; n++) {
        struct pass *p = &f->pass[n];
        const size_t R = cylstm_stride(f->call.kernels, p->l.R),
                     H = cylstm_stride(f->call.kernels, p->l.H);
        cylstm_load_rows(&order, size, p->l.R,
                         h ? cylstm_at(h, size, (ptrdiff_t)(n * B * p->l.R)) : NULL, R, p->h[0]);
        cylstm_load_rows(&order, size, p->l.H,
                         c ? cylstm_at(c, size, (ptrdiff_t)(n * B * p->l.H)) : NULL, H, p->c);
        memset(p->h[1], 0, B * R * size);
        if (p->m) memset(p->m, 0, B * H * size);
    }
}

void cylstm_plan_reset_row(struct cylstm_plan *plan, size_t row)
{
    struct forward *f = &plan->f;
    const size_t size = f->call.real_size;
    for (size_t n = 0; n < plan->dims.layers; n++) {
        struct pass *p = &f->pass[n];
        const size_t R = cylstm_stride(f->call.kernels, p->l.R),
                     H = cylstm_stride(f->call.kernels, p->l.H);
        memset(cylstm_at(p->h[f->parity], size, (ptrdiff_t)(row * R)), 0, R * size);
        memset(cylstm_at(p->c, size, (ptrdiff_t)(row * H)), 0, H * size);
    }
}

/* The rows named by `active` have taken an odd number of steps and the others none: copy
 * their h to where the others have theirs. */
static void keep_parity(struct cylstm_plan *plan, const size_t *active, size_t rows)
{
    struct forward *f = &plan->f;
    const size_t size = f->call.real_size;
    for (size_t n = 0; n < plan->dims.layers; n++) {
        struct pass *p = &f->pass[n];
        const size_t R = cylstm_stride(f->call.kernels, p->l.R);
        for (size_t r = 0; r < rows; r++) {
            const ptrdiff_t at = (ptrdiff_t)(active[r] * R);
            memcpy(cylstm_at(p->h[f->parity], size, at), cylstm_at(p->h[!f->parity], size, at),
                   p->l.R * size);
        }
    }
}

void cylstm_plan_run(struct cylstm_plan *plan, const struct cylstm_context *ctx, const void *packed,
                     size_t T, const size_t *active, size_t rows, const void *x, void *y)
{
    struct forward *f = &plan->f;
    struct pass *first = &f->pass[0], *last = &f->pass[plan->dims.layers - 1];
    struct cylstm_context now =
        *ctx; /* threads, BLAS and poll may change; the memory was laid out once */
    if ((size_t)now.threads > f->lanes) now.threads = (int)f->lanes;
    cylstm_begin_call(&f->call, &now);
    f->weights.packed = packed;
    f->order = (struct cylstm_order){.B = active ? rows : plan->B, .T = T};
    f->h_offset = f->c_offset = NULL;
    if (active) {
        for (size_t r = 0; r < rows; r++) {
            plan->h_offset[r] = (ptrdiff_t)(active[r] * cylstm_stride(f->call.kernels, first->l.R));
            plan->c_offset[r] = (ptrdiff_t)(active[r] * cylstm_stride(f->call.kernels, first->l.H));
        }
        f->h_offset = plan->h_offset;
        f->c_offset = plan->c_offset;
    }
    const ptrdiff_t I = (ptrdiff_t)first->l.I, R = (ptrdiff_t)last->l.R, B = (ptrdiff_t)f->order.B;
    first->x = (struct cylstm_walk){(void *)(uintptr_t)x, NULL, I, B * I};
    last->y = (struct cylstm_walk){y, NULL, R, B * R};
    if (B) run(f, T);
    if (active && (T & 1))
        keep_parity(plan, active, rows);
    else
        f->parity = (f->parity + T) & 1;
    f->call.ctx = &plan->ctx;
    cylstm_end_call(&f->call);
}
