"""A split as it is in a file: every reader returns it, and `assemble` repairs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from corrkd.data.dataset import IntArray

Array = npt.NDArray[Any]
Columns = dict[str, Array]


@dataclass(kw_only=True)
class RawSplit:
    """One split as it is in a file, before repair. N samples; whatever a layout lacks is empty.

    Attributes:
        frames: per modality (N, T, d) padded on either side, or (N, d).
        lengths: per modality (N,), only if the file has lengths of that modality.
        present: per modality (N, T) or (N,), only if the file has a mask of that modality.
        ids: (N,) strings, or None.
        scores, labels, groups, order: as in `Split`, unchecked; labels may be words.
        columns: other columns of the file that can be the label, by name (readers/labels.py).
        frame_ids: per modality (N, T), only if the file numbers the frames of that modality.
        missing_reasons: per modality (N,) strings, only if the file says why its frames are
            missing.
    """

    frames: dict[str, Array]
    lengths: dict[str, Any] = field(default_factory=dict)
    present: dict[str, Any] = field(default_factory=dict)
    ids: Any = None
    scores: Any = None
    labels: Any = None
    columns: Columns = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    order: Any = None
    frame_ids: dict[str, Any] = field(default_factory=dict)
    missing_reasons: dict[str, Any] = field(default_factory=dict)

    def take(self, rows: IntArray) -> RawSplit:
        """Return the samples at `rows`. Only for a split whose values are all arrays."""

        def at(values: Mapping[str, Any]) -> dict[str, Any]:
            return {key: x[rows] for key, x in values.items()}

        return RawSplit(
            frames=at(self.frames),
            lengths=at(self.lengths),
            present=at(self.present),
            ids=None if self.ids is None else self.ids[rows],
            scores=None if self.scores is None else self.scores[rows],
            labels=None if self.labels is None else self.labels[rows],
            columns=at(self.columns),
            groups=at(self.groups),
            order=None if self.order is None else self.order[rows],
            frame_ids=at(self.frame_ids),
            missing_reasons=at(self.missing_reasons),
        )
