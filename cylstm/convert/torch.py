"""PyTorch's files and live modules, read without PyTorch.

A file is a zip archive (since 1.6; TorchScript's are alike), a row of pickles followed by the
storages, or a pickle that torch had no part in, with its tensors or NumPy arrays inside. What it
holds, be it a state_dict, a checkpoint around one, or a whole pickled module, is walked for tensors
and their names.

    archive/data.pkl        a pickle whose tensors refer to storages by key
    archive/data/KEY        a storage, uncompressed
    archive/byteorder       "little" or "big"; little where it is missing

    pickle of a magic number, of 1001, of a dict about the system, of the object, of a list of keys;
    then for each key its number of elements, 8 bytes, and the elements
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

from ..tensors import shown
from . import state_dict
from .arrays import NUMPY, OTHER_WIDTHS, STORAGES, PickledArray, Storage, Unread, item_type
from .found import Contents, Recurrent
from .source import Source
from .torch_quantized import QUANTIZED, packed_arrays, unpacked
from .torch_script import Code
from .unpickle import PLAIN, Name, Stub, unpickle

MAX_PICKLE = 64 * 2**20  # bytes of data.pkl, which holds names and no values
MAX_DEPTH = 64  # modules within modules
MAX_NAME = 500  # characters of a tensor's name, which all that is below a module begins with
OWN_HOOKS = ("WeightNorm", "SpectralNorm")  # torch's; what they make of weights is checked
MAGIC = 0x1950A86A20F9469CFC6C
MAGIC_BYTES = MAGIC.to_bytes(10, "little")
MAKERS = {**PLAIN, **QUANTIZED, **NUMPY}
Attributes = Callable[[Name], Mapping[str, Any]]
LOAD_FROM_BYTES = Name("torch.storage", "_load_from_bytes")


def read(
    source: Source, *, nonlinearity: str | None = None, directions: int | None = None
) -> Contents:
    """Return what a file of torch.save or torch.jit.save holds.

    `nonlinearity`, "tanh" or "relu", is that of an RNN, which a state_dict does not tell.
    `directions`, 1 or 2, are those of quantised layers, where their state_dict does not tell.
    """
    code: Code | None = None
    if source.zip is not None:
        form, value, code = _read_archive(source)
    elif MAGIC_BYTES in source.head[:64]:
        form, value = "before 1.6", _read_row_of_pickles(source.file, source.size)
    else:
        source.file.seek(0)
        form, value = "pickle", unpickle(source.file, MAKERS | {LOAD_FROM_BYTES: _load_from_bytes})
    arrays, hints = named_arrays(value, code.of if code else None)
    if directions not in (None, 1, 2):
        raise ValueError(f"directions is {directions!r}, expected 1 or 2")
    found = _contents(f"PyTorch, {form}", arrays, hints, source.size, nonlinearity, directions)
    if code and not found.layers:
        why = "frozen, its weights are constants of the code: save it without torch.jit.freeze"
        cells = code.frozen().items()
        return replace(found, layers=tuple(Recurrent(a, b, 0, 0, problem=why) for a, b in cells))
    return found


def _contents(
    form: str,
    arrays: Mapping[str, Unread],
    hints: Mapping[str, Mapping[str, Any]],
    size: int | None,
    nonlinearity: str | None,
    directions: int | None = None,
) -> Contents:
    arrays, problems = unpacked(arrays, hints, directions)
    layers, around = state_dict.layers(arrays, hints, size, nonlinearity)
    stated = tuple(
        replace(layer, problem=problems.pop(layer.path, None) or layer.problem) for layer in layers
    )
    lost = tuple(Recurrent(path, "?", 0, 0, problem=why) for path, why in problems.items())
    return Contents(form, stated + lost, around)


# --- zip


def _read_archive(source: Source) -> tuple[str, Any, Code | None]:
    """Return "zip" or "TorchScript", the value, and the code of its classes."""
    pickles = [name for name in source.names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError(f"{len(pickles)} members are named data.pkl, expected one")
    root = pickles[0].removesuffix("data.pkl")
    form = "TorchScript" if f"{root}constants.pkl" in source.names else "zip"
    order = b"little"
    if f"{root}byteorder" in source.names:
        order = source.member(f"{root}byteorder", 16).strip()
    if order not in (b"little", b"big"):
        raise ValueError(f"its byte order is {shown(order)}")

    def persistent(value: Any) -> Any:
        dtype, key, count = _storage_id(value)
        name = f"{root}data/{key}"
        read = partial(_stored, source, name, count * (item_type(dtype).itemsize if dtype else 1))
        return Storage(dtype, count, read, "<" if order == b"little" else ">", key)

    content = source.member(f"{root}data.pkl", MAX_PICKLE)
    code = Code(source, root) if form == "TorchScript" else None
    return form, unpickle(io.BytesIO(content), MAKERS, persistent), code


def _stored(source: Source, name: str, size: int) -> bytes:
    """Return a storage's record. It is not compressed, hence no longer than the file."""
    if name not in source.names:
        raise ValueError(f"the archive has no {name}")
    assert source.zip is not None
    info = source.zip.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > source.size:
        raise ValueError(f"{name} is compressed, which torch.save never does")
    if info.file_size != size:
        raise ValueError(f"{name} has {info.file_size} bytes, expected {size}")
    return source.member(name, size)


