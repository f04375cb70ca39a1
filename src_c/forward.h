/* forward.h -- what the files of the forward pass share: forward_step.c (one step of one layer),
 * forward_states.c (the first states, the last, resets), forward.c (who computes which step, and
 * whole sequences), plan.c (streams).
 *
 * A pass is one layer in one direction.
 */
#ifndef CYLSTM_FORWARD_H
#define CYLSTM_FORWARD_H

#include "product.h"
#include "split.h"

struct forward_pass {
    struct cylstm_layer l;
    struct cylstm_walk x, y, tape; /* (T, B, I), (T, B, D*R) at this direction, (T, B, tape) */
    struct cylstm_walk kept;       /* (T, B, H): c, where the tape keeps nothing else */
    const unsigned char *reset;    /* as of struct cylstm_order */
    struct cylstm_zoneout zoneout; /* p is 0: none */
    void *h[2];                    /* (B, R) padded: step s reads h[s % 2] and writes the other */
    void *c;                       /* (B, H) padded; NULL for a cell without it */
    void *m;    /* (B, H) padded: what the second product of a step is made with; else NULL */
    void *sums; /* (B, 4 H) padded: of a cell that waits for whole rows; else NULL */
    void *z;    /* (B, H) padded: a gate that waits for it; else NULL */
};

/* One thread's own memory. */
struct workspace {
    void *merged;      /* (merge_rows, columns) padded: merged input products, of both products */
    ptrdiff_t *offset; /* (merge_rows): where their rows of x start */
    void *products;    /* for weights that have not been packed, or rows that are quantised */
};

/* Where the merged input products of a step start. */
struct merged {
    const struct workspace *in;
    size_t row;
};

/* Reals from a row of them to the next: in panel order, or as a cell keeps its sums that has those of
 * x by themselves. */
static inline size_t cylstm_merged_stride(const struct cylstm_kernels *k,
                                          const struct cylstm_layer *l,
                                          const struct cylstm_matrix *m)
{
    return (l->kind->apart ? cylstm_sums_width(k, l) : m->columns) + k->lanes;
}

struct forward {
    struct cylstm_call call;
    const struct cylstm_dims *dims;
    struct cylstm_weights weights;
    const struct cylstm_tape *tape;
    struct cylstm_order order;
    struct forward_pass *pass;              /* (L * D) */
    struct workspace *workspace;            /* (workspaces) */
    size_t workspaces, merge_rows, columns; /* of merged input products */
    size_t parity;                          /* of the steps already done, for plans */
    const ptrdiff_t *h_offset, *c_offset;   /* rows of the states; NULL: all, in order */
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

/* forward_step.c, for rows [r0, r0 + n) of step s and some panels. `own` is the thread's. */

struct cylstm_range cylstm_step_panels(const struct forward *f, const struct forward_pass *p);
struct cylstm_range cylstm_second_panels(const struct forward *f, const struct forward_pass *p);

/* One step, from x, or from the sums `merged` where they are given. */
void cylstm_forward_step(struct forward *f, int caller, const struct forward_pass *p,
                         const struct workspace *own, size_t s, size_t r0, size_t n,
                         struct cylstm_range panels, const struct merged *merged);
/* Its whole rows, if the cell waits for them. */
void cylstm_forward_rows(struct forward *f, const struct forward_pass *p, size_t s, size_t r0,
                         size_t n, const struct merged *merged);
/* Its second product, if it has one: of the cell's own gates, or the projection. */
void cylstm_forward_second(struct forward *f, int caller, const struct forward_pass *p,
                           const struct workspace *own, size_t s, size_t r0, size_t n,
                           struct cylstm_range panels, const struct merged *merged);

/* Whether the input products of `steps` steps of `rows` rows are merged. */
int cylstm_is_merged(const struct forward *f, const struct forward_pass *p, size_t rows,
                     size_t steps);
/* The end of the chunk of steps from s whose inputs are merged, of at most merge_rows rows. */
size_t cylstm_chunk_end(const struct forward *f, size_t rows, size_t s, size_t end);
/* Where the rows [r0, r1) of the chunk's steps start in x, one after another. Returns how many. */
size_t cylstm_list_rows(const struct forward *f, const struct forward_pass *p,
                        struct workspace *own, struct cylstm_range chunk, size_t r0, size_t r1);
/* Merge them: the share's panels of them, into the workspace `in`, which lists the rows. */
void cylstm_merge_inputs(struct forward *f, int caller, const struct forward_pass *p,
                         const struct workspace *own, const struct workspace *in, size_t rows,
                         size_t shares, size_t share);

/* forward_states.c */

/* States h (L*D, B, R) and c (L*D, B, H): set before the first step, NULL for zeros, and read when
 * each row of `order` has taken as many steps as it is long. */
void cylstm_load_states(struct forward *f, const struct cylstm_order *order, const void *h,
                        const void *c);
void cylstm_store_states(const struct forward *f, const struct cylstm_order *order, void *h,
                         void *c);
/* Before step s, states of zero for those of rows [r0, r1) that a reset stands before; after it, c
 * on a tape that keeps nothing else. */
void cylstm_reset_rows(const struct forward *f, const struct forward_pass *p, size_t s, size_t r0,
                       size_t r1);
void cylstm_keep_cells(const struct forward *f, const struct forward_pass *p, size_t s, size_t r0,
                       size_t r1);

/* forward.c, for plans: memory and the pass itself. */

/* Passes first. */
void cylstm_carve_passes(struct cylstm_arena *arena, size_t B, struct forward *f);
void cylstm_carve_workspaces(struct cylstm_arena *arena, struct forward *f);
void cylstm_run_forward(struct forward *f, size_t T);

#endif
