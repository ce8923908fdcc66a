from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from corrkd.data.load import load_dataset
from corrkd.data.readers import csd
from corrkd.errors import CorrKDError

from .samples import csd_file

VIDEOS = {"train": ["a", "b"], "valid": ["c"], "test": ["d"]}


def folder(path: Path) -> tuple[Path, Path]:
    """Four videos of two segments [0, 2) and [2, 4) seconds, four words of 1 s each, audio at 10
    Hz, vision at 2 Hz.
    """
    data = path / "mosi"
    data.mkdir()
    rng = np.random.default_rng(0)
    seconds = np.arange(4.0)
    words, audio, vision, labels = {}, {}, {}, {}
    for number, video in enumerate("abcd"):
        words[video] = rng.normal(size=(4, 3)), np.stack([seconds, seconds + 1], 1)
        start = np.arange(40) / 10
        audio[video] = np.stack([start, rng.normal(size=40)], 1), np.stack([start, start + 0.1], 1)
        start = np.arange(8) / 2
        vision[video] = rng.normal(size=(8, 2)), np.stack([start, start + 0.5], 1)
        labels[video] = (
            np.array([[number - 2.0], [number - 1.0]]),
            np.array([[0.0, 2.0], [2.0, 4.0]]),
        )
    csd_file(data / "CMU_MOSI_TimestampedWordVectors_1.1.csd", "glove_vectors", words)
    csd_file(data / "CMU_MOSI_COVAREP.csd", "COVAREP", audio)
    csd_file(data / "CMU_MOSI_Visual_Facet_42.csd", "FACET_4.2", vision)
    csd_file(data / "CMU_MOSI_Opinion_Labels.csd", "Opinion Segment Labels", labels)
    csd_file(
        data / "CMU_MOSI_TimestampedWords.csd",
        "words",
        {"a": (np.array([[b"hello"]]), np.array([[0.0, 1.0]]))},
    )
    folds = path / "folds.json"
    folds.write_text(json.dumps(VIDEOS))
    return data, folds


def test_frames_are_averaged_over_the_words_of_each_segment(tmp_path: Path) -> None:
    data, folds = folder(tmp_path)
    dataset = load_dataset(data, folds=folds)
    assert dataset.modalities == ("language", "audio", "vision")
    assert "averaged over words" in dataset.layout
    assert any("TimestampedWords" in note for note in dataset.notes)
    train = dataset.split("train")
    assert train.ids.tolist() == ["a$_$0", "a$_$1", "b$_$0", "b$_$1"]
    assert train.scores.tolist() == [-2, -1, -1, 0]
    assert train.lengths["audio"].tolist() == [2, 2, 2, 2]
    with h5py.File(data / "CMU_MOSI_COVAREP.csd") as file:
        audio = file["COVAREP/data/a/features"][:]
    with h5py.File(data / "CMU_MOSI_Visual_Facet_42.csd") as file:
        vision = file["FACET_4.2/data/a/features"][:]
    for clip in range(2):
        for word in range(2):
            second = 2 * clip + word
            frames = vision[2 * second : 2 * second + 2]
            np.testing.assert_allclose(
                train.frames["vision"][clip, word], frames.mean(0), rtol=1e-5
            )
            # Rounding may let a frame of 0.1 s touch its neighbour's second; the mean start stays
            # within one frame.
            assert (
                abs(
                    train.frames["audio"][clip, word, 0]
                    - audio[10 * second : 10 * second + 10, 0].mean()
                )
                < 0.1
            )


def test_average_takes_the_frames_that_overlap() -> None:
    features = np.array([[1.0], [2.0], [4.0], [8.0]], np.float32)
    spans = np.array([[0, 1], [1, 2], [2, 3], [3, 4]], np.float64)
    sequence = csd.Sequence("x", 0, {"v": (features, spans)})
    intervals = np.array([[0, 1], [0.5, 2.5], [1, 3], [9, 10], [3.9, 99]])
    assert csd.average(sequence, "v", intervals).ravel().tolist() == pytest.approx(
        [1, 7 / 3, 3, 0, 8]
    )
    assert csd.average(sequence, "absent", intervals).tolist() == [[0]] * 5


def test_a_word_without_frames_is_missing(tmp_path: Path) -> None:
    data, folds = folder(tmp_path)
    with h5py.File(data / "CMU_MOSI_Visual_Facet_42.csd", "r+") as file:
        del file["FACET_4.2/data/b"]
    train = load_dataset(data, folds=folds).split("train")
    assert train.present["vision"].tolist() == [[True] * 2] * 2 + [[False] * 2] * 2
    assert train.lengths["vision"].tolist() == [2] * 4


def test_without_language_segments_keep_their_own_lengths(tmp_path: Path) -> None:
    data, folds = folder(tmp_path)
    (data / "CMU_MOSI_TimestampedWordVectors_1.1.csd").unlink()
    train = load_dataset(data, folds=folds).split("train")
    assert train.lengths["audio"].tolist() == [20] * 4
    assert train.lengths["vision"].tolist() == [4] * 4


