/* backward.c -- the backward pass: the rooms of forward.c, walked the other way.
 *
 * A step back is one product too: dh_t = dy_t + dgates_{t+1} W_hh, finished by the
 * cell's backward, which leaves dgates_t (4H) for the step before. The dgates of a chunk
 * of steps are kept; when the chunk is full, its inputs are gathered into one matrix
 * z = [x_t, h_{t-1}], in panels, and products over all its rows at once give
 *
 *     dx = dgates W_ih,    [dW_ih, dW_hh] += dgates^T z,    db += 1^T dgates
 *
 * The weights' gradients come out where the caller wants them, in the order of the raw
 * weights: dgates keep that order too (not panel order), so nothing is taken apart at
 * the end, and a width that is no multiple of a vector costs no more terms. Chunks
 * depend on the shapes alone, so the bits of a gradient do not depend on the threads.
 */
#include "sequence.h"
#include "weights.h"

#include <string.h>

enum { CHUNK_ROWS = 512 }; /* rows of dgates that are kept before they are used up */
static const _Alignas(CYLSTM_ALIGN) double zeros[PANEL_VECTORS * MAX_VL];

struct pass {
    struct cylstm_layer l;
    struct cylstm_walk x, h; /* inputs (T, B, I) and own outputs (T, B, D*R), as forward saw them */
    struct cylstm_walk tape; /* (T, B, 5, H) */
    struct cylstm_walk dy, dx; /* (T, B, D*R), base may be NULL; (T, B, I), base may be NULL */
    void *h_0, *c_0;           /* (B, R), (B, H), in batch order; may be NULL */
    void *dh;   /* (B, R) padded: dh_n; with a projection, where dh of a step is summed */
    void *dc;   /* (B, H) padded: dc_n, then the running dc */
    void *next; /* (B, 4H) padded: dgates of the step after the chunk */
};

/* Arrays that have a walk; inner arrays are all alike. */
enum { X, INNER, Y, TAPE, DY, DX, ARRAYS };

struct backward {
    struct cylstm_call call;
    const struct cylstm_dims *dims;
    const struct cylstm_sequence *seq;
    struct cylstm_weights weights;
    void **panels; /* (threads): room for weights that have not been packed */
    struct cylstm_order order;
    struct pass *pass; /* (L * D) */
    size_t chunk_steps, chunk_rows;
    size_t *start; /* (chunk_steps + 1): first row of each step in the chunk */
    void *dgates;  /* (chunk_rows, 4H) padded */
    void *z;       /* the inputs of a chunk's steps, as panels (chunk_rows, 4 VL): x, then h */
    void *ones;    /* (chunk_rows) */
    const struct cylstm_gradients *grads; /* the caller's */
    void *dh, *m;         /* (chunk_rows, R), (chunk_rows, H) padded; with a projection only */
    ptrdiff_t *dx_offset; /* (chunk_rows): rows of dx */
    ptrdiff_t *r0_offset, *c0_offset; /* (B): rows of (B, R) and (B, H) arrays in batch order */
    void *between[2];                 /* (block, B, D*R): dy of inner layers */
    size_t block;
    ptrdiff_t *offset[2][ARRAYS]; /* (B) by direction: where rows start in each array */
    struct cylstm_split split;
    struct cylstm_team team;
    size_t shares;
    /* the piece of work that the threads share now */
    const struct pass *now;
    size_t direction, layer;
    size_t step_begin, step_end; /* the chunk */
    size_t step;                 /* unit split: the step */
};

static size_t width_of(const struct backward *b) { return cylstm_panel_width(b->call.kernels); }
static size_t panels_of(const struct backward *b, size_t columns)
{
    return cylstm_panels_of(b->call.kernels, columns);
}
static size_t stride_of(const struct backward *b, size_t n)
{
    return cylstm_stride(b->call.kernels, n);
}

