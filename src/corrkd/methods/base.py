"""What every method is: a network, and the terms of its objective by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from corrkd.data.batches import Context, Samples
from corrkd.data.inputs import Inputs
from corrkd.networks.base import AnyNetwork, Output
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.targets.base import Target

Gather = Callable[[Tensor], Tensor]
"""Rows of all processes, differentiably; the identity in a single process."""

N = TypeVar("N", bound=AnyNetwork)


class NoOptions(BaseModel):
    """Of a method that has none beside its network's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TeacherOutput(NamedTuple):
    """Outputs of the frozen teachers for the complete samples. All loss terms see the same teachers.

    Attributes:
        representation: (N, D). With out-of-fold teachers each sample's is by one that was not trained on it, rotated towards the axes of
            the teacher of all samples (`corrkd.experiment.teachers.procrustes`).
        logits: as the network's; combined from all teachers.
        answered_by: (N,) integers: which teacher `representation` is of; None: one teacher's, all of them.
    """

    representation: Tensor
    logits: Tensor
    answered_by: Tensor | None = None

    def apply(self, change: Callable[[Tensor], Tensor]) -> TeacherOutput:
        """The same with each tensor changed: rows taken, or gathered."""
        return TeacherOutput(*(None if x is None else change(x) for x in self))  # type: ignore[arg-type]


class Method(nn.Module, Generic[N]):
    """A network in training. A subclass adds loss terms; the loop adds them up by their weights.

    Every process computes its terms on the rows of all processes (`gather`), so that a loss over pairs or classes sees the whole batch
    however it is shared out.

    Args:
        network: what is trained, and alone used afterwards.
        target: what it predicts.
        options: of `options_type`, for a method that has options; None: their defaults.
        class_weights: (K,) weights of the classes in the task loss, or None.
        gather: see `Gather`.

    Attributes:
        title: in tables.
        network_type: of the network.
        options_type: of the options.
        trains_on: "complete" samples, or those that modality random missing leaves ("missing").
        search: what a search over hyper-parameters tries beside learning rate and dropout: lowest and highest value, on a log scale, by
            a key as "options.kl" or "network.reconstruction".
        needs_teacher: `terms` look at a teacher's outputs; the network is then of the teacher's structure.
    """

    title: ClassVar[str] = ""
    network_type: ClassVar[type[AnyNetwork]] = CorrKDNetwork
    options_type: ClassVar[type[BaseModel]] = NoOptions
    trains_on: ClassVar[Literal["complete", "missing"]] = "missing"
    needs_teacher: ClassVar[bool] = False
    search: ClassVar[Mapping[str, tuple[float, float]]] = {}
    network: N
    class_weights: Tensor | None

    def __init__(
        self,
        network: N,
        target: Target,
        options: Any = None,
        *,
        class_weights: Tensor | None = None,
        gather: Gather | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.target = target
        self.options: Any = options if options is not None else self.options_type()
        self.gather: Gather = gather or (lambda x: x)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.build()

    def build(self) -> None:
        """Makes what the method needs beside the network (critics, a memory). Here: nothing."""

    def start(self, samples: Samples) -> None:
        """Takes what the method needs of the whole training split (priors, a memory), before the first epoch. Here: nothing."""

    def taught(self, teacher: TeacherOutput, targets: Tensor) -> None:
        """Takes what the method needs of the teacher's word on the whole training split, before the first epoch. Here: nothing."""

    def batches(self, samples: Samples, size: int, generator: torch.Generator) -> Sequence[Tensor]:
        """Rows of each batch of an epoch, on the CPU. Here: all samples, shuffled; whole conversations, where the network reads them."""
        return samples.shuffled(size, generator, conversations=self.network.reads_conversations)

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        teacher: TeacherOutput | None = None,
        context: Context | None = None,
    ) -> dict[str, Tensor]:
        """The loss terms of a batch by name, each a scalar.

        `teacher` is what it says of the same samples, complete; `context` is where they stand in the data.
        """
        output = self.answer(inputs)
        whole = None if teacher is None else teacher.apply(self.gather)
        return self.terms(output, self.gather(targets), whole)

    def answer(self, inputs: Inputs) -> Output:
        """What the network says of the rows of all processes."""
        local: Output = self.network(inputs)
        return Output(self.gather(local.representation), self.gather(local.logits))

    def terms(self, output: Output, targets: Tensor, teacher: TeacherOutput | None) -> dict[str, Tensor]:
        """The loss terms by name. The base method has the task loss alone."""
        return {"task": self.target.task_loss(output.logits, targets, self.class_weights)}

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term, in the order of `terms`."""
        return {"task": 1.0}


AnyMethod = Method[Any]
