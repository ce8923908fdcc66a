from __future__ import annotations

import hashlib
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corrkd.data import load
from corrkd.data.dataset import MultimodalDataset, Split
from corrkd.data.inspect import describe, inspect
from corrkd.data.load import check_training, load_dataset
from corrkd.data.published_files import PublishedFile
from corrkd.errors import CorrKDError

from ..conftest import make_dataset, make_split
from .readers.samples import glove, mag, mmsa, mult, write_pickle


def test_the_layout_is_recognised_whatever_the_name(tmp_path: Path) -> None:
    for data, layout in ((mmsa(), "MMSA unaligned"), (mult(), "MulT"), (mag("vectors"), "MAG")):
        assert load_dataset(write_pickle(tmp_path / "file.npz", data)).layout == layout
    x = np.arange(12.0).reshape(6, 2)
    np.savez(tmp_path / "arrays.npz", speech=x, scores=x[:, 0], split=np.array([0, 0, 0, 0, 1, 2]))
    shutil.move(tmp_path / "arrays.npz", tmp_path / "arrays.pkl")
    assert load_dataset(tmp_path / "arrays.pkl").layout == "npz arrays"


def test_name_and_checksum(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "my_set.pkl", mmsa())
    assert load_dataset(path).name == "my_set"
    assert load_dataset(path, name="other").name == "other"
    assert load_dataset(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_public_file_provides_its_name_and_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = mmsa()
    for split in data.values():
        split["regression_labels"] = np.abs(split["regression_labels"])
        split["classification_labels"] = np.ones(len(split["id"]))
        del split["annotations"]
    path = write_pickle(tmp_path / "renamed.pkl", data)
    assert load_dataset(path).score_range is None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(
        load.PUBLISHED_FILES, digest, PublishedFile("MOSI", "unaligned_50.pkl", (-3.0, 3.0))
    )
    dataset = load_dataset(path)
    assert (dataset.name, dataset.score_range) == ("MOSI", (-3.0, 3.0))
    assert dataset.class_names == ("negative", "neutral", "positive")
    assert "public file: MOSI unaligned_50.pkl" in dataset.layout


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a dataset at all",
        pickle.dumps([1, 2, 3]),
        pickle.dumps({"train": 1}),
        pickle.dumps({}),
        pickle.dumps({"train": {}, "test": {}}),
        pickle.dumps({"train": [], "test": []}),
        b"PK\x03\x04 and no more",
        b"\x89HDF\r\n\x1a\n and no more",
        (40).to_bytes(8, "little") + b"{",
        (2).to_bytes(8, "little") + b"{}",
        (2**40).to_bytes(8, "little") + b"{}",
    ],
)
def test_wrong_formats_are_one_line_errors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(data)
    with pytest.raises(CorrKDError, match=r"^[^\n]*file[^\n]*$"):
        load_dataset(path)


def test_missing_file_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CorrKDError, match="no such file"):
        load_dataset(tmp_path / "none.pkl")
    with pytest.raises(CorrKDError, match=r"no dataset in this folder"):
        load_dataset(tmp_path)


def test_a_modality_constant_in_training_is_refused_even_if_it_varies_elsewhere() -> None:
    dataset = make_dataset()
    check_training(dataset)
    train = dataset.split("train")
    train.frames["audio"][train.exists("audio")] = 3.0
    with pytest.raises(CorrKDError, match="modality audio is constant in the training split"):
        check_training(dataset)
    only_test = MultimodalDataset(name="x", splits={"test": make_split(5, {"audio": 2})})
    only_test.splits["test"].frames["audio"][:] = 1
    check_training(only_test)


def test_data_without_targets_may_be_constant(tmp_path: Path) -> None:
    np.savez(tmp_path / "new.npz", speech=np.ones((4, 3, 2)), split=np.array([0, 0, 0, 2]))
    assert list(load_dataset(tmp_path / "new.npz", targets=False).splits) == ["train", "test"]


def test_a_missing_frame_does_not_hide_a_constant_modality() -> None:
    dataset = make_dataset()
    train = dataset.split("train")
    train.frames["audio"][train.exists("audio")] = 3.0
    for row in (0, 3):  # missing frames are zeros, also where they come first
        train.frames["audio"][row, 0], train.present["audio"][row, 0] = 0.0, False
    with pytest.raises(CorrKDError, match="modality audio is constant in the training split"):
        check_training(dataset)


