/* backward.c -- the backward pass: the way of forward.c, walked back.
 *
 * The dgates of a chunk of steps are kept; when the chunk is full, they are used up. Chunks depend on
 * the shapes alone, so the bits of a gradient do not depend on the threads.
 */
#include "backward.h"
#include "check.h"

#include <string.h>

enum {
    CHUNK_ROWS = 512,  /* rows of dgates that are kept before they are used up */
    SAMPLE_STEPS = 32, /* steps of them at least, where each sequence has a product of its own */
};
/* Gradients of more than so much of the L3 do not wait there for what reads them: weights and what an
 * optimiser keeps of them pass before. */
static const double STREAMED_OF_L3 = 0.125;

/* Steps [s0, s1) of one layer and direction, last to first. */
static void run_chunk(struct backward *b, size_t layer, size_t direction, size_t s0, size_t s1)
{
    const struct backward_pass *p = &b->pass[layer * b->dims->directions + direction];
    const size_t shares = b->shares;
    b->now = p;
    b->layer = layer;
    b->direction = direction;
    b->step_begin = s0;
    b->step_end = s1;
    b->start[0] = 0;
    for (size_t s = s0; s < s1; s++)
        b->start[s + 1 - s0] = b->start[s - s0] + cylstm_active_rows(&b->order, b->order.B, s);
    cylstm_list_states(b, p);
    if (b->again) cylstm_run_phase(&b->team, cylstm_recompute_gates, b, shares);
    if (b->split.by_units) {
        for (size_t s = s1; s-- > s0 && !cylstm_stopped(&b->call);) {
            b->step = s;
            cylstm_forget_states(b, p, s, 0, cylstm_active_rows(&b->order, b->order.B, s));
            cylstm_run_phase(&b->team, cylstm_backward_units, b, shares);
            if (cylstm_has_second(&p->l))
                cylstm_run_phase(&b->team, cylstm_backward_second, b, shares);
            if (p->l.kind->norm) cylstm_run_phase(&b->team, cylstm_backward_whole_rows, b, shares);
        }
    } else {
        cylstm_run_phase(&b->team, cylstm_backward_rows, b, b->split.rows);
    }
    if (cylstm_stopped(&b->call)) return;
    cylstm_run_phase(&b->team, cylstm_gather_inputs, b, shares);
    cylstm_run_phase(&b->team, cylstm_use_chunk, b, shares);
    memcpy(p->next, b->dgates,
           b->start[1] * backward_stride_of(b, p->l.dgates) * b->call.real_size);
}

/* ------------------------------------------------------------------------ the stack */

/* The dy of inner layers holds one block: shift its base so that walks count from step 0.
 * Layer's dx is the dy of the layer below. */
static void place_block(struct backward *b, size_t layer, size_t s0)
{
    const size_t D = b->dims->directions, width = D * cylstm_hidden_width(b->dims),
                 size = b->call.real_size;
    const ptrdiff_t t = (ptrdiff_t)(b->order.B * width), back = D == 1 ? -(ptrdiff_t)s0 * t : 0;
    for (size_t d = 0; d < D; d++) {
        struct backward_pass *p = &b->pass[layer * D + d];
        if (layer)
            p->dx = cylstm_make_walk(&b->order, size, (int)d,
                                     cylstm_at(b->between[layer % 2], size, back), t,
                                     (ptrdiff_t)width, b->offset[d][INNER]);
        if (layer + 1 < b->dims->layers)
            p->dy = cylstm_make_walk(
                &b->order, size, (int)d,
                cylstm_at(b->between[(layer + 1) % 2], size, back + (ptrdiff_t)(d * p->l.R)), t,
                (ptrdiff_t)width, b->offset[d][INNER]);
    }
}

/* Back through the dropout between layer - 1 and layer, for a share of the block's steps: the
 * same mask on its gradient. */
static void drop_back(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    const struct backward_pass *p = &b->pass[b->layer * b->dims->directions];
    const struct cylstm_dropout dropout = cylstm_layer_dropout(b->seq->tape, b->layer);
    const struct cylstm_range mine = cylstm_share(b->step_end - b->step_begin, b->shares, share);
    const size_t I = p->l.I;
    (void)caller;
    for (size_t s = b->step_begin + mine.begin; s < b->step_begin + mine.end; s++) {
        const size_t active = cylstm_active_rows(&b->order, b->order.B, s);
        for (size_t r = 0; r < active; r++) {
            void *dx = cylstm_at(p->dx.base, b->call.real_size, cylstm_walk_offset(&p->dx, r, s));
            b->call.kernels->dropout(
                &dropout, (s * b->order.B + cylstm_batch_row(&b->order, r)) * I, I, dx, dx);
        }
    }
}

