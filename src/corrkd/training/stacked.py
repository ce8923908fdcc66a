"""Several trainings of one arm at once: parameters stacked, a step of all in one pass (`torch.func`). A run's numbers do not depend on the
others but for rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from corrkd.data.batches import Context
from corrkd.data.inputs import Inputs
from corrkd.methods.base import TrainingBatch
from corrkd.networks.draws import Draws, drawing_from
from corrkd.training.run import Epoch, Trained, TrainingRun
from corrkd.training.step import TOTAL


def train_together(runs: Sequence[TrainingRun], *, fabric: Fabric) -> list[Trained]:
    """Train several runs at once, each as `corrkd.training.loop.train` would alone.

    Args:
        runs: of one arm: methods of one class, networks of one structure, samples of one split or parts of it.
        fabric: device and precision, of a single process.

    Raises:
        CorrKDError: as `train`.
    """
    for run in runs:
        run.method.to(fabric.device)
        run.begin()
    stack = Stack([run.method for run in runs])
    for run in runs:
        run.resume(fabric.device)
    while under_way := [run for run in runs if not run.ended]:
        epochs = {run: run.next_epoch(fabric.device) for run in under_way}
        for step, batches in enumerate(zip_longest(*(epoch.batches for epoch in epochs.values()))):
            # Trainings of unequal size have batches of unequal size, and end an epoch at other steps.
            for size in dict.fromkeys(len(rows) for rows in batches if rows is not None):
                group = [
                    run for run, rows in zip(epochs, batches, strict=True) if rows is not None and len(rows) == size
                ]
                _step(stack, [runs.index(run) for run in group], {run: epochs[run] for run in group}, step, fabric)
        for run, epoch in epochs.items():
            run.end_epoch(epoch)
    return [run.trained() for run in runs]


def _step(stack: Stack, indices: Sequence[int], epochs: Mapping[TrainingRun, Epoch], step: int, fabric: Fabric) -> None:
    """One step of the runs at `indices` of the stack, whose batches are of one size."""
    inputs, targets, context = _stacked_batch(epochs, step)
    keys = torch.stack([run.keys(epoch, step) for run, epoch in epochs.items()])
    stack.train()
    with fabric.autocast():
        losses = stack.backward(indices, inputs, targets, context, keys)
    for position, (run, epoch) in enumerate(epochs.items()):
        if run.settings.clip_norm:
            parameters = [p for p in run.method.parameters() if p.grad is not None]
            nn.utils.clip_grad_norm_(parameters, run.settings.clip_norm, error_if_nonfinite=False)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.after_step(epoch, step, {name: values[position] for name, values in losses.items()})


def _stacked_batch(epochs: Mapping[TrainingRun, Epoch], step: int) -> tuple[Inputs, Tensor, Context]:
    """The batches of several runs, (S, N, ...): taken together, from the frames that all share."""
    rows = [epoch.batches[step] for epoch in epochs.values()]
    base = next(iter(epochs)).samples.base
    batch = base.take(torch.cat([run.samples.base_rows[r] for run, r in zip(epochs, rows, strict=True)]))
    masks = [epoch.masks.dropped for epoch in epochs.values()]
    if masks[0] is None:
        inputs = batch.complete()
    else:
        of_run = [{m: mask[r] for m, mask in (dropped or {}).items()} for dropped, r in zip(masks, rows, strict=True)]
        inputs = batch.inputs({m: torch.cat([dropped[m] for dropped in of_run]) for m in of_run[0]})
    contexts = [run.samples.context(r) for run, r in zip(epochs, rows, strict=True)]
    context = Context(*(torch.stack(x) for x in zip(*contexts, strict=True)))
    shape = (len(rows), len(rows[0]))
    return inputs.apply(lambda x: x.unflatten(0, shape)), batch.targets.unflatten(0, shape), context


class Stack:
    """Methods whose parameters and buffers are views of stacked tensors, (S, ...).

    What is done to one method, by its optimiser or a checkpoint, is done in the stack.
    """

    def __init__(self, methods: Sequence[nn.Module]) -> None:
        self.methods = list(methods)
        self.base = self.methods[0]
        self.parameters = {
            name: torch.stack([m.get_parameter(name).detach() for m in self.methods])
            for name, _ in self.base.named_parameters()
        }
        self.buffers = {
            name: torch.stack([m.get_buffer(name) for m in self.methods]) for name, _ in self.base.named_buffers()
        }
        self.used: set[str] | None = None
        for index, method in enumerate(self.methods):
            for name, stacked in self.parameters.items():
                method.get_parameter(name).data = stacked[index]
            for name, stacked in self.buffers.items():
                owner, _, buffer = name.rpartition(".")
                method.get_submodule(owner)._buffers[buffer] = stacked[index]

    def train(self) -> None:
        """Set the methods into training mode."""
        for method in self.methods:
            method.train()

    def backward(
        self, indices: Sequence[int], inputs: Inputs, targets: Tensor, context: Context, keys: Tensor
    ) -> dict[str, Tensor]:
        """Compute the losses of the methods at `indices`, and put the gradients into their parameters.

        Args:
            indices: S of the stack.
            inputs: (S, N, ...).
            targets: (S, N, ...).
            context: (S, N).
            keys: (S, SITES), of `corrkd.networks.draws.step_keys`.

        Returns:
            The weighted sum of the losses as "total", and each by name, (S,).
        """
        whole = len(indices) == len(self.methods)
        chosen = None if whole else torch.tensor(indices, device=keys.device)

        def of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return dict(tensors) if chosen is None else {name: x[chosen] for name, x in tensors.items()}

        if self.used is None:
            self.used = self._used(*(_first(x) for x in (inputs, targets, context, keys)))
        differentiate = vmap(grad_and_value(self._loss, has_aux=True))
        trained = {name: x for name, x in of(self.parameters).items() if name in self.used}
        frozen = {name: x for name, x in of(self.parameters).items() if name not in self.used} | of(self.buffers)
        gradients, (total, losses) = differentiate(trained, frozen, tuple(inputs), targets, tuple(context), keys)
        seen: set[int] = set()
        for name, gradient in gradients.items():
            # Fused optimisers take a gradient's numbers in the order of the parameter's, whatever its strides; and what two parameters
            # share, as the biases of an LSTM do, would be clipped twice.
            gradient = gradient.clone() if gradient.data_ptr() in seen else gradient.contiguous()
            seen.add(gradient.data_ptr())
            for position, index in enumerate(indices):
                self.methods[index].get_parameter(name).grad = gradient[position]
        return {TOTAL: total, **losses}

    def _loss(
        self, trained: Any, frozen: Any, inputs: Any, targets: Tensor, context: Any, keys: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch = TrainingBatch(Inputs(*inputs), targets, Context(*context))
        with drawing_from(Draws(keys, stacked=True)):
            losses = functional_call(self.base, {**trained, **frozen}, (batch,))
        total = sum((weight * value for weight, value in losses.values()), torch.zeros((), device=targets.device))
        return total, {name: value for name, (_, value) in losses.items()}

    def _used(self, inputs: Inputs, targets: Tensor, context: Context, keys: Tensor) -> set[str]:
        """Names of the parameters that the losses depend on: an optimiser leaves the others alone, weight decay included."""
        parameters = dict(self.base.named_parameters())
        self.base.eval()  # nothing that a step leaves behind
        total, _ = self._loss({}, {}, tuple(inputs), targets, tuple(context), keys)
        self.base.train()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def _first(x: Any) -> Any:
    """The first run's part of a stacked batch."""
    if isinstance(x, Tensor):
        return x[0]
    return x.apply(lambda t: t[0]) if isinstance(x, Inputs) else type(x)(*(t[0] for t in x))
