"""Write tests/golden/*.npz: what PyTorch computes in float64, gradients included.

    python tests/make_golden.py        needs torch; the files are kept in the repository

Weights and inputs are multiples of 1/256: exact in float32, so that one golden serves both dtypes,
and small when compressed. PyTorch refuses lengths of 0; such sequences are left out of its batch,
and by definition get y = 0, h_n = h_0, c_n = c_0 and pass their gradients through unchanged.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from helpers import GOLDEN, Array, weight_shapes

# Arguments of the LSTM, and of the call: T, B (None is unbatched), lengths, masks between layers.
CONFIGS: dict[str, dict[str, Any]] = {
    "smallest": dict(input_size=1, hidden_size=1, T=1, B=1),
    "plain": dict(input_size=7, hidden_size=17, T=7, B=3),
    "wide": dict(input_size=17, hidden_size=50, T=3, B=7),
    "wide_input": dict(input_size=50, hidden_size=7, T=5, B=17),
    "long": dict(input_size=1, hidden_size=7, T=50, B=1),
    "large_batch": dict(input_size=2, hidden_size=5, T=2, B=50),
    "no_bias": dict(input_size=3, hidden_size=8, bias=False, T=5, B=4),
    "batch_first": dict(input_size=4, hidden_size=9, batch_first=True, T=6, B=5),
    "unbatched": dict(input_size=3, hidden_size=7, num_layers=2, T=7, B=None),
    "unbatched_length": dict(
        input_size=3, hidden_size=7, bidirectional=True, T=7, B=None, lengths=4
    ),
    "layers": dict(input_size=5, hidden_size=7, num_layers=3, T=6, B=4),
    "bidirectional": dict(input_size=7, hidden_size=17, bidirectional=True, T=7, B=3),
    "projection": dict(input_size=7, hidden_size=17, proj_size=5, T=7, B=3),
    "projection_to_one": dict(
        input_size=1, hidden_size=7, proj_size=1, num_layers=2, bias=False, T=17, B=1
    ),
    "lengths": dict(input_size=5, hidden_size=7, T=7, B=6, lengths=[3, 7, 0, 1, 7, 5]),
    "lengths_bidirectional": dict(
        input_size=5,
        hidden_size=7,
        num_layers=2,
        bidirectional=True,
        T=6,
        B=5,
        lengths=[2, 0, 5, 1, 4],
    ),
    "masks": dict(
        input_size=4, hidden_size=6, num_layers=3, bidirectional=True, T=5, B=3, masks=0.4
    ),
    "everything": dict(
        input_size=7,
        hidden_size=9,
        num_layers=2,
        bidirectional=True,
        proj_size=4,
        batch_first=True,
        T=7,
        B=5,
        lengths=[7, 1, 0, 6, 3],
        masks=0.5,
    ),
}

DEFAULTS = dict(num_layers=1, bias=True, batch_first=False, bidirectional=False, proj_size=0)
STATES = ("h_0", "c_0", "dh_n", "dc_n")


def round_to_256ths(a: Array) -> Array:
    return np.round(a * 256) / 256


def run_torch(
    config: dict[str, Any],
    a: dict[str, Array],
    weights: dict[str, Array],
    lengths: list[int] | None,
    masks: list[Array],
) -> dict[str, Array]:
    """Results and gradients of a batch without lengths of 0."""
    leaves = {
        name: torch.tensor(value, requires_grad=True)
        for name, value in {"x": a["x"], "h_0": a["h_0"], "c_0": a["c_0"], **weights}.items()
    }
    # One torch.nn.LSTM per layer if there are masks to put between them, one in all otherwise.
    steps = config["num_layers"] if masks else 1
    D = 1 + config["bidirectional"]
    first = config["batch_first"] and a["x"].ndim == 3
    out, h_n, c_n = leaves["x"], [], []
    for k in range(steps):
        one = dict(config, num_layers=config["num_layers"] // steps, input_size=out.shape[-1])
        net = torch.nn.LSTM(**one).double()
        parameters = {
            name: leaves[name.replace("_l0", f"_l{k}") if masks else name]
            for name in net.state_dict()
        }
        rows = slice(k * D, (k + 1) * D) if masks else slice(None)
        h_c = leaves["h_0"][rows], leaves["c_0"][rows]
        if lengths is None or a["x"].ndim == 2:
            out, (h, c) = torch.func.functional_call(net, parameters, (out, h_c))
        else:
            packed = pack_padded_sequence(out, lengths, first, enforce_sorted=False)
            packed, (h, c) = torch.func.functional_call(net, parameters, (packed, h_c))
            total = a["x"].shape[1 if first else 0]
            out, _ = pad_packed_sequence(packed, first, total_length=total)
        if masks and k < steps - 1:
            mask = torch.tensor(masks[k])  # (T, B, D*R)
            out = out * (mask.transpose(0, 1) if first else mask)
        h_n.append(h)
        c_n.append(c)
    results = {"y": out, "h_n": torch.cat(h_n), "c_n": torch.cat(c_n)}
    upstream = {"y": a["dy"], "h_n": a["dh_n"], "c_n": a["dc_n"]}
    loss = sum((results[name] * torch.tensor(d)).sum() for name, d in upstream.items())
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = dict(zip(leaves, gradients, strict=True))
    return {name: r.detach().numpy() for name, r in results.items()} | {
        (f"d{name}" if name in ("x", "h_0", "c_0") else f"dw/{name}"): g.numpy()
        for name, g in named.items()
    }


def make(seed: int, options: dict[str, Any]) -> dict[str, Array]:
    """All arrays of one golden file."""
    options = dict(options)
    T, B = options.pop("T"), options.pop("B")
    lengths, p = options.pop("lengths", None), options.pop("masks", 0)
    config = DEFAULTS | options
    rng = np.random.default_rng(seed)
    L, D, H = config["num_layers"], 1 + config["bidirectional"], config["hidden_size"]
    R, first = config["proj_size"] or H, config["batch_first"]
    batch = () if B is None else (B,)

    def draw(*shape: int, scale: float = 1.0) -> Array:
        return round_to_256ths(scale * rng.standard_normal(shape))

    def series(width: int) -> Array:
        if B is None:
            return draw(T, width)
        return draw(B, T, width) if first else draw(T, B, width)

    weights = {
        name: draw(*shape, scale=0.2 if len(shape) == 1 else 0.7 / np.sqrt(shape[-1]))
        for name, shape in weight_shapes(**config).items()
    }
    a = {"x": series(config["input_size"]), "dy": series(D * R)}
    a |= {name: draw(L * D, *batch, H if "c" in name else R) for name in STATES}
    masks = [(rng.random((T, B, D * R)) >= p) / (1 - p) for _ in range(L - 1)] if p else []

    # What PyTorch gets: the sequences that have a step, and of an unbatched one its valid steps.
    if lengths is None:
        got = run_torch(config, a, weights, None, masks)
    elif B is None:
        cut = a | {name: a[name][:lengths] for name in ("x", "dy")}
        got = run_torch(config, cut, weights, None, masks)
        for name in ("y", "dx"):
            got[name] = np.concatenate([got[name], np.zeros((T - lengths, got[name].shape[1]))])
    else:
        some = np.flatnonzero(lengths)
        few = {
            name: value.take(some, 0 if first and name in ("x", "dy") else 1)
            for name, value in a.items()
        }
        some_lengths = [lengths[b] for b in some]
        part = run_torch(config, few, weights, some_lengths, [mask.take(some, 1) for mask in masks])
        got = {name: value for name, value in part.items() if name.startswith("dw/")}
        got |= {"y": np.zeros_like(a["dy"]), "dx": np.zeros_like(a["x"])}
        got |= {"h_n": a["h_0"].copy(), "c_n": a["c_0"].copy()}
        got |= {"dh_0": a["dh_n"].copy(), "dc_0": a["dc_n"].copy()}
        for name in ("y", "dx"):
            got[name][(some,) if first else (slice(None), some)] = part[name]
        for name in ("h_n", "c_n", "dh_0", "dc_0"):
            got[name][:, some] = part[name]

    file = {"config": np.array(json.dumps(config)), **a, **got}
    file |= {f"w/{name}": value for name, value in weights.items()}
    file |= {f"mask{k}": mask for k, mask in enumerate(masks)}
    if lengths is not None:
        file["lengths"] = np.array(lengths, np.int64)
    return file


def main() -> None:
    torch.set_num_threads(1)
    GOLDEN.mkdir(exist_ok=True)
    for seed, (name, options) in enumerate(CONFIGS.items()):
        np.savez_compressed(GOLDEN / f"{name}.npz", **make(seed, options))  # type: ignore[arg-type]
    total = sum(path.stat().st_size for path in GOLDEN.glob("*.npz"))
    print(f"{len(CONFIGS)} files, {total / 1000:.0f} kB, torch {torch.__version__}")


if __name__ == "__main__":
    main()
