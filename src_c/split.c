/* split.c -- how work is shared out: every threshold of who helps is here. */
#include "split.h"

#include "blas.h"
#include "cpu.h"

#include <stdatomic.h>

/* The least work of a call, in flops, that is worth a second thread, and that is worth waking one;
 * and of a step, where every step ends in a barrier. */
static const double PARALLEL_CALL_FLOPS = 2.5e5, WAKING_CALL_FLOPS = 4e6, PARALLEL_STEP_FLOPS = 6e4;
/* Weights of one pass up to so much of the L2 cache stay in that of each core that reads them, and
 * those of two directions up to so much of the L3, which others use too. */
static const double CACHED_OF_L2 = 0.75, CACHED_OF_L3 = 0.5;
/* What is taken for the L2 and the L3 of a CPU that does not tell, and at most: a larger L2 is slower
 * towards its end, and a larger L3 is shared by more cores. */
static const size_t USUAL_CACHE[2] = {1 << 20, 32 << 20};
enum {
    STREAMED_ROWS = 8, /* rows per thread that make up for reading all weights from further away */
    SHARE_WEIGHTS = 1 << 15, /* the fewest weights that are worth a thread */
    WAKE_WEIGHTS = 1 << 18   /* and those that are worth waking one */
};

double cylstm_forward_flops(const struct cylstm_dims *dims, double rows)
{
    const double R = (double)cylstm_hidden_width(dims), H = (double)dims->hidden,
                 D = (double)dims->directions;
    const double gates = (double)cylstm_cell_kind(dims)->shape.gates, P = (double)dims->proj;
    const double first = 2 * H * (gates * ((double)dims->input + R) + P);
    const double other = 2 * H * (gates * (D * R + R) + P);
    return rows * D * (first + (double)(dims->layers - 1) * other);
}

/* Bytes of a core's L2 (n is 0) and of its L3 (1). The CPU is asked once, since under a virtual machine
 * the answer takes longer than a small call does; it is the same for every thread that asks. */
static double cache_bytes(int n)
{
    static _Atomic size_t known[2];
    size_t bytes = atomic_load_explicit(&known[n], memory_order_relaxed);
    if (!bytes) {
        const size_t told = cylstm_cpu_cache(n ? 3 : 2), usual = USUAL_CACHE[n];
        bytes = told && told < usual ? told : usual;
        atomic_store_explicit(&known[n], bytes, memory_order_relaxed);
    }
    return (double)bytes;
}

double cylstm_part_of_l3(double reals, size_t size)
{
    return reals * (double)size / cache_bytes(1);
}

struct cylstm_sharing cylstm_share_flops(const struct cylstm_context *ctx, double flops)
{
    const int alone = ctx->threads < 2 || cylstm_uses_blas(ctx) || flops < PARALLEL_CALL_FLOPS;
    return (struct cylstm_sharing){alone ? 1 : ctx->threads, flops < WAKING_CALL_FLOPS};
}

struct cylstm_split cylstm_split_work(const struct cylstm_context *ctx,
                                      const struct cylstm_dims *dims, size_t B, double rows,
                                      size_t panels, size_t weights, int split_directions)
{
    const double R = (double)cylstm_hidden_width(dims),
                 gates = (double)(cylstm_cell_kind(dims)->shape.gates * dims->hidden);
    const double weight_bytes = (double)weights * (double)dims->bits / 8;
    const double step_flops = 2 * (double)B * gates * R;
    size_t n = ctx->threads > 1 ? (size_t)ctx->threads : 1;
    struct cylstm_split split = {.threads = 1, .directions = 1, .rows = 1};
    const struct cylstm_sharing sharing = cylstm_share_flops(ctx, cylstm_forward_flops(dims, rows));
    if (sharing.threads == 1) return split;
    split.small = sharing.small;
    const int few = B / n < STREAMED_ROWS,
              streams = few && weight_bytes > CACHED_OF_L2 * cache_bytes(0);
    const int apart = few && 2 * weight_bytes > CACHED_OF_L3 * cache_bytes(1);
    if (split_directions && dims->directions == 2 && n % 2 == 0 && !apart) split.directions = 2;
    if (split.directions == 1 && (B < n || streams) && step_flops >= PARALLEL_STEP_FLOPS &&
        panels > 1) {
        split.by_units = 1;
        split.threads = (int)(panels < n ? panels : n);
        return split;
    }
    split.rows = B < n / split.directions ? B : n / split.directions;
    split.threads = (int)(split.rows * split.directions);
    return split;
}

struct cylstm_range cylstm_share_rows(const struct cylstm_order *order, size_t shares, size_t j)
{
    if (!order->length) return cylstm_share(order->B, shares, j);
    size_t total = 0, sum = 0, bound[2] = {0, 0};
    for (size_t r = 0; r < order->B; r++) total += order->length[r];
    const struct cylstm_range want = cylstm_share(total, shares, j);
    for (size_t r = 0; r < order->B; r++) {
        if (sum < want.begin) bound[0] = r + 1;
        if (sum < want.end) bound[1] = r + 1;
        sum += order->length[r];
    }
    if (j == shares - 1) bound[1] = order->B;
    return (struct cylstm_range){bound[0], bound[1]};
}

void cylstm_run_over_weights(int threads, size_t n, cylstm_phase *phase, void *arg, size_t *shares)
{
    const size_t most = n / SHARE_WEIGHTS + 1, wanted = threads > 1 ? (size_t)threads : 1;
    *shares = most < wanted ? most : wanted;
    struct cylstm_team team = cylstm_begin_team((int)*shares, n < WAKE_WEIGHTS);
    cylstm_run_phase(&team, phase, arg, *shares);
    cylstm_end_team(&team);
}
