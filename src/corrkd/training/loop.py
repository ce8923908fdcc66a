"""One loop for every stage of every method. It is never given the test split."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from corrkd.data.batches import Samples
from corrkd.errors import CorrKDError
from corrkd.methods.base import AnyMethod, TeacherOutput
from corrkd.missing.training import EpochMasks, RandomMissing
from corrkd.networks.base import AnyNetwork
from corrkd.settings import MissingSettings, StageSettings
from corrkd.training.checkpoint import load_checkpoint, save_checkpoint

VALID = "valid/weighted_f1"
Record = dict[str, float]


@dataclass(frozen=True)
class Trained:
    """What a stage leaves.

    Attributes:
        state: the network's parameters after the epoch that is kept; where the settings ask for it, their average.
        epoch: that epoch, from 1.
        score: its validation score.
        history: a record per epoch: epoch, lr, loss/total, loss/<term>, valid/weighted_f1.
    """

    state: dict[str, Tensor]
    epoch: int
    score: float
    history: list[Record]


def derived_seed(*parts: object) -> int:
    """A seed of its own for each purpose: 63 bits from the parts' text."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def train(
    method: AnyMethod,
    samples: Samples,
    *,
    settings: StageSettings,
    validate: Callable[[AnyNetwork], float],
    seed: int,
    fabric: Fabric,
    missing: MissingSettings | None = None,
    teacher: TeacherOutput | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Record], None] | None = None,
) -> Trained:
    """Trains a method's network and keeps the parameters of the epoch with the highest validation score, the earliest on ties;
    or of the last, where the settings say so.

    Args:
        method: a network and its loss terms.
        samples: the training split.
        settings: epochs, batch size, optimiser. A batch larger than the data is the data.
        validate: the score of the network on the validation split; higher is better.
        seed: of batch order, masks and dropout. Trainings with the same seed see the same batches and masks.
        fabric: device, precision and processes; launched.
        missing: modality random missing; None: samples as they are.
        teacher: its outputs for all training samples, in their order.
        checkpoint: where the state after each epoch goes, and from where an interrupted training goes on to the same bits.
        on_epoch: called with each epoch's record, on the first process.

    Raises:
        CorrKDError: where the loss is no longer finite, or the checkpoint does not fit.
    """
    batch_size = min(settings.batch_size, len(samples))
    method.network.check_memory({m: x.shape[1] for m, x in samples.present.items()}, batch_size, training=True)
    method.start(samples)
    if teacher is not None:
        method.taught(teacher, samples.targets)
    # Half precision scales the loss, and Fabric does not clip scaled gradients for a fused optimiser.
    scaled = getattr(fabric.strategy.precision, "scaler", None) is not None
    optimizer = make_optimizer(method, settings, fused=not scaled)
    wrapped, fabric_optimizer = fabric.setup(method, optimizer)
    epochs = range(1, settings.epochs + 1)
    steps = sum(len(_batches(method, samples, batch_size, seed, epoch)) for epoch in epochs)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(settings, steps))
    averaged = _Average(method.network, settings.average)
    parts = {"method": method, "optimizer": optimizer, "scheduler": scheduler, "average": averaged}
    progress = _Progress() if checkpoint is None else _resume(checkpoint, parts, fabric.device)
    names = list(method.weights)
    with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
        for epoch in range(progress.epoch + 1, settings.epochs + 1):
            if settings.patience and epoch - max(progress.best_epoch, 1) > settings.patience:
                break
            rate = float(optimizer.param_groups[0]["lr"])
            # Everything random in an epoch hangs on (seed, epoch) alone, so a resumed training repeats it exactly.
            torch.manual_seed(derived_seed(seed, "dropout", epoch, fabric.global_rank))
            batches = _batches(method, samples, batch_size, seed, epoch)
            masks = EpochMasks() if missing is None else RandomMissing(missing, seed).epoch(samples, epoch)
            totals = torch.zeros(len(names) + 1, device=fabric.device)
            wrapped.train()
            order = torch.cat(list(batches)).to(fabric.device)  # one copy an epoch
            for rows in order.split([len(rows) for rows in batches]):
                values = _step(
                    wrapped, fabric_optimizer, fabric, samples, rows, masks, teacher, method.weights, settings
                )
                totals += values * (len(rows) / len(samples))
                scheduler.step()
                averaged.update()
            record = _record(epoch, rate, names, totals.tolist())
            if not math.isfinite(record["loss/total"]):
                raise CorrKDError(
                    f"the loss is no longer finite in epoch {epoch} of {settings.epochs}; lower lr or clip_norm"
                )
            with averaged.in_place():
                record[VALID] = validate(method.network)
                progress = progress.after(record, method.network, settings.keep)
            if on_epoch and fabric.is_global_zero:
                on_epoch(record)
            if checkpoint is not None:
                _save(checkpoint, progress, parts, fabric)
    assert progress.best is not None
    return Trained(progress.best, progress.best_epoch, progress.best_score, progress.history)


