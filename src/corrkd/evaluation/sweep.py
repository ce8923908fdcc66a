"""All conditions of a split in one pass over the data.

In CorrKD's network a modality's encoder depends on no other modality, so its vector for "present" and for "absent" serve every subset; and
absent, all samples of a length look alike. A batch of three modalities costs three encodings, and three of a sample of each length, instead
of the twenty-one of one pass per subset. Any other network passes once per condition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrkd.data.batches import Batch, Samples
from corrkd.evaluation import metrics
from corrkd.missing.conditions import Condition, missing_subsets
from corrkd.missing.masks import noise
from corrkd.networks.base import AnyNetwork, Output

MaskSource = Callable[[Condition, int, Batch], Mapping[str, Tensor]]
"""(condition, draw, batch) -> per modality (N, T_m), True where dropped."""


class ModalityWise(Protocol):
    """A network whose encoders do not see each other's modality."""

    modalities: tuple[str, ...]

    def encode(self, modality: str, frames: Tensor, exists: Tensor, visible: Tensor) -> Tensor:
        """(N, T, d_m) and two (N, T) masks, exists and visible, -> (N, width). What stands at invisible places does not matter."""

    def classify(self, representation: Tensor) -> Tensor:
        """(N, M x width) -> logits."""


@dataclass(frozen=True)
class Result:
    """A network's answers under one condition and draw.

    Attributes:
        condition, draw: which.
        rows: (n,) rows of the samples, in the split's order; all N but for "natural".
        response: probabilities (n, K) or (n, Q, 2), or scores (n, 1); float32.
        representation: H (n, D) float16 where it was asked for, else None.
    """

    condition: Condition
    draw: int
    rows: npt.NDArray[np.int64]
    response: npt.NDArray[np.float32]
    representation: npt.NDArray[np.float16] | None = None


@dataclass
class _Collected:
    rows: list[Tensor] = field(default_factory=list)
    responses: list[Tensor] = field(default_factory=list)
    representations: list[Tensor] = field(default_factory=list)


def hashed_masks(seed: int) -> MaskSource:
    """The masks of the hash, by the evaluation's own seed: the same for every method and training seed."""

    def source(condition: Condition, draw: int, batch: Batch) -> Mapping[str, Tensor]:
        return condition.dropped(batch, seed=seed, draw=draw)

    return source


@torch.no_grad()
def sweep(
    network: AnyNetwork,
    samples: Samples,
    conditions: Sequence[Condition],
    *,
    masks: MaskSource | None = None,
    mask_seed: int = 2024,
    batch_size: int = 256,
    keep_representations: Sequence[str] = (),
    on_batch: Callable[[int], None] | None = None,
) -> list[Result]:
    """The network's answers under every condition, each condition once per draw.

    Args:
        network: in any mode; it is put into eval mode and back.
        samples: a split.
        conditions: what is missing.
        masks: where masks come from; default: the hash with `mask_seed`, which is also the seed of "noise".
        mask_seed: see `masks`.
        batch_size: changes nothing but memory and, in the last bits, rounding. Conversations are kept whole for a network that reads them.
        keep_representations: names of conditions whose H is kept (its first draw).
        on_batch: called with the number of samples done.
    """
    training = network.training
    network.eval()
    masks = masks or hashed_masks(mask_seed)
    runs = [(condition, draw) for condition in conditions for draw in range(condition.draws)]
    collected = [_Collected() for _ in runs]
    for batch in samples.batches(batch_size, conversations=network.reads_conversations):
        cache: dict[tuple[str, bool], Tensor] = {}
        context = samples.context(batch.rows)
        for (condition, draw), out in zip(runs, collected, strict=True):
            dropped = {} if is_whole(condition) else masks(condition, draw, batch)
            if network.modality_wise:
                parted = cast(ModalityWise, network)
                representation = _represent(parted, batch, condition, draw, dropped, mask_seed, cache)
                answer = Output(representation, parted.classify(representation))
            else:
                answer = network.in_context(*shown(batch, condition, draw, dropped, mask_seed), context)
            out.rows.append(batch.rows)
            out.responses.append(respond(answer.logits, samples.target.kind))
            if condition.name in keep_representations and draw == 0:
                out.representations.append(answer.representation)
        if on_batch:
            on_batch(len(batch))
    network.train(training)
    incomplete = samples.incomplete.cpu().numpy()
    return [_result(*run, out, incomplete) for run, out in zip(runs, collected, strict=True)]


