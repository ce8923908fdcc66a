"""Yes/no questions: several binary labels per sample, each with separate probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from corrkd.errors import CorrKDError
from corrkd.targets.base import Array, LabelledSplit, checked_labels, labels_of
from corrkd.targets.categorical import CategoricalTarget
from corrkd.targets.measures import (
    F1,
    calibration_error,
    positive_f1,
    unweighted_accuracy,
    weighted_f1,
)

ANSWERS = ("no", "yes")


@dataclass(frozen=True, kw_only=True)
class QuestionsTarget(CategoricalTarget):
    """Q questions with the classes "no" and "yes"."""

    kind: ClassVar[str] = "questions"

    @classmethod
    def with_questions(cls, count: int) -> Self:
        """Return the target of `count` questions, named question 0, question 1, ..."""
        return cls(
            name=cls.kind, classes=ANSWERS, questions=tuple(f"question {q}" for q in range(count))
        )

    @classmethod
    def fit(
        cls,
        train: LabelledSplit,
        *,
        where: str,
        class_names: Sequence[str] = (),
        question_names: Sequence[str] = (),
    ) -> Self:
        """Return the target of the yes/no labels in the data."""
        labels = labels_of(train, where, cls.kind)
        if labels.ndim != 2 or labels.max() > 1:
            raise CorrKDError(
                f"{where}: target `questions` needs yes/no labels of shape (N, questions), found "
                f"{labels.shape}"
            )
        if question_names:
            return cls(name=cls.kind, classes=ANSWERS, questions=tuple(question_names))
        return cls.with_questions(labels.shape[1])

    def of(self, split: LabelledSplit, where: str) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return the labels of a split, (N, Q); all samples count."""
        return checked_labels(split, where, self, (len(self.questions),)), np.ones(len(split), bool)

    @property
    def num_logits(self) -> int:
        """Number of logits, two for each question: 2 Q."""
        return 2 * len(self.questions)

    @property
    def response_shape(self) -> tuple[int, ...]:
        """Shape (Q, 2)."""
        return (len(self.questions), 2)

    def shape_logits(self, logits: Tensor) -> Tensor:
        """Return outputs (..., 2 Q) as logits (..., Q, 2)."""
        return logits.unflatten(-1, (-1, 2))

    def measure(self, targets: Array, response: Array) -> dict[str, float]:
        """Return the metrics of `measure_predictions` and ece, averaged over the questions."""
        scores = self.measure_predictions(targets, self.predictions(response))
        return {**scores, "ece": self.calibration_error(targets, response)}

    def measure_predictions(self, targets: Array, predictions: Array) -> dict[str, float]:
        """Return weighted_f1, accuracy and unweighted_accuracy, averaged over the questions;
        weighted_f1/<question>; and f1/<question> for the answer yes.
        """
        columns = list(zip(self.questions, targets.T, predictions.T, strict=True))
        each = {question: weighted_f1(*sides) for question, *sides in columns}
        return {
            F1: float(np.mean(list(each.values()))),
            "accuracy": float((targets == predictions).mean()),
            "unweighted_accuracy": float(
                np.mean([unweighted_accuracy(*sides) for _, *sides in columns])
            ),
            **{f"{F1}/{question}": value for question, value in each.items()},
            **{f"f1/{question}": positive_f1(*sides) for question, *sides in columns},
        }

    def main_score(self, targets: Array, response: Array) -> float:
        """Return the weighted F1, averaged over the questions."""
        columns = zip(targets.T, self.predictions(response).T, strict=True)
        return float(np.mean([weighted_f1(*sides) for sides in columns]))

    def calibration_error(self, targets: Array, response: Array) -> float:
        """Return the expected calibration error, averaged over the questions."""
        columns = zip(targets.T, np.moveaxis(response, 1, 0), strict=True)
        return float(np.mean([calibration_error(*sides) for sides in columns]))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the questions."""
        return self.questions

    @property
    def description(self) -> str:
        """The text "yes or no to each of ...", with the names of the questions."""
        return f"yes or no to each of {', '.join(self.questions)}"

    def text(self, value: Any) -> str:
        """Return each question with its answer."""
        return ", ".join(
            f"{question} {self.classes[int(answer)]}"
            for question, answer in zip(self.questions, value, strict=True)
        )

    def histogram(self, targets: Array) -> dict[str, int]:
        """Return the number of samples with the answer yes to each question."""
        return {
            question: int(column.sum())
            for question, column in zip(self.questions, targets.T, strict=True)
        }

    def check(self) -> None:
        """Raise CorrKDError if there are no questions or not exactly two classes."""
        self.refuse_unless(len(self.classes) == 2 and len(self.questions) >= 1)
