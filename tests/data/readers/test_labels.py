from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrkd.data.load import load_dataset
from corrkd.data.readers.labels import LabelChoice, columns_of, parse_choice
from corrkd.data.readers.names import is_no_feature, modality_names
from corrkd.errors import CorrKDError

from .samples import COUNTS, csd_file, mmsa, mult, write_pickle

EMOTIONS = ["happy", "sad", "anger", "surprise", "disgust", "fear"]


def with_emotions(data: dict[str, Any], key: str = "emotion_labels") -> dict[str, Any]:
    """MMSA's dict with six emotions merged in."""
    for seed, part in enumerate(data.values()):
        table = np.random.default_rng(seed).integers(0, 4, (len(part["id"]), 6)).astype(np.float32)
        table[0], table[1] = 0, 3
        part[key] = table
    return data


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("happy", LabelChoice("scores", (("happy", 0.0),))),
        ("happy,sad", LabelChoice("questions", (("happy", 0.0), ("sad", 0.0)))),
        ("questions:happy@1.5", LabelChoice("questions", (("happy", 1.5),))),
        ("scores:a:b", LabelChoice("scores", (("a:b", 0.0),))),
        ("a:b", LabelChoice("scores", (("a:b", 0.0),))),
    ],
)
def test_a_choice_is_read(text: str, choice: LabelChoice) -> None:
    assert parse_choice(text) == choice


@pytest.mark.parametrize("text", ["", "a,", "questions:", "a@b", "@1"])
def test_a_choice_that_is_none(text: str) -> None:
    with pytest.raises(CorrKDError, match=r"^label "):
        parse_choice(text)


@given(st.text(max_size=30))
def test_any_choice_is_read_or_one_line(text: str) -> None:
    message = ""
    try:
        assert parse_choice(text).form in ("scores", "questions")
    except CorrKDError as error:
        message = str(error)
    assert len(message) < 300


@pytest.mark.parametrize(
    "key",
    [
        "emotion_labels",
        "EmotionLabels",
        "ratings",
        "annotation",
        "my_label",
        "utt_ids",
        "y",
        "moseiemotions",
    ],
)
def test_a_label_is_never_a_feature(tmp_path: Path, key: str) -> None:
    data = with_emotions(mmsa(), key)
    assert load_dataset(write_pickle(tmp_path / "set.pkl", data)).modalities == (
        "language",
        "audio",
        "vision",
    )
    for part, other in zip(mult().values(), data.values(), strict=True):
        part[key] = other[key]
    arrays = {
        "speech": np.random.default_rng(0).normal(size=(20, 3)),
        key: np.ones((20, 6)),
        "scores": np.arange(20.0),
    }
    np.savez(tmp_path / "set.npz", **arrays)
    assert load_dataset(tmp_path / "set.npz").modalities == ("speech",)


@pytest.mark.parametrize(
    "key", ["emotion2vec", "audio_wav2vec2", "textures", "identity", "classical", "gaze"]
)
def test_a_feature_is_no_label(key: str) -> None:
    assert not is_no_feature(key)


def test_emotions_merged_into_mmsa_can_be_chosen(tmp_path: Path) -> None:
    data = with_emotions(mmsa())
    path = write_pickle(tmp_path / "set.pkl", data)
    usual = load_dataset(path)
    assert any(
        "emotion_labels.happy" in note and "choose with --label" in note for note in usual.notes
    )
    np.testing.assert_array_equal(usual.split("test").scores, data["test"]["regression_labels"])
    sad = load_dataset(path, label="sad")
    np.testing.assert_array_equal(sad.split("test").scores, data["test"]["emotion_labels"][:, 1])
    assert (sad.split("test").labels, sad.score_range, sad.class_names) == (None, None, ())
    everything = load_dataset(path, label="questions:emotion_labels")
    assert everything.question_names == tuple(EMOTIONS)
    np.testing.assert_array_equal(
        everything.split("test").labels, data["test"]["emotion_labels"] > 0
    )
    with pytest.raises(CorrKDError, match=r"no label column 'joy'; it has .*emotion_labels\.happy"):
        load_dataset(path, label="joy")
    with pytest.raises(CorrKDError, match="scores are of one column"):
        load_dataset(path, label="scores:emotion_labels")


@pytest.mark.parametrize("shape", [(-1, 6), (-1, 1, 6)])
def test_emotions_in_mults_layout(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = mult()
    tables = with_emotions({split: {"id": np.arange(n)} for split, n in COUNTS.items()})
    for split, part in data.items():
        part["labels"] = tables[split]["emotion_labels"].reshape(shape)
    path = write_pickle(tmp_path / "set.pkl", data)
    dataset = load_dataset(path)
    assert dataset.question_names == tuple(EMOTIONS)
    np.testing.assert_array_equal(
        dataset.split("train").labels, tables["train"]["emotion_labels"] > 0
    )
    anger = load_dataset(path, label="anger").split("train").scores
    np.testing.assert_array_equal(anger, tables["train"]["emotion_labels"][:, 2])


def ratings(tmp_path: Path, **more: Any) -> Path:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "pom.npz",
        audio=rng.normal(size=(30, 4, 3)),
        scores=rng.integers(1, 8, (30, 5)),
        split=np.repeat(["train", "valid", "test"], 10),
        **more,
    )
    return tmp_path / "pom.npz"


