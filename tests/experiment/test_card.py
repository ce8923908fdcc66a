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


def test_what_is_written_is_what_is_read() -> None:
    part = load_plan(
        arms=["corrkd", "no-distillation"],
        budget="fixed",
        overrides=["data.synthetic={train: 40, valid: 20, test: 20}"],
    ).datasets["synthetic"]
    experiment = prepare(part.settings)
    card = run_card(experiment, part, arms_of(part), "none")
    assert Card.model_validate(card.model_dump(mode="json")) == card
    assert {m.name: m.kind for m in card.methods} == {
        "teacher": "control",
        "corrkd": "method",
        "no-distillation": "control",
    }
    with pytest.raises(ValidationError):
        card.reference = "teacher"
    with pytest.raises(CorrKDError, match=r"cannot be recorded in run\.json"):
        run_card(experiment, part, arms_of(part), "x" * 100_001)
