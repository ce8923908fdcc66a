from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from corrkd.data.convert import convert
from corrkd.data.dataset import MultimodalDataset, Split
from corrkd.data.inspect import describe, inspect
from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError

from ..conftest import make_dataset
from .readers.samples import mmsa, mult, write_pickle


def assert_same(a: MultimodalDataset, b: MultimodalDataset) -> None:
    for field in ("name", "class_names", "question_names", "score_range", "layout", "missing_rule"):
        assert getattr(a, field) == getattr(b, field), field
    assert a.modalities == b.modalities
    assert list(a.splits) == list(b.splits)
    for name, split in a.splits.items():
        other = b.splits[name]
        for m in a.modalities:
            np.testing.assert_array_equal(split.frames[m], other.frames[m])
            np.testing.assert_array_equal(split.lengths[m], other.lengths[m])
            np.testing.assert_array_equal(split.present[m], other.present[m])
            assert (other.frames[m].dtype, other.lengths[m].dtype, other.present[m].dtype) == (
                np.float32,
                np.int64,
                np.bool_,
            )
        for field in ("ids", "scores", "labels", "order"):
            x, y = getattr(split, field), getattr(other, field)
            assert (x is None) == (y is None)
            assert x is None or (np.array_equal(x, y) and x.dtype.kind == y.dtype.kind)
        assert list(split.groups) == list(other.groups)
        for group, names in split.groups.items():
            np.testing.assert_array_equal(names, other.groups[group])


@pytest.mark.parametrize(
    "data", [mmsa(), mmsa(aligned=True), mult(), mult(left=True, questions=True)]
)
def test_round_trip(tmp_path: Path, data: object) -> None:
    dataset = load_dataset(write_pickle(tmp_path / "set.pkl", data))
    convert(dataset, tmp_path / "set.safetensors")
    again = load_dataset(tmp_path / "set.safetensors")
    assert_same(dataset, again)
    assert again.extra == {**dataset.extra, "source_sha256": dataset.sha256}
    assert again.notes == (
        *dataset.notes,
        f"converted from a file or folder with sha256 {dataset.sha256}",
    )
    assert all(
        isinstance(x, np.memmap) for split in again.splits.values() for x in split.frames.values()
    )
    assert_same(
        load_dataset(tmp_path / "set.safetensors", name="other"), replace(again, name="other")
    )
    convert(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "set.safetensors"
    ).read_bytes()


def test_the_checksum_is_that_of_the_contents(tmp_path: Path) -> None:
    """A resumed run detects by it that its data changed, also for data in memory."""
    path = tmp_path / "x.safetensors"

    def converted(dataset: MultimodalDataset) -> MultimodalDataset:
        convert(dataset, path)
        return load_dataset(path)

    dataset = make_dataset()
    first = converted(dataset).sha256
    assert len(first) == 64
    assert int(first, 16) > 0
    assert first in describe(inspect(converted(dataset)))
    same = replace(dataset, name="other", sha256="f" * 64, notes=("a note",))
    assert converted(same).sha256 == first
    assert converted(replace(dataset, class_names=("a", "b", "c"))).sha256 != first
    dataset.split("test").frames["audio"][-1, 0, 0] += 1
    second = converted(dataset).sha256
    dataset.split("train").ids[0] = "renamed"
    third = converted(dataset).sha256
    dataset.split("train").labels[0] ^= 1
    assert len({first, second, third, converted(dataset).sha256}) == 4


def test_ids_of_any_script_survive(tmp_path: Path) -> None:
    dataset = make_dataset()
    train = dataset.split("train")
    train.ids[0], train.ids[1], train.ids[2] = "日本", 'a"\\\n', ""
    convert(dataset, tmp_path / "x.safetensors")
    assert_same(dataset, load_dataset(tmp_path / "x.safetensors"))


