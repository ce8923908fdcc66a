"""The outputs of a seed's teachers are computed once, and a file that is not theirs is never taken
for them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import corrkd
from corrkd.errors import CorrKDError
from corrkd.experiment import teachers
from corrkd.experiment.experiment import Experiment, prepare
from corrkd.experiment.kept_outputs import FILE
from corrkd.experiment.settings import Settings, load_settings
from corrkd.experiment.teachers import answers
from corrkd.methods.base import TeacherOutputs
from tests.experiment.conftest import dataset_in, tiny

FOLDED = {"folds": 2, "epochs": 1}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's folder of a run."""
    run = tmp_path_factory.mktemp("taught") / "run"
    corrkd.run(tiny(teacher=FOLDED), run, evaluate=False)
    return dataset_in(run) / "seed-0" / "teacher"


@pytest.fixture
def folder(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "teacher"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[TeacherOutputs]:
    """What was computed anew, each time."""
    made: list[TeacherOutputs] = []
    original = teachers.computed_answers

    def counted(*arguments: object) -> TeacherOutputs:
        made.append(original(*arguments))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(teachers, "computed_answers", counted)
    return made


def experiment_of(**teacher: object) -> Experiment:
    return prepare(load_settings(**tiny(teacher={**FOLDED, **teacher})))


def asked(experiment: Experiment, folder: Path, seed: int = 0) -> TeacherOutputs:
    return answers(experiment, experiment.samples("train"), seed, folder)


def assert_equal(one: TeacherOutputs, other: TeacherOutputs) -> None:
    assert one.answered_by is not None
    assert other.answered_by is not None
    assert all(
        torch.equal(x, y)
        for x, y in zip(one, other, strict=True)
        if x is not None and y is not None
    )


def test_a_run_leaves_them_and_they_are_read_to_the_bit(
    folder: Path, computed: list[TeacherOutputs]
) -> None:
    experiment = experiment_of()
    kept = asked(experiment, folder)
    assert not computed
    (folder / FILE).unlink()
    assert_equal(kept, asked(experiment, folder))
    assert len(computed) == 1
    assert_equal(kept, asked(experiment, folder))
    assert len(computed) == 1


@pytest.mark.parametrize("at", [3, 20, -2])
def test_a_damaged_file_is_written_anew(
    folder: Path, computed: list[TeacherOutputs], at: int
) -> None:
    before = (folder / FILE).read_bytes()
    damaged = bytearray(before)
    damaged[at] ^= 1
    (folder / FILE).write_bytes(damaged)
    asked(experiment_of(), folder)
    assert len(computed) == 1
    assert (folder / FILE).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0", b"not tensors at all"])
def test_a_file_of_something_else_is_written_anew(
    folder: Path, computed: list[TeacherOutputs], content: bytes
) -> None:
    (folder / FILE).write_bytes(content)
    asked(experiment_of(), folder)
    assert len(computed) == 1


def test_outputs_of_other_settings_seeds_or_data_are_not_taken(
    folder: Path, computed: list[TeacherOutputs]
) -> None:
    asked(experiment_of(temperature=2.0), folder)
    assert len(computed) == 1
    asked(experiment_of(), folder, seed=1)  # other folds
    assert len(computed) == 2
    tree = tiny(teacher=FOLDED)
    tree["data"]["synthetic"]["noise"] = 0.4
    asked(prepare(Settings.model_validate(tree)), folder)
    assert len(computed) == 3


def test_outputs_of_other_teachers_are_not_taken(
    folder: Path, computed: list[TeacherOutputs]
) -> None:
    for ending in ("json", "safetensors"):
        shutil.copy(folder / f"teacher-0-1.{ending}", folder / f"teacher-0-0.{ending}")
    asked(experiment_of(), folder)
    assert len(computed) == 1


def test_a_damaged_teacher_is_refused_as_ever(folder: Path) -> None:
    damaged = bytearray((folder / "teacher-0-1.safetensors").read_bytes())
    damaged[-1] ^= 1
    (folder / "teacher-0-1.safetensors").write_bytes(damaged)
    with pytest.raises(CorrKDError, match=r"teacher-0-1\.safetensors: damaged: its SHA-256"):
        asked(experiment_of(), folder)
