/* forward.c -- the forward pass: who computes which rows or units of which step.
 *
 * Layers that look one way go through time together, block by block, so that what
 * lies between them is never longer than a block. Bidirectional layers wait for one
 * another, each reading the whole of what is below it.
 *
 * Nothing here computes: this file moves pointers, and the kernels do the arithmetic.
 */
#include "forward.h"
#include "check.h"

#include "blas.h"

enum {
    MERGE_ROWS = 48, /* rows of a merged input product */
    BLAS_MERGE_ROWS = 256,
    BLOCK_BYTES = 256 << 10 /* of one layer's output, between layers */
};

/* ------------------------------------------------ rows and directions, split by thread */

static void run_steps(struct forward *f, int caller, const struct forward_pass *p,
                      struct workspace *own, size_t r0, size_t r1)
{
    const struct cylstm_range all = cylstm_step_panels(f, p), second = cylstm_second_panels(f, p);
    struct cylstm_range chunk = {f->step_begin, f->step_begin};
    struct merged merged = {own, 0}; /* the row: those of the chunk behind us */
    for (size_t s = f->step_begin; s < f->step_end && !cylstm_stopped(&f->call); s++) {
        const size_t end = cylstm_active_rows(&f->order, r1, s);
        if (end <= r0) return;
        const size_t n = end - r0;
        if (s == chunk.end && cylstm_is_merged(f, p, n, f->step_end - s)) {
            chunk = (struct cylstm_range){s, cylstm_chunk_end(f, n, s, f->step_end)};
            cylstm_merge_inputs(f, caller, p, own, own, cylstm_list_rows(f, p, own, chunk, r0, r1),
                                1, 0);
            merged.row = 0;
        }
        const int is_merged = s < chunk.end;
        if (!is_merged) chunk.end = s + 1;
        const struct merged *sums = is_merged ? &merged : NULL;
        if (p->reset) cylstm_reset_rows(f, p, s, r0, end);
        cylstm_forward_step(f, caller, p, own, s, r0, n, all, sums);
        if (p->sums) cylstm_forward_rows(f, p, s, r0, n, sums);
        if (second.end) cylstm_forward_second(f, caller, p, own, s, r0, n, second, sums);
        if (p->kept.base) cylstm_keep_cells(f, p, s, r0, end);
        merged.row += n;
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
            run_steps(f, caller, &f->pass[layer * D + d], &f->workspace[share], rows.begin,
                      rows.end);
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

/* The merged products of the first workspace are everybody's here: each thread fills its own panels
 * of them. */
static struct merged merged_of_chunk(const struct forward *f)
{
    return (struct merged){f->workspace, f->chunk_rows ? f->chunk_rows[0] : 0};
}

static void run_units(void *arg, size_t share, int caller)
{
    struct forward *f = arg;
    const struct forward_pass *p = &f->pass[f->layer_begin * f->dims->directions + f->direction];
    const size_t shares = (size_t)f->split.threads, s = f->step_begin,
                 n = cylstm_active_rows(&f->order, f->order.B, s);
    const struct merged merged = merged_of_chunk(f);
    if (f->chunk_rows && s == f->chunk.begin)
        cylstm_merge_inputs(f, caller, p, &f->workspace[share], f->workspace, f->chunk_rows[1],
                            shares, share);
    cylstm_forward_step(f, caller, p, &f->workspace[share], s, 0, n,
                        cylstm_share(cylstm_step_panels(f, p).end, shares, share),
                        f->chunk_rows ? &merged : NULL);
}

static void run_whole_rows(void *arg, size_t share, int caller)
{
    struct forward *f = arg;
    const struct forward_pass *p = &f->pass[f->layer_begin * f->dims->directions + f->direction];
    const struct cylstm_range mine = cylstm_share(
        cylstm_active_rows(&f->order, f->order.B, f->step_begin), (size_t)f->split.threads, share);
    struct merged merged = merged_of_chunk(f);
    (void)caller;
    merged.row += mine.begin;
    cylstm_forward_rows(f, p, f->step_begin, mine.begin, mine.end - mine.begin,
                        f->chunk_rows ? &merged : NULL);
}

static void run_second(void *arg, size_t share, int caller)
{
    struct forward *f = arg;
    const struct forward_pass *p = &f->pass[f->layer_begin * f->dims->directions + f->direction];
    const size_t s = f->step_begin;
    const struct merged merged = merged_of_chunk(f);
    cylstm_forward_second(
        f, caller, p, &f->workspace[share], s, 0, cylstm_active_rows(&f->order, f->order.B, s),
        cylstm_share(cylstm_second_panels(f, p).end, (size_t)f->split.threads, share),
        f->chunk_rows ? &merged : NULL);
}

/* All steps of one pass from f->step_begin to `end`, a phase for each. */
static void run_pass_by_units(struct forward *f, const struct forward_pass *p, size_t end)
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
            if (cylstm_is_merged(f, p, n, end - s)) {
                f->chunk = (struct cylstm_range){s, cylstm_chunk_end(f, n, s, end)};
                rows[0] = 0;
                rows[1] = cylstm_list_rows(f, p, f->workspace, f->chunk, 0, f->order.B);
                f->chunk_rows = rows;
            }
        }
        cylstm_reset_rows(f, p, s, 0, n);
        cylstm_run_phase(&f->team, run_units, f, (size_t)f->split.threads);
        if (p->sums) cylstm_run_phase(&f->team, run_whole_rows, f, (size_t)f->split.threads);
        if (cylstm_has_second(&p->l))
            cylstm_run_phase(&f->team, run_second, f, (size_t)f->split.threads);
        cylstm_keep_cells(f, p, s, 0, n);
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
            struct forward_pass *p = &f->pass[layer * D + d];
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

void cylstm_run_forward(struct forward *f, size_t T)
{
    const size_t L = f->dims->layers, D = f->dims->directions;
    const struct forward_pass *last = &f->pass[(L - 1) * D];
    const size_t threads = f->call.ctx->threads > 1 ? (size_t)f->call.ctx->threads : 1;
    const size_t K = cylstm_is_merged(f, last, f->order.B / threads, T) ? last->l.R : last->l.w.K;
    const double rows = (double)f->order.B * (double)T + (f->weights.raw ? ROWS_FOR_WEIGHTS : 0);
    f->split =
        cylstm_split_work(f->call.ctx, f->dims, f->order.B, rows, cylstm_step_panels(f, last).end,
                          last->l.gates * K + last->l.P * last->l.H, 1);
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
    const size_t bytes = cylstm_times(B, dims->directions * cylstm_hidden_width(dims) * real_size);
    const size_t steps = bytes < BLOCK_BYTES / 4 ? BLOCK_BYTES / bytes : 4;
    return steps < T ? steps : T;
}

void cylstm_carve_passes(struct cylstm_arena *arena, size_t B, struct forward *f)
{
    const struct cylstm_kernels *k = f->call.kernels;
    const size_t D = f->dims->directions, LD = f->dims->layers * D, size = f->call.real_size;
    const size_t states = cylstm_cell_kind(f->dims)->shape.states;
    f->pass = cylstm_carve(arena, LD, sizeof *f->pass);
    for (size_t n = 0; n < LD; n++) {
        struct forward_pass p = {.l = cylstm_find_layer(k, f->dims, n / D, n % D),
                                 .zoneout = cylstm_pass_zoneout(f->dims, f->tape, n)};
        const size_t R = cylstm_stride(k, p.l.R), H = cylstm_stride(k, p.l.H);
        f->columns = cylstm_merged_stride(k, &p.l, &p.l.w); /* all layers' */
        if (p.l.second.columns) f->columns += cylstm_merged_stride(k, &p.l, &p.l.second);
        p.h[0] = cylstm_carve(arena, cylstm_times(B, R), size);
        p.h[1] = cylstm_carve(arena, cylstm_times(B, R), size);
        p.c = states > 1 ? cylstm_carve(arena, cylstm_times(B, H), size) : NULL;
        p.m = cylstm_has_second(&p.l) ? cylstm_carve(arena, cylstm_times(B, H), size) : NULL;
        p.z = p.l.second.columns ? cylstm_carve(arena, cylstm_times(B, H), size) : NULL;
        if (p.l.kind->norm)
            p.sums = cylstm_carve(arena, cylstm_times(B, cylstm_sums_stride(k, &p.l)), size);
        if (arena->base) f->pass[n] = p;
    }
}

void cylstm_carve_workspaces(struct cylstm_arena *arena, struct forward *f)
{
    const struct cylstm_kernels *k = f->call.kernels;
    const size_t products =
        f->weights.raw ? cylstm_panels_size(k, f->dims).forward : cylstm_quantized_size(k, f->dims);
    const int blas = cylstm_uses_blas(f->call.ctx);
    f->workspaces = blas || f->call.ctx->threads < 1 ? 1 : (size_t)f->call.ctx->threads;
    f->merge_rows = blas ? BLAS_MERGE_ROWS : MERGE_ROWS;
    f->workspace = cylstm_carve(arena, f->workspaces, sizeof *f->workspace);
    for (size_t n = 0; n < f->workspaces; n++) {
        struct workspace own;
        own.merged =
            cylstm_carve(arena, cylstm_times(f->merge_rows, f->columns), cylstm_real_size(k));
        own.offset = cylstm_carve(arena, f->merge_rows, sizeof(ptrdiff_t));
        own.products = cylstm_carve(arena, products, 1);
        if (arena->base) f->workspace[n] = own;
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
    cylstm_carve_passes(arena, seq->B, f);
    cylstm_carve_workspaces(arena, f);
    for (size_t d = 0; d < D; d++) {
        f->x_offset[d] = cylstm_carve_outer_offsets(arena, seq);
        f->inner_offset[d] = cylstm_carve_offsets(arena, seq);
        f->y_offset[d] = cylstm_carve_outer_offsets(arena, seq);
        f->tape_offset[d] = seq->tape ? cylstm_carve_outer_offsets(arena, seq) : NULL;
    }
    f->block = block_steps(dims, seq->B, seq->T, size);
    const size_t inner = cylstm_times(cylstm_times(D == 1 ? f->block : seq->T, seq->B), width);
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
    CYLSTM_CHECK(cylstm_check_dims(ctx, dims));
    carve_forward(&arena, ctx, dims, seq, &f);
    return arena.used;
}

static void place_walks(struct forward *f, const struct cylstm_sequence *seq)
{
    const size_t L = f->dims->layers, D = f->dims->directions, B = seq->B;
    const size_t width = D * cylstm_hidden_width(f->dims), size = f->call.real_size;
    const ptrdiff_t t = (ptrdiff_t)(B * width), b = (ptrdiff_t)width;
    const size_t cells = seq->tape ? cylstm_tape_row(seq->tape, &f->pass[0].l) : 0;
    for (size_t n = 0; n < L * D; n++) {
        struct forward_pass *p = &f->pass[n];
        const size_t layer = n / D, d = n % D;
        const int reverse = cylstm_is_reverse(f->dims, d);
        p->reset = f->order.reset[reverse];
        const ptrdiff_t column = (ptrdiff_t)(d * p->l.R);
        if (!layer)
            p->x = cylstm_make_outer_walk(&f->order, size, reverse, (void *)(uintptr_t)seq->x,
                                          seq->x_t, seq->x_b, f->x_offset[d]);
        if (layer + 1 == L)
            p->y = cylstm_make_outer_walk(&f->order, size, reverse, cylstm_at(seq->y, size, column),
                                          seq->y_t, seq->y_b, f->y_offset[d]);
        if (!seq->tape) continue;
        const struct cylstm_walk on_tape = cylstm_make_outer_walk(
            &f->order, size, reverse,
            cylstm_at(seq->tape->cells, size, (ptrdiff_t)(n * seq->T * B * cells)),
            (ptrdiff_t)(B * cells), (ptrdiff_t)cells, f->tape_offset[d]);
        if (!seq->tape->checkpoint)
            p->tape = on_tape;
        else if (p->c)
            p->kept = on_tape;
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

/* Zeros where there is no step, or what y shows there instead. */
static void clear_padding(const struct forward *f, const struct cylstm_sequence *seq)
{
    const size_t D = f->dims->directions, LD = f->dims->layers * D, size = f->call.real_size;
    const size_t cells = seq->tape ? cylstm_tape_row(seq->tape, &f->pass[0].l) : 0;
    for (size_t n = 0; seq->tape && n < LD; n++)
        cylstm_clear_padding(
            seq, cylstm_at(seq->tape->cells, size, (ptrdiff_t)(n * seq->T * seq->B * cells)),
            (ptrdiff_t)(seq->B * cells), (ptrdiff_t)cells, cells, size);
    const size_t R = cylstm_hidden_width(f->dims);
    cylstm_clear_padding(seq, seq->y, seq->y_t, seq->y_b, D * R, size);
    for (size_t d = 0; seq->mask && seq->hold_output && d < D; d++)
        cylstm_hold_outputs(seq, cylstm_is_reverse(f->dims, d),
                            cylstm_at(seq->y, size, (ptrdiff_t)(d * R)), R, size);
}

void cylstm_forward(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                    const void *packed, const struct cylstm_sequence *seq, void *scratch)
{
    struct cylstm_arena arena = {scratch, 0};
    struct forward f = {.weights.packed = seq->raw ? NULL : packed};
    CYLSTM_CHECK(cylstm_check_forward(ctx, dims, packed, seq, scratch));
    carve_forward(&arena, ctx, dims, seq, &f);
    cylstm_begin_call(&f.call, ctx);
    cylstm_sort_rows(&f.order, seq);
    place_walks(&f, seq);
    cylstm_load_states(&f, &f.order, seq->h_0, seq->c_0);
    cylstm_run_forward(&f, f.order.T);
    if (!cylstm_stopped(&f.call)) {
        cylstm_store_states(&f, &f.order, seq->h_n, seq->c_n);
        clear_padding(&f, seq);
    }
    cylstm_end_call(&f.call);
}
