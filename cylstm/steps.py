"""Steps of a `Sequential` that are no modules of their own: the layers around recurrent ones.

All of them take x as (B, T, F), or as (B, F) where no time axis is left, compute in x's dtype with
NumPy, and never change. They are for inference; what has weights takes them as arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from . import _checks
from .weights import Array, Module

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Activation",
    "BatchNorm",
    "Conv1d",
    "FinalState",
    "Flatten",
    "GlobalPool",
    "LastStep",
    "LayerNorm",
    "Mask",
    "Merge",
    "MergeDirections",
    "Pool",
    "Repeat",
    "Reverse",
    "Transpose",
    "ZeroMasked",
]


class Step:
    """What all steps share: a configuration for files, arrays, and no way to change either.

    `by_time` says that a step takes each time step by itself, and so may stream.
    """

    by_time: ClassVar[bool] = False
    _names: ClassVar[tuple[str, ...]] = ()  # of the constructor's arguments that are no arrays
    _arrays: dict[str, Array]

    def __call__(self, x: Array) -> Array:
        """Return y for x, whose time steps are all valid.

        Examples
        --------
        >>> cylstm.steps.Activation("relu")(np.array([[-1.0, 1.0]])).tolist()
        [[0.0, 1.0]]
        """
        raise NotImplementedError

    def sizes(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape of y without its batch axis for that of x; None is an unknown size.

        Raises ValueError where x can't have such a shape.

        Examples
        --------
        >>> cylstm.steps.Flatten().sizes((5, 8))
        (40,)
        """
        return shape

    def state_dict(self) -> dict[str, Array]:
        """Return {name: read-only array}.

        Examples
        --------
        >>> list(cylstm.steps.LayerNorm(weight=[1.0, 2.0]).state_dict())
        ['weight']
        """
        return dict(self._arrays)

    def _config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._names}

    @classmethod
    def _check_config(cls, config: dict[str, Any]) -> list[str]:
        """What is wrong with the names in a `_config()` read from a file; values come later."""
        return [f"unexpected: {name}" for name in config if name not in cls._names]

    @classmethod
    def _from(cls, config: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(**config, **state)

    def _hold(self, **arrays: ArrayLike | None) -> None:
        """Keep copies of these arrays, all of one dtype, which nobody can write to."""
        found: dict[str, Array] = {}
        for name, value in arrays.items():
            if value is not None:
                dtype = next(iter(found.values())).dtype if found else None
                array = np.array(_checks.array(name, value, dtype), order="C")
                found[name] = np.asarray(array.data.toreadonly())
        self._arrays = found

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._config().items())
        shapes = ", ".join(f"{name} {array.shape}" for name, array in self._arrays.items())
        return f"{type(self).__name__}({', '.join(filter(None, (arguments, shapes)))})"


# ------------------------------------------------------------------------------- activations


def _sigmoid(x: Array) -> Array:
    return np.tanh(x / 2) / 2 + 0.5


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    e /= e.sum(-1, keepdims=True)
    return e


def _log_softmax(x: Array) -> Array:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _gelu(x: Array) -> Array:
    erf = np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2))
    return x * (np.asarray(erf, x.dtype) + 1) / 2


def _gelu_tanh(x: Array) -> Array:
    return x * (np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)) + 1) / 2


# By name, with the parameter that some have, and its default: torch's where Keras differs.
ACTIVATIONS: dict[str, tuple[Callable[..., Array], float | None]] = {
    "relu": (lambda x: np.maximum(x, 0), None),
    "relu6": (lambda x: np.clip(x, 0, 6), None),
    "leaky_relu": (lambda x, alpha: np.where(x >= 0, x, alpha * x), 0.01),
    "elu": (_elu, 1.0),
    "selu": (lambda x: 1.0507009873554805 * _elu(x, 1.6732632423543772), None),
    "gelu": (_gelu, None),
    "gelu_tanh": (_gelu_tanh, None),
    "sigmoid": (_sigmoid, None),
    "hard_sigmoid_keras2": (lambda x: np.clip(0.2 * x + 0.5, 0, 1), None),
    "hard_sigmoid_keras3": (lambda x: np.clip(x + 3, 0, 6) / 6, None),
    "tanh": (np.tanh, None),
    "softmax": (_softmax, None),
    "log_softmax": (_log_softmax, None),
    "softplus": (lambda x: np.logaddexp(x, 0), None),
    "softsign": (lambda x: x / (1 + np.abs(x)), None),
    "silu": (lambda x: x * _sigmoid(x), None),
    "exponential": (np.exp, None),
}


