"""Write tests/golden_training/*.npz: losses, optimisers and Linear by PyTorch in float64.

    python tests/make_golden_training.py        needs torch; the files are kept in the repository

Inputs are multiples of 1/256: exact in float32, so that one golden serves both dtypes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from helpers import Array

GOLDEN_TRAINING = Path(__file__).parent / "golden_training"

# Every branch of every optimiser; the class and its arguments. lr is halved after step 5.
OPTIMISERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", dict(lr=0.1)),
    "sgd_decay": ("SGD", dict(lr=0.1, weight_decay=0.25)),
    "momentum": ("SGD", dict(lr=0.1, momentum=0.75)),
    "dampening": ("SGD", dict(lr=0.1, momentum=0.75, dampening=0.5, weight_decay=0.1)),
    "nesterov": ("SGD", dict(lr=0.1, momentum=0.75, nesterov=True)),
    "nesterov_decay": ("SGD", dict(lr=0.1, momentum=0.75, nesterov=True, weight_decay=0.1)),
    "adam": ("Adam", dict(lr=0.1)),
    "adam_betas": ("Adam", dict(lr=0.1, betas=(0.5, 0.75), eps=0.125)),
    "adam_decay": ("Adam", dict(lr=0.1, weight_decay=0.25)),
    "adamw": ("AdamW", dict(lr=0.1)),
    "adamw_decay": ("AdamW", dict(lr=0.1, betas=(0.5, 0.75), eps=0.125, weight_decay=0.5)),
    "adamw_plain": ("AdamW", dict(lr=0.1, weight_decay=0.0)),
}
STEPS, HALVED_AFTER, SEEN = 8, 5, (1, 2, 8)


def draw(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    return np.round(scale * rng.standard_normal(shape) * 256) / 256


def linear(rng: np.random.Generator) -> dict[str, Array]:
    a = {
        "x": draw(rng, 4, 3, 5),
        "dy": draw(rng, 4, 3, 7),
        "weight": draw(rng, 7, 5),
        "bias": draw(rng, 7),
    }
    leaves = {name: torch.tensor(a[name], requires_grad=True) for name in ("x", "weight", "bias")}
    y = functional.linear(**{"input" if k == "x" else k: leaf for k, leaf in leaves.items()})
    y.backward(torch.tensor(a["dy"]))
    grads = {f"d{name}": leaf.grad.numpy() for name, leaf in leaves.items()}
    return a | grads | {"y": y.detach().numpy()}


def losses(rng: np.random.Generator) -> dict[str, Array]:
    a = {"prediction": draw(rng, 4, 3), "target": draw(rng, 4, 3)}
    a["logits"] = draw(rng, 6, 4, 5, scale=8)  # saturated rows and flat ones
    a["classes"] = rng.integers(0, 5, (6, 4))
    a["classes"][[0, 2, 5], [1, 3, 0]] = -100
    classes = torch.tensor(a["classes"]).reshape(-1)
    for reduction in ("mean", "sum", "none"):
        x = torch.tensor(a["prediction"], requires_grad=True)
        loss = functional.mse_loss(x, torch.tensor(a["target"]), reduction=reduction)
        loss.sum().backward()
        a |= {f"mse_{reduction}": loss.detach().numpy(), f"dmse_{reduction}": x.grad.numpy()}

        x = torch.tensor(a["logits"], requires_grad=True)
        loss = functional.cross_entropy(x.reshape(-1, 5), classes, reduction=reduction)
        loss.sum().backward()
        value = loss.detach().reshape((6, 4) if reduction == "none" else ()).numpy()
        a |= {f"entropy_{reduction}": value, f"dentropy_{reduction}": x.grad.numpy()}
    return a


def optimisers(rng: np.random.Generator) -> dict[str, Array]:
    """Per case the weights, all in one row, after the steps `SEEN`, and its final state."""
    shapes = {"weight": (7, 5), "bias": (7,)}
    start = {name: draw(rng, *shape) for name, shape in shapes.items()}
    grads = {name: draw(rng, STEPS, *shape) for name, shape in shapes.items()}
    a = {f"start/{name}": value for name, value in start.items()}
    a |= {f"grads/{name}": value for name, value in grads.items()}
    for case, (cls, arguments) in OPTIMISERS.items():
        parameters = {name: torch.nn.Parameter(torch.tensor(v)) for name, v in start.items()}
        optimiser = getattr(torch.optim, cls)(parameters.values(), **arguments)
        rows = []
        for step in range(1, STEPS + 1):
            for name, parameter in parameters.items():
                parameter.grad = torch.tensor(grads[name][step - 1])
            optimiser.step()
            if step == HALVED_AFTER:
                optimiser.param_groups[0]["lr"] /= 2
            if step in SEEN:
                rows.append(flat(parameters.values()))
        a[case] = np.stack(rows)
        states = [optimiser.state[parameter] for parameter in parameters.values()]
        for kind in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
            if states[0].get(kind) is not None:
                a[f"{case}/{kind}"] = flat(state[kind] for state in states)
    a["config"] = np.array(json.dumps([OPTIMISERS, SEEN, HALVED_AFTER]))
    return a


def flat(tensors: Iterable[Any]) -> Array:
    return np.concatenate([tensor.detach().numpy().reshape(-1) for tensor in tensors])


def main() -> None:
    GOLDEN_TRAINING.mkdir(exist_ok=True)
    for seed, make in enumerate((linear, losses, optimisers)):
        arrays: dict[str, Any] = make(np.random.default_rng(seed))
        np.savez_compressed(GOLDEN_TRAINING / f"{make.__name__}.npz", **arrays)


if __name__ == "__main__":
    main()
