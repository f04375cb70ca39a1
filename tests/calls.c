/* calls.c -- whole calls of the core, every array of which lies between guard pages (guarded.h).
 *
 *     cc -std=c11 -O1 -pthread -Isrc_c -o calls tests/calls*.c <the core> -lm
 *     ./calls [seed [trials]]
 *
 * Cells, sizes, strides, lengths, masks and formats of weights are drawn from a seed. Forward and
 * backward read the weights raw, then packed, perhaps with a checkpoint: the bits must be the same,
 * those of the portable set nearly so, and nothing may be touched beyond the sizes that cylstm.h
 * states or the library itself asks for. What the numbers should be is shown elsewhere, against
 * other libraries.
 *
 * With CYLSTM_FUZZ this is a target of libFuzzer (`make fuzz`), whose bytes stand for the draws.
 */
#define _DEFAULT_SOURCE
#include "calls_check.h"

enum { TRIALS = 300, MAX_BATCH = 9 };

/* An array (T, B, width) whose rows may be apart. */
struct rows {
    size_t T, B, width, stride;
};

static size_t extent(const struct rows *r) { return (r->T * r->B - 1) * r->stride + r->width; }

/* The results of forward, of tangents and of backward, and how large they are. */
enum { Y, H_N, C_N, CELLS, HIDDEN, DY, DH_N, DC_N, DX, DH_0, DC_0, DWEIGHTS, RESULTS };
static const char *const names[RESULTS] = {"y",
                                           "h_n",
                                           "c_n",
                                           "tape.cells",
                                           "tape.hidden",
                                           "tangent of y",
                                           "tangent of h_n",
                                           "tangent of c_n",
                                           "dx",
                                           "dh_0",
                                           "dc_0",
                                           "dweights"};

struct problem {
    struct cylstm_context ctx;
    struct cylstm_dims dims;
    struct cylstm_sequence seq; /* the inputs */
    struct cylstm_gradients grads;
    struct cylstm_tangents tangents;
    struct cylstm_tape tape;
    struct rows x, y;
    const void *raw, *raw_tangent;
    size_t sizes[RESULTS]; /* in bytes */
};

/* Raw weights: in a format of fewer bits, codes of up to 127 and scales that suit them, or the upper
 * halves of floats. */
static void *weights(struct trial *t, const struct cylstm_dims *dims)
{
    char *raw = noise(t, "raw", cylstm_raw_count(dims));
    for (size_t n = 0; dims->format && n < dims->layers * dims->directions; n++) {
        struct cylstm_array arrays[CYLSTM_ARRAYS];
        const size_t count =
            cylstm_list_arrays(dims, n / dims->directions, n % dims->directions, arrays);
        for (const struct cylstm_array *a = arrays; a < arrays + count; a++) {
            char *to = raw + a->at * sizeof(float);
            const size_t elements = a->rows * (a->columns ? a->columns : 1);
            if (a->type >= CYLSTM_SCALE_IH)
                for (size_t k = 0; k < elements; k++)
                    put(t, to, (ptrdiff_t)k, (2 + fraction(t)) / 512);
            else
                fill_compact(t, a->bytes, elements, to);
        }
    }
    return raw;
}

/* Activations whose slopes have no jumps, on either side of which two kernel sets might be, and whose
 * values have bounds, those of gates 0 and 1, so that errors do not grow with time. */
static void draw_activations(struct trial *t, struct cylstm_dims *dims)
{
    static const int tame[] = {CYLSTM_OF_CELL, CYLSTM_SIGMOID, CYLSTM_TANH, CYLSTM_SOFTSIGN,
                               CYLSTM_SCALED_TANH};
    for (int d = 0; d < 2; d++)
        for (int n = 0; n < 3; n++) {
            const int gates = n == 0 && dims->cell != CYLSTM_RNN;
            dims->activation[d][n] =
                (struct cylstm_activation){tame[below(t, gates ? 2 : 5)], 0.75, 0.5};
        }
}

