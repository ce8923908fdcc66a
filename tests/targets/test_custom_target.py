"""A user's target in a separate package: ordinal classes, with a loss, a metric and a field that
no built-in target has.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import corrkd
from corrkd.errors import CorrKDError
from corrkd.serve.model_card import model_card
from corrkd.settings import TARGET_GROUP
from corrkd.targets.base import LabelledSplit
from corrkd.targets.classes import ClassesTarget
from corrkd.targets.registry import target_from_json


@dataclass(frozen=True, kw_only=True)
class OrdinalTarget(ClassesTarget):
    """Classes in order. The loss is the squared distance of cumulative probabilities (Hou et al.,
    2016).
    """

    kind: ClassVar[str] = "ordinal"
    tabled_metrics: ClassVar[tuple[str, ...]] = (*ClassesTarget.tabled_metrics, "mae", "levels_off")

    levels: tuple[float, ...] = ()

    @classmethod
    def fit(cls, train: LabelledSplit, **names: Any) -> Self:
        target = super().fit(train, **names)
        return replace(target, levels=tuple(map(float, range(len(target.classes)))))

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (
            (logits.softmax(-1) - one_hot(targets, len(self.classes))).cumsum(-1).square().sum(-1)
        )

    def task_loss(
        self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        return self.losses(logits, targets).mean()

    def masked_task_loss(
        self, logits: Tensor, targets: Tensor, mask: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        return (self.losses(logits, targets) * mask).sum() / mask.sum().clamp(min=1)

    def measure_predictions(self, targets: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
        levels = np.asarray(self.levels)
        error = float(np.abs(levels[targets] - levels[predictions]).mean())
        worst = float(np.abs(levels[targets] - levels[predictions]).max())
        return {
            **super().measure_predictions(targets, predictions),
            "mae": error,
            "levels_off": worst,
        }


@pytest.fixture(scope="module")
def installed() -> Any:
    """Register the target as if its package were installed."""
    entry_point = metadata.EntryPoint("ordinal", f"{__name__}:OrdinalTarget", TARGET_GROUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            metadata,
            "entry_points",
            lambda **which: metadata.EntryPoints([entry_point]).select(**which),
        )
        yield


@pytest.fixture(scope="module")
def run(installed: None, tmp_path_factory: pytest.TempPathFactory) -> corrkd.Run:
    """Return a run on the target: teacher, student and control, calibrated, tested, reported."""
    stage = {"epochs": 4, "batch_size": 12, "lr": 0.02}
    settings = corrkd.load_settings(
        data={
            "target": "ordinal",
            "synthetic": {"train": 90, "valid": 45, "test": 45, "frames": 3, "noise": 0.3},
            "calibration": 0.3,
        },
        teacher={
            **stage,
            "network": {"width": 8, "heads": 2, "feedforward": 16, "layers": 1, "classifier": (8,)},
        },
        student=stage,
        evaluation={"draws": 1, "conditions": {"ratio": [0.0, 1.0], "burst": []}},
        device="cpu",
    )
    return corrkd.run(settings, tmp_path_factory.mktemp("ordinal") / "run")


def test_the_loss_trains_and_the_metric_is_measured_and_tabled(run: corrkd.Run) -> None:
    card = json.loads(
        (run.folder / "synthetic" / "seed-0" / "student" / "student.json").read_text("utf-8")
    )
    first, last = (card["about"]["history"][epoch]["loss/task"] for epoch in (0, -1))
    assert last < 0.9 * first < 0.9  # a cross-entropy of three classes begins at 1.1
    errors = run.results[run.results["metric"] == "mae"]
    assert set(errors["method"]) == {"majority", "teacher", "student", "control"}
    assert errors["value"].between(0.0, 2.0).all()
    assert (run.folder / "tables" / "inter-modality-mae.csv").is_file()


def test_a_custom_metric_is_shown_by_its_name(run: corrkd.Run) -> None:
    table = (run.folder / "tables" / "inter-modality-levels-off.csv").read_text("utf-8")
    assert ",2.0," in table
    page = (run.folder / "report.html").read_text("utf-8")
    rows = page[page.index("levels_off on the test split") :].split("</table>")[0]
    assert "<td>" in rows
    assert "<strong>" not in rows  # whether higher is better is unknown
    folder = run.folder / "synthetic" / "seed-0" / "student"
    complete, *_ = json.loads((folder / "student.json").read_text("utf-8"))["evaluated"][
        "conditions"
    ]
    assert {"mae", "levels_off"} <= set(complete["measured"])
    saved = corrkd.load_student(folder)
    text = model_card(saved, json.loads((folder / "student.json").read_text("utf-8")), None)
    assert re.search(
        r"\| condition \| Weighted F1 \| .* Mean absolute error \| levels\\?_off \|", text
    )


def test_a_saved_model_keeps_the_target(run: corrkd.Run) -> None:
    student = corrkd.load_student(run.folder)
    assert isinstance(student.target, OrdinalTarget)
    assert student.target.levels == (0.0, 1.0, 2.0)
    table = corrkd.evaluate(student, corrkd.load_dataset("synthetic"), conditions=["complete"])
    assert {"mae", "ece_calibrated", "coverage"} <= set(table["metric"])
    frames = torch.zeros(4, student.widths["language"]).numpy()
    prediction = corrkd.Predictor.from_pretrained(run.folder).predict({"language": frames})
    assert prediction.label in student.target.classes
    assert sum(prediction.probabilities.values()) == pytest.approx(1.0)


def test_fields_are_validated_by_type(installed: None) -> None:
    card = OrdinalTarget(name="ordinal", classes=("a", "b"), levels=(0.0, 1.0)).to_json()
    assert target_from_json(card).to_json() == card
    for wrong in ({"levels": ["low", "high"]}, {"levels": [0.0, float("inf")]}, {"more": 1}):
        with pytest.raises(CorrKDError, match=f"target.{next(iter(wrong))}"):
            target_from_json({**card, **wrong})


def test_an_uninstalled_target_is_unknown() -> None:
    card = OrdinalTarget(name="ordinal", classes=("a", "b")).to_json()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            metadata, "entry_points", lambda **which: metadata.EntryPoints([]).select(**which)
        )
        with pytest.raises(
            CorrKDError, match="unknown target 'ordinal'; available: classes, questions, score"
        ):
            target_from_json(card)
        with pytest.raises(
            CorrKDError, match=r"data.target: input should be 'auto', .* or 'sims-score'"
        ):
            corrkd.load_settings(data={"target": "ordinal"})
