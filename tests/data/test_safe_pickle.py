"""Nothing in a pickle runs, nothing hangs, and the error names what was refused."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from corrkd.data import safe_pickle
from corrkd.errors import CorrKDError


def write(path: Path, data: bytes) -> Path:
    file = path / "mosi.pkl"
    file.write_bytes(data)
    return file


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def error_message(file: Path) -> str:
    """Return the error's line, or an empty string if the file is read."""
    try:
        safe_pickle.load(file)
    except CorrKDError as error:
        return str(error)
    return ""


# -- values that must be read
# ---------------------------------------------------------------------------------------------

VALUE = {
    "arrays": [
        np.arange(6.0).reshape(2, 3),
        np.arange(6, dtype=np.int64).reshape(2, 3).T,
        np.zeros((0, 5)),
        np.array(7.5),
    ],
    "big endian": np.arange(4, dtype=">f4"),
    "strided": np.arange(12.0).reshape(3, 4)[:, ::2],
    "objects": np.array(["a", None, [1, b"x"]], dtype=object),
    "text": np.array(["é", "long enough", "日本"]),
    "bytes": np.array([b"a", b"bcd"]),
    "flags": np.array([True, False]),
    "scalars": [np.float32(1.5), np.int64(3), np.str_("é"), np.str_(""), np.bool_(True)],
    "plain": [
        1,
        -5,
        2**70,
        1.5,
        float("-inf"),
        1 + 2j,
        True,
        None,
        "é",
        b"\xff\x00",
        (),
        (1,),
        (1, 2, 3, 4),
        {1, "b"},
        frozenset([3]),
    ],
    "dicts": [collections.OrderedDict(a=1), collections.defaultdict(list, x=[1])],
}


def same(a: object, b: object) -> bool:
    if isinstance(b, np.ndarray):
        return (
            isinstance(a, np.ndarray)
            and a.dtype.kind == b.dtype.kind
            and a.shape == b.shape
            and a.tolist() == b.tolist()
        )
    if isinstance(b, dict):
        return isinstance(a, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in b)
    if isinstance(b, list | tuple):
        return (
            type(a) is type(b)
            and len(a) == len(b)
            and all(same(x, y) for x, y in zip(a, b, strict=True))
        )
    return a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_what_pickle_writes_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    assert same(safe_pickle.load(write(tmp_path, pickle.dumps(VALUE, protocol))), VALUE)


def test_bytearrays_come_back_as_bytes(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert safe_pickle.load(
            write(tmp_path, pickle.dumps([bytearray(b"\xffa"), bytearray()], protocol))
        ) == [b"\xffa", b""]


def test_shared_objects_stay_shared(tmp_path: Path) -> None:
    array = np.arange(3.0)
    a, b = safe_pickle.load(write(tmp_path, pickle.dumps([array, array])))
    assert a is b


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    array=hnp.arrays(
        st.sampled_from(
            [
                np.float16,
                np.float32,
                np.float64,
                np.int8,
                np.int64,
                np.uint16,
                np.bool_,
                ">i4",
                "U3",
                "S2",
            ]
        ),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0),
    ),
    protocol=st.integers(0, 5),
    order=st.sampled_from("CF"),
)
def test_any_array_survives(tmp_path: Path, array: np.ndarray, protocol: int, order: str) -> None:
    loaded = safe_pickle.load(
        write(tmp_path, pickle.dumps(np.asarray(array, order=order), protocol))
    )
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype.kind == array.dtype.kind
    assert loaded.dtype.itemsize == array.dtype.itemsize


# As Python 2 writes it: names of `__builtin__` and `numpy.core`, arrays' bytes in plain strings.
def python2_array(string: bytes, kind: bytes = b"f4") -> bytes:
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n(S'"
        + kind
        + b"'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        + string
        + b"tb."
    )


def test_reads_python_2_arrays(tmp_path: Path) -> None:
    raw = np.array([1.5, -2.25], "<f4").tobytes()
    binary = b"T" + struct.pack("<i", len(raw)) + raw
    quoted = b"S" + repr(raw)[1:].encode() + b"\n"
    unescaped = b"S'\x00\x00\xc0?\x00\x00\x10\xc0'\n"  # raw bytes above 127 between the quotes
    for string in (binary, quoted, unescaped):
        assert safe_pickle.load(write(tmp_path, python2_array(string))).tolist() == [1.5, -2.25]


