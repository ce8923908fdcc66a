from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError

from .samples import COUNTS, mmsa, write_pickle


def load(tmp_path: Path, data: object):
    return load_dataset(write_pickle(tmp_path / "set.pkl", data))


def test_unaligned(tmp_path: Path) -> None:
    data = mmsa()
    dataset = load(tmp_path, data)
    assert dataset.layout == "MMSA unaligned"
    assert dataset.modalities == ("language", "audio", "vision")
    assert dataset.class_names == ("negative", "neutral", "positive")
    assert dataset.score_range == (-3.0, 3.0)
    for split, count in COUNTS.items():
        part, source = dataset.split(split), data[split]
        assert len(part) == count
        for key, m in (("text", "language"), ("audio", "audio"), ("vision", "vision")):
            np.testing.assert_array_equal(part.frames[m], source[key].astype(np.float32))
            assert part.present[m].sum() == part.lengths[m].sum()
        assert part.lengths["audio"].tolist() == source["audio_lengths"]
        assert part.lengths["language"].tolist() == source["text_bert"][:, 1].sum(1).tolist()
        np.testing.assert_array_equal(part.labels, np.sign(source["regression_labels"]) + 1)
        np.testing.assert_array_equal(part.scores, source["regression_labels"])
        assert part.ids.tolist() == source["id"].tolist()
    assert dataset.split("train").groups["video"][:4].tolist() == ["vid0train"] * 3 + ["vid1train"]
    assert dataset.split("train").order[:4].tolist() == [0, 1, 2, 0]


def test_aligned_borrows_the_lengths_of_text_bert(tmp_path: Path) -> None:
    data = mmsa(aligned=True)
    # A frame missing in one modality at the very end of a sample is missing, not padding.
    last = int(data["train"]["text_bert"][3, 1].sum()) - 1
    data["train"]["audio"][3, last] = 0
    dataset = load(tmp_path, data)
    train = dataset.split("train")
    assert dataset.layout == "MMSA aligned"
    assert dataset.extra["lengths"]["audio"] == "lengths of language (aligned)"
    for m in dataset.modalities:
        assert train.lengths[m].tolist() == data["train"]["text_bert"][:, 1].sum(1).tolist()
    assert not train.present["audio"][3, last]
    assert train.naturally_incomplete().tolist() == [row == 3 for row in range(12)]


def test_frames_under_cls_and_sep_are_not_missing(tmp_path: Path) -> None:
    data = mmsa(aligned=True)
    for part in data.values():
        for row, n in enumerate(part["text_bert"][:, 1].sum(1).astype(int)):
            for key in ("audio", "vision"):
                part[key][row, [0, n - 1]] = 0
    lengths = data["train"]["text_bert"][:, 1].sum(1).astype(int)
    row = next(row for row in range(12) if lengths[row] >= 5)
    data["train"]["audio"][row, 2] = 0  # missing, in the middle
    data["train"]["vision"][row, 0] = 1  # so the audio at the first token could have been there
    other = next(r for r in range(12) if lengths[r] >= 5 and r != row)
    data["train"]["audio"][other] = data["train"]["vision"][other] = (
        0  # nothing at all: missing from end to end
    )
    dataset = load(tmp_path, data)
    train = dataset.split("train")
    assert train.present["audio"][row].tolist()[: lengths[row]] == [
        False,
        True,
        False,
        *[True] * (lengths[row] - 3),
    ]
    assert not train.present["audio"][other].any()
    short = lengths < 3  # nothing but the two special tokens
    assert train.naturally_incomplete().tolist() == [
        r in (row, other) or short[r] for r in range(12)
    ]
    assert not train.frames["audio"][~short, 0].any()
    for m in ("audio", "vision"):
        assert (train.present[m] <= train.exists(m)).all()
        assert (
            dataset.missing_rule[m]
            == "all-zero frames inside the length, but under [CLS] and [SEP]"
        )
    assert dataset.missing_rule["language"] == "all-zero frames inside the length"
    assert any(note.startswith("train: ") and "[CLS] or [SEP]" in note for note in dataset.notes)


def test_a_zero_first_channel_is_no_padding(tmp_path: Path) -> None:
    data = mmsa()
    for part in data.values():
        for key in ("text", "audio", "vision"):
            part[key][..., 0] = 0
    train = load(tmp_path, data).split("train")
    for m in train.frames:
        np.testing.assert_array_equal(train.present[m], train.exists(m))


def test_infinite_and_nan_become_zero_and_are_counted(tmp_path: Path) -> None:
    data = mmsa()
    data["train"]["audio"][0, 0] = -np.inf
    data["test"]["vision"][0, 0, 0] = np.nan
    dataset = load(tmp_path, data)
    assert "audio: 3 inf values set to 0" in dataset.notes
    assert "vision: 1 nan values set to 0" in dataset.notes
    assert not dataset.split("train").present["audio"][0, 0]  # nothing of the frame is left
    assert dataset.split("test").present["vision"][0, 0]
    assert all(
        np.isfinite(x).all() for part in dataset.splits.values() for x in part.frames.values()
    )


def test_ch_sims(tmp_path: Path) -> None:
    data = mmsa()
    for part in data.values():
        part["regression_labels"] = part["regression_labels"] / 3
        for m in "TAV":
            part[f"regression_labels_{m}"] = part["regression_labels"]
    dataset = load(tmp_path, data)
    assert dataset.score_range == (-1.0, 1.0)
    assert "CH-SIMS" in dataset.layout
    assert any("regression_labels_T" in note for note in dataset.notes)