/* Row n of a panel of z. */
static void *z_at(const struct backward *b, size_t panel, size_t n)
{
    return cylstm_at(b->z, b->call.real_size,
                     (ptrdiff_t)((panel * b->chunk_rows + n) * width_of(b)));
}

static struct cylstm_rows padded_rows(const struct backward *b, void *base, size_t stride,
                                      size_t r0)
{
    return (struct cylstm_rows){cylstm_at(base, b->call.real_size, (ptrdiff_t)(r0 * stride)), NULL,
                                (ptrdiff_t)stride};
}

static void multiply(struct backward *b, int caller, size_t share, const struct pass *p,
                     const struct cylstm_matrix *matrix, const struct cylstm_product *g)
{
    cylstm_multiply_weights(&b->call, caller, g, &b->weights, &p->l, matrix, b->panels[share]);
}

/* ------------------------------------------------------------------ one step back */

/* What the products of a step have in common: rows [r0, r0 + n) of dgates times W_hh. */
static struct cylstm_product recurrent_product(const struct backward *b, const struct pass *p,
                                               struct cylstm_rows dgates, size_t n,
                                               struct cylstm_range panels)
{
    const size_t width = width_of(b);
    return (struct cylstm_product){
        .rows = n,
        .panel_begin = panels.begin,
        .panel_end = panels.end,
        .columns = p->l.R,
        .w_panel = (ptrdiff_t)(4 * p->l.H * width),
        .w_k = (ptrdiff_t)width,
        .init = zeros,
        .term[0] = {.a = dgates,
                    .a_k = 1,
                    .K = 4 * p->l.H,
                    .w = cylstm_at(b->weights.packed, b->call.real_size, (ptrdiff_t)p->l.hh_t.at)},
    };
}

static struct cylstm_cell cell_of_step(const struct backward *b, const struct pass *p, size_t s,
                                       size_t r0)
{
    const size_t size = b->call.real_size, H = p->l.H, flat = b->start[s - b->step_begin] + r0;
    struct cylstm_cell cell = {
        .H = H,
        .tape = cylstm_walk_rows(&p->tape, size, r0, s),
        .dc = padded_rows(b, p->dc, stride_of(b, H), r0),
        .dgates = padded_rows(b, b->dgates, stride_of(b, 4 * p->l.H), flat),
    };
    if (s) {
        cell.c_prev = cylstm_walk_rows(&p->tape, size, r0, s - 1);
        cell.c_prev.base = cylstm_at(cell.c_prev.base, size, (ptrdiff_t)(4 * H));
    } else if (p->c_0) {
        cell.c_prev = (struct cylstm_rows){p->c_0, b->c0_offset + r0, 0};
    }
    if (p->l.P) cell.h = padded_rows(b, b->m, stride_of(b, H), flat);
    return cell;
}

/* dgates of the step after s for rows from r0 on: in the chunk, or left by the one before. */
static struct cylstm_rows dgates_after(const struct backward *b, const struct pass *p, size_t s,
                                       size_t r0)
{
    const size_t stride = stride_of(b, 4 * p->l.H);
    if (s + 1 == b->step_end) return padded_rows(b, p->next, stride, r0);
    return padded_rows(b, b->dgates, stride, b->start[s + 1 - b->step_begin] + r0);
}

/* dh of step s for rows [r0, r1): a product for the rows that go on after s, and dh_n for those
 * that end here. Finished by the cell, or stored where it must first be projected. */
