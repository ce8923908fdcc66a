"""The rule for epochs: doubled until validation gains little, decided with one seed, written into
the plan.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from corrkd.errors import CorrKDError
from corrkd.experiment import budget as module
from corrkd.experiment.arm import Arm, resolve
from corrkd.experiment.budget import Budget, BudgetRule, choose_budget, read_budget
from corrkd.experiment.job import Job
from corrkd.experiment.plan import Plan, load_plan, read_plan
from corrkd.experiment.run import compare
from corrkd.experiment.settings import ArmSettings, load_settings
from corrkd.networks.saved import load_network
from corrkd.training.loop import VALID
from tests.experiment.conftest import tiny


def arm_of(epochs: int) -> Arm:
    arm = resolve("no-distillation", ArmSettings(), load_settings())
    return replace(arm, training=arm.training.model_copy(update={"epochs": epochs}))


class Trainer:
    """Write a training's files without training; the validation score depends on the budget."""

    def __init__(self, scores: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[int] = []
        self.scores = scores
        monkeypatch.setattr(
            module,
            "recorded",
            lambda stem, fact: json.loads(stem.with_suffix(".json").read_text())[fact],
        )

    def __call__(self, arm: Arm, folder: Path) -> None:
        card = folder / f"{arm.name}.json"
        if card.is_file():
            return
        self.ran.append(arm.training.epochs)
        (folder / "tfevents").mkdir(parents=True)
        (folder / f"{arm.name}.safetensors").write_text(str(arm.training.epochs))
        card.write_text(
            json.dumps({VALID: self.scores[arm.training.epochs], "epochs": arm.training.epochs})
        )


@pytest.mark.parametrize(
    ("scores", "epochs", "ran"),
    [
        ({4: 0.5, 8: 0.502}, 4, [4, 8]),  # 0.2 points are too little
        ({4: 0.5, 8: 0.504, 16: 0.6, 32: 0.59}, 16, [4, 8, 16, 32]),
        ({4: 0.5, 8: 0.6, 16: 0.7, 32: 0.8}, 32, [4, 8, 16, 32]),  # no further doubling is allowed
    ],
)
def test_a_budget_is_doubled_until_it_gains_little(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: dict[int, float],
    epochs: int,
    ran: list[int],
) -> None:
    train = Trainer(scores, monkeypatch)
    budget = choose_budget(arm_of(4), BudgetRule(gain=0.3, doublings=3), 7, tmp_path, train)
    assert (budget.epochs, budget.seed, budget.scores) == (epochs, 7, scores)
    assert train.ran == ran
    # The chosen training is kept, and nothing of the others.
    assert json.loads((tmp_path / "no-distillation.json").read_text())["epochs"] == epochs
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "budget.json",
        "no-distillation.json",
        "no-distillation.safetensors",
        "tfevents",
    ]
    assert read_budget(tmp_path) == budget


def test_an_interrupted_choice_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = Trainer({4: 0.5, 8: 0.6, 16: 0.6}, monkeypatch)
    train(arm_of(4), tmp_path / "epochs-4")
    train(arm_of(8), tmp_path / "epochs-8")
    train.ran.clear()
    assert choose_budget(arm_of(4), BudgetRule(), 0, tmp_path, train).epochs == 8
    assert train.ran == [16]
    # Stopped between the choice and the move of its files.
    for name in ("no-distillation.json", "no-distillation.safetensors"):
        (tmp_path / "epochs-8").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "epochs-8" / name)
    train.ran.clear()
    assert choose_budget(arm_of(4), BudgetRule(), 0, tmp_path, train).epochs == 8
    assert train.ran == []
    assert (tmp_path / "no-distillation.json").is_file()


def test_a_damaged_choice_is_a_one_line_error(tmp_path: Path) -> None:
    assert read_budget(tmp_path) is None
    (tmp_path / "budget.json").write_text("{}")
    with pytest.raises(CorrKDError, match="delete the folder to choose the budget again"):
        read_budget(tmp_path)


