"""Targets by name: the kinds that a model's card names, and what the settings call `data.target`.

Other packages offer kinds through entry points in the group `corrkd.targets`; the settings name
such a kind itself.
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
"""Classes of a score by their name in the settings: made from the training split; keyword `where`
opens error lines.
"""


class LabelledDataset(Protocol):
    """Splits with labels (`corrkd.data.dataset.MultimodalDataset`)."""

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def splits(self) -> Mapping[str, LabelledSplit]:
        """By name."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, or ()."""

    @property
    def question_names(self) -> Sequence[str]:
        """Names of the questions, or ()."""

    def split(self, name: str) -> LabelledSplit:
        """Return a split. Raises CorrKDError where there is none of that name."""


def target_class(kind: str) -> type[Target]:
    """Return the class of a kind. Raises CorrKDError for an unknown one, or a class whose `kind` is
    another.
    """
    class_: type[Target] = find(kind, BUILT_IN, TARGET_GROUP, Target, "target", attribute="kind")
    return class_


def make_target(name: str, dataset: LabelledDataset) -> Target:
    """Return the target called `name` in the settings; thresholds that depend on data come from the
    training split alone.

    Raises:
        CorrKDError: where the dataset lacks what the target needs, or a class has no training
            sample.
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
    """The name of the target that the data has first: questions, classes, or tertiles of the
    score.
    """
    if train.labels is not None:
        return "questions" if train.labels.ndim == 2 else "classes"
    scores = train.scores
    # Where more than a third of the scores are equal at an end, a tertile is empty.
    return "tertiles" if scores is None or len(distinct_tertiles(scores, where)) == 2 else "score"


def target_from_json(values: Any) -> Target:
    """Return the target that a card describes, which may be a stranger's.

    Args:
        values: from `Target.to_json`.

    Raises:
        CorrKDError: a kind that is unknown, or fields that are not its own, out of bounds or do not
            fit each other.
    """
    try:
        if not isinstance(values, Mapping) or not isinstance(values.get("kind"), str):
            raise CorrKDError(f"target: {quoted(values)} names no kind")
        return target_class(values["kind"]).from_json(values)
    except ValidationError as error:
        raise CorrKDError(
            f"the card's target is not readable: target.{first_fault(error)}"
        ) from None
    except CorrKDError as error:
        raise CorrKDError(f"the card's target is not readable: {error}") from None