static void step_back(struct backward *b, int caller, size_t share, const struct pass *p, size_t s,
                      size_t r0, size_t r1, struct cylstm_range panels)
{
    const size_t size = b->call.real_size;
    const size_t active = cylstm_active_rows(&b->order, r1, s);
    size_t going = cylstm_active_rows(&b->order, r1, s + 1);
    if (going < r0) going = r0;
    for (int part = 0; part < 2; part++) {
        const size_t from = part ? going : r0, to = part ? active : going;
        if (to <= from) continue;
        struct cylstm_product g =
            recurrent_product(b, p, dgates_after(b, p, s, from), to - from, panels);
        if (part) { /* no step after: start from dh_n */
            g.term[0].K = 0;
            g.init = cylstm_at(p->dh, size, (ptrdiff_t)(from * stride_of(b, p->l.R)));
            g.init_row = (ptrdiff_t)stride_of(b, p->l.R);
            g.init_panel = (ptrdiff_t)width_of(b);
        }
        g.turned = (int)(s & 1);
        g.addend = cylstm_walk_rows(&p->dy, size, from, s);
        if (p->l.P) {
            g.finish = CYLSTM_STORE;
            g.out = padded_rows(b, b->dh, stride_of(b, p->l.R), b->start[s - b->step_begin] + from);
            g.out_panel = (ptrdiff_t)width_of(b);
        } else {
            g.finish = CYLSTM_CELL_BACKWARD;
            g.cell = cell_of_step(b, p, s, from);
        }
        multiply(b, caller, share, p, &p->l.hh_t, &g);
    }
}

/* dm = dh W_hr, finished by the cell. */
static void project_back(struct backward *b, int caller, size_t share, const struct pass *p,
                         size_t s, size_t r0, size_t r1, struct cylstm_range panels)
{
    const size_t active = cylstm_active_rows(&b->order, r1, s), width = width_of(b);
    if (active <= r0) return;
    const struct cylstm_product g = {
        .rows = active - r0,
        .panel_begin = panels.begin,
        .panel_end = panels.end,
        .columns = p->l.H,
        .w_panel = (ptrdiff_t)(p->l.P * width),
        .w_k = (ptrdiff_t)width,
        .init = zeros,
        .term[0] = {.a = padded_rows(b, b->dh, stride_of(b, p->l.R),
                                     b->start[s - b->step_begin] + r0),
                    .a_k = 1,
                    .K = p->l.P,
                    .w = cylstm_at(b->weights.packed, b->call.real_size, (ptrdiff_t)p->l.hr_t.at)},
        .finish = CYLSTM_CELL_BACKWARD,
        .cell = cell_of_step(b, p, s, r0),
    };
    multiply(b, caller, share, p, &p->l.hr_t, &g);
}

static void run_rows(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    const struct pass *p = b->now;
    const struct cylstm_range rows = cylstm_share_rows(&b->order, b->split.rows, share);
    for (size_t s = b->step_end; s-- > b->step_begin && !cylstm_stopped(&b->call);) {
        step_back(b, caller, share, p, s, rows.begin, rows.end,
                  (struct cylstm_range){0, panels_of(b, p->l.R)});
        if (p->l.P)
            project_back(b, caller, share, p, s, rows.begin, rows.end,
                         (struct cylstm_range){0, panels_of(b, p->l.H)});
    }
}

static void run_units(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    step_back(b, caller, share, b->now, b->step, 0, b->order.B,
              cylstm_share(panels_of(b, b->now->l.R), b->shares, share));
}

static void run_projected(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    project_back(b, caller, share, b->now, b->step, 0, b->order.B,
                 cylstm_share(panels_of(b, b->now->l.H), b->shares, share));
}

/* ------------------------------------------------------------ products over a chunk */

/* A row of the chunk, and the step and row of the batch that it belongs to. */
struct chunk_row {
    size_t flat, s, r;
};

static void next_row(const struct backward *b, struct chunk_row *at)
{
    at->flat++;
    at->r++;
    while (at->s < b->step_end &&
           at->r >= b->start[at->s + 1 - b->step_begin] - b->start[at->s - b->step_begin]) {
        at->s++;
        at->r = 0;
    }
}

static struct chunk_row find_row(const struct backward *b, size_t flat)
{
    struct chunk_row at = {flat, b->step_begin, 0};
    while (at.s + 1 < b->step_end && b->start[at.s + 1 - b->step_begin] <= flat) at.s++;
    at.r = flat - b->start[at.s - b->step_begin];
    return at;
}

