"""Reading untrusted pickles without running any code in them.

`pickle.load` calls whatever the file names. This reader implements the pickle machine itself: the
standard library's `pickletools` splits the file into opcodes, and each opcode is carried out here
on plain values. A name in the file is looked up in a short table (`CALLS`) and stays an inert
token; no attribute of a foreign object is ever read, set or called. Everything outside the table is
refused by name: functions, classes, extension codes, persistent ids, out-of-band buffers.

Memory bombs: an array's bytes have to be in the file; the real size of containers, of what calls
copy and of expanded memo references is bounded by the file's size; dictionary keys are strings and
small integers, so hashing is fast; nesting is bounded.
"""

from __future__ import annotations

import codecs
import io
import math
import mmap
import pickle
import pickletools
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from corrkd.errors import CorrKDError

MAX_OPCODES = 30_000_000  # MOSEI in MAG's layout, the busiest public one, has about two million
MAX_DEPTH = 64  # containers inside containers
MAX_INTEGER_BITS = 128
MAX_DIMENSIONS = 8
MESSAGE = 80  # characters of the file's text in an error
EXPANSION = 8  # objects may take this many times the size of the file ...
SLACK = 64 << 20  # ... plus this many bytes
MARK = object()
UNSET = object()  # an index of the memo that was skipped
EMPTY: tuple[()] = ()  # one shared object
ARRAY = 112  # bytes of an array object besides its data

_OPCODES = {ord(op.code): op for op in pickletools.opcodes}
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|[SU]\d{1,9}|O[48]?")

# (module, name) in the file -> its meaning here. Python 2, NumPy 1 and NumPy 2 use different
# names.
CALLS: dict[tuple[str, str], str] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("collections", "OrderedDict"): "dict",
    ("collections", "defaultdict"): "defaultdict",
}
for _core in ("numpy.core", "numpy._core"):
    CALLS[f"{_core}.multiarray", "_reconstruct"] = "array"
    CALLS[f"{_core}.multiarray", "scalar"] = "scalar"
    CALLS[f"{_core}.numeric", "_frombuffer"] = "buffer"
for _builtin in ("builtins", "__builtin__"):
    for _type in (
        "set",
        "frozenset",
        "bytearray",
        "bytes",
        "complex",
        "list",
        "dict",
        "tuple",
        "int",
        "float",
        "str",
    ):
        CALLS[_builtin, _type] = _type


class _Refused(Exception):  # noqa: N818  (never leaves this file)
    """The file requires something that this reader does not do."""


class _Token:
    """An allowed name in the file: only its meaning in `CALLS`."""

    __slots__ = ("meaning",)

    def __init__(self, meaning: str) -> None:
        self.meaning = meaning


class _DType:
    """A NumPy dtype under construction: first its code, then its byte order from BUILD."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def numpy(self) -> np.dtype[Any]:
        """Return the dtype of a code that `_DTYPE` has checked."""
        return (
            np.dtype("O")
            if self.code.startswith("O")
            else np.dtype(self.code).newbyteorder(cast(Any, self.order))
        )


def load(path: str | Path) -> Any:
    """Return the object in a pickle file, of any protocol and Python version, as arrays, numbers,
    strings and containers.

    OrderedDict and defaultdict become plain dictionaries, Python 2 strings latin-1 text.

    Raises:
        CorrKDError: if the file does not exist, is not a pickle, is truncated, or requires anything
            else; the message names it.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise CorrKDError(f"{path.name}: empty file")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _run(view, path.name)
    except OSError as error:
        raise CorrKDError(f"{path}: cannot be read: {error.strerror or error}") from None


def loads(data: bytes, name: str) -> Any:
    """Return the object in a pickle's bytes, as `load` does. `name` begins error messages."""
    return _run(_Bytes(data), name)


class _Bytes(io.BytesIO):
    """Bytes with the interface of a memory map."""

    def size(self) -> int:
        return self.getbuffer().nbytes


