/* kernels_tmpl.h -- one kernel set: the whole of the arithmetic, for one ISA and dtype.
 *
 * Parameters, set by the including file (avx2_f32.c and its like):
 *   REAL_BITS     32 or 64
 *   KERNELS       name of the struct cylstm_kernels to define
 *   ISA_NAME      its public name, such as "avx2"
 * and one vec_*.h included before, which names real, vf, VL, TILE_ROWS and the v_* operations.
 */
#include "rows_tmpl.h" /* which the others use */

#include "activation_tmpl.h"
#include "cell_tmpl.h"
#include "cell_gru_tmpl.h"
#include "cell_lstm_tmpl.h"
#include "cell_lstm_any_tmpl.h"
#include "cell_norm_tmpl.h"
#include "cell_norm_products_tmpl.h"
#include "cell_rnn_tmpl.h"
#include "projection_tmpl.h"
#include "dropout_tmpl.h"
#include "zoneout_tmpl.h"
#include "gemm_tmpl.h"
#include "optim_tmpl.h"
#include "pack_tmpl.h"
#if REAL_BITS == 32
#include "bf16_tmpl.h"
#endif

const struct cylstm_kernels KERNELS = {
    .isa = ISA_NAME,
    .bits = REAL_BITS,
    .lanes = VL,
    .tile_rows = TILE_ROWS,
    .product = product,
    .finish = finish,
    .cell =
        {
            [CYLSTM_LSTM_MATH] = {{lstm_forward, lstm_backward},
                                  {lstm_forward_any, lstm_backward_any}},
            [CYLSTM_GRU_MATH] = {{gru_forward, gru_backward}, {gru_forward_any, gru_backward_any}},
            [CYLSTM_GRU_GATES_MATH] = {{gru_gates_forward, gru_gates_backward},
                                       {gru_gates_forward_any, gru_gates_backward_any}},
            [CYLSTM_GRU_CANDIDATE_MATH] = {{gru_candidate_forward, gru_candidate_backward},
                                           {gru_candidate_forward_any, gru_candidate_backward_any}},
            [CYLSTM_RNN_MATH] = {{rnn_forward, rnn_backward}, {rnn_forward_any, rnn_backward_any}},
            [CYLSTM_PROJECTION_MATH] = {{projection_forward, projection_backward},
                                        {projection_forward, projection_backward}},
            [CYLSTM_ZONEOUT_MATH] = {{zoneout_forward, zoneout_backward},
                                     {zoneout_forward, zoneout_backward}},
            [CYLSTM_KEEP_MATH] = {{norm_keep, NULL}, {norm_keep, NULL}},
        },
    .norm = {[CYLSTM_GATES_NORM] = {norm_forward, norm_backward, norm_tangent},
             [CYLSTM_PRODUCTS_NORM] = {norm_products_forward, norm_products_backward,
                                       norm_products_tangent}},
    .tangent =
        {
            [CYLSTM_LSTM_MATH] = lstm_tangent,
            [CYLSTM_GRU_MATH] = gru_tangent,
            [CYLSTM_GRU_GATES_MATH] = gru_gates_tangent,
            [CYLSTM_GRU_CANDIDATE_MATH] = gru_candidate_tangent,
            [CYLSTM_RNN_MATH] = rnn_tangent,
            [CYLSTM_PROJECTION_MATH] = projection_tangent,
            [CYLSTM_KEEP_MATH] = norm_keep,
        },
    .transpose = transpose,
    .dot_rows = dot_rows,
    .sum_biases = sum_biases,
    .sum_products = sum_products,
    .dropout = dropout,
    .adam = adam,
    .sgd = sgd,
    .sigmoid = sigmoid_array,
    .tanh = tanh_array,
#if REAL_BITS == 32
    .bf16 = &bf16_kernels,
#endif
};