/* z = [x_t, h_{t-1}] for a share of the chunk's rows, dropout and all. */
static void gather_inputs(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    const struct pass *p = b->now;
    const size_t size = b->call.real_size, I = p->l.I, R = p->l.R, width = width_of(b);
    const struct cylstm_range mine =
        cylstm_share(b->start[b->step_end - b->step_begin], b->shares, share);
    const int drop = b->layer && b->seq->tape->dropout > 0;
    const struct cylstm_dropout dropout = cylstm_layer_dropout(b->seq->tape, b->layer);
    (void)caller;
    struct chunk_row at = find_row(b, mine.begin);
    for (size_t n = mine.begin; n < mine.end; n++, next_row(b, &at)) {
        const void *x = cylstm_at(p->x.base, size, cylstm_walk_offset(&p->x, at.r, at.s));
        const void *h = at.s ? cylstm_at(p->h.base, size, cylstm_walk_offset(&p->h, at.r, at.s - 1))
                        : p->h_0 ? cylstm_at(p->h_0, size, b->r0_offset[at.r])
                                 : NULL;
        size_t element = 0; /* of the dropout's mask */
        if (drop) {
            const size_t t = b->direction ? cylstm_row_length(&b->order, at.r) - 1 - at.s : at.s;
            element = (t * b->order.B + cylstm_batch_row(&b->order, at.r)) * I;
        }
        for (size_t k = 0, panel = 0; k < I; k += width, panel++) {
            const size_t count = I - k < width ? I - k : width;
            const void *from = cylstm_at(x, size, (ptrdiff_t)k);
            if (drop)
                b->call.kernels->dropout(&dropout, element + k, count, from, z_at(b, panel, n));
            else
                memcpy(z_at(b, panel, n), from, count * size);
        }
        for (size_t k = 0, panel = panels_of(b, I); k < R; k += width, panel++) {
            const size_t bytes = (R - k < width ? R - k : width) * size;
            if (h)
                memcpy(z_at(b, panel, n), cylstm_at(h, size, (ptrdiff_t)k), bytes);
            else
                memset(z_at(b, panel, n), 0, bytes);
        }
        b->dx_offset[n] = cylstm_walk_offset(&p->dx, at.r, at.s);
    }
}

/* dx = dgates W_ih for a share of the chunk's rows, or of the inputs where rows are too few; the
 * second direction adds to the first. */
static void input_gradient(struct backward *b, int caller, size_t share, size_t shares)
{
    const struct pass *p = b->now;
    const size_t width = width_of(b), rows = b->start[b->step_end - b->step_begin];
    const int few = rows < shares;
    const struct cylstm_range mine = cylstm_share(rows, few ? 1 : shares, few ? 0 : share),
                              panels = cylstm_share(panels_of(b, p->l.I), few ? shares : 1,
                                                    few ? share : 0);
    if (!p->dx.base) return;
    struct cylstm_product g = {
        .rows = mine.end - mine.begin,
        .panel_begin = panels.begin,
        .panel_end = panels.end,
        .columns = p->l.I,
        .w_panel = (ptrdiff_t)(4 * p->l.H * width),
        .w_k = (ptrdiff_t)width,
        .init = zeros,
        .term[0] = {.a = padded_rows(b, b->dgates, stride_of(b, 4 * p->l.H), mine.begin),
                    .a_k = 1,
                    .K = 4 * p->l.H,
                    .w = cylstm_at(b->weights.packed, b->call.real_size, (ptrdiff_t)p->l.ih_t.at)},
        .finish = CYLSTM_STORE,
        .out = {p->dx.base, b->dx_offset + mine.begin, 0},
        .out_panel = (ptrdiff_t)width,
    };
    if (b->direction) g.addend = g.out;
    multiply(b, caller, share, p, &p->l.ih_t, &g);
}

