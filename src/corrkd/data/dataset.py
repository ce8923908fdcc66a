"""The data structure that all parts share: every reader returns a `MultimodalDataset`, and
everything else takes one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from corrkd.errors import CorrKDError
from corrkd.targets.labels import MOST_CLASSES

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
StrArray = npt.NDArray[np.str_]

SPLITS = ("train", "valid", "test")
ROWS_AT_A_TIME = 256  # of frames that may be memory-mapped
# Token ids are divided by it: exact, as a power of two, and far below any bound on features.
TOKEN_SCALE = 2.0**24
WHOLE = "all"  # the single split of data with neither splits nor targets

Posterior = Callable[[str, Mapping[str, BoolArray]], npt.NDArray[np.float64]]
"""(split name, which frames are visible per modality, each (N, T_m)) -> exact class probabilities
(N, K).
"""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The samples of one split. N samples; modality m has up to T_m frames of width d_m.

    Three cases are distinguished: *padding* (frames beyond a sample's length, which never existed),
    *naturally missing* (within the length, but missing in the data: `present` is False) and
    *dropped* (by a condition or in training; never stored here).

    Attributes:
        frames: per modality (N, T_m, d_m) float32, right-padded: the frames that exist come first.
            Finite everywhere, zero in the padding. May be memory-mapped, so take rows, not the
            whole array. One vector per sample is T_m = 1.
        lengths: per modality (N,) number of frames that exist, 1 <= length <= T_m.
        present: per modality (N, T_m), True where a frame exists and is not naturally missing.
        ids: (N,) one string per sample, unique within the split. Two splits may share ids;
            `inspect` counts those.
        scores: (N,) float64 sentiment scores; None if the data has only classes, or no targets.
        labels: (N,) integer classes as given, or (N, Q) yes/no answers in {0, 1}; None if the data
            has only scores, or no targets.
        groups: by kind ("video", "session", "person", "speaker"), the group of each sample: (N,)
            strings.
        order: (N,) position within the sample's video or session; None if unknown.
        frame_ids: per modality (N, T_m) integers: index of each frame in its recording (its video,
            else its session), by which the frames that overlapping samples share are recognised. -1
            in the padding. Only modalities with numbered frames.
        missing_reasons: per modality (N,) strings: why frames of the sample are missing, as "no
            face 12, video stream over 3"; "" if none is. Only modalities with reasons in the data.
    """

    frames: Mapping[str, FloatArray]
    lengths: Mapping[str, IntArray]
    present: Mapping[str, BoolArray]
    ids: StrArray
    scores: npt.NDArray[np.float64] | None = None
    labels: IntArray | None = None
    groups: Mapping[str, StrArray] = field(default_factory=dict)
    order: IntArray | None = None
    frame_ids: Mapping[str, IntArray] = field(default_factory=dict)
    missing_reasons: Mapping[str, StrArray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        frames = ", ".join(f"{m} {x.shape[1]} × {x.shape[2]}" for m, x in self.frames.items())
        targets = [name for name in ("scores", "labels") if getattr(self, name) is not None]
        groups = [f"{len(np.unique(x))} {name}s" for name, x in self.groups.items()]
        listed = "; ".join(", ".join(names) for names in (targets, groups) if names)
        return f"Split({len(self)} samples; {frames}; {listed or 'no targets'})"

    def exists(self, modality: str) -> BoolArray:
        """Return which frames are not padding, (N, T_m)."""
        return np.arange(self.frames[modality].shape[1])[None, :] < self.lengths[modality][:, None]

    def recordings(self) -> StrArray | None:
        """Return the video, else the session, of each sample, (N,); None if the data has
        neither.
        """
        return next(
            (self.groups[name] for name in ("video", "session") if name in self.groups), None
        )

    def naturally_incomplete(self) -> BoolArray:
        """Return which samples the data itself leaves incomplete, (N,): those with a naturally
        missing frame in any modality.
        """
        missing = [(self.exists(m) & ~self.present[m]).any(1) for m in self.frames]
        return np.any(missing, axis=0)

    def take(self, rows: IntArray | BoolArray) -> Split:
        """Return the samples at `rows` (indices or a mask), in that order. Their frames are
        copied.
        """
        return Split(
            frames={m: np.asarray(x[rows]) for m, x in self.frames.items()},
            lengths={m: x[rows] for m, x in self.lengths.items()},
            present={m: x[rows] for m, x in self.present.items()},
            ids=self.ids[rows],
            scores=None if self.scores is None else self.scores[rows],
            labels=None if self.labels is None else self.labels[rows],
            groups={g: x[rows] for g, x in self.groups.items()},
            order=None if self.order is None else self.order[rows],
            frame_ids={m: x[rows] for m, x in self.frame_ids.items()},
            missing_reasons={m: x[rows] for m, x in self.missing_reasons.items()},
        )


@dataclass(frozen=True, kw_only=True)
class MultimodalDataset:
    """Named splits of samples with the same modalities.

    Attributes:
        name: name in reports.
        splits: from "train", "valid", "test"; a dataset may lack some. A dataset without targets
            may have the single split "all".
        class_names: names of the K classes in `labels`; () if the data does not name them.
        question_names: names of the yes/no questions, for labels of shape (N, Q); else ().
        score_range: (lowest, highest) score on the annotators' scale, as (-3, 3) for MOSI; None if
            unknown.
        layout: how the reader describes the source ("MMSA aligned", "npz arrays", ...).
        missing_rule: how naturally missing frames were recognised, as text, by modality.
        notes: what a reader repaired or assumed, one line each.
        sha256: digest of the source file; for a folder, of the digests of its files; for a
            converted file, of its contents; "" for data in memory.
        posterior: the exact class posterior given the visible frames, for the built-in dataset;
            else None.
        extra: small JSON-able facts that a reader passes to `inspect`.
        tokens: modalities of token ids, with width 1. Ids are names, not quantities, so they are
            not normalised.
        extractors: how the features of recordings were extracted, as plain values
            (`corrkd.media.features.Description`); {} if unknown.
    """

    name: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...] = ()
    question_names: tuple[str, ...] = ()
    score_range: tuple[float, float] | None = None
    layout: str = "in memory"
    missing_rule: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sha256: str = ""
    posterior: Posterior | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()
    extractors: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.splits:
            raise CorrKDError(
                f"dataset {self.name}: no split; expected some of {', '.join(SPLITS)}"
            )
        shapes = {name: split_shape(split) for name, split in self.splits.items()}
        first = next(iter(shapes.values()))
        for name, shape in shapes.items():
            if shape != first:
                raise CorrKDError(
                    f"dataset {self.name}: split {name} has modalities {shape}, another split "
                    f"has {first}"
                )

    def __repr__(self) -> str:
        splits = "".join(f"\n  {name}: {split!r}" for name, split in self.splits.items())
        return f"MultimodalDataset {self.name} ({self.layout}){splits}"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of the dataset."""
        return tuple(next(iter(self.splits.values())).frames)

    @property
    def widths(self) -> dict[str, int]:
        """Feature width d_m by modality."""
        return {m: int(x.shape[2]) for m, x in next(iter(self.splits.values())).frames.items()}

    def split(self, name: str) -> Split:
        """Return a split by name. Raises CorrKDError if the dataset has no such split."""
        if name not in self.splits:
            raise CorrKDError(
                f"dataset {self.name}: has no split {name!r}; it has {', '.join(self.splits)}"
            )
        return self.splits[name]


def split_shape(split: Split) -> dict[str, int]:
    """Return the feature width by modality, on which all splits of a dataset must agree (lengths
    may differ). Raises CorrKDError if an array is not (samples, frames, features).
    """
    for modality, frames in split.frames.items():
        if frames.ndim != 3:
            raise CorrKDError(
                f"modality {modality}: shape {frames.shape}, expected (samples, frames, features)"
            )
    return {m: int(x.shape[2]) for m, x in split.frames.items()}


def check_values(name: str, split: Split) -> None:
    """Check the values of a split that another program made. Readers of files guarantee them
    themselves.

    Args:
        name: where the split comes from, as "dataset mine, train".
        split: a split with valid shapes (`check_split`).

    Raises:
        CorrKDError: if a frame is not finite, is not zero in the padding, or is present but does
            not exist.
    """
    for modality, frames in split.frames.items():
        where = f"{name}, modality {modality}"
        exists = split.exists(modality)
        if (split.present[modality] & ~exists).any():
            raise CorrKDError(
                f"{where}: `present` is True beyond the length of a sample; set it to False there"
            )
        for start in range(0, len(split), ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            values = np.asarray(frames[rows])
            if not np.isfinite(values).all():
                raise CorrKDError(
                    f"{where}: NaN or infinite values; set them to 0, and `present` to False where "
                    f"an entire frame is missing"
                )
            if values[~exists[rows]].any():
                raise CorrKDError(
                    f"{where}: values other than 0 beyond the length of a sample; set them to 0"
                )


def check_split(name: str, split: Split, *, targets: bool = True, trains: bool = False) -> None:
    """Check a split that a reader returns. Raises CorrKDError if it is invalid.

    Args:
        name: where the split comes from, as "mosi.pkl, train".
        split: the split.
        targets: whether scores or labels are required; if present, they are always checked.
        trains: whether a network is trained on it: a modality that is missing in all samples cannot
            be learned.
    """
    count = len(split.ids)
    if count == 0:
        raise CorrKDError(f"{name}: no samples")
    if not split.frames:
        raise CorrKDError(f"{name}: no modality found")
    if len(np.unique(split.ids)) != count:
        raise CorrKDError(f"{name}: sample ids are not unique")
    for what in ("lengths", "present"):
        if set(getattr(split, what)) != set(split.frames):
            raise CorrKDError(
                f"{name}: `{what}` has {', '.join(sorted(getattr(split, what))) or 'no modality'}, "
                f"`frames` has {', '.join(sorted(split.frames))}; give one of each modality"
            )
    for modality, frames in split.frames.items():
        where = f"{name}, modality {modality}"
        if frames.ndim != 3 or len(frames) != count:
            raise CorrKDError(f"{where}: shape {frames.shape}, expected ({count}, frames, width)")
        if frames.shape[2] == 0 or frames.shape[1] == 0:
            raise CorrKDError(
                f"{where}: zero width or no frames (shape {frames.shape}); leave the modality out"
            )
        lengths = split.lengths[modality]
        if lengths.shape != (count,) or lengths.min() < 1 or lengths.max() > frames.shape[1]:
            raise CorrKDError(
                f"{where}: lengths run from {lengths.min()} to {lengths.max()}, but the array "
                f"holds 1 to {frames.shape[1]} frames"
            )
        if split.present[modality].shape != frames.shape[:2]:
            raise CorrKDError(
                f"{where}: `present` has shape {split.present[modality].shape}, expected "
                f"{frames.shape[:2]}"
            )
        ids = split.frame_ids.get(modality)
        if ids is not None and (ids.shape != frames.shape[:2] or ids.dtype.kind != "i"):
            raise CorrKDError(
                f"{where}: frame_ids are {ids.dtype} of shape {ids.shape}, expected integers of "
                f"{frames.shape[:2]}"
            )
        reasons = split.missing_reasons.get(modality)
        if reasons is not None and reasons.shape != (count,):
            raise CorrKDError(
                f"{where}: missing_reasons has {len(reasons)} entries for {count} samples; give "
                f"one per sample"
            )
        if trains and not split.present[modality].any():
            raise CorrKDError(f"{where}: no frame is present in any sample; leave the modality out")
    if targets and split.scores is None and split.labels is None:
        raise CorrKDError(
            f"{name}: neither scores nor labels; add an array or column `label` or `score`"
        )
    if split.scores is not None and (
        split.scores.shape != (count,) or not np.isfinite(split.scores).all()
    ):
        bad = (
            "shape " + str(split.scores.shape)
            if split.scores.shape != (count,)
            else "NaN or infinite values"
        )
        raise CorrKDError(f"{name}: scores have {bad}; expected ({count},) finite numbers")
    if (
        split.labels is not None
        and split.labels.ndim == 1
        and split.labels.max(initial=0) >= MOST_CLASSES
    ):
        raise CorrKDError(
            f"{name}: label {split.labels.max()} is out of range; there are at most "
            f"{MOST_CLASSES} classes, from 0"
        )
    if split.labels is not None and (len(split.labels) != count or split.labels.min() < 0):
        raise CorrKDError(
            f"{name}: labels must be {count} classes from 0 up; found {split.labels.shape}, lowest "
            f"{split.labels.min()}; number the classes from 0, or give their names"
        )