/* The cell, and what it has beside its equations. */
static void draw_cell(struct trial *t, struct cylstm_dims *dims)
{
    dims->cell = (int)below(t, CYLSTM_CELLS);
    if (!below(t, 3)) draw_activations(t, dims);
    if (!below(t, 4)) dims->clip = 100; /* out of the way, as a clip's slope jumps too */
    if (!below(t, 3)) dims->zoneout = 0.25;
    if (dims->directions == 1) dims->reverse = (int)below(t, 2);
    if (cylstm_find_cell(dims).states == 1) return;
    if (!below(t, 3)) dims->proj = between(t, 1, dims->hidden);
    if (dims->proj && below(t, 2)) {
        dims->proj_bias = (int)below(t, 2);
        dims->proj_clip = dims->zoneout != 0 || below(t, 2) ? 0 : 0.05;
    }
    dims->peephole = (int)below(t, 2);
    dims->layer_norm = below(t, 3) ? CYLSTM_NO_NORM : CYLSTM_LITERT_NORM;
    if (dims->cell == CYLSTM_LSTM && !dims->peephole && below(t, 2))
        dims->layer_norm = CYLSTM_HASTE_NORM;
    if (dims->layer_norm) { /* of one number, or two, only signs are left */
        dims->input += 2;
        dims->hidden += 2;
    }
    if (!below(t, 4)) dims->cell_clip = 100;
}

/* A flag for each step and row, or NULL. */
static unsigned char *draw_flags(struct trial *t, const char *name, size_t count)
{
    if (below(t, 3)) return NULL;
    unsigned char *flags = guarded(t, name, count);
    for (size_t n = 0; n < count; n++) flags[n] = (unsigned char)below(t, 2);
    return flags;
}

