/* drop.c -- DropConnect: weights of which some of weight_hh are dropped, and gradients likewise, shared
 * out among the threads. */
#include "check.h"
#include "layout.h"
#include "split.h"

#include <string.h>

struct drop {
    const struct cylstm_kernels *kernels;
    const struct cylstm_dims *dims;
    double p;
    uint64_t key;
    const char *in;
    char *out;
    size_t n, shares;
};

static struct cylstm_range within(struct cylstm_range a, size_t begin, size_t end)
{
    const size_t first = a.begin > begin ? a.begin : begin, last = a.end < end ? a.end : end;
    return (struct cylstm_range){first, last > first ? last : first};
}

static void run_share(void *arg, size_t share, int caller)
{
    const struct drop *d = arg;
    const size_t size = cylstm_real_size(d->kernels), LD = d->dims->layers * d->dims->directions;
    const struct cylstm_range mine = cylstm_share(d->n, d->shares, share);
    size_t done = mine.begin;
    (void)caller;
    for (size_t n = 0; n < LD; n++) {
        const struct cylstm_layer l = cylstm_find_layer(
            d->kernels, d->dims, n / d->dims->directions, n % d->dims->directions);
        const size_t first = l.raw[CYLSTM_WEIGHT_HH];
        const struct cylstm_range hh = within(mine, first, first + l.gates * l.R);
        if (hh.begin == hh.end) continue;
        const struct cylstm_dropout drop = {d->p, d->key + ((UINT64_C(2) << 32) + n) *
                                                               UINT64_C(0x9e3779b97f4a7c15)};
        if (d->in != d->out)
            memcpy(d->out + done * size, d->in + done * size, (hh.begin - done) * size);
        d->kernels->dropout(&drop, hh.begin - first, hh.end - hh.begin, d->in + hh.begin * size,
                            d->out + hh.begin * size);
        done = hh.end;
    }
    if (d->in != d->out)
        memcpy(d->out + done * size, d->in + done * size, (mine.end - done) * size);
}

void cylstm_drop_recurrent(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                           double p, uint64_t key, const void *raw, void *out)
{
    struct drop d = {.kernels = ctx->kernels,
                     .dims = dims,
                     .p = p,
                     .key = key,
                     .in = raw,
                     .out = out,
                     .n = cylstm_raw_count(dims)};
    CYLSTM_CHECK(cylstm_check_dims(ctx, dims));
    cylstm_run_over_weights(ctx->threads, d.n, run_share, &d, &d.shares);
}
