"""Finding the length and the padded side of each sample: as given in the file, else from empty
frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from corrkd.data.dataset import BoolArray, FloatArray, IntArray
from corrkd.data.readers.raw import RawSplit
from corrkd.data.readers.values import integers
from corrkd.errors import CorrKDError

ALIGNED = "(aligned)"  # ends the rule if the lengths come from another modality


def find_lengths(
    name: str,
    parts: Mapping[str, RawSplit],
    frames: Mapping[str, Mapping[str, FloatArray]],
    modalities: Sequence[str],
) -> tuple[
    dict[str, dict[str, IntArray]], dict[str, dict[str, IntArray]], dict[str, str], dict[str, str]
]:
    """Return (lengths, first frames) by split and modality, and (padding side, source of the
    lengths) by modality.

    A modality's lengths from the file come first; then, if all sequences have the same number of
    frames (an aligned file), those of other modalities; then the empty margins, jointly over
    aligned modalities: a frame is padding if all of them are empty. Some public files pad a few
    samples on the other side, so the margins are judged for each sample.
    """
    stored = {m for m in modalities if all(m in raw_split.lengths for raw_split in parts.values())}
    sequences = [m for m in modalities if any(frames[split][m].shape[1] > 1 for split in parts)]
    aligned = len(sequences) > 1 and all(
        len({frames[split][m].shape[1] for m in sequences}) == 1 for split in parts
    )
    lenders = [m for m in sequences if m in stored] if aligned else []
    lengths: dict[str, dict[str, IntArray]] = {split: {} for split in parts}
    starts: dict[str, dict[str, IntArray]] = {split: {} for split in parts}
    sides: dict[str, str] = {}
    how: dict[str, str] = {}
    occupied = {
        split: {m: occupied_frames(frames[split][m]) for m in modalities} for split in parts
    }

    for m in [m for m in modalities if m in stored]:
        for split, raw_split in parts.items():
            lengths[split][m] = _own_lengths(
                f"{name}, {split}, modality {m}", raw_split.lengths[m], occupied[split][m]
            )
        sides[m] = _side_of_given([(occupied[split][m], lengths[split][m]) for split in parts])
        how[m] = "given in the file"
    for m in [m for m in modalities if m not in stored]:
        together = sequences if aligned else [m]
        joint = {
            split: np.logical_or.reduce([occupied[split][other] for other in together])
            for split in parts
        }
        margins = {split: _margins(joint[split]) for split in parts}
        if m not in sequences:
            lengths |= {
                split: {**lengths[split], m: np.ones(len(frames[split][m]), np.int64)}
                for split in parts
            }
            sides[m], how[m] = "none", "one vector per sample"
        elif lenders:
            sides[m], how[m] = sides[lenders[0]], f"lengths of {' and '.join(lenders)} {ALIGNED}"
            for split in parts:
                before, after = _margins(occupied[split][m])
                content = occupied[split][m].shape[1] - (before if sides[m] == "left" else after)
                lengths[split][m] = np.maximum.reduce(
                    [lengths[split][other] for other in lenders] + [content]
                )
        else:
            sides[m], how[m] = (
                _side(margins.values()),
                f"inferred from all-zero margins of {', '.join(together)}",
            )
            for split, (before, after) in margins.items():
                lengths[split][m] = np.maximum(joint[split].shape[1] - before - after, 0)
                starts[split][m] = np.where(lengths[split][m] > 0, before, 0)
    for split in parts:
        for m in modalities:
            shift = (
                frames[split][m].shape[1] - lengths[split][m]
                if sides[m] == "left"
                else np.zeros_like(lengths[split][m])
            )
            starts[split].setdefault(m, shift)
    return lengths, starts, sides, how


def _own_lengths(where: str, values: Any, occupied: BoolArray) -> IntArray:
    count, longest = occupied.shape
    lengths = integers(where, values, "lengths").reshape(-1)
    if len(lengths) != count:
        raise CorrKDError(
            f"{where}: {len(lengths)} lengths for {count} samples; give one per sample"
        )
    if count and (lengths.min() < 0 or lengths.max() > longest):
        raise CorrKDError(
            f"{where}: lengths run from {lengths.min()} to {lengths.max()}, but the array holds "
            f"{longest} frames"
        )
    return lengths


def _side_of_given(pairs: Sequence[tuple[BoolArray, IntArray]]) -> str:
    """Return left if given lengths fit the content at the end of the array and not at its start."""
    index = [np.arange(occupied.shape[1])[None, :] for occupied, _ in pairs]
    outside_right = sum(
        int((o & (p >= n[:, None])).sum()) for p, (o, n) in zip(index, pairs, strict=True)
    )
    outside_left = sum(
        int((o & (p < o.shape[1] - n[:, None])).sum())
        for p, (o, n) in zip(index, pairs, strict=True)
    )
    if outside_left < outside_right:
        return "left"
    return "right" if any((n < o.shape[1]).any() for o, n in pairs) else "none"


def occupied_frames(frames: FloatArray) -> BoolArray:
    """Return which frames are not all zero, (N, T), read a few samples at a time."""
    return np.concatenate(
        [frames[start : start + 256].any(2) for start in range(0, len(frames), 256)]
        or [np.zeros((0, 0), bool)]
    )


def _margins(occupied: BoolArray) -> tuple[IntArray, IntArray]:
    """Return the number of empty frames before the first and after the last occupied one, (N,)
    each; T and T for an empty sample.
    """
    frames = occupied.shape[1]
    some = occupied.any(1)
    return np.where(some, occupied.argmax(1), frames), np.where(
        some, occupied[:, ::-1].argmax(1), frames
    )


def _side(margins: Iterable[tuple[IntArray, IntArray]]) -> str:
    """Return the side of the empty margins: "left", "right", "none", or "mixed" with the number of
    samples of each.
    """
    left = right = 0
    for before, after in margins:
        left += int(((before > 0) & (after == 0)).sum())
        right += int(((after > 0) & (before == 0)).sum())
    if left and right:
        return f"mixed: left in {left} samples, right in {right}"
    return "left" if left else "right" if right else "none"
