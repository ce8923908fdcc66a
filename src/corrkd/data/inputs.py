"""The inputs of a network: frames, which of them exist, and which of those are visible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class _Fields(NamedTuple):
    frames: Mapping[str, Tensor]
    exists: Mapping[str, Tensor]
    visible: Mapping[str, Tensor]


class Inputs(_Fields):
    """The inputs of a network, by modality. Only here are padding, missing and visible frames
    distinguished.

    A condition creates them in tests, `corrkd.missing.training` in training. Missing modalities
    have their canonical length.

    Args:
        frames: (N, T_m, d_m), normalised. The values of invisible frames are ignored.
        exists: (N, T_m) booleans: not padding.
        visible: (N, T_m) booleans: present in the data and not dropped. Padding is made invisible
            here, so `visible` implies `exists`.
    """

    __slots__ = ()

    def __new__(
        cls,
        frames: Mapping[str, Tensor],
        exists: Mapping[str, Tensor],
        visible: Mapping[str, Tensor],
    ) -> Inputs:
        """Create the inputs, with `visible` restricted to `exists`."""
        return super().__new__(
            cls, frames, exists, {m: mask & exists[m] for m, mask in visible.items()}
        )

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> Inputs:  # type: ignore[override]  # what `_replace` calls
        return cls(*iterable)

    def apply(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with a function applied to each tensor, as to take rows."""
        return Inputs(*({m: change(x) for m, x in by_modality.items()} for by_modality in self))

    def of(self, modality: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return frames, exists and visible of one modality."""
        return self.frames[modality], self.exists[modality], self.visible[modality]

    def without(self, modality: str) -> Inputs:
        """Return the inputs with all frames of a modality invisible and zero."""
        frames = {**self.frames, modality: torch.zeros_like(self.frames[modality])}
        return Inputs(
            frames,
            self.exists,
            {**self.visible, modality: torch.zeros_like(self.visible[modality])},
        )

    def with_lengths(self, lengths: Mapping[str, int]) -> Inputs:
        """Return the inputs with each modality that has no visible frame at its canonical length.

        The length is missing too: the number of frames that a missing modality would have had
        reveals something about the sample. If the canonical length exceeds T_m, the modality is
        padded to it.

        Args:
            lengths: canonical number of frames by modality, at least 1.
        """
        frames, exists, visible = dict(self.frames), dict(self.exists), dict(self.visible)
        for m, length in lengths.items():
            if (more := length - exists[m].shape[1]) > 0:
                frames[m] = pad(frames[m], (0, 0, 0, more))
                exists[m], visible[m] = (pad(mask, (0, more)) for mask in (exists[m], visible[m]))
            canonical = torch.arange(exists[m].shape[1], device=exists[m].device) < length
            exists[m] = torch.where(visible[m].any(1, keepdim=True), exists[m], canonical)
        return Inputs(frames, exists, visible)

    def shown(self, modalities: Sequence[str]) -> Tensor:
        """Return which of the modalities have a visible frame: (N, M) booleans, in their order."""
        return torch.stack([self.visible[m].any(1) for m in modalities], 1)