def test_several_ratings_have_to_be_chosen_from(tmp_path: Path) -> None:
    path = ratings(tmp_path)
    with pytest.raises(
        CorrKDError, match=r"several label columns; choose with --label: scores\.0, scores\.1"
    ):
        load_dataset(path)
    table = np.load(path)["scores"]
    np.testing.assert_array_equal(
        load_dataset(path, label="3").split("valid").scores, table[10:20, 3]
    )
    asked = load_dataset(path, label="scores.0@4,scores.4@5")
    np.testing.assert_array_equal(asked.split("train").labels, table[:10, [0, 4]] > [4, 5])
    named = ratings(tmp_path, scores_names=np.array(["warm", "fair", "dull", "vivid", "funny"]))
    np.testing.assert_array_equal(
        load_dataset(named, label="vivid").split("valid").scores, table[10:20, 3]
    )
    assert load_dataset(named, targets=False).split("train").scores is None


def test_a_column_in_two_arrays_has_to_be_named_in_full(tmp_path: Path) -> None:
    path = ratings(tmp_path, emotion=np.random.default_rng(1).random((30, 2)))
    with pytest.raises(
        CorrKDError, match=r"label '1' is in several arrays: choose one of scores\.1, emotion\.1"
    ):
        load_dataset(path, label="1")
    assert load_dataset(path, label="emotion.1").split("test").scores is not None


@pytest.mark.parametrize("values", [(0, 1), (-1, 1)])
@pytest.mark.parametrize("layout", ["mmsa", "mult", "arrays", "csd"])
def test_two_values_are_two_classes(tmp_path: Path, layout: str, values: tuple[int, int]) -> None:
    def alternating(count: int) -> np.ndarray:
        return np.array(values, np.float32)[np.arange(count) % 2]

    folds = None
    if layout == "mmsa":
        data = mmsa()
        for part in data.values():
            part["regression_labels"] = alternating(len(part["id"]))
            del part["classification_labels"]
        path = write_pickle(tmp_path / "set.pkl", data)
    elif layout == "mult":
        data = mult()
        for part in data.values():
            part["labels"] = alternating(len(part["id"]))[:, None, None]
        path = write_pickle(tmp_path / "set.pkl", data)
    elif layout == "arrays":
        path = tmp_path / "set.npz"
        np.savez(path, face=np.random.default_rng(0).normal(size=(20, 3)), scores=alternating(20))
    else:
        path = tmp_path / "set"
        path.mkdir()
        spans = np.array([[0.0, 1.0], [1.0, 2.0]])
        rng = np.random.default_rng(0)
        csd_file(
            path / "COVAREP.csd", "COVAREP", {v: (rng.normal(size=(2, 3)), spans) for v in "abc"}
        )
        csd_file(
            path / "Labels.csd", "Labels", {v: (alternating(2)[:, None], spans) for v in "abc"}
        )
        folds = tmp_path / "folds.json"
        folds.write_text('{"train": ["a"], "valid": ["b"], "test": ["c"]}')
    dataset = load_dataset(path, folds=folds)
    assert dataset.class_names == tuple(map(str, values))
    assert set(dataset.split("train").labels.tolist()) == {0, 1}
    train = dataset.split("train")
    np.testing.assert_array_equal(train.labels, (train.scores > 0).astype(int))


def test_words_are_classes_by_name(tmp_path: Path) -> None:
    words = np.array(["sad", "glad", "cross"])[np.arange(30) % 3]
    face = np.random.default_rng(0).normal(size=(30, 2))
    np.savez(
        tmp_path / "set.npz",
        face=face,
        labels=words,
        split=np.repeat(["train", "valid", "test"], 10),
    )
    dataset = load_dataset(tmp_path / "set.npz")
    assert dataset.class_names == ("cross", "glad", "sad")
    for i, split in enumerate(("train", "valid", "test")):
        assert [dataset.class_names[k] for k in dataset.split(split).labels] == words[
            10 * i : 10 * i + 10
        ].tolist()
    np.savez(
        tmp_path / "set.npz", face=face, labels=words, class_names=["sad", "glad", "cross", "calm"]
    )
    assert load_dataset(tmp_path / "set.npz").class_names == ("sad", "glad", "cross", "calm")
    np.savez(tmp_path / "set.npz", face=face, labels=np.array(["0", "2"])[np.arange(30) % 2])
    assert load_dataset(tmp_path / "set.npz").class_names == ()  # numbers in writing
    data = mult()
    for part in data.values():
        part["labels"] = np.array(["no", "yes"])[np.arange(len(part["id"])) % 2]
    assert load_dataset(write_pickle(tmp_path / "set.pkl", data)).class_names == ("no", "yes")


