"""The one shape in which samples travel: every reader makes a `MultimodalDataset`, everything else
takes one.
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
# Ids of tokens are divided by it: a power of two, so exactly, and far below any bound on features.
TOKEN_SCALE = 2.0**24
WHOLE = "all"  # the one split of data that has neither splits nor targets

Posterior = Callable[[str, Mapping[str, BoolArray]], npt.NDArray[np.float64]]
"""(split name, which frames are visible per modality, each (N, T_m)) -> exact class probabilities
(N, K).
"""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The samples of one split. N samples; modality m has up to T_m frames of width d_m.

    Three things are distinguished: *padding* (frames beyond a sample's length, which never
    existed), *naturally missing* (inside the length, absent in the data: `present` is False) and
    *dropped* (by us; never stored here).

    Attributes:
        frames: per modality (N, T_m, d_m) float32, right-padded: the frames that exist come first.
            Finite everywhere, zero in the padding. May be memory-mapped, so take rows, not the
            whole. One vector per sample is T_m = 1.
        lengths: per modality (N,) how many frames exist, 1 <= length <= T_m.
        present: per modality (N, T_m), True where a frame exists and is not naturally missing.
        ids: (N,) one string per sample, unique within the split. Two splits may share ids;
            `inspect` counts those that do.
        scores: (N,) float64 sentiment scores, or None where the data has classes only, or no
            targets.
        labels: (N,) integer classes as given, or (N, Q) yes/no answers in {0, 1}, or None where the
            data has scores only, or no targets.
        groups: who or what the sample belongs to, by name ("video", "session", "person",
            "speaker"): (N,) strings each.
        order: (N,) position within the sample's video or session, or None where unknown.
        frame_ids: per modality (N, T_m) integers: which frame of its recording (its video, else its
            session) a frame is, so that the same frame in overlapping samples is known to be one.
            -1 in the padding. Modalities whose frames the data do not number are left out.
        missing_reasons: per modality (N,) strings: why frames of the sample are missing, as "no
            face 12, video stream over 3", "" where none is. Modalities of which the data do not say
            are left out.
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

    def exists(self, modality: str) -> BoolArray:
        """Which frames are not padding: (N, T_m)."""
        return np.arange(self.frames[modality].shape[1])[None, :] < self.lengths[modality][:, None]

    def recordings(self) -> StrArray | None:
        """Return the video, else the session, of each sample, (N,); None where the data name
        neither.
        """
        return next(
            (self.groups[name] for name in ("video", "session") if name in self.groups), None
        )

    def naturally_incomplete(self) -> BoolArray:
        """Which samples the data itself leaves incomplete: (N,), True where an existing frame of
        any modality is absent.
        """
        missing = [(self.exists(m) & ~self.present[m]).any(1) for m in self.frames]
        return np.any(missing, axis=0)

    def take(self, rows: IntArray | BoolArray) -> Split:
        """The samples at `rows` (indices or a mask), in that order. Copies the frames taken."""
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
        name: what reports call it.
        splits: from "train", "valid", "test"; a dataset may lack some. One without targets may have
            the single split "all".
        class_names: names of the classes in `labels`, where the data names them: K of them, or ()
            where it does not.
        question_names: names of the yes/no questions, for labels of shape (N, Q); else ().
        score_range: (lowest, highest) score that annotators could give, where known (MOSI: (-3,
            3)); else None.
        layout: the reader that made it, for people ("MMSA aligned", "npz arrays", ...).
        missing_rule: how naturally missing frames were found, in words, by modality.
        notes: what a reader repaired or assumed, in words, a line each.
        sha256: of the source file; "" for data made in memory. For a folder: of its files' sums.
            For a converted file: of its contents, as they were written.
        posterior: the exact class posterior given what is visible, for data whose law is known (the
            built-in one); else None.
        extra: small JSON-able facts a reader wants to hand on to `inspect`.
        tokens: modalities whose frames are ids of tokens, of width 1: numbers that name and do not
            measure, so they are not normalised.
        extractors: what made the features of recordings, as plain values
            (`corrkd.media.features.Description`); {} where nobody says.
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

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the dataset's own order."""
        return tuple(next(iter(self.splits.values())).frames)

    @property
    def widths(self) -> dict[str, int]:
        """Feature width d_m by modality."""
        return {m: int(x.shape[2]) for m, x in next(iter(self.splits.values())).frames.items()}

    def split(self, name: str) -> Split:
        """One split by name. Raises CorrKDError where the dataset has no such split."""
        if name not in self.splits:
            raise CorrKDError(
                f"dataset {self.name}: has no split {name!r}; it has {', '.join(self.splits)}"
            )
        return self.splits[name]


def split_shape(split: Split) -> dict[str, int]:
    """Feature width by modality: what all splits of a dataset must agree on (lengths may differ).
    Raises CorrKDError where an array is not (samples, frames, features).
    """
    for modality, frames in split.frames.items():
        if frames.ndim != 3:
            raise CorrKDError(
                f"modality {modality}: shape {frames.shape}, expected (samples, frames, features)"
            )
    return {m: int(x.shape[2]) for m, x in split.frames.items()}


def check_values(name: str, split: Split) -> None:
    """Check what `Split` promises of its values, where another program made it; readers of files
    see to it themselves.

    Args:
        name: says where, as in "dataset mine, train".
        split: whose shapes are right (`check_split`).

    Raises:
        CorrKDError: a frame is not finite, or not zero in the padding; or a frame is present where
            none exists.
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
    """What every reader's result must satisfy. Raises CorrKDError with one line.

    Args:
        name: says where, as in "mosi.pkl, train".
        split: what is checked.
        targets: whether there must be scores or labels; those that are there are checked in any
            case.
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
                f"{where}: {len(reasons)} texts of missing_reasons for {count} samples; give one "
                f"each"
            )
        if trains and not split.present[modality].any():
            raise CorrKDError(
                f"{where}: no frame of it is present in any sample; leave the modality out"
            )
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