static void draw_problem(struct trial *t, struct problem *p, int format)
{
    p->dims = (struct cylstm_dims){.layers = between(t, 1, 3),
                                   .directions = between(t, 1, 2),
                                   .input = between(t, 1, 40),
                                   .hidden = between(t, 1, 50),
                                   .bias = (int)below(t, 2),
                                   .bits = t->kernels->bits,
                                   .format = format};
    p->dims.wide_inputs = format == CYLSTM_INT8 && below(t, 2);
    draw_cell(t, &p->dims);
    const int has_c = cylstm_find_cell(&p->dims).states == 2;
    cylstm_init_context(&p->ctx, cylstm_kernels_isa(t->kernels), t->kernels->bits);
    p->ctx.threads = (int)between(t, 1, 3);
    const size_t T = below(t, 2) ? 1 : between(t, 1, 9), B = between(t, 1, MAX_BATCH),
                 I = p->dims.input, H = p->dims.hidden, R = p->dims.proj ? p->dims.proj : H,
                 DR = p->dims.directions * R, LD = p->dims.layers * p->dims.directions;
    snprintf(
        t->shape, sizeof t->shape,
        "T %zu, B %zu, I %zu, H %zu, L %zu, D %zu, P %zu, bias %d, cell %d, format %d%s%s%s, %d "
        "threads",
        T, B, I, H, p->dims.layers, p->dims.directions, p->dims.proj, p->dims.bias, p->dims.cell,
        format, p->dims.wide_inputs ? " (wide)" : "",
        p->dims.layer_norm ? ", normalised"
        : p->dims.peephole ? ", peepholes"
                           : "",
        p->dims.reverse ? ", reverse" : "", p->ctx.threads);
    p->x = (struct rows){T, B, I, I + below(t, 3)};
    p->y = (struct rows){T, B, DR, DR + below(t, 3)};
    p->raw = weights(t, &p->dims);
    p->seq =
        (struct cylstm_sequence){.T = T,
                                 .B = B,
                                 .x = noise(t, "x", extent(&p->x)),
                                 .x_t = (ptrdiff_t)(B * p->x.stride),
                                 .x_b = (ptrdiff_t)p->x.stride,
                                 .h_0 = below(t, 4) ? noise(t, "h_0", LD * B * R) : NULL,
                                 .c_0 = has_c && below(t, 4) ? noise(t, "c_0", LD * B * H) : NULL,
                                 .mask = draw_flags(t, "mask", T * B),
                                 .reset = draw_flags(t, "reset", T * B),
                                 .hold_output = (int)below(t, 2),
                                 .y_t = (ptrdiff_t)(B * p->y.stride),
                                 .y_b = (ptrdiff_t)p->y.stride};
    if (below(t, 2)) {
        size_t *lengths = guarded(t, "lengths", B * sizeof *lengths);
        for (size_t b = 0; b < B; b++) lengths[b] = between(t, 0, T);
        p->seq.lengths = lengths;
    }
    static const double dropouts[] = {0, 0.25, 0, 1};
    p->tape = (struct cylstm_tape){.dropout = dropouts[below(t, 4)],
                                   .dropout_key = draw(t),
                                   .draws_zoneout = (int)below(t, 2)};
    const struct cylstm_cell_shape shape = cylstm_find_cell(&p->dims);
    p->grads = (struct cylstm_gradients){
        .dy = noise(t, "dy", extent(&p->y)),
        .dy_t = p->seq.y_t,
        .dy_b = p->seq.y_b,
        .dh_n = below(t, 2) ? noise(t, "dh_n", LD * B * R) : NULL,
        .dc_n = has_c && below(t, 2) ? noise(t, "dc_n", LD * B * H) : NULL,
        .dcells = has_c && !below(t, 3) ? noise(t, "dcells", LD * T * B * H) : NULL,
        .dgates = below(t, 3) ? NULL : noise(t, "dgates", LD * T * B * shape.tape_gates * H),
        .dx_t = p->seq.x_t,
        .dx_b = p->seq.x_b};
    p->seq.per_sample = !below(t, 4);
    if (p->dims.directions == 1 && !p->seq.per_sample && !below(t, 3)) {
        p->grads.k1 = between(t, 1, 5);
        p->grads.k2 = between(t, p->grads.k1, 9);
    }
    p->raw_tangent = below(t, 3) ? weights(t, &p->dims) : NULL;
    p->tangents = (struct cylstm_tangents){
        .dx = below(t, 4) ? noise(t, "tangent of x", extent(&p->x)) : NULL,
        .dx_t = p->seq.x_t,
        .dx_b = p->seq.x_b,
        .dh_0 = below(t, 2) ? noise(t, "tangent of h_0", LD * B * R) : NULL,
        .dc_0 = has_c && below(t, 2) ? noise(t, "tangent of c_0", LD * B * H) : NULL,
        .dy_t = p->seq.y_t,
        .dy_b = p->seq.y_b};
    const size_t counts[RESULTS] = {[Y] = extent(&p->y),
                                    [H_N] = LD * B * R,
                                    [C_N] = has_c * LD * B * H,
                                    [CELLS] = LD * T * B * shape.tape_vectors * H,
                                    [HIDDEN] = (p->dims.layers - 1) * T * B * DR,
                                    [DY] = extent(&p->y),
                                    [DH_N] = LD * B * R,
                                    [DC_N] = has_c * LD * B * H,
                                    [DX] = extent(&p->x),
                                    [DH_0] = LD * B * R,
                                    [DC_0] = has_c * LD * B * H,
                                    [DWEIGHTS] =
                                        (p->seq.per_sample ? B : 1) * cylstm_raw_count(&p->dims)};
    for (int n = 0; n < RESULTS; n++) p->sizes[n] = counts[n] * real_size(t);
}

static void *result(struct trial *t, const struct problem *p, int n)
{
    return p->sizes[n] || n == HIDDEN ? output(t, names[n], p->sizes[n]) : NULL;
}

static void *pack(struct trial *t, const struct problem *p, const char *name, const void *raw)
{
    void *packed = output(t, name, cylstm_packed_size(&p->ctx, &p->dims));
    cylstm_pack_weights(&p->ctx, &p->dims, raw, packed);
    return packed;
}

static void run_jvp(struct trial *t, struct problem *p, const void *packed,
                    const struct cylstm_sequence *seq, void *results[RESULTS])
{
    struct cylstm_tangents tangents = p->tangents;
    tangents.dweights =
        p->raw_tangent ? pack(t, p, "tangent of the weights", p->raw_tangent) : NULL;
    tangents.dy = results[DY];
    tangents.dh_n = results[DH_N];
    tangents.dc_n = results[DC_N];
    cylstm_jvp(&p->ctx, &p->dims, packed, seq, &tangents,
               output(t, "scratch jvp", cylstm_jvp_scratch(&p->ctx, &p->dims, seq)));
}

/* Forward and backward, each with raw weights or packed ones; tangents with packed ones. A
 * checkpoint leaves no tape and no tangents. */
