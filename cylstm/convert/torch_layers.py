"""A live torch.nn.Sequential as a `Sequential`, or an error that lists what has no step here.

What comes in and goes out has the axes that it has in torch. Layers over time, which are
channels-first there and time-first here, stand between two `steps.Transpose`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

from .. import steps
from ..module import Module
from ..nodes import MODULES
from ..sequential import Sequential
from ..steps import Step
from ..weights import Array
from .found import no_options, unsupported


def from_sequential(model: Any, paths: list[str], **options: Any) -> Sequential:
    """Return a torch.nn.Sequential, whose x is torch's: (B, T, F), (B, C, T), (B, F), or ids.

    A recurrent layer passes on its y, as the last layer of the model its y alone.

    Raises ValueError for layers without a step here; the message lists them, and `paths`, those
    of the recurrent layers that may be had alone.
    """
    no_options(options)
    children = [(name, layer) for name, layer in _flattened(model) if _acts(layer)]
    rows = all(kind_of_layer(layer) in _ROWS for _, layer in children) and any(
        kind_of_layer(layer) == "BatchNorm1d" or getattr(layer, "dim", None) == 1
        for _, layer in children
    )
    plan = _Plan(rows)
    wrong = [
        f"{name or 'top'} ({kind_of_layer(layer)}): has a hook, which may change what it gives"
        for name, layer in model.named_modules()
        if layer._forward_hooks or layer._forward_pre_hooks
    ]
    for number, (name, layer) in enumerate(children):
        try:
            if kind_of_layer(layer) in _RECURRENT and number < len(children) - 1:
                raise ValueError("gives a tuple to the layer behind it")
            plan.add(name, layer)
        except (KeyError, ValueError) as error:
            why = "no such step" if isinstance(error, KeyError) else str(error)
            wrong.append(f"{name} ({kind_of_layer(layer)}): {why}")
    if wrong:
        raise ValueError(unsupported(wrong, paths))
    plan.arrange("output", False)
    return Sequential(
        plan.steps, input_shape=_input_shape(children[0][1], rows) if children else None
    )


def _input_shape(first: Any, rows: bool) -> tuple[int | None, ...] | None:
    """Without the batch: (C, T), or rows, where axes were taken to be theirs."""
    if kind_of_layer(first) == "Conv1d":
        return first.in_channels, None
    return (getattr(first, "in_features", None),) if rows else None


def _flattened(model: Any) -> Iterator[tuple[str, Any]]:
    """The layers of a Sequential and of those in it, by their names in the state_dict."""
    for name, layer in model.named_children():
        if kind_of_layer(layer) == "Sequential":
            yield from ((f"{name}.{inner}", part) for inner, part in _flattened(layer))
        else:
            yield name, layer


class _Plan:
    """The steps so far, and how what they give lies.

    Attributes
    ----------
    rows : bool
        Everything is (B, F), and means something else where it is not.
    transposed : bool
        What is (B, C, T) in torch is (B, T, C) here.
    pooled : bool
        What is (B, C, 1) in torch is (B, C) here.
    """

    def __init__(self, rows: bool) -> None:
        self.steps: list[tuple[str, Module | Step]] = []
        self.rows = rows
        self.transposed = False
        self.pooled = False

    def add(self, name: str, layer: Any) -> None:
        kind = kind_of_layer(layer)
        if kind in _OVER_TIME and not self.rows:
            self.arrange(name, True)
        elif kind == "Flatten" and self.pooled:
            _flatten(layer)
            self.pooled, self.transposed, self.rows = False, False, True
            return
        elif kind in _SOFTMAX:
            self.arrange(name, not self.rows and layer.dim in (1, -2))
            if layer.dim not in ((1, -1) if self.rows else (1, 2, -2, -1)):
                raise ValueError(f"dim {layer.dim}")
        elif kind not in _ELEMENTWISE:
            self.arrange(name, False)
        made = _MADE[kind](layer)
        self.steps.append((name, made))
        if isinstance(made, steps.GlobalPool):
            self.pooled = True
        elif isinstance(made, steps.Flatten):
            self.rows = True

    def arrange(self, name: str, over_time: bool) -> None:
        """Bring the axes into the order that the layer of this name, or the caller, wants."""
        if self.pooled:
            self.steps.append((f"{name}.again", steps.Repeat(1)))
            self.pooled = False
        if self.transposed != over_time:
            self.steps.append((f"{name}.transposed", steps.Transpose()))
            self.transposed = over_time


def kind_of_layer(layer: Any) -> str:
    """The name of a class of torch's own; another class may compute anything."""
    own = type(layer).__module__.startswith(("torch.nn.", "cylstm.torch"))
    return type(layer).__name__ if own else f"{type(layer).__module__}.{type(layer).__name__}"


def _acts(layer: Any) -> bool:
    """Whether a layer does anything at inference."""
    return kind_of_layer(layer) not in _NOT_THERE


# ------------------------------------------------------------------------------- layers


def _arrays(layer: Any) -> dict[str, Array]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in layer.state_dict().items()}