def tested_rows(condition: Condition, incomplete: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Rows of the samples that a condition is tested on: all, but for "natural" those that the data itself leaves incomplete."""
    return np.flatnonzero(incomplete) if condition.kind == "natural" else np.arange(len(incomplete))


def respond(logits: Tensor, kind: str) -> Tensor:
    """R: softmax of the logits; a score is its own response."""
    return logits.float() if kind == "score" else torch.softmax(logits.float(), -1)


def mean_missing_f1(network: AnyNetwork, samples: Samples, *, batch_size: int = 256) -> float:
    """The weighted F1 averaged over the missing subsets ("Avg."): what every student's epoch is chosen by."""
    return mean_f1(network, samples, missing_subsets(network.modalities), batch_size=batch_size)


def mean_f1(network: AnyNetwork, samples: Samples, conditions: Sequence[Condition], *, batch_size: int = 256) -> float:
    """The weighted F1 averaged over conditions in which nothing is random."""
    results = sweep(network, samples, conditions, batch_size=batch_size)
    truth = samples.targets.cpu().numpy()
    return float(np.mean([metrics.main_score(samples.target, truth, result.response) for result in results]))


def _represent(
    network: ModalityWise,
    batch: Batch,
    condition: Condition,
    draw: int,
    dropped: Mapping[str, Tensor],
    seed: int,
    cache: dict[tuple[str, bool], Tensor],
) -> Tensor:
    """H of a batch under a condition. Vectors of modalities that are wholly there or wholly absent are made once."""
    if not is_whole(condition):
        given = shown(batch, condition, draw, dropped, seed)
        return torch.cat([network.encode(m, *(part[m] for part in given)) for m in network.modalities], 1)
    for m in network.modalities:
        frames, exists, there = batch.frames[m], batch.exists[m], _there(condition, m)
        if (m, there) not in cache:
            cache[m, there] = (
                network.encode(m, frames, exists, batch.present[m]) if there else _absent(network, m, frames, exists)
            )
    return torch.cat([cache[m, _there(condition, m)] for m in network.modalities], 1)


def shown(
    batch: Batch, condition: Condition, draw: int, dropped: Mapping[str, Tensor], seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """What a network is given of a batch under a condition: frames, exists, visible, each by modality."""
    frames, visible = dict(batch.frames), dict(batch.present)
    for m, present in batch.present.items():
        if is_whole(condition):
            visible[m] = present if _there(condition, m) else torch.zeros_like(present)
        elif condition.kind == "noise":
            heard = noise(batch.keys, *frames[m].shape[1:], seed=seed, modality=m, draw=draw).to(frames[m].dtype)
            frames[m] = torch.where((dropped[m] & present)[..., None], heard, frames[m])
        else:
            visible[m] = present & ~dropped[m]
    return frames, dict(batch.exists), visible


def is_whole(condition: Condition) -> bool:
    """Whether each modality is wholly there or wholly absent."""
    return condition.kind in ("modalities", "natural") or (condition.ratio in (0.0, 1.0) and condition.kind != "noise")


def _there(condition: Condition, modality: str) -> bool:
    """Whether a modality is wholly there, under a condition that is `is_whole`."""
    return modality in condition.available and condition.ratio != 1.0


def _absent(network: ModalityWise, modality: str, frames: Tensor, exists: Tensor) -> Tensor:
    """Vectors of a modality that is wholly absent, (N, width): one for each length there is."""
    lengths, place = torch.unique(exists, dim=0, return_inverse=True)
    nothing = frames.new_zeros(len(lengths), *frames.shape[1:])
    return network.encode(modality, nothing, lengths, torch.zeros_like(lengths))[place]


def _result(condition: Condition, draw: int, out: _Collected, incomplete: npt.NDArray[np.bool_]) -> Result:
    order = torch.cat(out.rows).argsort()  # back to the split's
    response = torch.cat(out.responses)[order].cpu().numpy()
    rows = tested_rows(condition, incomplete)
    representation = None
    if out.representations:
        representation = torch.cat(out.representations)[order].to(torch.float16).cpu().numpy()[rows]
    return Result(condition, draw, rows, response[rows].astype(np.float32), representation)
