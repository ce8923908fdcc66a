"""`inspect` returns the contents of a dataset as plain values; `describe` formats them as text for
a terminal.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from corrkd.data.dataset import MultimodalDataset, Split

MOST_BARS = 30  # distinct scores that are counted one by one
ROWS = 256  # samples read at a time: the dataset may be a memory map larger than memory


@dataclass(frozen=True, kw_only=True)
class ModalityFacts:
    """Facts about one modality in one split.

    Attributes:
        shape: (N, T, d).
        lengths: lowest, median and highest number of frames.
        missing_frames: share of the existing frames that are naturally missing, 0 to 1.
        missing_samples: share of the samples in which no frame is present, 0 to 1.
        constant_columns: number of columns, of d, with the same value in all present frames.
    """

    shape: tuple[int, int, int]
    lengths: tuple[int, float, int]
    missing_frames: float
    missing_samples: float
    constant_columns: int


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """Facts about one split.

    Attributes:
        samples: N.
        modalities: by name.
        histogram: number of samples by class (its name or number); for yes/no questions, number of
            yes answers by question; for scores without classes, number below, at and above zero,
            or, if none is negative, by score rounded to a whole number, or below, at and above the
            median. Empty without labels and scores.
        majority: share of the most frequent answer, 0 to 1; for questions the mean over questions;
            None without answers.
        scores: lowest, mean and highest score; None without scores.
        incomplete: share of samples that the data leaves incomplete, 0 to 1.
    """

    samples: int
    modalities: dict[str, ModalityFacts]
    histogram: dict[str, int]
    majority: float | None
    scores: tuple[float, float, float] | None
    incomplete: float


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Facts about a dataset.

    Attributes:
        name, layout, sha256, score_range, missing_rule, notes: as in `MultimodalDataset`.
        padding: side of the padding by modality, as found in the file.
        lengths_rule: source of the lengths, by modality.
        nonfinite: number of NaN and infinite values in the file, by modality ({"nan": 3, "inf":
            0}).
        splits: facts by split.
        same_frames: by pair of splits, number of samples of the second with frames that are also in
            the first.
        same_ids: by pair of splits, number of ids in both.
        shared_groups: by kind of group and pair of splits, the groups in both.
    """

    name: str
    layout: str
    sha256: str
    score_range: tuple[float, float] | None
    missing_rule: dict[str, str]
    notes: tuple[str, ...]
    padding: dict[str, str]
    lengths_rule: dict[str, str]
    nonfinite: dict[str, dict[str, int]]
    splits: dict[str, SplitFacts]
    same_frames: dict[tuple[str, str], int]
    same_ids: dict[tuple[str, str], int]
    shared_groups: dict[str, dict[tuple[str, str], tuple[str, ...]]]


def inspect(dataset: MultimodalDataset) -> Inspection:
    """Return the facts about a dataset, which is read a few samples at a time."""
    digests = {name: _digests(split) for name, split in dataset.splits.items()}
    pairs = list(combinations(dataset.splits, 2))
    groups = sorted({group for split in dataset.splits.values() for group in split.groups})
    return Inspection(
        name=dataset.name,
        layout=dataset.layout,
        sha256=dataset.sha256,
        score_range=dataset.score_range,
        missing_rule=dict(dataset.missing_rule),
        notes=dataset.notes,
        padding=dict(dataset.extra.get("padding", {})),
        lengths_rule=dict(dataset.extra.get("lengths", {})),
        nonfinite=dict(dataset.extra.get("nonfinite", {})),
        splits={name: _split_facts(dataset, split) for name, split in dataset.splits.items()},
        same_frames={(a, b): _count_in(digests[b], set(digests[a])) for a, b in pairs},
        same_ids={
            (a, b): len(set(dataset.splits[a].ids.tolist()) & set(dataset.splits[b].ids.tolist()))
            for a, b in pairs
        },
        shared_groups={
            group: {(a, b): _shared(dataset.splits[a], dataset.splits[b], group) for a, b in pairs}
            for group in groups
        },
    )


def _count_in(values: Sequence[bytes], others: set[bytes]) -> int:
    return sum(value in others for value in values)


def _shared(a: Split, b: Split, group: str) -> tuple[str, ...]:
    return tuple(
        sorted(
            set(a.groups.get(group, np.zeros(0, str)).tolist())
            & set(b.groups.get(group, np.zeros(0, str)).tolist())
        )
    )


def _digests(split: Split) -> list[bytes]:
    """Return a hash of each sample's present frames in all modalities, without samples that have
    none: they are all equal.
    """
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(len(split))]
    for m, frames in split.frames.items():
        for start in range(0, len(split), ROWS):
            chunk = np.asarray(frames[start : start + ROWS])
            for row, sample in enumerate(chunk, start):
                hashes[row].update(f"{m} {split.lengths[m][row]} ".encode())
                hashes[row].update(np.ascontiguousarray(sample[: split.lengths[m][row]]).data)
    some = np.any([present.any(1) for present in split.present.values()], axis=0)
    return [h.digest() for h, any_present in zip(hashes, some, strict=True) if any_present]


def _split_facts(dataset: MultimodalDataset, split: Split) -> SplitFacts:
    histogram, majority = _histogram(dataset, split)
    scores = split.scores
    return SplitFacts(
        samples=len(split),
        modalities={m: _modality_facts(split, m) for m in split.frames},
        histogram=histogram,
        majority=majority,
        scores=None
        if scores is None
        else (float(scores.min()), float(scores.mean()), float(scores.max())),
        incomplete=float(split.naturally_incomplete().mean()),
    )


