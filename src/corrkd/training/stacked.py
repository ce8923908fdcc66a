"""Several trainings of one arm at once, with stacked parameters and each step in one pass
(`torch.func`). A run's results do not depend on the other runs except for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from corrkd.data.batches import Context
from corrkd.data.inputs import Inputs
from corrkd.evaluation.sweep import Validation
from corrkd.methods.base import TrainingBatch
from corrkd.networks.draws import Draws, drawing_from
from corrkd.training.captured import Captured, Compiled, CudaGraph, Graph
from corrkd.training.fabric import Fabric
from corrkd.training.run import Epoch, Trained, TrainingRun
from corrkd.training.step import TOTAL


class StackedBatch(NamedTuple):
    """The batches of S runs, with N samples each.

    Attributes:
        inputs: (S, N, ...).
        targets: (S, N, ...).
        context: (S, N).
        keys: (S, SITES), from `corrkd.networks.draws.step_keys`.
    """

    inputs: Inputs
    targets: Tensor
    context: Context
    keys: Tensor

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in a fixed order."""
        return [
            *(x for by_modality in self.inputs for x in by_modality.values()),
            self.targets,
            *self.context,
            self.keys,
        ]

    def of(self, tensors: Sequence[Tensor]) -> StackedBatch:
        """Return a batch of the same modalities from other tensors, in the order of `tensors`."""
        following = iter(tensors)
        inputs = Inputs(*({m: next(following) for m in by_modality} for by_modality in self.inputs))
        return StackedBatch(
            inputs,
            next(following),
            Context(*(next(following) for _ in self.context)),
            next(following),
        )

    def first(self) -> StackedBatch:
        """Return the first run's batch, without the first axis."""
        return self.of([x[0] for x in self.tensors()])


def train_together(
    runs: Sequence[TrainingRun],
    *,
    fabric: Fabric,
    compiled: bool = False,
    make_graph: Callable[[], Graph] | None = None,
) -> list[Trained]:
    """Train several runs at once, each as `corrkd.training.loop.train` would alone.

    Args:
        runs: runs of one arm: methods of one class, networks of one structure, samples of one split
            or parts of it.
        fabric: device and precision, in a single process.
        compiled: compile losses and gradients for the full batch of all runs (`torch.compile`),
            which takes up to two minutes.
        make_graph: creates the graphs that record and replay steps; default: CUDA graphs on a GPU,
            none elsewhere.

    Raises:
        CorrKDError: as in `train`, or if there is no compiler.
    """
    if make_graph is None and fabric.device.type == "cuda":
        pool = torch.cuda.graph_pool_handle()
        make_graph = partial(CudaGraph, pool)
    for run in runs:
        run.method.to(fabric.device)
        run.begin(captured=make_graph is not None)
    stack = Stack([run.method for run in runs], compiled=compiled)
    for run in runs:
        run.resume(fabric.device)
    steps = _Steps(stack, runs, fabric, make_graph)
    while under_way := [run for run in runs if not run.ended]:
        epochs = {run: run.next_epoch(fabric.device) for run in under_way}
        for step, batches in enumerate(zip_longest(*(epoch.batches for epoch in epochs.values()))):
            # Runs of unequal size differ in the size and number of their batches.
            for size in dict.fromkeys(len(rows) for rows in batches if rows is not None):
                group = [
                    run
                    for run, rows in zip(epochs, batches, strict=True)
                    if rows is not None and len(rows) == size
                ]
                steps.take({run: epochs[run] for run in group}, step)
        for (run, epoch), score in zip(epochs.items(), _scores(under_way), strict=True):
            run.end_epoch(epoch, score)
        steps.forget({index for index, run in enumerate(runs) if run.ended})
    return [run.trained() for run in runs]


def _scores(runs: Sequence[TrainingRun]) -> list[float]:
    """Return the validation scores of the runs with their averaged parameters, in one pass if all
    runs have the same validation.
    """
    with ExitStack() as averaged:
        for run in runs:
            averaged.enter_context(run.average.in_place())
        validate, networks = runs[0].validate, [run.method.student for run in runs]
        if isinstance(validate, Validation) and all(run.validate == validate for run in runs):
            return validate.together(networks)
        return [run.validate(network) for run, network in zip(runs, networks, strict=True)]


class _Steps:
    """The steps of runs that are trained together: losses, gradients, clipping and updates of the
    parameters.
    """

    def __init__(
        self,
        stack: Stack,
        runs: Sequence[TrainingRun],
        fabric: Fabric,
        make_graph: Callable[[], Graph] | None,
    ) -> None:
        self._stack, self._runs, self._fabric, self._make_graph = (
            stack,
            list(runs),
            fabric,
            make_graph,
        )
        self._captured: dict[tuple[int, ...], Captured] = {}

    def take(self, epochs: Mapping[TrainingRun, Epoch], step: int) -> None:
        """Take one step of the runs in `epochs`, which have batches of equal size."""
        batch = _stacked_batch(epochs, step)
        indices = tuple(self._runs.index(run) for run in epochs)
        self._stack.train()
        self._stack.prepare(indices, batch)

        def work(tensors: Sequence[Tensor]) -> Mapping[str, Tensor]:
            return self._update(indices, batch.of(tensors))

        if self._make_graph is None:
            losses = work(batch.tensors())
        else:
            captured = self._captured.setdefault(indices, Captured(work, self._make_graph))
            losses = captured(batch.tensors())
        for position, (run, epoch) in enumerate(epochs.items()):
            run.after_step(epoch, step, {name: values[position] for name, values in losses.items()})

    def forget(self, ended: Set[int]) -> None:
        """Free the graphs of runs that have ended, with the memory that they occupy."""
        self._captured = {
            indices: captured
            for indices, captured in self._captured.items()
            if ended.isdisjoint(indices)
        }

    def _update(self, indices: Sequence[int], batch: StackedBatch) -> Mapping[str, Tensor]:
        """Take one step by tensor operations alone, so that it can be recorded."""
        with self._fabric.autocast():
            losses = self._stack.backward(indices, batch)
        for index in indices:
            run = self._runs[index]
            if run.settings.clip_norm:
                parameters = [p for p in run.method.parameters() if p.grad is not None]
                nn.utils.clip_grad_norm_(
                    parameters, run.settings.clip_norm, error_if_nonfinite=False
                )
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)
        return losses


