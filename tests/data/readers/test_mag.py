from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corrkd.data.load import load_dataset
from corrkd.data.readers.glove import read_glove
from corrkd.errors import CorrKDError

from .samples import COUNTS, glove, mag, write_pickle

VECTORS = {"good": [1, 0, 0, 0.5], "bad": [0, 1, 0, 0.5], "Film": [0, 0, 1, 0.5]}


@pytest.mark.parametrize("words", ["strings", "misa"])
def test_words_become_vectors(tmp_path: Path, words: str) -> None:
    data = mag(words)
    dataset = load_dataset(
        write_pickle(tmp_path / "mosi.pkl", data), glove=glove(tmp_path / "glove.txt")
    )
    assert dataset.layout == "MAG"
    assert tuple(dataset.splits) == ("train", "valid", "test")
    assert any("no vector in glove.txt" in note for note in dataset.notes)
    for split, count in COUNTS.items():
        part, source = dataset.split(split), data["dev" if split == "valid" else split]
        assert len(part) == count
        for row, ((language, visual, acoustic, *raw), label, segment) in enumerate(source):
            sentence = raw[0] if raw else language
            n = len(sentence)
            assert {m: x[row] for m, x in part.lengths.items()} == dict.fromkeys(part.frames, n)
            np.testing.assert_array_equal(
                part.frames["language"][row, :n], [VECTORS.get(w, [0] * 4) for w in sentence]
            )
            assert part.present["language"][row, :n].tolist() == [w in VECTORS for w in sentence]
            np.testing.assert_array_equal(part.frames["vision"][row, :n], visual.astype(np.float32))
            np.testing.assert_array_equal(
                part.frames["audio"][row, :n], acoustic.astype(np.float32)
            )
            assert part.scores[row] == label[0, 0]
            assert part.ids[row] == segment
        assert part.groups["video"][0] == source[0][2].split("[")[0]
        assert part.order[1] == 1


def test_vectors_need_no_glove(tmp_path: Path) -> None:
    data = mag("vectors")
    train = load_dataset(write_pickle(tmp_path / "mosi.pkl", data)).split("train")
    first = data["train"][0][0][0].astype(np.float32)
    np.testing.assert_array_equal(train.frames["language"][0, : len(first)], first)


@pytest.mark.parametrize("words", ["strings", "misa"])
def test_words_without_glove_say_what_to_pass(tmp_path: Path, words: str) -> None:
    with pytest.raises(CorrKDError, match="pass --glove FILE"):
        load_dataset(write_pickle(tmp_path / "mosi.pkl", mag(words)))


def test_word_ids_without_words(tmp_path: Path) -> None:
    with pytest.raises(CorrKDError, match=r"word ids.*--glove FILE"):
        load_dataset(
            write_pickle(tmp_path / "mosi.pkl", mag("ids")), glove=glove(tmp_path / "glove.txt")
        )


def test_glove_reads_only_what_is_needed_and_tokens_with_spaces(tmp_path: Path) -> None:
    vectors = read_glove(glove(tmp_path / "glove.txt"), ["Film", "at name@domain.com", "unknown"])
    assert {word: v.tolist() for word, v in vectors.items()} == {
        "Film": [0, 0, 1, 0.5],
        "at name@domain.com": [9] * 4,
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("good 1 2 3\nbad 1 two 3\n", "line 2 is not a word and 3 numbers"),
        ("good 1 2 3\nbad 1\n", "line 2 is not a word"),
        ("", "has none of the 2 words"),
        ("other 1 2 3\n", "has none of the 2 words"),
    ],
)
def test_a_bad_glove_file_is_one_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "glove.txt"
    path.write_text(content)
    with pytest.raises(CorrKDError, match=words):
        read_glove(path, ["good", "bad"])
    with pytest.raises(CorrKDError, match="no such file"):
        read_glove(tmp_path / "none.txt", ["good"])


def test_mosei_labels_of_seven_columns(tmp_path: Path) -> None:
    data = mag("vectors")
    for split, part in data.items():
        data[split] = [
            (x, np.array([[y[0, 0], i % 3, 0, 0, 0, 0, i % 2]]), s)
            for i, (x, y, s) in enumerate(part)
        ]
    path = write_pickle(tmp_path / "mosei.pkl", data)
    dataset = load_dataset(path)
    assert dataset.split("train").scores.tolist() == [y[0, 0] for _, y, _ in data["train"]]
    assert any(
        "label.sentiment, label.happy" in note and "choose with --label" in note
        for note in dataset.notes
    )
    happy = load_dataset(path, label="happy").split("train")
    assert (happy.scores.tolist(), happy.labels) == ([i % 3 for i in range(12)], None)
    asked = load_dataset(path, label="happy,fear")
    assert asked.question_names == ("happy", "fear")
    assert asked.split("test").labels.tolist() == [[int(i % 3 > 0), i % 2] for i in range(6)]
    very = load_dataset(path, label="questions:happy@1")
    assert very.class_names == ("no", "yes")
    assert very.split("train").labels.tolist() == [int(i % 3 > 1) for i in range(12)]


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ((("a", "b"), [1], "s"), "a sample is not"),
        (((np.ones((2, 4)), np.ones((2, 2)), np.ones((2, 9))), [1.0], "s"), "different widths"),
        (((np.ones((2, 4)), np.ones(2), np.ones((2, 3))), [1.0], "s"), "expected .frames, width"),
        (((np.ones((2, 4)), np.ones((2, 2)), np.ones((2, 3))), [], "s"), "no label"),
        (((np.ones((2, 4)), np.ones((2, 2)), np.ones((2, 3))), "x", "s"), "not numbers"),
    ],
)
def test_a_damaged_sample_is_one_line(tmp_path: Path, sample, words: str) -> None:
    data = mag("vectors")
    data["train"][3] = sample
    with pytest.raises(CorrKDError, match=words):
        load_dataset(write_pickle(tmp_path / "mosi.pkl", data))


def test_an_empty_split_is_left_out_with_a_note(tmp_path: Path) -> None:
    data = mag("vectors")
    data["test"] = []
    dataset = load_dataset(write_pickle(tmp_path / "mosi.pkl", data), targets=False)
    assert tuple(dataset.splits) == ("train", "valid")
    assert "left out: test, an empty list" in dataset.notes


def test_of_several_columns_that_are_not_moseis_one_is_chosen(tmp_path: Path) -> None:
    data = mag("vectors")
    for split, part in data.items():
        data[split] = [
            (features, np.array([[2.0, -1.5, 4.0]]), segment) for features, _, segment in part
        ]
    path = write_pickle(tmp_path / "set.pkl", data)
    with pytest.raises(
        CorrKDError, match=r"several label columns; choose with --label: label.0, label.1, label.2"
    ):
        load_dataset(path)
    assert (load_dataset(path, label="1").split("train").scores == -1.5).all()
