"""Write an LSTM's weights, and some input, as files that realtime.c reads.

python export.py FOLDER [MODEL.safetensors]        -> weights.f32, input.f32
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import cylstm


def export(lstm: cylstm.LSTM, path: Path) -> None:
    """A line with the sizes, then all weights in state_dict order as little-endian float32."""
    if lstm.bidirectional or lstm.dtype != np.float32:
        raise ValueError(f"{lstm} does not fit: expected one direction, and float32")
    sizes = lstm.num_layers, lstm.input_size, lstm.hidden_size, lstm.proj_size, int(lstm.bias)
    weights = [array.astype("<f4").tobytes() for array in lstm.state_dict().values()]
    path.write_bytes("cylstm-f32 {} {} {} {} {}\n".format(*sizes).encode() + b"".join(weights))


def main(folder: str, model: str | None = None) -> None:
    lstm = cylstm.load(model) if model else cylstm.LSTM(64, 64, num_layers=2, seed=1)
    if not isinstance(lstm, cylstm.LSTM):
        raise SystemExit(f"{model} holds {lstm}, expected an LSTM")
    export(lstm, Path(folder, "weights.f32"))
    noise = np.random.default_rng(1).uniform(-1, 1, (10_000, lstm.input_size))
    noise.astype("<f4").tofile(Path(folder, "input.f32"))


if __name__ == "__main__":
    main(*sys.argv[1:])
