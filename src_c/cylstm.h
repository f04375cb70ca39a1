/* cylstm.h -- LSTMs on a CPU: forward, backward and streaming, in plain C.
 *
 * The whole library is this header and the files beside it. They need a C11 compiler
 * and nothing else, no flags and no configure step:
 *
 *     cc -std=c11 -O2 -c <every .c file of src_c and src_c/kernels>     (-pthread to link)
 *
 * The equations, for every time step t, are those of PyTorch's torch.nn.LSTM:
 *
 *     a_k = W_ih[k] x_t + b_ih[k] + W_hh[k] h_{t-1} + b_hh[k]      k in i, f, g, o
 *     i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);  g = tanh(a_g)
 *     c_t = f * c_{t-1} + i * g
 *     h_t = o * tanh(c_t)                              (h_t = W_hr h_t with a projection)
 *
 * How it is used
 * --------------
 * Nothing here allocates memory and nothing here fails. You ask for a size, give
 * memory of that size (aligned to CYLSTM_ALIGN bytes), and call:
 *
 *     struct cylstm_context ctx;                        which kernels, how many threads
 *     cylstm_init_context(&ctx, NULL, 32);              the best kernels for float32
 *     struct cylstm_dims dims = {.layers = 1, .directions = 1, .input = 64, .hidden = 64, .bias = 1, .bits = 32};
 *
 *     void *packed = aligned_alloc(CYLSTM_ALIGN, cylstm_packed_size(&ctx, &dims));
 *     cylstm_pack_weights(&ctx, &dims, raw, packed);    once per set of weights
 *
 *     struct cylstm_sequence seq = {.T = 100, .B = 8, .x = x, ...};
 *     void *scratch = aligned_alloc(CYLSTM_ALIGN, cylstm_forward_scratch(&ctx, &dims, &seq));
 *     cylstm_forward(&ctx, &dims, packed, &seq, scratch);
 *
 * What callers promise
 * --------------------
 * The library trusts its caller: a breach of what follows is undefined, unless the library is
 * compiled with -DCYLSTM_DEBUG. Then most of it is asserted, and a breach ends the process before
 * memory is touched. (The Python package checks it all itself.)
 *     - Every array is as large as its comment says, and no size that was asked for is SIZE_MAX,
 *       which stands for what overflows size_t.
 *     - Arrays of reals are aligned to their type. Memory whose size the library tells, such as
 *       packed weights, scratch and plans, is aligned to CYLSTM_ALIGN.
 *     - A pointer is NULL only where its comment allows it.
 *     - What a call writes overlaps nothing else of that call, where no comment allows it. Strides
 *       may be negative; where they are of an array that is only read, zero too.
 *     - Packed weights, scratch, tapes and plans go with the kernel set, type and dims that they
 *       were made for, and scratch with the `threads` it was asked for, or fewer.
 *     - Two calls may run at once if neither writes what the other uses. No call is made from
 *       `poll` on the same scratch or plan, and none returns before it has finished with its memory.
 *
 * Compatibility
 * -------------
 * Structs may gain fields, for which zero means what was before: initialise them by name or with
 * {0}, and sources go on compiling with later versions. Before 1.0 there is no promise about the
 * binary interface: compile your program and the library with the same header, which
 * CYLSTM_VERSION names.
 *
 * Words and letters
 * -----------------
 *     T steps, B sequences (rows) of a batch, I inputs, H hidden units, P projected units,
 *     L layers, D directions (1 or 2), R = P with a projection, else H: the width of h.
 *     "real" is float or double, as `bits` says; all arrays of a call have the same type.
 *     Shapes are written (T, B, 4H): the last index moves fastest. Strides count reals.
 *     d before a name is the gradient of the loss with respect to it: dx, dh_0.
 *
 * Same bits: for one kernel set and dtype, packed inference gives a sequence the same bits
 * regardless of the batch it is in, of the number of threads and of how it is split in time.
 */
#ifndef CYLSTM_H
#define CYLSTM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header, and of the library that was compiled with it. */
#define CYLSTM_VERSION_MAJOR 0
#define CYLSTM_VERSION_MINOR 1
#define CYLSTM_VERSION_PATCH 0
#define CYLSTM_VERSION "0.1.0"

/* Marks the functions below. Nothing is exported unless CYLSTM_SHARED is defined: then a library
 * compiled with -fvisibility=hidden exports these and no others. */