def test_a_constant_column_is_no_constant_modality() -> None:
    dataset = make_dataset()
    dataset.split("train").frames["audio"][..., 0] = 0.0
    check_training(dataset)


PLAIN = [
    None,
    "x",
    b"x",
    7,
    -1.5,
    float("nan"),
    10**30,
    [],
    {},
    (),
    ["a", 1],
    [[1], [2, 3]],
    {"train": {}},
]
ARRAYS = [
    np.zeros(0),
    np.zeros((3, 0)),
    np.array(5.0),
    np.array(["a", "b"]),
    np.array([None, {}], object),
]
SHAPED = [np.full((12, 2, 2), np.inf), np.arange(12), np.zeros((12, 3, 4, 5))]
ODD = st.sampled_from([*PLAIN, *ARRAYS, *SHAPED])


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_file_contents_give_a_dataset_or_a_one_line_error(
    tmp_path: Path, data: st.DataObject
) -> None:
    kinds = st.sampled_from([mmsa, mult, lambda: mag("vectors"), lambda: mag("misa")])
    contents = data.draw(kinds)()
    for _ in range(data.draw(st.integers(1, 3))):
        split = contents[data.draw(st.sampled_from(sorted(contents)))]
        odd = data.draw(ODD)
        if isinstance(split, dict) and split:
            split[data.draw(st.sampled_from(sorted(split)))] = odd
        elif isinstance(split, list):
            (inputs, label, segment), field_index = split[0], data.draw(st.integers(0, 4))
            inputs = tuple(odd if field_index == n else x for n, x in enumerate(inputs))
            split[data.draw(st.integers(0, len(split) - 1))] = (
                inputs,
                odd if field_index == 3 else label,
                odd if field_index == 4 else segment,
            )
    path = write_pickle(tmp_path / "odd.pkl", contents)
    try:
        dataset = load_dataset(path, glove=glove(tmp_path / "glove.txt"))
    except CorrKDError as error:
        message = str(error)
    else:
        message = describe(inspect(dataset)).splitlines()[0]
    assert "odd" in message
    assert "\n" not in message


def small_split(**changes: Any) -> Split:
    """Return two samples of 2 and 1 frames."""
    fields: dict[str, Any] = {
        "frames": {"audio": np.array([[[1.0], [2.0]], [[3.0], [0.0]]], np.float32)},
        "lengths": {"audio": np.array([2, 1])},
        "present": {"audio": np.array([[True, True], [True, False]])},
        "ids": np.array(["a", "b"]),
        "labels": np.array([0, 1]),
    }
    return Split(**fields | changes)


def with_value(sample: int, frame: int, value: float) -> Split:
    frames = small_split().frames["audio"].copy()
    frames[sample, frame] = value
    return small_split(frames={"audio": frames})


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (with_value(0, 1, np.nan), "audio: NaN or infinite values"),
        (with_value(1, 0, -np.inf), "audio: NaN or infinite values"),
        (with_value(1, 1, 7.0), "audio: values other than 0 beyond the length of a sample"),
        (
            small_split(present={"audio": np.ones((2, 2), bool)}),
            "audio: `present` is True beyond the length of a sample",
        ),
        (small_split(lengths={"audio": np.array([3, 1])}), "audio: lengths run from 1 to 3"),
        (small_split(lengths={}), "`lengths` has no modality, `frames` has audio"),
        (small_split(labels=None), "neither scores nor labels"),
    ],
)
def test_a_dataset_made_in_python_is_checked_before_it_is_used(split: Split, message: str) -> None:
    load_dataset(MultimodalDataset(name="mine", splits={"train": small_split()}))
    dataset = MultimodalDataset(name="mine", splits={"train": small_split(), "valid": split})
    with pytest.raises(CorrKDError, match=f"^dataset mine, valid.*{re.escape(message)}"):
        load_dataset(dataset)


def test_frames_of_two_dimensions_are_refused() -> None:
    with pytest.raises(CorrKDError, match=r"modality audio: shape \(2, 2\), expected \(samples"):
        MultimodalDataset(
            name="mine", splits={"train": small_split(frames={"audio": np.ones((2, 2))})}
        )
