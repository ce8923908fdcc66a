"""What a condition is: one way in which test samples are incomplete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from corrkd.data.batches import Batch
from corrkd.data.inputs import Inputs


class Family(Enum):
    """Conditions whose results belong together.

    SUBSETS: by available modalities, with their average ("Avg.").
    RATIOS: by the share of missing frames, `ratio`, as a curve with the area under it.
    OTHERS: in a separate table. They rate no predictions: samples of users are like one of the
    others.
    """

    SUBSETS = 1
    RATIOS = 2
    OTHERS = 3


@dataclass(frozen=True, kw_only=True)
class Condition(ABC):
    """One way in which test samples are incomplete.

    A kind of conditions is a subclass. `kind` and `dropped` are all that it has to define; the rest
    has defaults for a kind with a single condition in which nothing is random. `parse` must recover
    a condition from its name, all that reports, manifests and the command line store.

    Attributes:
        name: as in results, on the command line and in files.
        available: modalities of which anything can be visible.
        ratio: share of the frames concerned, 0 to 1; None for kinds that have none.
        draws: how many random draws are averaged; 1 where nothing is random.
        kind: of the class: the name of the entry point, the first word of its conditions' names and
            a key of `evaluation.conditions`; without "-".
        meaning: of the class: what is missing, for the caption of the table of others; "": the
            kind.
        family: of the class: the results that its own belong to.
        settings_type: of the class: the type of its value in `evaluation.conditions`.
        removes_frames: of the class: whether frames are taken away, so that raw samples can be
            predicted under it.
        stores_masks: of the class: whether a manifest has to hold its masks; not where they follow
            from the name.
        incomplete_samples_only: of the class: whether it is tested on those samples alone that the
            data itself leaves incomplete.
        intact_samples_only: of the class: whether it is tested on the other samples alone.
    """

    name: str
    available: tuple[str, ...]
    ratio: float | None = None
    draws: int = 1

    kind: ClassVar[str]
    meaning: ClassVar[str] = ""
    family: ClassVar[Family] = Family.OTHERS
    settings_type: ClassVar[Any] = bool
    removes_frames: ClassVar[bool] = True
    stores_masks: ClassVar[bool] = True
    incomplete_samples_only: ClassVar[bool] = False
    intact_samples_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Make a single draw of a condition in which nothing is random."""
        if not self.is_random:
            object.__setattr__(self, "draws", 1)

    @classmethod
    def claims(cls, name: str) -> bool:
        """Return whether a name could be taken for one of this kind, so that no modality may have
        it.
        """
        return name == cls.kind

    @classmethod
    def parse(cls, name: str, modalities: Sequence[str], draws: int = 1) -> Self | None:
        """Return the condition of this kind that has that name, None where there is none."""
        return (
            cls(name=name, available=tuple(modalities), draws=draws) if name == cls.kind else None
        )

    @classmethod
    def from_settings(cls, value: Any, modalities: Sequence[str], draws: int) -> Sequence[Self]:
        """Return the conditions of this kind that settings ask for.

        Args:
            value: of `evaluation.conditions`, a `settings_type`.
            modalities: names of the dataset's modalities.
            draws: how many random draws are averaged.
        """
        return [cls(name=cls.kind, available=tuple(modalities), draws=draws)] if value else []

    @property
    def is_random(self) -> bool:
        """Whether draws differ, so that `evaluation.draws` of them are averaged."""
        return False

    @property
    def complete_modalities(self) -> tuple[str, ...] | None:
        """The modalities that are complete, where all others are missing entirely, in every sample
        alike: encodings can then be shared.

        None where single frames are missing.
        """
        return None

    @abstractmethod
    def dropped(self, batch: Batch, *, seed: int, draw: int) -> dict[str, Tensor]:
        """Return the masks: per modality (N, T_m) booleans, True where a frame is dropped. Padding
        may be marked dropped too. Random numbers come from `corrkd.missing.masks.uniform` with a
        purpose that no other kind has, so that masks are the same for all batch sizes and devices.

        Args:
            batch: the samples, with or without their frames.
            seed: of everything random.
            draw: number of the random draw.
        """

    def visible(self, batch: Batch, *, seed: int, draw: int) -> dict[str, Tensor]:
        """Return which frames a network takes for present, (N, T_m) booleans by modality; arguments
        as of `dropped`.
        """
        return batch.visible(self.dropped(batch, seed=seed, draw=draw))

    def apply(
        self, batch: Batch, *, seed: int, draw: int, masks: Mapping[str, Tensor] | None = None
    ) -> Inputs:
        """Return what a network sees of a batch under this condition.

        Args:
            batch: the samples, as the data have them.
            seed: of everything random.
            draw: number of the random draw.
            masks: in place of those of `dropped`, as from a manifest.
        """
        return batch.inputs(self.dropped(batch, seed=seed, draw=draw) if masks is None else masks)

    def tested_rows(self, incomplete: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Return the rows of the samples that it is tested on. `incomplete`: (N,) booleans, samples
        that the data leaves incomplete.
        """
        if self.incomplete_samples_only:
            return np.flatnonzero(incomplete)
        if self.intact_samples_only:
            return np.flatnonzero(~incomplete)
        return np.arange(len(incomplete))

    def heading(self, initials: Mapping[str, str]) -> str:
        """Return the heading of its column in tables; `initials`: the abbreviation of each
        modality.
        """
        return self.name if self.ratio is None else f"{self.kind} {self.ratio:g}"

    def to_json(self) -> dict[str, Any]:
        """Return what run.json holds of it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "available": list(self.available),
            "ratio": self.ratio,
            "draws": self.draws,
        }
