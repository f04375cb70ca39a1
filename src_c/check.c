/* check.c -- the header's terms as assertions; see check.h. */
#include "check.h"

#ifdef CYLSTM_DEBUG

#include "layout.h"

#include <stdio.h>
#include <stdlib.h>

#define ASSERT(condition) ((condition) ? (void)0 : fail(#condition, __func__, __FILE__, __LINE__))

_Noreturn static void fail(const char *condition, const char *function, const char *file, int line)
{
    fprintf(stderr, "%s:%d: %s: expected %s\n", file, line, function, condition);
    abort();
}

/* Sizes in bytes stay below this: in doubles, which do not overflow. */
static const double MOST_BYTES = (double)(SIZE_MAX / 2);

static double size_of(const struct cylstm_context *ctx) { return ctx->kernels->bits / 8; }

static int is_real(const struct cylstm_context *ctx, const void *array)
{
    return array && (uintptr_t)array % ((uintptr_t)ctx->kernels->bits / 8) == 0;
}

static int is_memory(const void *memory) { return memory && (uintptr_t)memory % CYLSTM_ALIGN == 0; }

static double magnitude(ptrdiff_t n) { return n < 0 ? -(double)n : (double)n; }

/* Of a (T, B, width) array, from its first real to its last. */
static double extent(size_t T, size_t B, ptrdiff_t t, ptrdiff_t b, double width)
{
    return (double)(T - 1) * magnitude(t) + (double)(B - 1) * magnitude(b) + width;
}

/* Whether no two rows of an array that is written share a real. */
static int rows_are_apart(size_t T, size_t B, ptrdiff_t t, ptrdiff_t b, double width)
{
    const double step = magnitude(t), row = magnitude(b);
    if (T > 1 && B > 1)
        return row <= step ? row >= width && step >= (double)(B - 1) * row + width
                           : step >= width && row >= (double)(T - 1) * step + width;
    return (T == 1 || step >= width) && (B == 1 || row >= width);
}

/* Of two contiguous arrays of n and m reals. */
static int are_apart(const struct cylstm_context *ctx, const void *a, double n, const void *b,
                     double m)
{
    const double first = (double)(uintptr_t)a, second = (double)(uintptr_t)b;
    return first + n * size_of(ctx) <= second || second + m * size_of(ctx) <= first;
}

static void check_context(const struct cylstm_context *ctx)
{
    ASSERT(ctx && ctx->kernels);
    ASSERT(ctx->threads >= 1);
    ASSERT(ctx->kernels->bits == 32 ? !ctx->dgemm : !ctx->sgemm);
}

static void check_format(const struct cylstm_context *ctx, int format, int wide_inputs)
{
    ASSERT(!wide_inputs || format == CYLSTM_INT8);
    ASSERT(format >= 0 && format < CYLSTM_FORMATS);
    ASSERT(format == CYLSTM_AS_COMPUTED || ctx->kernels->bits == 32);
    if (format == CYLSTM_AS_COMPUTED) return;
    const struct cylstm_compact_kernels *k = format == CYLSTM_BFLOAT16 ? ctx->kernels->bf16
                                             : format == CYLSTM_INT8   ? ctx->int8
                                                                       : ctx->bf16;
    ASSERT(k && k->lanes == ctx->kernels->lanes);
}

void cylstm_check_dims(const struct cylstm_context *ctx, const struct cylstm_dims *dims)
{
    check_context(ctx);
    ASSERT(dims->layers >= 1 && dims->input >= 1 && dims->hidden >= 1);
    ASSERT(dims->directions == 1 || (dims->directions == 2 && !dims->reverse));
    ASSERT(dims->bits == ctx->kernels->bits);
    ASSERT(dims->cell >= 0 && dims->cell < CYLSTM_CELLS);
    ASSERT(dims->proj || (!dims->proj_bias && dims->proj_clip == 0));
    ASSERT(dims->zoneout >= 0 && dims->zoneout <= 1);
    ASSERT(dims->zoneout == 0 || dims->proj_clip == 0);
    ASSERT(dims->layer_norm >= 0 && dims->layer_norm < CYLSTM_NORMS);
    ASSERT(!dims->layer_norm || dims->cell <= CYLSTM_LSTM_COUPLED_I);
    ASSERT(dims->layer_norm != CYLSTM_HASTE_NORM || (dims->cell == CYLSTM_LSTM && !dims->peephole));
    check_format(ctx, dims->format, dims->wide_inputs);
}

