from __future__ import annotations

import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from corrkd.data import load
from corrkd.data.dataset import MultimodalDataset
from corrkd.data.known_files import KnownFile
from corrkd.data.load import check_training, load_dataset
from corrkd.errors import CorrKDError

from ..conftest import make_dataset, make_split
from .readers.samples import mag, mmsa, mult, write_pickle


def test_the_layout_is_recognised_whatever_the_name(tmp_path: Path) -> None:
    for data, layout in ((mmsa(), "MMSA unaligned"), (mult(), "MulT"), (mag("vectors"), "MAG")):
        assert load_dataset(write_pickle(tmp_path / "file.npz", data)).layout == layout
    x = np.arange(12.0).reshape(6, 2)
    np.savez(tmp_path / "arrays.npz", speech=x, scores=x[:, 0], split=np.array([0, 0, 0, 0, 1, 2]))
    shutil.move(tmp_path / "arrays.npz", tmp_path / "arrays.pkl")
    assert load_dataset(tmp_path / "arrays.pkl").layout == "npz arrays"


def test_name_and_sum(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "my_set.pkl", mmsa())
    assert load_dataset(path).name == "my_set"
    assert load_dataset(path, name="other").name == "other"
    assert load_dataset(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_known_file_brings_its_name_and_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = mmsa()
    for part in data.values():
        part["regression_labels"] = np.abs(part["regression_labels"])
        part["classification_labels"] = np.ones(len(part["id"]))
        del part["annotations"]
    path = write_pickle(tmp_path / "renamed.pkl", data)
    assert load_dataset(path).score_range is None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(load.KNOWN_FILES, digest, KnownFile("MOSI", "unaligned_50.pkl", (-3.0, 3.0)))
    known = load_dataset(path)
    assert (known.name, known.score_range) == ("MOSI", (-3.0, 3.0))
    assert known.class_names == ("negative", "neutral", "positive")
    assert "known file: MOSI unaligned_50.pkl" in known.layout


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
def test_wrong_formats_are_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(data)
    with pytest.raises(CorrKDError, match=r"^[^\n]*file[^\n]*$"):
        load_dataset(path)


def test_missing_file_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CorrKDError, match="no such file"):
        load_dataset(tmp_path / "none.pkl")
    with pytest.raises(CorrKDError, match=r"without \.csd files"):
        load_dataset(tmp_path)


def test_a_modality_constant_in_training_is_refused_wherever_it_varies_elsewhere() -> None:
    dataset = make_dataset()
    check_training(dataset)
    train = dataset.split("train")
    train.frames["audio"][train.exists("audio")] = 3.0
    with pytest.raises(CorrKDError, match="modality audio is constant in the training split"):
        check_training(dataset)
    only_test = MultimodalDataset(name="x", splits={"test": make_split(5, {"audio": 2})})
    only_test.splits["test"].frames["audio"][:] = 1
    check_training(only_test)


def test_one_constant_column_is_no_constant_modality() -> None:
    dataset = make_dataset()
    dataset.split("train").frames["audio"][..., 0] = 0.0
    check_training(dataset)
