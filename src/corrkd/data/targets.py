"""From what annotators gave to what is predicted: all thresholds of the field, by name (docs/metrics.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import BoolArray, MultimodalDataset, Split
from corrkd.errors import CorrKDError

Kind = Literal["classes", "questions", "score"]

# name -> (thresholds, whether a score equal to a threshold belongs to the class above, names of the classes)
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
# name -> (bound of the clipped and rounded score, names)
ROUNDED: dict[str, tuple[int, tuple[str, ...]]] = {
    "ternary": (1, ("negative", "neutral", "positive")),
    "five": (2, ("-2", "-1", "0", "+1", "+2")),
    "seven": (3, ("-3", "-2", "-1", "0", "+1", "+2", "+3")),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is predicted, with the thresholds fixed on the training split.

    Attributes:
        name: as in the settings ("binary-nonzero", "tertiles", "classes", "questions", "score", ...).
        kind: "classes": targets (N,) int64 and logits (N, K); "questions": (N, Q) in {0, 1} and (N, Q, 2); "score": (N,) float64
            and (N, 1).
        classes: K names; for questions ("no", "yes"); for scores the names of the categories.
        questions: Q names, else ().
        cuts: thresholds between classes, where the rule has any; for scores: of the categories that F1 and the prototypes use.
        upward: whether a score equal to a threshold belongs to the class above it.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    questions: tuple[str, ...] = ()
    cuts: tuple[float, ...] = ()
    upward: bool = True

    @property
    def num_outputs(self) -> int:
        """What the classifier answers for a sample: K classes, Q questions, or 1 score."""
        return {"classes": len(self.classes), "questions": len(self.questions), "score": 1}[self.kind]

    def of(self, split: Split, where: str) -> tuple[npt.NDArray[Any], BoolArray]:
        """Targets of a split, and which samples count: zeros leave "binary-nonzero", nothing leaves the others.

        Returns:
            targets as under `kind`, for all N samples (a sample that does not count has an arbitrary class), and (N,) booleans.

        Raises:
            CorrKDError: where the split lacks what the target needs, or a label is outside the classes. `where` opens the line.
        """
        everything = np.ones(len(split), bool)
        if self.name in ("classes", "questions"):
            labels = _labels(split, where, self.name)
            expected = (len(split), len(self.questions)) if self.questions else (len(split),)
            if labels.shape != expected:
                raise CorrKDError(
                    f"{where}: labels have shape {labels.shape}, expected {expected} for target `{self.name}`"
                )
            highest = int(labels.max())
            if highest >= len(self.classes):
                raise CorrKDError(
                    f"{where}: label {highest} is outside the {len(self.classes)} classes {', '.join(self.classes)}"
                )
            return labels.astype(np.int64), everything
        scores = _scores(split, where, self.name)
        if self.kind == "score":
            return scores, everything
        keep = scores != 0 if self.name == "binary-nonzero" else everything
        return self.categories(scores), keep

    def categories(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Class of each score by the target's thresholds, (N,) in 0..K-1. Half is rounded to even, as the field does."""
        if self.name in ROUNDED:
            bound = ROUNDED[self.name][0]
            return (np.round(np.clip(scores, -bound, bound)) + bound).astype(np.int64)
        # float32 predictions are compared in float64: a threshold means the same for truth and prediction.
        return np.digitize(np.asarray(scores, np.float64), self.cuts, right=not self.upward).astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a model's card."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Target:
        """Back from `to_json`. Raises CorrKDError where keys or types are not a target's."""
        try:
            found = Target(
                name=str(values["name"]),
                kind=values["kind"],
                classes=tuple(map(str, values["classes"])),
                questions=tuple(map(str, values["questions"])),
                cuts=tuple(map(float, values["cuts"])),
                upward=bool(values["upward"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorrKDError(f"the card's target is not readable: {error!r}") from None
        fits = {
            "classes": len(found.classes) >= 2,
            "questions": len(found.classes) == 2 and len(found.questions) >= 1,
            "score": len(found.classes) == len(found.cuts) + 1 and bool((np.diff(found.cuts) > 0).all()),
        }
        if not fits.get(found.kind) or not np.isfinite(found.cuts).all():
            raise CorrKDError(
                f"the card's target is not readable: its classes, questions or cuts are not those of kind {found.kind!r}"
            )
        return found


def make_target(name: str, dataset: MultimodalDataset) -> Target:
    """The target called `name` on this dataset; thresholds that depend on data come from its training split alone.

    Raises:
        CorrKDError: where the dataset lacks what the target needs, or a class has no training sample.
    """
    train = dataset.split("train")
    where = f"dataset {dataset.name}, train"
    if name == "auto":
        name = _automatic(train, where)
    target = _make(name, dataset, train, where)
    values, keep = target.of(train, where)
    for split in dataset.splits:
        if not target.of(dataset.split(split), f"dataset {dataset.name}, {split}")[1].any():
            raise CorrKDError(f"dataset {dataset.name}, {split}: no sample is left for target `{target.name}`")
    _every_class_present(target, values[keep], where)
    return target


def _make(name: str, dataset: MultimodalDataset, train: Split, where: str) -> Target:
    if name == "classes":
        labels = _labels(train, where, name)
        if labels.ndim != 1:
            raise CorrKDError(f"{where}: labels have shape {labels.shape}: yes/no questions; use target `questions`")
        names = dataset.class_names or tuple(str(k) for k in range(int(labels.max()) + 1))
        return Target(name=name, kind="classes", classes=names)
    if name == "questions":
        labels = _labels(train, where, name)
        if labels.ndim != 2 or labels.max() > 1:
            raise CorrKDError(
                f"{where}: target `questions` needs yes/no labels of shape (N, questions), found {labels.shape}"
            )
        questions = dataset.question_names or tuple(f"question {q}" for q in range(labels.shape[1]))
        return Target(name=name, kind="questions", classes=("no", "yes"), questions=questions)
    scores = _scores(train, where, name)
    if name in ROUNDED:
        return Target(name=name, kind="classes", classes=ROUNDED[name][1])
    if name in THRESHOLDS:
        cuts, upward, names = THRESHOLDS[name]
        return Target(name=name, kind="classes", classes=names, cuts=cuts, upward=upward)
    if name == "tertiles":
        return Target(name=name, kind="classes", classes=("low", "middle", "high"), cuts=_tertiles(scores))
    if scores.min() < 0 < scores.max():
        return Target(name="score", kind="score", classes=("negative", "non-negative"), cuts=(0.0,))
    cuts = _distinct_tertiles(scores, where)
    return Target(
        name="score", kind="score", classes=("low", "middle", "high") if len(cuts) == 2 else ("low", "high"), cuts=cuts
    )


def _automatic(train: Split, where: str) -> str:
    if train.labels is not None:
        return "questions" if train.labels.ndim == 2 else "classes"
    scores = train.scores
    # Where more than a third of the scores are equal at an end, a tertile is empty.
    return "tertiles" if scores is None or len(_distinct_tertiles(scores, where)) == 2 else "score"


def _tertiles(scores: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(cut) for cut in np.quantile(scores, [1 / 3, 2 / 3]))


def _distinct_tertiles(scores: npt.NDArray[np.float64], where: str) -> tuple[float, ...]:
    """The tertiles, or, where so many scores are equal that a class would be empty, one cut: above the lowest score.

    Raises:
        CorrKDError: all scores are equal.
    """
    values = np.unique(scores)
    if len(values) == 1:
        raise CorrKDError(f"{where}: all scores are {values[0]:g}; nothing is to be learned from them")
    cuts = tuple(cut for cut in sorted(set(_tertiles(scores))) if cut > values[0])
    return cuts or (float(values[1]),)


def _labels(split: Split, where: str, name: str) -> npt.NDArray[np.int64]:
    if split.labels is None:
        raise CorrKDError(
            f"{where}: target `{name}` needs labels, but the data has scores only; use a target made from scores"
        )
    return split.labels


def _scores(split: Split, where: str, name: str) -> npt.NDArray[np.float64]:
    if split.scores is None:
        raise CorrKDError(
            f"{where}: target `{name}` needs scores, but the data has labels only; use `classes` or `questions`"
        )
    return split.scores


def _every_class_present(target: Target, values: npt.NDArray[Any], where: str) -> None:
    if target.kind == "score":
        return
    columns = values if values.ndim == 2 else values[:, None]
    for place, column in enumerate(columns.T):
        for label, name in enumerate(target.classes):
            if not (column == label).any():
                asked = f" to question {target.questions[place]}" if target.questions else ""
                raise CorrKDError(
                    f"{where}: no sample of class {name!r}{asked} for target `{target.name}`; choose another target"
                )
