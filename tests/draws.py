"""What a training call draws, once more in NumPy: the hash that docs/numerics.md names, of networks
whose seed is 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from cylstm import reference
from helpers import Array

GOLDEN = 0x9E3779B97F4A7C15


def hashed(n: Array) -> Array:
    """SplitMix64's finaliser of each number."""
    with np.errstate(over="ignore"):
        n = n + np.uint64(GOLDEN)
        n = (n ^ (n >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        n = (n ^ (n >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return n ^ (n >> np.uint64(31))


def kept_weights(net: Any, call: int = 0) -> dict[str, Array]:
    """1 / (1 - p) where a call leaves an element of a weight_hh, else 0."""
    kept, p = {}, net.recurrent_dropout
    key = hashed(hashed(np.array([1], np.uint64)) + np.uint64(call))
    names = [name for name in net.state_dict() if name.startswith("weight_hh")]
    for k, name in enumerate(names):
        shape = net.state_dict()[name].shape
        own = key + np.array([(2 * 2**32 + k) * GOLDEN % 2**64], np.uint64)
        place = np.arange(np.prod(shape), dtype=np.uint64).reshape(shape)
        kept[name] = (hashed(own + hashed(place)) >> np.uint64(32) >= p * 2**32) / max(1 - p, 1e-9)
    return kept


def zoneout_masks(net: Any, T: int, B: int, lengths: Any, call: int = 0) -> Array:
    """Whether a unit keeps what it had, (L*D, T, B, R), in the order of time, of a call of
    `net`."""
    L, D, R = net.num_layers, 1 + net.bidirectional, getattr(net, "proj_size", 0) or net.hidden_size
    one = np.array([1], np.uint64)
    key = hashed(hashed(one) + np.uint64(call))
    n = np.full(B, T) if lengths is None else np.array(lengths)
    place = np.arange(T * B * R, dtype=np.uint64).reshape(T, B, R)
    masks = []
    for k in range(L * D):
        own = key + np.array([(2**32 + k) * GOLDEN % 2**64], np.uint64)
        drawn = (hashed(own + hashed(place)) >> np.uint64(32)) < net.zoneout * 2**32
        masks.append(reference.network.along(1 if net.reverse else k % D, drawn, n))
    return np.stack(masks)
