"""Reading tables with one row per sample. A modality is a prefix of columns, or a column of lists.

    audio_0, audio_1, audio_pitch     numbers: the modality is the text before the first separator
                                      if that is a usual one (language, audio, vision and their
                                      aliases), else the text before the number, or before the
                                      separator of several columns
    audio                             lists of numbers (a vector), or lists of frames, of any length
    label, labels, y, target, class   classes by number or name; or 0 and 1 in several columns
                                      label_happy, label_sad
    score, scores, sentiment          real numbers
    id, split, order, person, speaker, session, video, group, and names such as speaker_id

Columns become the named arrays of readers/arrays.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from corrkd.data.dataset import SPLITS, MultimodalDataset, StrArray
from corrkd.data.groups import GROUPS
from corrkd.data.readers import arrays
from corrkd.data.readers.deal import VALIDATION, dealt, members_of
from corrkd.data.readers.labels import are_names
from corrkd.data.readers.names import (
    FRAME_IDS,
    LABEL_STEMS,
    LABEL_WORDS,
    LENGTHS,
    OTHER_WORDS,
    PRESENT,
    SPLIT_NAMES,
    USUAL,
    is_no_feature,
    modality_of,
    words_of,
)
from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.sequences import Array, Sequences, is_missing
from corrkd.data.readers.values import strings
from corrkd.errors import CorrKDError
from corrkd.memory import check_memory
from corrkd.targets.labels import MOST_CLASSES

Column = Array | Sequences
"""(N,) numbers (NaN: missing) or objects (text; None: missing), (N, Q) numbers of several labels,
or the sequences of a modality.
"""
Columns = dict[str, Column]

# Further names of the columns that describe a sample, each after the names that arrays may have.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "ids": ("ids", "id", "sample_id", "utterance_id", "segment_id"),
    "split": ("split", "splits", "partition", "subset"),
    "order": ("order",),
    "person": (
        "person",
        "person_id",
        "persons",
        "participant",
        "participant_id",
        "subject",
        "subject_id",
        "group",
        "groups",
    ),
    "speaker": ("speaker", "speaker_id", "speakers"),
    "session": ("session", "session_id", "sessions", "dialogue", "dialogue_id", "dialog_id"),
    "video": ("video", "video_id", "videos"),
    "labels": ("labels", "label", "y", "target", "targets", "class", "classes"),
    "scores": ("scores", "score", "sentiment"),
}
NAMES = ("class_names", "question_names")  # besides the columns, K and Q of them
TEXT = ("ids", "split", *GROUPS)  # read as text, with any contents
SEPARATORS = "_.:/- "
NUMBERED = re.compile(r"(\D.*?)([_.:/\- (\[]*)(\d+)[)\]]?")
MOST_LISTED = 8
MISSING_RULE = "missing values (NaN, null, empty)"


def read(
    columns: Columns, name: str, layout: str, options: ReadOptions, notes: Sequence[str] = ()
) -> MultimodalDataset:
    """Return the dataset in the columns of a table.

    Args:
        columns: by name, all with N rows.
        name: name of the dataset.
        layout: text for display, as "CSV table".
        options: only `label` and `targets` are used.
        notes: notes of the reader.

    Raises:
        CorrKDError: if there is no target or no modality, or columns do not fit one another; the
            message says what to write instead.
    """
    named, more = with_usual_names(name, columns, options)
    if not named:
        raise CorrKDError(f"{name}: a table without columns; write {_example()}")
    named, options = _with_chosen_label(named, options)
    by_name, unused = _arrays(name, named)
    labelled, of_labels = _with_labels(name, by_name, options)
    split, of_split = _with_valid(name, labelled, options)
    left_out = [f"left out: {_listed(unused)}"] if unused else []
    dataset = arrays.read(
        split, name, layout, options, notes=[*notes, *more, *of_labels, *of_split, *left_out]
    )
    marked = {
        m: MISSING_RULE
        for m in dataset.modalities
        if dataset.missing_rule[m] != "all-zero frames inside the length"
    }
    return replace(dataset, layout=layout, missing_rule={**dataset.missing_rule, **marked})


def read_splits(
    parts: Mapping[str, Columns],
    name: str,
    layout: str,
    options: ReadOptions,
    notes: Sequence[str] = (),
) -> MultimodalDataset:
    """Return the dataset in a table for each split, as `read`; other keys are left out with a
    note.
    """
    tables: dict[str, Columns] = {}
    others = [key for key in parts if key.lower() not in SPLIT_NAMES]
    for key, columns in parts.items():
        if key in others:
            continue
        split = SPLIT_NAMES[key.lower()]
        if split in tables:
            raise CorrKDError(f"{name}: two splits are called {split}; leave one out")
        named, more = with_usual_names(f"{name}, {key}", columns, options)
        notes = [*notes, *(note for note in more if note not in notes)]
        named.pop("split", None)
        tables[split] = named
    if others:
        notes = [
            *notes,
            f"left out: {_listed(others)} (not splits, which are named train, valid and test)",
        ]
    if list(tables) == [SPLITS[0]]:  # a single table, as downloaded
        return read(tables[SPLITS[0]], name, layout, options, notes)
    if not tables:
        raise CorrKDError(f"{name}: no split; name them train, valid and test")
    sizes = {split: len(next(iter(columns.values()), ())) for split, columns in tables.items()}
    table = stacked(name, tables)
    table["split"] = np.repeat(np.array(list(sizes), object), list(sizes.values()))
    return read(table, name, layout, options, notes)


# --------------------------------------------------------------------------------------------------
# names


def with_usual_names(
    name: str, columns: Columns, options: ReadOptions
) -> tuple[Columns, list[str]]:
    """Return the columns under the usual names of arrays, in any case and for any synonym, and
    notes on those that were renamed.
    """
    sizes = {key: len(column) for key, column in columns.items() if key not in NAMES}
    if len(set(sizes.values())) > 1:
        counted = ", ".join(f"{key} {size}" for key, size in list(sizes.items())[:MOST_LISTED])
        raise CorrKDError(
            f"{name}: differ in their number of samples: {counted}; give each one row per sample"
        )
    lower = {key.lower().strip(): key for key in reversed(columns)}
    usual: dict[str, str] = {}
    for meant, synonyms in SYNONYMS.items():
        key = next(
            (
                lower[word]
                for word in synonyms
                if word in lower and _fits(meant, columns[lower[word]])
            ),
            None,
        )
        if key is not None:
            usual[key] = meant
    if "labels" not in usual.values() and "scores" not in usual.values():
        usual |= _only_words(columns, lower, usual, options)
    # of MMSA-FET's label.csv
    if "ids" not in usual.values() and {"video_id", "clip_id"} <= set(lower):
        video, clip = (
            strings(columns[lower[key]], key).tolist() for key in ("video_id", "clip_id")
        )
        columns = {
            **columns,
            "ids": np.array([f"{v}$_${c}" for v, c in zip(video, clip, strict=True)], object),
        }
    if "split" not in usual.values() and "mode" in lower and _is_split(columns[lower["mode"]]):
        usual[lower["mode"]] = "split"
    changed = [
        f"{key} read as {meant}"
        for key, meant in usual.items()
        if key.lower() not in (meant, meant[:-1])
    ]
    return {usual.get(key, key): column for key, column in columns.items()}, changed


def _fits(meant: str, column: Column) -> bool:
    """Return whether a column can have the meaning of its name: `video` may contain frames,
    `sentiment` words.
    """
    if isinstance(column, Sequences):
        return meant == "labels"
    if meant == "labels":
        return True
    return column.ndim == 1 and (meant != "scores" or column.dtype.kind != "O")


def _only_words(
    columns: Columns, lower: Mapping[str, str], usual: Mapping[str, str], options: ReadOptions
) -> dict[str, str]:
    """Return the only column of words that are labels by its name, as `emotion`, if no column is
    named label.
    """
    words = [
        key
        for key in lower.values()
        if key not in usual
        and not isinstance(column := columns[key], Sequences)
        and column.dtype.kind == "O"
        and not words_of(key).isdisjoint(LABEL_WORDS)
    ]
    if options.label is None and len(words) > 1 and options.targets:
        raise CorrKDError(
            f"each of the columns {_listed(words)} may be the label; choose one with label "
            f"(--label {words[0]})"
        )
    return {words[0]: "labels"} if len(words) == 1 else {}


def _is_split(column: Column) -> bool:
    return (
        isinstance(column, np.ndarray)
        and column.dtype.kind == "O"
        and {str(value).lower() for value in column.tolist()} <= set(SPLIT_NAMES)
    )


def _with_chosen_label(columns: Columns, options: ReadOptions) -> tuple[Columns, ReadOptions]:
    """Return the columns with the column of words that `label` names as the labels;
    readers/labels.py finds chosen columns of numbers.
    """
    column = columns.get(options.label or "")
    if not isinstance(column, np.ndarray) or column.dtype.kind != "O" or not are_names(column):
        return columns, options
    others = {
        key: values
        for key, values in columns.items()
        if key not in (options.label, "labels", "scores")
    }
    return {**others, "labels": column}, options.model_copy(update={"label": None})


# --------------------------------------------------------------------------------------------------
# arrays


def is_about_samples(key: str) -> bool:
    """Return whether a column's name shows that it contains ids, splits, groups or labels."""
    return any(key.lower().strip() in synonyms for synonyms in SYNONYMS.values())