/* out (rows, columns) += a^T w over the rows of the chunk, for a share of the rows. The first
 * chunk of a pass, which holds its last steps, finds nothing there yet. */
static void weight_gradient(struct backward *b, int caller, struct cylstm_range mine,
                            struct cylstm_term term, ptrdiff_t w_panel, ptrdiff_t w_k,
                            size_t columns, size_t raw)
{
    struct cylstm_product g = {
        .rows = mine.end - mine.begin,
        .panel_end = panels_of(b, columns),
        .columns = columns,
        .w_panel = w_panel,
        .w_k = w_k,
        .init = zeros,
        .term[0] = term,
        .finish = CYLSTM_STORE,
        .out = {cylstm_at(b->grads->dweights, b->call.real_size,
                          (ptrdiff_t)(raw + mine.begin * columns)),
                NULL, (ptrdiff_t)columns},
        .out_panel = (ptrdiff_t)width_of(b),
    };
    if (b->step_end < b->order.T) g.addend = g.out;
    cylstm_multiply(&b->call, caller, &g);
}

/* Columns of a matrix with rows `stride` apart, from the first one on, times w. */
static struct cylstm_term columns_of(const struct backward *b, const void *matrix, size_t stride,
                                     size_t first, const void *w)
{
    return (struct cylstm_term){
        .a = {cylstm_at(matrix, b->call.real_size, (ptrdiff_t)first), NULL, 1},
        .a_k = (ptrdiff_t)stride,
        .K = b->start[b->step_end - b->step_begin],
        .w = w};
}

static void weight_gradients(struct backward *b, int caller, size_t share, size_t shares)
{
    const struct cylstm_layer *l = &b->now->l;
    const size_t width = width_of(b), dgates = stride_of(b, 4 * l->H), m = stride_of(b, l->H);
    const struct cylstm_range mine = cylstm_share(4 * l->H, shares, share);
    struct cylstm_term term = columns_of(b, b->dgates, dgates, mine.begin, b->z);
    const ptrdiff_t z_panel = (ptrdiff_t)(b->chunk_rows * width);
    weight_gradient(b, caller, mine, term, z_panel, (ptrdiff_t)width, l->I, l->raw_ih);
    term.w = z_at(b, panels_of(b, l->I), 0);
    weight_gradient(b, caller, mine, term, z_panel, (ptrdiff_t)width, l->R, l->raw_hh);
    if (l->P) {
        const struct cylstm_range projected = cylstm_share(l->P, shares, share);
        weight_gradient(b, caller, projected,
                        columns_of(b, b->dh, stride_of(b, l->R), projected.begin, b->m),
                        (ptrdiff_t)width, (ptrdiff_t)m, l->H, l->raw_hr);
    }
    if (share == 0 && b->dims->bias)
        weight_gradient(b, caller, (struct cylstm_range){0, 1},
                        columns_of(b, b->ones, 1, 0, b->dgates), (ptrdiff_t)width,
                        (ptrdiff_t)dgates, 4 * l->H, l->raw_b_ih);
}

static void use_chunk(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    const size_t shares = b->shares;
    input_gradient(b, caller, share, shares);
    weight_gradients(b, caller, share, shares);
}

