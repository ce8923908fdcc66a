"""One step of the optimiser, and the schedule of its learning rate."""

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
        method: as wrapped by Fabric.
        optimizer: as wrapped by Fabric.
        fabric: device, precision and processes.
        samples: the training split.
        rows: (N,) rows of the batch, the same on all processes, on the device.
        masks: masks of the epoch.
        clip_norm: largest norm of the gradient; None: no clipping.

    Returns:
        The weighted sum of the losses as "total", and each loss by name: scalars that stay on the
        device.
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
        method: the method with the parameters.
        settings: settings of the training.
        fused: update all parameters in one kernel instead of a dozen calls for each.
        captured: steps are recorded and replayed: the learning rate is a tensor, so that its value
            can change between replays.
    """
    parameters = list(method.parameters())
    device = parameters[0].device
    lr = torch.tensor(settings.lr, device=device) if captured else settings.lr
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    capturable = captured and device.type == "cuda"  # other devices capture only in tests
    return optimizer_class(
        parameters, lr=lr, weight_decay=settings.weight_decay, fused=fused, capturable=capturable
    )


def rate_schedule(settings: TrainingSettings, steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate by step: linear warm-up, then constant, cosine or
    linear decay over the remaining steps.
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