def has_modalities(columns: Columns) -> bool:
    """Return whether the names of columns, or lists in them, show their modality."""
    named = {key: column for key, column in columns.items() if not is_about_samples(key)}
    try:
        _arrays("columns", named)
    except CorrKDError:
        return False
    return True


def _arrays(name: str, columns: Columns) -> tuple[dict[str, Array], list[str]]:
    """Return named arrays, as readers/arrays.py reads them, and the names of the other columns."""
    reserved = {*SYNONYMS, *NAMES}
    by_name: dict[str, Array] = {}
    families: dict[str, list[str]] = {}
    unused: list[str] = []
    for key, column in columns.items():
        if isinstance(column, Sequences):
            _add_sequences(name, key, column, by_name, unused)
        elif key in reserved or key.endswith((LENGTHS, PRESENT, FRAME_IDS)):
            by_name[key] = _as_text(column) if key in TEXT else column
        elif column.dtype.kind not in "fiub":
            unused.append(key)
        elif is_label(key) or column.ndim > 1:
            by_name[key] = column
        elif not words_of(key).isdisjoint(OTHER_WORDS):
            unused.append(key)
        else:
            families.setdefault(_family(key), []).append(key)
    for family, keys in families.items():
        modality = "vision" if family == "video" else family
        if not family or (len(keys) == 1 and modality_of(modality) not in USUAL):
            unused += keys
            continue
        if modality in by_name:
            raise CorrKDError(
                f"{name}: has a column {modality} and columns {_listed(keys)}; rename one of the "
                f"modalities"
            )
        check_memory(f"{name}, {modality}", 4 * len(keys) * len(columns[keys[0]]))
        table = np.stack(
            [np.asarray(columns[key], np.float32) for key in sorted(keys, key=_natural)], 1
        )
        _add_vectors(modality, table, by_name)
    if not any(
        x.ndim > 1 and not is_label(key) for key, x in by_name.items() if key not in reserved
    ):
        raise CorrKDError(
            f"{name}: no modality in {_listed(columns)}; name columns of numbers by modality, as "
            f"audio_0, audio_1, or give columns of lists"
        )
    by_name |= _question_columns(by_name)
    return by_name, unused


