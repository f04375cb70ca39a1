# The C core's header, name for name; it holds no logic.
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint64_t

cdef extern from "cylstm.h" nogil:
    enum: CYLSTM_ALIGN

    cdef struct cylstm_compact_kernels:
        pass
    cdef struct cylstm_kernels:
        pass
    ctypedef void cylstm_sgemm(const char *transa, const char *transb, const int *m, const int *n,
                               const int *k, const float *alpha, const float *a, const int *lda,
                               const float *b, const int *ldb, const float *beta, float *c,
                               const int *ldc)
    ctypedef void cylstm_dgemm(const char *transa, const char *transb, const int *m, const int *n,
                               const int *k, const double *alpha, const double *a, const int *lda,
                               const double *b, const int *ldb, const double *beta, double *c,
                               const int *ldc)

    cdef struct cylstm_context:
        const cylstm_kernels *kernels
        int threads
        cylstm_sgemm *sgemm
        cylstm_dgemm *dgemm
        const cylstm_compact_kernels *int8
        const cylstm_compact_kernels *bf16
        int (*poll)(void *poll_arg) noexcept nogil
        void *poll_arg

    size_t cylstm_int8_count()
    const char *cylstm_int8_name(size_t n)
    const cylstm_compact_kernels *cylstm_find_int8(const char *name, const cylstm_kernels *kernels)
    const char *cylstm_int8_kernels_name(const cylstm_compact_kernels *kernels)
    const cylstm_compact_kernels *cylstm_find_bf16(const cylstm_kernels *kernels)
    const char *cylstm_bf16_kernels_name(const cylstm_compact_kernels *kernels)

    size_t cylstm_isa_count()
    const char *cylstm_isa_name(size_t n)
    int cylstm_isa_usable(size_t n)
    const cylstm_kernels *cylstm_find_kernels(const char *isa, int bits)
    const char *cylstm_kernels_isa(const cylstm_kernels *kernels)
    void cylstm_apply_activation(const cylstm_kernels *kernels, int is_tanh, const void *x, void *y,
                                 size_t n)

    cdef struct cylstm_activation:
        int type
        double alpha, beta

    cdef struct cylstm_dims:
        size_t layers, directions
        size_t input, hidden, proj
        int bias
        int bits, cell, format
        cylstm_activation[2][3] activation
        int peephole
        double clip, cell_clip
        int proj_bias
        double proj_clip
        int layer_norm
        int reverse
        double zoneout
        int wide_inputs

    enum: CYLSTM_LSTM, CYLSTM_LSTM_COUPLED_F, CYLSTM_LSTM_COUPLED_I
    enum: CYLSTM_GRU, CYLSTM_GRU_RESET_BEFORE, CYLSTM_RNN
    enum: CYLSTM_SIGMOID, CYLSTM_TANH, CYLSTM_RELU, CYLSTM_HARD_SIGMOID, CYLSTM_SOFTSIGN
    enum: CYLSTM_SOFTPLUS, CYLSTM_AFFINE, CYLSTM_LEAKY_RELU, CYLSTM_THRESHOLDED_RELU
    enum: CYLSTM_SCALED_TANH, CYLSTM_ELU

    cdef struct cylstm_cell_shape:
        size_t gates, states, tape_gates, tape_vectors
    cylstm_cell_shape cylstm_find_cell(const cylstm_dims *dims)

    enum: CYLSTM_NO_NORM, CYLSTM_LITERT_NORM, CYLSTM_HASTE_NORM
    enum: CYLSTM_AS_COMPUTED, CYLSTM_BFLOAT16, CYLSTM_INT8, CYLSTM_BFLOAT16_PRODUCTS
    enum: CYLSTM_ARRAYS

    cdef struct cylstm_array:
        const char *name
        size_t rows, columns, at
    size_t cylstm_list_arrays(const cylstm_dims *dims, size_t layer, size_t direction,
                              cylstm_array *arrays)
    size_t cylstm_raw_count(const cylstm_dims *dims)
    size_t cylstm_packed_size(const cylstm_context *ctx, const cylstm_dims *dims)
    void cylstm_pack_weights(const cylstm_context *ctx, const cylstm_dims *dims, const void *raw,
                             void *packed)
    size_t cylstm_packed_backward_size(const cylstm_context *ctx, const cylstm_dims *dims)
    void cylstm_pack_backward(const cylstm_context *ctx, const cylstm_dims *dims, const void *raw,
                              void *packed_backward)

    void cylstm_drop_recurrent(const cylstm_context *ctx, const cylstm_dims *dims, double p,
                               uint64_t key, const void *raw, void *out)

    cdef struct cylstm_tape:
        void *cells
        void *hidden
        int checkpoint
        double dropout
        uint64_t dropout_key
        int draws_zoneout

    size_t cylstm_tape_cells_size(const cylstm_dims *dims, size_t T, size_t B)
    size_t cylstm_checkpoint_cells_size(const cylstm_dims *dims, size_t T, size_t B)
    size_t cylstm_tape_hidden_size(const cylstm_dims *dims, size_t T, size_t B)

    cdef struct cylstm_sequence:
        size_t T, B
        const size_t *lengths
        const unsigned char *mask
        const unsigned char *reset
        int hold_output
        const void *x
        ptrdiff_t x_t, x_b
        const void *h_0
        const void *c_0
        void *y
        ptrdiff_t y_t, y_b
        void *h_n
        void *c_n
        cylstm_tape *tape
        const void *raw
        int per_sample
        const void *packed

    int cylstm_reads_raw(const cylstm_context *ctx, const cylstm_dims *dims, size_t T, size_t B)
    size_t cylstm_forward_scratch(const cylstm_context *ctx, const cylstm_dims *dims,
                                  const cylstm_sequence *seq)
    void cylstm_forward(const cylstm_context *ctx, const cylstm_dims *dims, const void *packed,
                        const cylstm_sequence *seq, void *scratch)
    double cylstm_forward_flops(const cylstm_dims *dims, double rows)

    cdef struct cylstm_gradients:
        const void *dy
        ptrdiff_t dy_t, dy_b
        const void *dh_n
        const void *dc_n
        const void *dcells
        const void *dgates
        void *dx
        ptrdiff_t dx_t, dx_b
        void *dh_0
        void *dc_0
        size_t k1, k2
        void *dweights

    size_t cylstm_backward_scratch(const cylstm_context *ctx, const cylstm_dims *dims,
                                   const cylstm_sequence *seq)
    void cylstm_backward(const cylstm_context *ctx, const cylstm_dims *dims,
                         const void *packed_backward, const cylstm_sequence *seq,
                         const cylstm_gradients *grads, void *scratch)

    cdef struct cylstm_tangents:
        const void *dx
        ptrdiff_t dx_t, dx_b
        const void *dh_0
        const void *dc_0
        const void *dweights
        void *dy
        ptrdiff_t dy_t, dy_b
        void *dh_n
        void *dc_n

    size_t cylstm_jvp_scratch(const cylstm_context *ctx, const cylstm_dims *dims,
                              const cylstm_sequence *seq)
    void cylstm_jvp(const cylstm_context *ctx, const cylstm_dims *dims, const void *packed,
                    const cylstm_sequence *seq, const cylstm_tangents *tangents, void *scratch)

    cdef struct cylstm_linear:
        size_t rows, inputs, outputs
        const void *weight
        int format
        int wide_inputs

    size_t cylstm_linear_packed_size(const cylstm_context *ctx, const cylstm_linear *linear)
    void cylstm_pack_linear(const cylstm_context *ctx, const cylstm_linear *linear, const void *raw,
                            void *packed)
    size_t cylstm_linear_scratch(const cylstm_context *ctx, const cylstm_linear *linear)
    void cylstm_linear_forward(const cylstm_context *ctx, const cylstm_linear *linear,
                               const void *x, const void *bias, void *y, void *scratch)

    cdef struct cylstm_linear_gradients:
        const void *x
        const void *dy
        void *dx
        void *dweight

    void cylstm_linear_backward(const cylstm_context *ctx, const cylstm_linear *linear,
                                const cylstm_linear_gradients *grads, void *scratch)

    cdef struct cylstm_adam:
        double lr, beta1, beta2, eps, weight_decay
        int decoupled
        uint64_t step

    void cylstm_adam_step(const cylstm_context *ctx, const cylstm_adam *adam, size_t n,
                          const void *weights, const void *grads, const void *mean,
                          const void *square, void *out, void *mean_out, void *square_out)

    cdef struct cylstm_sgd:
        double lr, momentum, dampening, weight_decay
        int nesterov
        uint64_t step

    void cylstm_sgd_step(const cylstm_context *ctx, const cylstm_sgd *sgd, size_t n,
                         const void *weights, const void *grads, const void *buffer, void *out,
                         void *buffer_out)

    cdef struct cylstm_plan:
        pass
    size_t cylstm_plan_size(const cylstm_context *ctx, const cylstm_dims *dims, size_t B)
    cylstm_plan *cylstm_plan_init(const cylstm_context *ctx, const cylstm_dims *dims, size_t B,
                                  void *mem)
    void cylstm_plan_get_states(const cylstm_plan *plan, void *h, void *c)
    void cylstm_plan_set_states(cylstm_plan *plan, const void *h, const void *c)
    void cylstm_plan_reset_row(cylstm_plan *plan, size_t row)
    void cylstm_plan_run(cylstm_plan *plan, const cylstm_context *ctx, const void *packed, size_t T,
                         const size_t *active, size_t rows, const void *x, void *y)

    int cylstm_pool_helpers()
    int cylstm_stop_pool()
