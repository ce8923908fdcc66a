"""A score, with categories by thresholds for F1 and the prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from corrkd.targets.base import Array, LabelledSplit, Target, at_least_float32, scores_of
from corrkd.targets.categorical import mean_weights
from corrkd.targets.classes import class_counts
from corrkd.targets.measures import F1, class_metrics, correlation, weighted_f1
from corrkd.targets.pooling import fit_weighted_mean
from corrkd.targets.thresholds import digitize, distinct_tertiles


@dataclass(frozen=True, kw_only=True)
class ScoreTarget(Target):
    """A score, which is the logit itself. It has no probabilities, hence no temperature."""

    kind: ClassVar[str] = "score"
    has_classes: ClassVar[bool] = False
    tabled_metrics: ClassVar[tuple[str, ...]] = (F1, "accuracy", "mae", "corr")
    summary_metrics: ClassVar[tuple[str, ...]] = tabled_metrics

    @classmethod
    def signed(cls) -> Self:
        """Return the target of scores of both signs, with two categories: below zero, and zero or
        above.
        """
        return cls(name=cls.kind, classes=("negative", "non-negative"), cuts=(0.0,))

    @classmethod
    def fit(
        cls,
        train: LabelledSplit,
        *,
        where: str,
        class_names: Sequence[str] = (),
        question_names: Sequence[str] = (),
    ) -> Self:
        """Return the target of the scores. The categories are the signs, or the tertiles if all
        scores have the same sign.
        """
        scores = scores_of(train, where, cls.kind)
        if scores.min() < 0 < scores.max():
            return cls.signed()
        cuts = distinct_tertiles(scores, where)
        return cls(
            name=cls.kind,
            classes=("low", "middle", "high") if len(cuts) == 2 else ("low", "high"),
            cuts=cuts,
        )

    def of(self, split: LabelledSplit, where: str) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return the scores of a split, (N,); all samples count."""
        return scores_of(split, where, self.name), np.ones(len(split), bool)

    def dtype(self, floating: torch.dtype) -> torch.dtype:
        """Return `floating`."""
        return floating

    @property
    def num_logits(self) -> int:
        """Always 1."""
        return 1

    @property
    def response_shape(self) -> tuple[int, ...]:
        """Shape (1,)."""
        return (1,)

    def respond(self, logits: Tensor) -> Tensor:
        """Return the score."""
        return logits.float()

    def mean_response(self, logits: Sequence[Tensor], counted: Tensor) -> Tensor:
        """Return the mean score."""
        stacked = torch.stack(list(logits), 1)
        return (mean_weights(stacked, counted) * stacked).sum(1)

    def ensemble(self, logits: Tensor) -> Tensor:
        """Return the mean score."""
        return logits.mean(0)

    def fit_pool(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the weights of the weighted mean that is closest to the targets."""
        return fit_weighted_mean(logits, targets)

    def pool(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted mean score."""
        return torch.einsum("f,fns->ns", weights.to(logits), logits)

    def fit_temperature(self, logits: Tensor, targets: Tensor) -> float:
        """Return 1: a score has no temperature."""
        return 1.0

    def temper(self, logits: Tensor, temperature: float) -> Tensor:
        """Return the scores unchanged."""
        return logits

    def task_loss(
        self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean absolute error."""
        return l1_loss(at_least_float32(logits)[:, 0], targets)

    def masked_task_loss(
        self, logits: Tensor, targets: Tensor, mask: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean absolute error over the samples in the mask."""
        return ((at_least_float32(logits)[:, 0] - targets).abs() * mask).sum() / mask.sum().clamp(
            min=1
        )

    def balanced_class_weights(self, targets: Tensor) -> None:
        """Return None: a score has no classes."""
        return

    def response_divergence(
        self, student: Tensor, teacher: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Return the mean squared difference of the scores."""
        precise = torch.promote_types(student.dtype, torch.float32)
        return mse_loss(student.to(precise), teacher.detach().to(precise))

    def category_tensor(self, targets: Tensor) -> Tensor:
        """Return the category of each score."""
        category = torch.zeros_like(targets, dtype=torch.int64)
        # one by one: a tensor of cuts would be copied to the device in every step
        for cut in self.cuts:
            category = category + (targets >= cut if self.upward else targets > cut)
        return category

    def categories(self, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the category of each score."""
        return digitize(values, self.cuts, upward=self.upward)

    def predictions(self, response: Array) -> Array:
        """Return the scores, (N,)."""
        return response[:, 0]

    def majority(self, targets: Array) -> Array:
        """Return the median."""
        return np.asarray(np.median(targets))

    def measure(self, targets: Array, response: Array) -> dict[str, float]:
        """Return weighted_f1, accuracy, unweighted_accuracy and f1/<class> of the categories, and
        mae and corr of the scores.
        """
        return self.measure_predictions(targets, self.predictions(response))

    def measure_predictions(self, targets: Array, predictions: Array) -> dict[str, float]:
        """Return the metrics of `measure`, none of which needs probabilities."""
        return {
            **class_metrics(self.classes, self.categories(targets), self.categories(predictions)),
            "mae": float(np.abs(targets - predictions).mean()),
            "corr": correlation(targets, predictions),
        }

    def main_score(self, targets: Array, response: Array) -> float:
        """Return the weighted F1 of the categories."""
        return weighted_f1(self.categories(targets), self.categories(self.predictions(response)))

    def calibration_error(self, targets: Array, response: Array) -> None:
        """Return None: a score has no confidence."""
        return

    def calibrate(self, response: Array, temperature: float) -> npt.NDArray[np.float64]:
        """Return the scores unchanged."""
        return response.astype(np.float64)

    def nonconformity(self, targets: Array, response: Array) -> npt.NDArray[np.float64]:
        """Return the absolute error of the score."""
        distances: npt.NDArray[np.float64] = np.abs(response[:, 0] - targets)
        return distances

    def set_sizes(self, response: Array, threshold: float) -> npt.NDArray[np.float64]:
        """Return the length of the prediction interval, which is the same for all samples."""
        return np.full(len(response), 2.0 * threshold)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Always (): a single score needs no name."""
        return ()

    @property
    def description(self) -> str:
        """The text "a score"."""
        return "a score"

    def text(self, value: Any) -> str:
        """Return the score with two decimals."""
        return f"{value:.2f}"

    def histogram(self, targets: Array) -> dict[str, int]:
        """Return the number of samples in each category."""
        return class_counts(self.classes, self.categories(targets))

    def prediction_columns(self, ids: Array, targets: Array, response: Array) -> dict[str, Any]:
        """Return the columns, without probabilities."""
        return {
            "id": ids,
            "question": "",
            "target": targets,
            "prediction": self.predictions(response),
        }

    def check(self) -> None:
        """Raise CorrKDError if the cuts do not increase or do not fit the number of categories."""
        self.refuse_unless(
            len(self.classes) == len(self.cuts) + 1 and bool((np.diff(self.cuts) > 0).all())
        )
