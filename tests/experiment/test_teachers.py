"""Several teachers: the samples that each is trained on, and their pooled outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

import corrkd
from corrkd.errors import CorrKDError
from corrkd.experiment.arm import TEACHER, Arm, resolve
from corrkd.experiment.card import arrangement, notes
from corrkd.experiment.experiment import Experiment, check_splits, prepare
from corrkd.experiment.plan import RUN_ARMS
from corrkd.experiment.run import resume
from corrkd.experiment.settings import load_settings
from corrkd.experiment.teachers import (
    Member,
    committee_outputs,
    members,
    others_arms,
    procrustes,
    rows_of,
)
from corrkd.networks.saved import load_network
from corrkd.targets.calibration import fit_temperature
from corrkd.targets.pooling import fit_log_pool, log_pool
from corrkd.training.loop import teacher_outputs
from tests.experiment.conftest import assert_same, contents, dataset_in, tiny, write_npz

OUT_OF_FOLD = {"folds": 3, "repeats": 2, "temperature": "fit", "epochs": 1}
MENDED = {
    "scd": {"form": "relations"},
    "cpd": {"form": "all", "parts": True},
    "rcd": {"form": "divergence"},
}


def people(path: Path) -> Path:
    """Write a dataset with 30 training samples of ten people."""
    person = np.array([f"p{i // 3}" for i in range(60)])
    return write_npz(path, {"language": 5, "audio": 3}, person=person)


def teachers_in(run: Path) -> Path:
    return dataset_in(run) / "seed-0" / TEACHER


def run_arms(experiment: Experiment, *names: str) -> list[Arm]:
    return [resolve(name, RUN_ARMS[name], experiment.settings) for name in names or RUN_ARMS]


def experiment_of(tmp_path: Path, **teacher: object) -> Experiment:
    tree = tiny(
        teacher=teacher, data={"path": str(people(tmp_path / "people.npz")), "synthetic": {}}
    )
    return prepare(load_settings(**tree))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    """A run of one seed with six teachers out of fold."""
    tmp = tmp_path_factory.mktemp("taught")
    tree = tiny(
        teacher=OUT_OF_FOLD, data={"path": str(people(tmp / "people.npz")), "synthetic": {}}
    )
    tree["student"] = {**tree["student"], "epochs": 2, "method": MENDED}
    corrkd.run(tree, tmp / "run", evaluate=False)
    return prepare(load_settings(**tree)), tmp / "run"


def test_no_teacher_is_used_for_people_it_was_trained_on(taught: tuple[Experiment, Path]) -> None:
    experiment, _ = taught
    samples = experiment.samples("train")
    person = experiment.dataset.split("train").groups["person"]
    divisions = []
    for repeat in range(2):
        answered = []
        for member in [m for m in members(experiment.settings.teacher) if m.repeat == repeat]:
            trained, answers_for = (
                rows.tolist() for rows in rows_of(member, experiment, samples, seed=0)
            )
            assert not set(person[trained]) & set(person[answers_for])
            assert sorted(trained + answers_for) == list(range(30))
            answered.append(answers_for)
        assert sorted(row for rows in answered for row in rows) == list(range(30))
        divisions.append(sorted(answered))
    assert divisions[0] != divisions[1]


def test_an_out_of_fold_teacher_is_trained_on_its_rows_alone(
    taught: tuple[Experiment, Path], tmp_path: Path
) -> None:
    """With other labels in one fold, its teacher is the same bit for bit, and the others of that
    repeat are not.
    """
    experiment, original = taught
    names = {m.name for m in members(experiment.settings.teacher)}
    assert names == {f"teacher-{repeat}-{fold}" for repeat in range(2) for fold in range(3)}
    samples = experiment.samples("train")
    rows = rows_of(Member(0, 1), experiment, samples, seed=0)[1].numpy()
    with np.load(str(experiment.settings.data.path)) as arrays:
        changed = dict(arrays)
    changed["labels"][rows] = (changed["labels"][rows] + 1) % 3  # the training split comes first
    np.savez(tmp_path / "people.npz", **changed)
    data = experiment.settings.data.model_copy(update={"path": str(tmp_path / "people.npz")})
    corrkd.run(
        experiment.settings.model_copy(update={"data": data}), tmp_path / "run", evaluate=False
    )
    same = {
        name: (teachers_in(original) / f"{name}.safetensors").read_bytes()
        == (teachers_in(tmp_path / "run") / f"{name}.safetensors").read_bytes()
        for name in ("teacher-0-0", "teacher-0-1", "teacher-0-2")
    }
    assert same == {"teacher-0-0": False, "teacher-0-1": True, "teacher-0-2": False}


def test_the_outputs_come_from_teachers_that_were_not_trained_on_the_person(
    taught: tuple[Experiment, Path],
) -> None:
    """Logits: the mean response. Representations: the first repeat's, rotated towards the teacher's
    axes.
    """
    experiment, folder = taught
    samples, folder = experiment.samples("train"), teachers_in(folder)
    pooled = committee_outputs(experiment, samples, 0, folder)
    target = teacher_outputs(load_network(folder / TEACHER).network, samples).representation
    responses = torch.zeros(2, 30, 3)
    answered_by = torch.zeros(30, dtype=torch.int64)
    for repeat in range(2):
        logits = torch.zeros(30, 3)
        for member in [m for m in members(experiment.settings.teacher) if m.repeat == repeat]:
            trained, rows = rows_of(member, experiment, samples, 0)
            output = teacher_outputs(load_network(folder / member.name).network, samples)
            logits[rows] = output.logits[rows]
            if repeat == 0:
                answered_by[rows] = member.fold or 0
                raw, rotated = output.representation[rows], pooled.representation[rows]
                torch.testing.assert_close(raw @ raw.T, rotated @ rotated.T, atol=1e-3, rtol=1e-3)
                rotation, _ = orthogonal_procrustes(
                    output.representation[trained].numpy(), target[trained].numpy()
                )
                torch.testing.assert_close(
                    rotated, raw @ torch.tensor(rotation), atol=1e-3, rtol=1e-3
                )
        responses[repeat] = (logits / fit_temperature(logits, samples.targets)).softmax(-1)
    mean = responses.mean(0).log()
    expected = mean / fit_temperature(mean, samples.targets)
    torch.testing.assert_close(
        pooled.logits.softmax(-1), expected.softmax(-1), atol=1e-5, rtol=1e-4
    )
    assert pooled.answered_by is not None
    assert torch.equal(pooled.answered_by, answered_by)


def test_procrustes_rotates_one_space_onto_another() -> None:
    random = torch.Generator().manual_seed(0)
    target = torch.randn(40, 6, generator=random)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=random))[0]
    torch.testing.assert_close(
        target @ turn.T @ procrustes(target @ turn.T, target), target, atol=1e-4, rtol=1e-4
    )
    rotation = procrustes(torch.randn(40, 6, generator=random), target)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(6), atol=1e-5, rtol=1e-5)


def test_a_single_teacher_is_used_as_it_is(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, epochs=1)
    assert [m.name for m in members(experiment.settings.teacher)] == [TEACHER]
    corrkd.run(experiment.settings, tmp_path / "run", evaluate=False)
    samples = experiment.samples("train")
    outputs = committee_outputs(experiment, samples, 0, teachers_in(tmp_path / "run"))
    alone = teacher_outputs(load_network(teachers_in(tmp_path / "run") / TEACHER).network, samples)
    assert torch.equal(outputs.logits, alone.logits)
    assert torch.equal(outputs.representation, alone.representation)
    assert outputs.answered_by is None


def test_repeats_include_the_teacher_and_a_fixed_temperature_divides_their_logits(
    tmp_path: Path,
) -> None:
    experiment = experiment_of(tmp_path, epochs=1, repeats=3, temperature=2.0)
    assert [m.name for m in members(experiment.settings.teacher)] == [
        TEACHER,
        "teacher-1",
        "teacher-2",
    ]
    corrkd.run(experiment.settings, tmp_path / "run", evaluate=False)
    folder, samples = teachers_in(tmp_path / "run"), experiment.samples("train")
    all_logits = [
        teacher_outputs(load_network(folder / m.name).network, samples).logits
        for m in members(experiment.settings.teacher)
    ]
    expected = torch.stack([(logits / 2).softmax(-1) for logits in all_logits]).mean(0)
    outputs = committee_outputs(experiment, samples, 0, folder)
    torch.testing.assert_close(outputs.logits.softmax(-1), expected, atol=1e-5, rtol=1e-4)


def test_a_killed_run_continues_with_the_remaining_teachers(
    taught: tuple[Experiment, Path], tmp_path: Path
) -> None:
    experiment, full = taught
    corrkd.run(experiment.settings, tmp_path / "run", evaluate=False)
    seed = dataset_in(tmp_path / "run") / "seed-0"
    for arm, name in (("teacher", "teacher-1-2"), ("student", "student")):
        for kind in ("json", "safetensors"):
            (seed / arm / f"{name}.{kind}").unlink()
        (seed / arm / "cost.json").unlink()
    resume(tmp_path / "run", evaluate=False)
    models = [contents(run, "people/seed-0/*/*.safetensors") for run in (full, tmp_path / "run")]
    assert_same(*models)


OTHERS = [
    {"network": {"name": "mlp", "width": 8}, "epochs": 2},
    {"network": "gru", "folds": None, "repeats": 2},
]


def test_teachers_of_other_networks_are_averaged_in(tmp_path: Path) -> None:
    """The teacher's network out of three folds, another likewise, and two of a third one."""
    experiment = experiment_of(tmp_path, epochs=1, folds=3, others=OTHERS)
    names = [m.name for m in members(experiment.settings.teacher)]
    assert names == [
        *(f"teacher-0-{fold}" for fold in range(3)),
        *(f"teacher-other1-0-{fold}" for fold in range(3)),
        "teacher-other2-0",
        "teacher-other2-1",
    ]
    corrkd.run(experiment.settings, tmp_path / "run", evaluate=False)
    folder, samples = teachers_in(tmp_path / "run"), experiment.samples("train")
    saved = {name: load_network(folder / name) for name in names}
    assert [saved[name].network.name for name in names] == ["corrkd"] * 3 + ["mlp"] * 3 + [
        "gru"
    ] * 2
    assert {len(saved[name].about["history"]) for name in names[3:6]} == {2}  # epochs
    assert {len(saved[name].about["history"]) for name in (*names[:3], *names[6:])} == {1}
    outputs = {name: teacher_outputs(saved[name].network, samples) for name in names}
    responses = []
    for network in (0, 1):
        logits = torch.zeros(30, 3)
        for member in [m for m in members(experiment.settings.teacher) if m.network == network]:
            rows = rows_of(member, experiment, samples, 0)[1]
            logits[rows] = outputs[member.name].logits[rows]
        responses.append(logits.softmax(-1))
    responses += [outputs[name].logits.softmax(-1) for name in names[6:]]
    pooled = committee_outputs(experiment, samples, 0, folder)
    torch.testing.assert_close(
        pooled.logits.softmax(-1), torch.stack(responses).mean(0), atol=1e-5, rtol=1e-4
    )
    alone = committee_outputs(experiment_of(tmp_path, epochs=1, folds=3), samples, 0, folder)
    assert torch.equal(pooled.representation, alone.representation)
    (note,) = [line for line in arrangement(experiment) if "committee" in line]
    assert (
        "committee of 8 teachers per seed: 3 with the teacher's network, each trained on all but "
        "one of 3 folds" in note
    )
    assert (
        "2 with network gru, each trained on all training samples. The 4 responses to each sample "
        "are averaged;" in note
    )