/* The first of steps [s0, s1) from which on the same rows are active. */
static size_t same_rows_from(const struct backward *b, size_t s0, size_t s1)
{
    const size_t B = b->order.B, rows = cylstm_active_rows(&b->order, B, s1 - 1);
    while (cylstm_active_rows(&b->order, B, s0) != rows) s0++;
    return s0;
}

/* Steps [begin, end) of all layers, last to first. */
static void run_window(struct backward *b, size_t first, size_t last)
{
    const size_t L = b->dims->layers, D = b->dims->directions;
    b->window_end = last;
    cylstm_load_last_states(b);
    for (size_t end = last; end > first && !cylstm_stopped(&b->call);) {
        const size_t begin = end - first > b->block ? end - b->block : first;
        for (size_t layer = L; layer-- > 0;) {
            place_block(b, layer, begin);
            for (size_t d = 0; d < D; d++)
                for (size_t s1 = end; s1 > begin && !cylstm_stopped(&b->call);) {
                    size_t s0 = s1 - begin > b->chunk_steps ? s1 - b->chunk_steps : begin;
                    if (s0 < b->seen && b->seen < s1) s0 = b->seen; /* a chunk adds to dx or not */
                    if (b->seq->per_sample) s0 = same_rows_from(b, s0, s1);
                    run_chunk(b, layer, d, s0, s1);
                    s1 = s0;
                }
            if (layer && b->seq->tape->dropout > 0 && !cylstm_stopped(&b->call)) {
                b->layer = layer;
                b->step_begin = begin;
                b->step_end = end;
                cylstm_run_phase(&b->team, drop_back, b, b->shares);
            }
        }
        end = begin;
    }
    if (!first) cylstm_reach_first_states(b);
    b->seen = first;
}

static void run(struct backward *b)
{
    const size_t T = b->order.T, k1 = b->grads->k1, k2 = b->grads->k2;
    b->seen = SIZE_MAX;
    if (!k1 || !T) {
        run_window(b, 0, T);
        return;
    }
    for (size_t begin = (T - 1) / k1 * k1 + k1; begin && !cylstm_stopped(&b->call);) {
        const size_t end = begin < T ? begin : T;
        begin -= k1;
        b->loss_begin = begin;
        run_window(b, end > k2 ? end - k2 : 0, end);
    }
}

/* ----------------------------------------------------------------------- the whole call */

static void carve_panels(struct cylstm_arena *arena, const struct cylstm_context *ctx,
                         const struct cylstm_dims *dims, struct backward *b)
{
    const size_t threads = ctx->threads > 1 ? (size_t)ctx->threads : 1,
                 panels_size = b->weights.raw ? cylstm_panels_size(ctx->kernels, dims).backward : 0;
    b->panels = cylstm_carve(arena, threads, sizeof *b->panels);
    for (size_t n = 0; n < threads; n++) {
        void *panels = cylstm_carve(arena, panels_size, 1);
        if (arena->base) b->panels[n] = panels;
    }
}

/* Reals of a row as wide as any that a reset replaces. */
static size_t nothing_size(const struct backward *b, size_t dgates)
{
    return backward_stride_of(b, cylstm_larger(dgates, b->dims->hidden));
}