def _add_sequences(
    name: str, key: str, column: Sequences, by_name: dict[str, Array], unused: list[str]
) -> None:
    if key == "labels" or is_label(key):
        if column.num_frames is not None or column.present is not None:
            raise CorrKDError(
                f"{name}: {key}: lists of unequal length or with missing values; give each "
                f"sample the same number of labels"
            )
        by_name[key] = column.frames.astype(np.float64)
        return
    if is_no_feature(key):
        unused.append(key)
        return
    modality = "vision" if key.lower() == "video" else key
    by_name[modality] = column.frames
    if column.lengths is not None:
        by_name.setdefault(f"{modality}{LENGTHS}", column.lengths)
    if column.present is not None:
        by_name.setdefault(f"{modality}{PRESENT}", column.present)


def _add_vectors(modality: str, table: Array, by_name: dict[str, Array]) -> None:
    """Add one vector per sample; samples in which it is all NaN lack the modality."""
    missing: Array = np.all(np.isnan(table), axis=1)
    by_name[modality] = np.where(missing[:, None], np.float32(0), table)
    if missing.any():
        by_name.setdefault(f"{modality}{PRESENT}", ~missing)


def is_label(key: str) -> bool:
    """Return whether a column's name shows that it contains labels. Coordinates y of a usual
    modality are features.
    """
    if not is_no_feature(key):
        return False
    words = words_of(key) - ({"y"} if _is_usual(_first_word(key)) else set())
    return any(stem in key.lower() for stem in LABEL_STEMS) or not words.isdisjoint(LABEL_WORDS)


