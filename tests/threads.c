/* threads.c -- the pool under ThreadSanitizer: three callers at once, rows and units split,
 * forward and backward, packed weights, raw ones and those of int8, every result bit for bit that of
 * one thread and packed weights.
 *
 *     cc -std=c11 -O1 -g -fsanitize=thread -pthread -Isrc_c tests/threads.c <the core> -o threads
 *     ./threads [helped]
 *
 * With `helped`, no helpers are a failure: a process that may use one CPU has none, and shows nothing.
 */
#include "cylstm.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CALLERS = 3, ROUNDS = 15, REALS = 1 << 20 };

static const struct shape {
    size_t T, B, I, H, D, L, P;
    int format;
} shapes[] = {
    {40, 8, 32, 96, 1, 1, 0, CYLSTM_AS_COMPUTED},   /* rows */
    {40, 1, 32, 320, 1, 1, 0, CYLSTM_AS_COMPUTED},  /* units, merged inputs */
    {30, 2, 16, 192, 2, 1, 0, CYLSTM_AS_COMPUTED},  /* directions */
    {20, 6, 16, 128, 1, 3, 40, CYLSTM_AS_COMPUTED}, /* a stack with projections */
    {90, 1, 32, 256, 1, 1, 0, CYLSTM_INT8},         /* merged inputs of more rows than a block */
};

static void *aligned(size_t bytes)
{
    void *p = aligned_alloc(CYLSTM_ALIGN, (bytes / CYLSTM_ALIGN + 1) * CYLSTM_ALIGN);
    if (!p) exit(2);
    memset(p, 0, bytes);
    return p;
}

static float *noise(size_t n, unsigned seed)
{
    float *p = aligned(n * sizeof *p);
    for (size_t k = 0; k < n; k++) {
        seed = seed * 1664525u + 1013904223u;
        p[k] = ((float)(seed >> 8) / 8388608.0f - 1.0f) * 0.2f;
    }
    return p;
}

/* y on `threads` threads, and of reals the gradients too, with packed weights or with `raw` ones. */
static size_t run(const struct shape *s, int threads, int read_raw, float *result)
{
    struct cylstm_context ctx;
    if (!cylstm_init_context(&ctx, NULL, 32)) exit(2);
    ctx.threads = threads;
    const struct cylstm_dims dims = {.layers = s->L,
                                     .directions = s->D,
                                     .input = s->I,
                                     .hidden = s->H,
                                     .proj = s->P,
                                     .bias = 1,
                                     .bits = 32,
                                     .format = s->format};
    const int trains = s->format == CYLSTM_AS_COMPUTED;
    const size_t R = s->P ? s->P : s->H, LD = s->L * s->D, count = cylstm_raw_count(&dims),
                 TB = s->T * s->B;
    float *raw = noise(count, 1), *x = noise(TB * s->I, 2), *dy = noise(TB * s->D * R, 3);
    float *h_0 = noise(LD * s->B * R, 4), *c_0 = noise(LD * s->B * s->H, 5);
    for (size_t k = 0; !trains && k < count * sizeof *raw; k++) /* a code is at most 127 */
        if (((signed char *)raw)[k] == -128) ((signed char *)raw)[k] = -127;
    float *states = aligned(2 * LD * s->B * (R + s->H) * sizeof(float)),
          *dx = aligned(TB * s->I * sizeof(float));
    void *packed = aligned(cylstm_packed_size(&ctx, &dims)),
         *back = aligned(trains ? cylstm_packed_backward_size(&ctx, &dims) : 0);
    struct cylstm_tape tape = {.cells = aligned(LD * TB * 5 * s->H * sizeof(float)),
                               .hidden = aligned(s->L * TB * s->D * R * sizeof(float)),
                               .dropout = 0.25,
                               .dropout_key = 7};
    float *y = result, *dweights = y + TB * s->D * R;
    const struct cylstm_sequence seq = {.T = s->T,
                                        .B = s->B,
                                        .x = x,
                                        .x_t = (ptrdiff_t)(s->B * s->I),
                                        .x_b = (ptrdiff_t)s->I,
                                        .h_0 = h_0,
                                        .c_0 = c_0,
                                        .y = y,
                                        .y_t = (ptrdiff_t)(s->B * s->D * R),
                                        .y_b = (ptrdiff_t)(s->D * R),
                                        .h_n = states,
                                        .c_n = states + LD * s->B * R,
                                        .tape = trains ? &tape : NULL,
                                        .raw = read_raw && trains ? raw : NULL};
    const struct cylstm_gradients grads = {.dy = dy,
                                           .dy_t = seq.y_t,
                                           .dy_b = seq.y_b,
                                           .dx = dx,
                                           .dx_t = seq.x_t,
                                           .dx_b = seq.x_b,
                                           .dh_0 = states + LD * s->B * (R + s->H),
                                           .dc_0 = states + LD * s->B * (2 * R + s->H),
                                           .dweights = dweights};
    void *forward = aligned(cylstm_forward_scratch(&ctx, &dims, &seq));
    void *backward = aligned(trains ? cylstm_backward_scratch(&ctx, &dims, &seq) : 0);
    cylstm_pack_weights(&ctx, &dims, raw, packed);
    cylstm_forward(&ctx, &dims, seq.raw ? NULL : packed, &seq, forward);
    if (trains) {
        cylstm_pack_backward(&ctx, &dims, raw, back);
        cylstm_backward(&ctx, &dims, seq.raw ? NULL : back, &seq, &grads, backward);
    }
    void *all[] = {raw,    x,    dy,         h_0,         c_0,     states,  dx,
                   packed, back, tape.cells, tape.hidden, forward, backward};
    for (size_t n = 0; n < sizeof all / sizeof all[0]; n++) free(all[n]);
    return TB * s->D * R + (trains ? count : 0);
}

static void *call(void *arg)
{
    size_t *wrong = arg;
    float *want = aligned(REALS * sizeof *want), *got = aligned(REALS * sizeof *got);
    for (int round = 0; round < ROUNDS; round++) {
        const struct shape *s = &shapes[(size_t)round % (sizeof shapes / sizeof shapes[0])];
        const size_t n = run(s, 1, 0, want);
        *wrong += n > REALS || run(s, 2 + round % 3, round >= 10, got) != n ||
                  memcmp(want, got, n * sizeof *want) != 0;
    }
    free(want);
    free(got);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread[CALLERS];
    size_t wrong[CALLERS] = {0}, sum = 0;
    for (int n = 0; n < CALLERS; n++)
        if (pthread_create(&thread[n], NULL, call, &wrong[n])) return 2;
    for (int n = 0; n < CALLERS; n++) {
        pthread_join(thread[n], NULL);
        sum += wrong[n];
    }
    printf("%d callers, %d rounds each, %d helpers: %zu differ from one thread\n", CALLERS, ROUNDS,
           cylstm_pool_helpers(), sum);
    if (argc > 1 && !strcmp(argv[1], "helped") && !cylstm_pool_helpers()) {
        printf("nobody helped, so this has shown nothing: it wants two CPUs\n");
        return 3;
    }
    return sum != 0;
}
