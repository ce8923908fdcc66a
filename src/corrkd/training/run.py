"""One training in progress: method, data, optimiser, schedule and progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from corrkd.training.checkpoint import SHARE, CheckpointWriter, load_checkpoint
from corrkd.training.seeds import derived_seed
from corrkd.training.step import make_optimizer, rate_schedule

VALID = "valid/weighted_f1"
Record = dict[str, float]


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        state: parameters of the network after the epoch that is kept, averaged if the settings say
            so.
        epoch: number of that epoch, from 1.
        score: validation score of that epoch.
        history: a record per epoch: epoch, lr, loss/total, loss/<name>, valid/weighted_f1.
    """

    state: dict[str, Tensor]
    epoch: int
    score: float
    history: list[Record]


@dataclass(frozen=True)
class Progress:
    """The progress of a training, and the best network so far."""

    epoch: int = 0
    best: dict[str, Tensor] | None = None
    best_epoch: int = 0
    best_score: float = -math.inf
    history: Sequence[Record] = ()

    def after(self, record: Record, network: nn.Module, keep: str) -> Progress:
        """Return the progress after another epoch."""
        epoch, score = int(record["epoch"]), record[VALID]
        history = [*self.history, record]
        if keep == "best" and self.best is not None and not score > self.best_score:
            return Progress(epoch, self.best, self.best_epoch, self.best_score, history)
        best = {name: value.detach().clone() for name, value in network.state_dict().items()}
        return Progress(epoch, best, epoch, score, history)


@dataclass
class Epoch:
    """An epoch of a training.

    Attributes:
        number: number of the epoch, from 1.
        batches: rows of each batch, on the device.
        masks: what is missing.
        lr: learning rate at the beginning of the epoch.
        keys: (steps, SITES), keys of each step's random draws, on the device.
        names: names of the losses.
        means: (len(names),), means of the losses so far.
    """

    number: int
    batches: Sequence[Tensor]
    masks: EpochMasks
    lr: float
    keys: Tensor
    names: tuple[str, ...] = ()
    means: Tensor | None = None


