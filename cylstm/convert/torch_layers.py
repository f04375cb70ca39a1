"""A live torch.nn.Sequential as a `Sequential`, or an error that lists what has no step here."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

from .. import steps
from ..sequential import MODULES, Sequential
from ..steps import Step
from ..weights import Array, Module
from .found import no_options


class Unsupported(ValueError):
    """A model has layers without a step here."""


def from_sequential(model: Any, **options: Any) -> Sequential:
    """Return a torch.nn.Sequential, whose x is (B, T, F), ids (B, T), or (B, F).

    A recurrent layer passes on its y, as the last layer of the model its y alone. Layers that
    torch runs channels-first, (B, C, T), are refused: there x would mean something else than here.

    Raises Unsupported for layers without a step here; the message lists them.
    """
    no_options(options)
    made, wrong = [], []
    children = [(name, layer) for name, layer in model.named_children() if _acts(layer)]
    flat = all(_kind(layer) in _ROWS for _, layer in children)
    for number, (name, layer) in enumerate(children):
        try:
            if _kind(layer) in _RECURRENT and number < len(children) - 1:
                raise ValueError("gives a tuple to the layer behind it")
            made.append((name, _made(layer, flat)))
        except (KeyError, ValueError) as error:
            why = "no such step" if isinstance(error, KeyError) else str(error)
            wrong.append(f"{name} ({_kind(layer)}): {why}")
    if wrong:
        raise Unsupported(f"the whole model has what cylstm has no step for: {'; '.join(wrong)}")
    width = children and flat and getattr(children[0][1], "in_features", None)
    return Sequential(made, input_shape=(width,) if width else None)


def _kind(layer: Any) -> str:
    """The name of a class of torch's own; another class may compute anything."""
    own = type(layer).__module__.startswith(("torch.nn.", "cylstm.torch"))
    return type(layer).__name__ if own else f"{type(layer).__module__}.{type(layer).__name__}"


def _acts(layer: Any) -> bool:
    """Whether a layer does anything at inference."""
    return _kind(layer) not in ("Dropout", "AlphaDropout", "FeatureAlphaDropout", "Identity")


def _made(layer: Any, flat: bool) -> Module | Step:
    kind = _kind(layer)
    if kind == "BatchNorm1d" and not flat:
        raise ValueError("would take (B, C, T)")
    return _MADE[kind](layer)


def _arrays(layer: Any) -> dict[str, Array]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in layer.state_dict().items()}


def _module(layer: Any) -> Module:
    cls = MODULES[_kind(layer)]
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


def _softmax(name: str) -> Callable[[Any], Step]:
    def make(layer: Any) -> Step:
        if layer.dim != -1:
            raise ValueError(f"dim {layer.dim}, expected -1")
        return steps.Activation(name)

    return make


def _flatten(layer: Any) -> Step:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise ValueError("start_dim or end_dim")
    return steps.Flatten()


def _softplus(layer: Any) -> Step:
    if layer.beta != 1:
        raise ValueError(f"beta {layer.beta}")
    return steps.Activation("softplus")


def _gelu(layer: Any) -> Step:
    return steps.Activation("gelu" if layer.approximate == "none" else "gelu_tanh")


def _plain(name: str) -> Callable[[Any], Step]:
    return lambda layer: steps.Activation(name)


_RECURRENT = {"LSTM", "GRU", "RNN"}
_MADE: dict[str, Callable[[Any], Module | Step]] = {
    **{kind: _module for kind in (*sorted(_RECURRENT), "Linear", "Embedding")},
    "BatchNorm1d": _batch_norm,
    "LayerNorm": _layer_norm,
    "Flatten": _flatten,
    "Softmax": _softmax("softmax"),
    "LogSoftmax": _softmax("log_softmax"),
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
_ROWS = {*_MADE} - _RECURRENT - {"Embedding", "Flatten"}  # may take (B, F)