#if defined(CYLSTM_SHARED) && defined(__GNUC__)
#define CYLSTM_API __attribute__((visibility("default")))
#else
#define CYLSTM_API
#endif

#define CYLSTM_ALIGN 64

/* ------------------------------------------------------------------ the context */

struct cylstm_kernels;         /* the arithmetic for one ISA and dtype: kernels/kernels.h */
struct cylstm_compact_kernels; /* products with weights of fewer bits: kernels/compact.h */

/* Fortran BLAS, column-major: c = alpha op(a) op(b) + beta c. A caller that has
 * a BLAS sets one of the two; the core has none of its own. */
typedef void cylstm_sgemm(const char *transa, const char *transb, const int *m, const int *n,
                          const int *k, const float *alpha, const float *a, const int *lda,
                          const float *b, const int *ldb, const float *beta, float *c,
                          const int *ldc);
typedef void cylstm_dgemm(const char *transa, const char *transb, const int *m, const int *n,
                          const int *k, const double *alpha, const double *a, const int *lda,
                          const double *b, const int *ldb, const double *beta, double *c,
                          const int *ldc);

/* Everything that a call needs to know of its surroundings. Fill it with
 * cylstm_init_context, then change what you like; it may live on the stack. */
struct cylstm_context {
    const struct cylstm_kernels *kernels;
    int threads;         /* cores this call may keep busy, at least 1 */
    cylstm_sgemm *sgemm; /* set: every product goes through BLAS (float32) */
    cylstm_dgemm *dgemm; /* set: every product goes through BLAS (float64) */
    /* For int8 weights. All of them give the same bits; NULL: none can be met. */
    const struct cylstm_compact_kernels *int8;
    /* For CYLSTM_BFLOAT16_PRODUCTS; NULL: this CPU, or the kernel set, has none. */
    const struct cylstm_compact_kernels *bf16;
    /* Called on the calling thread about every 20 ms, if set; a result other than 0
     * ends the call early, with its outputs unfinished. */
    int (*poll)(void *poll_arg);
    void *poll_arg;
};

/* The kernel sets compiled into this library, best first: 0 <= n < cylstm_isa_count().
 * A name that this CPU (or its operating system) can't run is not usable. */
CYLSTM_API size_t cylstm_isa_count(void);
CYLSTM_API const char *cylstm_isa_name(size_t n);
CYLSTM_API int cylstm_isa_usable(size_t n);

/* The kernels of one ISA ("avx512", "avx2", ..., or NULL for the best usable one) and
 * dtype (bits 32 or 64); NULL if there is no such set or this CPU can't run it. */
CYLSTM_API const struct cylstm_kernels *cylstm_find_kernels(const char *isa, int bits);
CYLSTM_API const char *cylstm_kernels_isa(const struct cylstm_kernels *kernels);

/* The ways of multiplying int8, best first: 0 <= n < cylstm_int8_count(). One serves the kernel sets
 * of its vector width ("avx512vnni" and "avx512" the set "avx512") where this CPU can run it. */
CYLSTM_API size_t cylstm_int8_count(void);
CYLSTM_API const char *cylstm_int8_name(size_t n);
/* That of a name, or NULL for the best one, for a float32 kernel set; NULL if there is none. */
CYLSTM_API const struct cylstm_compact_kernels *cylstm_find_int8(
    const char *name, const struct cylstm_kernels *kernels);
CYLSTM_API const char *cylstm_int8_kernels_name(const struct cylstm_compact_kernels *kernels);

/* Who multiplies bfloat16 beside a float32 kernel set: the CPU, where it can, for "avx512" and "neon",
 * and portable C for "scalar"; else NULL. */
CYLSTM_API const struct cylstm_compact_kernels *cylstm_find_bf16(
    const struct cylstm_kernels *kernels);
CYLSTM_API const char *cylstm_bf16_kernels_name(const struct cylstm_compact_kernels *kernels);

/* The kernels' own sigmoid and tanh of n reals, for tests of their accuracy. */
CYLSTM_API void cylstm_apply_activation(const struct cylstm_kernels *kernels, int is_tanh,
                                        const void *x, void *y, size_t n);

/* One thread, no BLAS, no poll, and the kernels as above. Returns 0 if there are none
 * (then nothing may be called with this context), else 1. */
CYLSTM_API int cylstm_init_context(struct cylstm_context *ctx, const char *isa, int bits);

