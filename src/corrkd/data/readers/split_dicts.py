"""Reading a dict of splits, each a dict of arrays: what the layouts of MMSA and MulT and their
variants have in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from corrkd.data.groups import GROUPS
from corrkd.data.readers.names import (
    ALIASES,
    FRAME_IDS,
    LENGTHS,
    PRESENT,
    SPLIT_NAMES,
    USUAL,
    feature_keys,
    modality_names,
)
from corrkd.data.readers.pad import with_lists_as_arrays
from corrkd.data.readers.raw import RawSplit
from corrkd.errors import CorrKDError

Part = Mapping[str, Any]
SEMI_SUPERVISED = "train_mix"  # CH-SIMS v2: labelled (`mask` 1) and unlabelled samples
MOST_NAMED = 8  # keys in a message


def with_text_keys(data: Any, depth: int = 2) -> Any:
    """Return dicts with bytes keys, as Python 2 pickles them, converted to text, down to `depth`
    levels.
    """
    if not isinstance(data, dict) or not depth:
        return data
    return {
        key.decode("latin-1") if isinstance(key, bytes) else key: with_text_keys(value, depth - 1)
        for key, value in data.items()
    }


def recognises(data: Any) -> bool:
    """Return whether data is a dict of dicts by split."""
    return isinstance(data, dict) and any(
        _is_split(name, contents) for name, contents in data.items()
    )


def _is_split(name: Any, contents: Any) -> bool:
    return (name in SPLIT_NAMES or name == SEMI_SUPERVISED) and isinstance(contents, dict)


def splits_of(data: Mapping[str, Any], name: str) -> tuple[dict[str, Part], list[str]]:
    """Return the splits by their usual names, and notes on other entries.

    Raises:
        CorrKDError: if two keys mean the same split.
    """
    parts: dict[str, Part] = {}
    for key, contents in data.items():
        if key in SPLIT_NAMES and isinstance(contents, dict):
            if SPLIT_NAMES[key] in parts:
                raise CorrKDError(
                    f"{name}: two splits are called {SPLIT_NAMES[key]}; leave one out"
                )
            parts[SPLIT_NAMES[key]] = with_lists_as_arrays(f"{name}, {key}", contents)
    notes = []
    mixed = data.get(SEMI_SUPERVISED)
    if isinstance(mixed, dict):
        if "train" in parts:
            notes.append(
                f"left out: {SEMI_SUPERVISED} (labelled and unlabelled samples together; train "
                f"has the labelled ones)"
            )
        else:
            parts["train"] = _labelled(f"{name}, {SEMI_SUPERVISED}", mixed)
            notes.append(
                f"train: the {len(parts['train']['mask'])} labelled samples of {SEMI_SUPERVISED}"
            )
    others = [str(key) for key, contents in data.items() if not _is_split(key, contents)]
    if others:
        notes.append(f"left out: {', '.join(others[:MOST_NAMED])} (not a split)")
    return parts, notes


def feature_names(where: str, contents: Part, count: int, claimed: Iterable[str]) -> dict[str, str]:
    """Return {key: modality} of a split's features: those of any name, and the usual modalities
    with any contents.
    """
    keys = feature_keys(where, contents, count, claimed)
    keys += [key for key in contents if ALIASES.get(key, key) in USUAL and key not in keys]
    return modality_names(keys)


def raw_split(contents: Part, features: Mapping[str, str]) -> RawSplit:
    """Return a split's features, {key: modality}, with their lengths and masks, its groups and its
    order. Without ids and labels.
    """

    def companions(suffix: str) -> dict[str, Any]:
        return {
            m: contents[f"{key}{suffix}"]
            for key, m in features.items()
            if f"{key}{suffix}" in contents
        }

    common = {
        m: contents["frame_ids"]
        for key, m in features.items()
        if "frame_ids" in contents and np.ndim(contents[key]) == 3
    }
    return RawSplit(
        frames={m: contents[key] for key, m in features.items()},
        lengths=companions(LENGTHS),
        present=companions(PRESENT),
        groups={g: contents[g] for g in GROUPS if g in contents},
        order=contents.get("order"),
        frame_ids=common | companions(FRAME_IDS),
    )


def left_out(
    parts: Mapping[str, Part], features: Iterable[str], columns: Iterable[str], used: Iterable[str]
) -> list[str]:
    """Return a note on the arrays that are not used, in a list; [] if there are none.

    Args:
        parts: by split.
        features: keys of the modalities.
        columns: full names of the label columns.
        used: further names that the layout uses.
    """
    features = set(features)
    companions = {f"{key}{suffix}" for key in features for suffix in (LENGTHS, PRESENT, FRAME_IDS)}
    read = {*features, *companions, *used, *GROUPS, *(full.partition(".")[0] for full in columns)}
    unused = sorted({str(key) for contents in parts.values() for key in contents} - read)
    return [f"left out: {', '.join(unused)}"] if unused else []


def _labelled(where: str, contents: Part) -> dict[str, Any]:
    """Return the samples that `mask` marks as labelled."""
    mask = np.asarray(contents.get("mask", ())).ravel()
    if mask.dtype.kind not in "biuf" or not mask.size:
        raise CorrKDError(
            f"{where}: no array `mask` says which samples are labelled; add one of 1 and 0"
        )
    rows = np.flatnonzero(mask == 1)
    per_sample = {
        key: np.asarray(x)
        for key, x in contents.items()
        if isinstance(x, np.ndarray | list) and len(x) == len(mask)
    }
    return {key: values[rows] for key, values in per_sample.items()}
