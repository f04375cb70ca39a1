"""The engines that are compared: one small class each, every one by its fastest documented API.

An engine turns a problem into calls. To add one, write a class with `forward`, `step` or `training`
and name it in `ENGINES`. Nothing here measures time.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bench.problem import Array, Problem, suffixes

LEARNING_RATE = 1e-6  # small: thousands of timed training steps must not wear the weights out
ADAM_EPS = 1e-8

Outputs = dict[str, Array]


class Unsupported(Exception):
    """The engine has no such computation; the message says which."""


class Call(NamedTuple):
    """One way to have an engine do the work once."""

    label: str
    run: Callable[[], object]  # what is timed
    read: Callable[[], Outputs]  # what the latest run computed, not timed
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


class Engine:
    """The engine `name`, from the distribution `package`; a method gives its calls to try.

    forward   y, h_n, c_n of a block
    step      the same for T = 1, each run starting from the states that the last one left
    training  forward, backward from dy, and a step of Adam: y, the gradients as "d <weight>" and
              the new weights
    """

    name: ClassVar[str]
    package: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()  # modules, where the package alone is not enough

    @classmethod
    def version(cls) -> str | None:
        """The version installed, or None."""
        try:
            found = all(importlib.util.find_spec(module) for module in cls.needs)
            return importlib.metadata.version(cls.package) if found else None
        except importlib.metadata.PackageNotFoundError:
            return None

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def calls(self, mode: str, problem: Problem) -> list[Call]:
        """The calls for a mode; Unsupported where the engine has none."""
        made: list[Call] = getattr(self, mode)(problem)
        return made

    def forward(self, problem: Problem) -> list[Call]:
        raise Unsupported("no blocks")

    def step(self, problem: Problem) -> list[Call]:
        raise Unsupported("no steps")

    def training(self, problem: Problem) -> list[Call]:
        raise Unsupported("no training")


def need_float32(p: Problem) -> None:
    if p.x.dtype != np.float32:
        raise Unsupported(f"no {p.x.dtype}")


class Cylstm(Engine):
    name = "cylstm"
    package = "cylstm"
    needs = ("cylstm",)

    @classmethod
    def version(cls) -> str | None:
        """Of the package that would be imported: a build in place has no metadata."""
        try:
            import cylstm._core
        except ImportError:
            return None
        return str(cylstm.__version__)

    def _lstm(self, p: Problem) -> Any:
        import cylstm

        s = p.shape
        lstm = cylstm.LSTM(
            s.I,
            s.H,
            num_layers=s.num_layers,
            bidirectional=s.bidirectional,
            proj_size=s.proj_size,
            dtype=p.x.dtype,
        )
        lstm.load_state_dict(p.weights)
        return lstm

    def forward(self, p: Problem) -> list[Call]:
        lstm, states, threads = self._lstm(p), (p.h_0, p.c_0), self.threads
        y = lstm(p.x, states, threads=threads)[0]
        last: list[Any] = []

        def run() -> None:
            last[:] = lstm(p.x, states, threads=threads, out=y)

        def read() -> Outputs:
            y, (h_n, c_n) = last
            return {"y": y, "h_n": h_n, "c_n": c_n}

        return [Call("lstm(x, out=y)", run, read)]

    def step(self, p: Problem) -> list[Call]:
        N = p.shape.B if p.shape.B > 1 else None  # one stream needs no batch axis
        stream = self._lstm(p).stream(N, threads=self.threads)
        x = p.x[0] if N else p.x[0, 0]
        y = np.empty((*x.shape[:-1], p.shape.P), x.dtype)
        stream.state = (p.h_0, p.c_0) if N else (p.h_0[:, 0], p.c_0[:, 0])

        def run() -> None:
            stream.step(x, out=y)

        def read() -> Outputs:
            h_n, c_n = (a.reshape(len(a), p.shape.B, -1) for a in stream.state)
            return {"y": y.reshape(1, p.shape.B, -1), "h_n": h_n, "c_n": c_n}

        return [Call("stream.step(x, out)", run, read)]

    def training(self, p: Problem) -> list[Call]:
        import cylstm

        lstm, states, threads = self._lstm(p), (p.h_0, p.c_0), self.threads
        adam = cylstm.optim.Adam(lstm, lr=LEARNING_RATE, eps=ADAM_EPS)
        last: list[Any] = []

        def run() -> None:
            tape = lstm.forward(p.x, states, threads=threads)
            grads = tape.backward(p.dy, threads=threads)
            adam.step(grads, threads=threads)
            last[:] = [tape.y, grads.weights]

        def read() -> Outputs:
            y, gradients = last
            return {"y": y, **{"d " + k: g for k, g in gradients.items()}, **lstm.state_dict()}

        return [Call("forward, backward, Adam", run, read)]


class Torch(Engine):
    name = "torch"
    package = "torch"

    def _lstm(self, p: Problem) -> Any:
        import torch

        s = p.shape
        lstm = torch.nn.LSTM(
            s.I,
            s.H,
            num_layers=s.num_layers,
            bidirectional=s.bidirectional,
            proj_size=s.proj_size,
            dtype=getattr(torch, str(p.x.dtype)),
        )
        lstm.load_state_dict({k: torch.tensor(v) for k, v in p.weights.items()})
        return lstm

    def _paths(self, p: Problem) -> list[bool]:
        """With oneDNN and without: it takes no projection and no float64, nor always wins."""
        return [False] if p.x.dtype != np.float32 or p.shape.proj_size else [True, False]

    def _around(
        self, onednn: bool, training: bool = False
    ) -> Callable[[], contextlib.AbstractContextManager[object]]:
        import torch

        @contextlib.contextmanager
        def around() -> Iterator[None]:
            torch.set_num_threads(self.threads)
            torch.backends.mkldnn.enabled = onednn
            with torch.inference_mode(not training):
                yield
            torch.backends.mkldnn.enabled = True

        return around

    def forward(self, p: Problem) -> list[Call]:
        import torch

        lstm = self._lstm(p).eval()
        x, states = torch.tensor(p.x), (torch.tensor(p.h_0), torch.tensor(p.c_0))
        last: list[Any] = []

        def run() -> None:
            last[:] = lstm(x, states)

        def read() -> Outputs:
            y, (h_n, c_n) = last
            return {"y": y.numpy(), "h_n": h_n.numpy(), "c_n": c_n.numpy()}

        return [
            Call("LSTM, oneDNN" if path else "LSTM, native", run, read, self._around(path))
            for path in self._paths(p)
        ]

    def step(self, p: Problem) -> list[Call]:
        return [self._lstm_step(p, path) for path in self._paths(p)] + self._cell_step(p)

    def _lstm_step(self, p: Problem, onednn: bool) -> Call:
        import torch

        lstm = self._lstm(p).eval()
        x = torch.tensor(p.x)
        last: list[Any] = [None, (torch.tensor(p.h_0), torch.tensor(p.c_0))]

        def run() -> None:
            last[:] = lstm(x, last[1])

        def read() -> Outputs:
            y, (h_n, c_n) = last
            return {"y": y.numpy(), "h_n": h_n.numpy(), "c_n": c_n.numpy()}

        label = "LSTM, oneDNN" if onednn else "LSTM, native"
        return Call(label, run, read, self._around(onednn))

    def _cell_step(self, p: Problem) -> list[Call]:
        import torch

        s = p.shape
        if s.num_layers > 1 or s.D > 1 or s.proj_size:
            return []
        cell = torch.nn.LSTMCell(s.I, s.H, dtype=getattr(torch, str(p.x.dtype))).eval()
        cell.load_state_dict({k[:-3]: torch.tensor(v) for k, v in p.weights.items()})
        x = torch.tensor(p.x[0])
        last: list[Any] = [torch.tensor(p.h_0[0]), torch.tensor(p.c_0[0])]

        def run() -> None:
            last[:] = cell(x, last)

        def read() -> Outputs:
            h_n, c_n = (a.numpy()[None] for a in last)
            return {"y": h_n, "h_n": h_n, "c_n": c_n}

        return [Call("LSTMCell", run, read, self._around(True))]

    def training(self, p: Problem) -> list[Call]:
        # fused and foreach Adam differ little beside the network: each is tried on one path.
        first, *others = self._paths(p)
        return [
            self._training(p, first, "fused"),
            self._training(p, first, "foreach"),
            *(self._training(p, path, "fused") for path in others),
        ]

    def _training(self, p: Problem, onednn: bool, kind: str) -> Call:
        import torch

        lstm = self._lstm(p).train()
        adam = torch.optim.Adam(lstm.parameters(), lr=LEARNING_RATE, eps=ADAM_EPS, **{kind: True})
        x = torch.tensor(p.x, requires_grad=True)  # a layer below would ask for it
        states = torch.tensor(p.h_0), torch.tensor(p.c_0)
        dy = torch.tensor(p.dy)
        last: list[Any] = []

        def run() -> None:
            x.grad = None
            adam.zero_grad(set_to_none=True)
            y, _ = lstm(x, states)
            y.backward(dy)
            adam.step()
            last[:] = [y]

        def read() -> Outputs:
            found = {"y": last[0].detach().numpy()}
            for name, weight in lstm.named_parameters():
                found["d " + name] = weight.grad.numpy()
                found[name] = weight.detach().numpy()
            return found

        label = f"{'oneDNN' if onednn else 'native'}, {kind} Adam"
        return Call(label, run, read, self._around(onednn, training=True))


def feed_of(p: Problem) -> dict[str, Array]:
    """The inputs of the ONNX graph, by name."""
    feed, D = {"x": p.x}, p.shape.D
    for layer in range(p.shape.num_layers):
        for name, value in (("h_0", p.h_0), ("c_0", p.c_0)):
            feed[f"{name}_{layer}"] = value[layer * D : (layer + 1) * D].copy()
    return feed


def empty_outputs(p: Problem) -> dict[str, Array]:
    """Arrays for the outputs of the ONNX graph, by name and in its order."""
    s = p.shape
    found = {"y": np.empty((s.T, s.B, s.D * s.H), p.x.dtype)}
    for layer in range(s.num_layers):
        for name in ("h_n", "c_n"):
            found[f"{name}_{layer}"] = np.empty((s.D, s.B, s.H), p.x.dtype)
    return found


def joined(p: Problem, found: dict[str, Array]) -> Outputs:
    """The outputs of the ONNX graph with the states of all layers together."""
    layers = range(p.shape.num_layers)
    states = {n: np.concatenate([found[f"{n}_{k}"] for k in layers]) for n in ("h_n", "c_n")}
    return {"y": found["y"].copy(), **states}


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

    def _compiled(self, p: Problem) -> Any:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # else a CPU with AMX computes in bf16
            "EXECUTION_MODE_HINT": "PERFORMANCE",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_CPU_PINNING": False,  # pinned, a call of one thread is slower by a few us
        }
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(self.graph(p)), "CPU", settings)
        if compiled.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.f32:
            raise Unsupported("computes in less than float32")
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


class Jax(Engine):
    """A jitted `lax.scan` over merged input products, the way LSTMs are written in JAX."""

    name = "jax"
    package = "jax"
    needs = ("jax", "jaxlib")

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        os.environ["NPROC"] = str(threads)  # XLA reads it when its backend starts

    @staticmethod
    def _lstm(p: Problem) -> Callable[..., Any]:
        """lstm(weights, x, h_0, c_0) -> y, h_n, c_n, traceable."""
        import jax
        from jax import numpy as jnp

        if p.x.dtype == np.float64:
            jax.config.update("jax_enable_x64", True)

        def direction(w: dict[str, Any], suffix: str, x: Any, h: Any, c: Any) -> Any:
            bias = w["bias_ih" + suffix] + w["bias_hh" + suffix]
            w_hr = w.get("weight_hr" + suffix)

            def step(state: Any, product: Any) -> Any:
                h, c = state
                i, f, g, o = jnp.split(product + h @ w["weight_hh" + suffix].T, 4, axis=-1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                h = h if w_hr is None else h @ w_hr.T
                return (h, c), h

            products = x @ w["weight_ih" + suffix].T + bias
            (h, c), y = jax.lax.scan(step, (h, c), products, reverse="reverse" in suffix)
            return y, h, c

        def lstm(w: dict[str, Any], x: Any, h_0: Any, c_0: Any) -> Any:
            states: list[Any] = []
            for _, directions in suffixes(p.shape):
                ys = []
                for suffix in directions:
                    y, *state = direction(w, suffix, x, h_0[len(states)], c_0[len(states)])
                    ys.append(y)
                    states.append(state)
                x = jnp.concatenate(ys, axis=-1)
            h_n, c_n = (jnp.stack(parts) for parts in zip(*states, strict=True))
            return x, h_n, c_n

        return lstm

    def _call(self, p: Problem, feed_back: bool) -> list[Call]:
        import jax

        lstm = jax.jit(self._lstm(p))
        weights, x, *states = jax.device_put((p.weights, p.x, p.h_0, p.c_0))
        last: list[Any] = []

        def run() -> None:
            last[:] = jax.block_until_ready(lstm(weights, x, *states))
            if feed_back:
                states[:] = last[1:]

        def read() -> Outputs:
            return dict(zip(("y", "h_n", "c_n"), map(np.asarray, last), strict=True))

        return [Call("jit, scan", run, read)]

    def forward(self, p: Problem) -> list[Call]:
        return self._call(p, feed_back=False)

    def step(self, p: Problem) -> list[Call]:
        return self._call(p, feed_back=True)

    def training(self, p: Problem) -> list[Call]:
        import jax
        from jax import numpy as jnp

        lstm = self._lstm(p)

        @jax.jit
        def train(w: Any, m: Any, v: Any, t: Any, x: Any, dy: Any) -> Any:
            y, pull_back = jax.vjp(lambda w, x: lstm(w, x, p.h_0, p.c_0)[0], w, x)
            dw, dx = pull_back(dy)
            t = t + 1
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, dw)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, dw)
            rate, scale = LEARNING_RATE / (1 - 0.9**t), 1 / jnp.sqrt(1 - 0.999**t)
            w = jax.tree.map(
                lambda w, m, v: w - rate * m / (jnp.sqrt(v) * scale + ADAM_EPS), w, m, v
            )
            return (w, m, v, t), y, dw, dx

        zeros = {k: np.zeros_like(v) for k, v in p.weights.items()}
        state, x, dy = jax.device_put(((p.weights, zeros, zeros, np.float32(0)), p.x, p.dy))
        last: list[Any] = [state]

        def run() -> None:
            last[:] = jax.block_until_ready(train(*last[0], x, dy))

        def read() -> Outputs:
            (weights, *_), y, gradients, _ = last
            return {
                "y": np.asarray(y),
                **{"d " + k: np.asarray(v) for k, v in gradients.items()},
                **{k: np.asarray(v) for k, v in weights.items()},
            }

        return [Call("jit, scan, vjp", run, read)]


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine
    for engine in (Cylstm, Torch, OnnxRuntime, OnnxRuntimeBinding, OpenVino, Ncnn, Jax)
}
