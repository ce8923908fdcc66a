"""One training loop for every stage of every method. It never gets the test split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from corrkd.data.batches import Samples
from corrkd.methods.base import AnyMethod, TeacherOutputs
from corrkd.networks.base import AnyNetwork
from corrkd.networks.draws import Draws, drawing_from
from corrkd.settings import MissingSettings, TrainingSettings
from corrkd.training.fabric import Fabric
from corrkd.training.run import VALID as VALID
from corrkd.training.run import Record as Record
from corrkd.training.run import Trained, TrainingRun
from corrkd.training.seeds import derived_seed as derived_seed
from corrkd.training.step import take_step


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
    """Train a method's student. Keep the parameters of the epoch with the highest validation score,
    the earliest on ties, or of the last epoch if the settings say so.

    Args:
        method, samples, settings, validate, seed, missing, checkpoint, on_epoch: see
            `corrkd.training.run.TrainingRun`.
        fabric: device, precision and processes; already launched.

    Raises:
        CorrKDError: if memory does not suffice, the loss is no longer finite, or the checkpoint
            does not fit.
    """
    run = TrainingRun(
        method=method,
        samples=samples,
        settings=settings,
        validate=validate,
        seed=seed,
        missing=missing,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )
    return train_run(run, fabric)


def train_run(run: TrainingRun, fabric: Fabric) -> Trained:
    """Train a run. Raises CorrKDError as `train` does."""
    # Half precision scales the loss; Fabric does not clip scaled gradients of a fused optimiser.
    run.begin(fused=getattr(fabric.strategy.precision, "scaler", None) is None)
    method, optimizer = fabric.setup(run.method, run.optimizer)
    run.resume(fabric.device)
    rank, first = fabric.global_rank, fabric.is_global_zero
    with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
        while not run.ended:
            epoch = run.next_epoch(fabric.device, rank)
            # For whatever draws from torch's generator, such as networks of other packages.
            torch.manual_seed(derived_seed(run.seed, "dropout", epoch.number, rank))
            method.train()
            for step, rows in enumerate(epoch.batches):
                with drawing_from(Draws(epoch.keys[step])):
                    clip = run.settings.clip_norm
                    losses = take_step(
                        method, optimizer, fabric, run.samples, rows, epoch.masks, clip
                    )
                run.after_step(epoch, step, losses)
            with run.average.in_place():
                score = run.validate(run.method.student)
            run.end_epoch(epoch, score, first=first)
            fabric.barrier()
    return run.trained()


@torch.no_grad()
def teacher_outputs(
    network: AnyNetwork, samples: Samples, *, batch_size: int = 256
) -> TeacherOutputs:
    """Return a frozen teacher's outputs for all samples, complete and in order. They never change,
    so no step computes them again.

    A network that reads conversations gets whole ones.
    """
    network.eval()
    rows, outputs = [], []
    for batch in samples.batches(batch_size, conversations=network.reads_conversations):
        rows.append(batch.rows)
        outputs.append(network.in_context(batch.complete(), samples.context(batch.rows)))
    order = torch.cat(rows).argsort()
    return TeacherOutputs(
        torch.cat([x.representation for x in outputs])[order],
        torch.cat([x.logits for x in outputs])[order],
    )