def plan_file(tmp_path: Path, **more: Any) -> Path:
    settings = {key: value for key, value in tiny().items() if key != "seeds"}
    settings["student"] = {**settings["student"], "epochs": 1}
    settings["teacher"] = {**settings["teacher"], "epochs": 1}
    tree = {"datasets": {"built-in": {"settings": settings}}, "arms": ["kl"], "seeds": 2, **more}
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps(tree))
    return path


def test_all_seeds_train_for_the_first_seeds_choice_which_the_plan_records(
    tmp_path: Path, jobs_run: list[Job]
) -> None:
    plan = load_plan(plan_file(tmp_path, budget={"gain": 0.0, "doublings": 2}))
    out = tmp_path / "out"
    assert not compare(plan, out).failures
    choices = read_plan(out).datasets["built-in"].epochs
    assert set(choices) == {"teacher", "kl"}
    for arm, epochs in choices.items():
        assert read_budget(out / "built-in" / "seed-0" / arm) is not None
        assert read_budget(out / "built-in" / "seed-1" / arm) is None
        for seed in (0, 1):
            about = load_network(out / "built-in" / f"seed-{seed}" / arm / arm).about
            assert len(about["history"]) == epochs
    stated = json.loads((out / "built-in" / "run.json").read_text())["protocol"]
    line = next(line for line in stated if line.startswith("Epochs"))
    assert line.startswith(
        f"Epochs: {choices['kl']} for all methods; the teacher: {choices['teacher']}. Where"
    )
    assert "less than 0 points (seed 0 decides; at most 2 doublings)" in line
    # The folder's plan chooses nothing again: one training for each run.
    again = load_plan(out / "plan.yaml")
    assert again.datasets["built-in"].epochs == choices
    jobs_run.clear()
    done = compare(again, tmp_path / "again")
    assert not any((tmp_path / "again").rglob("budget.json"))
    assert done.results.equals(compare(plan, out).results)


def test_teachers_run_first_and_deciding_seeds_before_the_others(
    tmp_path: Path, jobs_run: list[Job]
) -> None:
    compare(load_plan(plan_file(tmp_path, budget={"gain": 100.0})), tmp_path / "out")
    assert [(job.arm, job.seed, job.chooses_budget) for job in jobs_run] == [
        ("teacher", 0, True),
        ("teacher", 1, False),
        ("kl", 0, True),
        ("kl", 1, False),
    ]


def with_changes(plan: Plan, **changes: Any) -> Plan:
    dataset_plan = plan.datasets["built-in"].model_copy(update=changes)
    return plan.model_copy(update={"datasets": {"built-in": dataset_plan}})


def with_seeds(plan: Plan, *seeds: int) -> Plan:
    return with_changes(
        plan, settings=plan.datasets["built-in"].settings.model_copy(update={"seeds": seeds})
    )


@pytest.mark.parametrize(
    ("budget", "first", "second", "message"),
    [
        ({"gain": 100.0}, {}, {"kl": 9}, "epochs was 1, is 9"),
        ("fixed", {}, {"kl": 9}, "epochs was 1, is 9"),
        ("fixed", {"kl": 2}, {}, "epochs was 2, is 1"),
    ],
)
def test_seeds_of_an_arm_with_different_epochs_are_refused(
    tmp_path: Path,
    jobs_run: list[Job],
    budget: Any,
    first: dict[str, int],
    second: dict[str, int],
    message: str,
) -> None:
    plan = load_plan(plan_file(tmp_path, budget=budget, seeds=1))
    compare(with_changes(plan, epochs=first), tmp_path / "out")
    with pytest.raises(CorrKDError, match=message):
        compare(with_changes(plan, epochs=second), tmp_path / "out")


