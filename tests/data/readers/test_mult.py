from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError

from .samples import COUNTS, mult, write_pickle


def load(tmp_path: Path, data: object, protocol: int = 4):
    return load_dataset(write_pickle(tmp_path / "mosi_data.pkl", data, protocol))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_either_padding_side_gives_the_same_kind_of_samples(
    tmp_path: Path, left: bool, protocol: int
) -> None:
    data = mult(left)
    dataset = load(tmp_path, data, protocol)
    assert dataset.layout == "MulT"
    assert set(dataset.extra["padding"].values()) == {"left" if left else "right"}
    assert dataset.score_range == (-3.0, 3.0)
    for split, count in COUNTS.items():
        part, source = dataset.split(split), data[split]
        np.testing.assert_allclose(part.scores, source["labels"].ravel())
        for key, m in (("text", "language"), ("audio", "audio"), ("vision", "vision")):
            assert part.present[m].sum() == part.lengths[m].sum()
            for row in range(count):
                kept = source[key][row][source[key][row].any(1)]
                np.testing.assert_array_equal(part.frames[m][row, : len(kept)], kept)
                assert part.lengths[m][row] == len(kept)
                assert not part.frames[m][row, len(kept) :].any()


def test_padding_is_judged_jointly_and_per_sample(tmp_path: Path) -> None:
    data = mult()
    train = data["train"]
    for key in ("text", "audio", "vision"):
        train[key][0] = np.arange(1.0, 8.0)[:, None]
        train[key][1] = np.arange(1.0, 8.0)[:, None]
        train[key][1, :3] = 0  # this sample is padded on the left, the others on the right
    train["audio"][0, 5:] = 0  # missing at the end, while text goes on
    dataset = load(tmp_path, data)
    part = dataset.split("train")
    assert part.lengths["audio"][:2].tolist() == [7, 4]
    assert part.present["audio"][0].tolist() == [True] * 5 + [False] * 2
    assert part.frames["vision"][1, :, 0].tolist() == [4, 5, 6, 7, 0, 0, 0]
    assert dataset.extra["padding"]["audio"].startswith("mixed: left in 1 samples")
    assert part.naturally_incomplete().tolist() == [True] + [False] * 11


def test_unaligned_lengths_are_inferred_by_modality(tmp_path: Path) -> None:
    data = mult()
    for part in data.values():
        part["audio"] = np.concatenate([part["audio"], np.zeros_like(part["audio"][:, :2])], 1)
    dataset = load(tmp_path, data)
    assert dataset.split("train").frames["audio"].shape == (12, 9, 3)
    assert dataset.extra["lengths"]["audio"] == "inferred from all-zero margins of audio"
    np.testing.assert_array_equal(
        dataset.split("train").lengths["audio"], dataset.split("train").lengths["vision"]
    )


def test_iemocap_questions(tmp_path: Path) -> None:
    data = mult(questions=True)
    dataset = load(tmp_path, data)
    assert dataset.question_names == ("neutral", "happy", "sad", "angry")
    train = dataset.split("train")
    assert train.scores is None
    np.testing.assert_array_equal(train.labels, data["train"]["labels"][:, :, 1])
    assert train.labels[0].tolist() == [1, 1, 1, 1]


def test_ids_of_three_fields(tmp_path: Path) -> None:
    train = load(tmp_path, mult()).split("train")
    assert train.ids[0] == "v0train@10.5-99"
    assert train.groups["video"][:4].tolist() == ["v0train"] * 3 + ["v1train"]
    assert train.order[:3].tolist() == [2, 1, 0]  # by start: 10.5, 9.5, 8.5


def test_without_ids(tmp_path: Path) -> None:
    data = mult()
    for part in data.values():
        del part["id"]
    dataset = load(tmp_path, data)
    assert dataset.split("valid").ids[0] == "valid-0"
    assert dataset.split("train").groups == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p["labels"].__setitem__((0, 0, 0), np.nan), "NaN"),
        (lambda p: p.update(labels=np.ones((12, 4, 2))), "not one-hot"),
        (lambda p: p.update(labels=np.full((12, 4, 2), np.nan)), "NaN"),
        (lambda p: p.update(labels="nothing"), "not numbers"),
        (
            lambda p: p.update(labels=np.zeros((12, 3))),
            "choose with --label: labels.0, labels.1, labels.2",
        ),
        (lambda p: p.update(text=np.zeros((12, 7, 9))), "another split has|no frame"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, change, words: str) -> None:
    data = mult()
    change(data["train"])
    with pytest.raises(CorrKDError, match=words) as caught:
        load(tmp_path, data)
    assert "\n" not in str(caught.value)


def test_common_frame_ids_and_what_is_left_out(tmp_path: Path) -> None:
    data = mult()
    for part in data.values():
        part["frame_ids"] = np.tile(np.arange(7), (len(part["text"]), 1))
        part["spectrum"] = np.zeros((3, 4, 5, 6))
    dataset = load_dataset(write_pickle(tmp_path / "mosi.pkl", data))
    train = dataset.split("train")
    assert set(train.frame_ids) == {"language", "audio", "vision"}
    assert train.frame_ids["audio"][0].tolist() == list(range(7))
    assert "left out: spectrum" in dataset.notes
