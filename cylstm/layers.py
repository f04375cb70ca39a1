"""The LSTM: what its arguments mean, and which weights it holds. All arithmetic is in `_core`."""

from __future__ import annotations

import itertools
import math
import operator
import os
import sys
from functools import partial
from typing import Any

from numpy.typing import DTypeLike

from . import _checks, _core
from .weights import Array, Module, Spec, WeightGrads, Weights

States = tuple[Array, Array]

MAX_LAYERS = 2**16  # a stack's weights are listed by name


class LSTM(Module):
    """A stack of LSTM layers, with the arguments and the meaning of torch.nn.LSTM.

    For every layer and time step (Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735,
    with the forget gate of Gers et al. 2000, doi:10.1162/089976600300015015)::

        a_k = W_ih[k] x_t + b_ih[k] + W_hh[k] h_{t-1} + b_hh[k]        k in i, f, g, o
        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o);  g = tanh(a_g)
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(c_t)                        (h_t = W_hr h_t with a projection)

    Shapes: T steps, B sequences, I inputs, H hidden units, P projected units, L layers, D
    directions; R = P with a projection, else H.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H, at least 1.
    num_layers : int
        L, at least 1.
    bias : bool
    batch_first : bool
        x and y are (B, T, ...) instead of (T, B, ...). States are (L*D, B, ...) either way.
    dropout : float
        Probability, 0 to 1, of dropping an output between layers, in `forward(train=True)` only.
    bidirectional : bool
        D = 2: y holds the forward and the reverse direction side by side.
    proj_size : int
        P, 1 to H - 1, or 0 for no projection.
    dtype : "float32" or "float64"
        Of the weights, of all arrays, and of the arithmetic.
    seed : int or None
        For the first weights and for dropout; None draws a new one.

    Weights are drawn from U(-1/sqrt(H), 1/sqrt(H)), as PyTorch does. They are one immutable block,
    replaced whole by `load_state_dict` or an optimiser; a call, a tape or a step keeps the block
    that it started with. One LSTM may be called from many threads at once. A copy has the weights
    of now, and draws a seed of its own for dropout.
    """

    # The kernels to use, for tests; None: those that `show_config()` names.
    _isa: str | None = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: DTypeLike = "float32",
        seed: int | None = None,
    ) -> None:
        self.input_size = _checks.integer("input_size", input_size)
        self.hidden_size = _checks.integer("hidden_size", hidden_size)
        self.num_layers = _checks.integer("num_layers", num_layers, most=MAX_LAYERS)
        self.proj_size = _checks.integer("proj_size", proj_size, 0)
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size is {proj_size}, expected less than hidden_size {hidden_size}"
            )
        self.bias = _checks.flag("bias", bias)
        self.batch_first = _checks.flag("batch_first", batch_first)
        self.bidirectional = _checks.flag("bidirectional", bidirectional)
        self.dropout = dropout
        dtype = _checks.float_dtype(dtype)
        self._seed = _seed(seed)
        self._calls = itertools.count()  # next is atomic, without a GIL from CPython 3.14 on
        count = self._count_weights()
        # in Python's integers, which don't overflow; packed, they are up to 14 times as many
        if 8 * count * dtype.itemsize > sys.maxsize:
            raise ValueError(
                f"{self._sizes()} make {count} weights, too many for the address space"
            )
        self._dims = _core.Dims(
            self.num_layers,
            1 + self.bidirectional,
            self.input_size,
            self.hidden_size,
            self.proj_size,
            self.bias,
            dtype,
            self._isa,
        )
        super().__init__(self._make_spec(), dtype, 1 / math.sqrt(self.hidden_size), seed)

    @property
    def dropout(self) -> float:
        """Probability of dropping an output between layers while training; may be changed."""
        return self._dropout

    @dropout.setter
    def dropout(self, value: float) -> None:
        self._dropout = _checks.number("dropout", value, most=1)

    def _sizes(self) -> str:
        return (
            f"input_size {self.input_size}, hidden_size {self.hidden_size} and "
            f"num_layers {self.num_layers}"
        )

    def _count_weights(self) -> int:
        """How many weights `_make_spec` will ask for, before it lists them."""
        H, P, D = self.hidden_size, self.proj_size, 1 + self.bidirectional
        R = P or H
        other = 4 * H * (D * R + R + 2 * self.bias) + P * H
        first = other + 4 * H * (self.input_size - D * R)
        return D * (first + (self.num_layers - 1) * other)

    def _make_spec(self) -> Spec:
        """PyTorch's names and shapes, in its order."""
        gates, R = 4 * self.hidden_size, self.proj_size or self.hidden_size
        D = 1 + self.bidirectional
        spec: list[tuple[str, tuple[int, ...]]] = []
        for layer in range(self.num_layers):
            for suffix in ("", "_reverse")[:D]:
                end = f"_l{layer}{suffix}"
                spec.append((f"weight_ih{end}", (gates, D * R if layer else self.input_size)))
                spec.append((f"weight_hh{end}", (gates, R)))
                if self.bias:
                    spec += [(f"bias_ih{end}", (gates,)), (f"bias_hh{end}", (gates,))]
                if self.proj_size:
                    spec.append((f"weight_hr{end}", (R, self.hidden_size)))
        return tuple(spec)

    def _config(self) -> dict[str, Any]:
        return {
            "input_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "bidirectional": self.bidirectional,
            "proj_size": self.proj_size,
            "dtype": self.dtype.name,
        }

    def _install(self, weights: Weights, threads: int = 1) -> None:
        before = self._weights.packed if hasattr(self, "_weights") else None
        weights.packed = _core.Packed(self._dims, weights.flat, weights.packed, before, threads)
        super()._install(weights)

    def __call__(
        self,
        x: Array,
        states: States | None = None,
        lengths: Any = None,
        threads: int | None = None,
        *,
        out: Array | None = None,
    ) -> tuple[Array, States]:
        """Run the LSTM over a batch of sequences; nothing is kept, nothing is dropped.

        Parameters
        ----------
        x : array (T, B, I), or (B, T, I) with `batch_first`, or unbatched (T, I)
        states : (h_0, c_0) or None for zeros
            h_0 (L*D, B, R) and c_0 (L*D, B, H), unbatched (L*D, R) and (L*D, H).
        lengths : integers (B,), in any order, each 0 to T; unbatched one integer; None: all T
            Steps past a length are not computed, and what stands in x there changes nothing.
        threads : int or None for `get_num_threads()`
        out : contiguous array like y, or None
            Written to and returned as y; after a Ctrl-C it holds a part of y. Large outputs are
            best used again: the system fills new memory with zeros first.

        Returns
        -------
        y : array (T, B, D*R) or as x is laid out; 0 past each length; new unless `out` is given
        (h_n, c_n) : arrays like h_0 and c_0, after the last valid step of each sequence

        Raises
        ------
        ValueError
            A wrong shape, T = 0, a length outside 0 to T, or an `out` that can't be written to.
        TypeError
            A wrong dtype or byte order, or something that is no array.
        """
        return _core.forward(
            self._weights.packed, x, states, lengths, threads, self.batch_first, out
        )

    def forward(
        self,
        x: Array,
        states: States | None = None,
        lengths: Any = None,
        threads: int | None = None,
        train: bool = True,
    ) -> _core.Tape:
        """Run the LSTM and keep what its backward pass needs: a tape.

        Arguments and errors are those of a call. `train=False` keeps a tape without dropout;
        its y is that of a call, to the bit.

        Returns
        -------
        Tape : .y, .h_n, .c_n, .gates, .cells and .backward(dy, dh_n, dc_n)
        """
        weights = self._weights
        drops = bool(train) and self._dropout > 0 and self.num_layers > 1
        return _core.Tape(
            weights.packed,
            partial(WeightGrads, weights.spec),
            x,
            states,
            lengths,
            threads,
            self.batch_first,
            self._dropout if drops else 0.0,
            self._draw_key,
        )

    def _draw_key(self) -> int:
        """The key of one call's dropout masks: of the seed and the number of calls before."""
        return _mix(_mix(self._seed) + next(self._calls))

    def stream(self, batch_size: int | None = None, *, threads: int | None = None) -> _core.Stream:
        """Return a stream, which takes the sequence step by step and keeps the state inside.

        Parameters
        ----------
        batch_size : int or None
            None takes x_t (I,) and gives (R,); N takes (N, I) and gives (N, R).
        threads : int or None for `get_num_threads()`; small steps run on one

        Raises
        ------
        ValueError
            The LSTM is bidirectional: its reverse direction starts at the end.
        """
        if self.bidirectional:
            raise ValueError(
                "a bidirectional LSTM can't stream: its reverse direction starts at "
                "the end of the sequence"
            )
        if batch_size is not None:
            batch_size = _checks.integer("batch_size", batch_size)
        return _core.Stream(self, self._dims, batch_size, threads)


def _seed(seed: Any) -> int:
    """The seed of dropout, which any object with an integer value may give."""
    if seed is None:
        return int.from_bytes(os.urandom(8), "little")
    return operator.index(seed)


def _mix(n: int) -> int:
    """Steele, Lea and Flood's SplitMix64 (doi:10.1145/2660193.2660195), as the kernels use it."""
    n = (n + 0x9E3779B97F4A7C15) % 2**64
    n = (n ^ (n >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    n = (n ^ (n >> 27)) * 0x94D049BB133111EB % 2**64
    return n ^ (n >> 31)