def test_reads_python_2_containers(tmp_path: Path) -> None:
    ordered = b"ccollections\nOrderedDict\n((lp0\n(lp1\nS'a'\naI1\naatR."
    assert safe_pickle.load(write(tmp_path, ordered)) == {"a": 1}
    assert safe_pickle.load(write(tmp_path, b"c__builtin__\nset\n((lI1\naI2\natR.")) == {1, 2}


# -- code that must never run
# ---------------------------------------------------------------------------------------------


class Reduce:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(command: str) -> dict[str, tuple[bytes, str]]:
    """Return, by name, a pickle that runs `command` with pickle.load, and a text of the error."""
    order = text(command)
    evil = Reduce(os.system, command)
    nested = np.empty(1, object)
    nested[0] = evil
    cases = {
        f"reduce, protocol {p}": (pickle.dumps(evil, p), f"{os.system.__module__}.system")
        for p in range(6)
    }
    return cases | {
        "eval": (
            pickle.dumps(Reduce(eval, f"__import__('os').system({command!r})")),
            "builtins.eval",
        ),
        "global": (b"cos\nsystem\n" + order + b"\x85R.", "os.system"),
        "stack global": (
            b"\x80\x04" + text("os") + text("system") + b"\x93" + order + b"\x85R.",
            "os.system",
        ),
        "dotted name": (
            b"\x80\x04" + text("numpy") + text("os.system") + b"\x93" + order + b"\x85R.",
            "numpy.os.system",
        ),
        "dotted allowed name": (
            b"\x80\x04" + text("numpy") + text("ndarray.tofile") + b"\x93N.",
            "numpy.ndarray.tofile",
        ),
        "inst": (b"(S'" + command.encode() + b"'\nios\nsystem\n.", "os.system"),
        "obj": (b"(cos\nsystem\n" + order + b"o.", "os.system"),
        "newobj": (b"\x80\x02csubprocess\nPopen\n" + order + b"\x85\x81.", "subprocess.Popen"),
        "newobj_ex": (b"\x80\x04cnumpy\nndarray\n)}\x92.", "NEWOBJ_EX"),
        "getattr": (
            b"c__builtin__\ngetattr\n" + text("x") + text("upper") + b"\x86R.",
            "__builtin__.getattr",
        ),
        "import": (b"cbuiltins\n__import__\n" + text("os") + b"\x85R.", "builtins.__import__"),
        "persistent id": (b"Pos.system\n.", "PERSID"),
        "binary persistent id": (order + b"Q.", "BINPERSID"),
        "extension code 1": (b"\x80\x02\x82\xf0" + order + b"\x85R.", "EXT1 240"),
        "extension code 2": (b"\x80\x02\x83\xf0\x00" + order + b"\x85R.", "EXT2 240"),
        "extension code 4": (b"\x80\x02\x84\xf0\x00\x00\x00" + order + b"\x85R.", "EXT4 240"),
        "in an object array": (pickle.dumps(nested), f"{os.system.__module__}.system"),
        "in an object array, Python 2": (
            python2_array(b"(lp9\ncos\nsystem\n(" + order + b"tRa", b"O8")
            .replace(b"(I2\n", b"(I1\n")
            .replace(b"I0\ntb", b"I63\ntb"),
            "os.system",
        ),
        "hostile subtype of array": (
            b"cnumpy.core.multiarray\n_reconstruct\n(csubprocess\nPopen\n(I0\ntS'b'\ntR.",
            "subprocess.Popen",
        ),
        "builtin subtype of array": (
            b"cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\nlist\n(I0\ntS'b'\ntR.",
            "array",
        ),
        "numpy.load of a pickle": (b"cnumpy\nload\n" + order + b"\x85R.", "numpy.load"),
        "memmap": (b"cnumpy\nmemmap\n" + order + b"\x85R.", "numpy.memmap"),
        "numpy.random": (b"cnumpy.random._pickle\n__randomstate_ctor\n)R.", "numpy.random"),
        "defaultdict with a hostile factory": (
            b"ccollections\ndefaultdict\n(cos\nsystem\ntR.",
            "os.system",
        ),
        "defaultdict with a string": (
            b"ccollections\ndefaultdict\n(" + order + b"tR.",
            "calls defaultdict",
        ),
        "dtype of a class": (b"cnumpy\ndtype\n(cos\nsystem\ntR.", "os.system"),
        "dtype of fields": (
            b"cnumpy\ndtype\n(](" + order + text("f4") + b"tatR.",
            "numpy.dtype((list))",
        ),
        "dtype of a long string": (b"cnumpy\ndtype\n(" + text("O" * 10**5) + b"tR.", "numpy.dtype"),
        "dtype of a datetime": (b"cnumpy\ndtype\n(" + text("M8[s]") + b"tR.", "numpy.dtype"),
        "codec other than latin-1": (
            b"c_codecs\nencode\n(" + order + text("rot13") + b"tR.",
            "calls encode",
        ),
        "state of a function": (
            b"c_codecs\nencode\n}" + text("__code__") + b"Nsb.",
            "state of a name",
        ),
        "state of a class": (
            b"cnumpy\nndarray\n}" + text("__setstate__") + b"Nsb.",
            "state of a name",
        ),
        "state of a dict": (b"}}" + text("__class__") + b"Nsb.", "state of a dict"),
        "state with slots": (
            b"cnumpy\nndarray\nN}" + text("__doc__") + order + b"s\x86b.",
            "state of a name",
        ),
        "call of a string": (order + b")R.", "calls a str"),
        "call with a list": (b"c__builtin__\nset\n]R.", "calls a name"),
        "items of a function": (b"c__builtin__\nset\n" + order + b"Ns.", "sets items of a name"),
        "append to a function": (b"c__builtin__\nset\n" + order + b"a.", "appends to a name"),
        "out-of-band buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "torch": (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "torch._utils._rebuild_tensor_v2"),
        "bare name": (b"c__builtin__\nset\n.", "bare name"),
        "bare mark": (b"](a.", "bare name or mark"),
    }