def test_a_choice_is_kept_when_seeds_are_added(tmp_path: Path, jobs_run: list[Job]) -> None:
    """Also with another first seed, or without the deciding one."""
    plan = load_plan(plan_file(tmp_path, budget={"gain": 0.0, "doublings": 1}))
    out = tmp_path / "out"
    compare(with_seeds(plan, 1, 0), out)
    epochs = read_plan(out).datasets["built-in"].epochs
    for seeds in ((0, 1, 2), (2, 3)):
        assert not compare(with_seeds(plan, *seeds), out).failures
        assert read_plan(out).datasets["built-in"].epochs == epochs
    for seed in range(4):
        folder = out / "built-in" / f"seed-{seed}"
        assert {a: len(load_network(folder / a / a).about["history"]) for a in epochs} == epochs


def test_epochs_are_kept_when_the_plan_no_longer_names_them(
    tmp_path: Path, jobs_run: list[Job]
) -> None:
    plan = load_plan(plan_file(tmp_path, budget={"gain": 100.0}, seeds=1))
    compare(with_changes(plan, epochs={"kl": 2}), tmp_path / "out")
    assert not compare(with_seeds(plan, 0, 1), tmp_path / "out").failures
    assert (
        len(load_network(tmp_path / "out" / "built-in" / "seed-1" / "kl" / "kl").about["history"])
        == 2
    )


def test_if_a_longer_budget_fails_the_shorter_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Trainer({4: 0.5, 8: 0.6}, monkeypatch)

    def diverging(arm: Arm, folder: Path) -> None:
        if arm.training.epochs > 8:
            raise CorrKDError("the loss is no longer finite")
        train(arm, folder)

    assert choose_budget(arm_of(4), BudgetRule(), 0, tmp_path, diverging).epochs == 8
    with pytest.raises(CorrKDError, match="no longer finite"):
        choose_budget(arm_of(16), BudgetRule(), 0, tmp_path / "other", diverging)


def test_the_command_lines_rule_overrides_the_files(tmp_path: Path, jobs_run: list[Job]) -> None:
    compare(load_plan(plan_file(tmp_path, budget={"gain": 100.0}, seeds=1)), tmp_path / "out")
    assert (
        load_plan(tmp_path / "out" / "plan.yaml", budget="fixed").datasets["built-in"].budget
        is None
    )


def test_epochs_of_an_unknown_arm_are_refused(tmp_path: Path) -> None:
    tree = json.loads(plan_file(tmp_path).read_text())
    tree["datasets"]["built-in"]["epochs"] = {"kI": 3}
    (tmp_path / "plan.yaml").write_text(json.dumps(tree))
    with pytest.raises(CorrKDError, match=r"epochs\.kI: is not among the plan's arms"):
        load_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"budget": "half"}, "expected doubling, fixed, or"),
        ({"budget": {"gain": -1}}, "budget: gain"),
        ({"budget": {"points": 1}}, "points: unknown key; allowed: gain, doublings"),
    ],
)
def test_an_invalid_rule_is_a_one_line_error(
    tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(CorrKDError, match=message):
        load_plan(plan_file(tmp_path, **more))


def test_a_rule_is_the_default_but_refused_when_testing_on_validation(tmp_path: Path) -> None:
    path = plan_file(tmp_path)
    assert load_plan(path).datasets["built-in"].budget == BudgetRule()
    assert load_plan(path, budget="fixed").datasets["built-in"].budget is None
    assert load_plan(plan_file(tmp_path, budget=None)).datasets["built-in"].budget is None
    tree = yaml.safe_load(path.read_text())
    tree["datasets"]["built-in"]["settings"]["evaluation"]["split"] = "valid"
    tree["budget"] = "doubling"
    path.write_text(json.dumps(tree))
    with pytest.raises(
        CorrKDError, match=r"validation split, by which budgets are chosen; set budget: fixed"
    ):
        load_plan(path)


def test_a_budget_survives_json() -> None:
    budget = Budget(epochs=8, scores={4: 0.5, 8: 0.6}, seed=3)
    assert Budget.model_validate_json(budget.model_dump_json()) == budget