def _run(view: mmap.mmap | _Bytes, name: str) -> Any:
    try:
        return _Machine(view).run()
    except _Refused as error:
        raise CorrKDError(
            f"{name}: refused: the pickle {error}; only arrays, numbers, strings and containers "
            f"are read"
        ) from None
    except EOFError:
        raise CorrKDError(
            f"{name}: truncated pickle: the file ends before its end mark; download it again"
        ) from None
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        struct.error,
        Warning,
    ) as error:
        raise CorrKDError(f"{name}: not a pickle, or a damaged one ({_short(error)})") from None
    except MemoryError:
        raise CorrKDError(f"{name}: the pickle needs more memory than is available") from None


def _kind(value: Any) -> str:
    """Return the type of a value as the author of the file would call it."""
    inner = {_Token: "name", _DType: "dtype", object: "mark"}
    return inner.get(type(value), type(value).__name__)


class _Machine:
    """One pass over one pickle: a stack, a memo, and a budget."""

    def __init__(self, view: mmap.mmap | _Bytes) -> None:
        self.view = view
        self.size = view.size()
        self.limit = EXPANSION * self.size + SLACK
        self.spent = 0
        self.stack: list[Any] = []
        # A list, because a dictionary would take 80 bytes for each one-byte MEMOIZE.
        self.memo: list[Any] = []
        self.unbuilt: dict[int, Any] = {}  # arrays that wait for their one BUILD, by identity

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            name, argument = self.next_opcode()
            if name == "STOP":
                value = self.stack.pop()
                _weigh(value, {}, 0, self.limit)
                return value
            step = _STEPS.get(name)
            if step is None:
                raise _Refused(
                    f"uses {name} {_short(argument)}" if argument is not None else f"uses {name}"
                )
            step(self, argument)
        raise _Refused(f"has more than {MAX_OPCODES:,} instructions")

    def next_opcode(self) -> tuple[str, Any]:
        code = self.view.read(1)
        if not code:
            raise EOFError
        opcode = _OPCODES.get(code[0])
        if opcode is None:
            raise ValueError(f"byte 0x{code[0]:02x} is not an opcode")
        if opcode.name == "STRING":
            return opcode.name, self.python2_string()
        if opcode.arg is None:
            return opcode.name, None
        try:
            # The map's reads stop at the end of the file whatever length is declared.
            return opcode.name, opcode.arg.reader(cast(IO[bytes], self.view))
        except (ValueError, struct.error, IndexError):
            if self.view.tell() >= self.size:
                raise EOFError from None
            raise

    def python2_string(self) -> str:
        """Return a quoted line of protocol 0. pickletools decodes it as ASCII, but Python 2 wrote
        the bytes of arrays in it.
        """
        line = self.view.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        line = line.strip()
        if len(line) < 2 or line[:1] not in b"'\"" or line[-1:] != line[:1]:
            raise ValueError("a string without quotes")
        return codecs.escape_decode(line[1:-1])[0].decode("latin-1")

    def charge(self, count: int) -> None:
        """Count the bytes of a container or copy: one byte of a file creates a set of 216 bytes,
        and ten bytes copy a large string again.
        """
        self.spent += count
        if self.spent > self.limit:
            raise _Refused("builds far more than its file holds (a memory bomb)")

    def since_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise IndexError("no mark on the stack")

    def push_name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str) and (module, name) in CALLS):
            raise _Refused(f"asks for {_short(module)}.{_short(name)}")
        self.stack.append(_Token(CALLS[module, name]))

    def push(self, made: Any) -> None:
        """Push an object that the file creates, counted with its real size."""
        if made is not EMPTY:
            self.charge(sys.getsizeof(made))
        self.stack.append(made)

    def put(self, key: int) -> None:
        if key < 0:
            raise IndexError("negative memo index")
        value, new = self.stack[-1], key + 1 - len(self.memo)
        if new > 0:
            self.charge(8 * new)
            self.memo.extend([UNSET] * new)
        self.memo[key] = value

    def get(self, key: int) -> None:
        if not 0 <= key < len(self.memo) or self.memo[key] is UNSET:
            raise KeyError(key)
        self.stack.append(self.memo[key])

    def drop(self) -> None:
        self.stack.pop()

    def drop_to_mark(self) -> None:
        self.since_mark()

    def top(self, kind: type, doing: str) -> Any:
        if type(self.stack[-1]) is not kind:
            raise _Refused(f"{doing} a {_kind(self.stack[-1])}")
        return self.stack[-1]

    def new_dict(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict, "sets items of")
        before = sys.getsizeof(target)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value
        self.charge(sys.getsizeof(target) - before)

    def append(self, items: list[Any]) -> None:
        target = self.top(list, "appends to")
        before = sys.getsizeof(target)
        target.extend(items)
        self.charge(sys.getsizeof(target) - before)

    def add(self, items: list[Any]) -> None:
        target = self.top(set, "adds items to")
        before = sys.getsizeof(target)
        target.update(_key(item) for item in items)
        self.charge(sys.getsizeof(target) - before)

    def push_stacked_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_name(module, name)

    def build_top(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, _Token) or type(arguments) is not tuple:
            raise _Refused(f"calls a {_kind(function)}")
        self.push(self.result(function.meaning, arguments))

    def result(self, meaning: str, arguments: tuple[Any, ...]) -> Any:
        """Return the result of the file's call of an allowed name. Only the forms that pickling
        itself writes are supported.
        """
        match meaning, arguments:
            case ("array", (_Token(meaning="ndarray"), _, _)):
                array = np.empty(0, np.uint8)
                self.unbuilt[id(array)] = array
                return array
            case ("dtype", (str() as code, *_)) if _DTYPE.fullmatch(code):
                return _DType(code)
            case ("dtype", (code, *_)):
                raise _Refused(f"asks for numpy.dtype({_short(code)})")
            case ("scalar", (_DType() as dtype, raw)) if not dtype.code.startswith("O"):
                if dtype.code in ("U0", "S0"):
                    return "" if dtype.code == "U0" else b""
                kind, data = self.checked(dtype, (1,), raw)
                return np.frombuffer(cast(bytes, data), kind)[0]
            case ("buffer", (raw, _DType() as dtype, tuple() as shape, "C" | "F" as order)) if (
                dtype.code[0] != "O"
            ):
                kind, data = self.checked(dtype, shape, raw)
                return np.frombuffer(cast(bytes, data), kind).reshape(
                    shape, order="F" if order == "F" else "C"
                )
            case ("encode", (str() as text, "latin1" | "latin-1" | "latin_1")):
                self.charge(len(text))
                return text.encode("latin-1")
            case (
                "bytearray" | "bytes" | "str" | "list" | "dict" | "tuple" | "set" | "frozenset",
                (),
            ):
                return {
                    "bytearray": b"",
                    "bytes": b"",
                    "str": "",
                    "list": [],
                    "dict": {},
                    "tuple": (),
                    "set": set(),
                }.get(meaning, frozenset())
            case ("bytearray" | "bytes", (bytes() as raw,)):
                return raw
            case ("bytearray", (str() as text, "latin1" | "latin-1")):
                self.charge(len(text))
                return text.encode("latin-1")
            case ("set" | "frozenset", ([*items],)):
                return (
                    {_key(item) for item in items}
                    if meaning == "set"
                    else frozenset(_key(item) for item in items)
                )
            case ("list" | "tuple", ([*items],)):
                return items if meaning == "list" else tuple(items)
            case ("dict", ([*pairs],)):  # OrderedDict as Python 2 wrote it
                return {_key(key): value for key, value in pairs}
            case ("defaultdict", () | (_Token() | None,)):
                return {}
            case ("complex", (float() | int() as real, float() | int() as imaginary)):
                return complex(real, imaginary)
        raise _Refused(f"calls {meaning} in an unknown way")

    def build(self, target: Any, state: Any) -> None:
        """Carry out BUILD: set the byte order of a dtype, or the contents of an array that has none
        yet. Nothing else has a state.
        """
        match target, state:
            case (_DType(), (int(), "<" | ">" | "|" | "=" as order, None, None, None, *_)):
                target.order = order
            case (
                np.ndarray(),
                (int(), tuple() as shape, _DType() as dtype, int() as fortran, raw),
            ) if self.unbuilt.pop(id(target), None) is target:
                kind, data = self.checked(dtype, shape, raw)
                # In place, because the memo already holds the array; every part of the state has
                # been checked.
                target.__setstate__((1, shape, kind, bool(fortran), data))
            case _:
                raise _Refused(f"sets the state of a {_kind(target)}")

    def checked(
        self, dtype: _DType, shape: tuple[Any, ...], raw: Any
    ) -> tuple[np.dtype[Any], bytes | list[Any]]:
        """Return the dtype and contents of an array: bytes, or a list of objects; exactly as many
        as the shape requires.
        """
        if len(shape) > MAX_DIMENSIONS or any(
            type(n) is not int or not 0 <= n <= self.size for n in shape
        ):
            raise _Refused(f"asks for an array of shape {_short(shape)}")
        count, kind = math.prod(shape), dtype.numpy()
        if kind.hasobject:
            if type(raw) is not list or len(raw) != count:
                raise _Refused(f"asks for an array of {count} objects without giving them")
            self.charge(8 * count)
            return kind, raw
        data = raw.encode("latin-1") if type(raw) is str else raw
        if type(data) is not bytes or kind.itemsize == 0 or len(data) != count * kind.itemsize:
            raise _Refused(
                f"asks for an array of shape {_short(shape)} and type {dtype.code} without "
                f"giving its bytes"
            )
        self.charge(len(data))
        if (
            kind.kind == "U"
            and count
            and np.frombuffer(data, kind.str[0] + "u4").max() > sys.maxunicode
        ):
            raise _Refused("holds characters that do not exist")
        return kind, data


