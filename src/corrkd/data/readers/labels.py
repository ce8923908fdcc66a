"""Choosing the label columns of a file: `--label COLUMN`, classes by name, and labels of two
values.

A choice has the form `[scores:|questions:]COLUMN[@THRESHOLD][,COLUMN...]`. One column is a score;
several are yes/no questions, each yes above its threshold (0); for a single question, yes and no
are two classes. A column is named as in the file (`happy`, `emotion_labels.happy`), or by its index
within an array (`labels.3`, or `3` if only one array has columns); the name of an array selects all
of its columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.raw import Array, Columns, RawSplit
from corrkd.data.readers.values import column, strings
from corrkd.errors import CorrKDError

EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")  # CMU-MOSEI's order
SENTIMENT = "sentiment"
HIGHEST_INTENSITY = 3.0  # of an emotion in CMU-MOSEI
FORMS = ("scores", "questions")
MOST_LISTED = 20  # columns in a message


@dataclass(frozen=True)
class LabelChoice:
    """The choice of `--label`.

    Attributes:
        form: "scores" or "questions".
        columns: (name, threshold) of each column; a score does not use its threshold.
    """

    form: str
    columns: tuple[tuple[str, float], ...]


def parse_choice(text: str) -> LabelChoice:
    """Return the choice in a text (see the top of this file). Raises CorrKDError if it is
    invalid.
    """
    form, colon, rest = text.partition(":")
    if not colon or form not in FORMS:
        form, rest = "", text
    columns = []
    for item in rest.split(","):
        name, at, threshold = item.strip().rpartition("@")
        try:
            columns.append((name, float(threshold)) if at else (threshold, 0.0))
        except ValueError:
            raise CorrKDError(
                f"label {text[:80]!r}: {threshold[:40]!r} is not a number; write COLUMN@NUMBER"
            ) from None
    if any(not name for name, _ in columns):
        raise CorrKDError(
            f"label {text[:80]!r}: expected [scores:|questions:]COLUMN[@THRESHOLD][,COLUMN...]"
        )
    return LabelChoice(form or ("scores" if len(columns) == 1 else "questions"), tuple(columns))


def columns_of(key: str, values: Array, names: Sequence[str] = ()) -> Columns:
    """Return the columns of a label array, {"key.name": (N,)}; {"key": (N,)} if it has a single
    one.

    Args:
        key: name of the array.
        values: (N,), (N, Q), (N, 1) or (N, 1, Q) numbers.
        names: names of the columns, if the file gives one for each; else CMU-MOSEI's if the values
            fit, else indices.
    """
    table = values.reshape(len(values), -1)
    if table.shape[1] == 1:
        return {key: table[:, 0]}
    if len(set(names)) != table.shape[1]:  # none, or not one per column
        names = mosei_names(table) or [str(i) for i in range(table.shape[1])]
    return {f"{key}.{name}": table[:, i] for i, name in enumerate(names)}


def mosei_names(table: Array) -> tuple[str, ...]:
    """Return CMU-MOSEI's column names if a label table of 6 or 7 columns can be its, else ()."""
    if table.shape[1] not in (6, 7):
        return ()
    if np.isin(table, (0, 1)).all() and (table.sum(1) == 1).all():
        return ()  # one-hot classes
    emotions = table[:, -6:]
    fits = bool(((emotions >= 0) & (emotions <= HIGHEST_INTENSITY)).all() and (emotions == 0).any())
    return (() if table.shape[1] == 6 else (SENTIMENT,)) + EMOTIONS if fits else ()


def find_column(where: str, columns: Mapping[str, Any], name: str) -> list[str]:
    """Return the full names of the columns that `name` refers to: one, or all of an array's.

    Raises:
        CorrKDError: if there is no column of that name, or several arrays have one.
    """
    if name in columns:
        return [name]
    if inside := [full for full in columns if full.startswith(f"{name}.")]:
        return inside
    matches = [full for full in columns if full.rpartition(".")[2].lower() == name.lower()]
    if len(matches) == 1:
        return matches
    if matches:
        raise CorrKDError(
            f"{where}: label {name[:60]!r} is in several arrays: choose one of {', '.join(matches)}"
        )
    raise CorrKDError(f"{where}: no label column {name[:60]!r}; it has {listed(columns)}")