@torch.no_grad()
def teacher_outputs(network: AnyNetwork, samples: Samples, *, batch_size: int = 256) -> TeacherOutput:
    """The frozen teacher's outputs for all samples, complete, once: they never change, so no step computes them again."""
    network.eval()
    outputs = [network(b.complete()) for b in samples.batches(batch_size)]
    return TeacherOutput(torch.cat([o.representation for o in outputs]), torch.cat([o.logits for o in outputs]))


def make_optimizer(method: nn.Module, settings: StageSettings, *, fused: bool = True) -> torch.optim.Optimizer:
    """Adam [paper] or AdamW; fused: all parameters in one kernel instead of a dozen calls for each."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(method.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=fused)


class _Average:
    """A running average of a network's parameters over the steps; with decay 0 the parameters themselves.

    The decay grows from 0 to its value over the first steps, so that the average forgets where the training began.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.step = decay, 0
        self.parameters = list(network.parameters()) if decay else []
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the parameters after a step."""
        if self.values:
            self.step += 1
            decay = min(self.decay, self.step / (self.step + 9))
            torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network with the averaged parameters, for as long as it lasts."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        for value, saved in zip(self.values, state["values"], strict=True):
            value.copy_(saved)


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


def _step(
    wrapped: Any,
    optimizer: Any,
    fabric: Fabric,
    samples: Samples,
    rows: Tensor,
    masks: EpochMasks,
    teacher: TeacherOutput | None,
    weights: Mapping[str, float],
    settings: StageSettings,
) -> Tensor:
    """One step; returns (total, term, ...) on the device: nothing is read back."""
    rows = rows[fabric.global_rank :: fabric.world_size]
    batch = samples.take(rows)
    known = None if teacher is None else teacher.apply(lambda x: x[rows])
    terms = wrapped(masks.apply(batch), batch.targets, known, samples.context(rows))
    total = sum((weights[name] * value for name, value in terms.items()), torch.zeros((), device=rows.device))
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(total)
    if settings.clip_norm:
        fabric.clip_gradients(wrapped, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False)
    optimizer.step()
    return torch.stack([total, *terms.values()]).detach()


def _batches(method: AnyMethod, samples: Samples, batch_size: int, seed: int, epoch: int) -> Sequence[Tensor]:
    """Rows of each batch of an epoch. Where conversations are kept whole, their number differs between epochs."""
    shuffle = torch.Generator().manual_seed(derived_seed(seed, "order", epoch))
    return method.batches(samples, batch_size, shuffle)


def _record(epoch: int, rate: float, names: list[str], values: list[float]) -> Record:
    return {
        "epoch": epoch,
        "lr": rate,
        "loss/total": values[0],
        **{f"loss/{n}": v for n, v in zip(names, values[1:], strict=True)},
    }


def _schedule(settings: StageSettings, steps: int) -> Callable[[int], float]:
    warmup = round(settings.warmup * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        if settings.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0 - done if settings.schedule == "linear" else 1.0

    return factor


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
