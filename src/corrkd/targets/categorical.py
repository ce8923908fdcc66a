"""Common base of classes and yes/no questions: softmax probabilities over exclusive classes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from corrkd.errors import CorrKDError
from corrkd.targets.base import Array, Target, at_least_float32
from corrkd.targets.calibration import fit_temperature, in_set, tempered
from corrkd.targets.pooling import fit_log_pool, log_pool


@dataclass(frozen=True, kw_only=True)
class CategoricalTarget(Target):
    """A target with logits (..., K) of exclusive classes and the cross-entropy as task loss."""

    has_classes: ClassVar[bool] = True

    def check_training(self, targets: Array, where: str) -> None:
        """Raise CorrKDError if a class has no sample."""
        for column, question in zip(
            targets.reshape(len(targets), -1).T, self.questions or ("",), strict=True
        ):
            for label, name in enumerate(self.classes):
                if not (column == label).any():
                    answers = f" to question {question}" if question else ""
                    raise CorrKDError(
                        f"{where}: no sample of class {name!r}{answers} for target "
                        f"`{self.name}`; choose another target"
                    )

    def dtype(self, floating: torch.dtype) -> torch.dtype:
        """Return int64."""
        return torch.int64

    def respond(self, logits: Tensor) -> Tensor:
        """Return the softmax of the logits."""
        return torch.softmax(logits.float(), -1)

    def mean_response(self, logits: Sequence[Tensor], counted: Tensor) -> Tensor:
        """Return the log of the mean probabilities."""
        stacked = torch.stack(list(logits), 1)
        weight = mean_weights(stacked, counted)
        return (torch.log_softmax(stacked, -1) + weight.log()).logsumexp(1)

    def ensemble(self, logits: Tensor) -> Tensor:
        """Return the log of the mean probabilities."""
        return (
            self.respond(logits)
            .mean(0)
            .clamp(min=torch.finfo(torch.float32).tiny)
            .log()
            .to(logits.dtype)
        )

    def fit_pool(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the weights that maximise the likelihood of the targets under the pooled
        probabilities.
        """
        return fit_log_pool(logits, targets)

    def pool(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum of the log-probabilities."""
        return log_pool(logits, weights)

    def fit_temperature(self, logits: Tensor, targets: Tensor) -> float:
        """Return the temperature that maximises the likelihood of the targets under softmax(logits
        / T).
        """
        return fit_temperature(logits, targets)

    def temper(self, logits: Tensor, temperature: float) -> Tensor:
        """Return the logits divided by the temperature."""
        return logits / temperature

    def task_loss(
        self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Return the cross-entropy [paper], averaged over samples and questions."""
        return cross_entropy(
            at_least_float32(logits).flatten(0, -2), targets.flatten(), weight=class_weights
        )

    def masked_task_loss(
        self, logits: Tensor, targets: Tensor, mask: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Return the cross-entropy over the samples in the mask."""
        rows = mask.view(-1, *[1] * (targets.dim() - 1)).expand_as(targets).flatten()
        flat, labels = at_least_float32(logits).flatten(0, -2), targets.flatten()
        each = cross_entropy(flat, labels, weight=class_weights, reduction="none")
        weight = rows.to(each.dtype) if class_weights is None else rows * class_weights[labels]
        return (each * rows).sum() / torch.where(rows.any(), weight.sum(), 1.0)

    def balanced_class_weights(self, targets: Tensor) -> Tensor:
        """Return weights (K,), inverse to the class frequencies, with mean 1 over the samples."""
        counts = torch.bincount(targets.flatten(), minlength=len(self.classes)).float()
        return counts.sum() / (len(counts) * counts.clamp(min=1.0))

    def response_divergence(
        self, student: Tensor, teacher: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Return T² KL(teacher || student) of softmax(logits / T), the mean over samples and
        questions. The factor T² keeps the gradient's magnitude (Hinton et al., 2015, section 2).
        """
        precise = torch.promote_types(student.dtype, torch.float32)
        logits = student.to(precise), teacher.detach().to(precise)
        log_student, log_teacher = (log_softmax(x.flatten(0, -2) / temperature, -1) for x in logits)
        return temperature**2 * kl_div(
            log_student, log_teacher, log_target=True, reduction="batchmean"
        )

    def category_tensor(self, targets: Tensor) -> Tensor:
        """Return the targets, which are classes already."""
        return targets

    def categories(self, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the values, which are classes already."""
        return np.asarray(values).astype(np.int64)

    def predictions(self, response: Array) -> Array:
        """Return the most probable class."""
        return np.asarray(response.argmax(-1))

    def majority(self, targets: Array) -> Array:
        """Return the most frequent class, separately for each question."""
        columns = targets.reshape(len(targets), -1)
        most = [np.bincount(column, minlength=len(self.classes)).argmax() for column in columns.T]
        return np.asarray(most).reshape(targets.shape[1:])

    @abstractmethod
    def calibration_error(self, targets: Array, response: Array) -> float:
        """Return the expected calibration error of a response."""

    def calibrate(self, response: Array, temperature: float) -> npt.NDArray[np.float64]:
        """Return the probabilities with their logits divided by the temperature."""
        return tempered(response, temperature)

    def nonconformity(self, targets: Array, response: Array) -> npt.NDArray[np.float64]:
        """Return 1 minus the probability of the true class."""
        scores: npt.NDArray[np.float64] = (
            1.0 - np.take_along_axis(response, targets[..., None], -1)[..., 0]
        )
        return scores

    def set_sizes(self, response: Array, threshold: float) -> npt.NDArray[np.float64]:
        """Return the number of classes in each prediction set."""
        return in_set(response, threshold).sum(-1).astype(np.float64)

    def prediction_columns(self, ids: Array, targets: Array, response: Array) -> dict[str, Any]:
        """Return the columns, with one column of probabilities for each class."""
        questions = self.questions or ("",)
        probabilities = response.reshape(len(response) * len(questions), len(self.classes))
        return {
            "id": np.repeat(ids, len(questions)),
            "question": np.tile(np.array(questions), len(response)),
            "target": targets.reshape(-1),
            "prediction": probabilities.argmax(1),
            **{f"p_{k}": probabilities[:, k] for k in range(len(self.classes))},
        }


def mean_weights(stacked: Tensor, counted: Tensor) -> Tensor:
    """Return equal weights, (N, M, 1, ...), of the responses that count, or of all if none counts.
    They sum to 1 over the M responses.

    Args:
        stacked: (N, M, ...) logits.
        counted: (N, M) mask of the responses that count.
    """
    weight = (counted | ~counted.any(1, keepdim=True)).to(stacked.dtype)
    weight = weight / weight.sum(1, keepdim=True)
    return weight.view(*weight.shape, *[1] * (stacked.dim() - 2))
