/* kernels.h -- what a kernel set is: one struct of function pointers per ISA and
 * dtype. The core holds a set in its context and passes it down, so every set that
 * this machine can run can be used, and tested, side by side in one process.
 *
 * The kernels know vectors, panels and cells. They know nothing of sequences,
 * layers, threads or memory: they get pointers to rows and never allocate.
 */
#ifndef CYLSTM_KERNELS_H
#define CYLSTM_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#define CYLSTM_X86 1
#else
#define CYLSTM_X86 0
#endif
#if defined(__aarch64__)
#define CYLSTM_AARCH64 1
#else
#define CYLSTM_AARCH64 0
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NEVER_INLINE static __attribute__((noinline))
#else
#define ALWAYS_INLINE static inline
#define NEVER_INLINE static
#endif

/* Ask for a cache line that will soon be read, or written. */
#if defined(__GNUC__)
#define FETCH(address) __builtin_prefetch(address, 0)
#define FETCH_LATER(address) __builtin_prefetch(address, 0, 2) /* into L2 */
#define FETCH_TO_WRITE(address) __builtin_prefetch(address, 1)
#else
#define FETCH(address) ((void)(address))
#define FETCH_LATER(address) ((void)(address))
#define FETCH_TO_WRITE(address) ((void)(address))
#endif

/* A region of code compiled for an ISA that the rest of the file does not assume.
 * A region needs no compiler flag of its own, so the build stays one plain glob. */
#define CYLSTM_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET_BEGIN(isa) \
    CYLSTM_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define TARGET_END CYLSTM_PRAGMA(clang attribute pop)
#else
#define TARGET_BEGIN(isa) CYLSTM_PRAGMA(GCC push_options) CYLSTM_PRAGMA(GCC target(isa))
#define TARGET_END CYLSTM_PRAGMA(GCC pop_options)
#endif

/* Full unrolling of the loops over a tile's rows and vectors keeps the accumulators
 * in registers. Each compiler honours only its own spelling. */
#if defined(__clang__)
#define UNROLL CYLSTM_PRAGMA(clang loop unroll(full))
#elif defined(__GNUC__)
#define UNROLL CYLSTM_PRAGMA(GCC unroll 16)
#else
#define UNROLL
#endif

/* M(1) M(2) ... M(rows): an instance for each height of a tile. */
#define UP_TO_2(M) M(1) M(2)
#define UP_TO_3(M) UP_TO_2(M) M(3)
#define UP_TO_4(M) UP_TO_3(M) M(4)
#define UP_TO_5(M) UP_TO_4(M) M(5)
#define UP_TO_6(M) UP_TO_5(M) M(6)
#define UP_TO(rows) UP_TO_##rows
#define EVERY_HEIGHT(rows, M) UP_TO(rows)(M)

enum {
    PANEL_VECTORS = 4,  /* a panel is always four vectors wide */
    NARROW_VECTORS = 3, /* of a row of weights in a narrow product */
    MAX_VL = 16,        /* lanes of the widest vector of any set */
    MAX_TILE_ROWS = 6   /* rows of the tallest tile of any set */
};

/* Rows of a matrix, wherever they lie; each row is contiguous. Row r starts at
 * base + offset[r], or at base + r * stride where offset is NULL. Both count reals. */
struct cylstm_rows {
    void *base;
    const ptrdiff_t *offset; /* (rows) or NULL */
    ptrdiff_t stride;
};

/* An activation, by run-time choice; activation_tmpl.h has their equations. FUNCTION_OF_CELL: the
 * one that the cell's equations name. */
enum cylstm_function_type {
    FUNCTION_OF_CELL,
    FUNCTION_SIGMOID,
    FUNCTION_TANH,
    FUNCTION_RELU,
    FUNCTION_HARD_SIGMOID,
    FUNCTION_SOFTSIGN,
    FUNCTION_SOFTPLUS,
    FUNCTION_AFFINE,
    FUNCTION_LEAKY_RELU,
    FUNCTION_THRESHOLDED_RELU,
    FUNCTION_SCALED_TANH,
    FUNCTION_ELU
};
struct cylstm_function {
    int type;
    double alpha, beta;
};

