"""One loop for every stage of every method. It is never given the test split."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from corrkd.data.batches import Samples
from corrkd.errors import CorrKDError
from corrkd.methods.base import AnyMethod, TeacherOutputs
from corrkd.missing.training import EpochMasks, RandomMissing
from corrkd.networks.base import AnyNetwork
from corrkd.settings import MissingSettings, TrainingSettings
from corrkd.training.average import RunningAverage
from corrkd.training.checkpoint import load_checkpoint, save_checkpoint
from corrkd.training.step import make_optimizer, rate_schedule, take_step

VALID = "valid/weighted_f1"
Record = dict[str, float]


@dataclass(frozen=True)
class Trained:
    """What a stage leaves.

    Attributes:
        state: the network's parameters after the epoch that is kept; where the settings ask for it, their average.
        epoch: that epoch, from 1.
        score: its validation score.
        history: a record per epoch: epoch, lr, loss/total, loss/<name>, valid/weighted_f1.
    """

    state: dict[str, Tensor]
    epoch: int
    score: float
    history: list[Record]


def derived_seed(*parts: object) -> int:
    """Return a seed for each purpose: 63 bits from the parts' text."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def train(
    method: AnyMethod,
    samples: Samples,
    *,
    settings: TrainingSettings,
    validate: Callable[[AnyNetwork], float],
    seed: int,
    fabric: Fabric,
    missing: MissingSettings | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Record], None] | None = None,
) -> Trained:
    """Train a method's student; keep the parameters of the epoch with the highest validation score, the earliest on ties,
    or of the last epoch, where the settings say so.

    Args:
        method: a student and its losses.
        samples: the training split.
        settings: epochs, batch size, optimiser. A batch larger than the data is the data.
        validate: the score of the network on the validation split; higher is better.
        seed: of batch order, masks and dropout. Trainings with the same seed see the same batches and masks.
        fabric: device, precision and processes; launched.
        missing: modality random missing; None: samples as they are.
        checkpoint: where the state after each epoch goes, and from where an interrupted training goes on to the same bits.
        on_epoch: called with each epoch's record, on the first process.

    Raises:
        CorrKDError: where the loss is no longer finite, or the checkpoint does not fit.
    """
    batch_size = min(settings.batch_size, len(samples))
    student = method.student
    student.check_memory({m: x.shape[1] for m, x in samples.present.items()}, batch_size, training=True)
    method.start(samples)
    # Half precision scales the loss, and Fabric does not clip scaled gradients for a fused optimiser.
    scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
    optimizer = make_optimizer(method, settings, fused=not scaled)
    wrapped, fabric_optimizer = fabric.setup(method, optimizer)
    epochs = range(1, settings.epochs + 1)
    steps = sum(len(_batches(method, samples, batch_size, seed, epoch)) for epoch in epochs)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_schedule(settings, steps))
    average = RunningAverage(student, settings.average)
    stateful = {"method": method, "optimizer": optimizer, "scheduler": scheduler, "average": average}
    progress = _Progress() if checkpoint is None else _resume(checkpoint, stateful, fabric.device)
    with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
        for epoch in range(progress.epoch + 1, settings.epochs + 1):
            if settings.patience and epoch - max(progress.best_epoch, 1) > settings.patience:
                break
            record = {"epoch": epoch, "lr": float(optimizer.param_groups[0]["lr"])}
            # Everything random in an epoch hangs on (seed, epoch) alone, so a resumed training repeats it exactly.
            torch.manual_seed(derived_seed(seed, "dropout", epoch, fabric.global_rank))
            batches = _batches(method, samples, batch_size, seed, epoch)
            masks = EpochMasks() if missing is None else RandomMissing(missing, seed).epoch(samples, epoch)
            means = torch.zeros((), device=fabric.device)
            wrapped.train()
            order = torch.cat(list(batches)).to(fabric.device)  # one copy an epoch
            for rows in order.split([len(rows) for rows in batches]):
                losses = take_step(wrapped, fabric_optimizer, fabric, samples, rows, masks, settings.clip_norm)
                means = means + torch.stack(list(losses.values())) * (len(rows) / len(samples))
                scheduler.step()
                average.update()
            record |= {f"loss/{name}": mean for name, mean in zip(losses, means.tolist(), strict=True)}
            if not math.isfinite(record["loss/total"]):
                raise CorrKDError(
                    f"the loss is no longer finite in epoch {epoch} of {settings.epochs}; lower lr or clip_norm"
                )
            with average.in_place():
                record[VALID] = validate(student)
                progress = progress.after(record, student, settings.keep)
            if on_epoch and fabric.is_global_zero:
                on_epoch(record)
            if checkpoint is not None:
                _save(checkpoint, progress, stateful, fabric)
    assert progress.best is not None
    return Trained(progress.best, progress.best_epoch, progress.best_score, progress.history)


@torch.no_grad()
def teacher_outputs(network: AnyNetwork, samples: Samples, *, batch_size: int = 256) -> TeacherOutputs:
    """Return the frozen teacher's outputs for all samples, complete, in their order. They never change, so no step computes them again.

    A network that reads conversations gets whole ones.
    """
    network.eval()
    rows, outputs = [], []
    for batch in samples.batches(batch_size, conversations=network.reads_conversations):
        rows.append(batch.rows)
        outputs.append(network.in_context(batch.complete(), samples.context(batch.rows)))
    order = torch.cat(rows).argsort()
    return TeacherOutputs(
        torch.cat([x.representation for x in outputs])[order], torch.cat([x.logits for x in outputs])[order]
    )


@dataclass(frozen=True)
class _Progress:
    epoch: int = 0
    best: dict[str, Tensor] | None = None
    best_epoch: int = 0
    best_score: float = -math.inf
    history: list[Record] | Any = ()

    def after(self, record: Record, network: nn.Module, keep: str) -> _Progress:
        epoch, score = int(record["epoch"]), record[VALID]
        history = [*self.history, record]
        if keep == "best" and self.best is not None and not score > self.best_score:
            return _Progress(epoch, self.best, self.best_epoch, self.best_score, history)
        best = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
        return _Progress(epoch, best, epoch, score, history)


def _batches(method: AnyMethod, samples: Samples, batch_size: int, seed: int, epoch: int) -> Sequence[Tensor]:
    """Rows of each batch of an epoch. Where conversations are kept whole, their number differs between epochs."""
    shuffle = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return method.batches(samples, batch_size, shuffle)


def _save(path: Path, progress: _Progress, parts: Mapping[str, Any], fabric: Fabric) -> None:
    if fabric.is_global_zero:
        state = {"progress": {**progress.__dict__}, **{name: part.state_dict() for name, part in parts.items()}}
        save_checkpoint(path, state)
    fabric.barrier()


def _resume(path: Path, parts: Mapping[str, Any], device: torch.device) -> _Progress:
    state = load_checkpoint(path, device)
    if state is None:
        return _Progress()
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        progress = _Progress(**state["progress"])
        assert progress.best is not None
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorrKDError(
            f"{path}: the checkpoint is of another network or version ({reason}); delete it to train anew"
        ) from None
    best = {name: value.cpu() for name, value in progress.best.items()}
    return _Progress(progress.epoch, best, progress.best_epoch, progress.best_score, progress.history)
