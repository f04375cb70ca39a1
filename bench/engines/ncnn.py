"""ncnn."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from bench.engines.base import Call, Engine, Outputs, Unsupported, need_float32, need_lstm
from bench.problem import Problem


class Ncnn(Engine):
    """One layer, one direction and one sequence: its LSTM knows no batches."""

    name = "ncnn"
    package = "ncnn"

    GATE_ORDER = (0, 1, 3, 2)  # i, f, o, g
    INPUTS = ("x", "h_0", "c_0")
    OUTPUTS = ("y", "h_n", "c_n")

    def _net(self, p: Problem) -> Any:
        import ncnn

        need_float32(p)
        need_lstm(p)
        s = p.shape
        if s.B > 1 or s.num_layers > 1 or s.D > 1 or s.proj_size:
            raise Unsupported("only one sequence, layer and direction, no projection")
        graph = [
            "7767517",  # the format's magic number, then the numbers of layers and of blobs
            "4 6",
            *(f"Input {name} 0 1 {name}" for name in self.INPUTS),
            f"LSTM lstm 3 3 {' '.join(self.INPUTS + self.OUTPUTS)} 0={s.H} 1={4 * s.H * s.I} 2=0",
        ]
        gates = {k: v.reshape(4, s.H, -1)[list(self.GATE_ORDER)] for k, v in p.weights.items()}
        bias = gates["bias_ih_l0"] + gates["bias_hh_l0"]
        plain = bytes(4)  # the flag of an array that is neither quantised nor float16
        net = ncnn.Net()
        net.opt.num_threads = self.threads
        net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
        net.load_param_mem("\n".join(graph) + "\n")
        with tempfile.NamedTemporaryFile(suffix=".bin") as file:
            for array in (gates["weight_ih_l0"], bias, gates["weight_hh_l0"]):
                file.write(plain + np.ascontiguousarray(array).tobytes())
            file.flush()
            net.load_model(file.name)
        return net

    def _call(self, p: Problem, feed_back: bool) -> list[Call]:
        import ncnn

        net = self._net(p)
        inputs = [ncnn.Mat(a) for a in (p.x[:, 0], p.h_0[0], p.c_0[0])]
        last: list[Any] = []

        def run() -> None:
            extractor = net.create_extractor()
            for name, mat in zip(self.INPUTS, inputs, strict=True):
                extractor.input(name, mat)
            last[:] = [extractor.extract(name)[1] for name in self.OUTPUTS]
            if feed_back:
                inputs[1:] = last[1:]

        def read() -> Outputs:
            y, h_n, c_n = (np.array(mat).reshape(-1, 1, p.shape.H) for mat in last)
            return {"y": y, "h_n": h_n, "c_n": c_n}

        return [Call("extractor", run, read)]

    def forward(self, p: Problem) -> list[Call]:
        return self._call(p, feed_back=False)

    def step(self, p: Problem) -> list[Call]:
        return self._call(p, feed_back=True)
