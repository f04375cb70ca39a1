"""Modules with weights of fewer bits, bfloat16 or int8, and what that does to their outputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from . import _checks
from ._core import kind_of
from .module import Module, format_of
from .weights import BFLOAT16, Array, widened

if TYPE_CHECKING:
    from typing_extensions import Self


@runtime_checkable
class Model(Protocol):
    """What is made of modules: a Sequential, an OnnxModel."""

    def _with_modules(self, change: Callable[[Module], Module]) -> Self: ...


M = TypeVar("M", bound="Module | Model")

LEAST = np.float32(2.0**-119)  # a row of smaller weights is zero, as the kernels take it


def to_bfloat16(array: Array) -> Array:
    """Return float32 numbers rounded to nearest even, as the bits of bfloat16: uint16."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(BFLOAT16)


def to_int8(matrix: Array) -> tuple[Array, Array]:
    """Return (codes, scales) of a float32 matrix (rows, K), codes (rows, K) and scales (rows,).

    Symmetric, each row on its own: row ~ scale * codes, with the largest of a row at 127 or -127.
    """
    largest = np.abs(matrix).max(axis=1, initial=0)
    largest[largest < LEAST] = 0
    scales = (largest / np.float32(127)).astype(np.float32)
    by = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    codes = np.rint(matrix * by[:, None])
    return np.clip(codes, -127, 127).astype(np.int8), scales


def is_symmetric(codes: Array, scales: Array) -> bool:
    """Whether integers (..., rows, K) and scales (..., rows) are what `to_int8` makes of floats."""
    large = (scales == 0) | (scales >= LEAST / np.float32(127))
    return bool(np.abs(codes).max(initial=0) <= 127 and large.all() and np.isfinite(scales).all())


def quantize(
    module: M,
    weights: str = "int8",
    *,
    arithmetic: str | None = None,
    inputs: str | None = None,
) -> M:
    """Return an inference module of the same kind with weights of fewer bits.

    Parameters
    ----------
    module : LSTM, GRU, RNN or Linear of float32, a Sequential, or an OnnxModel
        It stays as it is. Of a Sequential, its recurrent modules and Linears are replaced, and all
        other steps, an Embedding among them, are shared. Of an OnnxModel, a whole graph that `load`
        gave, its recurrent layers are, and all other nodes stay float.
    weights : "int8" or "bfloat16"
        How its matrices are stored; biases stay float32. With "bfloat16" they are rounded to
        nearest even, and all arithmetic is float32's: the results are, to the bit, those of a
        float32 module that holds the rounded weights. With "int8" each row of a matrix has a
        scale of its own, and so has each row of activations (x_t and h_t of one sequence), which
        is quantised as it is met; products are sums of integers, exact on every CPU, and gate
        math is float32's. A sequence's results depend on it alone, as ever: not on the batch, the
        threads, or how it is cut in time.
    arithmetic : "bfloat16" or None
        "bfloat16", with weights of bfloat16: x_t and h_t are rounded to it as well, to nearest
        even, and the CPU multiplies pairs of bfloat16, which it must be able to (AVX-512 with BF16,
        AArch64 with bfdot; `show_config()["bf16"]` says who). Products are exact. A sum of K of
        them is off by at most (ceil(K / 2) + 1) 2^-23 times the sum of all magnitudes, and how it
        is rounded differs from CPU to CPU; on one of them a sequence's results depend on it alone.
    inputs : "int16" or None
        "int16", with weights of int8: x_t, of every layer, is quantised to 16 bits, and h_t to 8 as
        ever. Of the error that int8 makes, most comes from the 8 bits of x_t where inputs are
        larger than h_t, whose values are below 1: it is about halved. Each x_t then meets the
        weights twice, once for either byte, which takes a tenth to a half as much time again.

    Returns
    -------
    module of the same class, which calls, streams, copies, pickles and saves as the original does.
        It can't be trained: `forward` and optimisers refuse it.

    Raises
    ------
    TypeError
        `module` is none of these. A module of torch is converted first: quantize
        `cylstm.from_torch(module)`.
    ValueError
        An unknown format, a float64 module, one that is quantised already, weights that hold
        a NaN or an infinity, more than 2^17 inputs to an int8 sum, an arithmetic that this CPU
        does not have, or one of these that goes with other weights.

    Examples
    --------
    >>> import cylstm
    >>> lstm = cylstm.LSTM(3, 5, seed=1)
    >>> small = cylstm.quantize(lstm, "int8")
    >>> small.state_dict()["weight_hh_l0"].dtype
    dtype('int8')
    """
    name = type(module).__name__
    if isinstance(module, Model):
        found: list[Module] = []

        def change(each: Module) -> Module:
            if not each._quantizes:
                return each
            found.append(each)
            return quantize(each, weights, arithmetic=arithmetic, inputs=inputs)

        changed = module._with_modules(change)
        if not found:
            raise ValueError(f"this {name} has neither a recurrent layer nor a Linear to quantize")
        return changed
    if (torch := sys.modules.get("torch")) and isinstance(module, torch.nn.Module):
        raise TypeError(
            f"module is {kind_of(module)} of torch, whose weights autograd trains: "
            "quantize cylstm.from_torch(module), of the whole or layer by layer"
        )
    if not isinstance(module, Module) or not module._quantizes:
        raise TypeError(
            f"module is {kind_of(module)}, expected an LSTM, GRU, RNN, Linear, Sequential or "
            "OnnxModel"
        )
    _checks.choice("weights", weights, ("bfloat16", "int8"))
    if module._format is not None:
        raise ValueError(f"{name} has weights of {module._format} already, expected float32")
    if module.dtype != np.float32:
        raise ValueError(f"{name} is of {module.dtype}, expected float32")
    state: dict[str, Array] = {}
    for key, array in module.state_dict().items():
        _check_finite(key, array, array, f"which has no place in {weights}")
        if array.ndim < 2:
            state[key] = array
        elif weights == "bfloat16":
            rounded = state[key] = to_bfloat16(array)
            _check_finite(key, array, widened(rounded), "which rounds to infinity in bfloat16")
        else:
            state[key], state[scale_of(key)] = to_int8(array)
    how = {"weights": weights, "arithmetic": arithmetic, "inputs": inputs}
    config = module._config() | {name: value for name, value in how.items() if value is not None}
    return type(module)._from(config, state)