def _key(value: Any) -> Any:
    """Return a dictionary key or set member. Only strings and small integers are allowed: others
    can be made to hash slowly or to collide.
    """
    if (
        isinstance(value, str | bytes)
        or value is None
        or (isinstance(value, int) and abs(value) < 1 << 60)
    ):
        return value
    raise _Refused(f"uses a {_kind(value)} as a key; keys are strings and small integers")


def _integer(machine: _Machine, value: int) -> None:
    if value.bit_length() > MAX_INTEGER_BITS:
        raise _Refused(f"holds an integer of {value.bit_length()} bits")
    machine.stack.append(value)


def _call_top(machine: _Machine) -> None:
    arguments = machine.stack.pop()
    machine.call(machine.stack.pop(), arguments)


def _call_inst(machine: _Machine, names: str) -> None:
    arguments = tuple(machine.since_mark())
    machine.push_name(*names.split(" ", 1))
    machine.call(machine.stack.pop(), arguments)


def _call_obj(machine: _Machine) -> None:
    function, *arguments = machine.since_mark()
    machine.call(function, tuple(arguments))


def _tuple(machine: _Machine, count: int) -> None:
    if len(machine.stack) < count:
        raise IndexError("stack too short")
    items = tuple(machine.stack[-count:])
    del machine.stack[-count:]
    machine.push(items)


