"""Write an LSTM's weights, and some input, as files that realtime.c reads.

python export.py FOLDER [MODEL.safetensors] [--quantize int8]     -> weights, input.f32
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import cylstm

FORMATS = {None: "f32", "bfloat16": "bf16", "int8": "int8"}


def export(lstm: cylstm.LSTM, path: Path, quantize: str | None = None) -> None:
    """A line with the sizes, then all weights in state_dict order, little-endian.

    `quantize` is the format that they are rounded to first; None leaves them float32.
    """
    if lstm.bidirectional or lstm.dtype != np.float32:
        raise ValueError(f"{lstm} does not fit: expected one direction, and float32")
    weights = cylstm.quantize(lstm, quantize).state_dict() if quantize else lstm.state_dict()
    sizes = lstm.num_layers, lstm.input_size, lstm.hidden_size, lstm.proj_size, int(lstm.bias)
    first = f"cylstm-{FORMATS[quantize]} {' '.join(map(str, sizes))}\n"
    path.write_bytes(first.encode() + b"".join(map(words, weights.values())))


def words(array: np.ndarray) -> bytes:
    """An array's bytes, and zeros up to whole words of four."""
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return data + bytes(-len(data) % 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", nargs="?", help="a file that cylstm.load reads as an LSTM")
    parser.add_argument("--quantize", choices=["bfloat16", "int8"])
    arguments = parser.parse_args()
    lstm = cylstm.LSTM(64, 64, num_layers=2, seed=1)
    if arguments.model:
        lstm = cylstm.load(arguments.model)
    if not isinstance(lstm, cylstm.LSTM):
        raise SystemExit(f"{arguments.model} holds {lstm}, expected an LSTM")
    export(lstm, arguments.folder / "weights", arguments.quantize)
    noise = np.random.default_rng(1).uniform(-1, 1, (10_000, lstm.input_size))
    noise.astype("<f4").tofile(arguments.folder / "input.f32")


if __name__ == "__main__":
    main()
