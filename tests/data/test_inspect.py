from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from corrkd.data.convert import convert
from corrkd.data.dataset import MultimodalDataset, check_split
from corrkd.data.inspect import describe, inspect
from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError

from ..conftest import make_dataset
from .readers.samples import mmsa, mult, write_pickle


def test_shapes_lengths_and_missing() -> None:
    dataset = make_dataset()
    train = dataset.split("train")
    train.present["audio"][0] = False
    train.frames["audio"][0] = 0
    facts = inspect(dataset).splits["train"]
    audio = facts.modalities["audio"]
    assert audio.shape == train.frames["audio"].shape
    assert audio.lengths == (
        train.lengths["audio"].min(),
        np.median(train.lengths["audio"]),
        train.lengths["audio"].max(),
    )
    assert np.isclose(
        audio.missing_frames, train.lengths["audio"][0] / train.lengths["audio"].sum()
    )
    assert audio.missing_samples == 1 / len(train)
    assert facts.modalities["vision"].missing_frames == 0
    assert facts.incomplete == 1 / len(train)


def test_constant_columns_ignore_padding_and_missing_frames() -> None:
    dataset = make_dataset()
    train = dataset.split("train")
    for split in dataset.splits.values():
        split.frames["audio"][split.exists("audio"), 1] = 5.0
    train.present["audio"][3, 0] = False
    train.frames["audio"][3, 0] = 0
    assert [
        inspect(dataset).splits[s].modalities["audio"].constant_columns for s in dataset.splits
    ] == [1, 1, 1]
    assert inspect(dataset).splits["train"].modalities["language"].constant_columns == 0


def test_histogram_and_majority(tmp_path: Path) -> None:
    data = mmsa()
    data["train"]["classification_labels"] = np.array([0, 0, 0, 0, 0, 0, 2, 2, 2, 1, 1, 1])
    for split in data.values():
        del split["annotations"]
    facts = inspect(load_dataset(write_pickle(tmp_path / "x.pkl", data))).splits["train"]
    assert facts.histogram == {"0": 6, "1": 3, "2": 3}
    assert facts.majority == 0.5
    question_data = mult(questions=True)
    dataset = load_dataset(write_pickle(tmp_path / "y.pkl", question_data))
    facts = inspect(dataset).splits["train"]
    yes = question_data["train"]["labels"][:, :, 1]
    assert facts.histogram == dict(
        zip(("neutral", "happy", "sad", "angry"), yes.sum(0).astype(int), strict=True)
    )
    assert np.isclose(facts.majority, np.maximum(yes.mean(0), 1 - yes.mean(0)).mean())


def test_scores_alone() -> None:
    dataset = make_dataset()
    signed = replace(dataset.split("train"), labels=None, scores=np.array([-1.0, 0, 0, 2] * 12))
    facts = inspect(MultimodalDataset(name="x", splits={"train": signed})).splits["train"]
    assert facts.histogram == {"below 0": 12, "at 0": 24, "above 0": 12}
    assert facts.majority == 0.5
    assert facts.scores == (-1, 0.25, 2)
    likert = replace(signed, scores=np.array([1.0, 2.2, 3, 3] * 12))
    assert inspect(MultimodalDataset(name="x", splits={"train": likert})).splits[
        "train"
    ].histogram == {"1": 12, "2": 12, "3": 24}


def test_neither_labels_nor_scores(tmp_path: Path) -> None:
    """Recordings to be predicted are described without a table of shared samples."""
    np.savez(tmp_path / "mine.npz", audio=np.random.default_rng(0).normal(size=(6, 4, 3)))
    overview = inspect(load_dataset(tmp_path / "mine.npz", targets=False))
    facts = overview.splits["all"]
    assert (facts.samples, facts.histogram, facts.majority, facts.scores) == (6, {}, None, None)
    assert re.search(r"^all +none +none +none +0.0 %$", describe(overview), re.MULTILINE)
    assert "in two splits" not in describe(overview)


def test_duplicates_and_shared_groups() -> None:
    dataset = make_dataset()
    train, test = dataset.split("train"), dataset.split("test")
    for m in dataset.modalities:
        for a, b in ((5, 0), (6, 1), (6, 2)):
            test.frames[m][b], test.lengths[m][b], test.present[m][b] = (
                train.frames[m][a],
                train.lengths[m][a],
                train.present[m][a],
            )
    test.frames["audio"][2, 0, 0] += 1  # the third differs in one number
    test.ids[7] = train.ids[8]
    splits = {
        name: replace(
            split,
            groups={
                "person": np.array(
                    [
                        f"{'shared' if row == 0 and name != 'valid' else name}{row}"
                        for row in range(len(split))
                    ]
                )
            },
        )
        for name, split in dataset.splits.items()
    }
    facts = inspect(replace(dataset, splits=splits))
    assert facts.same_frames == {("train", "valid"): 0, ("train", "test"): 2, ("valid", "test"): 0}
    assert facts.same_ids == {("train", "valid"): 0, ("train", "test"): 1, ("valid", "test"): 0}
    assert facts.shared_groups["person"][("train", "test")] == ("shared0",)
    assert facts.shared_groups["person"][("train", "valid")] == ()


def test_empty_samples_are_no_duplicates() -> None:
    dataset = make_dataset()
    for split in dataset.splits.values():
        for m in dataset.modalities:
            split.frames[m][0], split.present[m][0], split.lengths[m][0] = 0, False, 1
    assert set(inspect(dataset).same_frames.values()) == {0}


def test_the_description_contains_the_facts_and_survives_conversion(tmp_path: Path) -> None:
    data = mmsa()
    data["train"]["audio"][0, 0, 0] = -np.inf
    dataset = load_dataset(write_pickle(tmp_path / "mine.pkl", data))
    text = describe(inspect(dataset))
    for phrase in (
        "MMSA unaligned",
        dataset.sha256,
        "-3 to 3",
        "all-zero frames inside the length",
        "given in the file",
        "group video",
    ):
        assert phrase in text
    audio = next(line for line in text.splitlines() if line.startswith("audio"))
    assert audio.split()[1] == "right"
    assert "audio: 1 inf values set to 0" in text
    assert all(len(line) == len(line.rstrip()) for line in text.splitlines())
    convert(dataset, tmp_path / "mine.safetensors")
    again = load_dataset(tmp_path / "mine.safetensors")
    source = f"  converted from a file or folder with sha256 {dataset.sha256}"
    lines = text.replace(dataset.sha256, again.sha256).splitlines()
    assert describe(inspect(again)).splitlines() == [*lines, source]


@pytest.mark.parametrize("label", [2**40, 2**56])
def test_a_huge_label_or_score_takes_no_memory(label: int) -> None:
    dataset = make_dataset()
    train = dataset.split("train")
    huge = np.where(np.arange(len(train)) == 3, label, 1.0)
    with pytest.raises(CorrKDError, match=f"label {label} is out of range"):
        check_split("set, train", replace(train, labels=huge.astype(np.int64)))
    only = replace(dataset, splits={"train": replace(train, labels=None, scores=huge)})
    assert inspect(only).splits["train"].histogram == {
        "below 1": 0,
        "at 1": len(train) - 1,
        "above 1": 1,
    }