static void check_sizes(const struct cylstm_context *ctx, const struct cylstm_dims *dims)
{
    cylstm_check_dims(ctx, dims);
    ASSERT(cylstm_packed_size(ctx, dims) != SIZE_MAX); /* which stands for one that overflows */
    ASSERT(cylstm_packed_backward_size(ctx, dims) != SIZE_MAX);
}

void cylstm_check_pack(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                       const void *raw, const void *packed)
{
    check_sizes(ctx, dims);
    ASSERT(is_real(ctx, raw));
    ASSERT(is_memory(packed));
}

static void check_sequence(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                           const void *packed, const struct cylstm_sequence *seq,
                           const void *scratch)
{
    const size_t T = seq->T, B = seq->B;
    check_sizes(ctx, dims);
    ASSERT(T >= 1 && B >= 1);
    ASSERT(extent(T, B, seq->x_t, seq->x_b, (double)dims->input) * size_of(ctx) < MOST_BYTES);
    for (size_t b = 0; seq->lengths && b < B; b++) ASSERT(seq->lengths[b] <= T);
    ASSERT(is_real(ctx, seq->x));
    ASSERT(!seq->h_0 || is_real(ctx, seq->h_0));
    ASSERT(!seq->c_0 || is_real(ctx, seq->c_0));
    ASSERT(seq->raw ? is_real(ctx, seq->raw) : is_memory(packed));
    ASSERT(is_memory(scratch));
    if (!seq->tape) return;
    ASSERT(is_real(ctx, seq->tape->cells));
    ASSERT(dims->layers == 1 || is_real(ctx, seq->tape->hidden));
    ASSERT(seq->tape->dropout >= 0 && seq->tape->dropout <= 1);
}

void cylstm_check_forward(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                          const void *packed, const struct cylstm_sequence *seq,
                          const void *scratch)
{
    check_sequence(ctx, dims, packed, seq, scratch);
    const size_t T = seq->T, B = seq->B;
    const double width = (double)(dims->directions * cylstm_hidden_width(dims));
    ASSERT(is_real(ctx, seq->y) && is_real(ctx, seq->h_n));
    ASSERT(cylstm_find_cell(dims).states == 2 ? is_real(ctx, seq->c_n) : !seq->c_n);
    ASSERT(extent(T, B, seq->y_t, seq->y_b, width) * size_of(ctx) < MOST_BYTES);
    ASSERT(rows_are_apart(T, B, seq->y_t, seq->y_b, width));
}

void cylstm_check_backward(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                           const void *packed_backward, const struct cylstm_sequence *seq,
                           const struct cylstm_gradients *grads, const void *scratch)
{
    check_sequence(ctx, dims, packed_backward, seq, scratch);
    ASSERT(seq->tape);
    ASSERT(!grads->dy || is_real(ctx, grads->dy));
    ASSERT(!grads->dh_n || is_real(ctx, grads->dh_n));
    ASSERT(!grads->dc_n || is_real(ctx, grads->dc_n));
    ASSERT(!grads->dcells || is_real(ctx, grads->dcells));
    ASSERT(!grads->dgates || is_real(ctx, grads->dgates));
    ASSERT(is_real(ctx, grads->dh_0) && is_real(ctx, grads->dweights));
    ASSERT(cylstm_find_cell(dims).states == 2 ? is_real(ctx, grads->dc_0) : !grads->dc_0);
    if (!grads->dx) return;
    ASSERT(is_real(ctx, grads->dx));
    ASSERT(rows_are_apart(seq->T, seq->B, grads->dx_t, grads->dx_b, (double)dims->input));
}

void cylstm_check_jvp(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                      const void *packed, const struct cylstm_sequence *seq,
                      const struct cylstm_tangents *tangents, const void *scratch)
{
    const double width = (double)(dims->directions * cylstm_hidden_width(dims));
    check_sequence(ctx, dims, packed, seq, scratch);
    ASSERT(seq->tape && !seq->tape->checkpoint && !seq->raw);
    ASSERT(is_real(ctx, seq->y));
    ASSERT(!tangents->dx || is_real(ctx, tangents->dx));
    ASSERT(!tangents->dh_0 || is_real(ctx, tangents->dh_0));
    ASSERT(!tangents->dc_0 || is_real(ctx, tangents->dc_0));
    ASSERT(!tangents->dweights || is_memory(tangents->dweights));
    ASSERT(is_real(ctx, tangents->dy) && is_real(ctx, tangents->dh_n));
    ASSERT(cylstm_find_cell(dims).states == 2 ? is_real(ctx, tangents->dc_n) : !tangents->dc_n);
    ASSERT(rows_are_apart(seq->T, seq->B, tangents->dy_t, tangents->dy_b, width));
}

