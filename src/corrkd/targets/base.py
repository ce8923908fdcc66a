"""The base class of targets, which define what network outputs, labels and predictions mean."""

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
        """(N,) scores; None without scores."""

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """(N,) classes or (N, Q) answers in {0, 1}; None without labels."""

    def __len__(self) -> int:
        """Return N."""


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """A target of prediction, with thresholds from the training split.

    A subclass is one kind of target, registered under `kind` (in other packages, through an entry
    point in the group `corrkd.targets`). Fields that it adds are stored on the model card and
    validated against their annotations.

    Below, a *response* is the output of a network in the terms of the target, and *targets* are the
    true values:

    | kind | logits | response | targets |
    |---|---|---|---|
    | classes | (N, K) | probabilities (N, K) | (N,) int64 |
    | questions | (N, Q, 2) | probabilities (N, Q, 2) | (N, Q) int64 in {0, 1} |
    | score | (N, 1) | the score itself, (N, 1) | (N,) floating |

    Attributes:
        kind: name of the kind: on model cards, and in the registry.
        has_classes: whether the response consists of probabilities, the softmax of the logits over
            the last axis. Otherwise it has no confidence to calibrate.
        tabled_metrics: metrics of `measure` that reports show for every missing subset, and that
            `corrkd evaluate` and model cards show in addition to `corrkd.targets.measures.METRICS`.
        summary_metrics: metrics that reports show side by side, as in published tables.
        name: as in the settings ("binary-nonzero", "tertiles", "classes", "questions", "score",
            ...).
        classes: K names; for questions ("no", "yes"); for scores the names of the categories.
        questions: Q names, else ().
        cuts: thresholds between classes, or (); for scores, between the categories used by F1 and
            the prototypes.
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
        """Return the target of this kind, fitted to the training split.

        Args:
            train: labels of the training split.
            where: prefix of error messages.
            class_names: names of the classes in the dataset, or ().
            question_names: names of the questions in the dataset, or ().

        Raises:
            CorrKDError: if the split lacks what the target requires.
        """

    @abstractmethod
    def of(self, split: LabelledSplit, where: str) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return the targets of a split and which samples count.

        Args:
            split: N samples.
            where: prefix of error messages.

        Returns:
            The targets of all N samples, arbitrary for samples that do not count, and an (N,) mask
            of the samples that count.

        Raises:
            CorrKDError: if the split lacks what the target requires, or a label is outside the
                classes.
        """

    def check_training(self, targets: Array, where: str) -> None:  # noqa: B027  (a subclass may leave it out)
        """Raise CorrKDError if nothing can be learned from the targets of the training split.
        `where` is the prefix of the message.
        """

    @abstractmethod
    def dtype(self, floating: torch.dtype) -> torch.dtype:
        """Return the dtype of targets as tensors; `floating` if they are not integers."""

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
        """Return the outputs of a last layer (..., num_logits) as logits (..., *response_shape)."""
        return logits

    @abstractmethod
    def respond(self, logits: Tensor) -> Tensor:
        """Return the response to logits (..., *response_shape), at least in float32."""

    @abstractmethod
    def mean_response(self, logits: Sequence[Tensor], counted: Tensor) -> Tensor:
        """Return the mean of M responses, as logits (N, *response_shape).

        Args:
            logits: M logits, each (N, *response_shape).
            counted: (N, M) mask of the responses that count; if none counts for a sample, all do.
        """

    @abstractmethod
    def ensemble(self, logits: Tensor) -> Tensor:
        """Return the mean response to logits (F, N, *response_shape) of F networks, as logits
        (N, *response_shape).
        """

    @abstractmethod
    def fit_pool(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the weights (F,) of F networks in their combined response, fitted to the targets.

        Args:
            logits: (F, N, *response_shape), of samples that the networks were not trained on.
            targets: targets of the N samples.
        """

    @abstractmethod
    def pool(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Return the combined response to logits (F, N, *response_shape) of F networks with weights
        (F,), as logits (N, *response_shape).
        """

    @abstractmethod
    def fit_temperature(self, logits: Tensor, targets: Tensor) -> float:
        """Return the temperature that maximises the likelihood of the targets, or 1 if the response
        has no temperature.
        """

    @abstractmethod
    def temper(self, logits: Tensor, temperature: float) -> Tensor:
        """Return the logits divided by the temperature, or unchanged if the response has none."""

    # ----------------------------------------------------------------------------------------------
    # in training

    @abstractmethod
    def task_loss(
        self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Return the loss of logits (N, *response_shape) against targets, a scalar. `class_weights`
        come from `balanced_class_weights`.
        """

    @abstractmethod
    def masked_task_loss(
        self, logits: Tensor, targets: Tensor, mask: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Return `task_loss` over the samples in an (N,) mask, or 0 if it is empty, without copying
        anything from the device.
        """

    @abstractmethod
    def balanced_class_weights(self, targets: Tensor) -> Tensor | None:
        """Return class weights (K,), inverse to the class frequencies and with mean 1 over the
        samples; None without classes.
        """

    @abstractmethod
    def response_divergence(
        self, student: Tensor, teacher: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Return the divergence of the student's response from the teacher's, a scalar.

        Args:
            student: logits (N, *response_shape).
            teacher: logits of the same shape; they receive no gradient.
            temperature: divisor of both logits.
        """

    @abstractmethod
    def category_tensor(self, targets: Tensor) -> Tensor:
        """Return the class of each target as a tensor; see `categories`."""

    # ----------------------------------------------------------------------------------------------
    # in evaluation

    @abstractmethod
    def categories(self, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the class of each target or prediction; for a score, its category."""

    @abstractmethod
    def predictions(self, response: Array) -> Array:
        """Return the predictions of a response, in the shape of targets."""

    @abstractmethod
    def majority(self, targets: Array) -> Array:
        """Return the best constant prediction for N >= 1 targets, in the shape of one target: the
        most frequent class, or the median score.
        """

    @abstractmethod
    def measure(self, targets: Array, response: Array) -> dict[str, float]:
        """Return all metrics of a response by name, including `weighted_f1`. Shares are fractions
        from 0 to 1; an undefined metric is nan.
        """

    @abstractmethod
    def measure_predictions(self, targets: Array, predictions: Array) -> dict[str, float]:
        """Return the metrics of `measure` that need no probabilities; floors have these too."""

    @abstractmethod
    def main_score(self, targets: Array, response: Array) -> float:
        """Return the weighted F1, by which epochs are selected."""

    @abstractmethod
    def calibration_error(self, targets: Array, response: Array) -> float | None:
        """Return the expected calibration error of a response; None if it has no confidence."""

    @abstractmethod
    def calibrate(self, response: Array, temperature: float) -> npt.NDArray[np.float64]:
        """Return a response with the temperature applied, or unchanged if it has none."""

    @abstractmethod
    def nonconformity(self, targets: Array, response: Array) -> npt.NDArray[np.float64]:
        """Return the nonconformity score of the true value under a calibrated response, in the
        shape of targets.
        """

    @abstractmethod
    def set_sizes(self, response: Array, threshold: float) -> npt.NDArray[np.float64]:
        """Return the size of the prediction set for each target: the set of values with a
        nonconformity score of at most the threshold.
        """

    # ----------------------------------------------------------------------------------------------
    # in reports

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order of a report; () without names."""

    @property
    @abstractmethod
    def description(self) -> str:
        """Description of the output of a model with this target, as "a score"."""

    @abstractmethod
    def text(self, value: Any) -> str:
        """Return the target of one sample as text."""

    @abstractmethod
    def histogram(self, targets: Array) -> dict[str, int]:
        """Return the number of samples by class, or the number of "yes" answers by question."""

    @abstractmethod
    def prediction_columns(self, ids: Array, targets: Array, response: Array) -> dict[str, Any]:
        """Return the columns id, question, target, prediction and p_0, p_1, ... of the table of
        predictions.

        Args:
            ids: (n,) ids of the samples.
            targets: targets of the samples.
            response: (n, *response_shape) response to the samples.

        Returns:
            Columns with one row per sample, or per sample and question. A constant column may be a
            scalar.
        """

    # ----------------------------------------------------------------------------------------------
    # on cards

    def to_json(self) -> dict[str, Any]:
        """Return the target as JSON values for a model card."""
        values = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        return {"name": values.pop("name"), "kind": self.kind, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return the target of this kind from the values of `to_json`. For any kind, use
        `corrkd.targets.registry.target_from_json`.

        Raises:
            ValidationError: if a key is unknown or missing, or a value has the wrong type or is out
                of bounds.
            CorrKDError: if the fields do not fit each other.
        """
        fields = {key: value for key, value in values.items() if key != "kind"}
        target = TypeAdapter(cls).validate_json(json.dumps(fields))
        check_labels(target.classes, "classes")
        check_labels(target.questions, "questions")
        target.check()
        return target

    @abstractmethod
    def check(self) -> None:
        """Raise CorrKDError if the fields do not fit each other."""

    def refuse_unless(self, fits: bool) -> None:
        """Raise CorrKDError unless `fits`: the fields on a card fit this kind of target."""
        if not fits:
            raise CorrKDError(f"its classes, questions or cuts are not those of kind {self.kind!r}")


def labels_of(split: LabelledSplit, where: str, name: str) -> npt.NDArray[np.int64]:
    """Return the labels of a split. Raises CorrKDError, which names the target, if it has none."""
    if split.labels is None:
        raise CorrKDError(
            f"{where}: target `{name}` needs labels, but the data has only scores; use a target "
            f"derived from scores"
        )
    return split.labels


def scores_of(split: LabelledSplit, where: str, name: str) -> npt.NDArray[np.float64]:
    """Return the scores of a split. Raises CorrKDError, which names the target, if it has none."""
    if split.scores is None:
        raise CorrKDError(
            f"{where}: target `{name}` needs scores, but the data has only labels; use `classes` "
            f"or `questions`"
        )
    return split.scores


def checked_labels(
    split: LabelledSplit, where: str, target: Target, columns: tuple[int, ...]
) -> Array:
    """Return the labels of a split, (N, *columns) int64. Raises CorrKDError if they are missing,
    have another shape or are outside the classes.
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
    """Return float64 logits unchanged, others in float32: a loss needs more than half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()
