"""What all recurrent layers share: sizes, dropout, calls, tapes, streams. `_core` computes."""

from __future__ import annotations

import itertools
import math
import operator
import os
import sys
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

from numpy.typing import DTypeLike

from . import _checks, _core
from .module import Fixed, Module, format_of, uniform
from .weights import Array, Spec, WeightGrads, Weights

S = TypeVar("S")  # a state: (h, c), or h

MAX_LAYERS = 2**16  # a stack's weights are listed by name


class _Probability(Fixed[float]):
    """An argument that may be changed while training."""

    def __set__(self, module: Module, value: float) -> None:
        new = _checks.number(self._name, value, most=1)
        module._arguments = {**module._arguments, self._name: new}


class _Recurrent(Module, Generic[S]):
    """A stack of recurrent layers. A kind of cell is a subclass: its name, the type of its
    state, and a constructor that hands its arguments to `_make`."""

    __slots__ = ("_calls", "_dims", "_seed")

    _cell: ClassVar[str]  # as `_core` names it, if no argument says more
    _quantizes = True
    # The kernels to use, for tests; None: those that `show_config()` names.
    _isa: ClassVar[str | None] = None
    _int8: ClassVar[str | None] = None

    input_size = Fixed[int]()
    hidden_size = Fixed[int]()
    num_layers = Fixed[int]()
    bias = Fixed[bool]()
    batch_first = Fixed[bool]()
    dropout = _Probability()
    bidirectional = Fixed[bool]()
    reverse = Fixed[bool]()
    zoneout = Fixed[float]()
    recurrent_dropout = _Probability()

    _calls: itertools.count[int]
    _dims: _core.Dims
    _seed: int

    def _make(self, arguments: dict[str, Any], *, seed: Any = None, state: Any = None) -> None:
        number = int.from_bytes(os.urandom(8), "little") if seed is None else operator.index(seed)
        super()._make(arguments, seed=seed, state=state)
        self._seed = number  # of dropout
        self._calls = itertools.count()  # next is atomic, without a GIL from CPython 3.14 on

    def _configure(
        self,
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reverse: bool = False,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        weights: str | None = None,
        arithmetic: str | None = None,
        inputs: str | None = None,
        **more: Any,
    ) -> tuple[dict[str, Any], Spec]:
        arguments: dict[str, Any] = {
            "input_size": _checks.integer("input_size", input_size),
            "hidden_size": _checks.integer("hidden_size", hidden_size),
            "num_layers": _checks.integer("num_layers", num_layers, most=MAX_LAYERS),
            "bias": _checks.flag("bias", bias),
            "batch_first": _checks.flag("batch_first", batch_first),
            "dropout": _checks.number("dropout", dropout, most=1),
            "bidirectional": _checks.flag("bidirectional", bidirectional),
            "reverse": _checks.flag("reverse", reverse),
            "zoneout": _checks.number("zoneout", zoneout, most=1),
            "recurrent_dropout": _checks.number("recurrent_dropout", recurrent_dropout, most=1),
            **self._configure_cell(hidden_size, bool(bias), bool(bidirectional), **more),
            "dtype": _checks.float_dtype(dtype),
        }
        if arguments["bidirectional"] and arguments["reverse"]:
            raise ValueError("bidirectional and reverse were both given: expected one of them")
        if arguments["zoneout"] and arguments.get("proj_clip"):
            raise ValueError("zoneout and proj_clip were both given: expected one of them")
        widest = max(arguments["input_size"], hidden_size * (1 + arguments["bidirectional"]))
        arguments |= _checks.compact(weights, arithmetic, inputs, arguments["dtype"], widest)
        I, H, L = arguments["input_size"], arguments["hidden_size"], arguments["num_layers"]
        P, D = arguments.get("proj_size", 0), 1 + arguments["bidirectional"]
        self._dims = _core.Dims(
            self._cell_of(arguments),
            L,
            D,
            I,
            H,
            P,
            arguments["bias"],
            arguments["dtype"],
            self._isa,
            reverse=arguments["reverse"],
            zoneout=arguments["zoneout"],
            **self._options(arguments),
            format=format_of(arguments),
            int8=self._int8,
        )
        self._stored = self._dims.stored()
        if self._dims.weights_size > sys.maxsize:
            raise ValueError(
                f"input_size {I}, hidden_size {H} and num_layers {L} make too many weights for the "
                "address space"
            )
        return arguments, self._dims.arrays()

    def _configure_cell(self, hidden_size: int, bias: bool, bidirectional: bool) -> dict[str, Any]:
        """Return the arguments that this kind of cell has beside those of all, checked."""
        return {}

    def _cell_of(self, arguments: dict[str, Any]) -> str:
        """Return the name that `_core` has for the cell."""
        return self._cell

    def _options(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return what `_core.Dims` is told of the cell beyond its kind."""
        return {}

    def _draw(self, flat: Array, seed: Any) -> None:
        uniform(flat, 1 / math.sqrt(self.hidden_size), seed)

    def _pack(self, flat: Array, threads: int) -> _core.Packed:
        return _core.Packed(self._dims, flat, self._spares)

    def _follow(self, weights: Weights, before: Weights, threads: int) -> None:
        weights.packed.follow(before.packed, threads)

    def __call__(
        self,
        x: Array,
        states: S | None = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
        hold_output: bool = False,
        threads: int | None = None,
        out: Array | None = None,
    ) -> tuple[Array, S]:
        """Run the layers over a batch of sequences: inference only, no tape and no dropout.

        Parameters
        ----------
        x : array (T, B, I), or (B, T, I) with `batch_first`, or unbatched (T, I)
        states : h_0, of an LSTM (h_0, c_0), or None for zeros
            h_0 (L*D, B, R) and c_0 (L*D, B, H), unbatched (L*D, R) and (L*D, H).
        lengths : integers (B,), in any order, each 0 to T; unbatched one integer; None: all T
            Steps past a length are not computed, and x is ignored there.
        mask : bools (T, B), (B, T) with `batch_first`, unbatched (T,); None: all True
            Where it is False the states are held, y is 0, and x is ignored: `lengths` is the mask
            t < length, and both may be given.
        reset : bools of the same shape, or None
            Where it is True the states are zero before that step: of a reverse direction before it
            goes on from t to t - 1, since the boundary lies between the two. Ignored past a length.
        hold_output : bool
            Where the mask is False, y repeats what it was a step ago in the order of its direction
            (0 before the first), as Keras does; True only with a mask.
        threads : int or None for `get_num_threads()`
        out : contiguous array like y, or None
            Written to and returned as y; after a Ctrl-C it holds part of y. Reuse large outputs:
            fresh memory is zero-filled by the system.

        Returns
        -------
        y : array (T, B, D*R) or as x is laid out; 0 past each length and where mask is False
        h_n, or (h_n, c_n) : arrays like the states, after the last valid step of each sequence

        Raises
        ------
        ValueError
            A wrong shape, a length outside 0 to T, `hold_output` without a mask, or an `out` that
            can't be written to.
        TypeError
            A wrong dtype or byte order, or something that is not an array.

        Examples
        --------
        >>> lstm = cylstm.LSTM(8, 16, seed=1)
        >>> x = np.ones((5, 3, 8), np.float32)
        >>> y, state = lstm(x, lengths=[5, 2, 0])
        >>> y[2:, 1].any(), y[1, 1].any()
        (np.False_, np.True_)
        >>> y, state = lstm(x, state)  # goes on from there
        """
        return _core.forward(
            self._weights.packed,
            x,
            states,
            lengths,
            threads,
            self.batch_first,
            out,
            mask,
            reset,
            hold_output,
        )

    def forward(
        self,
        x: Array,
        states: S | None = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
        hold_output: bool = False,
        threads: int | None = None,
        train: bool = True,
        checkpoint: bool = False,
    ) -> _core.Tape:
        """Run the layers and record what the backward pass needs: a tape.

        Arguments and errors are those of a call. `train=False` keeps a tape on which nothing is
        drawn: no dropout, and the mean of zoneout; its y is that of a call, to the bit.

        `checkpoint=True` keeps h and c alone, at most 8 H bytes for each step, sequence and layer
        in float32 instead of 24 H. Backward computes the gates again, chunk by chunk: the gradients
        are the same to the bit (with `CYLSTM_GEMM=blas` up to rounding).

        Returns
        -------
        Tape : .y, .h_n, .c_n, .gates, .cells and .backward(dy, dh_n, dc_n)

        Examples
        --------
        >>> gru = cylstm.GRU(8, 16, seed=1)
        >>> tape = gru.forward(np.ones((5, 3, 8), np.float32))
        >>> tape.gates.shape  # r, z and n of every step
        (1, 5, 3, 3, 16)
        >>> tape.backward(dy=2 * tape.y).x.shape
        (5, 3, 8)
        """
        self._refuse_training()
        weights, is_set = self._weights, self._arguments
        train = _checks.flag("train", train)
        drops = train and is_set["num_layers"] > 1
        return _core.Tape(
            weights.packed,
            partial(WeightGrads, weights.spec),
            x,
            states,
            lengths,
            threads,
            is_set["batch_first"],
            is_set["dropout"] if drops else 0.0,
            self._draw_key,
            mask,
            reset,
            hold_output,
            _checks.flag("checkpoint", checkpoint),
            train and is_set["zoneout"] > 0,
            is_set["recurrent_dropout"] if train else 0.0,
        )

    def stream(self, batch_size: int | None = None, *, threads: int | None = None) -> _core.Stream:
        """Return a stream, which processes a sequence step by step and holds its state.

        Parameters
        ----------
        batch_size : int or None
            None accepts x_t (I,) and returns (R,); N accepts (N, I) and returns (N, R).
        threads : int or None for `get_num_threads()`; small steps run on one

        Raises
        ------
        ValueError
            The layers are bidirectional or reversed: a reverse direction starts at the end.

        Examples
        --------
        >>> lstm = cylstm.LSTM(8, 16, seed=1)
        >>> x = np.ones((5, 8), np.float32)
        >>> stream = lstm.stream()
        >>> steps = [stream.step(x_t) for x_t in x]
        >>> np.array_equal(steps, lstm(x)[0])
        True
        """
        if self.bidirectional or self.reverse:
            kind = "bidirectional" if self.bidirectional else "reversed"
            raise ValueError(
                f"a {kind} {type(self).__name__} can't stream: its reverse direction starts "
                "at the end of the sequence"
            )
        if batch_size is not None:
            batch_size = _checks.integer("batch_size", batch_size)
        return _core.Stream(self._current, self, batch_size, threads, self.batch_first)

    def _draw_key(self) -> int:
        """The key of all that one call draws: of the seed and the number of calls before."""
        return _mix(_mix(self._seed) + next(self._calls))


def _mix(n: int) -> int:
    """Steele, Lea and Flood's SplitMix64 (doi:10.1145/2660193.2660195), as the kernels use it."""
    n = (n + 0x9E3779B97F4A7C15) % 2**64
    n = (n ^ (n >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    n = (n ^ (n >> 27)) * 0x94D049BB133111EB % 2**64
    return n ^ (n >> 31)