def test_other_software_can_open_it(tmp_path: Path) -> None:
    dataset = make_dataset()
    convert(dataset, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        np.testing.assert_array_equal(
            file.get_tensor("train/frames/audio"), dataset.split("train").frames["audio"]
        )
        assert json.loads(file.metadata()["corrkd"])["modalities"] == [
            "language",
            "audio",
            "vision",
        ]


def test_without_targets(tmp_path: Path) -> None:
    dataset = make_dataset()
    bare = replace(dataset.split("test"), scores=None, labels=None)
    for splits in ({"all": bare}, {"train": bare, "test": bare}):
        bare_dataset = replace(dataset, splits=splits)
        convert(bare_dataset, tmp_path / "x.safetensors")
        assert_same(load_dataset(tmp_path / "x.safetensors", targets=False), bare_dataset)
        with pytest.raises(
            CorrKDError, match=r"x.safetensors, (all|train): neither scores nor labels"
        ):
            load_dataset(tmp_path / "x.safetensors")


def test_a_failed_conversion_leaves_no_file(tmp_path: Path) -> None:
    dataset = make_dataset()
    code = (
        "import resource, sys\n"
        "from tests.conftest import make_dataset\n"
        "from corrkd.data.convert import convert\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "convert(make_dataset(), sys.argv[1])\n"
    )
    target = tmp_path / "x.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", code, str(target)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "CorrKDError" in done.stderr
    assert "cannot be written" in done.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CorrKDError):
        convert(dataset, tmp_path / "file" / "x.safetensors")
    with pytest.raises(CorrKDError, match=r"must end in .safetensors"):
        convert(dataset, tmp_path / "x.pkl")


OPEN_AND_TAKE = """
import resource, sys
import numpy as np
from corrkd.data.load import load_dataset

def status(name):  # KiB
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

def anonymous():  # in MiB; mapped files do not count
    return status("RssAnon") / 1024

before = anonymous()
dataset = load_dataset(sys.argv[1])
limit = 64 << 20
used = status("VmData") * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + limit, used + limit))
train = dataset.split("train")
total = 0.0
for start in range(0, len(train), 64):
    rows = np.arange(start, min(start + 64, len(train)))
    total += float(train.take(rows).frames["language"][:, 0, 0].sum())
print(total, anonymous() - before)
"""


def test_a_large_set_opens_in_little_memory(tmp_path: Path) -> None:
    """Read 200 MB of frames in batches, in a process that may allocate 64 MB more."""
    count, frames, width = 2000, 50, 500
    rng = np.random.default_rng(0)
    large = np.broadcast_to(
        rng.normal(size=(1, frames, width)).astype(np.float32), (count, frames, width)
    )
    split = Split(
        frames={"language": large},
        lengths={"language": np.full(count, frames)},
        present={"language": np.ones((count, frames), bool)},
        ids=np.array([f"s{row}" for row in range(count)]),
        scores=np.zeros(count),
    )
    path = tmp_path / "large.safetensors"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    convert(MultimodalDataset(name="large", splits={"train": split}), path)
    assert path.stat().st_size > 200e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, (
        "writing held a second copy"
    )
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AND_TAKE, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    total, grown = map(float, done.stdout.split())
    assert total == pytest.approx(count * float(large[0, 0, 0]), rel=1e-4)
    assert grown < 64