def test_weights_of_a_committee_are_fitted_out_of_fold(tmp_path: Path) -> None:
    """And the students are taught by the pooled response."""
    others = [{"network": "mlp", "epochs": 2}]
    changes = {"epochs": 1, "folds": 3, "temperature": "fit", "weights": "fit", "others": others}
    experiment = experiment_of(tmp_path, **changes)
    corrkd.run(experiment.settings, tmp_path / "run", evaluate=False)
    folder, samples = teachers_in(tmp_path / "run"), experiment.samples("train")
    logits = torch.zeros(2, 30, 3)
    for member in members(experiment.settings.teacher):
        rows = rows_of(member, experiment, samples, 0)[1]
        network = load_network(folder / member.name).network
        logits[member.network, rows] = teacher_outputs(network, samples).logits[rows]
    pooled = log_pool(logits, fit_log_pool(logits, samples.targets))
    result = committee_outputs(experiment, samples, 0, folder).logits
    torch.testing.assert_close(result.softmax(-1), pooled.softmax(-1), atol=1e-5, rtol=1e-4)
    (note,) = [line for line in arrangement(experiment) if "committee" in line]
    assert (
        "The 2 responses to each sample are weighted, with weights fitted to the training labels;"
        in note
    )


def test_fitted_weights_need_a_fitted_temperature() -> None:
    with pytest.raises(CorrKDError, match=r"weights = fit sets the temperature too"):
        load_settings(**tiny(teacher={"folds": 3, "weights": "fit"}))