static void carve_backward(struct cylstm_arena *arena, const struct cylstm_context *ctx,
                           const struct cylstm_dims *dims, const struct cylstm_sequence *seq,
                           struct backward *b)
{
    const struct cylstm_kernels *k = ctx->kernels;
    const size_t L = dims->layers, D = dims->directions, B = seq->B, size = cylstm_real_size(k);
    b->dims = dims;
    b->weights.raw = seq->raw;
    b->seq = seq;
    b->call.ctx = ctx;
    b->call.kernels = k;
    b->call.real_size = size;
    b->chunk_steps = B < CHUNK_ROWS ? CHUNK_ROWS / B : 1;
    if (seq->per_sample) b->chunk_steps = cylstm_larger(b->chunk_steps, SAMPLE_STEPS);
    if (b->chunk_steps > seq->T) b->chunk_steps = seq->T;
    b->chunk_rows = b->chunk_steps * B;
    b->streams =
        b->chunk_steps == seq->T && /* else more chunks add to what the first writes */
        cylstm_part_of_l3((double)cylstm_raw_count(dims) * (double)(seq->per_sample ? B : 1),
                          size) > STREAMED_OF_L3;
    b->block = D == 1 ? b->chunk_steps : seq->T;
    cylstm_carve_order(arena, &b->order, seq);
    b->pass = cylstm_carve(arena, L * D, sizeof *b->pass);
    size_t z = 0, dgates = 0;
    int second = 0;
    for (size_t n = 0; n < L * D; n++) {
        struct backward_pass p = {.l = cylstm_find_layer(k, dims, n / D, n % D),
                                  .zoneout = cylstm_pass_zoneout(dims, seq->tape, n)};
        z = cylstm_larger(z, backward_panels_of(b, p.l.I) + backward_panels_of(b, p.l.R));
        p.dh = cylstm_carve(arena, cylstm_times(B, cylstm_stride(k, p.l.R)), size);
        if (p.l.kind->shape.states > 1)
            p.dc = cylstm_carve(arena, cylstm_times(B, cylstm_stride(k, p.l.H)), size);
        p.next = cylstm_carve(arena, cylstm_times(B, cylstm_stride(k, p.l.dgates)), size);
        dgates = p.l.dgates;
        second = cylstm_has_second(&p.l);
        if (arena->base) b->pass[n] = p;
    }
    b->start = cylstm_carve(arena, b->chunk_steps + 1, sizeof(size_t));
    b->dgates = cylstm_carve(arena, cylstm_times(b->chunk_rows, cylstm_stride(k, dgates)), size);
    b->z = cylstm_carve(arena, cylstm_times(b->chunk_rows, z * backward_width_of(b)), size);
    b->ones = cylstm_carve(arena, b->chunk_rows, size);
    b->unit_ones = cylstm_carve(arena, dims->hidden, size);
    b->dh =
        dims->proj || dims->layer_norm
            ? cylstm_carve(arena,
                           cylstm_times(b->chunk_rows, cylstm_stride(k, cylstm_hidden_width(dims))),
                           size)
            : NULL;
    const size_t norm = cylstm_times(cylstm_cell_kind(dims)->norm, dims->hidden);
    b->dnorm = norm ? cylstm_carve(arena, cylstm_times(b->chunk_rows, cylstm_stride(k, norm)), size)
                    : NULL;
    const size_t m = cylstm_times(b->chunk_rows, cylstm_stride(k, dims->hidden));
    b->m = second ? cylstm_carve(arena, m, size) : NULL;
    carve_panels(arena, ctx, dims, b);
    for (int n = 0; n < 3 && seq->reset; n++) {
        ptrdiff_t **const offsets[] = {&b->h_before, &b->c_before, &b->after};
        *offsets[n] = cylstm_carve(arena, b->chunk_rows, sizeof(ptrdiff_t));
    }
    if (seq->reset) b->nothing = cylstm_carve(arena, nothing_size(b, dgates), size);
    if (seq->tape->checkpoint) cylstm_carve_recompute(arena, b);
    if (seq->mask && seq->hold_output) {
        const size_t width = D * cylstm_hidden_width(dims);
        b->held = cylstm_carve(arena, cylstm_times(cylstm_times(seq->T, B), width), size);
    }
    b->dx_offset = cylstm_carve(arena, b->chunk_rows, sizeof(ptrdiff_t));
    b->r0_offset = cylstm_carve(arena, B, sizeof(ptrdiff_t));
    b->c0_offset = cylstm_carve(arena, B, sizeof(ptrdiff_t));
    const size_t inner = cylstm_times(cylstm_times(b->block, B), D * cylstm_hidden_width(dims));
    for (size_t n = 0; n < 2; n++)
        b->between[n] = L > 1 && (L > 2 || n == 1) ? cylstm_carve(arena, inner, size) : NULL;
    for (size_t d = 0; d < D; d++)
        for (int n = 0; n < ARRAYS; n++)
            b->offset[d][n] = n == INNER ? cylstm_carve_offsets(arena, seq)
                                         : cylstm_carve_outer_offsets(arena, seq);
}