/* ------------------------------------------------------------------ the weights */

/* What is left out of an initialiser is 0, and means the plain LSTM. */
struct cylstm_dims {
    size_t layers, directions; /* L >= 1; D is 1 or 2 */
    size_t input, hidden;      /* I and H, at least 1 (a field I would collide with <complex.h>) */
    size_t proj;               /* P; 0: no projection */
    int bias;                  /* 0: the raw weights hold no biases */
    int bits;                  /* 32: float, 64: double */
    int cell;                  /* enum cylstm_cell_type */
    int format;                /* enum cylstm_format_type: of the weights */
    struct
        cylstm_activation { /* of each direction, in the order of the cell's equations: an LSTM */
        int type;           /* has 3 (gates, g, of c), a GRU 2 (gates, n), an RNN 1; */
        double alpha, beta; /* enum cylstm_activation_type */
    } activation[2][3];
    int peephole;     /* LSTM: i and f see c_{t-1}, o sees c_t, each unit its own */
    double clip;      /* pre-activations are clipped to [-clip, clip]; 0: not */
    double cell_clip; /* LSTM: so is c_t */
    int proj_bias;    /* a projection has a bias: h_t = W_hr h_t + b_hr */
    double proj_clip; /* and what it gives is clipped, as c_t may be; 0: not */
    int layer_norm;   /* LSTM: enum cylstm_norm_type */
    int reverse;      /* of one direction: it begins with each sequence's last step */
    /* From 0 to 1, and without proj_clip: h_t = k * h_{t-1} + (1 - k) * h, where h is what the cell, or
     * its projection, has made (Krueger et al. 2017, arXiv:1606.01305); k of every step, row and unit
     * is this, or drawn, as a tape says. */
    double zoneout;
    int wide_inputs; /* with int8: rows of x_t are quantised to 16 bits instead of 8 */
};

/* What is normalised over all units of a layer: s to z = (s - mean) / sqrt(variance + epsilon). */
enum cylstm_norm_type {
    CYLSTM_NO_NORM,
    /* LiteRT's: each gate's sum, before its bias: a_k = w_ln[k] z_k + b_ih[k] + b_hh[k], where s_k is
     * the sum of the products and of the peephole; epsilon is 1e-8 */
    CYLSTM_LITERT_NORM,
    /* Haste's: each product by itself, over the units of all gates together, and c as it is shown:
     * a = w_ln_ih z(W_ih x) + w_ln_hh z(W_hh h) + b_ih + b_hh, h = o * tanh(w_ln_cell z(c) + b_ln_cell);
     * epsilon is 1e-5. No peepholes, no coupled gates. */
    CYLSTM_HASTE_NORM,
    CYLSTM_NORMS
};

/* ONNX's list, with its alpha and beta. */
enum cylstm_activation_type {
    CYLSTM_OF_CELL, /* the one that the cell's equations name */
    CYLSTM_SIGMOID,
    CYLSTM_TANH,
    CYLSTM_RELU,
    CYLSTM_HARD_SIGMOID,     /* max(0, min(1, alpha x + beta)) */
    CYLSTM_SOFTSIGN,         /* x / (1 + |x|) */
    CYLSTM_SOFTPLUS,         /* log(1 + e^x) */
    CYLSTM_AFFINE,           /* alpha x + beta */
    CYLSTM_LEAKY_RELU,       /* x, or alpha x where x < 0 */
    CYLSTM_THRESHOLDED_RELU, /* x where x > alpha, else 0 */
    CYLSTM_SCALED_TANH,      /* alpha tanh(beta x) */
    CYLSTM_ELU               /* x, or alpha (e^x - 1) where x < 0 */
};

/* The kinds of cell, with the gates in the order of their raw weights. */
enum cylstm_cell_type {
    CYLSTM_LSTM,             /* i, f, g, o */
    CYLSTM_LSTM_COUPLED_F,   /* i, g, o, with f = 1 - i */
    CYLSTM_LSTM_COUPLED_I,   /* f, g, o, with i = 1 - f */
    CYLSTM_GRU,              /* r, z, n, where n = tanh(W_in x + b_in + r * (W_hn h + b_hn)) */
    CYLSTM_GRU_RESET_BEFORE, /* the same, with n = tanh(W_in x + b_in + W_hn (r * h) + b_hn) */
    CYLSTM_RNN,              /* one; h = tanh of its sum */
    CYLSTM_CELLS
};

