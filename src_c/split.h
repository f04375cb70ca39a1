/* split.h -- how the work of a call is shared out among threads. */
#ifndef CYLSTM_SPLIT_H
#define CYLSTM_SPLIT_H

#include "threads.h"
#include "walk.h"

/* Shares of n things: share j of `shares` gets [begin, end). The products want 64 bits. */
struct cylstm_range {
    size_t begin, end;
};

static inline struct cylstm_range cylstm_share(size_t n, size_t shares, size_t j)
{
    const uint64_t all = n;
    return (struct cylstm_range){(size_t)(all * j / shares), (size_t)(all * (j + 1) / shares)};
}

/* The rows of share j, so that the shares hold about as many valid steps each. */
struct cylstm_range cylstm_share_rows(const struct cylstm_order *order, size_t shares, size_t j);

/* What the threads of a call split. Rows where each thread can keep its rows through all
 * steps; units where there are too few rows, or too many weights for each core to read
 * all of them: then every step ends in a barrier. Two directions side by side, each on cores of its
 * own, unless their weights together leave too little of the L3: then one after the other. */
struct cylstm_split {
    int threads;
    int small; /* not worth waking a helper for */
    int by_units;
    size_t directions, rows; /* shares of each, where units are not split; else 1 */
};

/* What packing all weights or writing their gradients takes beside the work of a call, as rows. */
enum { ROWS_FOR_WEIGHTS = 4 };

/* Which part of the L3 so many reals fill. */
double cylstm_part_of_l3(double reals, size_t size);

/* How many threads are worth a call of so many flops, all of which can be shared. */
struct cylstm_sharing {
    int threads;
    int small; /* not worth waking a helper for */
};
struct cylstm_sharing cylstm_share_flops(const struct cylstm_context *ctx, double flops);

/* `rows` is the work of the call, `panels` bounds the shares of units, `weights` is how many every
 * step of a pass reads, and `split_directions` says whether the two directions of a layer may run
 * side by side. */
struct cylstm_split cylstm_split_work(const struct cylstm_context *ctx,
                                      const struct cylstm_dims *dims, size_t B, double rows,
                                      size_t panels, size_t weights, int split_directions);

/* A phase on its own, over n weights: sets *shares, which `arg` leads to, and runs it. */
void cylstm_run_over_weights(int threads, size_t n, cylstm_phase *phase, void *arg, size_t *shares);

#endif
