"""Teachers from outside: their outputs by sample id, from a file or a function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

import corrkd
from corrkd.errors import CorrKDError
from corrkd.experiment import stages
from corrkd.experiment.experiment import prepare
from corrkd.experiment.plan import load_plan
from corrkd.experiment.run import resume
from corrkd.experiment.settings import Settings, load_settings
from corrkd.experiment.teacher_file import ask_teacher, read_teacher_file, write_teacher_file
from corrkd.experiment.teachers import committee_outputs
from tests.experiment.conftest import dataset_in, run_unreported, tiny, write_npz

KL = {"name": "kl", "kl": {"weight": 1.0}}


def data(tmp_path: Path) -> dict[str, Any]:
    """Return the settings of a dataset: 30 training samples of ten people, three classes."""
    path = tmp_path / "people.npz"
    if not path.exists():
        write_npz(
            path,
            {"language": 5, "audio": 3},
            person=np.array([f"p{i // 3}" for i in range(60)]),
            ids=np.array([f"clip-{i}" for i in range(60)]),
        )
    return {"path": str(path), "synthetic": {}}


def settings(tmp_path: Path, method: Any = KL, **changes: Any) -> Settings:
    tree = tiny(data=data(tmp_path), **changes)
    tree["student"] = {**tree["student"], "epochs": 1, "method": method}
    return load_settings(**tree)


def write(tmp_path: Path, count: int = 30, width: int | None = None, **changes: Any) -> Path:
    """Write random outputs for the first samples, in reverse order."""
    rng = np.random.default_rng(1)
    ids = [f"clip-{i}" for i in reversed(range(count))]
    arrays: dict[str, Any] = {
        "ids": np.array(ids),
        "logits": rng.normal(size=(count, 3)),
        **changes,
    }
    if width is not None:
        arrays["representation"] = rng.normal(size=(count, width))
    np.savez(tmp_path / "outputs.npz", **arrays)
    return tmp_path / "outputs.npz"


def test_outputs_are_looked_up_by_id(tmp_path: Path) -> None:
    path = write(tmp_path, count=40, width=7)  # ten more than there are training samples
    experiment = prepare(settings(tmp_path, teacher={"outputs": path, "temperature": 2.0}))
    samples = experiment.samples("train")
    outputs = committee_outputs(experiment, samples, 0, tmp_path / "no folder is needed")
    with np.load(path) as arrays:
        row = {name: index for index, name in enumerate(arrays["ids"])}
        rows = [row[name] for name in samples.ids]
        np.testing.assert_allclose(outputs.logits.numpy(), arrays["logits"][rows] / 2, rtol=1e-6)
        np.testing.assert_allclose(
            outputs.representation.numpy(), arrays["representation"][rows], rtol=1e-6
        )
    assert outputs.answered_by is None


def test_no_teacher_is_trained_and_the_student_learns_from_the_file(tmp_path: Path) -> None:
    done = corrkd.run(settings(tmp_path, teacher={"outputs": write(tmp_path)}), tmp_path / "run")
    folder = dataset_in(tmp_path / "run") / "seed-0"
    assert {path.name for path in folder.iterdir()} == {"student", "control"}
    assert {"student", "control"} <= set(done.average().index)
    assert "teacher" not in set(done.results["method"])
    note = "Students are taught by outputs from a file (SHA-256 "
    assert note in (tmp_path / "run" / "report.md").read_text("utf-8")

    def student(name: str) -> np.ndarray:
        tensors = load_file(
            dataset_in(tmp_path / name) / "seed-0" / "student" / "student.safetensors"
        )
        return np.concatenate([x.ravel() for x in tensors.values()])

    rng = np.random.default_rng(2)
    other = write(tmp_path, logits=rng.normal(size=(30, 3)))
    run_unreported(settings(tmp_path, teacher={"outputs": other}), tmp_path / "other")
    assert not np.array_equal(student("run"), student("other"))


def test_a_stack_of_seeds_learns_from_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits alone are stacked, too; a failing stack would silently be trained one by one."""
    sizes: list[int] = []
    train_together = stages.train_together

    def counted(runs: Sequence[Any], **options: Any) -> Any:
        trained = train_together(runs, **options)
        sizes.append(len(trained))
        return trained

    monkeypatch.setattr(stages, "train_together", counted)
    changes = {"teacher": {"outputs": write(tmp_path)}, "seeds": [0, 1], "precision": "64-true"}
    alone = run_unreported(settings(tmp_path, stack=1, **changes), tmp_path / "alone")
    together = run_unreported(settings(tmp_path, stack=2, **changes), tmp_path / "together")
    assert sizes == [2, 2]  # students, controls
    np.testing.assert_allclose(together.results["value"], alone.results["value"], atol=1e-6)


