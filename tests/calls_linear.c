/* calls_linear.c -- affine maps between guard pages: those of calls.c. */
#define _DEFAULT_SOURCE
#include "calls_check.h"

/* The gradients of an affine map: by this set, and by the portable one. */
static void check_linear_backward(struct trial *t, struct cylstm_context ctx,
                                  const struct cylstm_linear *l, const void *x, const void *dy)
{
    const size_t size = real_size(t), inputs = l->rows * l->inputs,
                 weights = l->inputs * l->outputs;
    const int wants_dx = below(t, 4) != 0;
    struct cylstm_linear_gradients grads[2];
    for (int n = 0; n < 2; n++) {
        grads[n] =
            (struct cylstm_linear_gradients){.x = x,
                                             .dy = dy,
                                             .dx = wants_dx ? output(t, "dx", inputs * size) : NULL,
                                             .dweight = output(t, "dweight", weights * size)};
        cylstm_linear_backward(&ctx, l, &grads[n],
                               output(t, "scratch", cylstm_linear_scratch(&ctx, l)));
        be_portable(t, &ctx);
    }
    const double most = t->kernels->bits == 32 ? 1e-5 : 1e-12;
    check_close(t, "dweight", grads[0].dweight, grads[1].dweight, weights, most);
    if (wants_dx) check_close(t, "dx", grads[0].dx, grads[1].dx, inputs, most);
}

/* An affine map, the rows of which are the same by themselves. */
void check_linear(struct trial *t)
{
    const int format = draw_format(t), wide = format == CYLSTM_INT8 && below(t, 2);
    const size_t I = below(t, 4) ? between(t, 1, 70) : between(t, 250, 530), O = between(t, 1, 90),
                 N = between(t, 1, 20), row = below(t, N), size = real_size(t),
                 bytes = format == CYLSTM_INT8 ? 1
                         : format              ? 2
                                               : size,
                 scales = (I * O * bytes + size - 1) / size;
    struct cylstm_context ctx;
    cylstm_init_context(&ctx, cylstm_kernels_isa(t->kernels), t->kernels->bits);
    ctx.threads = (int)between(t, 1, 3);
    snprintf(t->shape, sizeof t->shape,
             "%zu rows, %zu inputs, %zu outputs, format %d%s, %d threads", N, I, O, format,
             wide ? " (wide)" : "", ctx.threads);
    char *raw = noise(t, "weight", scales + (format == CYLSTM_INT8 ? O : 0));
    if (format) fill_compact(t, bytes, I * O, raw);
    for (size_t n = 0; format == CYLSTM_INT8 && n < O; n++)
        put(t, raw, (ptrdiff_t)(scales + n), (2 + fraction(t)) / 512);
    const void *x = noise(t, "x", N * I), *bias = below(t, 3) ? noise(t, "bias", O) : NULL,
               *dy = noise(t, "dy", N * O);
    ready(t);
    if (!format)
        check_linear_backward(t, ctx, &(struct cylstm_linear){N, I, O, raw, format, 0}, x, dy);
    void *y[3];
    for (int n = 0; n < 3; n++) { /* all rows; one of them; all by the portable set */
        struct cylstm_linear l = {n == 1 ? 1 : N, I, O, raw, format, wide};
        if (n == 2) be_portable(t, &ctx);
        if (format) {
            void *packed = output(t, "packed", cylstm_linear_packed_size(&ctx, &l));
            cylstm_pack_linear(&ctx, &l, raw, packed);
            l.weight = packed;
        }
        y[n] = output(t, "y", l.rows * O * size);
        cylstm_linear_forward(&ctx, &l, n == 1 ? real_at(t, x, (ptrdiff_t)(row * I)) : x, bias,
                              y[n], output(t, "scratch", cylstm_linear_scratch(&ctx, &l)));
    }
    if (memcmp(y[1], real_at(t, y[0], (ptrdiff_t)(row * O)), O * size))
        fail(t, "row %zu is another by itself", row);
    check_close(t, "y", y[0], y[2], N * O, t->kernels->bits == 32 ? 1e-5 : 1e-12);
    untouched(t);
}