def _set_one(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.set_items([key, value])


def _protocol(_: _Machine, version: int) -> None:
    if version > pickle.HIGHEST_PROTOCOL:
        raise _Refused(f"uses protocol {version}, which is not supported")


_NOTHING: Callable[[_Machine, Any], None] = lambda m, a: None  # noqa: E731
_VALUE: Callable[[_Machine, Any], None] = lambda m, a: m.stack.append(a)  # noqa: E731
_GET: Callable[[_Machine, Any], None] = lambda m, a: m.get(a)  # noqa: E731
_PUT: Callable[[_Machine, Any], None] = lambda m, a: m.put(a)  # noqa: E731

# What each opcode does. All others are refused: extension codes, persistent ids, out-of-band
# buffers, NEWOBJ_EX.
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _protocol,
    "FRAME": _NOTHING,
    "NONE": lambda m, a: m.stack.append(None),
    "NEWTRUE": lambda m, a: m.stack.append(True),
    "NEWFALSE": lambda m, a: m.stack.append(False),
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), _integer),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"), _VALUE),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _VALUE),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _VALUE),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _VALUE),
    "BYTEARRAY8": lambda m, a: m.stack.append(bytes(a)),
    "MARK": lambda m, a: m.stack.append(MARK),
    "POP": lambda m, a: m.drop(),
    "POP_MARK": lambda m, a: m.drop_to_mark(),
    "DUP": lambda m, a: m.stack.append(m.stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _GET),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _PUT),
    "MEMOIZE": lambda m, a: m.put(len(m.memo)),
    "EMPTY_LIST": lambda m, a: m.push([]),
    "EMPTY_DICT": lambda m, a: m.push({}),
    "EMPTY_SET": lambda m, a: m.push(set()),
    "EMPTY_TUPLE": lambda m, a: m.push(()),
    "LIST": lambda m, a: m.push(m.since_mark()),
    "TUPLE": lambda m, a: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, a: _tuple(m, 1),
    "TUPLE2": lambda m, a: _tuple(m, 2),
    "TUPLE3": lambda m, a: _tuple(m, 3),
    "DICT": lambda m, a: m.new_dict(m.since_mark()),
    "FROZENSET": lambda m, a: m.push(frozenset(_key(item) for item in m.since_mark())),
    "APPEND": lambda m, a: m.append([m.stack.pop()]),
    "APPENDS": lambda m, a: m.append(m.since_mark()),
    "SETITEM": lambda m, a: _set_one(m),
    "SETITEMS": lambda m, a: m.set_items(m.since_mark()),
    "ADDITEMS": lambda m, a: m.add(m.since_mark()),
    "GLOBAL": lambda m, a: m.push_name(*a.split(" ", 1)),
    "STACK_GLOBAL": lambda m, a: m.push_stacked_name(),
    "REDUCE": lambda m, a: _call_top(m),
    "NEWOBJ": lambda m, a: _call_top(m),
    "INST": _call_inst,
    "OBJ": lambda m, a: _call_obj(m),
    "BUILD": lambda m, a: m.build_top(),
}


