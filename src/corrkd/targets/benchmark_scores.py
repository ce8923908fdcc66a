"""Scores of the public sentiment benchmarks, with the metrics of their published tables
(docs/metrics.md).

The conventions are those of MMSA's evaluation (Mao et al., ACL 2022 demonstrations;
github.com/thuiar/MMSA).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from corrkd.errors import CorrKDError
from corrkd.targets.base import Array, LabelledSplit, scores_of
from corrkd.targets.classes import score_classes
from corrkd.targets.measures import F1, accuracy, weighted_f1
from corrkd.targets.score import ScoreTarget


@dataclass(frozen=True, kw_only=True)
class BenchmarkScoreTarget(ScoreTarget):
    """A score with both signs, on a scale from -bound to bound.

    Attributes:
        bound: upper end of the annotation scale (class attribute).
    """

    bound: ClassVar[float]

    @classmethod
    def fit(
        cls,
        train: LabelledSplit,
        *,
        where: str,
        class_names: Sequence[str] = (),
        question_names: Sequence[str] = (),
    ) -> Self:
        """Return the target of the scores.

        Raises:
            CorrKDError: if the split has no scores, only scores of one sign, or scores beyond the
                scale.
        """
        scores = scores_of(train, where, cls.kind)
        low, high = float(scores.min()), float(scores.max())
        if not -cls.bound <= low < 0 < high <= cls.bound:
            raise CorrKDError(
                f"{where}: scores run from {low:g} to {high:g}, but target `{cls.kind}` is for "
                f"scores of both signs from {-cls.bound:g} to {cls.bound:g}; use `score`"
            )
        return cls.signed()

    def check(self) -> None:
        """Raise CorrKDError if any field differs from `signed()`."""
        self.refuse_unless(self.to_json() == type(self).signed().to_json())


@dataclass(frozen=True, kw_only=True)
class MosiScoreTarget(BenchmarkScoreTarget):
    """The score of CMU-MOSI and CMU-MOSEI, from -3 to 3."""

    kind: ClassVar[str] = "mosi-score"
    bound: ClassVar[float] = 3.0
    summary_metrics: ClassVar[tuple[str, ...]] = (
        "acc2_has_zero",
        "weighted_f1_has_zero",
        "acc2_nonzero",
        "weighted_f1_nonzero",
        "acc3",
        "acc5",
        "acc7",
        "mae",
        "corr",
    )

    def measure_predictions(self, targets: Array, predictions: Array) -> dict[str, float]:
        """Return the metrics of any score, of both binary rules, and acc3, acc5 and acc7 of the
        rounded scores.

        Args:
            targets: (N,) scores.
            predictions: (N,) scores.

        Returns:
            Fractions from 0 to 1, except mae and corr. Metrics of the non-zero rule are nan if all
            targets are 0.
        """
        nonzero = targets != 0
        return {
            **super().measure_predictions(targets, predictions),
            **_binary_metrics("has_zero", "binary-has-zero", targets, predictions),
            **_binary_metrics("nonzero", "binary-nonzero", targets[nonzero], predictions[nonzero]),
            "acc3": _class_accuracy("ternary", targets, predictions),
            "acc5": _class_accuracy("five", targets, predictions),
            "acc7": _class_accuracy("seven", targets, predictions),
        }


@dataclass(frozen=True, kw_only=True)
class SimsScoreTarget(BenchmarkScoreTarget):
    """The score of CH-SIMS, from -1 to 1."""

    kind: ClassVar[str] = "sims-score"
    bound: ClassVar[float] = 1.0
    summary_metrics: ClassVar[tuple[str, ...]] = ("acc2", F1, "acc3", "acc5", "mae", "corr")

    @classmethod
    def signed(cls) -> Self:
        """Return the target with two categories: zero or below, and above zero."""
        return cls(name=cls.kind, classes=("negative", "positive"), cuts=(0.0,), upward=False)

    def measure_predictions(self, targets: Array, predictions: Array) -> dict[str, float]:
        """Return the metrics of any score, and acc2, acc3 and acc5 by the thresholds of CH-SIMS.
        Targets and predictions are clipped to the scale.

        Args:
            targets: (N,) scores.
            predictions: (N,) scores.
        """
        truth, predicted = (
            np.clip(side, -self.bound, self.bound) for side in (targets, predictions)
        )
        return {
            **super().measure_predictions(truth, predicted),
            "acc2": _class_accuracy("sims-binary", truth, predicted),
            "acc3": _class_accuracy("sims-ternary", truth, predicted),
            "acc5": _class_accuracy("sims-five", truth, predicted),
        }


def _class_accuracy(rule: str, targets: Array, predictions: Array) -> float:
    return accuracy(score_classes(rule, targets), score_classes(rule, predictions))


def _binary_metrics(suffix: str, rule: str, targets: Array, predictions: Array) -> dict[str, float]:
    truth, predicted = score_classes(rule, targets), score_classes(rule, predictions)
    is_defined = len(truth) > 0
    return {
        f"acc2_{suffix}": accuracy(truth, predicted) if is_defined else math.nan,
        f"{F1}_{suffix}": weighted_f1(truth, predicted) if is_defined else math.nan,
    }