static void run(struct trial *t, struct problem *p, int read_raw, int checkpoint,
                void *results[RESULTS])
{
    for (int n = 0; n < RESULTS; n++) results[n] = result(t, p, n);
    struct cylstm_tape tape = p->tape;
    if (checkpoint) {
        tape.checkpoint = 1;
        results[CELLS] =
            output(t, "checkpoint", cylstm_checkpoint_cells_size(&p->dims, p->seq.T, p->seq.B));
    }
    tape.cells = results[CELLS];
    tape.hidden = results[HIDDEN];
    struct cylstm_sequence seq = p->seq;
    seq.y = results[Y];
    seq.h_n = results[H_N];
    seq.c_n = results[C_N];
    seq.tape = &tape;
    seq.raw = read_raw ? p->raw : NULL;
    struct cylstm_gradients grads = p->grads;
    grads.dx = results[DX];
    grads.dh_0 = results[DH_0];
    grads.dc_0 = results[DC_0];
    grads.dweights = results[DWEIGHTS];
    void *packed = NULL, *back = NULL;
    if (!read_raw) {
        seq.packed = packed = pack(t, p, "packed", p->raw);
        back = output(t, "packed backward", cylstm_packed_backward_size(&p->ctx, &p->dims));
        cylstm_pack_backward(&p->ctx, &p->dims, p->raw, back);
    }
    void *scratch = output(t, "scratch", cylstm_forward_scratch(&p->ctx, &p->dims, &seq));
    cylstm_forward(&p->ctx, &p->dims, packed, &seq, scratch);
    if (!read_raw && !checkpoint) run_jvp(t, p, packed, &seq, results);
    scratch = output(t, "scratch backward", cylstm_backward_scratch(&p->ctx, &p->dims, &seq));
    cylstm_backward(&p->ctx, &p->dims, back, &seq, &grads, scratch);
}

static void check_gaps(struct trial *t, const char *name, const struct rows *r, const void *array)
{
    for (size_t row = 0; row + 1 < r->T * r->B; row++)
        for (size_t u = r->width; u < r->stride; u++) {
            const double got = get(t, array, (ptrdiff_t)(row * r->stride + u));
            if (got == got) fail(t, "%s: %g written behind row %zu", name, got, row);
        }
}

/* Weights of which some are dropped, the same by one thread in place. */
static void drop_weights(struct trial *t, struct problem *p, uint64_t key)
{
    const size_t size = cylstm_raw_count(&p->dims) * real_size(t);
    void *dropped = output(t, "dropped", size), *again = output(t, "dropped again", size);
    struct cylstm_context alone = p->ctx;
    alone.threads = 1;
    memcpy(again, p->raw, size);
    cylstm_drop_recurrent(&p->ctx, &p->dims, 0.25, key, p->raw, dropped);
    cylstm_drop_recurrent(&alone, &p->dims, 0.25, key, again, again);
    if (memcmp(dropped, again, size)) fail(t, "weights are dropped otherwise in place");
    p->raw = dropped;
}

static void check_calls(struct trial *t)
{
    struct problem p = {0};
    void *raw[RESULTS], *packed[RESULTS], *kept[RESULTS], *portable[RESULTS];
    draw_problem(t, &p, CYLSTM_AS_COMPUTED);
    /* What is normalised forgets its size: of few inputs' gradients, rounding is what is left. */
    const int small = t->kernels->bits == 32, cancels = p.dims.layer_norm != 0;
    const double most = cancels ? (small ? 2e-2 : 1e-8) : small ? 1e-4 : 1e-11;
    const int drops = !below(t, 3);
    const uint64_t key = draw(t);
    ready(t);
    if (drops) drop_weights(t, &p, key);
    run(t, &p, 1, 0, raw);
    run(t, &p, 0, 0, packed);
    run(t, &p, 0, 1, kept);
    p.ctx.kernels = cylstm_find_kernels("scalar", t->kernels->bits);
    p.ctx.threads = 1;
    run(t, &p, 0, 0, portable);
    for (int n = 0; n < RESULTS; n++) {
        if (!p.sizes[n]) continue;
        const int is_tangent = n == DY || n == DH_N || n == DC_N;
        if (!is_tangent && memcmp(raw[n], packed[n], p.sizes[n]))
            fail(t, "%s differs between raw weights and packed ones", names[n]);
        if (!is_tangent && n != CELLS && memcmp(kept[n], packed[n], p.sizes[n]))
            fail(t, "%s differs with a checkpoint", names[n]);
        check_close(t, names[n], packed[n], portable[n], p.sizes[n] / real_size(t), most);
    }
    check_gaps(t, "y", &p.y, raw[Y]);
    check_gaps(t, "dx", &p.x, raw[DX]);
    untouched(t);
}

