"""A method with a teacher of another kind beside methods that share the run's: HRLF in a
comparison, in a run and out of fold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from corrkd.csv_files import read_csv
from corrkd.experiment.experiment import prepare
from corrkd.experiment.kept_outputs import FILE
from corrkd.experiment.plan import load_plan, plan_of_run
from corrkd.experiment.run import Run, compare
from corrkd.experiment.settings import load_settings
from corrkd.experiment.stages import HISTORY
from corrkd.experiment.teachers import committee_outputs, members, rows_of
from corrkd.networks.saved import load_network
from corrkd.training.loop import teacher_outputs
from tests.experiment.conftest import run_unreported, tiny

ARMS = ["hrlf", "kl", "no-distillation"]
SMALL = {
    "name": "hrlf",
    "width": 8,
    "heads": 2,
    "layers": 1,
    "feedforward": 8,
    "classifier": [4],
    "factor_hidden": 4,
}


def small(**changes: Any) -> dict[str, Any]:
    """The tiny settings with HRLF's teacher and student."""
    teacher = {"network": SMALL, **changes.pop("teacher", {})}
    return tiny(teacher=teacher, student={"method": "hrlf"}, evaluation={"draws": 1}, **changes)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("hrlf") / "out"
    plan = load_plan(arms=ARMS, seeds=[0], budget="fixed", overrides=_overrides())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("corrkd.experiment.run.write_report", lambda out: out)
        return folder, compare(plan, folder)


def _overrides() -> list[str]:
    settings = tiny()
    lines = [
        f"data.synthetic={settings['data']['synthetic']}",
        "student.epochs=1",
        "teacher.epochs=1",
    ]
    return [*lines, "evaluation={draws: 1, conditions: {ratio: [], burst: []}}"]


def test_the_teachers_that_are_needed_join_the_plan(compared: tuple[Path, Run]) -> None:
    folder, done = compared
    assert not done.failures
    assert set(done.average().index) >= {"hrlf-teacher", "teacher", *ARMS}
    seed = folder / "synthetic" / "seed-0"
    assert load_network(seed / "teacher" / "teacher").network.name == "corrkd"
    assert load_network(seed / "hrlf-teacher" / "hrlf-teacher").network.name == "hrlf"
    losses = {
        name: {c for c in read_csv(seed / name / HISTORY) if c.startswith("loss/")}
        for name in ("hrlf", "kl")
    }
    assert losses["hrlf"] == {
        f"loss/{name}" for name in ("total", "task", "frf", "hmi", "hal", "kl")
    }
    assert losses["kl"] == {"loss/total", "loss/task", "loss/kl"}


def test_the_outputs_of_each_kind_of_teacher_are_in_its_folder(compared: tuple[Path, Run]) -> None:
    seed = compared[0] / "synthetic" / "seed-0"
    assert {path.parent.name for path in seed.rglob(FILE)} == {"teacher", "hrlf-teacher"}


def test_a_committee_belongs_to_the_teaching_arm(tmp_path: Path) -> None:
    """Files are named after `hrlf-teacher`, not the run's teacher, also for folds and others."""
    others = {"teacher.folds": 2, "teacher.others": f"[{{network: {SMALL}, epochs: 2}}]"}
    overrides = [*_overrides(), *(f"{key}={value}" for key, value in others.items())]
    run = load_plan(
        arms=["hrlf", "no-distillation"], seeds=[0], budget="fixed", overrides=overrides
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("corrkd.experiment.run.write_report", lambda out: out)
        assert not compare(run, tmp_path / "out").failures
    seed = tmp_path / "out" / "synthetic" / "seed-0"
    assert {path.name for path in seed.iterdir()} == {"hrlf-teacher", "hrlf", "no-distillation"}
    names = [
        "hrlf-teacher-0-0",
        "hrlf-teacher-0-1",
        "hrlf-teacher-other1-0-0",
        "hrlf-teacher-other1-0-1",
    ]
    settings = run.datasets["synthetic"].settings
    assert [member.name for member in members(settings.teacher, "hrlf-teacher")] == names
    teachers = [load_network(seed / "hrlf-teacher" / name) for name in names]
    assert [len(teacher.about["history"]) for teacher in teachers] == [1, 1, 2, 2]
    samples = prepare(settings).at(0).samples("train")
    outputs = committee_outputs(
        prepare(settings).at(0), samples, 0, seed / "hrlf-teacher", "hrlf-teacher"
    )
    responses = [torch.zeros_like(outputs.logits) for _ in range(2)]
    for member, teacher in zip(members(settings.teacher, "hrlf-teacher"), teachers, strict=True):
        rows = rows_of(member, prepare(settings).at(0), samples, 0)[1]
        responses[member.network][rows] = (
            teacher_outputs(teacher.network, samples).logits[rows].softmax(-1)
        )
    torch.testing.assert_close(
        outputs.logits.softmax(-1), torch.stack(responses).mean(0), atol=1e-5, rtol=1e-4
    )


def test_a_plan_names_no_teacher_twice() -> None:
    plan = load_plan(arms=["hrlf", "hrlf-teacher", "corrkd"])
    assert list(plan.datasets["synthetic"].arms) == ["teacher", "hrlf", "hrlf-teacher", "corrkd"]
    assert list(load_plan(arms=["hrlf"]).datasets["synthetic"].arms) == ["hrlf-teacher", "hrlf"]


def test_a_runs_teacher_is_trained_for_its_student(tmp_path: Path) -> None:
    settings = load_settings(**small())
    assert list(plan_of_run(settings).datasets["synthetic"].arms) == [
        "teacher",
        "student",
        "control",
    ]
    done = run_unreported(settings, tmp_path / "run")
    seed = tmp_path / "run" / "synthetic" / "seed-0"
    networks = [load_network(seed / arm / arm).network for arm in ("teacher", "student", "control")]
    assert [n.name for n in networks] == ["hrlf"] * 3
    assert networks[0].settings == networks[1].settings == networks[2].settings
    assert "loss/frf" in read_csv(seed / "teacher" / HISTORY)
    assert "loss/frf" not in read_csv(seed / "control" / HISTORY)
    assert done.results["value"].notna().all()


def test_out_of_fold_each_scale_is_rotated_by_itself(tmp_path: Path) -> None:
    settings = load_settings(**small(teacher={"folds": 2}))
    run_unreported(settings, tmp_path / "run")
    experiment = prepare(settings).at(0)
    samples, folder = (
        experiment.samples("train"),
        tmp_path / "run" / "synthetic" / "seed-0" / "teacher",
    )
    outputs = committee_outputs(experiment, samples, 0, folder)
    for member in members(settings.teacher):
        network = load_network(folder / member.name).network
        output = teacher_outputs(network, samples).representation
        rows = rows_of(member, experiment, samples, 0)[1]
        for raw, rotated in zip(
            output[rows].split(network.scales, 1),
            outputs.representation[rows].split(network.scales, 1),
            strict=True,
        ):
            torch.testing.assert_close(raw @ raw.T, rotated @ rotated.T, atol=1e-3, rtol=1e-3)
