"""Write an LSTM's weights, and some input, as files that realtime.c reads.

python export.py [MODEL.safetensors]        -> weights.f32, input.f32
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import cylstm


def export(lstm: cylstm.LSTM, path: Path) -> None:
    """A line with the sizes, then all weights in state_dict order as little-endian float32."""
    sizes = lstm.num_layers, lstm.input_size, lstm.hidden_size, lstm.proj_size, int(lstm.bias)
    weights = [array.astype("<f4").tobytes() for array in lstm.state_dict().values()]
    path.write_bytes("cylstm-f32 {} {} {} {} {}\n".format(*sizes).encode() + b"".join(weights))


if __name__ == "__main__":
    model = cylstm.load(sys.argv[1]) if sys.argv[1:] else cylstm.LSTM(64, 64, num_layers=2, seed=1)
    assert isinstance(model, cylstm.LSTM) and not model.bidirectional
    export(model, Path("weights.f32"))
    noise = np.random.default_rng(1).uniform(-1, 1, (10_000, model.input_size))
    noise.astype("<f4").tofile("input.f32")