def _module(layer: Any) -> Module:
    cls = MODULES[kind_of_layer(layer)]
    if getattr(layer, "max_norm", None) is not None:
        raise ValueError("max_norm")
    if getattr(layer, "batch_first", True) is False:
        raise ValueError("takes (T, B, F), expected batch_first=True")
    arrays = _arrays(layer)
    config = {n: getattr(layer, n) for n in signature(cls).parameters if hasattr(layer, n)}
    config["dtype"] = next(iter(arrays.values())).dtype.name
    if "bias" in config:
        config["bias"] = any(name.startswith("bias") for name in arrays)
    return cls._from(config, arrays)


def _batch_norm(layer: Any) -> Step:
    arrays = _arrays(layer)
    arrays.pop("num_batches_tracked", None)
    if "running_mean" not in arrays:
        raise ValueError("has no running statistics")
    return steps.BatchNorm(**arrays, eps=layer.eps)


def _layer_norm(layer: Any) -> Step:
    if len(layer.normalized_shape) != 1:
        raise ValueError(f"goes over {len(layer.normalized_shape)} axes")
    return steps.LayerNorm(**_arrays(layer), eps=layer.eps)


def _one(value: Any) -> int:
    """A number that torch may have as a tuple of one."""
    (number,) = value if isinstance(value, tuple) else (value,)
    return int(number)


def _convolution(layer: Any) -> Step:
    if layer.padding_mode != "zeros":
        raise ValueError(f"padding_mode {layer.padding_mode!r}")
    dilation = _one(layer.dilation)
    padding: Any = layer.padding
    if padding == "same":  # with the odd one on the right, as TensorFlow's, but of the whole reach
        reach = dilation * (_one(layer.kernel_size) - 1)
        padding = reach // 2, reach - reach // 2
    elif padding != "valid":
        padding = (_one(padding),) * 2
    return steps.Conv1d(
        **_arrays(layer),
        stride=_one(layer.stride),
        padding=padding,
        dilation=dilation,
        groups=layer.groups,
    )


def _pool(layer: Any) -> Step:
    if layer.ceil_mode:
        raise ValueError("ceil_mode")
    largest = kind_of_layer(layer) == "MaxPool1d"
    if largest and (layer.return_indices or _one(layer.dilation) != 1):
        raise ValueError("return_indices or dilation")
    return steps.Pool(
        "max" if largest else "average",
        _one(layer.kernel_size),
        _one(layer.stride),
        (_one(layer.padding),) * 2,
        not largest and layer.count_include_pad,
    )


def _global_pool(kind: str) -> Callable[[Any], Step]:
    def make(layer: Any) -> Step:
        if layer.output_size not in (1, (1,)) or getattr(layer, "return_indices", False):
            raise ValueError(f"output_size {layer.output_size}, or return_indices")
        return steps.GlobalPool(kind)

    return make


def _softmax(layer: Any) -> Step:
    return steps.Activation(_SOFTMAX[kind_of_layer(layer)])


def _flatten(layer: Any) -> Step:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise ValueError("start_dim or end_dim")
    return steps.Flatten()


def _softplus(layer: Any) -> Step:
    if layer.beta != 1:
        raise ValueError(f"beta {layer.beta}")
    if layer.threshold < 20:  # from where on it is x; beyond, float32 has no difference
        raise ValueError(f"threshold {layer.threshold}")
    return steps.Activation("softplus")


def _gelu(layer: Any) -> Step:
    return steps.Activation("gelu" if layer.approximate == "none" else "gelu_tanh")


def _plain(name: str) -> Callable[[Any], Step]:
    return lambda layer: steps.Activation(name)


Makers = dict[str, Callable[[Any], Module | Step]]

_NOT_THERE = {"Dropout", "Dropout1d", "AlphaDropout", "FeatureAlphaDropout", "Identity"}
_RECURRENT = {"LSTM", "GRU", "RNN"}
_SOFTMAX = {"Softmax": "softmax", "LogSoftmax": "log_softmax"}
_ELEMENTWISE: Makers = {
    "Softplus": _softplus,
    "GELU": _gelu,
    "LeakyReLU": lambda layer: steps.Activation("leaky_relu", layer.negative_slope),
    "ELU": lambda layer: steps.Activation("elu", layer.alpha),
    "ReLU": _plain("relu"),
    "ReLU6": _plain("relu6"),
    "SELU": _plain("selu"),
    "SiLU": _plain("silu"),
    "Sigmoid": _plain("sigmoid"),
    "Hardsigmoid": _plain("hard_sigmoid_keras3"),
    "Tanh": _plain("tanh"),
    "Softsign": _plain("softsign"),
}
_OVER_TIME: Makers = {  # of (B, C, T); BatchNorm1d takes (B, F) too
    "Conv1d": _convolution,
    "MaxPool1d": _pool,
    "AvgPool1d": _pool,
    "AdaptiveMaxPool1d": _global_pool("max"),
    "AdaptiveAvgPool1d": _global_pool("average"),
    "BatchNorm1d": _batch_norm,
}
_LAST_AXIS: Makers = {
    "Linear": _module,
    "LayerNorm": _layer_norm,
    **dict.fromkeys(_SOFTMAX, _softmax),
}
_MADE: Makers = {
    **_ELEMENTWISE,
    **_OVER_TIME,
    **_LAST_AXIS,
    **{kind: _module for kind in (*sorted(_RECURRENT), "Embedding")},
    "Flatten": _flatten,
}
_ROWS = {*_ELEMENTWISE, *_LAST_AXIS, "BatchNorm1d"}  # may take (B, F)
