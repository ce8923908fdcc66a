"""Tensors of a split: on the device if it fits there, else read batch by batch. The only path from
a dataset to a network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from corrkd.data.dataset import IntArray, Split, StrArray
from corrkd.data.inputs import Inputs
from corrkd.data.normalise import Normalisation
from corrkd.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class Batch:
    """N samples on the device.

    Attributes:
        frames: per modality (N, T_m, d_m), normalised; zero in the padding.
        exists: per modality (N, T_m) booleans: not padding.
        present: per modality (N, T_m) booleans: exists and is not naturally missing.
        targets: (N,) int64 classes, (N, Q) int64 yes/no answers, or (N,) float scores.
        keys: (N,) int64 hash of each sample's id, from which its masks are drawn.
        rows: (N,) int64 index of each sample in its source.
        frame_keys: per modality (N, T_m) int64 hash of each frame's recording and index, for
            modalities with numbered frames.
        lengths: canonical number of frames by modality, from `corrkd.data.normalise.Normalisation`.
    """

    frames: Mapping[str, Tensor]
    exists: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    targets: Tensor
    keys: Tensor
    rows: Tensor
    frame_keys: Mapping[str, Tensor]
    lengths: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.rows)

    def visible(self, dropped: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return which frames are present and not dropped: (N, T_m) booleans by modality.
        `dropped`: likewise.
        """
        return {m: present & ~dropped[m] for m, present in self.present.items()}

    def inputs(self, dropped: Mapping[str, Tensor]) -> Inputs:
        """Return the inputs of a network for these samples. A modality without a visible frame has
        its canonical length.

        Args:
            dropped: (N, T_m) booleans by modality, True where a frame is dropped.
        """
        return Inputs(self.frames, self.exists, self.visible(dropped)).with_lengths(self.lengths)

    def complete(self) -> Inputs:
        """Return the inputs of a network for these samples with nothing dropped."""
        return Inputs(self.frames, self.exists, self.present).with_lengths(self.lengths)


def sample_key(sample_id: str) -> int:
    """Return the hash of a sample's id as a signed 64-bit number, the same on every machine."""
    return int.from_bytes(
        hashlib.blake2b(sample_id.encode(), digest_size=8).digest(), "little", signed=True
    )


def frame_keys(split: Split) -> dict[str, Tensor]:
    """Return a hash of each frame's recording and index, (N, T_m) int64, for modalities with
    numbered frames.
    """
    if not split.frame_ids:
        return {}
    recordings = split.recordings()
    names = np.full(len(split), "") if recordings is None else recordings
    keys = torch.tensor([sample_key(str(name)) for name in names], dtype=torch.int64)
    # Odd, so that no two numbers of a recording share a key.
    return {
        m: keys[:, None] + torch.from_numpy(np.asarray(x)) * 0x9E3779B1
        for m, x in split.frame_ids.items()
    }


def for_masks(split: Split) -> Batch:
    """Return a raw split as one batch on the CPU without frames and targets: all that drawing masks
    needs.
    """
    keys = torch.tensor([sample_key(str(name)) for name in split.ids], dtype=torch.int64)
    return Batch(
        frames={},
        exists={m: torch.from_numpy(split.exists(m)) for m in split.frames},
        present={m: torch.from_numpy(np.array(exists)) for m, exists in split.present.items()},
        targets=torch.zeros(len(keys)),
        keys=keys,
        rows=torch.arange(len(keys)),
        frame_keys=frame_keys(split),
        lengths={},
    )


class Context(NamedTuple):
    """The conversations and speakers of the samples of a batch, for methods that look beyond a
    single sample.

    Attributes:
        rows: (N,) index of each sample in its source.
        conversation: (N,) index of the sample's video or session; if the data has neither, each
            sample is a conversation.
        position: (N,) position within the conversation; 0 if unknown.
        speaker: (N,) index of the sample's speaker or person; 0 for all if the data has neither.
    """

    rows: Tensor
    conversation: Tensor
    position: Tensor
    speaker: Tensor