def _is_usual(word: str) -> bool:
    return word == "video" or modality_of(word) in USUAL


def _family(key: str) -> str:
    """Return the modality of a column of numbers; "" if its name has no prefix."""
    first = _first_word(key)
    if _is_usual(first):
        return first
    prefixed = first != key.lower()
    numbered = NUMBERED.fullmatch(key)
    if numbered and (numbered[2] or not prefixed):
        return numbered[1]
    return first if prefixed else ""


def _first_word(key: str) -> str:
    return re.split(rf"[{re.escape(SEPARATORS)}]", key, maxsplit=1)[0].lower()


def _natural(key: str) -> list[tuple[int, str]]:
    """Return a sort key that places audio_10 after audio_9."""
    return [(int(digits or -1), text) for text, digits in re.findall(r"(\D*)(\d{0,18})", key)]


def _question_columns(by_name: Mapping[str, Array]) -> dict[str, Array]:
    """Return columns label_<name> of 0 and 1 as yes/no questions, if nothing else is the label."""
    if "labels" in by_name or "scores" in by_name:
        return {}
    keys = [key for key in by_name if re.fullmatch(r"labels?[_.].+", key, re.IGNORECASE)]
    if len(keys) < 2 or not all(
        by_name[key].ndim == 1 and np.isin(by_name[key], (0, 1)).all() for key in keys
    ):
        return {}
    names = np.array([re.split(r"[_.]", key, maxsplit=1)[1] for key in keys])
    return {
        "labels": np.stack([by_name[key] for key in keys], 1).astype(np.int64),
        "question_names": names,
    }


def _as_text(column: Array) -> Array:
    if (
        column.dtype.kind == "f"
        and np.isfinite(column).all()
        and (column == np.round(column)).all()
    ):
        # ids that became real numbers through a missing value elsewhere
        column = column.astype(np.int64)
    return np.array(["" if is_missing(value) else str(value) for value in column.tolist()], object)


# --------------------------------------------------------------------------------------------------
# labels