def test_a_feature_that_is_the_label_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores, face = rng.normal(size=40), rng.normal(size=(40, 5))
    face[:, 3] = scores
    np.savez(tmp_path / "set.npz", face=face, scores=scores)
    with pytest.raises(CorrKDError, match="modality face: column 3 is the label itself"):
        load_dataset(tmp_path / "set.npz")


def test_two_label_sequences(tmp_path: Path) -> None:
    folder = tmp_path / "mosei"
    folder.mkdir()
    spans = np.array([[0.0, 1.0], [1.0, 2.0]])
    rng = np.random.default_rng(0)
    sentiment = {v: (rng.uniform(-3, 3, (2, 1)), spans) for v in "abc"}
    emotions = {v: (np.array([[0, 3, 0, 1, 0, 0], [2, 0, 1, 0, 0, 3.0]]), spans) for v in "abc"}
    csd_file(
        folder / "COVAREP.csd", "COVAREP", {v: (rng.normal(size=(2, 3)), spans) for v in "abc"}
    )
    csd_file(folder / "CMU_MOSEI_LabelsSentiment.csd", "Sentiment Labels", sentiment)
    csd_file(folder / "CMU_MOSEI_LabelsEmotions.csd", "Emotion Labels", emotions)
    folds = tmp_path / "folds.json"
    folds.write_text('{"train": ["a"], "valid": ["b"], "test": ["c"]}')
    dataset = load_dataset(folder, folds=folds)
    np.testing.assert_allclose(dataset.split("test").scores, sentiment["c"][0][:, 0], rtol=1e-6)
    assert any(
        "read from CMU_MOSEI_LabelsSentiment.csd, not from CMU_MOSEI_LabelsEmotions" in n
        for n in dataset.notes
    )
    chosen = load_dataset(folder, folds=folds, label="happy,sad,fear")
    assert chosen.split("test").labels.tolist() == [[0, 1, 0], [1, 0, 1]]
    (folder / "CMU_MOSEI_LabelsSentiment.csd").rename(folder / "CMU_MOSEI_Labels.csd")
    with pytest.raises(CorrKDError, match="no label column 'joy'"):
        load_dataset(folder, folds=folds, label="joy")


@pytest.mark.parametrize("width", [6, 7])
def test_one_hot_classes_are_not_moseis_columns(tmp_path: Path, width: int) -> None:
    data = mult()
    for part in data.values():
        part["labels"] = np.eye(width)[np.arange(len(part["id"])) % width]
    dataset = load_dataset(write_pickle(tmp_path / "meld.pkl", data))
    train = dataset.split("train")
    assert (train.scores, train.labels.tolist()) == (None, [i % width for i in range(12)])


def test_a_csd_folder_with_emotions_alone_asks_which(tmp_path: Path) -> None:
    spans = np.array([[0.0, 1.0], [1.0, 2.0]])
    emotions = {v: (np.array([[0, 3, 0, 1, 0, 0], [2, 0, 1, 0, 0, 3.0]]), spans) for v in "abc"}
    csd_file(
        tmp_path / "COVAREP.csd",
        "COVAREP",
        {v: (np.arange(6.0).reshape(2, 3), spans) for v in "abc"},
    )
    csd_file(tmp_path / "CMU_MOSEI_Emotions.csd", "Emotions", emotions)
    folds = tmp_path / "folds.json"
    folds.write_text('{"train": ["a"], "valid": ["b"], "test": ["c"]}')
    with pytest.raises(CorrKDError, match=r"choose with --label: Emotions\.happy"):
        load_dataset(tmp_path, folds=folds)
    assert load_dataset(tmp_path, folds=folds, label="sad").split("test").scores.tolist() == [3, 0]


def test_a_column_that_equals_the_label_by_chance_is_a_feature(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels, tags = rng.integers(0, 2, 100), rng.integers(0, 2, (100, 1000)).astype(float)
    split = np.repeat(["train", "valid", "test"], [80, 10, 10])
    tags[80:90, 7] = labels[80:90]
    np.savez(tmp_path / "set.npz", tags=tags, labels=labels, split=split)
    assert load_dataset(tmp_path / "set.npz").widths == {"tags": 1000}


def test_aliases_of_modalities() -> None:
    assert modality_names(["text", "acoustic", "visual"]) == {
        "text": "language",
        "acoustic": "audio",
        "visual": "vision",
    }
    assert modality_names(["text", "language"]) == {"text": "text", "language": "language"}


def test_columns_of_the_same_name_are_numbered() -> None:
    table = np.array([[1.5, 2.5, 3.5]])
    assert list(columns_of("y", table, ("a", "b", "a"))) == ["y.0", "y.1", "y.2"]
    assert list(columns_of("y", table, ("a", "b", "c"))) == ["y.a", "y.b", "y.c"]
