"""Evaluation of networks under all conditions in one pass over the data.

The modality encoders of CorrKD's network are independent, so the encoding of a modality is reused
in every subset that contains it, and a missing modality has one encoding for all samples. A batch
of three modalities costs three encodings, compared with twenty-one for one pass per subset. Any
other network needs one forward pass per condition.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrkd.data.batches import Batch, Samples
from corrkd.data.inputs import Inputs
from corrkd.missing.conditions import Condition, missing_subsets
from corrkd.networks.base import AnyNetwork, Output
from corrkd.networks.together import Alone, Evaluator, Stacked
from corrkd.settings import MASK_SEED

MaskSource = Callable[[Condition, int, Batch], Mapping[str, Tensor] | None]
"""(condition, draw, batch) -> dropped frames, (N, T_m) by modality; None: the condition's masks."""


@dataclass(frozen=True)
class Result:
    """Outputs of a network under one condition and draw.

    Attributes:
        condition, draw: the condition, and the number of the draw from 0.
        rows: (n,) indices, in the swept `Samples`, of the samples that the condition tests.
        response: probabilities (n, K) or (n, Q, 2), or scores (n, 1); float32.
        representation: H (n, D) float16 if requested, else None.
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


def sweep(
    network: AnyNetwork, samples: Samples, conditions: Sequence[Condition], **options: Any
) -> list[Result]:
    """Return the results of a network under every condition and draw. The options are those of
    `sweep_together`.
    """
    return sweep_together([network], samples, conditions, **options)[0]


@torch.no_grad()
def sweep_together(
    networks: Sequence[AnyNetwork],
    samples: Samples,
    conditions: Sequence[Condition],
    *,
    masks: MaskSource | None = None,
    mask_seed: int = MASK_SEED,
    batch_size: int = 256,
    keep_representations: Sequence[str] = (),
    on_batch: Callable[[int], None] | None = None,
) -> list[list[Result]]:
    """Return the results of each of several networks under every condition and draw.

    Args:
        networks: of one structure, in any mode, which is restored. Stackable networks are evaluated
            in one pass.
        samples: a split.
        conditions: what is missing.
        masks: a source of masks to replay; default: the conditions' masks.
        mask_seed: seed of masks and noise; the default is that of every run.
        batch_size: samples per forward pass, counted over all networks. It changes only memory and,
            in the last bits, rounding. Conversations are not divided for a network that reads them.
        keep_representations: names of conditions for which H is kept (first draw).
        on_batch: called with the number of samples done.
    """
    if len(networks) > 1 and not networks[0].stackable:
        options: dict[str, Any] = {"masks": masks, "mask_seed": mask_seed, "batch_size": batch_size}
        options |= {"keep_representations": keep_representations, "on_batch": on_batch}
        return [sweep(network, samples, conditions, **options) for network in networks]
    network = networks[0]
    training = [network.training for network in networks]
    for each in networks:
        each.eval()
    evaluator = Alone(network) if len(networks) == 1 else Stacked(networks)
    runs = [(condition, draw) for condition in conditions for draw in range(condition.draws)]
    collected = [_Collected() for _ in runs]
    missing: dict[str, Tensor] = {}
    for batch in samples.batches(
        max(1, batch_size // len(networks)), conversations=network.reads_conversations
    ):
        network.check_memory(
            {m: x.shape[1] for m, x in batch.exists.items()}, len(batch) * len(networks)
        )
        complete = batch.complete()
        present: dict[str, Tensor] = {}
        context = samples.context(batch.rows)

        def inputs_of(condition: Condition, draw: int, batch: Batch = batch) -> Inputs:
            replayed = None if masks is None else masks(condition, draw, batch)
            return condition.apply(batch, seed=mask_seed, draw=draw, masks=replayed)

        for (condition, draw), out in zip(runs, collected, strict=True):
            if network.modality_wise:
                if (kept := condition.complete_modalities) is not None:
                    representation = _shared_representation(
                        evaluator, network.modalities, batch, complete, kept, present, missing
                    )
                else:
                    inputs = inputs_of(condition, draw)
                    representation = torch.cat(
                        [evaluator.encode(m, inputs) for m in network.modalities], -1
                    )
                output = Output(representation, evaluator.classify(representation))
            else:
                output = evaluator.in_context(inputs_of(condition, draw), context)
            out.rows.append(batch.rows)
            out.responses.append(samples.target.respond(output.logits))
            if condition.name in keep_representations and draw == 0:
                out.representations.append(output.representation)
        if on_batch:
            on_batch(len(batch) * len(networks))
    for each, before in zip(networks, training, strict=True):
        each.train(before)
    incomplete = samples.incomplete.cpu().numpy()
    results = [_results(*run, out, incomplete) for run, out in zip(runs, collected, strict=True)]
    return [list(of_network) for of_network in zip(*results, strict=True)]


def mean_missing_f1(network: AnyNetwork, samples: Samples, *, batch_size: int = 256) -> float:
    """Return the weighted F1 averaged over the missing subsets ("Avg."), by which every student's
    epoch is selected.
    """
    return mean_f1(network, samples, missing_subsets(network.modalities), batch_size=batch_size)


def mean_f1(
    network: AnyNetwork, samples: Samples, conditions: Sequence[Condition], *, batch_size: int = 256
) -> float:
    """Return the weighted F1 averaged over conditions without randomness."""
    return Validation(samples, tuple(conditions), batch_size)(network)


@dataclass(frozen=True)
class Validation:
    """Criterion for selecting an epoch: the main score, averaged over conditions without
    randomness.

    Attributes:
        samples: of the validation split.
        conditions: conditions to average over.
        batch_size: as for `sweep_together`.
    """

    samples: Samples
    conditions: tuple[Condition, ...]
    batch_size: int = 256

    def __call__(self, network: AnyNetwork) -> float:
        """Return the score of a network."""
        return self.together([network])[0]

    def together(self, networks: Sequence[AnyNetwork]) -> list[float]:
        """Return the scores of networks of one structure."""
        truth, target = self.samples.targets.cpu().numpy(), self.samples.target
        swept = sweep_together(networks, self.samples, self.conditions, batch_size=self.batch_size)
        return [
            float(np.mean([target.main_score(truth, result.response) for result in results]))
            for results in swept
        ]


def _shared_representation(
    evaluator: Evaluator,
    modalities: Sequence[str],
    batch: Batch,
    complete: Inputs,
    kept: Collection[str],
    present: dict[str, Tensor],
    missing: dict[str, Tensor],
) -> Tensor:
    """Return H of a batch with the modalities in `kept` from its `complete` inputs and all others
    missing.

    The batch's encodings, (S, N, width) by modality, are cached in `present`; those of missing
    modalities, (S, 1, width), are cached in `missing` for all batches.
    """
    parts = []
    for m in modalities:
        if m in kept:
            if m not in present:
                present[m] = evaluator.encode(m, complete)
            parts.append(present[m])
        else:
            if m not in missing:
                missing[m] = evaluator.encode(m, _nothing(m, batch))
            parts.append(missing[m].expand(-1, len(batch), -1))
    return torch.cat(parts, -1)


def _nothing(modality: str, batch: Batch) -> Inputs:
    """Return the inputs of a missing modality, which are equal for all samples."""
    shape = (1, batch.lengths[modality])
    exists = torch.ones(shape, dtype=torch.bool, device=batch.rows.device)
    frames = batch.frames[modality].new_zeros(*shape, batch.frames[modality].shape[2])
    return Inputs({modality: frames}, {modality: exists}, {modality: ~exists})


def _results(
    condition: Condition, draw: int, out: _Collected, incomplete: npt.NDArray[np.bool_]
) -> list[Result]:
    """Return the result of each network, with samples in the order of the split."""
    order = torch.cat(out.rows).argsort()
    responses = torch.cat(out.responses, 1)[:, order].cpu().numpy()
    rows = condition.tested_rows(incomplete)
    representations: Any = [None] * len(responses)
    if out.representations:
        representations = (
            torch.cat(out.representations, 1)[:, order].to(torch.float16).cpu().numpy()[:, rows]
        )
    return [
        Result(condition, draw, rows, response[rows].astype(np.float32), representation)
        for response, representation in zip(responses, representations, strict=True)
    ]
