"""The base class of conditions that affect a share of the frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from corrkd.data.batches import Batch
from corrkd.missing.conditions.base import Condition
from corrkd.missing.masks import drop_modalities
from corrkd.settings import Ratios


@dataclass(frozen=True, kw_only=True)
class AtRatio(Condition):
    """A condition `kind`-R that affects a share R of the frames of every modality: none at 0, all
    at 1.
    """

    ratio: float

    settings_type: ClassVar[Any] = Ratios

    @classmethod
    def at(cls, ratio: float, modalities: Sequence[str], draws: int = 1) -> Self:
        """Return the condition of this kind at a ratio."""
        number = f"{ratio:.1f}" if round(ratio, 1) == ratio else f"{ratio:.12f}".rstrip("0")
        return cls(
            name=f"{cls.kind}-{number}", available=tuple(modalities), ratio=ratio, draws=draws
        )

    @classmethod
    def claims(cls, name: str) -> bool:
        """Return whether a name begins like the names of this kind."""
        return name.startswith(f"{cls.kind}-")

    @classmethod
    def parse(cls, name: str, modalities: Sequence[str], draws: int = 1) -> Self | None:
        """Return the condition of this kind with the given name; None if the name is not valid."""
        kind, _, number = name.rpartition("-")
        try:
            ratio = float(number)
        except ValueError:
            return None
        return (
            cls.at(ratio, modalities, draws) if kind == cls.kind and 0.0 <= ratio <= 1.0 else None
        )

    @classmethod
    def from_settings(
        cls, value: Sequence[float], modalities: Sequence[str], draws: int
    ) -> Sequence[Self]:
        """Return a condition for each ratio, without duplicates."""
        return [cls.at(ratio, modalities, draws) for ratio in dict.fromkeys(value)]

    @property
    def is_random(self) -> bool:
        """Whether draws differ: not if no frame or every frame is affected."""
        return 0.0 < self.ratio < 1.0

    @property
    def complete_modalities(self) -> tuple[str, ...] | None:
        """All modalities at a ratio of 0, () at 1; None between, because samples differ."""
        return {0.0: self.available, 1.0: ()}.get(self.ratio)

    def dropped(self, batch: Batch, *, seed: int, draw: int) -> dict[str, Tensor]:
        """Return the masks, (N, T_m) booleans by modality, True if a frame is dropped."""
        if self.complete_modalities is not None:
            return drop_modalities(batch.exists, self.complete_modalities)
        return {m: self.dropped_frames(batch, m, seed=seed, draw=draw) for m in batch.exists}

    @abstractmethod
    def dropped_frames(self, batch: Batch, modality: str, *, seed: int, draw: int) -> Tensor:
        """Return the mask of one modality at a ratio between 0 and 1: (N, T_m) booleans, True if a
        frame is dropped.
        """