def _with_labels(
    name: str, by_name: dict[str, Array], options: ReadOptions
) -> tuple[dict[str, Array], list[str]]:
    """Return labels and scores without missing values; classes that are not numbered from 0 get
    names.
    """
    by_name, notes = dict(by_name), []
    for key in ("labels", "scores"):
        if key not in by_name:
            continue
        values = by_name[key]
        empty = [is_missing(value) for value in values.tolist()] if values.ndim == 1 else [False]
        if not any(empty):
            continue
        if options.targets:
            raise CorrKDError(
                f"{name}: {sum(empty)} of {len(values)} rows have no {key[:-1]}; leave such rows "
                f"out, for example with frame.dropna(subset=[{key[:-1]!r}])"
            )
        del by_name[key]
        notes.append(f"{key} are ignored: {sum(empty)} of {len(values)} are missing")
    if "labels" in by_name and by_name["labels"].ndim == 1 and "class_names" not in by_name:
        more = _numbered_classes(by_name["labels"])
        by_name |= more
        if "class_names" in more:
            notes.append(f"classes are {_listed(more['class_names'].tolist())}, by number")
    return by_name, notes


def _numbered_classes(labels: Array) -> dict[str, Array]:
    """Return whole numbers that are not 0 to K - 1 as classes of those names; text that contains
    only numbers, as numbers.
    """
    if labels.dtype.kind == "O":
        if are_names(labels):
            return {"labels": np.array([str(value) for value in labels.tolist()], object)}
        labels = labels.astype(np.float64)
    if labels.dtype.kind not in "fiu" or (labels != np.round(labels)).any():
        return {"labels": labels}
    distinct, classes = np.unique(labels, return_inverse=True)
    if len(distinct) > MOST_CLASSES or np.array_equal(distinct, np.arange(len(distinct))):
        return {"labels": labels}
    return {
        "labels": classes.astype(np.int64),
        "class_names": np.array([f"{value:.0f}" for value in distinct]),
    }


# --------------------------------------------------------------------------------------------------
# splits


def _with_valid(
    name: str, by_name: dict[str, Array], options: ReadOptions
) -> tuple[dict[str, Array], list[str]]:
    """Return the arrays with 15 % of train as valid, and a note on it, if splits are named but
    valid is not.
    """
    labelled = any(
        key in ("labels", "scores") or is_label(key) for key in by_name if key not in NAMES
    )
    if "split" not in by_name or not labelled:
        return by_name, []
    words = [value.lower() for value in _as_text(by_name["split"]).tolist()]
    split = np.array([SPLIT_NAMES.get(word, word) for word in words])
    train = np.flatnonzero(split == SPLITS[0])
    if SPLITS[1] in split or not len(train):
        return {**by_name, "split": split}, []
    by, members = members_of_columns(by_name, len(split))
    try:
        split[train] = dealt(members[train], {SPLITS[0]: 1 - VALIDATION, SPLITS[1]: VALIDATION})
    except CorrKDError as error:
        if options.targets:
            raise CorrKDError(f"{name}: {error}") from None
        return by_name, []
    return {**by_name, "split": split}, [
        f"no validation split: {100 * VALIDATION:.0f} % of train held out by {by}, seed 0"
    ]


def members_of_columns(by_name: Mapping[str, Column], count: int) -> tuple[str, StrArray]:
    """Return the kind of the groups, and the group of each sample, (N,), as `members_of`.

    Args:
        by_name: columns by their usual names: `ids`, `person` and the like; others are ignored.
        count: N.
    """
    ids = (
        strings(by_name["ids"])
        if "ids" in by_name
        else np.array([f"sample-{row}" for row in range(count)])
    )
    return members_of(
        ids, {kind: strings(by_name[kind], kind) for kind in GROUPS if kind in by_name}
    )


