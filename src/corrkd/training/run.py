"""One training under way: what is trained on what, its optimiser and schedule, and how far it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from corrkd.data.batches import Samples
from corrkd.errors import CorrKDError
from corrkd.methods.base import AnyMethod
from corrkd.missing.training import EpochMasks, RandomMissing
from corrkd.networks.base import AnyNetwork
from corrkd.networks.draws import step_keys
from corrkd.settings import MissingSettings, TrainingSettings
from corrkd.training.average import RunningAverage
from corrkd.training.checkpoint import load_checkpoint, save_checkpoint
from corrkd.training.seeds import derived_seed
from corrkd.training.step import make_optimizer, rate_schedule

VALID = "valid/weighted_f1"
Record = dict[str, float]


@dataclass(frozen=True)
class Trained:
    """What a training leaves.

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


@dataclass(frozen=True)
class Progress:
    """How far a training is, and the best network so far."""

    epoch: int = 0
    best: dict[str, Tensor] | None = None
    best_epoch: int = 0
    best_score: float = -math.inf
    history: Sequence[Record] = ()

    def after(self, record: Record, network: nn.Module, keep: str) -> Progress:
        """Return the progress after an epoch."""
        epoch, score = int(record["epoch"]), record[VALID]
        history = [*self.history, record]
        if keep == "best" and self.best is not None and not score > self.best_score:
            return Progress(epoch, self.best, self.best_epoch, self.best_score, history)
        best = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
        return Progress(epoch, best, epoch, score, history)


@dataclass
class Epoch:
    """An epoch of a training.

    Attributes:
        number: from 1.
        batches: rows of each batch, on the device.
        masks: what is missing.
        lr: the learning rate at its beginning.
        names: of the losses.
        means: of the losses so far, (len(names),).
    """

    number: int
    batches: Sequence[Tensor]
    masks: EpochMasks
    lr: float
    names: tuple[str, ...] = ()
    means: Tensor | None = None


@dataclass(eq=False, kw_only=True)
class TrainingRun:
    """A method's student in training.

    Args:
        method: a student and its losses.
        samples: the training split, or the part of it on which this student is trained.
        settings: epochs, batch size, optimiser. A batch larger than the data is the data.
        validate: the score of the network on the validation split; higher is better.
        seed: of batch order, masks and dropout. Trainings with the same seed see the same batches and masks.
        missing: modality random missing; None: samples as they are.
        checkpoint: where the state after each epoch goes, and from where an interrupted training goes on to the same bits.
        on_epoch: called with each epoch's record, on the first process.
    """

    method: AnyMethod
    samples: Samples
    settings: TrainingSettings
    validate: Callable[[AnyNetwork], float]
    seed: int
    missing: MissingSettings | None = None
    checkpoint: Path | None = None
    on_epoch: Callable[[Record], None] | None = None

    def begin(self, *, fused: bool = True) -> None:
        """Make the method ready, and its optimiser. Raises CorrKDError where the memory does not suffice."""
        student, longest = self.method.student, {m: x.shape[1] for m, x in self.samples.present.items()}
        student.check_memory(longest, self.batch_size, training=True)
        self.method.start(self.samples)
        self.optimizer = make_optimizer(self.method, self.settings, fused=fused)

    def resume(self, device: torch.device) -> None:
        """Lay the schedule over all steps, and take up the checkpoint, where there is one. Raises CorrKDError where it does not fit."""
        steps = sum(len(self._batches(epoch)) for epoch in range(1, self.settings.epochs + 1))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate_schedule(self.settings, steps))
        self.average = RunningAverage(self.method.student, self.settings.average)
        self.progress = Progress()
        state = None if self.checkpoint is None else load_checkpoint(self.checkpoint, device)
        if state is not None:
            self._load(state)

    @property
    def batch_size(self) -> int:
        """Samples in a full batch."""
        return min(self.settings.batch_size, len(self.samples))

    @property
    def ended(self) -> bool:
        """Whether no epoch is left, or the validation score has not risen for too long."""
        epoch, patience = self.progress.epoch + 1, self.settings.patience
        late = bool(patience) and epoch - max(self.progress.best_epoch, 1) > int(patience or 0)
        return epoch > self.settings.epochs or late

    def next_epoch(self, device: torch.device) -> Epoch:
        """Return what the next epoch trains on. It follows from seed and epoch alone, so that a resumed training repeats it exactly."""
        number = self.progress.epoch + 1
        batches = self._batches(number)
        order = torch.cat(list(batches)).to(device)  # one copy an epoch
        masks = EpochMasks()
        if self.missing is not None:
            masks = RandomMissing(self.missing, self.seed).epoch(self.samples, number)
        lr = float(self.optimizer.param_groups[0]["lr"])
        return Epoch(number, order.split([len(rows) for rows in batches]), masks, lr)

    def keys(self, epoch: Epoch, step: int, rank: int = 0) -> Tensor:
        """Return what the draws of a step follow from, on the device of the samples."""
        return step_keys(self.seed, epoch.number, step, rank).to(self.samples.device)

    def after_step(self, epoch: Epoch, step: int, losses: dict[str, Tensor]) -> None:
        """Move schedule and average on, and record the losses of a step."""
        share = len(epoch.batches[step]) / len(self.samples)
        means = torch.stack(list(losses.values())) * share
        epoch.names, epoch.means = tuple(losses), means if epoch.means is None else epoch.means + means
        self.scheduler.step()
        self.average.update()

    def end_epoch(self, epoch: Epoch, *, first: bool = True) -> None:
        """Validate, record and store an epoch; `first`: of several processes, the one that writes.

        Raises:
            CorrKDError: the loss is no longer finite.
        """
        assert epoch.means is not None, "an epoch has at least one step"
        record: Record = {"epoch": epoch.number, "lr": epoch.lr}
        record |= {f"loss/{name}": mean for name, mean in zip(epoch.names, epoch.means.tolist(), strict=True)}
        if not math.isfinite(record["loss/total"]):
            raise CorrKDError(
                f"the loss is no longer finite in epoch {epoch.number} of {self.settings.epochs}; lower lr or clip_norm"
            )
        with self.average.in_place():
            record[VALID] = self.validate(self.method.student)
            self.progress = self.progress.after(record, self.method.student, self.settings.keep)
        if self.on_epoch and first:
            self.on_epoch(record)
        if self.checkpoint is not None and first:
            parts = {name: part.state_dict() for name, part in self._parts.items()}
            save_checkpoint(self.checkpoint, {"progress": {**self.progress.__dict__}, **parts})

    def trained(self) -> Trained:
        """Return what the training leaves."""
        progress = self.progress
        assert progress.best is not None
        return Trained(progress.best, progress.best_epoch, progress.best_score, list(progress.history))

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "average": self.average,
        }

    def _batches(self, epoch: int) -> Sequence[Tensor]:
        """Rows of each batch of an epoch. Where conversations are kept whole, their number differs between epochs."""
        shuffle = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
        return self.method.batches(self.samples, self.batch_size, shuffle)

    def _load(self, state: dict[str, Any]) -> None:
        try:
            for name, part in self._parts.items():
                part.load_state_dict(state[name])
            progress = Progress(**state["progress"])
            assert progress.best is not None
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, AssertionError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CorrKDError(
                f"{self.checkpoint}: the checkpoint is of another network or version ({reason}); delete it to train anew"
            ) from None
        best = {name: value.cpu() for name, value in progress.best.items()}
        self.progress = Progress(progress.epoch, best, progress.best_epoch, progress.best_score, progress.history)
