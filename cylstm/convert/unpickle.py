"""Pickles, read as data: what comes out are dicts, lists, plain values and inert stubs.

A pickle is a program that may call anything. Here nothing is imported and nothing is called but
the few functions that the caller names for it; every other object becomes a `Stub` that records
what would have been made of it. Python's own unpickler is not used with a filter on names, because
it can be made to take any amount of memory by a file of ten bytes, or time by a nested key.
"""

from __future__ import annotations

import codecs
import os
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from ..tensors import shown

MAX_OPCODES = 2_000_000
MAX_LINE = 2**20  # bytes, of a value in protocol 0
MAX_COPIED = 2**30  # bytes, about, that makers may be given: one may copy the same list many times


_BY_CODE = {opcode.code: opcode for opcode in pickletools.opcodes}


class Name(NamedTuple):
    """A class or a function, which is never looked up."""

    module: str
    name: str


class Stub:
    """An object that a pickle describes: what would have been called, and what would be set.

    Attributes
    ----------
    of : Name or another value
    args : tuple
    state : what would be handed to its __setstate__, or None
    items : dict, what would be set by key
    """

    __slots__ = ("args", "items", "of", "state")

    def __init__(self, of: Any, args: Any) -> None:
        self.of = of
        self.args = args
        self.state: Any = None
        self.items: dict[Any, Any] = {}