void cylstm_check_plan(const struct cylstm_context *ctx, const struct cylstm_context *made,
                       const struct cylstm_dims *dims, size_t B, const void *plan)
{
    check_sizes(ctx, dims);
    ASSERT(ctx->kernels == made->kernels);
    ASSERT(dims->directions == 1 && !dims->reverse);
    ASSERT(B >= 1 && is_memory(plan));
}

void cylstm_check_run(const struct cylstm_context *ctx, const struct cylstm_dims *dims, size_t B,
                      const void *packed, size_t T, const size_t *active, size_t rows,
                      const void *x, const void *y)
{
    const double steps = (double)T * (double)(active ? rows : B),
                 inputs = steps * (double)dims->input,
                 outputs = steps * (double)cylstm_hidden_width(dims);
    ASSERT(is_memory(packed));
    ASSERT(inputs * size_of(ctx) < MOST_BYTES && outputs * size_of(ctx) < MOST_BYTES);
    ASSERT(!active || rows <= B);
    for (size_t n = 0; active && n < rows; n++) {
        ASSERT(active[n] < B);
        for (size_t k = 0; k < n; k++) ASSERT(active[k] != active[n]);
    }
    ASSERT(steps == 0 || (is_real(ctx, x) && is_real(ctx, y)));
    ASSERT(are_apart(ctx, x, inputs, y, outputs));
}

void cylstm_check_pack_linear(const struct cylstm_context *ctx, const struct cylstm_linear *linear,
                              const void *raw, const void *packed)
{
    check_context(ctx);
    check_format(ctx, linear->format, linear->wide_inputs);
    ASSERT(linear->format != CYLSTM_AS_COMPUTED);
    ASSERT(linear->inputs >= 1 && linear->outputs >= 1);
    ASSERT(cylstm_linear_packed_size(ctx, linear) != SIZE_MAX);
    ASSERT(is_real(ctx, raw) && is_memory(packed));
}

void cylstm_check_linear(const struct cylstm_context *ctx, const struct cylstm_linear *linear,
                         const void *x, const void *out, size_t n, const void *scratch)
{
    const double rows = (double)linear->rows, inputs = (double)linear->inputs,
                 outputs = (double)linear->outputs;
    check_context(ctx);
    ASSERT(linear->rows >= 1 && linear->inputs >= 1 && linear->outputs >= 1);
    ASSERT((rows * (inputs > outputs ? inputs : outputs) + inputs * outputs) * size_of(ctx) <
           MOST_BYTES);
    check_format(ctx, linear->format, linear->wide_inputs);
    ASSERT(linear->format == CYLSTM_AS_COMPUTED ? is_real(ctx, linear->weight)
                                                : is_memory(linear->weight));
    ASSERT(is_real(ctx, x) && is_real(ctx, out));
    ASSERT(are_apart(ctx, x, rows * inputs, out, (double)n));
    ASSERT(is_memory(scratch));
}

void cylstm_check_step(const struct cylstm_context *ctx, uint64_t step, size_t n,
                       const struct cylstm_update *update)
{
    enum { WRITTEN = 3, ARRAYS = 4 };
    const void *const in[ARRAYS] = {update->weights, update->state[0], update->state[1],
                                    update->grads};
    const void *const out[WRITTEN] = {update->out, update->state_out[0], update->state_out[1]};
    check_context(ctx);
    ASSERT(step >= 1 && (double)n * size_of(ctx) < MOST_BYTES);
    if (!n) return;
    ASSERT(update->weights && update->grads && update->out);
    for (int k = 0; k < ARRAYS; k++) ASSERT(!in[k] || is_real(ctx, in[k]));
    for (int k = 0; k < WRITTEN; k++) {
        ASSERT(!out[k] == !in[k]);
        ASSERT(!out[k] || is_real(ctx, out[k]));
        for (int j = 0; j < ARRAYS && out[k]; j++)
            ASSERT(!in[j] || (j == k && in[j] == out[k]) ||
                   are_apart(ctx, in[j], (double)n, out[k], (double)n));
    }
}

#endif