class Samples:
    """The samples of a split that count for a target, to be taken in batches.

    Args:
        split: the raw samples.
        target: what to predict; samples that do not count for it are left out.
        normalisation: fitted on the training split.
        device: device of the batches.
        resident_bytes: a normalised split up to this size is kept on the device, so that batches
            are not copied.
        where: begins error messages.
        dtype: of frames and scores.
    """

    def __init__(
        self,
        split: Split,
        target: Target,
        normalisation: Normalisation,
        *,
        device: torch.device,
        resident_bytes: float = 4e9,
        where: str = "split",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        values, keep = target.of(split, where)
        self.kept = np.flatnonzero(keep)
        self.target = target
        self.modalities = tuple(split.frames)
        self.widths = {m: int(x.shape[2]) for m, x in split.frames.items()}
        self.ids = split.ids[self.kept]
        self.lengths = normalisation.lengths
        self.device = device
        self._dtype = dtype
        self._normalisation = normalisation
        self._split = split
        self.targets = torch.as_tensor(values[self.kept]).to(target.dtype(dtype)).to(device)
        self.keys = torch.tensor(
            [sample_key(str(i)) for i in self.ids], dtype=torch.int64, device=device
        )
        self.exists = {
            m: torch.as_tensor(split.exists(m)[self.kept]).to(device) for m in self.modalities
        }
        self.present = {
            m: torch.as_tensor(split.present[m][self.kept]).to(device) for m in self.modalities
        }
        self.frame_keys = {m: x[self.kept].to(device) for m, x in frame_keys(split).items()}
        self._context = _context(split, self.kept, device)
        size = sum(
            len(self.kept) * x.shape[1] * x.shape[2] * dtype.itemsize for x in split.frames.values()
        )
        self.resident = size <= resident_bytes
        self._frames = (
            {m: self._load(m, np.arange(len(self.kept))) for m in self.modalities}
            if self.resident
            else {}
        )
        # None for itself: a reference to itself would keep a split in memory after its last use.
        self._base: Samples | None = None
        self.base_rows = torch.arange(len(self.kept), device=device)

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def base(self) -> Samples:
        """The samples that a subset was taken from, which store its frames; else themselves."""
        return self if self._base is None else self._base

    def subset(self, rows: Tensor) -> Samples:
        """Return the samples at `rows`, in that order, with the same normalisation. Frames are
        stored once: in `base`, at `base_rows`.
        """
        subset = copy(self)
        subset._base = self.base
        subset.kept, subset.ids = self.kept[rows.cpu().numpy()], self.ids[rows.cpu().numpy()]
        subset.targets, subset.keys = self.targets[rows], self.keys[rows]
        subset.exists = {m: x[rows] for m, x in self.exists.items()}
        subset.present = {m: x[rows] for m, x in self.present.items()}
        subset.frame_keys = {m: x[rows] for m, x in self.frame_keys.items()}
        subset.base_rows = self.base_rows[rows]
        numbers = torch.arange(len(rows), device=self.device)
        subset._context = Context(numbers, *(x[rows] for x in self._context[1:]))
        return subset

    @property
    def incomplete(self) -> Tensor:
        """(N,) booleans: samples that the data itself leaves incomplete."""
        return torch.stack(
            [(self.exists[m] & ~self.present[m]).any(1) for m in self.modalities]
        ).any(0)

    def context(self, rows: Tensor) -> Context:
        """Return the context of the samples at `rows`."""
        return Context(*(x[rows] for x in self._context))

    def mean_frames(self) -> dict[str, Tensor]:
        """Return the mean of the normalised present frames, (d_m,) by modality, on the CPU; `fill:
        mean` uses it for missing frames.
        """
        totals = {m: torch.zeros(width, dtype=torch.float64) for m, width in self.widths.items()}
        for batch in self.batches(1024):
            for m, total in totals.items():
                total += batch.frames[m][batch.present[m]].double().sum(0).cpu()
        return {m: total / self.present[m].sum().clamp(min=1).cpu() for m, total in totals.items()}

    def take(self, rows: Tensor) -> Batch:
        """Return the samples at `rows` (int64 on the device). Nothing is copied between host and
        device if the split is resident.
        """
        if self.resident:
            frames = {m: x[self.base_rows[rows]] for m, x in self._frames.items()}
        else:
            host = rows.cpu().numpy()
            frames = {m: self._load(m, host) for m in self.modalities}
        return Batch(
            frames=frames,
            exists={m: x[rows] for m, x in self.exists.items()},
            present={m: x[rows] for m, x in self.present.items()},
            targets=self.targets[rows],
            keys=self.keys[rows],
            rows=rows,
            frame_keys={m: x[rows] for m, x in self.frame_keys.items()},
            lengths=self.lengths,
        )

    def without_frames(self) -> Batch:
        """Return all samples as one batch without their frames: all that masks need, for a split of
        any size.
        """
        rows = torch.arange(len(self), device=self.device)
        return Batch(
            frames={},
            exists=self.exists,
            present=self.present,
            targets=self.targets,
            keys=self.keys,
            rows=rows,
            frame_keys=self.frame_keys,
            lengths=self.lengths,
        )

    def batches(self, size: int, *, conversations: bool = False) -> Iterator[Batch]:
        """Yield all samples in order, `size` at a time; with `conversations`, whole conversations
        together, one after the other.
        """
        order = torch.arange(len(self)).split(size)
        for rows in (
            whole_conversations(self._context.conversation, size) if conversations else order
        ):
            yield self.take(rows.to(self.device))

    def shuffled(
        self, size: int, generator: torch.Generator, *, conversations: bool = False
    ) -> Sequence[Tensor]:
        """Return the rows of each batch of an epoch, on the CPU."""
        if conversations:
            return whole_conversations(self._context.conversation, size, generator)
        return torch.randperm(len(self), generator=generator).split(size)

    def _load(self, modality: str, rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
        raw = np.asarray(self._split.frames[modality][self.kept[rows]], np.float32)
        frames = torch.as_tensor(raw).to(self.device).to(self._dtype)
        index = torch.as_tensor(rows, device=self.device)
        return self._normalisation.apply(modality, frames).mul_(
            self.exists[modality][index][..., None]
        )


def _context(split: Split, kept: IntArray, device: torch.device) -> Context:
    def numbers(group: StrArray | None, otherwise: IntArray) -> Tensor:
        values = otherwise if group is None else np.unique(group, return_inverse=True)[1]
        return torch.as_tensor(values[kept].astype(np.int64)).to(device)

    alone, zero = np.arange(len(split)), np.zeros(len(split), np.int64)
    order = zero if split.order is None else split.order
    speaker = next(
        (split.groups[name] for name in ("speaker", "person") if name in split.groups), None
    )
    return Context(
        rows=torch.arange(len(kept), device=device),
        conversation=numbers(split.recordings(), alone),
        position=torch.as_tensor(np.asarray(order)[kept].astype(np.int64)).to(device),
        speaker=numbers(speaker, zero),
    )


def whole_conversations(
    conversation: Tensor, size: int, generator: torch.Generator | None = None
) -> Sequence[Tensor]:
    """Return rows in batches of whole conversations, on the CPU.

    Conversations follow one another, and a batch ends with the one that reaches `size` rows, so it
    is longer by less than a conversation.

    Args:
        conversation: (N,) index of each row's conversation.
        size: number of rows from which a batch is full.
        generator: shuffles the conversations; None: in the order of their indices.
    """
    numbers = conversation.cpu()
    rows = numbers.argsort(stable=True)
    parts = list(
        rows.split(torch.unique_consecutive(numbers[rows], return_counts=True)[1].tolist())
    )
    if generator is not None:
        parts = [parts[index] for index in torch.randperm(len(parts), generator=generator).tolist()]
    batches: dict[int, list[Tensor]] = {}
    start = 0
    for subset in parts:
        batches.setdefault(start // size, []).append(subset)
        start += len(subset)
    return [torch.cat(batch) for batch in batches.values()]