def _check_finite(name: str, array: Array, judged: Array, why: str) -> None:
    """Raise ValueError that names the first element of `array` where `judged` is not finite."""
    wrong = np.argwhere(~np.isfinite(judged))
    if len(wrong):
        at = tuple(int(n) for n in wrong[0])
        more = f", and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
        raise ValueError(f"{name}{list(at)} is {array[at]:g}, {why}{more}")


def scale_of(name: str) -> str:
    """Return the name of the scales of a matrix: weight_ih_scale_l0 of weight_ih_l0."""
    kind, layer, rest = name.partition("_l")
    return f"{kind}_scale{layer}{rest}"


class Comparison:
    """How far a module's outputs are from another's on the same input.

    Attributes
    ----------
    largest : float
        max|difference| over all outputs that count.
    rms : float
        The root of their mean square.
    snr_db : float
        Signal-to-noise ratio, 10 log10(mean square of the outputs / mean square of the
        difference), in dB; infinite if they are equal.
    by_step : array (T,)
        The root mean square of each step over its sequences and units, NaN where no sequence is
        that long: what drifts along time grows here.
    """

    __slots__ = ("by_step", "largest", "name", "rms", "snr_db")

    def __init__(self, name: str, want: Array, got: Array, counts: Array) -> None:
        """`want` and `got` are (T, B, R), `counts` (T, B) bool."""
        self.name = name
        want = want.astype(np.float64)
        error = np.where(counts[..., None], got - want, 0)
        signal = np.where(counts[..., None], want, 0)
        number = counts.sum() * want.shape[-1]
        self.largest = float(np.abs(error).max(initial=0))
        noise = float(np.square(error).sum())
        self.rms = float(np.sqrt(noise / number)) if number else 0.0
        with np.errstate(divide="ignore"):
            self.snr_db = float(10 * np.log10(np.square(signal).sum() / noise)) if noise else np.inf
        each = counts.sum(axis=1) * want.shape[-1]
        with np.errstate(invalid="ignore"):
            self.by_step = np.sqrt(np.square(error).sum(axis=(1, 2)) / each)

    def __repr__(self) -> str:
        return (
            f"Comparison({self.name}: largest {self.largest:.2g}, rms {self.rms:.2g}, "
            f"{self.snr_db:.1f} dB over {len(self.by_step)} steps)"
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the error by step; returns the matplotlib axes, new ones unless `ax` is given.

        Raises ImportError where matplotlib is not installed (`pip install cylstm[plot]`).
        """
        if ax is None:
            try:
                from matplotlib.figure import Figure
            except ImportError:
                raise ImportError("plot needs matplotlib: pip install cylstm[plot]") from None
            ax = Figure(figsize=(7, 3), layout="constrained").subplots()
        ax.plot(self.by_step, label=self.name)
        ax.set(xlabel="step", ylabel="error (root mean square)", ylim=(0, None))
        ax.legend()
        return ax


def compare(
    module: Any, other: Any, x: Any, lengths: Any = None, *, output: str | None = None
) -> Comparison:
    """Return how far `other`'s outputs are from `module`'s: what quantising it costs on this input.

    Parameters
    ----------
    module, other : two LSTMs, GRUs or RNNs of the same sizes,
        or two Linears, Sequentials or OnnxModels
    x : array (T, B, I), (B, T, I) with `batch_first`, (T, I) unbatched; for a Linear (..., in)
        For a Sequential, its input, and for an OnnxModel {name: array} of all its inputs; the
        first axis of the output is taken for steps.
    lengths : integers (B,) or None; steps past a length do not count; of recurrent modules alone
    output : str, optional
        Which output of an OnnxModel counts; None: its first.

    Raises
    ------
    ValueError, TypeError
        x, lengths or output are none that the modules take, or the outputs differ in shape.

    Examples
    --------
    >>> import numpy as np
    >>> import cylstm
    >>> lstm = cylstm.LSTM(3, 5, seed=1)
    >>> x = np.random.default_rng(0).standard_normal((20, 4, 3), np.float32)
    >>> difference = cylstm.compare(lstm, cylstm.quantize(lstm, "bfloat16"), x)
    >>> difference.largest < 2e-3
    True
    >>> difference.by_step.shape
    (20,)
    """
    if lengths is not None and not hasattr(module, "hidden_size"):
        raise ValueError(f"lengths was given for {kind_of(module)}, expected None")
    if output is not None and not hasattr(module, "run"):
        raise ValueError(f"output was given for {kind_of(module)}, expected None")
    want, got = (_by_step(each, x, lengths, output) for each in (module, other))
    if want.shape != got.shape:
        raise ValueError(f"outputs have shapes {want.shape} and {got.shape}, expected the same")
    T, B, _ = want.shape
    counts = np.arange(T)[:, None] < (np.full(B, T) if lengths is None else np.atleast_1d(lengths))
    form = getattr(other, "_format", None)
    if isinstance(other, Module):
        form = format_of(other._arguments)
    return Comparison(form or type(other).__name__, want, got, counts)


def _by_step(module: Any, x: Any, lengths: Any, output: str | None) -> Array:
    """A module's outputs as (T, B, R); of one that is not recurrent, the first axis as steps."""
    if hasattr(module, "hidden_size"):
        y = module(x, lengths=lengths)[0]
        if y.ndim == 2:
            return y[:, None]
        return y.swapaxes(0, 1) if module.batch_first else y
    if hasattr(module, "out_features"):
        return np.asarray(module(x)).reshape(-1, 1, module.out_features)
    y = _output(module.run(x), output) if hasattr(module, "run") else np.asarray(module(x))
    if y.dtype.kind != "f":
        raise ValueError(f"the output is of {y.dtype}, expected floats")
    return y.reshape(len(y) if y.ndim else 1, 1, -1 if y.size else 0)


def _output(outputs: Mapping[str, Array], name: str | None) -> Array:
    """The output of this name, or the first."""
    if name is None:
        return next(iter(outputs.values()))
    if name not in outputs:
        raise ValueError(f"output is {name!r}, expected one of {', '.join(outputs)}")
    return outputs[name]
