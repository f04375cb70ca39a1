"""The cells in plain NumPy: the equations, and their derivatives by hand.

This package is for reading, and for testing against. It is slow, imports nothing of the library,
and computes in the dtype of ``x``. `cells` has one step of each cell, `network` a layer over time
and the stack of layers, and each backward stands directly below its forward and walks the same
lines upwards; `activations` has the functions that cells may use, `int8` and `bfloat16` the
products with rows that are rounded to either.

One step of an LSTM takes the input ``x_t`` and the state ``(h, c)`` that the previous step left::

    a_k = W_ih[k] x_t + b_ih[k] + W_hh[k] h_{t-1} + b_hh[k]      for k in i, f, g, o

    i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)
    g       = tanh(a_g)

    c_t = f * c_{t-1} + i * g          the cell: keep f of the old, write i of the new
    h_t = o * tanh(c_t)                the output: show o of the cell
    h_t = W_hr h_t                     only with a projection: a narrower h is fed back and shown

The other cells have their equations beside their steps. Their state is ``(h,)``.

``weights`` is a dict with the names, shapes and gate order of ``torch.nn.LSTM``, and says all else
there is to know about the network: for each layer ``k``, and with ``_reverse`` behind the name for
the second direction, with G gates (4 of an LSTM, 3 where two are coupled; 3 of a GRU: r, z, n; 1
of an RNN)

======================  ==================================  ================================
``weight_ih_lk``        (GH, I), in upper layers (GH, D*P)  gates i, f, g, o below each other
``weight_hh_lk``        (GH, P)
``bias_ih_lk``          (GH,)                               absent without biases
``bias_hh_lk``          (GH,)                               absent without biases
``weight_hr_lk``        (P, H)                              absent without a projection
``weight_peep_lk``      (3H,), or (2H,) of a coupled cell   absent without peepholes; i, f, o
``bias_hr_lk``          (P,)                                absent without such a bias
``weight_ln_lk``        (GH,)                               absent without a layer norm
======================  ==================================  ================================

Dims: T steps, B sequences, I inputs, H cells, P outputs (P = H without a projection), L layers,
D directions. A ``d`` before a name is the gradient of the loss with respect to it.
"""

from .activations import FUNCTIONS, Activation, sigmoid
from .bfloat16 import Bfloat16Matrix, bfloat16_weights, round_bfloat16
from .cells import GRU, LSTM, RNN, Cell, State, Weights
from .int8 import Int8Matrix, int8_weights, quantize_rows
from .network import Grads, Tape, backward, describe, forward, names, pick

__all__ = [
    "FUNCTIONS",
    "GRU",
    "LSTM",
    "RNN",
    "Activation",
    "Bfloat16Matrix",
    "Cell",
    "Grads",
    "Int8Matrix",
    "State",
    "Tape",
    "Weights",
    "backward",
    "bfloat16_weights",
    "describe",
    "forward",
    "int8_weights",
    "names",
    "pick",
    "quantize_rows",
    "round_bfloat16",
    "sigmoid",
]