@pytest.mark.parametrize("trick", list(hostile("true")))
def test_no_trick_runs(tmp_path: Path, trick: str) -> None:
    canary = tmp_path / "canary"
    data, expected = hostile(f"touch {canary}")[trick]
    with pytest.raises(CorrKDError) as caught:
        safe_pickle.load(write(tmp_path, data))
    assert not canary.exists()
    assert expected in str(caught.value)
    assert "mosi.pkl" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_standard_unpickler_runs_the_tricks(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for trick in (
        "reduce, protocol 2",
        "global",
        "stack global",
        "inst",
        "obj",
        "in an object array, Python 2",
    ):
        data, _ = hostile(f"touch {canary}")[trick]
        pickle.load(io.BytesIO(data))
        assert canary.exists(), trick
        canary.unlink()


def test_registered_extension_codes_are_refused(tmp_path: Path) -> None:
    import copyreg

    canary = tmp_path / "canary"
    copyreg.add_extension("os", "system", 240)
    try:
        data = b"\x80\x02\x82\xf0" + text(f"touch {canary}") + b"\x85R."
        pickle.loads(
            data
        )  # it runs, and is now in the cache that the standard unpickler uses without find_class
        canary.unlink()
        with pytest.raises(CorrKDError, match="EXT1 240"):
            safe_pickle.load(write(tmp_path, data))
        assert not canary.exists()
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_the_wording_of_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(CorrKDError) as caught:
        safe_pickle.load(write(tmp_path, b"cposix\nsystem\n."))
    assert str(caught.value) == (
        "mosi.pkl: refused: the pickle asks for posix.system; only arrays, numbers, strings and "
        "containers are read"
    )


# -- bombs
# --------------------------------------------------------------------------------------------------

GUARDED = """
import resource, sys
from corrkd.data import safe_pickle
from corrkd.errors import CorrKDError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    safe_pickle.load(sys.argv[1])
except CorrKDError as error:
    print(error)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def array_of(shape: bytes, kind: bytes, raw: bytes) -> bytes:
    return python2_array(raw, kind).replace(b"(I2\nt", shape)


def lots_of_laughs() -> bytes:
    """Each list holds the one before it ten times."""
    data = b"]" + text("lol") + b"aq\x00"
    for level in range(30):
        data += (
            b"]("
            + b"h"
            + bytes([level])
            + b""
            + (b"h" + bytes([level])) * 9
            + b"eq"
            + bytes([level + 1])
        )
    return data + b"."


def laughs_in_object_arrays() -> bytes:
    inner = np.empty(10, object)
    inner[:] = ["lol"] * 10
    for _ in range(20):
        outer = np.empty(10, object)
        for i in range(10):
            outer[i] = inner
        inner = outer
    return pickle.dumps(inner, 2)


BOMBS = {
    "array of a huge shape": (array_of(b"(L1000000000000L\nt", b"f8", b"S''\n"), "shape"),
    "array of a huge empty shape": (array_of(b"(L1000000000000L\nI0\nt", b"f8", b"S''\n"), "shape"),
    "array of zero-width items": (array_of(b"(I1000000000\nt", b"U0", b"S''\n"), "shape"),
    "array of many dimensions": (
        array_of(b"(" + b"I1\n" * 40 + b"t", b"f8", b"S'12345678'\n"), "shape",
    ),
    "array of a negative shape": (array_of(b"(I-1\nt", b"f8", b"S'12345678'\n"), "shape"),
    "fewer bytes than the shape": (array_of(b"(I2\nt", b"f8", b"S'1234'\n"), "without giving its "
                                                                             "bytes"),
    "objects without their list": (array_of(b"(I1000000000\nt", b"O8", b"(l"), "shape"),
    # numpy 1 takes such a type, numpy 2 does not.
    "huge item": (
        array_of(b"(I1\nt", b"U999999999", b"S''\n"),
        "damaged" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "without giving its bytes",
    ),
    "bytearray of a size": (b"c__builtin__\nbytearray\n(L1000000000000L\ntR.", "calls bytearray"),
    "bytes of a size": (b"c__builtin__\nbytes\n(L1000000000000L\ntR.", "calls bytes"),
    "ndarray called": (b"cnumpy\nndarray\n((L1000000000000L\nttR.", "calls ndarray"),
    "huge LONG4": (b"\x80\x02\x8b\xff\xff\xff\x7f12", "truncated"),
    "long integer": (
        b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".", "integer of",
    ),
    "long decimal": (b"L" + b"9" * 10**6 + b"L\n.", "damaged"),
    "huge BINUNICODE8": (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x", "truncated"),
    "huge BINBYTES8": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x", "truncated"),
    "huge BYTEARRAY8": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x", "truncated"),
    "huge frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**62), "truncated"),
    "huge memo index": (b"\x80\x02]r\xff\xff\xff\x7fN.", "bomb"),
    "empty sets": (b"\x80\x04(" + b"\x8f" * 2_000_000 + b"t.", "bomb"),
    "laughs in lists": (lots_of_laughs(), "expands"),
    "laughs in object arrays": (laughs_in_object_arrays(), "expands"),
    "deep lists": (b"]" + b"]" * 10**6 + b"a" * 10**6 + b".", "nests"),
    "deep tuples": (b")" + b"\x85" * 10**6 + b".", "nests"),
    "list in itself": (b"]q\x00h\x00a.", "nests"),
    "tuple as a key": (b"}" + b")" + b"\x85" * 10**5 + b"Ns.", "as a key"),
    "doubling tuple as a key": (b"})" + b"2\x86" * 60 + b"Ns.", "as a key"),
    "colliding keys": (
        b"}("
        + b"".join(pickle.dumps(k * (2**61 - 1), 2)[2:-1] + b"N" for k in range(1, 50_000))
        + b"u.",
        "as a key",
    ),
    "colliding set": (
        b"\x80\x04\x8f("
        + b"".join(pickle.dumps(k * (2**61 - 1), 2)[2:-1] for k in range(1, 50_000))
        + b"\x90.",
        "as a key",
    ),
    "copies of a string": (
        b"\x80\x02]" + text("x" * 10**6)
        + b"q\x00c_codecs\nencode\nq\x01" + text("latin1") + b"q\x02"
        + b"(" + b"h\x01h\x00h\x02\x86R" * 50_000 + b"e.",
        "bomb",
    ),
    "views of one array's bytes": (
        b"\x80\x02]" + text("x" * 10**6)
        + b"q\x00cnumpy.core.numeric\n_frombuffer\nq\x01cnumpy\ndtype\n(" + text("u1")
        + b"tRq\x02(J\x40\x42\x0f\x00tq\x03" + text("C") + b"q\x04"
        + b"(" + b"h\x01(h\x00h\x02h\x03h\x04tR" * 50_000 + b"e.",
        "bomb",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bomb", list(BOMBS))
def test_no_bomb_goes_off(tmp_path: Path, bomb: str) -> None:
    data, expected = BOMBS[bomb]
    file = write(tmp_path, data)
    # The timeout guards against a hang; the interpreter's start takes seconds.
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    message, grown = done.stdout.strip().rsplit("\n", 1)
    assert expected in message
    assert len(message) < 300
    assert int(grown) < 400, "MiB of memory for a small file"


CONTAINERS = {
    "EMPTY_SET": b"\x8f",
    "EMPTY_DICT": b"}",
    "EMPTY_LIST": b"]",
    "LIST": b"(l",
    "DICT": b"(d",
    "TUPLE": b"(Nt",
    "TUPLE1": b"N\x85",
    "TUPLE2": b"NN\x86",
    "TUPLE3": b"NNN\x87",
    "FROZENSET": b"(\x91",
    "APPEND": b"]Na",
    "APPENDS": b"](NNe",
    "SETITEM": b"}NNs",
    "SETITEMS": b"}(NNu",
    "ADDITEMS": b"\x8f(N\x90",
    "set": b"h\x00)R",
    "array": b"h\x01(h\x02NNtR",
}


@pytest.mark.parametrize("name", list(CONTAINERS))
@pytest.mark.parametrize("in_tuple", [True, False])
def test_containers_count_with_their_real_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, in_tuple: bool
) -> None:
    monkeypatch.setattr(safe_pickle, "SLACK", 1 << 16)
    names = (
        b"c__builtin__\nset\nq\x000cnumpy.core.multiarray\n_reconstruct\nq\x010"
        b"cnumpy\nndarray\nq\x020"
    )
    many = CONTAINERS[name] * 20_000
    # Either in a tuple, or on the stack beneath a small value.
    data = names + (b"(" + many + b"t." if in_tuple else many + b"N.")
    assert "bomb" in error_message(write(tmp_path, data))


def test_a_memo_takes_eight_bytes_an_entry(tmp_path: Path) -> None:
    data = b"\x80\x04(" + b"N\x94" * 50_000 + b"tq\x00."
    assert safe_pickle.load(write(tmp_path, data)) == (None,) * 50_000
    for skipped in (b"]q\x05h\x02.", b"]q\x05h\x06.", b"]q\x05g-1\n.", b"]p-1\n."):
        assert "damaged" in error_message(write(tmp_path, skipped))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_real_files_stay_well_within_their_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    """A list of words and short frames per sample, as in MAG, without the slack for small files."""
    monkeypatch.setattr(safe_pickle, "SLACK", 0)
    rng = np.random.default_rng(0)
    samples = [
        (
            [f"word{n}" for n in range(9)],
            rng.normal(size=(9, 4)),
            rng.normal(size=(9, 2)),
            np.float64(row),
            f"id{row}",
        )
        for row in range(400)
    ]
    read = safe_pickle.load(
        write(tmp_path, pickle.dumps([((a, b, c), d, e) for a, b, c, d, e in samples], protocol))
    )
    assert [((words, len(v)), label, name) for (words, v, _), label, name in read] == [
        ((words, len(v)), label, name) for words, v, _, label, name in samples
    ]


# -- files that are no pickle
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x89HDF\r\n",
        b"\x00" * 100,
        b"{}",
        b"\xff\xfe",
        b".",
        b"a.",
        b"N",
        b"(t",
        b"h\x05.",
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CorrKDError, match=r"^mosi.pkl: [^\n]*$"):
        safe_pickle.load(write(tmp_path, data))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pkl", tmp_path):
        with pytest.raises(CorrKDError, match="cannot be read"):
            safe_pickle.load(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps({"a": np.arange(5.0), "b": ["x", (1, 2.5)]}, 4)
    for end in range(1, len(data)):
        with pytest.raises(CorrKDError):
            safe_pickle.load(write(tmp_path, data[:end]))


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_changed_byte_gives_a_value_or_a_one_line_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    protocol = data.draw(st.integers(0, 5))
    raw = bytearray(pickle.dumps(VALUE, protocol))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert "\n" not in error_message(write(tmp_path, bytes(raw)))


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=60))
def test_random_bytes_give_a_value_or_a_one_line_error(tmp_path: Path, raw: bytes) -> None:
    assert "\n" not in error_message(write(tmp_path, raw))
