"""What every extractor is, and what it gives."""

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
    """The features of one modality of a clip. T frames of width d, T >= 1.

    Attributes:
        values: (T, d) float32; zeros where nothing is present.
        present: (T,) whether the modality is there; where it is not, the values mean nothing.
        times: (T,) seconds at the middle of each frame; NaN where they are not known.
        missing: how many frames are missing, by reason, as {"no face": 12}.
    """

    values: FloatArray
    present: BoolArray
    times: npt.NDArray[np.float64]
    missing: Mapping[str, int] = field(default_factory=dict)


class Extractor(ABC):
    """Makes the features of one modality. A plug-in subclasses it and is named by an entry point in
    the group `corrkd.extractors`.

    Attributes:
        name: of the entry point, for `--extractor MODALITY=NAME`, and in files.
        version: raised whenever the same clip would get other numbers.
        modality: "language", "audio", "vision" or another name.
        columns: what each feature is, in order.
        libraries: distributions whose version the numbers may depend on.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    modality: ClassVar[str]
    columns: tuple[str, ...]
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    @property
    def width(self) -> int:
        """How many features a frame has."""
        return len(self.columns)

    @abstractmethod
    def frames(self, clip: Clip) -> Frames:
        """Return the features of a clip; the same for the same clip, in whatever process and order.

        Raises:
            CorrKDError: the clip cannot be read.
        """

    def batch(self, clips: Sequence[Clip]) -> list[Frames]:
        """Return the features of several clips, each as `frames` gives them, to rounding. One by
        one, unless the extractor can read them together, as on a GPU. Raises as `frames`.
        """
        return [self.frames(clip) for clip in clips]

    def weights(self) -> Mapping[str, str]:
        """Return the SHA-256 sum of each file of weights, by its name."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return what identifies the extractor, as plain values: two that describe themselves alike
        give the same features.
        """
        described = {"name": self.name, "version": self.version, "columns": list(self.columns)}
        return described | ({"weights": dict(self.weights())} if self.weights() else {})


def middles(count: int, step: float) -> npt.NDArray[np.float64]:
    """Return (count,) seconds at the middle of frames of equal length."""
    return np.asarray((np.arange(count) + 0.5) * step, np.float64)


def absent(width: int, reason: str, count: int = 1, step: float = np.nan) -> Frames:
    """Return frames none of which is present."""
    return Frames(
        np.zeros((count, width), np.float32),
        np.zeros(count, bool),
        middles(count, step),
        {reason: count},
    )
