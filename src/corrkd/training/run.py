"""One training under way: what is trained on what, its optimiser and schedule, and how far it
is.
"""

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
    """What a training leaves.

    Attributes:
        state: the network's parameters after the epoch that is kept; where the settings ask for it,
            their average.
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
        best = {name: value.detach().clone() for name, value in network.state_dict().items()}
        return Progress(epoch, best, epoch, score, history)


@dataclass
class Epoch:
    """An epoch of a training.

    Attributes:
        number: from 1.
        batches: rows of each batch, on the device.
        masks: what is missing.
        lr: the learning rate at its beginning.
        keys: what the draws of each step follow from, (steps, SITES), on the device.
        names: of the losses.
        means: of the losses so far, (len(names),).
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
    """A method's student in training.

    Args:
        method: a student and its losses.
        samples: the training split, or the part of it on which this student is trained.
        settings: epochs, batch size, optimiser. A batch larger than the data is the data.
        validate: the score of the network on the validation split; higher is better.
        seed: of batch order, masks and dropout. Trainings with the same seed see the same batches
            and masks.
        missing: modality random missing; None: samples as they are.
        checkpoint: where the state after each epoch goes, and from where an interrupted training
            goes on to the same bits.
        on_epoch: called with each epoch's record, on the first process.
        together: how many trainings go on at once, whose checkpoints share what time they may take.
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
        """Make the method ready, and its optimiser.

        Args:
            fused: all parameters are updated by one kernel.
            captured: steps are recorded and replayed, so that the learning rate has to be a tensor.

        Raises:
            CorrKDError: the memory does not suffice.
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
        """Make the schedule, and load the checkpoint, where there is one. Raises CorrKDError where
        it does not fit.
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
        """Whether no epoch is left, or the validation score has not risen for too long."""
        epoch, patience = self.progress.epoch + 1, self.settings.patience
        late = bool(patience) and epoch - max(self.progress.best_epoch, 1) > int(patience or 0)
        return epoch > self.settings.epochs or late

    def next_epoch(self, device: torch.device, rank: int = 0) -> Epoch:
        """Return what the next epoch trains on, in the process of that rank.

        It follows from seed and epoch alone, so that a resumed training repeats it exactly.
        """
        number = self.progress.epoch + 1
        batches = self._batches(number)
        order = torch.cat(list(batches)).to(device)  # one copy an epoch
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
        """Move schedule and average on, and record the losses of a step."""
        share = len(epoch.batches[step]) / len(self.samples)
        means = torch.stack(list(losses.values())) * share
        epoch.names, epoch.means = (
            tuple(losses),
            means if epoch.means is None else epoch.means + means,
        )
        self.scheduler.step()
        self.average.update()

    def end_epoch(self, epoch: Epoch, score: float, *, first: bool = True) -> None:
        """Record and store an epoch.

        Args:
            epoch: with all its steps done.
            score: of the network that is validated, with its averaged parameters.
            first: of several processes, whether this is the one that writes.

        Raises:
            CorrKDError: the loss is no longer finite.
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
        """Return what the training leaves."""
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
        """Rows of each batch of an epoch. Where conversations are kept whole, their number differs
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
        for group in (
            self.optimizer.param_groups
        ):  # the checkpoint may be of another device, where steps were captured or not
            group |= {key: self.optimizer.defaults[key] for key in ("capturable", "fused")}
            lr = float(group["lr"])
            group["lr"] = torch.tensor(lr, device=self.samples.device) if self.captured else lr
        self.progress = progress