@dataclass(eq=False, kw_only=True)
class TrainingRun:
    """The training of a method's student.

    Args:
        method: a student and its losses.
        samples: the training split, or the part of it on which this student is trained.
        settings: epochs, batch size, optimiser. The batch size is at most the number of samples.
        validate: returns the network's score on the validation split; higher is better.
        seed: seed of batch order, masks and dropout. Trainings with the same seed see the same
            batches and masks.
        missing: modality random missing; None: samples as they are.
        checkpoint: file for the state after each epoch, from which an interrupted training resumes
            with identical results.
        on_epoch: called with each epoch's record, on the first process.
        together: number of simultaneous trainings, which share the time for checkpoints.
    """

    method: AnyMethod
    samples: Samples
    settings: TrainingSettings
    validate: Callable[[AnyNetwork], float]
    seed: int
    missing: MissingSettings | None = None
    checkpoint: Path | None = None
    on_epoch: Callable[[Record], None] | None = None
    together: int = 1

    def begin(self, *, fused: bool = True, captured: bool = False) -> None:
        """Prepare the method, and create its optimiser.

        Args:
            fused: whether one kernel updates all parameters.
            captured: whether steps are recorded and replayed; the learning rate then is a tensor.

        Raises:
            CorrKDError: if memory does not suffice.
        """
        self.captured = captured
        student, longest = (
            self.method.student,
            {m: x.shape[1] for m, x in self.samples.present.items()},
        )
        student.check_memory(longest, self.batch_size, training=True)
        self.method.start(self.samples)
        self.optimizer = make_optimizer(self.method, self.settings, fused=fused, captured=captured)

    def resume(self, device: torch.device) -> None:
        """Create the schedule, and load the checkpoint if it exists. Raises CorrKDError if the
        checkpoint does not fit.
        """
        steps = sum(len(self._batches(epoch)) for epoch in range(1, self.settings.epochs + 1))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, rate_schedule(self.settings, steps)
        )
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
        """Whether no epoch is left, or the validation score has not improved for too long."""
        epoch, patience = self.progress.epoch + 1, self.settings.patience
        late = bool(patience) and epoch - max(self.progress.best_epoch, 1) > int(patience or 0)
        return epoch > self.settings.epochs or late

    def next_epoch(self, device: torch.device, rank: int = 0) -> Epoch:
        """Return the next epoch, for the process with this rank.

        It depends only on seed and epoch, so that a resumed training repeats it exactly.
        """
        number = self.progress.epoch + 1
        batches = self._batches(number)
        order = torch.cat(list(batches)).to(device)  # one copy per epoch
        masks = EpochMasks()
        if self.missing is not None:
            masks = RandomMissing(self.missing, self.seed).epoch(self.samples, number)
        lr = float(self.optimizer.param_groups[0]["lr"])
        keys = torch.stack(
            [step_keys(self.seed, number, step, rank) for step in range(len(batches))]
        )
        return Epoch(
            number, order.split([len(rows) for rows in batches]), masks, lr, keys.to(device)
        )

    def after_step(self, epoch: Epoch, step: int, losses: dict[str, Tensor]) -> None:
        """Advance schedule and average, and record the losses of a step."""
        share = len(epoch.batches[step]) / len(self.samples)
        means = torch.stack(list(losses.values())) * share
        epoch.names, epoch.means = (
            tuple(losses),
            means if epoch.means is None else epoch.means + means,
        )
        self.scheduler.step()
        self.average.update()

    def end_epoch(self, epoch: Epoch, score: float, *, first: bool = True) -> None:
        """Record an epoch and write a checkpoint.

        Args:
            epoch: the epoch, with all steps done.
            score: validation score of the network with its averaged parameters.
            first: whether this is the process that writes.

        Raises:
            CorrKDError: if the loss is no longer finite.
        """
        assert epoch.means is not None, "an epoch has at least one step"
        record: Record = {"epoch": epoch.number, "lr": epoch.lr}
        record |= {
            f"loss/{name}": mean
            for name, mean in zip(epoch.names, epoch.means.tolist(), strict=True)
        }
        if not math.isfinite(record["loss/total"]):
            raise CorrKDError(
                f"the loss is no longer finite in epoch {epoch.number} of "
                f"{self.settings.epochs}; lower lr or clip_norm"
            )
        record[VALID] = score
        with self.average.in_place():
            self.progress = self.progress.after(record, self.method.student, self.settings.keep)
        if self.on_epoch and first:
            self.on_epoch(record)
        if self._writer is not None and first:
            self._writer.write(self._state)

    def trained(self) -> Trained:
        """Return the result of the training."""
        progress = self.progress
        assert progress.best is not None
        state = {name: value.cpu() for name, value in progress.best.items()}
        return Trained(state, progress.best_epoch, progress.best_score, list(progress.history))

    @cached_property
    def _writer(self) -> CheckpointWriter | None:
        return (
            None
            if self.checkpoint is None
            else CheckpointWriter(self.checkpoint, SHARE / self.together)
        )

    def _state(self) -> dict[str, Any]:
        parts = {name: component.state_dict() for name, component in self._parts.items()}
        return {"progress": {**self.progress.__dict__}, **parts}

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "average": self.average,
        }

    def _batches(self, epoch: int) -> Sequence[Tensor]:
        """Return the rows of each batch of an epoch. With whole conversations, their number differs
        between epochs.
        """
        shuffle = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
        return self.method.batches(self.samples, self.batch_size, shuffle)

    def _load(self, state: dict[str, Any]) -> None:
        try:
            for name, component in self._parts.items():
                component.load_state_dict(state[name])
            progress = Progress(**state["progress"])
            assert progress.best is not None
        except (
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            AttributeError,
            IndexError,
            AssertionError,
        ) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CorrKDError(
                f"{self.checkpoint}: the checkpoint is of another network or version ({reason}); "
                f"delete it to train anew"
            ) from None
        # The checkpoint may be from another device, with or without captured steps.
        for group in self.optimizer.param_groups:
            group |= {key: self.optimizer.defaults[key] for key in ("capturable", "fused")}
            lr = float(group["lr"])
            group["lr"] = torch.tensor(lr, device=self.samples.device) if self.captured else lr
        self.progress = progress
