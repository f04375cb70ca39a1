"""What reads an ONNX graph: ONNX Runtime, by two interfaces, and OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.engines.base import Call, Engine, Outputs, Unsupported, need_float32
from bench.problem import Array, Problem


def feed_of(p: Problem) -> dict[str, Array]:
    """The inputs of the ONNX graph, by name."""
    feed, D = {"x": p.x}, p.shape.D
    for layer in range(p.shape.num_layers):
        for name, value in p.states.items():
            feed[f"{name}_{layer}"] = value[layer * D : (layer + 1) * D].copy()
    return feed


def empty_outputs(p: Problem) -> dict[str, Array]:
    """Arrays for the outputs of the ONNX graph, by name and in its order."""
    s = p.shape
    found = {"y": np.empty((s.T, s.B, s.D * s.H), p.x.dtype)}
    for layer in range(s.num_layers):
        for name in map(last_of, p.states):
            found[f"{name}_{layer}"] = np.empty((s.D, s.B, s.H), p.x.dtype)
    return found


def joined(p: Problem, found: dict[str, Array]) -> Outputs:
    """The outputs of the ONNX graph with the states of all layers together."""
    layers = range(p.shape.num_layers)
    names = map(last_of, p.states)
    states = {n: np.concatenate([found[f"{n}_{k}"] for k in layers]) for n in names}
    return {"y": found["y"].copy(), **states}


def last_of(state: str) -> str:
    """The state that comes out where this one went in."""
    return state.replace("_0", "_n")


def next_input(output: str) -> str:
    """The state that goes in where this one came out."""
    return output.replace("_n_", "_0_")


class OnnxEngine(Engine):
    """What the engines that read an ONNX graph share."""

    needs = ("onnx",)

    def graph(self, p: Problem) -> bytes:
        from bench.onnx_model import to_onnx

        need_float32(p)
        if p.shape.proj_size:
            raise Unsupported("no projection")
        serialized: bytes = to_onnx(p).SerializeToString()
        return serialized

    def alternating(
        self, p: Problem, bind: Callable[[dict[str, Array], dict[str, Array]], Callable[[], object]]
    ) -> tuple[Callable[[], object], Callable[[], Outputs]]:
        """Steps by two bindings, each of which reads the states that the other wrote."""
        first = feed_of(p)
        even, odd = empty_outputs(p), empty_outputs(p)
        for outputs in (even, odd):  # a step reads and writes; at the start "odd" has written
            for name in list(outputs)[1:]:
                outputs[name][:] = first[next_input(name)]

        def reading(outputs: dict[str, Array]) -> dict[str, Array]:
            return {"x": p.x, **{next_input(k): outputs[k] for k in list(outputs)[1:]}}

        turns = [(bind(reading(odd), even), even), (bind(reading(even), odd), odd)]

        def run() -> None:
            turns[0][0]()
            turns.reverse()

        return run, lambda: joined(p, turns[1][1])


class OnnxRuntime(OnnxEngine):
    """`InferenceSession.run`: NumPy arrays in, fresh NumPy arrays out."""

    name = "ort"
    package = "onnxruntime"

    def session(self, p: Problem) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(
            self.graph(p), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, p: Problem) -> list[Call]:
        session, feed, names = self.session(p), feed_of(p), list(empty_outputs(p))
        last: list[Array] = []

        def run() -> None:
            last[:] = session.run(names, feed)

        return [Call("run", run, lambda: joined(p, dict(zip(names, last, strict=True))))]

    def step(self, p: Problem) -> list[Call]:
        session, feed, names = self.session(p), feed_of(p), list(empty_outputs(p))
        states = [next_input(name) for name in names[1:]]
        last: list[Array] = []

        def run() -> None:
            last[:] = session.run(names, feed)
            feed.update(zip(states, last[1:], strict=True))

        return [Call("run", run, lambda: joined(p, dict(zip(names, last, strict=True))))]


class OnnxRuntimeBinding(OnnxRuntime):
    """Inputs and outputs bound once; a call passes nothing."""

    name = "ort-binding"

    @staticmethod
    def _bound(session: Any, ins: dict[str, Array], outs: dict[str, Array]) -> Any:
        from onnxruntime import OrtValue

        binding = session.io_binding()
        for name, array in ins.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
        for name, array in outs.items():
            binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(array))
        return lambda: session.run_with_iobinding(binding)

    def forward(self, p: Problem) -> list[Call]:
        outputs = empty_outputs(p)
        run = self._bound(self.session(p), feed_of(p), outputs)
        return [Call("io-binding", run, lambda: joined(p, outputs))]

    def step(self, p: Problem) -> list[Call]:
        session = self.session(p)
        return [Call("io-binding", *self.alternating(p, lambda i, o: self._bound(session, i, o)))]


class OpenVino(OnnxEngine):
    """An infer request whose tensors lie on our arrays: passing them costs 80 us a call."""

    name = "openvino"
    package = "openvino"
    precision = "f32"

    def _compiled(self, p: Problem) -> Any:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": self.precision,  # else a CPU with AMX computes in bf16
            "EXECUTION_MODE_HINT": "PERFORMANCE",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_CPU_PINNING": False,  # pinned, a call of one thread is slower by a few us
        }
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(self.graph(p)), "CPU", settings)
        used = compiled.get_property("INFERENCE_PRECISION_HINT")
        if used != getattr(openvino.Type, self.precision):
            raise Unsupported(f"computes in {used.get_type_name()}, not {self.precision}")
        return compiled

    @staticmethod
    def _bound(compiled: Any, ins: dict[str, Array], outs: dict[str, Array]) -> Any:
        import openvino

        request = compiled.create_infer_request()
        for name, array in {**ins, **outs}.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        return lambda arrays=(ins, outs): request.infer(share_outputs=True)  # keeps them alive

    def forward(self, p: Problem) -> list[Call]:
        outputs = empty_outputs(p)
        run = self._bound(self._compiled(p), feed_of(p), outputs)
        return [Call("infer request", run, lambda: joined(p, outputs))]

    def step(self, p: Problem) -> list[Call]:
        compiled = self._compiled(p)
        run, read = self.alternating(p, lambda i, o: self._bound(compiled, i, o))
        return [Call("infer request", run, read)]
