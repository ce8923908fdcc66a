"""A target, ordinal classes, and a metric, Cohen's kappa.

python examples/extending/target.py     computes a loss and the metrics
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor
from torch.nn.functional import one_hot

from corrkd.targets.classes import ClassesTarget


def kappa(targets: npt.NDArray[Any], predictions: npt.NDArray[Any]) -> float:
    """Agreement beyond what is expected by chance: 1 is perfect, 0 is chance."""
    return float(cohen_kappa_score(targets, predictions))


@dataclass(frozen=True, kw_only=True)
class OrdinalTarget(ClassesTarget):
    """Classes in an order, compared by cumulative probabilities; measured by error in ranks too."""

    kind: ClassVar[str] = "ordinal"
    tabled_metrics: ClassVar[tuple[str, ...]] = ("weighted_f1", "accuracy", "mae", "kappa")

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Squared differences of the cumulative probabilities, (N,)."""
        gaps = logits.softmax(-1) - one_hot(targets, len(self.classes))
        return gaps.cumsum(-1).square().sum(-1)

    def task_loss(
        self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Return their mean."""
        return self.losses(logits, targets).mean()

    def masked_task_loss(
        self, logits: Tensor, targets: Tensor, mask: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Return their mean over the samples of a mask (N,)."""
        return (self.losses(logits, targets) * mask).sum() / mask.sum().clamp(min=1)

    def measure_predictions(
        self, targets: npt.NDArray[Any], predictions: npt.NDArray[Any]
    ) -> dict[str, float]:
        """Return the metrics of classes, the mean error in ranks and kappa."""
        return {
            **super().measure_predictions(targets, predictions),
            "mae": float(np.abs(targets - predictions).mean()),
            "kappa": kappa(targets, predictions),
        }


if __name__ == "__main__":
    target = OrdinalTarget.with_classes(3)
    print(target.task_loss(torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([2])))  # two ranks off
    print(target.measure_predictions(np.array([0, 0, 0, 2]), np.array([0, 0, 0, 0])))