/* What makes a cell another than its equations say; all zero: nothing. */
struct cylstm_options {
    struct cylstm_function function[3]; /* of its activations, in the order of the equations */
    int coupled;                        /* LSTM: 1: f = 1 - i; 2: i = 1 - f */
    double clip;                        /* pre-activations are clipped to [-clip, clip]; 0: not */
    double cell_clip;                   /* so is c_t */
    double proj_clip;                   /* and so is h_t behind a projection */
};

/* The operands of a cell's gate math, forward or backward; a cell uses those that its equations
 * name. H is the number of real units; rows marked "padded" are as long as H rounded up to whole
 * vectors, the others exactly H. */
struct cylstm_cell {
    size_t H;
    unsigned char unit_vectors; /* vectors of a panel that belong to the same units: 4, 2 or 1 */
    unsigned char tape_vectors; /* on the tape of a step: (tape_vectors, H) */
    const struct cylstm_options *options; /* NULL: none */
    struct cylstm_rows c;                 /* forward: c_{t-1} in, c_t out; padded */
    struct cylstm_rows h;                 /* h_t out; padded; backward: base may be NULL */
    struct cylstm_rows y;                 /* forward: h_t out; base may be NULL */
    struct cylstm_rows tape;              /* forward out (base may be NULL), backward in */
    /* (3, H): what i and f see of c_{t-1}, and o of c_t; (2, H) without the one that is coupled; NULL */
    const void *peep;
    const void *bias;            /* of a projection: (its units); NULL */
    const void *norm;            /* of a normalised cell: (gates, H) */
    const void *norm_h;          /* where products are: that was of x, and this is of h; */
    const void *norm_c, *bias_c; /* of c: (H), (H) */
    const void *b_ih, *b_hh;     /* and its biases: (gates, H); NULL */
    struct cylstm_rows dnorm;    /* and backward out: what `norm_sums` of its kind are of */
    struct cylstm_rows sums;     /* and sums of whole rows: (4, H padded), backward dh */
    struct cylstm_rows sums_h;   /* where products are: those were of x, and these are of h */
    struct cylstm_rows h_prev;   /* h_{t-1} in; forward: padded; backward: base NULL means zeros */
    struct cylstm_rows c_prev;   /* backward: c_{t-1} in; base may be NULL, which means zeros */
    struct cylstm_rows dc;       /* backward: dc_t in, dc_{t-1} out; padded */
    struct cylstm_rows dh_prev;  /* backward: what the cell itself adds to dh_{t-1}, out; padded */
    /* Backward, by options alone: gradients from outside of what is on the tape, of its gates and of
     * c; base may be NULL. */
    struct cylstm_rows given_gates, given_c;
    const struct cylstm_zoneout *zoneout; /* NULL: none */
    struct cylstm_rows z; /* out of a GRU's first product, in to its second; padded */
    struct cylstm_rows
        dgates; /* backward: d pre-activations out, in the order of the cell's table */
    /* Forward-mode: the tangents of all this, under the same names: peep, bias, norm, b_ih and b_hh
     * (NULL means zeros), h_prev and z in; c in and out; h and y out. The cell itself has tape, h_prev
     * and c_prev, and h, where a second product follows, gets what it is made with. */
    const struct cylstm_cell *tangent;
};

/* Finishes `rows` rows from `row` of one panel: sums (rows, 4 VL), which are overwritten. Forward they
 * are pre-activations in panel order, backward dh of 4 VL units. */
typedef void cylstm_cell_fn(const struct cylstm_cell *cell, size_t panel, size_t row, size_t rows,
                            void *sums);