def test_losses_of_representations_need_them(tmp_path: Path) -> None:
    for method, loss in (
        ("feature-mse", "the squared error"),
        ("corrkd", "SCD"),
        ({"name": "corrkd", "scd": {"weight": 0.0}}, "CPD"),
        ("hrlf", "HMI, like HAL,"),
    ):
        with pytest.raises(
            CorrKDError, match=f"{loss} compares representations, and the teachers have none"
        ):
            corrkd.run(
                settings(tmp_path, method, teacher={"outputs": write(tmp_path)}), tmp_path / "run"
            )
    responses = {"name": "corrkd", "scd": {"weight": 0.0}, "cpd": {"weight": 0.0}}
    run_unreported(
        settings(tmp_path, responses, teacher={"outputs": write(tmp_path)}), tmp_path / "responses"
    )
    # Two modalities of width 8: representations of width 16.
    run_unreported(
        settings(tmp_path, "corrkd", teacher={"outputs": write(tmp_path, width=16)}),
        tmp_path / "all",
    )
    run_unreported(
        settings(tmp_path, "corrkd", teacher={"outputs": write(tmp_path, width=5)}),
        tmp_path / "projected",
    )


def test_outputs_replace_the_teacher_of_another_arm_only_for_the_student_of_a_run(
    tmp_path: Path,
) -> None:
    """The outputs are those of the run's teacher, which is HRLF's only if the run's student is."""
    outside = {"outputs": str(write(tmp_path))}
    tree = settings(tmp_path, "corrkd", teacher=outside).model_dump(mode="json")
    plan_file = {
        "datasets": {"people": {"settings": tree}},
        "arms": ["kl", "hrlf"],
        "budget": "fixed",
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan_file))
    with pytest.raises(
        CorrKDError,
        match=r"arms\.hrlf: is taught by hrlf-teacher, and the outputs in teacher\.outputs",
    ):
        load_plan(tmp_path / "plan.yaml")
    responses = {"name": "hrlf", "hmi": {"weight": 0.0}, "hal": {"weight": 0.0}}
    run_unreported(settings(tmp_path, responses, teacher=outside), tmp_path / "run")
    folder = dataset_in(tmp_path / "run") / "seed-0"
    assert {path.name for path in folder.iterdir()} == {"student", "control"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"count": 23},
            r"7 of 30 training samples have no outputs: 'clip-23', .*'clip-27', \.\.\.$",
        ),
        (
            {"logits": np.zeros((30, 4))},
            r"logits of one sample have the shape \[4\], but the target classes has \[3\]",
        ),
        ({"logits": np.zeros((29, 3))}, r"logits: expected numbers of 30 samples"),
        ({"logits": np.full((30, 3), np.nan)}, r"logits: holds numbers that are not finite"),
        ({"logits": np.full((30, 3), "x")}, r"logits: expected numbers"),
        (
            {"representation": np.zeros(30)},
            r"representation: expected \(N, D\), got the shape \[30\]",
        ),
        ({"ids": np.array(["clip-0"] * 30)}, r"ids: 'clip-0' appears twice"),
        ({"ids": np.zeros(30)}, r"ids: expected one text for each sample, got float64"),
        ({"ids": np.array([{}] * 30)}, r"ids.npy holds pickled objects"),
    ],
)
def test_a_mismatched_file_is_a_one_line_error(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(CorrKDError, match=line) as error:
        corrkd.run(settings(tmp_path, teacher={"outputs": path}), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "plan.yaml").exists()


def test_files_without_outputs_are_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(CorrKDError, match=r"teacher\.outputs: .*nowhere\.npz: no such file"):
        read_teacher_file(tmp_path / "nowhere.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    with pytest.raises(CorrKDError, match=r"text\.npz: a damaged \.npz file"):
        read_teacher_file(tmp_path / "text.npz")
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    with pytest.raises(CorrKDError, match=r"holds no arrays `ids` and `logits`; it has 'x'"):
        read_teacher_file(tmp_path / "x.npz")


def test_a_run_is_not_resumed_with_another_file(tmp_path: Path) -> None:
    run_unreported(settings(tmp_path, teacher={"outputs": write(tmp_path)}), tmp_path / "run")
    write(tmp_path, logits=np.ones((30, 3)))
    with pytest.raises(
        CorrKDError, match=r"the file of teacher\.outputs has changed since the run began"
    ):
        resume(tmp_path / "run")


def test_a_function_is_called_once_for_all_training_samples(tmp_path: Path) -> None:
    requests: list[Sequence[str]] = []

    def teacher(ids: Sequence[str]) -> torch.Tensor:
        requests.append(ids)
        return torch.tensor(
            [[float(name.split("-")[1]), 0.0, 1.0] for name in ids], requires_grad=True
        )

    path = ask_teacher(teacher, settings(tmp_path), tmp_path / "asked.npz")
    assert requests == [[f"clip-{i}" for i in range(30)]]
    experiment = prepare(settings(tmp_path, teacher={"outputs": path}))
    outputs = committee_outputs(experiment, experiment.samples("train"), 0, tmp_path)
    assert outputs.logits[:, 0].tolist() == list(range(30))
    ask_teacher(
        lambda ids: (np.ones((len(ids), 2)), np.zeros((len(ids), 3))), settings(tmp_path), path
    )
    representation = read_teacher_file(path).representation
    assert representation is not None
    assert representation.shape == (30, 2)
    with pytest.raises(CorrKDError, match="logits: expected numbers of 30 samples"):
        ask_teacher(lambda ids: np.zeros((3, 3)), settings(tmp_path), path)


def test_with_folds_a_seed_trains_on_valid_too(tmp_path: Path) -> None:
    resampled = {**data(tmp_path), "resample": {"folds": 3}}
    tree = tiny(data=resampled, teacher={"outputs": write(tmp_path)})
    with pytest.raises(CorrKDError, match="15 of 45 training samples have no outputs: 'clip-30'"):
        corrkd.run(tree, tmp_path / "run")
    tree["teacher"]["outputs"] = write(tmp_path, count=45)
    tree["student"] = {**tree["student"], "epochs": 1, "method": KL}
    run_unreported(tree, tmp_path / "run")


def test_a_score_may_have_one_axis(tmp_path: Path) -> None:
    tree = tiny(data={**data(tmp_path), "target": "score"})
    write_teacher_file(tmp_path / "scores.npz", [f"clip-{i}" for i in range(30)], np.arange(30))
    tree["teacher"]["outputs"] = tmp_path / "scores.npz"
    experiment = prepare(load_settings(**tree))
    outputs = committee_outputs(experiment, experiment.samples("train"), 0, tmp_path)
    assert outputs.logits.tolist() == [[float(i)] for i in range(30)]


@pytest.mark.usefixtures("no_report")
def test_a_comparison_trains_no_teacher_unless_it_names_one(tmp_path: Path) -> None:
    tree = settings(tmp_path, teacher={"outputs": str(write(tmp_path))}).model_dump(mode="json")
    plan_file = {
        "datasets": {"people": {"settings": tree}},
        "arms": ["kl", "no-distillation"],
        "budget": "fixed",
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan_file))
    plan = load_plan(tmp_path / "plan.yaml")
    assert set(plan.datasets["people"].arms) == {"kl", "no-distillation"}
    done = corrkd.compare(plan, tmp_path / "compared")
    assert not done.failures
    assert not any((tmp_path / "compared").rglob("teacher*"))
    plan_file["arms"] = ["teacher", "kl"]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan_file))
    assert not corrkd.compare(load_plan(tmp_path / "plan.yaml"), tmp_path / "named").failures
    files = {
        path.name
        for path in (tmp_path / "named" / "people" / "seed-0" / "teacher").glob("*.safetensors")
    }
    assert files == {"teacher.safetensors", "representations.safetensors"}