/* What a caller must know of a cell. */
struct cylstm_cell_shape {
    size_t gates;        /* of the raw weights */
    size_t states;       /* 1: h; 2: h and c */
    size_t tape_gates;   /* after their activations: first on the tape of a step */
    size_t tape_vectors; /* of H reals on it in all; last, with two states, c */
};
CYLSTM_API struct cylstm_cell_shape cylstm_find_cell(const struct cylstm_dims *dims);

/* How the matrices of the weights are stored, raw and packed. Those of fewer bits than a real are for
 * inference in float32: they have no backward pass. Biases are reals in all of them.
 *
 * With int8, a row of a matrix has a scale of its own, weight = scale * code with |code| <= 127, and
 * so has each row of activations, quantised as it is met: to 8 bits, or inputs to 16. */
enum cylstm_format_type {
    CYLSTM_AS_COMPUTED, /* reals */
    CYLSTM_BFLOAT16,    /* uint16_t: the upper half of a float */
    CYLSTM_INT8,        /* int8_t, and a float for each row */
    /* As CYLSTM_BFLOAT16, and rows of activations are rounded to it as they are met, for CPUs that
     * multiply pairs of it. Products are exact; a sum of K of them is off by at most
     * (ceil(K / 2) + 1) 2^-23 times the sum of all magnitudes, which is in the CPU's own hands. */
    CYLSTM_BFLOAT16_PRODUCTS,
    CYLSTM_FORMATS
};

/* Raw weights are one array, in PyTorch's names, shapes and order, one after another: for
 * each layer, for each direction, with G gates,
 *     weight_ih (G*H, I of the layer), weight_hh (G*H, R), bias_ih (G*H), bias_hh (G*H),
 *     weight_peep (3H: i, f, o; 2H without the gate that is coupled), weight_hr (P, H), bias_hr (P),
 *     weight_ln (G*H), or weight_ln_ih (G*H), weight_ln_hh (G*H), weight_ln_cell (H), bias_ln_cell (H)
 * each matrix followed by its scales where it has them, as far as `dims` ask for them; layers above
 * the first have D * R inputs. */
enum cylstm_array_type {
    CYLSTM_WEIGHT_IH,
    CYLSTM_WEIGHT_HH,
    CYLSTM_BIAS_IH,
    CYLSTM_BIAS_HH,
    CYLSTM_WEIGHT_PEEP,
    CYLSTM_WEIGHT_HR,
    CYLSTM_BIAS_HR,
    CYLSTM_WEIGHT_LN,
    CYLSTM_WEIGHT_LN_IH,
    CYLSTM_WEIGHT_LN_HH,
    CYLSTM_WEIGHT_LN_CELL,
    CYLSTM_BIAS_LN_CELL,
    CYLSTM_SCALE_IH, /* of the rows of weight_ih, behind it: int8 only, as are the next two */
    CYLSTM_SCALE_HH,
    CYLSTM_SCALE_HR,
    CYLSTM_ARRAYS /* of a layer and direction, at most */
};
struct cylstm_array {
    enum cylstm_array_type type;
    const char *name;     /* without the layer and direction: "weight_ih" */
    size_t rows, columns; /* columns 0: a vector */
    size_t bytes;         /* of an element */
    size_t at;            /* where it starts, in reals: it fills whole ones */
};
/* List the arrays of a layer and direction, in order; returns how many there are. Sizes that
 * overflow, here and in all that follows, are SIZE_MAX. */
CYLSTM_API size_t cylstm_list_arrays(const struct cylstm_dims *dims, size_t layer, size_t direction,
                                     struct cylstm_array arrays[CYLSTM_ARRAYS]);
CYLSTM_API size_t cylstm_raw_count(const struct cylstm_dims *dims); /* reals, or as much memory */

/* Packed weights: what the kernels read. `packed` serves the forward pass, and
 * `packed_backward` the backward pass; both depend on the kernel set of the context. Their sizes are
 * multiples of CYLSTM_ALIGN. */
CYLSTM_API size_t cylstm_packed_size(const struct cylstm_context *ctx,
                                     const struct cylstm_dims *dims);
CYLSTM_API void cylstm_pack_weights(const struct cylstm_context *ctx,
                                    const struct cylstm_dims *dims, const void *raw, void *packed);
