"""Targets by name: the kinds on model cards, and the values of `data.target` in the settings.

Other packages register kinds through entry points in the group `corrkd.targets`. In the settings,
`data.target` is then the name of the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from pydantic import ValidationError

from corrkd.errors import CorrKDError
from corrkd.parsing import first_fault, quoted
from corrkd.plugins import find
from corrkd.settings import TARGET_GROUP
from corrkd.targets.base import LabelledSplit, Target
from corrkd.targets.classes import (
    ROUNDED,
    THRESHOLDS,
    rounded_classes,
    tertile_classes,
    threshold_classes,
)
from corrkd.targets.thresholds import distinct_tertiles

BUILT_IN = {
    "classes": "corrkd.targets.classes:ClassesTarget",
    "questions": "corrkd.targets.questions:QuestionsTarget",
    "score": "corrkd.targets.score:ScoreTarget",
    "mosi-score": "corrkd.targets.benchmark_scores:MosiScoreTarget",
    "sims-score": "corrkd.targets.benchmark_scores:SimsScoreTarget",
}
OF_SCORES: dict[str, Callable[..., Target]] = {
    "tertiles": tertile_classes,
    **{name: partial(threshold_classes, name) for name in THRESHOLDS},
    **{name: partial(rounded_classes, name) for name in ROUNDED},
}
"""Classes of a score by name in the settings: functions of the training split and the keyword
`where`, the prefix of error messages.
"""


class LabelledDataset(Protocol):
    """Splits with labels (`corrkd.data.dataset.MultimodalDataset`)."""

    @property
    def name(self) -> str:
        """Name in error messages."""

    @property
    def splits(self) -> Mapping[str, LabelledSplit]:
        """Splits by name."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, or ()."""

    @property
    def question_names(self) -> Sequence[str]:
        """Names of the questions, or ()."""

    def split(self, name: str) -> LabelledSplit:
        """Return the split with this name. Raises CorrKDError if it does not exist."""


def target_class(kind: str) -> type[Target]:
    """Return the class of a kind. Raises CorrKDError if the kind is unknown or the class found has
    another `kind`.
    """
    class_: type[Target] = find(kind, BUILT_IN, TARGET_GROUP, Target, "target", attribute="kind")
    return class_


def make_target(name: str, dataset: LabelledDataset) -> Target:
    """Return the target with this name in the settings. Thresholds that depend on data are fitted
    to the training split.

    Raises:
        CorrKDError: if the dataset lacks what the target requires, no sample of a split counts, or
            a class has no training sample.
    """
    train = dataset.split("train")
    where = f"dataset {dataset.name}, train"
    target = _fit(_automatic(train, where) if name == "auto" else name, dataset, train, where)
    targets, keep = target.of(train, where)
    for split in dataset.splits:
        if not target.of(dataset.split(split), f"dataset {dataset.name}, {split}")[1].any():
            raise CorrKDError(
                f"dataset {dataset.name}, {split}: no sample is left for target `{target.name}`"
            )
    target.check_training(targets[keep], where)
    return target


def _fit(name: str, dataset: LabelledDataset, train: LabelledSplit, where: str) -> Target:
    if name in OF_SCORES:
        return OF_SCORES[name](train, where=where)
    names = {"class_names": dataset.class_names, "question_names": dataset.question_names}
    return target_class(name).fit(train, where=where, **names)


def _automatic(train: LabelledSplit, where: str) -> str:
    """Return the name of the first target that the data allows: questions, classes, or tertiles of
    the score.
    """
    if train.labels is not None:
        return "questions" if train.labels.ndim == 2 else "classes"
    scores = train.scores
    # A tertile is empty if more than a third of the scores equal the lowest or the highest.
    return "tertiles" if scores is None or len(distinct_tertiles(scores, where)) == 2 else "score"


def target_from_json(values: Any) -> Target:
    """Return the target on a model card, which is untrusted.

    Args:
        values: from `Target.to_json`.

    Raises:
        CorrKDError: if the kind is unknown, or fields do not belong to it, are out of bounds or do
            not fit each other.
    """
    try:
        if not isinstance(values, Mapping) or not isinstance(values.get("kind"), str):
            raise CorrKDError(f"target: {quoted(values)} has no kind")
        return target_class(values["kind"]).from_json(values)
    except ValidationError as error:
        raise CorrKDError(
            f"the target on the card is invalid: target.{first_fault(error)}"
        ) from None
    except CorrKDError as error:
        raise CorrKDError(f"the target on the card is invalid: {error}") from None
