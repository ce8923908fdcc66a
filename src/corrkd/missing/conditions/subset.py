"""Inter-modality missingness: some modalities are available, the others are missing entirely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from torch import Tensor

from corrkd.data.batches import Batch
from corrkd.missing.conditions.base import Condition, Family
from corrkd.missing.masks import drop_modalities

COMPLETE = "complete"


class Subset(Condition):
    """Only the `available` modalities. The name joins them by "+"; with all modalities it is
    "complete".
    """

    kind = "modalities"
    family = Family.SUBSETS
    stores_masks: ClassVar[bool] = False

    @classmethod
    def of(cls, available: Sequence[str], modalities: Sequence[str]) -> Self:
        """Return the condition with these modalities available, in the order of `modalities`."""
        kept = tuple(m for m in modalities if m in available)
        return cls(
            name=COMPLETE if len(kept) == len(modalities) else "+".join(kept), available=kept
        )

    @classmethod
    def parse(cls, name: str, modalities: Sequence[str], draws: int = 1) -> Self | None:
        """Return the subset with the given name, with its modalities in any order; None if the name
        is not valid.
        """
        names = list(modalities) if name == COMPLETE else name.split("+")
        return (
            cls.of(names, modalities)
            if set(names) <= set(modalities) and len(set(names)) == len(names)
            else None
        )

    @property
    def complete_modalities(self) -> tuple[str, ...]:
        """The available modalities."""
        return self.available

    def dropped(self, batch: Batch, *, seed: int, draw: int) -> dict[str, Tensor]:
        """Return the masks, (N, T_m) booleans by modality: all frames of the missing modalities."""
        return drop_modalities(batch.exists, self.available)

    def heading(self, initials: Mapping[str, str]) -> str:
        """Return the initials of the available modalities in braces, as in the paper."""
        return (
            COMPLETE
            if self.name == COMPLETE
            else "{" + ",".join(initials[m] for m in self.available) + "}"
        )