size_t cylstm_backward_scratch(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                               const struct cylstm_sequence *seq)
{
    struct cylstm_arena arena = {NULL, 0};
    struct backward b = {0};
    CYLSTM_CHECK(cylstm_check_dims(ctx, dims));
    carve_backward(&arena, ctx, dims, seq, &b);
    return arena.used;
}

static struct cylstm_walk walk(const struct backward *b, size_t direction, int array,
                               const void *base, ptrdiff_t column, ptrdiff_t t, ptrdiff_t row)
{
    void *first = base ? cylstm_at(base, b->call.real_size, column) : NULL;
    ptrdiff_t *offset = b->offset[direction][array];
    if (array == INNER)
        return cylstm_make_walk(&b->order, b->call.real_size, (int)direction, first, t, row,
                                offset);
    return cylstm_make_outer_walk(&b->order, b->call.real_size,
                                  cylstm_is_reverse(b->dims, direction), first, t, row, offset);
}

/* dy of a direction where y shows held outputs: what a loss says of all that a step shows. */
static void *sum_held(const struct backward *b, const struct cylstm_gradients *grads,
                      size_t direction)
{
    const size_t R = cylstm_hidden_width(b->dims), width = b->dims->directions * R,
                 size = b->call.real_size, column = direction * R;
    cylstm_sum_held(b->call.kernels, b->seq, cylstm_is_reverse(b->dims, direction),
                    cylstm_at(grads->dy, size, (ptrdiff_t)column), grads->dy_t, grads->dy_b, R,
                    b->unit_ones, cylstm_at(b->held, size, (ptrdiff_t)column),
                    (ptrdiff_t)(b->seq->B * width), (ptrdiff_t)width);
    return b->held;
}

static void place_walks(struct backward *b, const struct cylstm_gradients *grads)
{
    const struct cylstm_sequence *seq = b->seq;
    const size_t L = b->dims->layers, D = b->dims->directions, H = b->dims->hidden, B = seq->B;
    const ptrdiff_t width = (ptrdiff_t)(D * cylstm_hidden_width(b->dims)), t = (ptrdiff_t)B * width;
    const ptrdiff_t hidden = (ptrdiff_t)seq->T * t,
                    cells = (ptrdiff_t)cylstm_tape_row(seq->tape, &b->pass[0].l),
                    size = (ptrdiff_t)b->call.real_size;
    for (size_t n = 0; n < L * D; n++) {
        struct backward_pass *p = &b->pass[n];
        const size_t layer = n / D, d = n % D;
        const ptrdiff_t column = (ptrdiff_t)(d * p->l.R), inner = (ptrdiff_t)layer * hidden;
        if (layer) {
            p->x = walk(b, d, INNER, seq->tape->hidden, inner - hidden, t, width);
        } else {
            p->x = walk(b, d, X, seq->x, 0, seq->x_t, seq->x_b);
            p->dx = walk(b, d, DX, grads->dx, 0, grads->dx_t, grads->dx_b);
        }
        if (layer + 1 < L) {
            p->h = walk(b, d, INNER, seq->tape->hidden, inner + column, t, width);
        } else {
            p->h = walk(b, d, Y, seq->y, column, seq->y_t, seq->y_b);
            p->dy = b->held && grads->dy
                        ? walk(b, d, DY, sum_held(b, grads, d), column, t, width)
                        : walk(b, d, DY, grads->dy, column, grads->dy_t, grads->dy_b);
        }
        p->reset = b->order.reset[cylstm_is_reverse(b->dims, d)];
        p->tape = walk(b, d, TAPE, seq->tape->cells, (ptrdiff_t)(n * seq->T * B) * cells,
                       (ptrdiff_t)B * cells, cells);
        const ptrdiff_t gates = (ptrdiff_t)(p->l.kind->shape.tape_gates * H),
                        before = (ptrdiff_t)(n * seq->T * B), units = (ptrdiff_t)H;
        p->dcells = walk(b, d, DCELLS, grads->dcells, before * units, (ptrdiff_t)B * units, units);
        p->dgates = walk(b, d, DGATES, grads->dgates, before * gates, (ptrdiff_t)B * gates, gates);
        p->l.any |= grads->dcells || grads->dgates; /* the cells that know of them */
        if (seq->h_0) p->h_0 = cylstm_at(seq->h_0, (size_t)size, (ptrdiff_t)(n * B * p->l.R));
        if (seq->c_0) p->c_0 = cylstm_at(seq->c_0, (size_t)size, (ptrdiff_t)(n * B * H));
    }
}