class Opaque:
    """A key of a dict that is no plain value, whose hash might take for ever."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


Makers = Mapping[Name, Callable[..., Any]]


def unpickle(file: BinaryIO, makers: Makers, persistent: Callable[[Any], Any] | None = None) -> Any:
    """Return the value of the pickle that begins at the file's position, and stop behind it.

    Parameters
    ----------
    file : binary file
    makers : {name: function}
        What may be called, with the arguments that the pickle gives; it checks them itself. A
        result with a method `build` gets the state that the pickle sets.
    persistent : function or None
        Gets a persistent id, and returns the value for it.

    Raises ValueError if this is no whole pickle, or one that takes more than two million steps.
    """
    try:
        return _Machine(makers, persistent).run(_opcodes(file))
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"not a whole pickle: {type(error).__name__}: {error}") from error


def _opcodes(file: BinaryIO) -> Iterator[Any]:
    """Yield (opcode, argument), as pickletools.genops does but for strings of Python 2."""
    lines: Any = _Lines(file)
    for _ in range(MAX_OPCODES):
        opcode = _BY_CODE.get(lines.read(1).decode("latin-1"))
        if opcode is None:
            raise ValueError("not a whole pickle: it does not end, or has an unknown opcode")
        if opcode.arg is None:
            yield opcode, None
        elif opcode.name == "STRING":
            yield opcode, _python2_string(lines.readline())
        else:
            yield opcode, opcode.arg.reader(lines)
        if opcode.name == "STOP":
            return
    raise ValueError(f"a pickle of more than {MAX_OPCODES} steps")


def _python2_string(line: bytes) -> str:
    """A quoted string of bytes as text, a character for each: it may be what an array holds."""
    quoted = line.strip()
    if len(quoted) < 2 or quoted[:1] not in (b"'", b'"') or quoted[-1:] != quoted[:1]:
        raise ValueError("not a whole pickle: a string without quotes")
    content: bytes = codecs.escape_decode(quoted[1:-1])[0]
    return content.decode("latin-1")


class _Lines:
    """A file of which no more is read at once than it has, of a line no more than `MAX_LINE`."""

    def __init__(self, file: BinaryIO) -> None:
        self.tell = file.tell
        self._file = file
        start = file.tell()
        self._size = file.seek(0, os.SEEK_END)
        file.seek(start)

    def read(self, size: int) -> bytes:
        if size > self._size:
            raise ValueError(f"not a whole pickle: a value of {size} bytes")
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline(MAX_LINE)


class _Machine:
    """The stack and the memo of one pickle, and a method for each opcode: its name, lower case."""

    def __init__(self, makers: Makers, persistent: Callable[[Any], Any] | None) -> None:
        self.makers = makers
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def run(self, opcodes: Iterator[Any]) -> Any:
        push = self.stack.append
        methods: dict[str, Callable[[Any], None]] = {name: push for name in _LITERALS}
        for opcode, argument in opcodes:
            name = opcode.name
            if name == "STOP":
                return self.pop()
            if name not in methods:
                methods[name] = self.method(name)
            methods[name](argument)
        raise ValueError("not a whole pickle: it does not end")

    def method(self, name: str) -> Callable[[Any], None]:
        if name in _CONSTANTS:
            make, push = _CONSTANTS[name], self.stack.append
            return lambda _: push(make())
        name = _SYNONYMS.get(name, name)
        found = getattr(self, f"do_{name.lower()}", None)
        if found is None:
            raise ValueError(f"a pickle with {name}, which no model file needs")
        return found

    def pop(self) -> Any:
        if self.marks and self.marks[-1] == len(self.stack):
            raise IndexError("nothing above the mark")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def push(self, value: Any) -> None:
        self.stack.append(value)

    # The stack and the memo.

    def do_proto(self, _: Any) -> None:
        pass

    def do_put(self, index: Any) -> None:
        self.memo[index] = self.stack[-1]

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_get(self, index: Any) -> None:
        self.push(self.memo[index])

    def do_mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def do_pop_mark(self, _: Any) -> None:
        self.pop_mark()

    def do_pop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def do_dup(self, _: Any) -> None:
        self.push(self.stack[-1])

    # Containers.

    def do_tuple1(self, _: Any) -> None:
        self.push((self.pop(),))

    def do_tuple2(self, _: Any) -> None:
        second = self.pop()
        self.push((self.pop(), second))

    def do_tuple3(self, _: Any) -> None:
        third, second = self.pop(), self.pop()
        self.push((self.pop(), second, third))

    def do_tuple(self, _: Any) -> None:
        self.push(tuple(self.pop_mark()))

    def do_list(self, _: Any) -> None:
        self.push(self.pop_mark())

    def do_dict(self, _: Any) -> None:
        self.push(_pairs(self.pop_mark()))

    def do_append(self, _: Any) -> None:
        item = self.pop()
        _extend(self.stack[-1], [item])

    def do_appends(self, _: Any) -> None:
        items = self.pop_mark()
        _extend(self.stack[-1], items)

    def do_setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        _update(self.stack[-1], [key, value])

    def do_setitems(self, _: Any) -> None:
        items = self.pop_mark()
        _update(self.stack[-1], items)

    # Names, and what they would be called with.

    def do_global(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self.push(Name(module, name))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is no text")
        self.push(Name(module, name))

    def do_inst(self, argument: Any) -> None:
        module, _, name = argument.partition(" ")
        self.push(self.made(Name(module, name), tuple(self.pop_mark())))

    def do_obj(self, _: Any) -> None:
        of, *args = self.pop_mark()
        self.push(self.made(of, tuple(args)))

    def do_reduce(self, _: Any) -> None:
        args = self.pop()
        self.push(self.made(self.pop(), args))

    def do_newobj_ex(self, _: Any) -> None:
        keywords, args = self.pop(), self.pop()
        self.push(Stub(self.pop(), (args, keywords)))

    def do_build(self, _: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Stub):
            target.state = state
        elif hasattr(target, "build"):
            target.build(state)

    def do_persid(self, argument: Any) -> None:
        if self.persistent is None:
            raise ValueError("a pickle with persistent ids, whose meaning is unknown")
        self.push(self.persistent(argument))

    def do_binpersid(self, _: Any) -> None:
        self.do_persid(self.pop())

    def made(self, of: Any, args: Any) -> Any:
        if not isinstance(of, Name) or of not in self.makers or not isinstance(args, tuple):
            return Stub(of, args)
        for argument in args:
            if isinstance(argument, (list, dict, tuple)):
                self.copied += 64 * len(argument)
            elif isinstance(argument, (str, bytes, bytearray)):
                self.copied += len(argument)
        if self.copied > MAX_COPIED:
            raise ValueError("a pickle that unpacks to more than a gigabyte")
        return self.makers[of](*args)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("not a whole pickle: a key without a value")
    return {_key(key): value for key, value in zip(items[::2], items[1::2])}


def _key(key: Any) -> Any:
    return key if isinstance(key, (str, bytes, int, float, type(None))) else Opaque(key)


def _update(target: Any, items: list[Any]) -> None:
    held = target.items if isinstance(target, Stub) else target
    if not isinstance(held, dict):
        raise ValueError(f"not a whole pickle: {type(target).__name__} has no keys")
    held.update(_pairs(items))


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Stub):
        raise ValueError(f"not a whole pickle: {type(target).__name__} can't be appended to")


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_SYNONYMS = {
    "FRAME": "PROTO",
    "BINPUT": "PUT",
    "LONG_BINPUT": "PUT",
    "BINGET": "GET",
    "LONG_BINGET": "GET",
    "FROZENSET": "LIST",
    "ADDITEMS": "APPENDS",
    "NEWOBJ": "REDUCE",
}
_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8".split()
)


def dict_of(pairs: Any = ()) -> dict[Any, Any]:
    """What OrderedDict and dict make of a list of pairs, or of nothing."""
    if isinstance(pairs, dict):
        return pairs
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    ):
        raise ValueError(f"a dict of {shown(type(pairs).__name__)}")
    return {_key(key): value for key, value in pairs}


def list_of(items: Any = ()) -> list[Any]:
    """What list, set and frozenset make of a list."""
    if not isinstance(items, (list, tuple)):
        raise ValueError(f"a list of {shown(type(items).__name__)}")
    return list(items)


def encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """What _codecs.encode makes of text; protocol 2 writes bytes so."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes written in an unknown way")
    return text.encode("latin1")


def no_bytes() -> bytes:
    """What protocol 2 calls for bytes of no length."""
    return b""


PLAIN: Makers = {
    Name("collections", "OrderedDict"): dict_of,
    Name("_codecs", "encode"): encoded,
    **{Name(module, "dict"): dict_of for module in ("builtins", "__builtin__")},
    **{Name(module, "bytes"): no_bytes for module in ("builtins", "__builtin__")},
    **{
        Name(module, name): list_of
        for module in ("builtins", "__builtin__")
        for name in ("list", "set", "frozenset")
    },
}
