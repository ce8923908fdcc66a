"""Files made to read elsewhere, to fill the memory, or never to end: one line, and nothing else."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from corrkd.data.convert import convert
from corrkd.data.load import load_dataset
from corrkd.data.readers.assemble import groups_from_ids
from corrkd.data.readers.glove import read_glove
from corrkd.errors import CorrKDError

from .samples import csd_file


def h5(path: Path, add: Callable[[h5py.File], object]) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["speech"] = rng.normal(size=(24, 3))
        file["scores"] = rng.normal(size=24)
        add(file)
    return path


def external_link(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["secret"] = np.ones((24, 2))
    file["gaze"] = h5py.ExternalLink("other.h5", "/secret")


def external_storage(file: h5py.File) -> None:
    secret = Path(file.filename).with_name("secret.txt")
    secret.write_bytes(b"root:x:0:0:root" * 100)
    file.create_dataset("gaze", (24, 8), "u1", external=[(str(secret), 0, 192)])


def virtual(file: h5py.File) -> None:
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["secret"] = np.ones((24, 2))
    layout = h5py.VirtualLayout((24, 2), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (24, 2))
    file.create_virtual_dataset("gaze", layout)


def soft_link_out(file: h5py.File) -> None:
    file["inside/secret"] = np.ones((24, 2))
    file["gaze"] = h5py.SoftLink("/inside/secret")


def link_to_itself(file: h5py.File) -> None:
    file["gaze"] = h5py.SoftLink("gaze")


def many_names(file: h5py.File) -> None:
    file.create_dataset(
        "gaze", (24, 1_000_000), "f4", chunks=(1, 10_000)
    )  # never written: a few bytes in the file
    for number in range(300):
        file[f"gaze{number}"] = file["gaze"]


def compound(file: h5py.File) -> None:
    file["gaze"] = np.zeros(24, [("a", "f4"), ("b", "i8")])


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (external_link, "'gaze' is a link to another file"),
        (external_storage, "gaze: refused: its values are stored in another file"),
        (virtual, "gaze: refused: it is a virtual dataset"),
        (soft_link_out, "'gaze' is a soft link out of its group"),
        (link_to_itself, "'gaze' is a link to a link"),
        (many_names, r"declares .* of arrays, but .* are allowed"),
        (compound, "only numbers, booleans and strings are read"),
    ],
)
def test_hdf5_that_reaches_out_or_explodes(
    tmp_path: Path, add: Callable[[h5py.File], object], words: str
) -> None:
    path = h5(tmp_path / "set.h5", add)
    out = tmp_path / "out.safetensors"
    with pytest.raises(CorrKDError, match=words):
        convert(load_dataset(path, targets=False), out)
    assert not out.exists()


def test_strings_that_share_a_long_text_are_counted(tmp_path: Path) -> None:
    """The file holds the text once: each string of its 24 is 16 bytes, which say where in the file
    it is.
    """
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["speech"] = np.ones((3000, 3))
        ids = file.create_dataset("ids", (3000,), h5py.string_dtype())
        ids[0] = "x" * 2_000_000
        ids[1:] = "y"
        file.flush()
        start = ids.id.get_offset()
    content = bytearray((tmp_path / "set.h5").read_bytes())
    content[start : start + 3000 * 16] = content[start : start + 16] * 3000
    (tmp_path / "set.h5").write_bytes(content)
    with h5py.File(tmp_path / "set.h5") as file:
        assert len(file["ids"].asstr()[2999]) == 2_000_000
    with pytest.raises(CorrKDError, match=r"declares .* of arrays, but .* are allowed"):
        load_dataset(tmp_path / "set.h5", targets=False)


def test_a_second_name_in_the_same_group_is_followed(tmp_path: Path) -> None:
    def add(file: h5py.File) -> None:
        file["face"] = h5py.SoftLink("speech")

    dataset = load_dataset(h5(tmp_path / "set.h5", add))
    np.testing.assert_array_equal(
        dataset.split("train").frames["face"], dataset.split("train").frames["speech"]
    )


@pytest.mark.parametrize("where", ["root", "video", "features"])
def test_csd_that_reaches_out(tmp_path: Path, where: str) -> None:
    spans = np.array([[0.0, 1.0]])
    for name in ("COVAREP", "Labels"):
        csd_file(tmp_path / f"{name}.csd", name, {v: (np.ones((1, 1)), spans) for v in "abc"})
    with h5py.File(tmp_path / "COVAREP.csd", "r+") as file:
        link = h5py.ExternalLink("Labels.csd", "/Labels")
        if where == "root":
            file["other"] = link
        elif where == "video":
            file["COVAREP/data/d"] = link
        else:
            del file["COVAREP/data/a/features"]
            file["COVAREP/data/a/features"] = h5py.ExternalLink(
                "Labels.csd", "/Labels/data/a/features"
            )
    with pytest.raises(CorrKDError, match="is a link to another file"):
        load_dataset(tmp_path, targets=False)


def test_csd_of_other_widths_names_file_and_video(tmp_path: Path) -> None:
    spans = np.array([[0.0, 1.0]])
    csd_file(tmp_path / "Labels.csd", "Labels", {v: (np.ones((1, 1)), spans) for v in "ab"})
    csd_file(
        tmp_path / "FACET.csd",
        "FACET",
        {"a": (np.ones((1, 3)), spans), "b": (np.ones((1, 4)), spans)},
    )
    with pytest.raises(
        CorrKDError,
        match=r"FACET\.csd: video a has numbers of width 3, video b has numbers of width 4",
    ):
        load_dataset(tmp_path, targets=False)
    csd_file(
        tmp_path / "FACET.csd",
        "FACET",
        {"a": (np.ones((1, 1)), spans), "b": (np.array([[b"word"]]), spans)},
    )
    with pytest.raises(
        CorrKDError,
        match=r"FACET\.csd: video a has numbers of width 1, video b has words of width 1",
    ):
        load_dataset(tmp_path, targets=False)


@pytest.mark.parametrize("name", ["fifo", "/dev/zero", "/dev/null"])
def test_a_device_is_no_dataset(tmp_path: Path, name: str) -> None:
    path = tmp_path / name if name == "fifo" else Path(name)
    if name == "fifo":
        os.mkfifo(path)
    for targets in (True, False):
        with pytest.raises(CorrKDError, match="neither a file nor a folder"):
            load_dataset(path, targets=targets)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "Labels.csd").symlink_to(path)
    with pytest.raises(CorrKDError, match=r"Labels\.csd: not a regular file"):
        load_dataset(folder)


def test_a_vector_file_of_one_endless_line(tmp_path: Path) -> None:
    with pytest.raises(CorrKDError, match="/dev/zero: no such file; pass --glove FILE"):
        read_glove(Path("/dev/zero"), {"good"})
    (tmp_path / "glove.txt").write_text("good 1 2\n" + "x" * 5_000_000)
    with pytest.raises(CorrKDError, match="line 2 is not a word and 2 numbers"):
        read_glove(tmp_path / "glove.txt", {"good"})


MEMORY = """
import resource, sys
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, ({limit} + used, -1))
from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError
try:
    load_dataset(sys.argv[1], targets=False)