CYLSTM_API size_t cylstm_packed_backward_size(const struct cylstm_context *ctx,
                                              const struct cylstm_dims *dims);
CYLSTM_API void cylstm_pack_backward(const struct cylstm_context *ctx,
                                     const struct cylstm_dims *dims, const void *raw,
                                     void *packed_backward);

/* DropConnect (Wan et al. 2013), of what a layer says to itself: `out` gets the raw weights, in which
 * each element of a weight_hh is 0 with probability p, else divided by 1 - p, by the key alone. To
 * train with it is to go forward and backward with these weights, and to do the same to the gradient of
 * the weights that comes of it. `out` may be `raw`, and `raw` such gradients. */
CYLSTM_API void cylstm_drop_recurrent(const struct cylstm_context *ctx,
                                      const struct cylstm_dims *dims, double p, uint64_t key,
                                      const void *raw, void *out);

/* ---------------------------------------------------------------------- forward */

/* What the backward pass needs of a forward pass. Memory is the caller's. */
struct cylstm_tape {
    /* (L*D, T, B, tape_vectors, H) of every step, set to 0 past each length */
    void *cells;
    /* (L-1, T, B, D*R): outputs of the layers below the last, before dropout; with `reverse` in the
     * order in which they were computed */
    void *hidden;
    /* Not 0: `cells` holds (L*D, T, B, H), c alone, nothing of a cell without it; backward computes the
     * rest again. */
    int checkpoint;
    double dropout;       /* of the outputs between layers; 0: none, 1: all */
    uint64_t dropout_key; /* a different key draws a different mask */
    int draws_zoneout; /* not 0: k of zoneout is 1 with its probability, else 0, by the same key */
};

/* Bytes of its two arrays for T steps of B rows: `cells`, a multiple of CYLSTM_ALIGN, and `hidden`. */
CYLSTM_API size_t cylstm_tape_cells_size(const struct cylstm_dims *dims, size_t T, size_t B);
CYLSTM_API size_t cylstm_checkpoint_cells_size(const struct cylstm_dims *dims, size_t T, size_t B);
CYLSTM_API size_t cylstm_tape_hidden_size(const struct cylstm_dims *dims, size_t T, size_t B);

/* With one state, c_0, c_n and their gradients are NULL everywhere. */
struct cylstm_sequence {
    size_t T, B;           /* both at least 1 */
    const size_t *lengths; /* (B), each 0 <= length <= T; NULL: all T */
    /* (T, B), or NULL: nothing. Where `mask` is 0, the states are held and y is 0, or, with
     * `hold_output`, what it was a step ago in the order of the direction (0 before the first): as
     * lengths, which are the mask t < length. Where `reset` is not 0, the states are zero before that
     * step; in both directions the boundary lies between t - 1 and t. Past a length nothing is read. */
    const unsigned char *mask, *reset;
    int hold_output;
    const void *x;         /* (T, B, I) */
    ptrdiff_t x_t, x_b;    /* from a step to the next, from a row to the next */
    const void *h_0, *c_0; /* (L*D, B, R), (L*D, B, H); NULL: zeros */
    void *y;               /* (T, B, D*R), set to 0 past each length */
    ptrdiff_t y_t, y_b;
    void *h_n, *c_n;          /* (L*D, B, R), (L*D, B, H): states after the last valid step */
    struct cylstm_tape *tape; /* NULL: inference */
    /* NULL, or the raw weights: then these are read, until the call ends, and no packed ones.
     * Scratch sizes depend on it; backward need not have what forward had. */
    const void *raw;
    /* Backward: not 0: dweights is (B, cylstm_raw_count), of each sequence its own, and not truncated.
     * Scratch sizes depend on it. */
    int per_sample;
    /* Backward, of a tape with `checkpoint`: the packed weights of the forward pass. */
    const void *packed;
};

/* Whether a call of T steps and B rows should read raw weights, if it is the only one to read them:
 * a step takes less time than packing. The bits are the same either way. */
CYLSTM_API int cylstm_reads_raw(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                                size_t T, size_t B);

CYLSTM_API size_t cylstm_forward_scratch(const struct cylstm_context *ctx,
                                         const struct cylstm_dims *dims,
                                         const struct cylstm_sequence *seq);
CYLSTM_API void cylstm_forward(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                               const void *packed, const struct cylstm_sequence *seq,
                               void *scratch);