static void fill_with_ones(const struct backward *b, void *ones, size_t count)
{
    const size_t size = b->call.real_size;
    const float one_f32 = 1;
    const double one_f64 = 1;
    for (size_t n = 0; n < count; n++)
        memcpy(cylstm_at(ones, size, (ptrdiff_t)n),
               size == sizeof one_f32 ? (const void *)&one_f32 : (const void *)&one_f64, size);
}

/* What stays as it is for the whole call. */
static void fill_constants(struct backward *b)
{
    const size_t R = cylstm_hidden_width(b->dims);
    for (size_t r = 0; r < b->order.B; r++) {
        b->r0_offset[r] = (ptrdiff_t)(cylstm_batch_row(&b->order, r) * R);
        b->c0_offset[r] = (ptrdiff_t)(cylstm_batch_row(&b->order, r) * b->dims->hidden);
    }
    fill_with_ones(b, b->ones, b->chunk_rows);
    fill_with_ones(b, b->unit_ones, b->dims->hidden);
    if (b->nothing) memset(b->nothing, 0, nothing_size(b, b->pass[0].l.dgates) * b->call.real_size);
}

/* Where the gradients of a sequence's weights begin, if each has its own. */
static void *gradients_of(const struct backward *b, size_t sample)
{
    return cylstm_at(b->grads->dweights, b->call.real_size,
                     (ptrdiff_t)(sample * cylstm_raw_count(b->dims)));
}

/* The gradients of weights that no step has used. */
static void clear_idle(const struct backward *b)
{
    const size_t bytes = cylstm_raw_count(b->dims) * b->call.real_size,
                 sums = b->seq->per_sample ? b->order.B : 1;
    for (size_t r = 0; r < sums; r++)
        if (!(sums > 1 ? cylstm_row_length(&b->order, r) : b->order.T))
            memset(gradients_of(b, sums > 1 ? cylstm_batch_row(&b->order, r) : 0), 0, bytes);
}

/* b_hh has the gradient of b_ih, where both are added to the same sums. */
static void copy_biases(const struct backward *b)
{
    const size_t size = b->call.real_size, sums = b->seq->per_sample ? b->order.B : 1,
                 LD = b->dims->layers * b->dims->directions;
    for (size_t n = 0; n < sums * LD; n++) {
        const struct cylstm_layer *l = &b->pass[n % LD].l;
        char *gradients = gradients_of(b, n / LD);
        if (!b->dims->bias || l->kind->two_biases) return;
        memcpy(gradients + l->raw[CYLSTM_BIAS_HH] * size, gradients + l->raw[CYLSTM_BIAS_IH] * size,
               l->gates * size);
    }
}

void cylstm_backward(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                     const void *packed_backward, const struct cylstm_sequence *seq,
                     const struct cylstm_gradients *grads, void *scratch)
{
    struct cylstm_arena arena = {scratch, 0};
    struct backward b = {.weights.packed = seq->raw ? NULL : packed_backward};
    CYLSTM_CHECK(cylstm_check_backward(ctx, dims, packed_backward, seq, grads, scratch));
    carve_backward(&arena, ctx, dims, seq, &b);
    cylstm_begin_call(&b.call, ctx);
    cylstm_sort_rows(&b.order, seq);
    fill_constants(&b);
    place_walks(&b, grads);
    const size_t size = b.call.real_size, B = seq->B;
    b.grads = grads;
    clear_idle(&b);
    const size_t R = cylstm_hidden_width(dims),
                 weights = b.pass[0].l.gates * R + dims->hidden * dims->proj;
    const double rows = (double)B * (double)b.order.T + ROWS_FOR_WEIGHTS;
    b.split = cylstm_split_work(ctx, dims, B, rows, backward_panels_of(&b, R), weights, 0);
    b.team = cylstm_begin_team(b.split.threads, b.split.small);
    b.shares = (size_t)b.team.threads;
    run(&b);
    if (!cylstm_stopped(&b.call)) copy_biases(&b);
    cylstm_end_team(&b.team);
    if (grads->dx)
        cylstm_clear_padding(seq, grads->dx, grads->dx_t, grads->dx_b, dims->input, size);
    cylstm_end_call(&b.call);
}