def test_unset_settings_of_others_are_those_of_the_teacher(tmp_path: Path) -> None:
    """Also after the settings are written and read again."""
    changes = {"epochs": 7, "folds": 4, "repeats": 2, "others": OTHERS}
    settings = load_settings(**tiny(teacher=changes))
    assert settings.teacher.committee == [(4, 2), (4, 2), (None, 2)]
    teacher = resolve(TEACHER, RUN_ARMS[TEACHER], settings)
    mlp, gru = others_arms(teacher, settings.teacher)
    assert (mlp.training.epochs, gru.training.epochs) == (2, 7)
    assert mlp.training.lr == gru.training.lr == settings.teacher.lr
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    assert load_settings(tmp_path / "settings.yaml") == settings


@pytest.mark.parametrize(
    ("teacher", "line"),
    [
        ({"others": [{"epochs": 2}]}, r"teacher\.others\.0\.network: field required"),
        ({"others": [{"network": "nope"}]}, r"teacher\.others\.0\.network: .*nope"),
        ({"others": [{"network": "mlp", "eta": 2}]}, r"teacher\.others\.0\.eta: unknown key"),
        (
            {"keep": "last", "others": [{"network": "mlp", "patience": 2}]},
            r"others\.0: patience stops by",
        ),
        (
            {"folds": 2, "temperature": "fit", "others": [{"network": "mlp", "folds": None}]},
            "fit needs folds",
        ),
        (
            {"others": [{"network": "mlp", "folds": 11}]},
            r"teacher\.others\.0: folds = 11: there are 10 groups",
        ),
        ({"temperature": "fit"}, "temperature = fit needs folds"),
        ({"folds": 1}, r"teacher\.folds: .*greater than or equal to 2"),
        ({"temperature": 0.0}, r"teacher\.temperature"),
        (
            {"folds": 11},
            r"settings: teacher\.folds = 11: there are 10 groups of samples to divide; set it to "
            r"at most 10",
        ),
    ],
)
def test_invalid_teachers_are_one_line_errors(
    teacher: dict[str, object], line: str, tmp_path: Path
) -> None:
    def check() -> None:
        experiment = experiment_of(tmp_path, **teacher)
        check_splits(experiment, run_arms(experiment))

    with pytest.raises(CorrKDError, match=line) as error:
        check()
    assert "\n" not in str(error.value)


