"""MMSA's layout (`aligned_50.pkl`, `unaligned_50.pkl`, CH-SIMS) and MMSA-FET's: a dict of splits,
each a dict of arrays.

MMSA-FET writes two: a dataset of clips in MMSA's layout, and a single clip's arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from corrkd.data.dataset import TOKEN_SCALE, WHOLE, MultimodalDataset
from corrkd.data.groups import GROUPS
from corrkd.data.readers.assemble import assemble, likert_range, sign_class_names
from corrkd.data.readers.labels import columns_of
from corrkd.data.readers.names import LENGTHS, is_no_feature, label_keys, modality_names
from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.raw import RawSplit
from corrkd.data.readers.split_dicts import feature_names, left_out, raw_split, splits_of
from corrkd.data.readers.values import numeric, strings
from corrkd.errors import CorrKDError

SCORES, CLASSES, WORDS, TOKENS = (
    "regression_labels",
    "classification_labels",
    "annotations",
    "text_bert",
)
MODALITIES = ("text", "audio", "vision")
MARKS = (SCORES, CLASSES, WORDS, TOKENS, "raw_text", "audio_lengths", "vision_lengths")
OTHERS = ("id", "raw_text", WORDS, TOKENS, "order", "frame_ids", "mask")


def recognises(data: Any) -> bool:
    """Return whether data is a dict of splits, one of which has an array with a name that only MMSA
    uses and none has `labels`, as in MulT's layout.
    """
    parts = [contents for contents in data.values() if isinstance(contents, dict)]
    return any(key in contents for contents in parts for key in MARKS) and not any(
        "labels" in contents for contents in parts
    )


def recognises_clip(data: Any) -> bool:
    """Return whether data is a flat dict of one clip's arrays, as MMSA-FET's `run_single` returns
    it: (T, d) by modality, `text_bert` (3, T), `config`.
    """
    if not isinstance(data, dict) or not any(_is_table(data.get(key)) for key in MODALITIES):
        return False
    return "config" in data or (_is_table(data.get(TOKENS)) and len(data[TOKENS]) == 3)


def _is_table(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.ndim == 2


def read_clip(data: Mapping[str, Any], name: str, options: ReadOptions) -> MultimodalDataset:
    """Return the dataset of the single sample in a clip's dict, with the split "all". Raises
    CorrKDError if targets are required.
    """
    if options.targets:
        raise CorrKDError(
            f"{name}: a single clip without labels; it can be inspected and predicted, but "
            f"not trained on"
        )
    arrays = {key: x for key, x in data.items() if isinstance(x, np.ndarray) and x.ndim == 2}
    names = modality_names(key for key in arrays if key not in OTHERS and not is_no_feature(key))
    frames = {m: data[key][None] for key, m in names.items() if np.size(data[key])}
    if options.tokens:
        frames = {
            "language": _token_ids(name, data.get(TOKENS), batch=False),
            **_without_language(frames),
        }
    notes = [f"{m} is empty: missing" for key, m in names.items() if not np.size(data[key])]
    raw = RawSplit(frames=frames, ids=[name])
    return assemble(
        name,
        {WHOLE: raw},
        options,
        layout="MMSA-FET, one clip",
        notes=notes,
        tokens=_tokens(options),
    )


def read(data: Mapping[str, Any], name: str, options: ReadOptions) -> MultimodalDataset:
    """Return the dataset in MMSA's dict: `text`, `audio`, `vision` and any further (N, T, d) or (N,
    d) float array.

    Lengths come from `<modality>_lengths`; for `text` also from the mask in `text_bert`, which
    counts [CLS] and [SEP]. At these, aligned files have no audio and vision, which does not count
    as missing. CH-SIMS's labels of single modalities (`regression_labels_T` ...) and emotions
    merged into the file are label columns, not features.

    Raises:
        CorrKDError: if arrays do not fit one another, or there are token ids where BERT states are
            required.
    """
    parts, notes = splits_of(data, name)
    features = {
        split: _features(f"{name}, {split}", contents, options) for split, contents in parts.items()
    }
    raw = {
        split: _read_split(f"{name}, {split}", contents, features[split], options)
        for split, contents in parts.items()
    }
    columns = [full for contents in raw.values() for full in contents.columns]
    notes += left_out(
        parts,
        [key for keys in features.values() for key in keys],
        columns,
        (*OTHERS, SCORES, CLASSES),
    )
    sims = any("regression_labels_T" in contents for contents in parts.values())
    sequences = {
        x.shape[1] for contents in raw.values() for x in contents.frames.values() if np.ndim(x) == 3
    }
    return assemble(
        name,
        raw,
        options,
        layout=f"MMSA {'aligned' if len(sequences) <= 1 else 'unaligned'}"
        f"{', CH-SIMS' if sims else ''}",
        special_tokens=options.tokens
        or all(
            TOKENS in contents and f"text{LENGTHS}" not in contents for contents in parts.values()
        ),
        notes=notes,
        class_names=_class_names(parts) or sign_class_names(raw),
        score_range=(-1.0, 1.0) if sims else likert_range(raw),
        tokens=_tokens(options),
    )


def _features(where: str, contents: Mapping[str, Any], options: ReadOptions) -> dict[str, str]:
    """Return {key: modality}, without language if token ids are read. Raises CorrKDError if the
    language consists of token ids only.
    """
    names = feature_names(where, contents, _count(where, contents), (*OTHERS, *GROUPS))
    names = {key: m for key, m in names.items() if np.size(contents[key])}
    if options.tokens:
        return {key: m for key, m in names.items() if m != "language"}
    if TOKENS in contents and "language" not in names.values():
        raise CorrKDError(
            f"{where}: has {TOKENS}, the token ids of BERT, but no `text`; add BERT's states as "
            f"`text`, read the ids themselves (--tokens), or leave {TOKENS} out to "
            "continue without language"
        )
    return names


def _read_split(
    where: str, contents: Mapping[str, Any], features: Mapping[str, str], options: ReadOptions
) -> RawSplit:
    raw = raw_split(contents, features)
    if options.tokens:
        raw.frames = {"language": _token_ids(where, contents.get(TOKENS)), **raw.frames}
    if "language" not in raw.lengths and "language" in raw.frames:
        raw.lengths |= _lengths_of_tokens(where, contents, raw.frames["language"])
    raw.ids = contents.get("id")
    raw.scores = None if contents.get(SCORES) is None else numeric(where, contents[SCORES], SCORES)
    raw.labels = contents.get(CLASSES)
    for key in label_keys(contents, _count(where, contents), (*OTHERS, *GROUPS)):
        raw.columns |= columns_of(key, contents[key])
    return raw


def _count(where: str, contents: Mapping[str, Any]) -> int:
    """Return the number of samples of a split: that of the labels, else the ids, else the rows of
    the first modality.
    """
    for key in (SCORES, CLASSES, "id", "raw_text", *MODALITIES):
        if contents.get(key) is not None and np.size(contents[key]):
            return len(np.atleast_1d(contents[key]))
    raise CorrKDError(
        f"{where}: has neither labels nor `text`, `audio` or `vision`; add regression_labels"
    )


def _lengths_of_tokens(where: str, contents: Mapping[str, Any], language: Any) -> dict[str, Any]:
    """Return the lengths of the language from the mask in `text_bert` (N, 3, T) of ids, mask,
    segment; {} if it does not fit.
    """
    tokens = contents.get(TOKENS)
    if (
        not isinstance(tokens, np.ndarray)
        or not isinstance(language, np.ndarray)
        or language.ndim != 3
    ):
        return {}
    mask = tokens[:, 1:2] if tokens.ndim == 3 else tokens
    if mask.shape != (len(language), 1, language.shape[1]):
        return {}
    return {"language": numeric(where, mask, TOKENS).sum((1, 2))}


def _tokens(options: ReadOptions) -> tuple[str, ...]:
    """Return the modalities of token ids."""
    return ("language",) if options.tokens else ()


def _without_language(frames: Mapping[str, Any]) -> dict[str, Any]:
    return {m: x for m, x in frames.items() if m != "language"}


def _token_ids(where: str, tokens: Any, *, batch: bool = True) -> Any:
    """Return the ids (N, T, 1) from `text_bert` (N, 3, T) of ids, mask, segment; for a clip, from
    (3, T) with `batch` False. 0 where the mask is 0.

    Raises:
        CorrKDError: if the array does not exist, has another shape, or contains values that are not
            ids.
    """
    table = np.asarray(tokens) if batch or tokens is None else np.asarray(tokens)[None]
    if table.ndim != 3 or table.shape[1] != 3 or table.dtype.kind not in "biuf":
        raise CorrKDError(
            f"{where}: no array {TOKENS} of ids, mask and segments, (samples, 3, tokens); read "
            f"it without --tokens"
        )
    ids = numeric(where, table[:, 0] * (table[:, 1] != 0), TOKENS)
    if not ((ids == np.floor(ids)) & (ids >= 0) & (ids < TOKEN_SCALE)).all():
        raise CorrKDError(f"{where}: {TOKENS} has values that are not token ids")
    return ids[..., None]


def _class_names(parts: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names in `annotations` ("Negative" ...) if each class has exactly one; else ()."""
    pairs: set[tuple[int, str]] = set()
    for contents in parts.values():
        classes = np.asarray(contents.get(CLASSES, ()))
        if (
            WORDS not in contents
            or classes.dtype.kind not in "fiub"
            or not np.isfinite(classes).all()
        ):
            return ()
        words = [word.strip().lower() for word in strings(contents[WORDS], WORDS)]
        pairs |= set(zip(classes.ravel().astype(int).tolist(), words, strict=False))
    names = dict(pairs)
    if len(names) != len(pairs) or "" in names.values() or sorted(names) != list(range(len(names))):
        return ()
    return tuple(names[k] for k in range(len(names)))