/* Multiply-adds, times two, that a call spends on its gates: useful to decide in
 * advance whether a call is worth a thread. `rows` is the number of valid (t, b). */
CYLSTM_API double cylstm_forward_flops(const struct cylstm_dims *dims, double rows);

/* --------------------------------------------------------------------- backward */

/* The gradients of one loss, given those by y, h_n and c_n. The sequence is the one
 * that went forward, with its tape; nothing in it is changed. */
struct cylstm_gradients {
    const void *dy; /* (T, B, D*R) or NULL for zeros; ignored past each length */
    ptrdiff_t dy_t, dy_b;
    const void *dh_n, *dc_n; /* (L*D, B, R), (L*D, B, H) or NULL for zeros */
    /* (L*D, T, B, H), (L*D, T, B, tape_gates, H), of what is on the tape: c, and the gates after their
     * activations; or NULL for zeros, and ignored past each length */
    const void *dcells, *dgates;
    void *dx; /* (T, B, I), set to 0 past each length */
    ptrdiff_t dx_t, dx_b;
    void *dh_0, *dc_0; /* (L*D, B, R), (L*D, B, H) */
    /* Truncated backpropagation through time, of layers in one direction: the gradients of the loss of
     * every k1 steps (of what y, c and gates are there, and of last states) go back through the k2 steps
     * that end with them, and no further; k1 <= k2. 0: through all. */
    size_t k1, k2;
    void *dweights; /* cylstm_raw_count reals, in the order of the raw weights */
};

CYLSTM_API size_t cylstm_backward_scratch(const struct cylstm_context *ctx,
                                          const struct cylstm_dims *dims,
                                          const struct cylstm_sequence *seq);
CYLSTM_API void cylstm_backward(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                                const void *packed_backward, const struct cylstm_sequence *seq,
                                const struct cylstm_gradients *grads, void *scratch);

/* -------------------------------------------------------------- forward-mode derivatives */

/* How outputs change as inputs, states and weights do: a product of the Jacobian with a vector. Here d
 * before a name is its tangent. The sequence is the one that went forward, with its tape, which must
 * not be a checkpoint; nothing in it is changed. */
struct cylstm_tangents {
    const void *dx; /* (T, B, I) or NULL for zeros; ignored past each length */
    ptrdiff_t dx_t, dx_b;
    const void *dh_0, *dc_0; /* (L*D, B, R), (L*D, B, H) or NULL for zeros */
    const void *dweights;    /* packed as cylstm_pack_weights does it; NULL for zeros */
    void *dy;                /* (T, B, D*R), set to 0 past each length */
    ptrdiff_t dy_t, dy_b;
    void *dh_n, *dc_n; /* (L*D, B, R), (L*D, B, H) */
};

CYLSTM_API size_t cylstm_jvp_scratch(const struct cylstm_context *ctx,
                                     const struct cylstm_dims *dims,
                                     const struct cylstm_sequence *seq);
CYLSTM_API void cylstm_jvp(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                           const void *packed, const struct cylstm_sequence *seq,
                           const struct cylstm_tangents *tangents, void *scratch);

/* ---------------------------------------------------------------- an affine map */

/* y = x W^T + b for each row, with W as it is: reals are not packed. All arrays are contiguous
 * and apart. The bits of a row depend neither on the other rows nor on the threads. */
struct cylstm_linear {
    size_t rows, inputs, outputs; /* each at least 1 */
    const void *weight;           /* W (outputs, inputs), or what cylstm_pack_linear made of it */
    int format;                   /* enum cylstm_format_type; backward wants reals */
    int wide_inputs;              /* as of cylstm_dims */
};

/* In a format of fewer bits W is packed, once: from `raw`, W as it is stored and behind it, from a
 * whole real on, the scales of its rows where it has them. `rows` and `weight` are not used. */
CYLSTM_API size_t cylstm_linear_packed_size(const struct cylstm_context *ctx,
                                            const struct cylstm_linear *linear);
CYLSTM_API void cylstm_pack_linear(const struct cylstm_context *ctx,
                                   const struct cylstm_linear *linear, const void *raw,
                                   void *packed);

CYLSTM_API size_t cylstm_linear_scratch(const struct cylstm_context *ctx,
                                        const struct cylstm_linear *linear);
/* x (rows, inputs), bias (outputs) or NULL for zeros, y (rows, outputs) */
CYLSTM_API void cylstm_linear_forward(const struct cylstm_context *ctx,
                                      const struct cylstm_linear *linear, const void *x,
                                      const void *bias, void *y, void *scratch);

