"""Types of the compiled bindings. What a user meets is Tape, Gradients and Stream; the rest serves
the package and its tests.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from typing_extensions import Self

from .weights import WeightGrads

_Array = NDArray[Any]

# The process's choices, made at import.
ISA: str
ISA_REASON: str
ISA_AVAILABLE: list[str]
INT8: str
INT8_AVAILABLE: list[str]
BF16: str | None
GEMM: Literal["auto", "packed", "blas"]
__pyx_capi__: dict[str, Any]  # the functions of embed.pxd

def _choose_isa() -> tuple[str, str]: ...
def _choose_gemm() -> str: ...
def _forked() -> None: ...
def _threads(threads: int | None) -> int: ...
def with_article(word: str) -> str: ...
def kind_of(value: object) -> str: ...
def flag(name: str, value: object) -> bool: ...
def is_masked(value: object) -> bool: ...
def as_floats(value: ArrayLike, name: str, dtype: np.dtype[Any] | None) -> _Array: ...
def check_lengths(lengths: ArrayLike, T: int, B: int, batched: bool) -> _Array: ...
def _set_default_threads(n: int) -> None: ...
def _get_default_threads() -> int: ...
def _pool_helpers() -> int: ...
def _last_kernels() -> str | Any: ...  # None before the first call
def _activation(name: str, x: _Array, isa: str | None = None) -> _Array: ...
def scale(arrays: list[_Array], factor: float) -> None: ...
def linear_forward(x: _Array, weight: _Array, bias: _Array | None, threads: int) -> _Array: ...
def linear_backward(
    x: _Array, dy: _Array, weight: _Array, dweight: _Array, need_x: bool, threads: int
) -> _Array | None: ...

class Rule: ...

class AdamRule(Rule):
    def __new__(
        cls,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decoupled: bool,
        step: int,
    ) -> Self: ...

class SGDRule(Rule):
    def __new__(
        cls,
        *,
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
        step: int,
    ) -> Self: ...

class Kept:
    def __new__(cls, arrays: tuple[_Array, ...]) -> Self: ...
    def get(self) -> tuple[_Array, ...]: ...
    def copy(self) -> list[_Array]: ...

def step(
    rule: Rule,
    parts: list[tuple[_Array, ...]],
    tables: list[tuple[_Array, _Array, _Array]],
    threads: int,
    kept: Kept,
    currents: list[Current],
    after: list[Any],
    before: list[Any],
) -> bool: ...

class Current:
    def __new__(cls, now: Any) -> Self: ...
    @property
    def value(self) -> Any: ...

def replace(currents: list[Current], after: list[Any], before: list[Any] | None = None) -> bool: ...
def aligned_empty(size: int, dtype: DTypeLike, spares: Spares | None = None) -> _Array: ...

class Turn: ...

class Spares:
    def release(self) -> None: ...

class Memory:
    def __new__(cls, size: int, spares: Spares | None = None, kind: int = 0) -> Self: ...
    @property
    def size(self) -> int: ...

class Dims:
    def __new__(
        cls,
        cell: str,
        layers: int,
        directions: int,
        input: int,
        hidden: int,
        proj: int,
        bias: bool,
        dtype: DTypeLike,
        isa: str | None = None,
        *,
        reverse: bool = False,
        activations: tuple[tuple[str | None, float, float], ...] = (),
        format: str | None = None,
        int8: str | None = None,
        peephole: bool = False,
        clip: float = 0,
        cell_clip: float = 0,
        proj_bias: bool = False,
        proj_clip: float = 0,
        layer_norm: str | None = None,
        zoneout: float = 0,
    ) -> Self: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def stored(self) -> dict[str, np.dtype[Any]]: ...
    @property
    def weights_size(self) -> int: ...
    def arrays(self) -> tuple[tuple[str, tuple[int, ...]], ...]: ...

class Pack: ...

class Packed:
    def __new__(
        cls,
        dims: Dims,
        flat: _Array,
        spares: Spares | None,
    ) -> Self: ...
    def follow(self, before: Packed, threads: int) -> None: ...
    @property
    def dims(self) -> Dims: ...
    @property
    def places(self) -> list[int | None]: ...
    def without_backward(self) -> Packed: ...

class PackedLinear:
    def __new__(
        cls, outputs: int, inputs: int, format: str, flat: _Array, threads: int
    ) -> Self: ...
    def forward(self, x: _Array, bias: _Array | None, threads: int) -> _Array: ...
    def without_backward(self) -> PackedLinear: ...

class Problem: ...
class Shield: ...

def forward(
    packed: Packed,
    x: ArrayLike,
    states: Any,
    lengths: ArrayLike | None,
    threads: int | None,
    batch_first: bool,
    out: _Array | None,
    mask: ArrayLike | None = None,
    reset: ArrayLike | None = None,
    hold_output: bool = False,
) -> tuple[_Array, Any]: ...

class Gradients:
    __slots__ = ("c_0", "h_0", "weights", "x")

    x: _Array | Any  # None where backward was told need_x=False
    h_0: _Array
    c_0: _Array | Any  # None for a cell without c
    weights: WeightGrads | Any  # with per_sample a dict
    def __init__(
        self, x: _Array | None, h_0: _Array, c_0: _Array | None, weights: WeightGrads | Any
    ) -> None: ...

class Tape:
    def __new__(
        cls,
        packed: Packed,
        wrap: Callable[[_Array], WeightGrads],
        x: ArrayLike,
        states: Any,
        lengths: ArrayLike | None,
        threads: int | None,
        batch_first: bool,
        dropout: float,
        draw_key: Callable[[], int],
        mask: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        hold_output: bool = False,
        checkpoint: bool = False,
        draws_zoneout: bool = False,
        recurrent_dropout: float = 0,
    ) -> Self: ...
    @property
    def y(self) -> _Array: ...
    @property
    def h_n(self) -> _Array: ...
    @property
    def c_n(self) -> _Array | Any: ...  # None for a cell without c
    @property
    def gates(self) -> _Array | Any: ...  # None of a tape with checkpoint
    @property
    def cells(self) -> _Array | Any: ...
    @property
    def directions(self) -> int: ...
    def backward(
        self,
        dy: ArrayLike | None = None,
        dh_n: ArrayLike | None = None,
        dc_n: ArrayLike | None = None,
        *,
        dcells: ArrayLike | None = None,
        dgates: ArrayLike | None = None,
        threads: int | None = None,
        need_x: bool = True,
        per_sample: bool = False,
    ) -> Gradients: ...
    def backward_truncated(
        self,
        k1: int,
        k2: int,
        dy: ArrayLike | None = None,
        dh_n: ArrayLike | None = None,
        dc_n: ArrayLike | None = None,
        *,
        dcells: ArrayLike | None = None,
        dgates: ArrayLike | None = None,
        threads: int | None = None,
        need_x: bool = True,
    ) -> Gradients: ...
    def jvp(
        self,
        dx: ArrayLike | None = None,
        dh_0: ArrayLike | None = None,
        dc_0: ArrayLike | None = None,
        dweights: Mapping[str, ArrayLike] | None = None,
        *,
        threads: int | None = None,
    ) -> tuple[_Array, _Array, _Array | Any]: ...  # dc_n is None for a cell without c

class Stream:
    def __new__(
        cls,
        current: Current,
        owner: Any,
        batch_size: int | None,
        threads: int | None,
        batch_first: bool = False,
    ) -> Self: ...
    @property
    def batch_size(self) -> int | None: ...
    @property
    def state(self) -> Any: ...
    @state.setter
    def state(self, value: Any) -> None: ...
    def step(
        self, x_t: ArrayLike, *, out: _Array | None = None, active: ArrayLike | None = None
    ) -> _Array: ...
    def run(
        self, block: ArrayLike, *, out: _Array | None = None, active: ArrayLike | None = None
    ) -> _Array: ...
    def reset(self, indices: ArrayLike | None = None, *, state: Any = None) -> None: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

def _restore_stream(
    owner: Any, batch_size: int | None, threads: int | None, state: Any
) -> Stream: ...
