"""What is tested: both protocols of the paper, and more, as named conditions (docs/missingness.md)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from corrkd.data.batches import Batch
from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.missing import masks
from corrkd.parsing import quoted
from corrkd.settings import EvaluationSettings

Kind = Literal["modalities", "ratio", "burst", "late", "noise", "natural"]
COMPLETE = "complete"
NATURAL = "natural"
MOST_MODALITIES = 10  # with 1,023 subsets
_RESERVED = re.compile(r"complete|natural|average|ratios|(ratio|burst|late|noise)-.*|.*[+,].*|", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One way in which test samples are incomplete.

    Attributes:
        name: "complete", the available modalities joined by "+", or "ratio-0.3", "burst-0.5", "late-0.5", "noise-0.5", "natural".
        kind: "modalities" (inter-modality: only `available` ones are there), "ratio" (intra-modality: frames dropped from every modality),
            "burst" (a contiguous gap in every modality), "late" (the first frames of every modality), "noise" (as "ratio", but noise
            stands in the frames' place and the network is not told), "natural" (nothing dropped; only the samples that the data itself
            leaves incomplete).
        available: modalities that are there.
        ratio: share of frames concerned, 0 to 1, or None.
        draws: how many random draws are averaged; 1 where nothing is random.
    """

    name: str
    kind: Kind
    available: tuple[str, ...]
    ratio: float | None = None
    draws: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether each modality is wholly there or wholly missing."""
        return self.kind in ("modalities", "natural") or (self.ratio in (0.0, 1.0) and self.kind != "noise")

    def shows(self, modality: str) -> bool:
        """Whether a modality is wholly there, under a condition that is `is_whole`."""
        return modality in self.available and self.ratio != 1.0

    def inputs(self, batch: Batch, *, seed: int, draw: int, dropped: Mapping[str, Tensor] | None = None) -> Inputs:
        """Return what a network sees of a batch under this condition.

        Args:
            batch: the samples, as the data have them.
            seed: of masks and noise.
            draw: number of the random draw.
            dropped: a mask to apply, as from `dropped`; default: that one.
        """
        if dropped is None:
            dropped = self.dropped(batch, seed=seed, draw=draw)
        if self.kind != "noise":
            return batch.inputs(dropped)
        frames = {}
        for m, x in batch.frames.items():
            replacement = masks.noise(batch.keys, *x.shape[1:], seed=seed, modality=m, draw=draw).to(x.dtype)
            frames[m] = torch.where((dropped[m] & batch.present[m])[..., None], replacement, x)
        return batch.inputs(frames=frames)

    def dropped(self, batch: Batch, *, seed: int, draw: int) -> dict[str, Tensor]:
        """The mask: per modality (N, T_m) booleans, True where dropped (for "noise": replaced). All is dropped at a ratio of 1."""
        return {m: self._dropped(batch, m, seed, draw) for m in batch.exists}

    def _dropped(self, batch: Batch, modality: str, seed: int, draw: int) -> Tensor:
        exists = batch.exists[modality]
        count = exists.shape[1]
        if self.is_whole:
            return torch.full_like(exists, not self.shows(modality))
        assert self.ratio is not None
        if self.kind == "late":
            return masks.drop_start(self.ratio, exists.sum(1), count)
        if self.kind == "burst":
            number = masks.uniform(batch.keys, 1, seed=seed, purpose="burst", modality=modality, draw=draw)
            return masks.drop_burst(number, self.ratio, exists.sum(1), count)
        keys = batch.frame_keys.get(modality)
        numbers = masks.frame_numbers(batch.keys, count, keys, seed=seed, modality=modality, draw=draw)
        return masks.drop_frames(numbers, self.ratio)


def subsets(modalities: Sequence[str]) -> list[Condition]:
    """Every non-empty subset of the modalities, smallest first; the last is "complete".

    Raises:
        CorrKDError: where a modality has the name of a condition or of a column, or there are too many.
    """
    if len(modalities) > MOST_MODALITIES:
        raise CorrKDError(f"{len(modalities)} modalities have too many subsets to test; use at most {MOST_MODALITIES}")
    for m in modalities:
        if _RESERVED.fullmatch(m):
            raise CorrKDError(f"modality {m!r}: its name means something else in the results; give it another")
    out = []
    for size in range(1, len(modalities) + 1):
        for chosen in itertools.combinations(modalities, size):
            name = COMPLETE if size == len(modalities) else "+".join(chosen)
            out.append(Condition(name=name, kind="modalities", available=chosen))
    return out


def missing_subsets(modalities: Sequence[str]) -> list[Condition]:
    """All subsets but the complete one: what "Avg." is the mean of. With one modality: that one, complete."""
    return subsets(modalities)[:-1] or subsets(modalities)


def condition(name: str, modalities: Sequence[str], draws: int = 1) -> Condition:
    """The condition of that name. Raises CorrKDError with what is allowed for an unknown one."""
    for known in subsets(modalities):
        if name == known.name or sorted(name.split("+")) == sorted(known.available):
            return known
    everything = tuple(modalities)
    if name == NATURAL:
        return Condition(name=name, kind="natural", available=everything)
    kind, dash, number = name.rpartition("-")
    try:
        ratio = float(number)
    except ValueError:
        ratio = -1.0
    if not dash or len(name) > 100 or kind not in ("ratio", "burst", "late", "noise") or not 0.0 <= ratio <= 1.0:
        raise CorrKDError(
            f"condition {quoted(name)} is unknown; there are complete, {', '.join(modalities)} and their sums as "
            f"{'+'.join(modalities[:2])}, natural, and ratio-R, burst-R, late-R, noise-R with R from 0 to 1"
        )
    return _at(kind, ratio, everything, draws)


def _at(kind: str, ratio: float, modalities: tuple[str, ...], draws: int) -> Condition:
    random = ratio > 0.0 if kind == "noise" else 0.0 < ratio < 1.0 and kind != "late"
    number = f"{ratio:.1f}" if round(ratio, 1) == ratio else f"{ratio:.12f}".rstrip("0")
    return Condition(
        name=f"{kind}-{number}",
        kind=kind,  # type: ignore[arg-type]
        available=modalities,
        ratio=ratio,
        draws=draws if random else 1,
    )


def standard_conditions(
    modalities: Sequence[str], settings: EvaluationSettings, *, naturally_incomplete: bool
) -> list[Condition]:
    """What an evaluation runs: every subset, then ratios, bursts, late starts and noise as set, then "natural" where the data has any."""
    out = subsets(modalities)
    for kind, ratios in (
        ("ratio", settings.ratios),
        ("burst", settings.bursts),
        ("late", settings.late),
        ("noise", settings.noise),
    ):
        out += [_at(kind, ratio, tuple(modalities), settings.draws) for ratio in dict.fromkeys(ratios)]
    if settings.natural and naturally_incomplete:
        out.append(condition(NATURAL, modalities))
    return out


def named_conditions(names: Iterable[str], modalities: Sequence[str], draws: int) -> list[Condition]:
    """Several by name, each once, in the order given."""
    return list({c.name: c for c in (condition(name, modalities, draws) for name in names)}.values())