/* Zoneout: h_t = k * h_{t-1} + (1 - k) * h, where h is what `inner` has made. k is drawn, 1 with
 * probability p and else 0, as a pure function of (key, index), where unit u of row r has the index
 * (first + (row ? row[r] : r)) * width + u; or it is p, the mean of all draws. */
struct cylstm_zoneout {
    double p;
    int drawn;
    uint64_t key, first;
    const size_t *row;
    size_t width;
    cylstm_cell_fn *inner; /* NULL: forward, h is there; backward, its gradient goes to `h` */
};

/* The cells of a kernel set: each in cell_*_tmpl.h. */
enum cylstm_cell_math {
    CYLSTM_LSTM_MATH,
    CYLSTM_GRU_MATH,
    CYLSTM_GRU_GATES_MATH,     /* a GRU with two products: r, z and r * h_{t-1} of the first, */
    CYLSTM_GRU_CANDIDATE_MATH, /* n and h of the second */
    CYLSTM_RNN_MATH,
    CYLSTM_PROJECTION_MATH,
    CYLSTM_ZONEOUT_MATH, /* around another */
    CYLSTM_KEEP_MATH,    /* of a cell that waits for whole rows: forward, keeps the sums */
    CYLSTM_CELL_MATHS
};

/* The cells that take whole rows from there: cell_norm_tmpl.h, cell_norm_products_tmpl.h. */
enum cylstm_norm_math { CYLSTM_GATES_NORM, CYLSTM_PRODUCTS_NORM, CYLSTM_NORM_MATHS };

/* Finishes the first `rows` rows, all units of them. */
typedef void cylstm_rows_fn(const struct cylstm_cell *cell, size_t rows);

struct cylstm_cell_fns {
    cylstm_cell_fn *forward, *backward;
};
struct cylstm_rows_fns {
    cylstm_rows_fn *forward, *backward, *tangent;
};

/* One factor pair of a product: rows of `a` times the panels of `w`. */
struct cylstm_term {
    struct cylstm_rows a;
    ptrdiff_t a_k; /* reals from a row's element k to its element k + 1 */
    size_t K;
    const void *w; /* element (panel, k, column) at panel * w_panel + k * w_k + column */
    int wide;      /* with int8 weights: the rows are quantised to 16 bits */
};

/* out = finish(init + term[0] + term[1] + addend), one chain of multiply-adds with k
 * ascending for every element, never split over k: the bits of a result depend on
 * its own row and column alone, not on the tile, the batch or the thread it fell to. */
struct cylstm_product {
    size_t rows;
    size_t panel_begin, panel_end;
    size_t columns; /* of all panels; the last panel may hold fewer than four vectors */
    int descending; /* take the panels last to first */
    int streams;    /* `out` is too large to be found in a cache again: write it past them */
    /* 1: of the four gates of a panel term 0 meets all but the last, and term 1 all but the first. Rows of
     * w are three vectors wide: those gates; or all four of a partial panel, where they are shorter, with
     * zeros for the one that is not the term's. With compact weights all panels hold four, and are whole. */
    int narrow;
    struct cylstm_term term[2];
    ptrdiff_t w_panel, w_k;
    /* element (row, panel, column) at panel * init_panel + row * init_row + column */
    const void *init;
    ptrdiff_t init_panel, init_row;
    struct cylstm_rows addend; /* `columns` reals a row, added last; base may be NULL */
    /* Of weights with fewer bits than a real: who multiplies by them, and memory for codes. */
    const struct cylstm_compact_kernels *compact;
    void *codes;
    cylstm_cell_fn *finish; /* with the operands in `cell`; NULL: the sums are stored to `out` */
    struct cylstm_rows out; /* row r of panel p at out + p * out_panel */
    ptrdiff_t out_panel;
    struct cylstm_cell cell;
};

/* Inverted dropout of `count` reals: out = in * mask / (1 - p), where the mask of an
 * element is a pure function of (key, index + its place). */