/* --------------------------------------------------------------- weights of fewer bits */

/* Where an activation lies between two codes, sets may round it to either. */
static double most_apart(const struct trial *t, int format)
{
    return format == CYLSTM_INT8 || format == CYLSTM_BFLOAT16_PRODUCTS ? 3e-2
           : t->kernels->bits == 32                                    ? 1e-4
                                                                       : 1e-11;
}

static void run_forward(struct trial *t, struct problem *p, void *results[RESULTS])
{
    for (int n = Y; n <= C_N; n++) results[n] = result(t, p, n);
    struct cylstm_sequence seq = p->seq;
    seq.y = results[Y];
    seq.h_n = results[H_N];
    seq.c_n = results[C_N];
    cylstm_forward(&p->ctx, &p->dims, pack(t, p, "packed", p->raw), &seq,
                   output(t, "scratch", cylstm_forward_scratch(&p->ctx, &p->dims, &seq)));
}

static void check_compact_calls(struct trial *t)
{
    struct problem p = {0};
    void *got[RESULTS], *portable[RESULTS];
    const int format = draw_format(t);
    draw_problem(t, &p, format);
    ready(t);
    run_forward(t, &p, got);
    be_portable(t, &p.ctx);
    run_forward(t, &p, portable);
    for (int n = Y; n <= C_N; n++)
        if (p.sizes[n])
            check_close(t, names[n], got[n], portable[n], p.sizes[n] / real_size(t),
                        most_apart(t, format));
    check_gaps(t, "y", &p.y, got[Y]);
    untouched(t);
}

/* ---------------------------------------------------------------------------- plans */

