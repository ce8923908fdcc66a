from __future__ import annotations

import pytest
from pydantic import ValidationError

from corrkd.errors import CorrKDError
from corrkd.experiment.card import run_card, selection_rules
from corrkd.experiment.experiment import prepare
from corrkd.experiment.plan import arms_of, load_plan
from corrkd.report.run_folder import Card


def test_every_rule_is_named_once() -> None:
    text = selection_rules(
        [("best on complete", "Teacher"), ("best", "CorrKD student"), ("best", "Control")]
    )
    assert text == "best on complete (Teacher); best (CorrKD student, Control)"


def test_a_card_is_read_back_and_checked() -> None:
    dataset_plan = load_plan(
        arms=["corrkd", "no-distillation"],
        budget="fixed",
        overrides=["data.synthetic={train: 40, valid: 20, test: 20}"],
    ).datasets["synthetic"]
    experiment = prepare(dataset_plan.settings)
    card = run_card(experiment, dataset_plan, arms_of(dataset_plan), "none")
    assert Card.model_validate(card.model_dump(mode="json")) == card
    assert {m.name: m.kind for m in card.methods} == {
        "teacher": "control",
        "corrkd": "method",
        "no-distillation": "control",
    }
    with pytest.raises(ValidationError):
        card.reference = "teacher"
    with pytest.raises(CorrKDError, match=r"cannot be recorded in run\.json"):
        run_card(experiment, dataset_plan, arms_of(dataset_plan), "x" * 100_001)
