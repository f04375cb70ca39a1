"""Windows over time: convolution and pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _checks
from ..weights import Array
from .step import Shape, Step, features, timed


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
        if x.ndim != 3:
            raise ValueError(f"its input has shape {x.shape}, expected (B, T, F)")
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
        B, n, depth = views[0].shape
        if depth != self._depth * self.groups:
            raise ValueError(
                f"its input has {depth} features, expected {self._depth * self.groups}"
            )
        y = np.zeros((self.groups, B * n, self._kernel.shape[-1]), x.dtype)
        for view, kernel in zip(views, self._kernel):
            rows = view.reshape(B * n, self.groups, self._depth)
            y += rows.transpose(1, 0, 2) @ kernel
        flat = y.transpose(1, 0, 2).reshape(B, n, len(self._arrays["weight"]))
        return flat + self._arrays["bias"] if "bias" in self._arrays else flat

    def sizes(self, shape: Shape) -> Shape:
        T, _ = timed(shape)
        features(shape, self._depth * self.groups)
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

    def sizes(self, shape: Shape) -> Shape:
        T, features = timed(shape)
        return None if T is None else self._steps(T), features
