"""All conditions of a split in one pass over the data.

In CorrKD's network a modality's encoder depends on no other modality, so its vector serves every subset that has it; and a missing modality
has one vector for all samples. A batch of three modalities costs three encodings instead of the twenty-one of one pass per subset. Any
other network passes once per condition.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrkd.data.batches import Batch, Samples
from corrkd.data.inputs import Inputs
from corrkd.missing.conditions import Condition, missing_subsets
from corrkd.networks.base import AnyNetwork, Output
from corrkd.settings import MASK_SEED

MaskSource = Callable[[Condition, int, Batch], Mapping[str, Tensor] | None]
"""(condition, draw, batch) -> per modality (N, T_m), True where dropped; None: the condition's own."""


class ModalityWise(Protocol):
    """A network whose encoders do not see each other's modality."""

    modalities: tuple[str, ...]

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the modality's part of H, (N, width). It depends on no other modality of the inputs."""

    def classify(self, representation: Tensor) -> Tensor:
        """(N, M x width) -> logits."""


@dataclass(frozen=True)
class Result:
    """A network's answers under one condition and draw.

    Attributes:
        condition, draw: which.
        rows: (n,) rows of the samples, in the split's order; those that the condition is tested on.
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


@torch.no_grad()
def sweep(
    network: AnyNetwork,
    samples: Samples,
    conditions: Sequence[Condition],
    *,
    masks: MaskSource | None = None,
    mask_seed: int = MASK_SEED,
    batch_size: int = 256,
    keep_representations: Sequence[str] = (),
    on_batch: Callable[[int], None] | None = None,
) -> list[Result]:
    """The network's answers under every condition, each condition once per draw.

    Args:
        network: in any mode; it is put into eval mode and back.
        samples: a split.
        conditions: what is missing.
        masks: a source of masks to replay; default: the conditions' own.
        mask_seed: of masks and noise; the default is the one of every run.
        batch_size: changes nothing but memory and, in the last bits, rounding. Conversations are kept whole for a network that reads them.
        keep_representations: names of conditions whose H is kept (its first draw).
        on_batch: called with the number of samples done.
    """
    training = network.training
    network.eval()
    runs = [(condition, draw) for condition in conditions for draw in range(condition.draws)]
    collected = [_Collected() for _ in runs]
    missing: dict[str, Tensor] = {}
    for batch in samples.batches(batch_size, conversations=network.reads_conversations):
        network.check_memory({m: x.shape[1] for m, x in batch.exists.items()}, len(batch))
        complete = batch.complete()
        present: dict[str, Tensor] = {}
        context = samples.context(batch.rows)

        def inputs_of(condition: Condition, draw: int, batch: Batch = batch) -> Inputs:
            replayed = None if masks is None else masks(condition, draw, batch)
            return condition.apply(batch, seed=mask_seed, draw=draw, masks=replayed)

        for (condition, draw), out in zip(runs, collected, strict=True):
            if network.modality_wise:
                parted = cast(ModalityWise, network)
                if (kept := condition.complete_modalities) is not None:
                    representation = _shared_representation(parted, batch, complete, kept, present, missing)
                else:
                    inputs = inputs_of(condition, draw)
                    representation = torch.cat([parted.encode(m, inputs) for m in network.modalities], 1)
                answer = Output(representation, parted.classify(representation))
            else:
                answer = network.in_context(inputs_of(condition, draw), context)
            out.rows.append(batch.rows)
            out.responses.append(samples.target.respond(answer.logits))
            if condition.name in keep_representations and draw == 0:
                out.representations.append(answer.representation)
        if on_batch:
            on_batch(len(batch))
    network.train(training)
    incomplete = samples.incomplete.cpu().numpy()
    return [_result(*run, out, incomplete) for run, out in zip(runs, collected, strict=True)]


def mean_missing_f1(network: AnyNetwork, samples: Samples, *, batch_size: int = 256) -> float:
    """The weighted F1 averaged over the missing subsets ("Avg."): what every student's epoch is chosen by."""
    return mean_f1(network, samples, missing_subsets(network.modalities), batch_size=batch_size)


def mean_f1(network: AnyNetwork, samples: Samples, conditions: Sequence[Condition], *, batch_size: int = 256) -> float:
    """The weighted F1 averaged over conditions in which nothing is random."""
    results = sweep(network, samples, conditions, batch_size=batch_size)
    truth = samples.targets.cpu().numpy()
    return float(np.mean([samples.target.main_score(truth, result.response) for result in results]))


def _shared_representation(
    network: ModalityWise,
    batch: Batch,
    complete: Inputs,
    kept: Collection[str],
    present: dict[str, Tensor],
    missing: dict[str, Tensor],
) -> Tensor:
    """H of a batch, whose inputs are `complete` where nothing is dropped, with these modalities kept and all others missing.

    `present` keeps the vectors of the batch's modalities, (N, width); `missing` those of missing modalities, (1, width), for all batches.
    """
    parts = []
    for m in network.modalities:
        if m in kept:
            if m not in present:
                present[m] = network.encode(m, complete)
            parts.append(present[m])
        else:
            if m not in missing:
                missing[m] = network.encode(m, _nothing(m, batch))
            parts.append(missing[m].expand(len(batch), -1))
    return torch.cat(parts, 1)


def _nothing(modality: str, batch: Batch) -> Inputs:
    """A missing modality, which looks the same in every sample."""
    shape = (1, batch.lengths[modality])
    exists = torch.ones(shape, dtype=torch.bool, device=batch.rows.device)
    frames = batch.frames[modality].new_zeros(*shape, batch.frames[modality].shape[2])
    return Inputs({modality: frames}, {modality: exists}, {modality: ~exists})


def _result(condition: Condition, draw: int, out: _Collected, incomplete: npt.NDArray[np.bool_]) -> Result:
    order = torch.cat(out.rows).argsort()  # back to the split's
    response = torch.cat(out.responses)[order].cpu().numpy()
    rows = condition.tested_rows(incomplete)
    representation = None
    if out.representations:
        representation = torch.cat(out.representations)[order].to(torch.float16).cpu().numpy()[rows]
    return Result(condition, draw, rows, response[rows].astype(np.float32), representation)