def _modality_facts(split: Split, m: str) -> ModalityFacts:
    frames, lengths, present, exists = (
        split.frames[m],
        split.lengths[m],
        split.present[m],
        split.exists(m),
    )
    lowest, highest = np.full(frames.shape[2], np.inf), np.full(frames.shape[2], -np.inf)
    for start in range(0, len(split), ROWS):
        chunk = np.asarray(frames[start : start + ROWS])[present[start : start + ROWS]]
        if len(chunk):
            lowest, highest = np.minimum(lowest, chunk.min(0)), np.maximum(highest, chunk.max(0))
    return ModalityFacts(
        shape=(len(split), frames.shape[1], frames.shape[2]),
        lengths=(int(lengths.min()), float(np.median(lengths)), int(lengths.max())),
        missing_frames=float(1 - present.sum() / exists.sum()),
        missing_samples=float((~present.any(1)).mean()),
        constant_columns=int((lowest == highest).sum()),
    )


def _histogram(dataset: MultimodalDataset, split: Split) -> tuple[dict[str, int], float | None]:
    """Return the counts by answer, and the share of the most frequent one."""
    if split.labels is not None and split.labels.ndim == 2:
        yes = split.labels.mean(0)
        names = dataset.question_names or tuple(f"question {q + 1}" for q in range(len(yes)))
        counts = {name: int(count) for name, count in zip(names, split.labels.sum(0), strict=False)}
        return counts, float(np.maximum(yes, 1 - yes).mean())
    if split.labels is not None:
        named = dict(enumerate(dataset.class_names))
        found = Counter(split.labels.tolist())
        counts = {named.get(k, str(k)): found[k] for k in range(max(max(found) + 1, len(named)))}
    elif split.scores is None:
        return {}, None
    elif split.scores.min() >= 0 and split.scores.max() < MOST_BARS:
        counts = {
            f"{score:g}": n for score, n in sorted(Counter(np.round(split.scores).tolist()).items())
        }
    else:
        # Scores that are never negative are counted around their median, not around zero.
        middle = 0.0 if split.scores.min() < 0 else float(np.median(split.scores))
        sign = np.sign(split.scores - middle)
        counts = {
            f"{where} {middle:g}": int((sign == i - 1).sum())
            for i, where in enumerate(("below", "at", "above"))
        }
    return counts, max(counts.values()) / len(split)


def describe(inspection: Inspection) -> str:
    """Return an inspection as text in aligned columns."""
    lines = _table(
        [
            ["dataset", inspection.name],
            ["layout", inspection.layout],
            ["SHA-256", inspection.sha256 or "(in memory)"],
            [
                "score range",
                "{:g} to {:g}".format(*inspection.score_range)
                if inspection.score_range
                else "unknown",
            ],
        ]
    )
    rows = [
        [
            "split",
            "modality",
            "samples",
            "frames",
            "width",
            "lengths (median)",
            "missing frames",
            "missing entirely",
            "constant columns",
        ]
    ]
    for name, split in inspection.splits.items():
        for m, facts in split.modalities.items():
            low, median, high = facts.lengths
            shares = _percent(facts.missing_frames), _percent(facts.missing_samples)
            constant = f"{facts.constant_columns} of {facts.shape[2]}"
            rows.append(
                [name, m, *map(str, facts.shape), f"{low}-{high} ({median:g})", *shares, constant]
            )
    lines += ["", *_table(rows)]
    rows = [["modality", "padding", "lengths", "NaN", "infinite", "naturally missing means"]]
    for m in inspection.missing_rule:
        nonfinite = inspection.nonfinite.get(m, {})
        counts = str(nonfinite.get("nan", "n/a")), str(nonfinite.get("inf", "n/a"))
        side, how = inspection.padding.get(m, "n/a"), inspection.lengths_rule.get(m, "n/a")
        rows.append([m, side, how, *counts, inspection.missing_rule[m]])
    lines += ["", *_table(rows)]
    rows = [["split", "labels", "majority", "scores (mean)", "incomplete samples"]]
    for name, split in inspection.splits.items():
        answers = ", ".join(f"{answer}: {count}" for answer, count in split.histogram.items())
        scores = (
            "none" if split.scores is None else "{0:.3g} to {2:.3g} ({1:.3g})".format(*split.scores)
        )
        majority = "none" if split.majority is None else _percent(split.majority)
        rows.append([name, answers or "none", majority, scores, _percent(split.incomplete)])
    lines += ["", *_table(rows)]
    if inspection.same_ids:
        lines += [
            "",
            *_table(
                [
                    ["in two splits", *(f"{a}, {b}" for a, b in inspection.same_ids)],
                    *_overlaps(inspection),
                ]
            ),
        ]
    if inspection.notes:
        lines += ["", "notes", *(f"  {note}" for note in inspection.notes)]
    return "\n".join(lines)


def _overlaps(inspection: Inspection) -> list[list[str]]:
    rows = [
        ["samples with the same frames", *map(str, inspection.same_frames.values())],
        ["samples with the same id", *map(str, inspection.same_ids.values())],
    ]
    for group, pairs in inspection.shared_groups.items():
        rows.append([f"group {group}", *(str(len(names)) for names in pairs.values())])
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(rows: list[list[str]]) -> list[str]:
    """Return rows as lines with aligned columns."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
