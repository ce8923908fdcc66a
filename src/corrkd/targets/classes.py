"""Exclusive classes: the labels of the data, or scores that are cut by thresholds or rounded
(docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from corrkd.errors import CorrKDError
from corrkd.targets.base import Array, LabelledSplit, checked_labels, labels_of, scores_of
from corrkd.targets.categorical import CategoricalTarget
from corrkd.targets.measures import calibration_error, class_metrics, weighted_f1
from corrkd.targets.thresholds import digitize, tertiles

# name -> (thresholds, whether a score equal to a threshold is in the class above, class names)
THRESHOLDS: dict[str, tuple[tuple[float, ...], bool, tuple[str, ...]]] = {
    "binary-has-zero": ((0.0,), True, ("negative", "non-negative")),
    "binary-nonzero": ((0.0,), False, ("negative", "positive")),
    "sims-binary": ((0.0,), False, ("negative", "positive")),
    "sims-ternary": ((-0.1, 0.1), False, ("negative", "neutral", "positive")),
    "sims-five": (
        (-0.7, -0.1, 0.1, 0.7),
        False,
        ("negative", "weakly negative", "neutral", "weakly positive", "positive"),
    ),
}
# name -> (bound at which scores are clipped before rounding, class names)
ROUNDED: dict[str, tuple[int, tuple[str, ...]]] = {
    "ternary": (1, ("negative", "neutral", "positive")),
    "five": (2, ("-2", "-1", "0", "+1", "+2")),
    "seven": (3, ("-3", "-2", "-1", "0", "+1", "+2", "+3")),
}
WITHOUT_ZERO = ("binary-nonzero",)  # samples with a score of 0 do not count


@dataclass(frozen=True, kw_only=True)
class ClassesTarget(CategoricalTarget):
    """K exclusive classes."""

    kind: ClassVar[str] = "classes"

    @classmethod
    def with_classes(cls, count: int) -> Self:
        """Return the target of labels 0 to `count` - 1, which are also the names of the classes."""
        return cls(name=cls.kind, classes=tuple(map(str, range(count))))

    @classmethod
    def fit(
        cls,
        train: LabelledSplit,
        *,
        where: str,
        class_names: Sequence[str] = (),
        question_names: Sequence[str] = (),
    ) -> Self:
        """Return the target of the labels in the data."""
        labels = labels_of(train, where, cls.kind)
        if labels.ndim != 1:
            raise CorrKDError(
                f"{where}: labels have shape {labels.shape}: yes/no questions; use target "
                f"`questions`"
            )
        return cls(
            name=cls.kind,
            classes=tuple(class_names) or tuple(map(str, range(int(labels.max()) + 1))),
        )

    def of(self, split: LabelledSplit, where: str) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return the classes of a split, (N,), and which samples count: all, except scores of 0 for
        "binary-nonzero".
        """
        if not self.is_of_score:
            return checked_labels(split, where, self, ()), np.ones(len(split), bool)
        scores = scores_of(split, where, self.name)
        keep = scores != 0 if self.name in WITHOUT_ZERO else np.ones(len(split), bool)
        return self.classes_of_scores(scores), keep

    @property
    def is_of_score(self) -> bool:
        """Whether the classes are derived from a score instead of being the labels of the data."""
        return bool(self.cuts) or self.name in ROUNDED

    def classes_of_scores(self, scores: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the class of each score, (N,) in 0..K-1. Halves are rounded to even, as is usual
        in the field.
        """
        if self.name in ROUNDED:
            return score_classes(self.name, scores)
        return digitize(scores, self.cuts, upward=self.upward)

    @property
    def num_logits(self) -> int:
        """Number of classes, K."""
        return len(self.classes)

    @property
    def response_shape(self) -> tuple[int, ...]:
        """Shape (K,)."""
        return (len(self.classes),)

    def measure(self, targets: Array, response: Array) -> dict[str, float]:
        """Return weighted_f1, accuracy, unweighted_accuracy, f1/<class> and ece."""
        scores = self.measure_predictions(targets, self.predictions(response))
        return {**scores, "ece": self.calibration_error(targets, response)}

    def measure_predictions(self, targets: Array, predictions: Array) -> dict[str, float]:
        """Return weighted_f1, accuracy, unweighted_accuracy and f1/<class>."""
        return class_metrics(self.classes, targets, predictions)

    def main_score(self, targets: Array, response: Array) -> float:
        """Return the weighted F1."""
        return weighted_f1(targets, self.predictions(response))

    def calibration_error(self, targets: Array, response: Array) -> float:
        """Return the expected calibration error."""
        return calibration_error(targets, response)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.classes

    @property
    def description(self) -> str:
        """The text "one of the classes ...", with their names."""
        return f"one of the classes {', '.join(self.classes)}"

    def text(self, value: Any) -> str:
        """Return the name of a class."""
        return self.classes[int(value)]

    def histogram(self, targets: Array) -> dict[str, int]:
        """Return the number of samples of each class."""
        return class_counts(self.classes, targets)

    def check(self) -> None:
        """Raise CorrKDError if there are fewer than two classes."""
        self.refuse_unless(len(self.classes) >= 2)


def tertile_classes(train: LabelledSplit, *, where: str) -> ClassesTarget:
    """Return the target with the tertiles of the training scores as classes. Raises CorrKDError if
    the split has no scores.
    """
    cuts = tertiles(scores_of(train, where, "tertiles"))
    return ClassesTarget(name="tertiles", classes=("low", "middle", "high"), cuts=cuts)


def threshold_classes(name: str, train: LabelledSplit, *, where: str) -> ClassesTarget:
    """Return the target with the thresholds `THRESHOLDS[name]`. Raises like `tertile_classes`."""
    scores_of(train, where, name)
    cuts, upward, classes = THRESHOLDS[name]
    return ClassesTarget(name=name, classes=classes, cuts=cuts, upward=upward)


def rounded_classes(name: str, train: LabelledSplit, *, where: str) -> ClassesTarget:
    """Return the target with scores rounded by `ROUNDED[name]`. Raises like `tertile_classes`."""
    scores_of(train, where, name)
    return ClassesTarget(name=name, classes=ROUNDED[name][1])


def score_classes(rule: str, scores: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the class of each score, (N,) in 0..K-1, by a rule of `ROUNDED` or `THRESHOLDS`.
    Halves are rounded to even.
    """
    if rule in ROUNDED:
        bound = ROUNDED[rule][0]
        return (np.round(np.clip(scores, -bound, bound)) + bound).astype(np.int64)
    cuts, upward, _ = THRESHOLDS[rule]
    return digitize(scores, cuts, upward=upward)


def class_counts(names: Sequence[str], labels: Array) -> dict[str, int]:
    """Return the number of samples of each class, by name."""
    counts = np.bincount(labels, minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}