/* Steps [s0, s1) of one layer and direction, last to first. */
static void run_chunk(struct backward *b, size_t layer, size_t direction, size_t s0, size_t s1)
{
    const struct pass *p = &b->pass[layer * b->dims->directions + direction];
    const size_t shares = b->shares;
    b->now = p;
    b->layer = layer;
    b->direction = direction;
    b->step_begin = s0;
    b->step_end = s1;
    b->start[0] = 0;
    for (size_t s = s0; s < s1; s++)
        b->start[s + 1 - s0] = b->start[s - s0] + cylstm_active_rows(&b->order, b->order.B, s);
    if (b->split.by_units) {
        for (size_t s = s1; s-- > s0 && !cylstm_stopped(&b->call);) {
            b->step = s;
            cylstm_run_phase(&b->team, run_units, b, shares);
            if (p->l.P) cylstm_run_phase(&b->team, run_projected, b, shares);
        }
    } else {
        cylstm_run_phase(&b->team, run_rows, b, b->split.rows);
    }
    if (cylstm_stopped(&b->call)) return;
    cylstm_run_phase(&b->team, gather_inputs, b, shares);
    cylstm_run_phase(&b->team, use_chunk, b, shares);
    memcpy(p->next, b->dgates, b->start[1] * stride_of(b, 4 * p->l.H) * b->call.real_size);
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
        struct pass *p = &b->pass[layer * D + d];
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
    const struct pass *p = &b->pass[b->layer * b->dims->directions];
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

static void run(struct backward *b)
{
    const size_t L = b->dims->layers, D = b->dims->directions, T = b->order.T;
    for (size_t end = T; end && !cylstm_stopped(&b->call);) {
        const size_t begin = end > b->block ? end - b->block : 0;
        for (size_t layer = L; layer-- > 0;) {
            place_block(b, layer, begin);
            for (size_t d = 0; d < D; d++)
                for (size_t s1 = end; s1 > begin && !cylstm_stopped(&b->call);) {
                    const size_t s0 = s1 - begin > b->chunk_steps ? s1 - b->chunk_steps : begin;
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
}

/* dh_0 = dgates_0 W_hh, for a share of its units, and dc_0; rows without a step pass dh_n and dc_n
 * on. */
static void first_states(void *arg, size_t share, int caller)
{
    struct backward *b = arg;
    const struct pass *p = b->now;
    const size_t size = b->call.real_size, R = p->l.R, H = p->l.H, B = b->order.B,
                 n = b->layer * b->dims->directions + b->direction;
    void *dh_0 = cylstm_at(b->grads->dh_0, size, (ptrdiff_t)(n * B * R)),
         *dc_0 = cylstm_at(b->grads->dc_0, size, (ptrdiff_t)(n * B * H));
    const size_t active = cylstm_active_rows(&b->order, B, 0);
    struct cylstm_product g =
        recurrent_product(b, p, padded_rows(b, p->next, stride_of(b, 4 * H), 0), active,
                          cylstm_share(panels_of(b, R), b->shares, share));
    g.finish = CYLSTM_STORE;
    g.out = (struct cylstm_rows){dh_0, b->r0_offset, 0};
    g.out_panel = (ptrdiff_t)width_of(b);
    multiply(b, caller, share, p, &p->l.hh_t, &g);
    for (size_t r = 0; share == 0 && r < B; r++) {
        if (r >= active)
            memcpy(cylstm_at(dh_0, size, b->r0_offset[r]),
                   cylstm_at(p->dh, size, (ptrdiff_t)(r * stride_of(b, R))), R * size);
        memcpy(cylstm_at(dc_0, size, b->c0_offset[r]),
               cylstm_at(p->dc, size, (ptrdiff_t)(r * stride_of(b, H))), H * size);
    }
}

/* ----------------------------------------------------------------------- the whole call */

static void carve_panels(struct cylstm_arena *arena, const struct cylstm_context *ctx,
                         const struct cylstm_dims *dims, struct backward *b)
{
    const size_t threads = ctx->threads > 1 ? (size_t)ctx->threads : 1,
                 room = b->weights.raw ? cylstm_panel_room(ctx->kernels, dims, 1) : 0;
    b->panels = cylstm_carve(arena, threads, sizeof *b->panels);
    for (size_t n = 0; n < threads; n++) {
        void *panels = cylstm_carve(arena, room, 1);
        if (arena->base) b->panels[n] = panels;
    }
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
    if (b->chunk_steps > seq->T) b->chunk_steps = seq->T;
    b->chunk_rows = b->chunk_steps * B;
    b->block = D == 1 ? b->chunk_steps : seq->T;
    cylstm_carve_order(arena, &b->order, seq);
    b->pass = cylstm_carve(arena, L * D, sizeof *b->pass);
    const size_t H = dims->hidden;
    size_t z = 0;
    for (size_t n = 0; n < L * D; n++) {
        struct pass p = {.l = cylstm_find_layer(k, dims, n / D, n % D)};
        z = cylstm_larger(z, panels_of(b, p.l.I) + panels_of(b, p.l.R));
        p.dh = cylstm_carve(arena, B * cylstm_stride(k, p.l.R), size);
        p.dc = cylstm_carve(arena, B * cylstm_stride(k, p.l.H), size);
        p.next = cylstm_carve(arena, B * cylstm_stride(k, 4 * p.l.H), size);
        if (arena->base) b->pass[n] = p;
    }
    b->start = cylstm_carve(arena, b->chunk_steps + 1, sizeof(size_t));
    b->dgates = cylstm_carve(arena, b->chunk_rows * cylstm_stride(k, 4 * H), size);
    b->z = cylstm_carve(arena, b->chunk_rows * z * width_of(b), size);
    b->ones = cylstm_carve(arena, b->chunk_rows, size);
    b->dh =
        dims->proj ? cylstm_carve(arena, b->chunk_rows * cylstm_stride(k, dims->proj), size) : NULL;
    b->m = dims->proj ? cylstm_carve(arena, b->chunk_rows * cylstm_stride(k, dims->hidden), size)
                      : NULL;
    carve_panels(arena, ctx, dims, b);
    b->dx_offset = cylstm_carve(arena, b->chunk_rows, sizeof(ptrdiff_t));
    b->r0_offset = cylstm_carve(arena, B, sizeof(ptrdiff_t));
    b->c0_offset = cylstm_carve(arena, B, sizeof(ptrdiff_t));
    const size_t inner = b->block * B * D * cylstm_hidden_width(dims);
    for (size_t n = 0; n < 2; n++)
        b->between[n] = L > 1 && (L > 2 || n == 1) ? cylstm_carve(arena, inner, size) : NULL;
    for (size_t d = 0; d < D; d++)
        for (int n = 0; n < ARRAYS; n++) b->offset[d][n] = cylstm_carve_offsets(arena, seq);
}

size_t cylstm_backward_scratch(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                               const struct cylstm_sequence *seq)
{
    struct cylstm_arena arena = {NULL, 0};
    struct backward b = {0};
    carve_backward(&arena, ctx, dims, seq, &b);
    return arena.used;
}

static struct cylstm_walk walk(const struct backward *b, size_t direction, int array,
                               const void *base, ptrdiff_t column, ptrdiff_t t, ptrdiff_t row)
{
    void *first = base ? cylstm_at(base, b->call.real_size, column) : NULL;
    return cylstm_make_walk(&b->order, b->call.real_size, (int)direction, first, t, row,
                            b->offset[direction][array]);
}

static void place_walks(struct backward *b, const struct cylstm_gradients *grads)
{
    const struct cylstm_sequence *seq = b->seq;
    const size_t L = b->dims->layers, D = b->dims->directions, H = b->dims->hidden, B = seq->B;
    const ptrdiff_t width = (ptrdiff_t)(D * cylstm_hidden_width(b->dims)), t = (ptrdiff_t)B * width;
    const ptrdiff_t hidden = (ptrdiff_t)seq->T * t, cells = (ptrdiff_t)(TAPE_VECTORS * H),
                    size = (ptrdiff_t)b->call.real_size;
    for (size_t n = 0; n < L * D; n++) {
        struct pass *p = &b->pass[n];
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
            p->dy = walk(b, d, DY, grads->dy, column, grads->dy_t, grads->dy_b);
        }
        p->tape = walk(b, d, TAPE, seq->tape->cells, (ptrdiff_t)(n * seq->T * B) * cells,
                       (ptrdiff_t)B * cells, cells);
        if (seq->h_0) p->h_0 = cylstm_at(seq->h_0, (size_t)size, (ptrdiff_t)(n * B * p->l.R));
        if (seq->c_0) p->c_0 = cylstm_at(seq->c_0, (size_t)size, (ptrdiff_t)(n * B * H));
    }
}

static void load_states(struct backward *b, const struct cylstm_gradients *grads)
{
    const size_t LD = b->dims->layers * b->dims->directions, B = b->order.B,
                 size = b->call.real_size;
    const float one_f32 = 1;
    const double one_f64 = 1;
    for (size_t n = 0; n < b->chunk_rows; n++)
        memcpy(cylstm_at(b->ones, size, (ptrdiff_t)n),
               size == sizeof one_f32 ? (const void *)&one_f32 : (const void *)&one_f64, size);
    for (size_t r = 0; r < B; r++) {
        b->r0_offset[r] =
            (ptrdiff_t)(cylstm_batch_row(&b->order, r) * cylstm_hidden_width(b->dims));
        b->c0_offset[r] = (ptrdiff_t)(cylstm_batch_row(&b->order, r) * b->dims->hidden);
    }
    for (size_t n = 0; n < LD; n++) {
        const struct pass *p = &b->pass[n];
        const size_t R = p->l.R, H = p->l.H;
        cylstm_load_rows(&b->order, size, R,
                         grads->dh_n ? cylstm_at(grads->dh_n, size, (ptrdiff_t)(n * B * R)) : NULL,
                         stride_of(b, R), p->dh);
        cylstm_load_rows(&b->order, size, H,
                         grads->dc_n ? cylstm_at(grads->dc_n, size, (ptrdiff_t)(n * B * H)) : NULL,
                         stride_of(b, H), p->dc);
    }
}

void cylstm_backward(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                     const void *packed_backward, const struct cylstm_sequence *seq,
                     const struct cylstm_gradients *grads, void *scratch)
{
    struct cylstm_arena arena = {scratch, 0};
    struct backward b = {.weights.packed = seq->raw ? NULL : packed_backward};
    carve_backward(&arena, ctx, dims, seq, &b);
    cylstm_begin_call(&b.call, ctx);
    cylstm_sort_rows(&b.order, seq);
    place_walks(&b, grads);
    load_states(&b, grads);
    const size_t LD = dims->layers * dims->directions, size = b.call.real_size, B = seq->B;
    b.grads = grads;
    if (!b.order.T) memset(grads->dweights, 0, cylstm_raw_count(dims) * size);
    const size_t R = cylstm_hidden_width(dims), weights = dims->hidden * (4 * R + dims->proj);
    const double rows = (double)B * (double)b.order.T + ROWS_FOR_WEIGHTS;
    b.split = cylstm_split_work(ctx, dims, B, rows, panels_of(&b, R), weights, 0);
    b.team = cylstm_begin_team(b.split.threads, b.split.small);
    b.shares = (size_t)b.team.threads;
    run(&b);
    for (size_t n = 0; n < LD && !cylstm_stopped(&b.call); n++) {
        const struct pass *p = b.now = &b.pass[n];
        b.layer = n / dims->directions;
        b.direction = n % dims->directions;
        cylstm_run_phase(&b.team, first_states, &b, b.shares);
        if (dims->bias) /* both biases are added to the same sums */
            memcpy(cylstm_at(grads->dweights, size, (ptrdiff_t)p->l.raw_b_hh),
                   cylstm_at(grads->dweights, size, (ptrdiff_t)p->l.raw_b_ih), 4 * p->l.H * size);
    }
    cylstm_end_team(&b.team);
    if (grads->dx)
        cylstm_clear_padding(seq, grads->dx, grads->dx_t, grads->dx_b, dims->input, size);
    cylstm_end_call(&b.call);
}