def stacked(name: str, tables: Mapping[str, Columns]) -> Columns:
    """Return several tables one below the other. A column that a table lacks is missing there.

    Args:
        name: begins error messages.
        tables: by a name of each, as that of its split.

    Raises:
        CorrKDError: if a modality has another width, or a column another form, in one of them.
    """
    sizes = {split: len(next(iter(columns.values()), ())) for split, columns in tables.items()}
    keys = list(dict.fromkeys(chain.from_iterable(tables.values())))
    table: Columns = {}
    for key in keys:
        parts = {split: columns.get(key) for split, columns in tables.items()}
        some = [piece for piece in parts.values() if piece is not None]
        if key in NAMES:
            table[key] = some[0]
        elif all(isinstance(piece, Sequences) for piece in some):
            table[key] = _stacked_sequences(f"{name}, {key}", parts, sizes)
        elif any(isinstance(piece, Sequences) for piece in some):
            raise CorrKDError(
                f"{name}: column {key} has lists in some splits and single values in others; "
                f"use one form"
            )
        else:
            table[key] = _stacked_columns(f"{name}, {key}", parts, sizes)
    return table


def _stacked_columns(
    where: str, parts: Mapping[str, Column | None], sizes: Mapping[str, int]
) -> Array:
    some = [piece for piece in parts.values() if isinstance(piece, np.ndarray)]
    if len({piece.shape[1:] for piece in some}) > 1:
        raise CorrKDError(
            f"{where}: differs in shape between splits: "
            f"{sorted({piece.shape[1:] for piece in some})}; use one shape"
        )
    text = any(piece.dtype.kind == "O" for piece in some)
    pieces = []
    for split, piece in parts.items():
        if piece is None:
            piece = np.full(
                (sizes[split], *some[0].shape[1:]),
                None if text else np.nan,
                object if text else np.float64,
            )
        assert isinstance(piece, np.ndarray)
        pieces.append(piece.astype(object) if text else piece)
    return np.concatenate(pieces)


def _stacked_sequences(
    where: str, parts: Mapping[str, Column | None], sizes: Mapping[str, int]
) -> Sequences:
    some = [piece for piece in parts.values() if isinstance(piece, Sequences)]
    widths = {piece.frames.shape[-1] for piece in some}
    if len(widths) > 1:
        raise CorrKDError(
            f"{where}: is {' or '.join(map(str, sorted(widths)))} wide; give all splits the same "
            f"features"
        )
    width, vectors = widths.pop(), all(piece.num_frames is None for piece in some)
    absent = len(some) < len(parts)
    longest = max(piece.num_frames or 1 for piece in some)
    count = sum(sizes.values())
    check_memory(where, 4 * count * longest * width)
    frames = np.zeros((count, longest, width), np.float32)
    lengths, present = np.zeros(count, np.int64), np.zeros((count, longest), bool)
    start = 0
    for split, piece in parts.items():
        rows = slice(start, start + sizes[split])
        start += sizes[split]
        if not isinstance(piece, Sequences):
            continue
        values = piece.frames if piece.frames.ndim == 3 else piece.frames[:, None]
        inside = slice(0, values.shape[1])
        frames[rows, inside] = values
        lengths[rows] = _content(values) if piece.lengths is None else piece.lengths
        exists = (
            values.any(-1) if piece.present is None else piece.present.reshape(values.shape[:2])
        )
        present[rows, inside] = exists & (np.arange(values.shape[1]) < lengths[rows, None])
    marked = absent or any(piece.present is not None for piece in some)
    if vectors:
        return Sequences(frames[:, 0], present=present[:, 0] if marked else None)
    stated = (
        absent
        or any(piece.lengths is not None for piece in some)
        or len({piece.num_frames for piece in some}) > 1
    )
    return Sequences(frames, lengths if stated else None, present if marked else None)


def _content(values: Array) -> Array:
    """Return the number of frames up to the last that is not all zero, (N,); 1 for vectors."""
    occupied: Array = np.any(values, axis=-1)
    last = occupied.shape[1] - occupied[:, ::-1].argmax(1)
    return np.where(occupied.any(1), last, 1 if values.shape[1] == 1 else 0)


# --------------------------------------------------------------------------------------------------
# messages


def _example() -> str:
    return "columns such as audio_0, audio_1, text_0, label"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(map(str, names[:MOST_LISTED])) + more