def test_after_the_sdk_aligned_frames_are_taken_as_they_are(tmp_path: Path) -> None:
    data = tmp_path / "aligned"
    data.mkdir()
    rng = np.random.default_rng(1)
    words, labels = {}, {}
    for video in "abcd":
        for clip in (0, 2, 10):
            n = 1 + clip // 2
            span = np.stack([np.arange(n), np.arange(n) + 1.0], 1)
            words[f"{video}[{clip}]"] = rng.normal(size=(n, 3)), span
            labels[f"{video}[{clip}]"] = np.array([[clip / 10, 1, 0, 0, 0, 0, 0]]), span[:1]
    csd_file(data / "glove_vectors.csd", "glove_vectors", words)
    csd_file(
        data / "COAVAREP.csd",
        "COAVAREP",
        {key: (x[:, :2] + 0.5, span) for key, (x, span) in words.items()},
    )
    csd_file(data / "All Labels.csd", "All Labels", labels)
    folds = tmp_path / "folds.json"
    folds.write_text(json.dumps({"train": ["a", "b"], "dev": ["c"], "test": ["d"]}))
    dataset = load_dataset(data, folds=folds)
    train = dataset.split("train")
    assert train.ids.tolist()[:3] == ["a$_$0", "a$_$2", "a$_$10"]
    assert train.lengths["audio"].tolist() == [1, 2, 6] * 2
    np.testing.assert_array_equal(train.frames["language"][2], words["a[10]"][0].astype(np.float32))
    assert len(dataset.split("valid")) == 3


def test_standard_folds_of_mosi() -> None:
    with pytest.raises(CorrKDError, match="pass --folds FILE"):
        csd._folds("x", [f"video{n:02}" for n in range(93)], None)
    assert csd.MOSI_FOLDS == (52, 10, 31)


@pytest.mark.parametrize("content", ["", "[1]", '{"train": 3}', '{"foo": []}', "[" * 100_000])
def test_bad_folds(tmp_path: Path, content: str) -> None:
    data, folds = folder(tmp_path)
    folds.write_text(content)
    with pytest.raises(CorrKDError, match=r"folds.json"):
        load_dataset(data, folds=folds)


def test_bad_folders(tmp_path: Path) -> None:
    data, folds = folder(tmp_path)
    with pytest.raises(CorrKDError, match=r"no dataset in this folder"):
        load_dataset(tmp_path)
    with pytest.raises(CorrKDError, match="pass --folds"):
        load_dataset(data)
    whole = (data / "CMU_MOSI_COVAREP.csd").read_bytes()
    (data / "CMU_MOSI_COVAREP.csd").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorrKDError, match=r"CMU_MOSI_COVAREP\.csd: a truncated HDF5 file"):
        load_dataset(data, folds=folds)
    (data / "CMU_MOSI_COVAREP.csd").unlink()
    (data / "CMU_MOSI_Opinion_Labels.csd").unlink()
    with pytest.raises(CorrKDError, match="no label sequence; expected"):
        load_dataset(data, folds=folds)


def test_of_nested_frames_only_those_that_overlap_are_averaged() -> None:
    features = np.array([[1.0], [2.0], [4.0]], np.float32)
    spans = np.array([[0, 9], [1, 2], [5, 6]], np.float64)
    sequence = csd.Sequence("x", 0, {"v": (features, spans)})
    assert csd.average(sequence, "v", np.array([[4, 5.5], [1.5, 3.0]])).ravel().tolist() == [
        2.5,
        1.5,
    ]


def test_segments_take_the_frames_whose_middle_they_hold() -> None:
    """Also where middles are not in the order of starts."""
    spans = np.array([[0, 10], [1, 2], [2, 3], [3, 4]], np.float64)
    sequence = csd.Sequence("x", 0, {"v": (np.arange(4.0)[:, None], spans)})
    middles = csd.Middles.of(sequence, "v")
    assert middles.between(2.5, 6.0).ravel().tolist() == [0, 2, 3]
    assert middles.intervals(0.0, 2.5).tolist() == [[1, 2]]
    assert middles.count(np.array([[2.5, 6.0], [0.0, 2.5], [7.0, 1.0]])) == 4
    assert csd.Middles.of(sequence, "other").between(0.0, 9.0).shape == (0, 1)


def test_overlapping_segments_are_counted_before_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folds = folder(tmp_path)
    (data / "CMU_MOSI_TimestampedWordVectors_1.1.csd").unlink()
    labels = {v: (np.zeros((5000, 1)), np.tile([[0.0, 4.0]], (5000, 1))) for v in "abcd"}
    csd_file(data / "CMU_MOSI_Opinion_Labels.csd", "Opinion Segment Labels", labels)
    monkeypatch.setattr("corrkd.memory.available_memory", lambda: 1_000_000)
    with pytest.raises(
        CorrKDError, match=r"the segments of video a: needs 1.9 MB of memory, 1.0 MB are free"
    ):
        load_dataset(data, folds=folds)


def test_pauses_among_the_words_are_left_out(tmp_path: Path) -> None:
    data, folds = folder(tmp_path)
    (data / "CMU_MOSI_TimestampedWordVectors_1.1.csd").unlink()
    seconds = np.arange(4.0)
    spans = np.stack([seconds, seconds + 1], 1)
    words = {v: (np.array([[b"good"], [b"sp"], [b"film"], [b"sp"]]), spans) for v in "abcd"}
    csd_file(data / "CMU_MOSI_TimestampedWords.csd", "words", words)
    vectors = tmp_path / "glove.txt"
    vectors.write_text("good 1 0\nfilm 0 1\nsp 5 5\n")
    dataset = load_dataset(data, folds=folds, glove=vectors)
    assert "language: 8 pauses (sp) among the words are left out" in dataset.notes
    assert dataset.split("train").lengths["language"].tolist() == [1] * 4
    assert dataset.split("train").frames["language"][0].tolist() == [[1, 0]]


def test_intervals_that_are_no_numbers(tmp_path: Path) -> None:
    data, folds = folder(tmp_path)
    with h5py.File(data / "CMU_MOSI_COVAREP.csd", "r+") as file:
        file["COVAREP/data/a/intervals"][3, 1] = np.nan
    with pytest.raises(CorrKDError, match=r"COVAREP.csd, a: intervals contain NaN"):
        load_dataset(data, folds=folds)
