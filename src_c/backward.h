/* backward.h -- what the files of the backward pass share: backward_step.c (one step back),
 * backward_gradients.c (products over a chunk of steps), backward.c (chunks, layers, the call).
 */
#ifndef CYLSTM_BACKWARD_H
#define CYLSTM_BACKWARD_H

#include "product.h"
#include "split.h"

struct backward_pass {
    struct cylstm_layer l;
    struct cylstm_walk x, h; /* inputs (T, B, I) and own outputs (T, B, D*R), as forward saw them */
    struct cylstm_walk tape; /* (T, B, tape) */
    struct cylstm_walk dcells, dgates; /* (T, B, H), (T, B, gates), base may be NULL */
    struct cylstm_walk dy, dx;     /* (T, B, D*R), base may be NULL; (T, B, I), base may be NULL */
    const unsigned char *reset;    /* as of struct cylstm_order */
    struct cylstm_zoneout zoneout; /* p is 0: none */
    void *h_0, *c_0;               /* (B, R), (B, H), in batch order; may be NULL */
    void *dh;   /* (B, R) padded: dh_n, then the cell's own part of the dh before */
    void *dc;   /* (B, H) padded: dc_n, then the running dc; NULL for a cell without it */
    void *next; /* (B, dgates) padded: dgates of the step after the chunk */
};

/* Arrays that have a walk; inner arrays are all alike. */
enum { X, INNER, Y, TAPE, DY, DX, DCELLS, DGATES, ARRAYS };

/* What is computed again, of a chunk's rows; padded but for x, and NULL where a cell has no use for it. */
struct cylstm_recompute {
    void *tape, *h[2], *c, *m, *z, *sums, *x;
    ptrdiff_t *x_offset; /* where x lies, if it is as it was */
};

struct backward {
    struct cylstm_call call;
    const struct cylstm_dims *dims;
    const struct cylstm_sequence *seq;
    struct cylstm_weights weights;
    void **panels; /* (threads): for weights that have not been packed */
    struct cylstm_order order;
    struct backward_pass *pass; /* (L * D) */
    size_t chunk_steps, chunk_rows;
    int streams;   /* the gradients of weights outgrow the caches */
    size_t *start; /* (chunk_steps + 1): first row of each step in the chunk */
    void *dgates;  /* (chunk_rows, dgates) padded */
    void *z;       /* the inputs of a chunk's steps, as panels (chunk_rows, 4 VL): x, then h */
    void *ones;    /* (chunk_rows) */
    const struct cylstm_gradients *grads; /* the caller's */
    void *dh;                             /* (chunk_rows, R) padded; with a projection only */
    /* With resets, (chunk_rows) each: where h and c before a row lie, from those of the pass, and the
     * dgates after it, from the chunk's; at `nothing`, which is zero and as wide as any of them, where
     * there are none. Else NULL. */
    ptrdiff_t *h_before, *c_before, *after;
    void *nothing;
    void *held;      /* (T, B, D*R): dy where y shows held outputs; or NULL */
    void *unit_ones; /* (H) */
    struct cylstm_recompute
        *again; /* the gates of a chunk, where the tape has not kept them; or NULL */
    /* Truncated: the window of steps that the gradients of the loss from loss_begin on go back through,
     * and the first step that later windows have seen. Else all of them, and none. */
    size_t window_end, loss_begin, seen;
    void *dnorm; /* (chunk_rows, norm) padded: of a normalised cell; else NULL */
    void *m;     /* (chunk_rows, H) padded: what the second product was made with; else NULL */
    ptrdiff_t *dx_offset;             /* (chunk_rows): rows of dx */
    ptrdiff_t *r0_offset, *c0_offset; /* (B): rows of (B, R) and (B, H) arrays in batch order */
    void *between[2];                 /* (block, B, D*R): dy of inner layers */
    size_t block;
    ptrdiff_t *offset[2][ARRAYS]; /* (B) by direction: where rows start in each array */
    struct cylstm_split split;
    struct cylstm_team team;
    size_t shares;
    /* the piece of work that the threads share now */
    const struct backward_pass *now;
    size_t direction, layer;
    size_t step_begin, step_end; /* the chunk */
    size_t step;                 /* unit split: the step */
};

static inline size_t backward_width_of(const struct backward *b)
{
    return cylstm_panel_width(b->call.kernels);
}
static inline size_t backward_panels_of(const struct backward *b, size_t columns)
{
    return cylstm_panels_of(b->call.kernels, columns);
}
static inline size_t backward_stride_of(const struct backward *b, size_t n)
{
    return cylstm_stride(b->call.kernels, n);
}

/* Row n of a panel of z. */
static inline void *backward_z_at(const struct backward *b, size_t panel, size_t n)
{
    return cylstm_at(b->z, b->call.real_size,
                     (ptrdiff_t)((panel * b->chunk_rows + n) * backward_width_of(b)));
}

static inline struct cylstm_rows backward_padded_rows(const struct backward *b, void *base,
                                                      size_t stride, size_t r0)
{
    return (struct cylstm_rows){cylstm_at(base, b->call.real_size, (ptrdiff_t)(r0 * stride)), NULL,
                                (ptrdiff_t)stride};
}