def header_of(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_with_header(path: Path, header: dict, body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["train/frames/audio"].update(shape=[10**9, 6, 3]),
        lambda h: h["train/frames/audio"].update(data_offsets=[0, 10**12]),
        lambda h: h["train/frames/audio"].update(data_offsets=[-4, 10]),
        lambda h: h["train/frames/audio"].update(dtype="F128"),
        lambda h: h["train/frames/audio"].update(shape="x"),
        lambda h: h["train/frames/audio"].pop("shape"),
        lambda h: h.pop("train/ids"),
        lambda h: h.pop("valid/lengths/audio"),
        lambda h: h.update({"train/ids": []}),
        lambda h: h["__metadata__"].update(corrkd="{}"),
        lambda h: h["__metadata__"].update(corrkd="no json"),
        lambda h: h["__metadata__"].update(corrkd="[" * 100_000),
        lambda h: h["__metadata__"].update(
            corrkd=h["__metadata__"]["corrkd"].replace('"format": 2', '"format": 99')
        ),
    ],
)
def test_a_damaged_header_is_a_one_line_error(tmp_path: Path, change) -> None:
    path = tmp_path / "x.safetensors"
    convert(make_dataset(), path)
    header, body = header_of(path)
    change(header)
    write_with_header(path, header, body)
    with pytest.raises(CorrKDError, match=r"^[^\n]*x.safetensors[^\n]*$"):
        load_dataset(path)


def test_a_truncated_file_is_a_one_line_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    convert(make_dataset(), path)
    content = path.read_bytes()
    for length, message in (
        (5, "x.safetensors"),
        (9, "damaged"),
        (200, "damaged"),
        (len(content) - 1, "truncated"),
    ):
        path.write_bytes(content[:length])
        with pytest.raises(CorrKDError, match=message) as caught:
            load_dataset(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.update(splits=["train", "../x"]),
        lambda about: about.update(splits=["train", "train", "valid", "test"]),
        lambda about: about.update(modalities=["language", "language", "audio", "vision"]),
        lambda about: about.update(modalities="language"),
        lambda about: about.update(modalities=["x" * 300]),
        lambda about: about.update(class_names=["a", "a"]),
        lambda about: about.update(class_names="abc"),
        lambda about: about.update(class_names=[1, 2, 3]),
        lambda about: about.update(score_range=[3, -3]),
        lambda about: about.update(score_range=[0]),
        lambda about: about.update(name=3),
        lambda about: about.update(name="\ud800"),
        lambda about: about.update(notes="note"),
        lambda about: about.update(sha256="0" * 63),
        lambda about: about.update(extra=[1]),
        lambda about: about.update(extra={"n": 10**30}),
        lambda about: about.update(more=1),
    ],
)
def test_invalid_metadata_is_a_one_line_error(tmp_path: Path, change) -> None:
    path = tmp_path / "x.safetensors"
    convert(make_dataset(), path)
    header, body = header_of(path)
    about = json.loads(header["__metadata__"]["corrkd"])
    change(about)
    header["__metadata__"]["corrkd"] = json.dumps(about)
    write_with_header(path, header, body)
    with pytest.raises(
        CorrKDError, match=r"^x\.safetensors: a damaged converted dataset"
    ) as caught:
        load_dataset(path)
    assert len(str(caught.value)) <= 500


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("train/lengths/audio", "F64"), ("train/frames/audio", "I64"), ("train/present/audio", "U8")],
)
def test_tensors_of_a_wrong_type_are_one_line_errors(tmp_path: Path, name: str, dtype: str) -> None:
    path = tmp_path / "x.safetensors"
    convert(make_dataset(), path)
    header, body = header_of(path)
    header[name]["dtype"] = dtype
    write_with_header(path, header, body)
    with pytest.raises(CorrKDError, match=rf"{name}: is {dtype}"):
        load_dataset(path)


def test_a_dataset_that_could_not_be_read_back_is_not_converted(tmp_path: Path) -> None:
    dataset = make_dataset()
    split = dataset.splits["train"]
    ids = split.ids.astype(object)
    ids[0] = "x" * 1001
    long_id = replace(
        dataset, splits={**dataset.splits, "train": replace(split, ids=ids.astype(str))}
    )
    for bad in (
        replace(dataset, class_names=("a", "a")),
        replace(dataset, extra={"x": float("nan")}),
        long_id,
    ):
        with pytest.raises(CorrKDError, match="dataset tiny: cannot be converted"):
            convert(bad, tmp_path / "x.safetensors")
        assert list(tmp_path.iterdir()) == []
