"""The outputs of a seed's teachers are computed once, and a file of others is never used."""

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
from corrkd.experiment.teachers import committee_outputs
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
    """The outputs that were computed, not read."""
    outputs: list[TeacherOutputs] = []
    original = teachers.compute_committee_outputs

    def counted(*arguments: object) -> TeacherOutputs:
        outputs.append(original(*arguments))  # type: ignore[arg-type]
        return outputs[-1]

    monkeypatch.setattr(teachers, "compute_committee_outputs", counted)
    return outputs


def experiment_of(**teacher: object) -> Experiment:
    return prepare(load_settings(**tiny(teacher={**FOLDED, **teacher})))


def get_outputs(experiment: Experiment, folder: Path, seed: int = 0) -> TeacherOutputs:
    return committee_outputs(experiment, experiment.samples("train"), seed, folder)


def assert_equal(first: TeacherOutputs, second: TeacherOutputs) -> None:
    assert first.answered_by is not None
    assert second.answered_by is not None
    assert all(
        torch.equal(x, y)
        for x, y in zip(first, second, strict=True)
        if x is not None and y is not None
    )


def test_a_run_stores_outputs_that_are_read_bit_for_bit(
    folder: Path, computed: list[TeacherOutputs]
) -> None:
    experiment = experiment_of()
    stored = get_outputs(experiment, folder)
    assert not computed
    (folder / FILE).unlink()
    assert_equal(stored, get_outputs(experiment, folder))
    assert len(computed) == 1
    assert_equal(stored, get_outputs(experiment, folder))
    assert len(computed) == 1


@pytest.mark.parametrize("at", [3, 20, -2])
def test_a_damaged_file_is_rewritten(folder: Path, computed: list[TeacherOutputs], at: int) -> None:
    before = (folder / FILE).read_bytes()
    damaged = bytearray(before)
    damaged[at] ^= 1
    (folder / FILE).write_bytes(damaged)
    get_outputs(experiment_of(), folder)
    assert len(computed) == 1
    assert (folder / FILE).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0", b"not tensors at all"])
def test_a_file_of_another_kind_is_rewritten(
    folder: Path, computed: list[TeacherOutputs], content: bytes
) -> None:
    (folder / FILE).write_bytes(content)
    get_outputs(experiment_of(), folder)
    assert len(computed) == 1


def test_outputs_of_other_settings_seeds_or_data_are_not_used(
    folder: Path, computed: list[TeacherOutputs]
) -> None:
    get_outputs(experiment_of(temperature=2.0), folder)
    assert len(computed) == 1
    get_outputs(experiment_of(), folder, seed=1)  # other folds
    assert len(computed) == 2
    tree = tiny(teacher=FOLDED)
    tree["data"]["synthetic"]["noise"] = 0.4
    get_outputs(prepare(Settings.model_validate(tree)), folder)
    assert len(computed) == 3


def test_outputs_of_other_teachers_are_not_used(
    folder: Path, computed: list[TeacherOutputs]
) -> None:
    for ending in ("json", "safetensors"):
        shutil.copy(folder / f"teacher-0-1.{ending}", folder / f"teacher-0-0.{ending}")
    get_outputs(experiment_of(), folder)
    assert len(computed) == 1


def test_a_damaged_teacher_is_refused(folder: Path) -> None:
    damaged = bytearray((folder / "teacher-0-1.safetensors").read_bytes())
    damaged[-1] ^= 1
    (folder / "teacher-0-1.safetensors").write_bytes(damaged)
    with pytest.raises(CorrKDError, match=r"teacher-0-1\.safetensors: damaged: its SHA-256"):
        get_outputs(experiment_of(), folder)