static inline void backward_multiply(struct backward *b, int caller, size_t share,
                                     struct cylstm_job *job)
{
    cylstm_multiply_weights(&b->call, caller, &b->weights, job, b->panels[share]);
}

/* A product of dgates: the runs of them that meet `matrix`, which has as many rows. */
static inline void backward_start_dgates(struct cylstm_job *job, const struct backward *b,
                                         const struct backward_pass *p,
                                         const struct cylstm_matrix *matrix,
                                         const struct cylstm_run runs[CYLSTM_RUNS],
                                         struct cylstm_rows dgates, size_t rows,
                                         struct cylstm_range panels)
{
    cylstm_start_job(job, &p->l, matrix, rows, panels);
    for (size_t n = 0, k = 0; n < CYLSTM_RUNS; n++) {
        const size_t K = runs[n].count * p->l.H;
        void *first = cylstm_at(dgates.base, b->call.real_size, (ptrdiff_t)(runs[n].from * p->l.H));
        job->product.term[n] =
            (struct cylstm_term){{first, dgates.offset, dgates.stride}, 1, K, NULL, 0};
        job->k[n] = k;
        k += K;
    }
}

/* Row r of step s in the chunk. */
static inline size_t backward_flat(const struct backward *b, size_t s, size_t r)
{
    return b->start[s - b->step_begin] + r;
}

/* c of step s, of rows r0 and on: the last vector of a step on the tape. */
static inline struct cylstm_rows backward_cells(const struct backward *b,
                                                const struct backward_pass *p, size_t s, size_t r0)
{
    struct cylstm_rows c = cylstm_walk_rows(&p->tape, b->call.real_size, r0, s);
    c.base = cylstm_at(c.base, b->call.real_size, (ptrdiff_t)cylstm_tape_cell(b->seq->tape, &p->l));
    return c;
}

/* c before step s of the chunk: of the step before, or c_0. */
static inline struct cylstm_rows backward_cells_before(const struct backward *b,
                                                       const struct backward_pass *p, size_t s,
                                                       size_t r0)
{
    if (b->c_before)
        return (struct cylstm_rows){p->tape.base, b->c_before + backward_flat(b, s, r0), 0};
    if (s) return backward_cells(b, p, s - 1, r0);
    return (struct cylstm_rows){p->c_0, p->c_0 ? b->c0_offset + r0 : NULL, 0};
}

/* Let a product start from p->dh, rows r0 and on: dh_n, or what the cell of the step after, whose h
 * holds a part of this one's, has put in its place. */
static inline void backward_start_from_dh(const struct backward *b, const struct backward_pass *p,
                                          struct cylstm_product *g, size_t r0)
{
    const size_t stride = backward_stride_of(b, p->l.R);
    g->init = cylstm_at(p->dh, b->call.real_size, (ptrdiff_t)(r0 * stride));
    g->init_row = (ptrdiff_t)stride;
    g->init_panel = (ptrdiff_t)backward_width_of(b);
}

/* Where in the mask of the dropout below a layer row r of step s begins. */
static inline size_t backward_dropout_element(const struct backward *b,
                                              const struct backward_pass *p, size_t r, size_t s)
{
    const size_t t = b->direction ? cylstm_row_length(&b->order, r) - 1 - s : s;
    return (t * b->order.B + cylstm_batch_row(&b->order, r)) * p->l.I;
}

/* backward_states.c: h and c of row r before step s; NULL for zeros. */
const void *cylstm_h_before(const struct backward *b, const struct backward_pass *p, size_t r,
                            size_t s);
const void *cylstm_c_before(const struct backward *b, const struct backward_pass *p, size_t r,
                            size_t s);
/* Of resets, before a chunk's steps are taken, and before each for rows [r0, r1). */
void cylstm_list_states(struct backward *b, const struct backward_pass *p);
void cylstm_forget_states(const struct backward *b, const struct backward_pass *p, size_t s,
                          size_t r0, size_t r1);
/* At a window's end, dh_n and dc_n of the rows that end in it, and at step 0 dh_0 and dc_0. */
void cylstm_load_last_states(struct backward *b);
void cylstm_reach_first_states(struct backward *b);

/* backward_recompute.c: the gates of a chunk once more, a phase over its rows. */
void cylstm_carve_recompute(struct cylstm_arena *arena, struct backward *b);
cylstm_phase cylstm_recompute_gates;

/* backward_step.c: phases, whose `arg` is the struct backward. */

cylstm_phase cylstm_backward_rows;       /* all steps of the chunk, for a share of the rows */
cylstm_phase cylstm_backward_units;      /* one step, for a share of the units of h */
cylstm_phase cylstm_backward_second;     /* its second product, likewise, of the units of m */
cylstm_phase cylstm_backward_whole_rows; /* its whole rows, if the cell waits for them */

/* backward_gradients.c: phases over the rows of a chunk. */

cylstm_phase cylstm_gather_inputs;
cylstm_phase cylstm_use_chunk;

#endif