def _storage_id(value: Any) -> tuple[str | None, str, int]:
    """Return dtype, key and number of elements of ("storage", type, key, location, count, ...)."""
    if not isinstance(value, tuple) or len(value) < 5 or value[0] != "storage":
        raise ValueError(f"a persistent id that is no storage: {shown(value)[:60]}")
    kind, key, count = value[1], value[2], value[4]
    if not isinstance(kind, Name) or type(count) is not int or count < 0:
        raise ValueError(f"a storage of {shown(count)} elements")
    dtype = "uint8" if kind.name == "UntypedStorage" else STORAGES.get(kind.name)
    return dtype, str(key), count


# --- before 1.6


def _load_from_bytes(content: Any) -> Any:
    """The storage of a tensor that pickle has written, and not torch.save: a file in the file."""
    if not isinstance(content, bytes):
        raise ValueError("a storage that is not in bytes")
    storage = _read_row_of_pickles(io.BytesIO(content), len(content))
    # Each such file has a storage "0", which is none of another's.
    return replace(storage, key="") if isinstance(storage, Storage) else storage


def _read_row_of_pickles(file: BinaryIO, size: int) -> Any:
    file.seek(0)
    magic, protocol = unpickle(file, {}), unpickle(file, {})
    if magic != MAGIC or protocol != 1001:
        raise ValueError(f"protocol {shown(protocol)}, expected 1001")
    system = unpickle(file, PLAIN)
    little = system.get("little_endian", True) if isinstance(system, dict) else True
    places: dict[str, tuple[int, int]] = {}  # key: where its elements start, and how many

    def bytes_of(key: str, first: int, count: int, width: int) -> bytes:
        if key not in places:
            raise ValueError(f"storage {shown(key)} is missing")
        start, have = places[key]
        if first + count > have:
            raise ValueError(f"storage {shown(key)} has {have} elements, expected {first + count}")
        file.seek(start + first * width)
        return file.read(count * width)

    widths: dict[str, int] = {}

    def persistent(value: Any) -> Any:
        if isinstance(value, tuple) and len(value) > 1 and value[0] == "module":
            return value[1]  # a class, with its source
        dtype, key, count = _storage_id(value)
        width = item_type(dtype).itemsize if dtype else OTHER_WIDTHS.get(value[1].name, 0)
        if widths.setdefault(key, width) != width:
            raise ValueError(f"storage {shown(key)} has two types")
        first, have = 0, count
        view = value[5] if len(value) > 5 else None
        if isinstance(view, tuple) and len(view) == 3:
            _, first, have = view
            if type(first) is not int or type(have) is not int or first < 0 or have < 0:
                raise ValueError(f"a view of a storage: {shown(view)}")
        read = partial(bytes_of, key, first, have, width)
        return Storage(dtype, have, read, "<" if little else ">", f"{key} {first}")

    value = unpickle(file, MAKERS, persistent)
    keys = unpickle(file, PLAIN)
    if not isinstance(keys, list) or any(str(key) not in widths for key in keys):
        raise ValueError("its list of storages does not fit what refers to them")
    for key in map(str, keys):
        count = int.from_bytes(file.read(8), "big" if not little else "little")
        start = file.tell()
        if not widths[key]:
            raise ValueError(f"storage {shown(key)} has a type that cylstm does not read")
        if start + count * widths[key] > size:
            raise ValueError(f"the file ends within storage {shown(key)}")
        places[key] = start, count
        file.seek(start + count * widths[key])
    return value


# --- from values to names