def _weigh(value: Any, seen: dict[int, tuple[int, int]], depth: int, limit: int) -> tuple[int, int]:
    """Return (bytes, nesting) of a value with every shared object expanded: memo references can
    make a small file explode later.

    Containers count with their real size, as when they were created, which includes eight bytes for
    each item.
    """
    if isinstance(value, str | bytes):
        return len(value), 0
    if value is None or value is EMPTY or isinstance(value, int | float | complex | np.generic):
        return 0, 0
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return ARRAY + value.nbytes, 0
    if not isinstance(value, list | tuple | dict | set | frozenset | np.ndarray):
        raise _Refused("holds a bare name or mark instead of a value")
    if id(value) not in seen:
        if depth > MAX_DEPTH:
            raise _Refused(f"nests containers more than {MAX_DEPTH} deep, or in themselves")
        parts = value.ravel().tolist() if isinstance(value, np.ndarray) else value
        keys = (
            sum(len(key) for key in value if isinstance(key, str | bytes))
            if isinstance(value, dict)
            else 0
        )
        size = ARRAY + value.nbytes if isinstance(value, np.ndarray) else sys.getsizeof(value)
        total, height = size + keys, 0
        for item in parts.values() if isinstance(parts, dict) else parts:
            weight, inner = _weigh(item, seen, depth + 1, limit)
            total, height = total + weight, max(height, inner)
            if total > limit:
                raise _Refused("expands to far more than its file holds (a memory bomb)")
        seen[id(value)] = total, height + 1
    weight, height = seen[id(value)]
    if depth + height > MAX_DEPTH:
        raise _Refused(f"nests containers more than {MAX_DEPTH} deep, or in themselves")
    return weight, height


def _short(value: Any) -> str:
    """Return a short text of a value for a message."""
    if (
        type(value) is tuple
        and len(value) <= 2 * MAX_DIMENSIONS
        and all(type(item) is int for item in value)
    ):
        return str(value)[:MESSAGE]
    if isinstance(value, str | int | Exception):
        return ascii(str(value))[1:-1][:MESSAGE]
    return f"({_kind(value)})"