struct cylstm_dropout {
    double p;
    uint64_t key;
};

/* The arrays of an optimiser's step on n weights, before and after it; an array may be both. */
struct cylstm_update {
    const void *weights, *grads;
    const void *state[2]; /* Adam: the means of g and of g^2; SGD: the momentum's buffer, or NULL */
    void *out;
    void *state_out[2];
    int streams; /* Adam: `out` is too large to be found in a cache again: write it past them */
};

/* The coefficients of the equations of optim_tmpl.h. */
struct cylstm_adam_terms {
    double keep, penalty, beta1, beta2, step_size, eps;
};
struct cylstm_sgd_terms {
    double penalty, momentum, undampened, lr;
    int nesterov, first;
};

struct cylstm_compact_kernels; /* compact.h */

struct cylstm_kernels {
    const char *isa;
    int bits;         /* 32 or 64 */
    size_t lanes;     /* of a vector; VL in the templates */
    size_t tile_rows; /* rows of a full tile */
    void (*product)(const struct cylstm_product *p);
    /* Finish `rows` rows from `row` of one panel whose sums, (rows, 4 VL), came from
     * elsewhere (BLAS). `sums` is overwritten. */
    void (*finish)(const struct cylstm_product *p, size_t panel, size_t row, size_t rows,
                   void *sums);
    struct cylstm_cell_fns cell[CYLSTM_CELL_MATHS][2]; /* [1]: by the options of each call */
    struct cylstm_rows_fns norm[CYLSTM_NORM_MATHS];    /* by options */
    /* Forward-mode derivatives, by options: sums are the tangents of pre-activations. */
    cylstm_cell_fn *tangent[CYLSTM_CELL_MATHS];
    /* A vector of a panel from n <= VL rows of K reals, `stride` apart: out[k * width + lane] =
     * rows[lane * stride + k] for each k, and 0 in lanes n to `lanes`. */
    void (*transpose)(const void *rows, size_t stride, size_t n, size_t K, size_t lanes, void *out,
                      size_t width);
    /* sums (lanes) += rows * x, of n <= `lanes` rows of K reals, `stride` apart, by the chain of
     * multiply-adds of a product. */
    void (*dot_rows)(const void *rows, size_t stride, size_t n, size_t K, const void *x,
                     size_t lanes, void *sums);
    /* The sums of n <= VL pairs. */
    void (*sum_biases)(const void *b_ih, const void *b_hh, size_t n, void *out);
    /* out (n) = the sum over the rows of a * b, added to what is there if `adds`. */
    void (*sum_products)(const struct cylstm_rows *a, const struct cylstm_rows *b, size_t rows,
                         size_t n, int adds, void *out);
    void (*dropout)(const struct cylstm_dropout *d, uint64_t index, size_t count, const void *in,
                    void *out);
    void (*adam)(const struct cylstm_adam_terms *terms, const struct cylstm_update *update,
                 size_t n);
    void (*sgd)(const struct cylstm_sgd_terms *terms, const struct cylstm_update *update, size_t n);
    void (*sigmoid)(const void *x, void *y, size_t n);
    void (*tanh)(const void *x, void *y, size_t n);
    const struct cylstm_compact_kernels *bf16; /* of float32 sets */
};

#if CYLSTM_X86
extern const struct cylstm_kernels cylstm_kernels_avx512_f32, cylstm_kernels_avx512_f64;
extern const struct cylstm_kernels cylstm_kernels_avx2_f32, cylstm_kernels_avx2_f64;
extern const struct cylstm_kernels cylstm_kernels_sse2_f32, cylstm_kernels_sse2_f64;
#endif
#if CYLSTM_AARCH64
extern const struct cylstm_kernels cylstm_kernels_neon_f32, cylstm_kernels_neon_f64;
#endif
extern const struct cylstm_kernels cylstm_kernels_scalar_f32, cylstm_kernels_scalar_f64;

#endif
