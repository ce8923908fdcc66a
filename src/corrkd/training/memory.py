"""The memory that a training takes, so that as many are trained at once as fit."""

from __future__ import annotations

import torch
from torch import Tensor

from corrkd.methods.base import TrainingBatch
from corrkd.networks.draws import Draws, drawing_from, step_keys
from corrkd.training.run import TrainingRun

# Parameters, gradients, two moments of Adam, a running average, and the best so far.
COPIES_OF_PARAMETERS = 6
# What a step keeps for its backward pass, and about as much again for gradients and temporaries.
COPIES_OF_KEPT = 2
# An epoch's masks of all frames, and the random numbers from which they are drawn.
BYTES_OF_A_FRAME = 17


def bytes_of_run(run: TrainingRun) -> int:
    """Return about how many bytes a training takes on its device, without the samples, which all
    trainings share.

    Args:
        run: has its method on the device of its samples. The method is started, and a batch passes
            through its losses.
    """
    run.method.start(run.samples)
    parameters = sum(p.numel() * p.element_size() for p in run.method.parameters())
    buffers = sum(b.numel() * b.element_size() for b in run.method.buffers())
    frames = sum(exists.numel() for exists in run.samples.exists.values())
    kept = COPIES_OF_KEPT * _kept_for_backward(run)
    return COPIES_OF_PARAMETERS * parameters + buffers + BYTES_OF_A_FRAME * frames + kept


def _kept_for_backward(run: TrainingRun) -> int:
    """Return how many bytes the losses of a full batch keep for the backward pass."""
    kept: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in run.method.parameters()}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return x

    samples = run.samples
    rows = torch.arange(run.batch_size, device=samples.device)
    batch = samples.take(rows)
    training = TrainingBatch(batch.complete(), batch.targets, samples.context(rows))
    mode = run.method.training
    run.method.eval()  # without a step's changes to buffers
    draws = Draws(step_keys(run.seed, 0, 0).to(samples.device))
    with drawing_from(draws), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        losses = run.method(training)
    run.method.train(mode)
    del losses
    return sum(kept.values())
