"""The base class of extractors, and the frames that they return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import BoolArray, FloatArray
from corrkd.media.clip import Clip


@dataclass(frozen=True)
class Frames:
    """The features of one modality of a clip: T >= 1 frames with d features.

    Attributes:
        values: (T, d) float32; 0 in missing frames.
        present: (T,) bool; the values of the other frames are ignored.
        times: (T,) centre of each frame in seconds; NaN if unknown.
        missing: number of missing frames by reason, as {"no face": 12}.
    """

    values: FloatArray
    present: BoolArray
    times: npt.NDArray[np.float64]
    missing: Mapping[str, int] = field(default_factory=dict)


class Extractor(ABC):
    """Extracts the features of one modality. A plug-in subclasses it and is registered by an entry
    point in the group `corrkd.extractors`.

    Attributes:
        name: name of the entry point, for `--extractor MODALITY=NAME` and in files.
        version: increased whenever the features of the same clip change.
        modality: "language", "audio", "vision" or another name.
        columns: names of the features, in order.
        libraries: distributions whose versions the features may depend on.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    modality: ClassVar[str]
    columns: tuple[str, ...]
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    @property
    def width(self) -> int:
        """Number of features of a frame."""
        return len(self.columns)

    @abstractmethod
    def frames(self, clip: Clip) -> Frames:
        """Return the features of a clip. They must depend on the clip only, not on the process or
        the order of clips.

        Raises:
            CorrKDError: if the clip cannot be read.
        """

    def batch(self, clips: Sequence[Clip]) -> list[Frames]:
        """Return the features of several clips, each as `frames` gives them, to rounding. One by
        one, unless the extractor can read them together, as on a GPU. Raises as `frames`.
        """
        return [self.frames(clip) for clip in clips]

    def weights(self) -> Mapping[str, str]:
        """Return the SHA-256 of each file of weights by name."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return what identifies the extractor, as values that JSON can hold: equal descriptions
        give equal features.
        """
        described = {"name": self.name, "version": self.version, "columns": list(self.columns)}
        return described | ({"weights": dict(self.weights())} if self.weights() else {})


def middles(count: int, step: float) -> npt.NDArray[np.float64]:
    """Return (count,) centres in seconds of consecutive frames of `step` seconds."""
    return np.asarray((np.arange(count) + 0.5) * step, np.float64)


def absent(width: int, reason: str, count: int = 1, step: float = np.nan) -> Frames:
    """Return `count` missing frames."""
    return Frames(
        np.zeros((count, width), np.float32),
        np.zeros(count, bool),
        middles(count, step),
        {reason: count},
    )