def listed(columns: Iterable[str]) -> str:
    """Return the names of columns as text for a message."""
    names = list(columns)
    return ", ".join(names[:MOST_LISTED]) + (
        f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    )


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """The facts about a dataset's labels besides their values, as in `MultimodalDataset`."""

    class_names: tuple[str, ...] = ()
    question_names: tuple[str, ...] = ()
    score_range: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def settle_labels(
    name: str, parts: Mapping[str, RawSplit], options: ReadOptions, facts: LabelFacts
) -> LabelFacts:
    """Give each split the chosen labels, with words as classes and two values as two classes.

    Args:
        name: name of the dataset.
        parts: splits; their scores and labels are replaced.
        options: only `label` and `targets` are used.
        facts: facts about the usual labels of the layout.

    Returns:
        The facts about the new labels.

    Raises:
        CorrKDError: if a column does not exist, or there are several and none is chosen.
    """
    columns = list(
        dict.fromkeys(full for raw_split in parts.values() for full in raw_split.columns)
    )
    if options.label is not None:
        facts = _choose(name, parts, parse_choice(options.label), facts)
    elif any(
        raw_split.scores is None and raw_split.labels is None and raw_split.columns
        for raw_split in parts.values()
    ):
        if len(columns) == 1:
            facts = _choose(name, parts, LabelChoice("scores", ((columns[0], 0.0),)), facts)
        elif columns and options.targets:
            raise CorrKDError(
                f"{name}: has several label columns; choose with --label: {listed(columns)}"
            )
    if len(columns) > 1:
        note = f"label columns: {listed(columns)}; " + (
            f"read: {options.label}" if options.label else "choose with --label"
        )
        facts = replace(facts, notes=(*facts.notes, note))
    return _two_classes(name, parts, _classes_by_name(name, parts, facts))


def _choose(
    name: str, parts: Mapping[str, RawSplit], choice: LabelChoice, facts: LabelFacts
) -> LabelFacts:
    questions: tuple[str, ...] = ()
    for split, raw_split in parts.items():
        where = f"{name}, {split}"
        picked = [
            (full, cut)
            for column, cut in choice.columns
            for full in find_column(where, raw_split.columns, column)
        ]
        values = [raw_split.columns[full] for full, _ in picked]
        if choice.form == "questions":
            questions = tuple(full.rpartition(".")[2] for full, _ in picked)
            numbers = [_finite(where, full, x) for (full, _), x in zip(picked, values, strict=True)]
            answers = [x > cut for x, (_, cut) in zip(numbers, picked, strict=True)]
            raw_split.scores, raw_split.labels = None, np.stack(answers, 1).astype(np.int64)
            if len(answers) == 1:
                raw_split.labels = raw_split.labels[:, 0]
        elif len(picked) > 1:
            raise CorrKDError(
                f"{where}: scores are of one column; found {listed(full for full, _ in picked)}"
            )
        elif are_names(values[0]):
            raw_split.scores, raw_split.labels = None, values[0]
        else:
            raw_split.scores, raw_split.labels = _finite(where, picked[0][0], values[0]), None
    if len(questions) == 1:
        return LabelFacts(class_names=("no", "yes"), notes=facts.notes)
    return LabelFacts(question_names=questions, notes=facts.notes)


def _finite(where: str, name: str, values: Array) -> npt.NDArray[np.float64]:
    numbers = column(where, values, f"labels {name}", len(values))
    if not np.isfinite(numbers).all():
        raise CorrKDError(
            f"{where}: labels {name} contain NaN or infinite values; leave such samples out"
        )
    return numbers


def are_names(values: Any) -> bool:
    """Return whether labels are words: text that is not a number in any notation."""
    items = np.asarray(values, object).ravel().tolist()
    return any(isinstance(x, str | bytes) for x in items) and not all(map(_is_number, items))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _classes_by_name(name: str, parts: Mapping[str, RawSplit], facts: LabelFacts) -> LabelFacts:
    """Replace labels that are words by indices of the class names, in the order of the file or
    sorted.
    """
    labelled = {
        split: raw_split for split, raw_split in parts.items() if raw_split.labels is not None
    }
    if not any(are_names(raw_split.labels) for raw_split in labelled.values()):
        return facts
    words = {
        split: strings(raw_split.labels, f"{name}, {split}: labels")
        for split, raw_split in labelled.items()
    }
    distinct = sorted({word for column in words.values() for word in column.tolist()})
    classes = facts.class_names if set(distinct) <= set(facts.class_names) else tuple(distinct)
    index = {word: i for i, word in enumerate(classes)}
    for split, raw_split in labelled.items():
        raw_split.labels = np.array([index[word] for word in words[split].tolist()], np.int64)
    return replace(facts, class_names=classes)


def _two_classes(name: str, parts: Mapping[str, RawSplit], facts: LabelFacts) -> LabelFacts:
    """Turn scores that are 0 and 1, or -1 and 1, into classes too; labels of -1 and 1 become 0 and
    1.
    """
    for what in ("labels", "scores"):
        arrays = [getattr(raw_split, what) for raw_split in parts.values()]
        if any(x is None for x in arrays):
            continue
        values = [column(name, x, what, len(x)) for x in arrays if np.size(x) == len(x)]
        distinct = (
            tuple(np.unique(np.concatenate(values)).tolist()) if len(values) == len(arrays) else ()
        )
        if distinct == (-1.0, 1.0) or (distinct == (0.0, 1.0) and what == "scores"):
            for raw_split, numbers in zip(parts.values(), values, strict=True):
                raw_split.labels = (numbers > 0).astype(np.int64)
            names = (
                facts.class_names
                if len(facts.class_names) == 2
                else tuple(f"{x:g}" for x in distinct)
            )
            note = f"{what} are {distinct[0]:g} and {distinct[1]:g}: read as two classes"
            return replace(facts, class_names=names, notes=(*facts.notes, note))
        if what == "labels":
            return facts
    return facts