def named_arrays(
    value: Any, attributes: Attributes | None = None
) -> tuple[dict[str, Unread], dict[str, dict[str, Any]]]:
    """Return the arrays within a value by dotted names, and what it says of recurrent modules.

    `attributes` are those of a class, where the file has them with it and not with each module.

    Names are those of a state_dict, where modules are pickled whole too; keys of dicts around it
    come before them.
    """
    arrays: dict[str, Unread] = {}
    hints: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()  # of those that are seen again, as of cycles, the first name counts

    def walk(prefix: str, value: Any, depth: int) -> None:
        if len(prefix) > MAX_NAME:
            raise ValueError(f"a name of {len(prefix)} characters, expected at most {MAX_NAME}")
        if isinstance(value, PickledArray):
            value = value.unread
        if isinstance(value, Unread):
            arrays.setdefault(prefix, value)
            return
        if id(value) in seen or depth > MAX_DEPTH:
            return
        seen.add(id(value))
        packed = packed_arrays(value)
        for name, item in _children(value) if packed is None else packed.items():
            walk(f"{prefix}.{name}" if prefix and name else f"{prefix}{name}", item, depth + 1)
        if isinstance(value, Stub) and (hint := _hint(value, attributes)):
            hints[prefix] = hint

    walk("", value, 0)
    return arrays, hints


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a dict, a list or a pickled object holds under a name, or a number."""
    if isinstance(value, (list, tuple)):
        yield from ((str(number), item) for number, item in enumerate(value))
    elif isinstance(value, dict):
        for name, item in value.items():
            if isinstance(name, str):
                yield name, item
    elif isinstance(value, Stub):
        yield from _children(value.items)
        state = value.state if isinstance(value.state, dict) else {}
        for name, item in state.items():
            if name in ("_parameters", "_buffers", "_modules"):
                yield "", item
            elif isinstance(name, str) and isinstance(
                item, (Unread, PickledArray, Stub, dict, list)
            ):
                yield name, item


def _hint(module: Stub, attributes: Attributes | None) -> dict[str, Any] | None:
    """Return what the attributes of a pickled nn.LSTM, GRU or RNN say beside its weights."""
    state = module.state if isinstance(module.state, dict) else {}
    if attributes is not None and isinstance(module.of, Name):
        state = {**state, **attributes(module.of)}
    return hint(state.get)


def hint(attribute: Callable[[str], Any]) -> dict[str, Any] | None:
    """Return cell and options by a module's attributes, or None if it is not recurrent."""
    mode = attribute("mode")
    if mode not in ("LSTM", "GRU", "RNN_TANH", "RNN_RELU"):
        nonlinearity = attribute("nonlinearity")
        known = nonlinearity in ("tanh", "relu") and attribute("hidden_size")
        return {"cell": "RNN", "nonlinearity": nonlinearity} if known else None
    found: dict[str, Any] = {"cell": mode[:4].rstrip("_")}
    if isinstance(both := attribute("bidirectional"), bool):
        found["directions"] = 1 + both
    if found["cell"] == "RNN":
        found["nonlinearity"] = mode[4:].lower()
    if attribute("batch_first") is True:
        found["batch_first"] = True
    dropout = attribute("dropout")
    if isinstance(dropout, (int, float)) and dropout:
        found["dropout"] = float(dropout)
    return found


def from_live(module: Any, nonlinearity: str | None = None) -> Contents:
    """Return what a live torch.nn.Module holds."""
    hints, problems = {}, {}
    for path, part in module.named_modules():
        if found := hint(partial(_attribute, part)):
            hints[path] = found
        if why := _other_than_torch(part):
            problems[path] = why
    arrays: dict[str, Unread] = {}
    for name, value in module.state_dict().items():
        packed = packed_arrays(value)
        parts = {name: value} if packed is None else {f"{name}.{k}": v for k, v in packed.items()}
        arrays |= {name: _live(part) for name, part in parts.items() if hasattr(part, "detach")}
    form = f"PyTorch module {type(module).__name__}"
    contents = _contents(form, arrays, hints, None, nonlinearity)
    layers = tuple(replace(x, problem=x.problem or problems.get(x.path)) for x in contents.layers)
    return replace(contents, layers=layers)


def _other_than_torch(module: Any) -> str | None:
    """Why a live layer of torch's may give something else than its weights say, or None."""
    if not any(cls.__name__ in ("RNNBase", "RNNCellBase") for cls in type(module).__mro__):
        return None
    forward = getattr(module.forward, "__module__", None) or ""
    if forward.partition(".")[0] not in ("torch", "cylstm"):
        return f"{type(module).__name__} has a forward of its own, which may give something else"
    before = [type(hook).__name__ for hook in module._forward_pre_hooks.values()]
    if module._forward_hooks or any(name not in OWN_HOOKS for name in before):
        return "has a hook, which may change what it gives"
    return None


def _attribute(module: Any, name: str) -> Any:
    return getattr(module, name, None)


def _live(tensor: Any) -> Unread:
    def read() -> Any:
        values = tensor.detach().cpu()
        values = values.dequantize() if quantized else values
        return (values.float() if dtype == "bfloat16" else values).numpy().copy()

    quantized = tensor.is_quantized
    dtype = "float32" if quantized else str(tensor.dtype).removeprefix("torch.")
    return Unread(tuple(tensor.shape), dtype, read)
