"""One step of the optimiser, and what decides how large it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from corrkd.data.batches import Samples
from corrkd.methods.base import TrainingBatch
from corrkd.missing.training import EpochMasks
from corrkd.settings import TrainingSettings
from corrkd.training.fabric import Fabric

TOTAL = "total"


def take_step(
    method: Any,
    optimizer: Any,
    fabric: Fabric,
    samples: Samples,
    rows: Tensor,
    masks: EpochMasks,
    clip_norm: float | None,
) -> dict[str, Tensor]:
    """Take one step on this process's share of a batch.

    Args:
        method: as Fabric wrapped it.
        optimizer: as Fabric wrapped it.
        fabric: device, precision and processes.
        samples: the training split.
        rows: (N,) of the batch, the same on all processes, on the device.
        masks: of the epoch.
        clip_norm: largest norm of the gradient; None: any.

    Returns:
        The weighted sum of the losses as "total", and each loss by name, scalars on the device:
        nothing is read back.
    """
    rows = rows[fabric.global_rank :: fabric.world_size]
    batch = samples.take(rows)
    losses = method(TrainingBatch(masks.apply(batch), batch.targets, samples.context(rows)))
    total = sum(
        (weight * value for weight, value in losses.values()), torch.zeros((), device=rows.device)
    )
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(total)
    if clip_norm:
        fabric.clip_gradients(method, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    optimizer.step()
    return {TOTAL: total.detach(), **{name: value.detach() for name, (_, value) in losses.items()}}


def make_optimizer(
    method: nn.Module, settings: TrainingSettings, *, fused: bool = True, captured: bool = False
) -> torch.optim.Optimizer:
    """Return Adam [paper] or AdamW.

    Args:
        method: with the parameters.
        settings: of the training.
        fused: all parameters in one kernel instead of a dozen calls for each.
        captured: steps are recorded and replayed: the learning rate is a tensor, whose value may
            change between replays.
    """
    parameters = list(method.parameters())
    device = parameters[0].device
    lr = torch.tensor(settings.lr, device=device) if captured else settings.lr
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    capturable = captured and device.type == "cuda"  # elsewhere nothing is captured but in tests
    return optimizer_class(
        parameters, lr=lr, weight_decay=settings.weight_decay, fused=fused, capturable=capturable
    )


def rate_schedule(settings: TrainingSettings, steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate by step: a linear warm-up, then constant, cosine or
    linear over the remaining steps.
    """
    warmup = round(settings.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        if settings.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0 - done if settings.schedule == "linear" else 1.0

    return factor