def test_no_epoch_is_selected_on_a_fold_that_is_tested(tmp_path: Path) -> None:
    data = {"path": str(people(tmp_path / "people.npz")), "synthetic": {}, "resample": {"folds": 2}}
    last = {"keep": "last"}
    tree = tiny(data=data, evaluation={"split": "valid"}, teacher=last, student=last)
    assert prepare(load_settings(**tree)).cross_validated
    line = "keep = best would choose an epoch on the fold that is judged"
    experiment = prepare(
        load_settings(**tiny(data=data, evaluation={"split": "valid"}, teacher=last))
    )
    with pytest.raises(CorrKDError, match=f"student: {line}"):
        check_splits(experiment, run_arms(experiment))
    # Nor does a teacher that is trained elsewhere.
    experiment = prepare(
        load_settings(**tiny(data=data, evaluation={"split": "valid"}, student=last))
    )
    with pytest.raises(CorrKDError, match=f"teacher: {line}"):
        check_splits(experiment, run_arms(experiment, "student"))
    experiment = prepare(load_settings(**tiny(data=data, evaluation={"split": "train"})))
    with pytest.raises(
        CorrKDError, match=r"evaluation\.split = train: with data\.resample every seed has another"
    ):
        check_splits(experiment, run_arms(experiment))


def test_a_seed_normalises_by_its_own_training_split_and_keeps_the_target(tmp_path: Path) -> None:
    data = {"path": str(people(tmp_path / "people.npz")), "synthetic": {}, "resample": {"folds": 5}}
    experiment = prepare(load_settings(**tiny(data=data)))
    first, second = experiment.at(0), experiment.at(1)
    assert first.target is second.target is experiment.target
    assert not np.array_equal(
        first.normalisation.center["audio"], second.normalisation.center["audio"]
    )
    assert len(first.samples("train")) + len(first.samples("valid")) == 45
    assert prepare(load_settings(**tiny())).at(3).dataset.name == "synthetic"


def test_the_notes_describe_teachers_and_splits(
    taught: tuple[Experiment, Path], tmp_path: Path
) -> None:
    experiment, _ = taught
    text = " ".join(notes(experiment, run_arms(experiment)))
    assert (
        "learn from 6 teachers per seed, each trained on all but one of 3 folds by person and "
        "used only for the samples of the fold left out" in text
    )
    assert "The 2 responses to each sample are averaged." in text
    assert "The teachers' temperature: fitted to the training labels." in text
    data = {"resample": {"folds": 5, "train": 10}}
    lines = arrangement(prepare(load_settings(**tiny(data=data, teacher={"repeats": 2}))))
    assert "Each seed draws its own 10 training samples." in lines
    assert any("seed s validates on fold s mod 5" in line for line in lines)
    assert any(
        "learn from 2 teachers per seed, each trained on all training samples" in line
        for line in lines
    )
    assert not arrangement(prepare(load_settings(**tiny())))


def test_the_card_describes_the_splits_of_the_first_seed(tmp_path: Path) -> None:
    data = {
        "path": str(people(tmp_path / "people.npz")),
        "synthetic": {},
        "resample": {"train": 12},
    }
    corrkd.run(
        tiny(data=data, teacher={"epochs": 1}, student={"epochs": 1, "batch_size": 20}),
        tmp_path / "run",
        evaluate=False,
    )
    card = json.loads((dataset_in(tmp_path / "run") / "run.json").read_text("utf-8"))
    assert card["dataset"]["splits"] == {"train": 12, "valid": 15, "test": 15}
    assert any(
        note.startswith("student.batch_size = 20 is more than the 12 training samples")
        for note in card["notes"]
    )