except CorrKDError as error:
    print("one line:", str(error))
"""


def reading(path: Path, limit: int) -> str:
    """What comes of reading a file in a process that may have so many more bytes of memory."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.replace("{limit}", str(limit)), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def long_id(path: Path) -> Path:
    ids = [f"s{i}" for i in range(3000)]
    ids[7] = "x" * 1_000_000
    data = {"speech": np.ones((3000, 2)), "ids": ids}
    path.write_bytes(pickle.dumps(data))
    return path


def empty_members(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(40_000):
            archive.writestr(f"a{number}.npy", b"")
    return path


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads the size of a process from /proc"
)
@pytest.mark.parametrize(
    ("make", "suffix", "words"),
    [
        (long_id, ".pkl", "one of 3,000 has 1,000,000 characters; that is too long for a name"),
        (empty_members, ".npz", "refused: its list of members takes"),
    ],
)
def test_what_is_built_is_bounded(
    tmp_path: Path, make: Callable[[Path], Path], suffix: str, words: str
) -> None:
    path = make(tmp_path / f"set{suffix}")
    assert words in reading(path, 2 << 30)


def test_video_ids_take_linear_time() -> None:
    """Tens of kilobytes that look like an id for long; a pattern with two greedy halves would try
    each pair of places.
    """
    for text in (
        "[" * 40_000,
        "$_" * 40_000,
        "a[1" * 20_000,
        "[1]" * 20_000 + "x",
        "$_$" * 20_000 + "[",
    ):
        groups_from_ids([text] * 50)
    videos, clips = groups_from_ids(["a$_$b$_$3", "a[1]$_$10"]) or ((), ())
    assert (list(videos), list(clips)) == (["a$_$b", "a[1]"], [3, 10])
    videos, clips = groups_from_ids(["a[2][3]", "b[0]"]) or ((), ())
    assert (list(videos), list(clips)) == (["a[2]", "b"], [3, 0])
    assert groups_from_ids(["a[1", "b"]) is None
    assert groups_from_ids(["$_$1"]) is None


def test_ids_without_a_clip_leave_the_others_their_video() -> None:
    videos, clips = groups_from_ids(["a$_$1", "a$_$2", "odd"]) or ((), ())
    assert (list(videos), list(clips)) == (["a", "a", ""], [1, 2, 0])
    assert groups_from_ids(["a$_$1", "odd", "other"]) is None


def test_a_long_header_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    length = 20 << 20
    path.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * (length - 2) + b"}")
    with pytest.raises(
        CorrKDError, match=r"set.safetensors: refused: its header is longer than 17 MB"
    ):
        load_dataset(path)


def test_numbers_that_numpy_does_not_have(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"audio": torch.zeros(4, 3, dtype=torch.bfloat16)}, tmp_path / "set.safetensors")
    with pytest.raises(
        CorrKDError, match=r"set.safetensors: tensor 'audio' is BF16; save it as float32"
    ):
        load_dataset(tmp_path / "set.safetensors")