def _stacked_batch(epochs: Mapping[TrainingRun, Epoch], step: int) -> StackedBatch:
    """Return the batches of several runs, (S, N, ...), taken at once from the frames that all runs
    share.
    """
    rows = [epoch.batches[step] for epoch in epochs.values()]
    base = next(iter(epochs)).samples.base
    batch = base.take(
        torch.cat([run.samples.base_rows[r] for run, r in zip(epochs, rows, strict=True)])
    )
    masks = [epoch.masks.dropped for epoch in epochs.values()]
    if masks[0] is None:
        inputs = batch.complete()
    else:
        of_run = [
            {m: mask[r] for m, mask in (dropped or {}).items()}
            for dropped, r in zip(masks, rows, strict=True)
        ]
        inputs = batch.inputs({m: torch.cat([dropped[m] for dropped in of_run]) for m in of_run[0]})
    contexts = [run.samples.context(r) for run, r in zip(epochs, rows, strict=True)]
    context = Context(*(torch.stack(x) for x in zip(*contexts, strict=True)))
    shape = (len(rows), len(rows[0]))
    keys = torch.stack([epoch.keys[step] for epoch in epochs.values()])
    return StackedBatch(
        inputs.apply(lambda x: x.unflatten(0, shape)),
        batch.targets.unflatten(0, shape),
        context,
        keys,
    )


class Stack:
    """Methods with parameters and buffers that are views of stacked tensors, (S, ...).

    Changes to one method, by its optimiser or a checkpoint, change the stack.
    """

    def __init__(self, methods: Sequence[nn.Module], *, compiled: bool = False) -> None:
        self.methods = list(methods)
        self.base = self.methods[0]
        self.parameters = {
            name: torch.stack([m.get_parameter(name).detach() for m in self.methods])
            for name, _ in self.base.named_parameters()
        }
        self.buffers = {
            name: torch.stack([m.get_buffer(name) for m in self.methods])
            for name, _ in self.base.named_buffers()
        }
        self.remembered = self.buffers.keys() & self.base.state_dict().keys()
        self.used: set[str] = set()
        self.chosen: dict[tuple[int, ...], Tensor | None] = {}
        differentiate = vmap(grad_and_value(self._loss, has_aux=True))
        self.differentiate = Compiled(differentiate) if compiled else differentiate
        for index, method in enumerate(self.methods):
            for name, stacked in self.parameters.items():
                method.get_parameter(name).data = stacked[index]
            for name, stacked in self.buffers.items():
                owner, _, buffer = name.rpartition(".")
                method.get_submodule(owner)._buffers[buffer] = stacked[index]

    def train(self) -> None:
        """Set the methods to training mode."""
        for method in self.methods:
            method.train()

    def prepare(self, indices: Sequence[int], batch: StackedBatch) -> None:
        """Determine what a step of the methods at `indices` needs besides its tensors, once for
        each choice of methods.
        """
        if not self.used:
            self.used = self._used(batch.first())
        if tuple(indices) not in self.chosen:
            stacked = len(indices) == len(self.methods)
            self.chosen[tuple(indices)] = (
                None if stacked else torch.tensor(indices, device=batch.keys.device)
            )

    def backward(self, indices: Sequence[int], batch: StackedBatch) -> dict[str, Tensor]:
        """Compute the losses of the methods at `indices`, and put the gradients into their
        parameters.

        Args:
            indices: S indices into the stack, passed to `prepare` before.
            batch: batches of these S methods.

        Returns:
            The weighted sum of the losses as "total", and each loss by name, (S,).
        """
        chosen = self.chosen[tuple(indices)]

        def chosen_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return (
                dict(tensors)
                if chosen is None
                else {name: x[chosen] for name, x in tensors.items()}
            )

        parameters = chosen_of(self.parameters)
        trained = {name: x for name, x in parameters.items() if name in self.used}
        frozen = {name: x for name, x in parameters.items() if name not in self.used} | chosen_of(
            self.buffers
        )
        inputs, targets, context, keys = batch
        gradients, (total, losses) = self.differentiate(
            trained, frozen, tuple(inputs), targets, tuple(context), keys
        )
        if chosen is not None:  # buffers were changed in copies
            for name in self.remembered:
                self.buffers[name].index_copy_(0, chosen, frozen[name])
        seen: set[int] = set()
        for name, gradient in gradients.items():
            # Fused optimisers ignore strides, and shared gradients (LSTM biases) are clipped twice.
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
        total = sum(
            (weight * value for weight, value in losses.values()),
            torch.zeros((), device=targets.device),
        )
        return total, {name: value for name, (_, value) in losses.items()}

    def _used(self, batch: StackedBatch) -> set[str]:
        """Return the names of the parameters that the losses depend on. An optimiser leaves the
        others unchanged, even by weight decay.
        """
        parameters = dict(self.base.named_parameters())
        self.base.eval()  # without a step's changes to buffers
        inputs, targets, context, keys = batch
        total, _ = self._loss({}, {}, tuple(inputs), targets, tuple(context), keys)
        self.base.train()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        return {
            name
            for name, gradient in zip(parameters, gradients, strict=True)
            if gradient is not None
        }