struct cylstm_linear_gradients {
    const void *x, *dy; /* (rows, inputs), (rows, outputs) */
    void *dx;           /* (rows, inputs), or NULL where it is not wanted */
    void *dweight;      /* (outputs, inputs) */
};
CYLSTM_API void cylstm_linear_backward(const struct cylstm_context *ctx,
                                       const struct cylstm_linear *linear,
                                       const struct cylstm_linear_gradients *grads, void *scratch);

/* ------------------------------------------------------------------- optimisers */

/* A step on n weights: `out` gets the new ones. What is remembered from step to step starts as
 * zeros, and `..._out` gets what it is after the step. An `out` may be the array that it follows.
 *
 * Adam (Kingma and Ba 2015, algorithm 1), with weight decay as a penalty added to the
 * gradient or, decoupled, on the weights themselves (Loshchilov and Hutter 2019). */
struct cylstm_adam {
    double lr, beta1, beta2, eps, weight_decay;
    int decoupled;
    uint64_t step; /* of this step: 1 at the first */
};
CYLSTM_API void cylstm_adam_step(const struct cylstm_context *ctx, const struct cylstm_adam *adam,
                                 size_t n, const void *weights, const void *grads, const void *mean,
                                 const void *square, void *out, void *mean_out, void *square_out);

/* Gradient descent, with PyTorch's equations. Both buffers are NULL without momentum. */
struct cylstm_sgd {
    double lr, momentum, dampening, weight_decay;
    int nesterov;
    uint64_t step;
};
CYLSTM_API void cylstm_sgd_step(const struct cylstm_context *ctx, const struct cylstm_sgd *sgd,
                                size_t n, const void *weights, const void *grads,
                                const void *buffer, void *out, void *buffer_out);

/* ------------------------------------------------------------------------ plans */

/* A plan is a forward pass prepared for many short calls: B streams whose states stay
 * inside it, in the kernels' own layout, from call to call. One direction only, not `reverse`. A step
 * on a plan allocates nothing, and is bit for bit the step of a whole sequence.
 *
 * `mem` holds everything, the states included: copy the states out before you move it.
 * Packed weights are read at every step and must live as long as they are used; to
 * swap them, pass others of the same dims (the states stay). A plan is run with the kernel
 * set that it was made with; threads, BLAS and poll may differ from call to call, and of the
 * threads no more are used than it was made with. */
struct cylstm_plan;
CYLSTM_API size_t cylstm_plan_size(const struct cylstm_context *ctx, const struct cylstm_dims *dims,
                                   size_t B);
CYLSTM_API struct cylstm_plan *cylstm_plan_init(const struct cylstm_context *ctx,
                                                const struct cylstm_dims *dims, size_t B,
                                                void *mem);
/* States: h (L, B, R) and c (L, B, H). They start at zero, and NULL sets them to it. */
CYLSTM_API void cylstm_plan_get_states(const struct cylstm_plan *plan, void *h, void *c);
CYLSTM_API void cylstm_plan_set_states(struct cylstm_plan *plan, const void *h, const void *c);
CYLSTM_API void cylstm_plan_reset_row(struct cylstm_plan *plan, size_t row);
/* T steps of the rows named by `active` (`rows` of them, distinct, each below B), or of all B
 * rows if active is NULL: x (T, rows, I) -> y (T, rows, R), contiguous and apart. T may be 0. */
CYLSTM_API void cylstm_plan_run(struct cylstm_plan *plan, const struct cylstm_context *ctx,
                                const void *packed, size_t T, const size_t *active, size_t rows,
                                const void *x, void *y);

/* ---------------------------------------------------------------------- threads */

/* The pool is one per process and starts with the first call that has use for it. It
 * serves one call at a time; a call that finds it busy runs on its own thread, with the
 * same bits. Helpers sleep when there is nothing to do, and a forked child starts its own. */
CYLSTM_API int cylstm_pool_helpers(void); /* helper threads alive now */

/* End the helpers and return when they are gone; the next call that has use for the pool starts
 * it again. Returns 0, and stops nothing, while a call has the pool; else 1. A shared library
 * does so by itself as it is unloaded or the process exits. */
CYLSTM_API int cylstm_stop_pool(void);

#ifdef __cplusplus
}
#endif
#endif