class Activation(Step):
    """A function of each element; softmax and log_softmax go over the last axis.

    Parameters
    ----------
    name : one of ACTIVATIONS
        gelu is exact, by the error function, and slow; gelu_tanh is the usual approximation.
        hard_sigmoid_keras2 is clip(0.2 x + 0.5, 0, 1), hard_sigmoid_keras3 relu6(x + 3) / 6.
    alpha : float or None
        The parameter of leaky_relu (0.01) and elu (1).

    Examples
    --------
    >>> cylstm.steps.Activation("softmax")(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    by_time = True
    _names = ("name", "alpha")

    def __init__(self, name: str, alpha: float | None = None) -> None:
        self.name = _checks.choice("name", name, ACTIVATIONS)
        self._function, default = ACTIVATIONS[name]
        if default is None and alpha is not None:
            raise ValueError(f"alpha is {alpha!r}, but {name} has no parameter")
        self.alpha = default if alpha is None else _checks.number("alpha", alpha, -math.inf)
        self._hold()

    def __call__(self, x: Array) -> Array:
        return self._function(x) if self.alpha is None else self._function(x, self.alpha)


# ------------------------------------------------------------------------------- over features


class BatchNorm(Step):
    """Batch normalisation of the last axis at inference (Ioffe and Szegedy 2015, arXiv:1502.03167).

    y = (x - running_mean) / sqrt(running_var + eps) * weight + bias, each (F,).

    Examples
    --------
    >>> norm = cylstm.steps.BatchNorm(running_mean=[1.0, 2.0], running_var=[4.0, 1.0], eps=0)
    >>> norm(np.array([[3.0, 2.0]])).tolist()
    [[1.0, 0.0]]
    """

    by_time = True
    _names = ("eps",)

    def __init__(
        self,
        running_mean: ArrayLike,
        running_var: ArrayLike,
        weight: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        eps: float = 1e-5,
    ) -> None:
        self.eps = _checks.number("eps", eps)
        self._hold(running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
        _same_width(self._arrays)
        arrays = {name: array.astype(np.float64) for name, array in self._arrays.items()}
        scale = arrays.get("weight", 1.0) / np.sqrt(arrays["running_var"] + self.eps)
        shift = arrays.get("bias", 0.0) - arrays["running_mean"] * scale
        self._scale, self._shift = (
            np.asarray(a, self._arrays["running_mean"].dtype) for a in (scale, shift)
        )

    def __call__(self, x: Array) -> Array:
        return x * self._scale + self._shift

    def sizes(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return _features(shape, self._scale.size)


class LayerNorm(Step):
    """Layer normalisation over the last axis (Ba et al. 2016, arXiv:1607.06450).

    y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias; weight and bias (F,).

    Examples
    --------
    >>> cylstm.steps.LayerNorm(eps=0)(np.array([[1.0, 3.0]])).tolist()
    [[-1.0, 1.0]]
    """

    by_time = True
    _names = ("eps",)

    def __init__(
        self, weight: ArrayLike | None = None, bias: ArrayLike | None = None, eps: float = 1e-5
    ) -> None:
        self.eps = _checks.number("eps", eps)
        self._hold(weight=weight, bias=bias)
        _same_width(self._arrays)

    def __call__(self, x: Array) -> Array:
        x = x - x.mean(-1, keepdims=True)
        y = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.eps)
        y *= self._arrays.get("weight", 1)
        y += self._arrays.get("bias", 0)
        return y

    def sizes(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        widths = [array.size for array in self._arrays.values()]
        return _features(shape, widths[0]) if widths else shape


def _same_width(arrays: Mapping[str, Array]) -> None:
    shapes = {name: array.shape for name, array in arrays.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        raise ValueError(f"shapes are {shapes}, expected one size (F,) for all")


def _features(
    shape: tuple[int | None, ...], expected: int, out: int | None = None
) -> tuple[int | None, ...]:
    """The shape with `out` features (None: as many) in place of `expected`."""
    if shape[-1] not in (None, expected):
        raise ValueError(f"{shape[-1]} features come in, expected {expected}")
    return (*shape[:-1], expected if out is None else out)


# ------------------------------------------------------------------------------- over time


def _timed(shape: tuple[int | None, ...]) -> tuple[int | None, int | None]:
    if len(shape) != 2:
        raise ValueError(
            f"its input has shape (B, {', '.join(map(str, shape))}), expected (B, T, F)"
        )
    return shape[0], shape[1]


class _Window(Step):
    """A window of `size` steps, `dilation` apart, moved by `stride`.

    padding : "valid", "same" (TensorFlow's, whose right side gets the odd step), "causal", or
        (left, right)
    """

    size: int
    stride: int
    dilation: int = 1
    padding: str | tuple[int, int]

    def _check_window(self, stride: Any, padding: Any) -> None:
        self.stride = _checks.integer("stride", stride)
        if isinstance(padding, str):
            self.padding = _checks.choice("padding", padding, ("valid", "same", "causal"))
        else:
            left, right = padding
            self.padding = _checks.integer("padding", left, 0), _checks.integer("padding", right, 0)

    def _pads(self, T: int) -> tuple[int, int]:
        reach = self.dilation * (self.size - 1)
        if self.padding == "valid":
            return 0, 0
        if self.padding == "causal":
            return reach, 0
        if self.padding == "same":
            total = max((-(-T // self.stride) - 1) * self.stride + reach + 1 - T, 0)
            return total // 2, total - total // 2
        assert not isinstance(self.padding, str)
        return self.padding

    def _views(self, x: Array, fill: float) -> list[Array]:
        """`size` views (B, T', F) of the padded x: what each place of the window sees."""
        left, right = self._pads(x.shape[1])
        if left or right:
            x = np.pad(x, ((0, 0), (left, right), (0, 0)), constant_values=fill)
        n = self._steps(x.shape[1], padded=True)
        if n < 1:
            raise ValueError(f"x has {x.shape[1]} steps with padding, fewer than its window")
        last = (n - 1) * self.stride + 1
        starts = range(0, self.dilation * self.size, self.dilation)
        return [x[:, start : start + last : self.stride] for start in starts]

    def _steps(self, T: int, padded: bool = False) -> int:
        if not padded:
            T += sum(self._pads(T))
        return (T - self.dilation * (self.size - 1) - 1) // self.stride + 1


class Conv1d(_Window):
    """A convolution over time, as torch.nn.Conv1d but for the layout of x, (B, T, in).

    Parameters
    ----------
    weight : array (out, in / groups, size), as torch's
    bias : array (out,) or None
    stride, dilation, groups : int
    padding : "valid", "same", "causal", or (left, right)

    Examples
    --------
    >>> conv = cylstm.steps.Conv1d(np.ones((16, 8, 3)), padding="causal")
    >>> conv(np.ones((2, 20, 8))).shape
    (2, 20, 16)
    """

    _names = ("stride", "padding", "dilation", "groups")

    def __init__(
        self,
        weight: ArrayLike,
        bias: ArrayLike | None = None,
        stride: int = 1,
        padding: str | tuple[int, int] = "valid",
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        self._check_window(stride, padding)
        self.dilation = _checks.integer("dilation", dilation)
        self.groups = _checks.integer("groups", groups)
        self._hold(weight=weight, bias=bias)
        kernel = self._arrays["weight"]
        if kernel.ndim != 3 or 0 in kernel.shape or kernel.shape[0] % self.groups:
            raise ValueError(
                f"weight has shape {kernel.shape}, expected (out, in / groups, size) with out a "
                f"multiple of groups {self.groups}"
            )
        out, self._depth, self.size = kernel.shape
        if bias is not None and self._arrays["bias"].shape != (out,):
            raise ValueError(f"bias has shape {self._arrays['bias'].shape}, expected ({out},)")
        # (size, groups, in / groups, out / groups): a product for each place of the window
        split = kernel.reshape(self.groups, out // self.groups, self._depth, self.size)
        self._kernel = np.ascontiguousarray(split.transpose(3, 0, 2, 1))

    def __call__(self, x: Array) -> Array:
        views = self._views(x, 0)
        B, n, _ = views[0].shape
        y = np.zeros((self.groups, B * n, self._kernel.shape[-1]), x.dtype)
        for view, kernel in zip(views, self._kernel):
            rows = view.reshape(B * n, self.groups, self._depth)
            y += rows.transpose(1, 0, 2) @ kernel
        flat = y.transpose(1, 0, 2).reshape(B, n, -1)
        return flat + self._arrays["bias"] if "bias" in self._arrays else flat

    def sizes(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        T, _ = _timed(shape)
        _features(shape, self._depth * self.groups)
        return None if T is None else self._steps(T), self._arrays["weight"].shape[0]


class Pool(_Window):
    """The largest or the mean value of a window over time.

    Parameters
    ----------
    kind : "max" or "average"
    size : int
    stride : int or None for `size`
    padding : "valid", "same", or (left, right)
    count_padding : bool
        Whether the mean counts padded zeros, as torch's does and Keras' does not.

    Examples
    --------
    >>> cylstm.steps.Pool("max", 2)(np.arange(4.0).reshape(1, 4, 1)).tolist()
    [[[1.0], [3.0]]]
    """

    _names = ("kind", "size", "stride", "padding", "count_padding")

    def __init__(
        self,
        kind: str,
        size: int,
        stride: int | None = None,
        padding: str | tuple[int, int] = "valid",
        count_padding: bool = False,
    ) -> None:
        self.kind = _checks.choice("kind", kind, ("max", "average"))
        self.size = _checks.integer("size", size)
        self._check_window(self.size if stride is None else stride, padding)
        self.count_padding = _checks.flag("count_padding", count_padding)
        self._hold()

    def __call__(self, x: Array) -> Array:
        if self.kind == "max":
            first, *others = self._views(x, -np.inf)
            y = first.copy()
            for view in others:
                np.maximum(y, view, out=y)
            return y
        total: Array = np.add.reduce(self._views(x, 0))
        if self.count_padding:
            return total / x.dtype.type(self.size)
        ones = np.ones((1, x.shape[1], 1), x.dtype)
        return total / np.add.reduce(self._views(ones, 0))

    def sizes(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        T, features = _timed(shape)
        return None if T is None else self._steps(T), features


class GlobalPool(Step):
    """The largest or the mean value over all time steps: (B, T, F) to (B, F).

    Examples
    --------
    >>> cylstm.steps.GlobalPool("average")(np.arange(4.0).reshape(1, 4, 1)).tolist()
    [[1.5]]
    """

    _names = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = _checks.choice("kind", kind, ("max", "average"))
        self._hold()

    def __call__(self, x: Array, valid: Array | None = None) -> Array:
        """`valid` (B, T): the steps that count, or None for all.

        Examples
        --------
        >>> cylstm.steps.GlobalPool("max")(np.arange(4.0).reshape(1, 4, 1)).tolist()
        [[3.0]]
        """
        where = True if valid is None else valid[..., None]
        if self.kind == "max":
            return np.max(x, axis=1, where=where, initial=-np.inf)
        count = x.shape[1] if valid is None else valid.sum(1, keepdims=True)
        return np.sum(x, axis=1, where=where) / np.asarray(count, x.dtype)

    def sizes(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return _timed(shape)[1:]


class LastStep(Step):
    """The last valid time step: (B, T, F) to (B, F); in a stream, the present one.

    Examples
    --------
    >>> cylstm.steps.LastStep()(np.arange(4.0).reshape(1, 4, 1)).tolist()
    [[3.0]]
    """

    by_time = True

    def __init__(self) -> None:
        self._hold()

    def __call__(self, x: Array, valid: Array | None = None) -> Array:
        if valid is None:
            return x[:, -1]
        last = x.shape[1] - 1 - valid[:, ::-1].argmax(1)
        return x[np.arange(len(x)), last]

    def sizes(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return _timed(shape)[1:]


class Reverse(Step):
    """Reverse time.

    Parameters
    ----------
    keep_mask : bool
        Which steps are valid is not reversed with them, as behind Keras' go_backwards.

    Examples
    --------
    >>> cylstm.steps.Reverse()(np.arange(3.0).reshape(1, 3, 1)).tolist()
    [[[2.0], [1.0], [0.0]]]
    """

    _names = ("keep_mask",)

    def __init__(self, keep_mask: bool = False) -> None:
        self.keep_mask = _checks.flag("keep_mask", keep_mask)
        self._hold()

    def __call__(self, x: Array) -> Array:
        return x[:, ::-1]


class Transpose(Step):
    """(B, T, F) to (B, F, T): what is channels-first elsewhere, before and after.

    Examples
    --------
    >>> cylstm.steps.Transpose()(np.ones((2, 20, 8))).shape
    (2, 8, 20)
    """

    def __init__(self) -> None:
        self._hold()

    def __call__(self, x: Array) -> Array:
        if x.ndim != 3:
            raise ValueError(f"its input has shape {x.shape}, expected (B, T, F)")
        return x.swapaxes(1, 2)

    def sizes(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        _timed(shape)
        return shape[::-1]


class Repeat(Step):
    """(B, F) to (B, times, F): the same at every step.

    Examples
    --------
    >>> cylstm.steps.Repeat(3)(np.ones((2, 8))).shape
    (2, 3, 8)
    """

    _names = ("times",)

    def __init__(self, times: int) -> None:
        self.times = _checks.integer("times", times)
        self._hold()

    def __call__(self, x: Array) -> Array:
        return np.repeat(x[:, None], self.times, axis=1)

    def sizes(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        if len(shape) != 1:
            raise ValueError(f"{len(shape)} axes beside the batch come in, expected one")
        return self.times, shape[0]


class Flatten(Step):
    """(B, T, F) to (B, T F).

    Examples
    --------
    >>> cylstm.steps.Flatten()(np.ones((2, 3, 8))).shape
    (2, 24)
    """

    def __init__(self) -> None:
        self._hold()

    def __call__(self, x: Array) -> Array:
        return x.reshape(len(x), -1)

    def sizes(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        known = [size for size in shape if size is not None]
        return (math.prod(known) if len(known) == len(shape) else None,)


# ------------------------------------------------------------------------------- of several


class Merge(Step):
    """One array of those that several named steps gave.

    Parameters
    ----------
    how : "concatenate" (of features), "add", "multiply", "average", "maximum"

    Examples
    --------
    >>> cylstm.steps.Merge("add")(np.ones((2, 8)), np.ones((2, 8)))[0, 0].item()
    2.0
    >>> layers = [("a", cylstm.Linear(8, 4)), ("b", cylstm.Linear(8, 4), "input")]
    >>> model = cylstm.Sequential([*layers, ("both", cylstm.steps.Merge(), ["a", "b"])])
    >>> model(np.ones((2, 8), np.float32)).shape
    (2, 8)
    """

    by_time = True
    _names = ("how",)
    HOW: ClassVar[dict[str, Callable[[list[Array]], Array]]] = {
        "concatenate": lambda xs: np.concatenate(xs, axis=-1),
        "add": lambda xs: np.add.reduce(xs),
        "multiply": lambda xs: np.multiply.reduce(xs),
        "average": lambda xs: np.add.reduce(xs) / xs[0].dtype.type(len(xs)),
        "maximum": lambda xs: np.maximum.reduce(xs),
    }

    def __init__(self, how: str = "concatenate") -> None:
        self.how = _checks.choice("how", how, self.HOW)
        self._hold()

    def __call__(self, *xs: Array) -> Array:
        return self.HOW[self.how](list(xs))

    def merged(self, shapes: list[tuple[int | None, ...]]) -> tuple[int | None, ...]:
        """`sizes` for several inputs.

        Examples
        --------
        >>> cylstm.steps.Merge().merged([(None, 3), (None, 5)])
        (None, 8)
        """
        if self.how != "concatenate":
            if len(set(shapes)) > 1:
                raise ValueError(f"shapes {shapes} come in, expected equal ones")
            return shapes[0]
        if len({shape[:-1] for shape in shapes}) > 1:
            raise ValueError(f"shapes {shapes} come in, expected them to differ in features only")
        widths = [shape[-1] for shape in shapes if shape[-1] is not None]
        return (*shapes[0][:-1], sum(widths) if len(widths) == len(shapes) else None)


class MergeDirections(Merge):
    """The two halves of a bidirectional layer's output as one: "add", "multiply" or "average".

    Examples
    --------
    >>> cylstm.steps.MergeDirections("add")(np.ones((2, 5, 8))).shape
    (2, 5, 4)
    """

    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        return super().__call__(*np.split(x, 2, axis=-1))

    def sizes(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        if shape[-1] is None or shape[-1] % 2:
            raise ValueError(f"{shape[-1]} features come in, expected an even number")
        return (*shape[:-1], shape[-1] // 2)


class FinalState(Step):
    """A recurrent module's final h of its last layer, both directions side by side: (B, D*R).

    For one direction that is its last output; in a stream, the present one.

    Examples
    --------
    >>> lstm = cylstm.LSTM(8, 16, bidirectional=True, batch_first=True)
    >>> model = cylstm.Sequential([cylstm.steps.FinalState(lstm)])
    >>> model(np.ones((2, 5, 8), np.float32)).shape
    (2, 32)
    """

    by_time = True
    _names = ()

    def __init__(self, module: Module) -> None:
        self.module = module
        self._hold()


class Mask(Step):
    """Which time steps are valid: those in which not every feature equals `value`, as in Keras.

    The others become zeros, but for ids (B, T), which are handed on as they are. Recurrent
    modules keep their state over them and repeat their last output there, zeros before the first;
    `LastStep`, `FinalState` and `GlobalPool` leave them out.

    Examples
    --------
    >>> mask = cylstm.steps.Mask(-1.0)
    >>> mask.valid(np.array([[[3.0, 1.0], [-1.0, -1.0]]])).tolist()
    [[True, False]]
    """

    _names = ("value",)

    def __init__(self, value: float = 0.0) -> None:
        self.value = _checks.number("value", value, -math.inf)
        self._hold()

    def __call__(self, x: Array) -> Array:
        return x if x.ndim == 2 else np.where(self.valid(x)[..., None], x, x.dtype.type(0))

    def valid(self, x: Array) -> Array:
        """(B, T) bools for x (B, T, F), or for ids (B, T).

        Examples
        --------
        >>> cylstm.steps.Mask().valid(np.array([[5, 3, 0, 0]])).tolist()  # ids
        [[True, True, False, False]]
        """
        found = x != self.value
        return found if x.ndim == 2 else found.any(-1)


class ZeroMasked(Step):
    """Zeros at steps that are not valid, as Keras' zero_output_for_mask says it.

    Examples
    --------
    >>> valid = np.array([[True, False]])
    >>> cylstm.steps.ZeroMasked()(np.ones((1, 2, 1)), valid).tolist()
    [[[1.0], [0.0]]]
    """

    def __init__(self) -> None:
        self._hold()

    def __call__(self, x: Array, valid: Array | None = None) -> Array:
        return x if valid is None else np.where(valid[..., None], x, x.dtype.type(0))
