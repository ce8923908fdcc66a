"""What a service shows of a run, and its notes where something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import corrkd
from corrkd.errors import CorrKDError
from corrkd.experiment.exhibit import exhibit_of, truths
from corrkd.serve.predictor import Predictor
from corrkd.targets.registry import make_target
from tests.conftest import make_dataset
from tests.experiment.conftest import run_unreported, tiny, write_npz
from tests.serve.conftest import with_questions


@pytest.fixture(scope="module")
def on_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds on a file that a test moves away."""
    folder = tmp_path_factory.mktemp("exhibit")
    path = write_npz(folder / "mine.npz", {"language": 3, "audio": 2})
    run_unreported(tiny(data={"path": str(path), "synthetic": {}}, seeds=[0, 3]), folder / "run")
    return folder


def test_student_teacher_and_control_of_one_seed(on_file: Path) -> None:
    for path, seed in (
        (on_file / "run", 0),
        (on_file / "run" / "mine", 0),
        (on_file / "run" / "mine" / "seed-3", 3),
        (on_file / "run" / "mine" / "seed-3" / "student", 3),
        (on_file / "run" / "mine" / "seed-3" / "student" / "student.json", 3),
    ):
        exhibit, notes = exhibit_of(path)
        assert notes == []
        assert [p.saved.about["role"] for p in exhibit.predictors.values()] == [
            "student",
            "teacher",
            "control",
        ]
        assert {p.saved.about["seed"] for p in exhibit.predictors.values()} == {seed}
        assert exhibit.student is exhibit.predictors["student"]
        assert exhibit.name == "test"
        dataset = corrkd.load_dataset(on_file / "mine.npz")
        assert exhibit.listed("", 0, 100)[0] == len(dataset.split("test"))
        name, truth, read = exhibit.sample(2)
        assert name == dataset.split("test").ids[2]
        assert truth == str(dataset.split("test").labels[2])  # type: ignore[index]
        np.testing.assert_array_equal(read["audio"][0], dataset.split("test").frames["audio"][2])


def test_searching_is_by_id_and_label(on_file: Path) -> None:
    exhibit, _ = exhibit_of(on_file / "run")
    total, first = exhibit.listed("", 0, 4)
    assert [row["number"] for row in first] == [0, 1, 2, 3]
    assert exhibit.listed("", 4, 2)[1][0]["number"] == 4
    sample_id = first[2]["id"].upper()
    assert {row["id"] for row in exhibit.listed(sample_id, 0, 9)[1]} >= {first[2]["id"]}
    assert exhibit.listed("no such sample", 0, 9) == (0, [])
    for number in (-1, total):
        with pytest.raises(IndexError):
            exhibit.sample(number)


def test_samples_can_be_withheld(on_file: Path) -> None:
    exhibit, notes = exhibit_of(on_file / "run", samples=False)
    assert exhibit.listed("", 0, 9) == (0, [])
    assert (len(exhibit.predictors), notes) == (3, [])


def test_a_model_without_a_run_and_a_run_without_its_data(on_file: Path, tmp_path: Path) -> None:
    Predictor.from_pretrained(on_file / "run").save_pretrained(tmp_path / "model")
    exhibit, notes = exhibit_of(tmp_path / "model")
    assert list(exhibit.predictors) == ["student"]
    assert notes == ["without a run folder, the page has no teacher, control or samples to show"]
    (on_file / "mine.npz").rename(on_file / "gone.npz")
    try:
        exhibit, notes = exhibit_of(on_file / "run")
        assert list(exhibit.predictors) == ["student", "teacher", "control"]
        assert exhibit.listed("", 0, 9) == (0, [])
        assert len(notes) == 1
        assert notes[0].startswith("no samples to choose from: ")
        assert "no such file" in notes[0]
    finally:
        (on_file / "gone.npz").rename(on_file / "mine.npz")
    with pytest.raises(CorrKDError, match="no trained student there"):
        exhibit_of(tmp_path)


def test_labels_in_words() -> None:
    dataset = make_dataset()
    split = dataset.split("test")
    assert split.labels is not None
    assert split.scores is not None
    assert truths(split, make_target("classes", dataset)) == [str(label) for label in split.labels]
    assert truths(split, make_target("score", dataset)) == [
        f"{score:.2f}" for score in split.scores
    ]
    binary = truths(split, make_target("binary-nonzero", dataset))
    assert binary == ["negative" if score < 0 else "positive" for score in split.scores]
    with_answers = with_questions(dataset)
    labels = with_answers.split("test").labels
    assert labels is not None
    expected = [f"happy {'yes' if a else 'no'}, sad {'yes' if b else 'no'}" for a, b in labels]
    assert truths(with_answers.split("test"), make_target("questions", with_answers)) == expected