def test_length_zero_is_one_absent_frame(tmp_path: Path) -> None:
    data = mmsa()
    data["train"]["audio"][2], data["train"]["audio_lengths"][2] = 0, 0
    dataset = load(tmp_path, data)
    train = dataset.split("train")
    assert train.lengths["audio"][2] == 1
    assert not train.present["audio"][2].any()
    assert any("length 0" in note for note in dataset.notes)


def test_left_padded_with_given_lengths_is_moved(tmp_path: Path) -> None:
    data = mmsa()
    wanted = load(tmp_path, data)
    for part in data.values():
        for row, n in enumerate(part["audio_lengths"]):
            part["audio"][row] = np.roll(part["audio"][row], 9 - n, axis=0)
    moved = load(tmp_path, data)
    assert moved.extra["padding"]["audio"] == "left"
    for split in COUNTS:
        np.testing.assert_array_equal(
            moved.split(split).frames["audio"], wanted.split(split).frames["audio"]
        )
        np.testing.assert_array_equal(
            moved.split(split).present["audio"], wanted.split(split).present["audio"]
        )


def test_extra_modality_person_and_two_modalities(tmp_path: Path) -> None:
    data = mmsa()
    rng = np.random.default_rng(0)
    for part in data.values():
        del part["vision"], part["vision_lengths"]
        n = len(part["id"])
        part["pulse"] = rng.normal(size=(n, 5))
        part["person"] = np.arange(n) // 2
    dataset = load(tmp_path, data)
    assert dataset.modalities == ("language", "audio", "pulse")
    assert dataset.split("train").frames["pulse"].shape == (12, 1, 5)
    assert dataset.split("train").groups["person"][:3].tolist() == ["0", "0", "1"]


def test_clips_are_ordered_as_numbers(tmp_path: Path) -> None:
    data = mmsa()
    data["train"]["id"] = np.array([f"a$_$b$_${n}" for n in range(12)])
    train = load(tmp_path, data).split("train")
    assert train.order.tolist() == list(range(12))
    assert set(train.groups["video"]) == {"a$_$b"}


def test_classes_without_names_stay_unnamed(tmp_path: Path) -> None:
    data = mmsa()
    for part in data.values():
        part["annotations"] = np.array([""] * len(part["id"]))
        part["classification_labels"] = np.arange(len(part["id"])) % 3
        part["regression_labels"] = part["regression_labels"] + 4
    dataset = load(tmp_path, data)
    assert dataset.class_names == ()
    assert dataset.score_range is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p["audio_lengths"].__setitem__(0, 99), "lengths run from"),
        (lambda p: p["audio_lengths"].__setitem__(0, -1), "lengths run from"),
        (lambda p: p["audio_lengths"].pop(), "11 lengths for 12 samples"),
        (lambda p: p["regression_labels"].__setitem__(0, np.nan), "NaN"),
        (lambda p: p["classification_labels"].__setitem__(0, np.nan), "NaN"),
        (lambda p: p["classification_labels"].__setitem__(0, -1), "labels must be"),
        (lambda p: p["classification_labels"].__setitem__(0, 0.5), "whole numbers"),
        (lambda p: p["classification_labels"].__setitem__(0, 10**9), "out of range"),
        (
            lambda p: p.update(regression_labels_T=p["regression_labels"]),
            "scores run from -3 to 3, beyond -1 to 1",
        ),
        (lambda p: p["audio"].fill(np.nan), "no frame is present"),
        (lambda p: p["audio"].fill(3.0), "constant"),
        (lambda p: p["audio"].fill(0.0), "no frame is present"),
        (lambda p: p.update(audio=np.zeros((12, 9, 0))), "train: has no audio"),
        (lambda p: p.update(audio=p["audio"][:5]), "array audio has 5 rows for 12 samples"),
        (lambda p: p.update(audio=np.array(["x"] * 12)), "not an array of numbers"),
        (lambda p: p.update(audio=[[1.0]] * 12), "the array holds 1 frames"),
        (lambda p: p.update(id=p["id"][:5]), "5 ids for 12 samples"),
        (lambda p: p.pop("vision"), "another split has"),
        (
            lambda p: [p.pop("regression_labels"), p.pop("classification_labels")],
            "neither scores nor labels",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, change, words: str) -> None:
    data = mmsa()
    change(data["train"])
    if words == "constant":
        data["train"]["audio_lengths"] = [9] * 12
    with pytest.raises(CorrKDError, match=words) as caught:
        load(tmp_path, data)
    assert "\n" not in str(caught.value)
    assert "set" in str(caught.value)


def test_a_split_absent(tmp_path: Path) -> None:
    data = mmsa()
    del data["valid"]
    dataset = load(tmp_path, data)
    with pytest.raises(CorrKDError, match="has no split 'valid'"):
        dataset.split("valid")


def test_repeated_ids_are_numbered(tmp_path: Path) -> None:
    data = mmsa()
    data["train"]["id"][:3] = "same$_$1"
    dataset = load(tmp_path, data)
    assert dataset.split("train").ids[:3].tolist() == ["same$_$1", "same$_$1#2", "same$_$1#3"]
    assert dataset.split("train").groups["video"][:3].tolist() == ["same"] * 3
