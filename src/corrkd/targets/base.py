"""What every target is: the one object that knows what the numbers of a network, of a split and of
a prediction mean.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from corrkd.errors import CorrKDError
from corrkd.targets.labels import Cuts, Name, Names, check_labels
from corrkd.targets.measures import F1

Array = npt.NDArray[Any]


class LabelledSplit(Protocol):
    """The labels of N samples (`corrkd.data.dataset.Split`)."""

    @property
    def scores(self) -> npt.NDArray[np.float64] | None:
        """(N,) scores, where there are any."""

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """(N,) classes or (N, Q) answers in {0, 1}, where there are any."""

    def __len__(self) -> int:
        """N."""


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """What is predicted, with the thresholds fixed on the training split.

    A subclass is one kind of target. It is registered by `kind` (entry points of other packages:
    group `corrkd.targets`), and what it adds as fields is on a model's card, checked against the
    annotations.

    In what follows a *response* is what a network says in the target's terms, and *targets* are
    what is true:

    | kind | logits | response | targets |
    |---|---|---|---|
    | classes | (N, K) | probabilities (N, K) | (N,) int64 |
    | questions | (N, Q, 2) | probabilities (N, Q, 2) | (N, Q) int64 in {0, 1} |
    | score | (N, 1) | the score itself, (N, 1) | (N,) floating |

    Attributes:
        kind: on a model's card; the name under which the class is registered.
        has_classes: the response is probabilities: softmax of the logits over the last axis. Else
            it has no confidence to calibrate.
        tabled_metrics: those of `measure` that reports show for every missing subset, and `corrkd
            evaluate` and a model's card beside those of `corrkd.targets.measures.METRICS`.
        summary_metrics: those that reports show side by side, as published tables do.
        name: as in the settings ("binary-nonzero", "tertiles", "classes", "questions", "score",
            ...).
        classes: K names; for questions ("no", "yes"); for scores the names of the categories.
        questions: Q names, else ().
        cuts: thresholds between classes, where the rule has any; for scores: of the categories that
            F1 and the prototypes use.
        upward: whether a score equal to a threshold belongs to the class above it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False
    )

    kind: ClassVar[str]
    has_classes: ClassVar[bool]
    tabled_metrics: ClassVar[tuple[str, ...]] = (F1, "accuracy")
    summary_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "unweighted_accuracy", F1)

    name: Name
    classes: Names
    questions: Names = ()
    cuts: Cuts = ()
    upward: bool = True

    # ----------------------------------------------------------------------------------------------
    # from data

    @classmethod
    @abstractmethod
    def fit(
        cls,
        train: LabelledSplit,
        *,
        where: str,
        class_names: Sequence[str] = (),
        question_names: Sequence[str] = (),
    ) -> Target:
        """Return the target of this kind that the training split has.

        Args:
            train: labels of the training split.
            where: opens error lines.
            class_names: as the dataset names them, or ().
            question_names: likewise.

        Raises:
            CorrKDError: the split lacks what the target needs.
        """

    @abstractmethod
    def of(self, split: LabelledSplit, where: str) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return the targets of a split, and which samples count.

        Args:
            split: N samples.
            where: opens error lines.

        Returns:
            targets of all N samples (a sample that does not count has an arbitrary class), and (N,)
            booleans.

        Raises:
            CorrKDError: the split lacks what the target needs, or a label is outside the classes.
        """

    def check_training(self, targets: Array, where: str) -> None:  # noqa: B027  (a subclass may leave it out)
        """Raise CorrKDError where nothing can be learned from these targets of the training split.
        `where` opens the line.
        """

    @abstractmethod
    def dtype(self, floating: torch.dtype) -> torch.dtype:
        """Return the type of targets as tensors; `floating`: of whatever is not an integer."""

    # ----------------------------------------------------------------------------------------------
    # in networks

    @property
    @abstractmethod
    def num_logits(self) -> int:
        """Width of a network's last layer."""

    @property
    @abstractmethod
    def response_shape(self) -> tuple[int, ...]:
        """Shape of the logits, and of the response, of one sample."""

    def shape_logits(self, logits: Tensor) -> Tensor:
        """Return a last layer's outputs (..., num_logits) as logits (..., *response_shape)."""
        return logits

    @abstractmethod
    def respond(self, logits: Tensor) -> Tensor:
        """Return the response R to logits (..., *response_shape), at least float32."""

    @abstractmethod
    def mean_response(self, logits: Sequence[Tensor], counted: Tensor) -> Tensor:
        """Return the mean of several responses as logits, (N, *response_shape).

        Args:
            logits: M logits, each (N, *response_shape).
            counted: (N, M) booleans: which responses count; where none does, all do.
        """

    @abstractmethod
    def ensemble(self, logits: Tensor) -> Tensor:
        """Return the mean response of F networks as logits: (F, N, *response_shape) -> (N,
        *response_shape).
        """

    @abstractmethod
    def fit_pool(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the weights of F networks in their common response, (F,), fitted to the targets.

        Args:
            logits: (F, N, *response_shape), of samples that the networks were not trained on.
            targets: of the N samples.
        """

    @abstractmethod
    def pool(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Return the common response of F networks as logits: (F, N, *response_shape), (F,) -> (N,
        *response_shape).
        """

    @abstractmethod
    def fit_temperature(self, logits: Tensor, targets: Tensor) -> float:
        """Return the temperature under which the response makes the targets most likely; 1 where
        there is none.
        """

    @abstractmethod
    def temper(self, logits: Tensor, temperature: float) -> Tensor:
        """Return the logits divided by a temperature, where the response has one."""

    # ----------------------------------------------------------------------------------------------
    # in training

    @abstractmethod
    def task_loss(
        self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Return the loss of logits (N, *response_shape) against targets, a scalar;
        `class_weights`: of `balanced_class_weights`.
        """

    @abstractmethod
    def masked_task_loss(
        self, logits: Tensor, targets: Tensor, mask: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Return `task_loss` over the rows of a mask alone, (N,) booleans; 0 where there is none.
        Nothing is read back from the device.
        """

    @abstractmethod
    def balanced_class_weights(self, targets: Tensor) -> Tensor | None:
        """Return weights inverse to the classes' frequency, of mean 1 over the samples, (K,); None:
        there are no classes.
        """

    @abstractmethod
    def response_divergence(
        self, student: Tensor, teacher: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Return how far the student's response is from the teacher's, a scalar.

        Args:
            student: logits (N, *response_shape).
            teacher: the same of the teacher; gets no gradient.
            temperature: T, by which both sides' logits are divided.
        """

    @abstractmethod
    def category_tensor(self, targets: Tensor) -> Tensor:
        """Return the class of each target, as `categories`."""

    # ----------------------------------------------------------------------------------------------
    # in evaluation

    @abstractmethod
    def categories(self, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the class of each target or prediction: itself, or by the thresholds of a
        score.
        """

    @abstractmethod
    def predictions(self, response: Array) -> Array:
        """Return what a response decides for, in the shape of targets."""

    @abstractmethod
    def majority(self, targets: Array) -> Array:
        """Return the prediction that is most often right for N >= 1 targets: without their first
        axis.
        """

    @abstractmethod
    def measure(self, targets: Array, response: Array) -> dict[str, float]:
        """Return all metrics of a response by name, as fractions of 1; nan where one is undefined.
        `weighted_f1` is among them.
        """

    @abstractmethod
    def measure_predictions(self, targets: Array, predictions: Array) -> dict[str, float]:
        """Return the metrics of `measure` that need no probabilities, which floors have, too."""

    @abstractmethod
    def main_score(self, targets: Array, response: Array) -> float:
        """Return the weighted F1 alone: what an epoch is chosen by."""

    @abstractmethod
    def calibration_error(self, targets: Array, response: Array) -> float | None:
        """Return the expected calibration error of a response; None where it has no confidence."""

    @abstractmethod
    def calibrate(self, response: Array, temperature: float) -> npt.NDArray[np.float64]:
        """Return a response with a temperature applied, where it has one."""

    @abstractmethod
    def nonconformity(self, targets: Array, response: Array) -> npt.NDArray[np.float64]:
        """Return the nonconformity score of the truth under a calibrated response, in the shape of
        targets.
        """

    @abstractmethod
    def set_sizes(self, response: Array, threshold: float) -> npt.NDArray[np.float64]:
        """Return the size of the prediction set of each target: of what is no more nonconforming
        than the threshold.
        """

    # ----------------------------------------------------------------------------------------------
    # in what is shown

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, as a report lists them; () where they have none."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What a model with this target answers with, as in "a score"."""

    @abstractmethod
    def text(self, value: Any) -> str:
        """Return one sample's target in words."""

    @abstractmethod
    def histogram(self, targets: Array) -> dict[str, int]:
        """Return how many samples there are by class, or how many answers "yes" by question."""

    @abstractmethod
    def prediction_columns(self, ids: Array, targets: Array, response: Array) -> dict[str, Any]:
        """Return the columns id, question, target, prediction and p_0, p_1, ... of the table of
        predictions.

        Args:
            ids: (n,) names of the samples.
            targets: of these samples.
            response: to these samples.

        Returns:
            A row for each sample, or for each sample and question. A column that is the same
            everywhere may be a scalar.
        """

    # ----------------------------------------------------------------------------------------------
    # on cards

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for a model's card."""
        values = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return {"name": values.pop("name"), "kind": self.kind, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_json` made, of a target of this kind;
        `corrkd.targets.registry.target_from_json` takes any kind.

        Raises:
            ValidationError: a key is unknown or lacking, or a value is not of its field's type or
                bounds.
            CorrKDError: the fields do not fit each other.
        """
        fields = {key: value for key, value in values.items() if key != "kind"}
        target = TypeAdapter(cls).validate_json(json.dumps(fields))
        check_labels(target.classes, "classes")
        check_labels(target.questions, "questions")
        target.check()
        return target

    @abstractmethod
    def check(self) -> None:
        """Raise CorrKDError where the fields do not fit each other."""

    def refuse_unless(self, fits: bool) -> None:
        """Raise CorrKDError where a card's classes, questions or cuts are not those of this
        kind.
        """
        if not fits:
            raise CorrKDError(f"its classes, questions or cuts are not those of kind {self.kind!r}")


def labels_of(split: LabelledSplit, where: str, name: str) -> npt.NDArray[np.int64]:
    """Return a split's labels. Raises CorrKDError where it has none; `name` is the target's."""
    if split.labels is None:
        raise CorrKDError(
            f"{where}: target `{name}` needs labels, but the data has scores only; use a target "
            f"made from scores"
        )
    return split.labels


def scores_of(split: LabelledSplit, where: str, name: str) -> npt.NDArray[np.float64]:
    """Return a split's scores. Raises CorrKDError where it has none; `name` is the target's."""
    if split.scores is None:
        raise CorrKDError(
            f"{where}: target `{name}` needs scores, but the data has labels only; use `classes` "
            f"or `questions`"
        )
    return split.scores


def checked_labels(
    split: LabelledSplit, where: str, target: Target, columns: tuple[int, ...]
) -> Array:
    """Return a split's labels, (N, *columns) int64. Raises CorrKDError where they have another
    shape, or are outside the classes.
    """
    labels = labels_of(split, where, target.name)
    expected = (len(split), *columns)
    if labels.shape != expected:
        raise CorrKDError(
            f"{where}: labels have shape {labels.shape}, expected {expected} for target "
            f"`{target.name}`"
        )
    highest = int(labels.max())
    if highest >= len(target.classes):
        raise CorrKDError(
            f"{where}: label {highest} is outside the {len(target.classes)} classes "
            f"{', '.join(target.classes)}"
        )
    return labels.astype(np.int64)


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits in float32, or in float64 where they are: half precision is not enough for a
    loss.
    """
    return logits if logits.dtype == torch.float64 else logits.float()