/* A plan steps its streams as a sequence would, in whatever order they are named. */
static void check_plan(struct trial *t)
{
    struct problem p = {0};
    draw_problem(t, &p, draw_format(t));
    p.dims.directions = 1;
    p.dims.reverse = 0;
    const int has_c = cylstm_find_cell(&p.dims).states == 2;
    const size_t T = p.seq.T, B = p.seq.B, I = p.dims.input, H = p.dims.hidden,
                 R = p.dims.proj ? p.dims.proj : H, L = p.dims.layers, size = real_size(t),
                 turn = below(t, B);
    void *raw = weights(t, &p.dims), *x = noise(t, "x", T * B * I),
         *h_0 = noise(t, "h_0", L * B * R), *c_0 = has_c ? noise(t, "c_0", L * B * H) : NULL,
         *turned_x = guarded_reals(t, "x of the plan", T * B * I);
    size_t *active = guarded(t, "active", B * sizeof *active);
    for (size_t b = 0; b < B; b++) {
        active[b] = (b + turn) % B;
        for (size_t step = 0; step < T; step++)
            memcpy(real_at(t, turned_x, (ptrdiff_t)((step * B + b) * I)),
                   real_at(t, x, (ptrdiff_t)((step * B + active[b]) * I)), I * size);
    }
    ready(t);
    void *packed = pack(t, &p, "packed", raw), *y = output(t, "y", T * B * R * size),
         *h_n = output(t, "h_n", L * B * R * size),
         *c_n = has_c ? output(t, "c_n", L * B * H * size) : NULL,
         *got_y = output(t, "y", T * B * R * size), *got_h = output(t, "h", L * B * R * size),
         *got_c = has_c ? output(t, "c", L * B * H * size) : NULL;
    const struct cylstm_sequence seq = {.T = T,
                                        .B = B,
                                        .x = x,
                                        .x_t = (ptrdiff_t)(B * I),
                                        .x_b = (ptrdiff_t)I,
                                        .h_0 = h_0,
                                        .c_0 = c_0,
                                        .y = y,
                                        .y_t = (ptrdiff_t)(B * R),
                                        .y_b = (ptrdiff_t)R,
                                        .h_n = h_n,
                                        .c_n = c_n};
    cylstm_forward(&p.ctx, &p.dims, packed, &seq,
                   output(t, "scratch", cylstm_forward_scratch(&p.ctx, &p.dims, &seq)));
    struct cylstm_plan *plan = cylstm_plan_init(
        &p.ctx, &p.dims, B, output(t, "plan", cylstm_plan_size(&p.ctx, &p.dims, B)));
    cylstm_plan_set_states(plan, h_0, c_0);
    cylstm_plan_run(plan, &p.ctx, packed, T, active, B, turned_x, got_y);
    cylstm_plan_get_states(plan, got_h, got_c);
    for (size_t n = 0; n < T * B; n++)
        if (memcmp(real_at(t, got_y, (ptrdiff_t)(n * R)),
                   real_at(t, y, (ptrdiff_t)((n / B * B + active[n % B]) * R)), R * size))
            fail(t, "plan: y of step %zu, row %zu is not that of the sequence", n / B, n % B);
    if (memcmp(got_h, h_n, L * B * R * size) || (has_c && memcmp(got_c, c_n, L * B * H * size)))
        fail(t, "plan: its states are not those of the sequence");
    cylstm_plan_reset_row(plan, turn);
    cylstm_plan_get_states(plan, got_h, got_c);
    for (size_t n = 0; n < L * B * R; n++)
        if (get(t, got_h, (ptrdiff_t)n) != (n / R % B == turn ? 0 : get(t, h_n, (ptrdiff_t)n)))
            fail(t, "plan: h[%zu] after row %zu was reset", n, turn);
    for (size_t n = 0; has_c && n < L * B * H; n++)
        if (get(t, got_c, (ptrdiff_t)n) != (n / H % B == turn ? 0 : get(t, c_n, (ptrdiff_t)n)))
            fail(t, "plan: c[%zu] after row %zu was reset", n, turn);
    untouched(t);
}

static void (*const checks[])(struct trial *) = {check_calls, check_plan, check_compact_calls,
                                                 check_linear, check_steps};
enum { CHECKS = sizeof checks / sizeof *checks };

#ifdef CYLSTM_FUZZ

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    enum { CHOICES = 4 }; /* the kernels, the type, the ends of blocks, the check */
    if (size < CHOICES) return 0;
    const char *isa = cylstm_isa_name(bytes[0] % cylstm_isa_count());
    struct trial t = {.kernels = cylstm_find_kernels(isa, bytes[1] % 2 ? 64 : 32),
                      .at_end = bytes[2] % 2,
                      .bytes = bytes + CHOICES,
                      .bytes_left = size - CHOICES};
    if (!t.kernels) return 0; /* not on this CPU */
    for (size_t n = 0; n < size; n++) t.state = t.state * 31 + bytes[n];
    snprintf(t.title, sizeof t.title, "%s f%d", isa, t.kernels->bits);
    checks[bytes[3] % CHECKS](&t);
    if (t.failed) abort();
    release(&t);
    return 0;
}

#else

int main(int argc, char **argv)
{
    const uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 0,
                   trials = argc > 2 ? strtoull(argv[2], NULL, 10) : TRIALS;
    size_t failures = 0;
    for (uint64_t n = seed; n < seed + trials; n++)
        for (size_t check = 0; check < CHECKS; check++)
            for (size_t set = 0; set < cylstm_isa_count(); set++) {
                if (!cylstm_isa_usable(set)) continue;
                const char *isa = cylstm_isa_name(set);
                struct trial t = {.kernels = cylstm_find_kernels(isa, n % 2 ? 64 : 32),
                                  .seed = n,
                                  .state = n,
                                  .at_end = n / 2 % 4 != 0};
                snprintf(t.title, sizeof t.title, "%s f%d: calls %llu 1", isa, t.kernels->bits,
                         (unsigned long long)n);
                watch(&t);
                checks[check](&t);
                failures += (size_t)t.failed;
                release(&t);
            }
    printf("%llu trials on each set, %zu failed\n", (unsigned long long)trials, failures);
    return failures != 0 || !trials;
}

#endif
