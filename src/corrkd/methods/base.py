"""The base class of methods: a student, the outputs of its teachers, and losses by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, get_args

import torch
from pydantic import BaseModel, Field, ValidationInfo, field_validator
from torch import Tensor, nn

from corrkd.data.batches import Context, Samples
from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.networks.base import AnyNetwork, Output
from corrkd.parsing import quoted
from corrkd.settings import NonNegative, Strict
from corrkd.targets.base import Target

Gather = Callable[[Tensor], Tensor]
"""Differentiable gathering of the rows of all processes; the identity in a single process."""

Losses = dict[str, tuple[float, Tensor]]
"""Weight and value, a scalar, of each loss by name. Training minimises the sum of weight x value;
each value is a column of history.csv.
"""

N = TypeVar("N", bound=AnyNetwork)


class Options(Strict):
    """Options of a method, one object per loss term. A term that names no form has the form of its
    default.
    """

    @field_validator("*", mode="before")
    @classmethod
    def _over_default(cls, term: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        default = field.get_default(call_default_factory=True)
        if not isinstance(term, Mapping) or not isinstance(default, BaseModel):
            return term
        forms = {
            kind.model_fields["form"].default: kind
            for kind in get_args(field.annotation)
            if _has_form(kind)
        }
        form = term.get("form", getattr(default, "form", None))
        if forms and form not in forms:
            raise ValueError(f"unknown form {quoted(form)}; available: {', '.join(forms)}")
        if form == getattr(default, "form", None):
            return type(default).model_validate({**default.model_dump(), **term})
        return forms[form].model_validate(term)


def _has_form(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel) and "form" in kind.model_fields


class NoOptions(Options):
    """Options of a method that has none besides the settings of its network."""


class WeightedLoss(Strict):
    """Options of a loss term; subclasses add more."""

    weight: NonNegative = Field(
        1.0, description="by which the term is multiplied; 0: it is not computed"
    )


class TrainingBatch(NamedTuple):
    """N training samples, as passed to a method in each step.

    Attributes:
        inputs: the student's inputs.
        targets: (N,) or (N, Q), see `corrkd.targets.base.Target`.
        context: position of each sample in the training split and in its conversation.
    """

    inputs: Inputs
    targets: Tensor
    context: Context


class TeacherOutputs(NamedTuple):
    """Outputs of the frozen teachers for the N samples of the training split, complete. All losses
    use the same teachers.

    Attributes:
        representation: (N, D); D = 0 if external teachers gave only logits. With out-of-fold
            teachers, each row is from a teacher that was not trained on that sample, rotated
            towards the axes of the teacher of all samples
            (`corrkd.experiment.teachers.procrustes`).
        logits: (N, ...), shaped as the network's; combined from all teachers.
        answered_by: (N,) integers, index of the teacher that produced each row of `representation`;
            None: one teacher for all rows.
    """

    representation: Tensor
    logits: Tensor
    answered_by: Tensor | None = None

    def apply(self, change: Callable[[Tensor], Tensor]) -> TeacherOutputs:
        """Return the outputs with a function applied to each tensor, as to take or gather rows."""
        return TeacherOutputs(*(None if x is None else change(x) for x in self))  # type: ignore[arg-type]


class Method(nn.Module, Generic[N]):
    """The losses that train a student. The base class has only the task loss; subclasses override
    `losses`.

    Each process computes its losses on the rows of all processes (`gather`), so that a loss over
    pairs or classes sees the whole batch however it is distributed.

    Args:
        student: the network in training; only this is kept afterwards.
        options: an `options_type`; None: its defaults.
        teachers: outputs for all training samples, on the device of the batches; required if
            `needs_teacher`.
        class_weights: (K,) weights of the classes in the task loss, or None.
        gather: see `Gather`; None: a single process.

    Attributes:
        title: name in tables.
        network: name of the network that the method needs, the class of `student`; None: any
            network.
        options_type: type of the options, a subclass of `corrkd.settings.Strict` with a
            `WeightedLoss` for each loss term.
        trains_on: "complete" samples, or samples under modality random missing ("missing").
        search: range of each hyper-parameter that a search tries besides learning rate and dropout,
            lowest and highest value on a log scale, by keys such as "method.kl.weight" or
            "network.reconstruction".
        stackable: whether several students can be trained at once (`corrkd.training.stacked`) if
            their network is stackable too: the losses differentiate nothing themselves, and use no
            sizes that follow from values and no random numbers from torch.
        needs_teacher: whether the losses use the outputs of teachers.
        taught_by: name of the method that trains these teachers, as an arm that is added to the
            plan; None: the method of the run's teacher.
        teaches: whether it trains teachers for another method, with the settings of the run's
            teacher.
        target: what the student predicts.

    Raises:
        CorrKDError: if the method needs teachers and has none, or its losses cannot compare this
            student with these teachers.
    """

    title: ClassVar[str] = ""
    network: ClassVar[str | None] = None
    options_type: ClassVar[type[BaseModel]] = NoOptions
    trains_on: ClassVar[Literal["complete", "missing"]] = "missing"
    stackable: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False
    taught_by: ClassVar[str | None] = None
    teaches: ClassVar[bool] = False
    search: ClassVar[Mapping[str, tuple[float, float]]] = {}
    student: N
    class_weights: Tensor | None

    def __init__(
        self,
        student: N,
        options: Any = None,
        *,
        teachers: TeacherOutputs | None = None,
        class_weights: Tensor | None = None,
        gather: Gather | None = None,
    ) -> None:
        super().__init__()
        if self.needs_teacher and teachers is None:
            raise CorrKDError(
                f"{self.title or type(self).__name__}: needs the outputs of teachers; give it "
                f"`teachers`"
            )
        self.student = student
        self.target: Target = student.target
        self.options: Any = options if options is not None else self.options_type()
        # Buffers move with the method; checkpoints do not need them.
        for name, outputs in zip(
            TeacherOutputs._fields, teachers or (None, None, None), strict=True
        ):
            self.register_buffer(f"teacher_{name}", outputs, persistent=False)
        self.gather: Gather = gather or (lambda x: x)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.build()
        if self.reads_representation:  # for methods that do not check in `build`
            self.check_representations("a loss", "train kl, which compares responses")

    @classmethod
    def notes(cls, options: Any, target: Target) -> list[str]:
        """Return what readers of the results need to know about these options for this target, in
        sentences.
        """
        return []

    @property
    def teachers(self) -> TeacherOutputs | None:
        """Outputs of the teachers for all training samples; None without teachers."""
        outputs = TeacherOutputs(
            *(getattr(self, f"teacher_{name}") for name in TeacherOutputs._fields)
        )
        return None if outputs.representation is None else outputs

    @property
    def reads_representation(self) -> bool:
        """Whether the losses use the teachers' representations, which external teachers may lack.
        Methods with losses on logits only override it.
        """
        return self.needs_teacher

    def build(self) -> None:
        """Create what the method needs besides the student (critics, a memory). The base class
        needs nothing.
        """

    def stacks(self, batch_size: int) -> bool:
        """Return whether several trainings of this method and its student, with batches of this
        size, can run at once.
        """
        return self.stackable and self.student.stackable

    def start(self, samples: Samples) -> None:
        """Prepare what the method needs from the training split (priors, a memory) before the first
        epoch. `teachers` has the outputs for these samples.

        The base class needs nothing.
        """

    def batches(self, samples: Samples, size: int, generator: torch.Generator) -> Sequence[Tensor]:
        """Return the rows of each batch of an epoch, on the CPU: all samples, shuffled, in whole
        conversations if the student reads them.
        """
        return samples.shuffled(size, generator, conversations=self.student.reads_conversations)

    def forward(self, batch: TrainingBatch) -> Losses:
        """Return `losses(batch)`; wrappers for several processes call this."""
        return self.losses(batch)

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return weight and value of each loss by name, with the same names for every batch.
        Training fails if their sum is not finite.
        """
        return {
            "task": (
                1.0,
                self.task_loss(self.student_output(batch).logits, self.gather(batch.targets)),
            )
        }

    def student_output(self, batch: TrainingBatch) -> Output:
        """Return the student's output for the rows of all processes."""
        if self.student.reads_conversations:  # a conversation may be split over processes
            context = Context(*map(self.gather, batch.context))
            return self.student.in_context(batch.inputs.apply(self.gather), context)
        output = self.student.in_context(batch.inputs, batch.context)
        return Output(self.gather(output.representation), self.gather(output.logits))

    def teacher_output(self, batch: TrainingBatch) -> TeacherOutputs:
        """Return the teachers' outputs for the rows of all processes."""
        assert self.teachers is not None, "only methods with `needs_teacher` ask for it"
        return self.teachers.apply(lambda x: self.gather(x[batch.context.rows]))

    def task_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the target's loss with the class weights, a scalar."""
        return self.target.task_loss(logits, targets, self.class_weights)

    def check_representations(self, loss: str, remedy: str) -> None:
        """Check that the student and the teachers have representations.

        Args:
            loss: name of the loss that compares representations, for the error message.
            remedy: what the user can do instead of returning them, for the error message.

        Raises:
            CorrKDError: if either side has no representation.
        """
        assert self.teachers is not None, "only methods with `needs_teacher` ask for it"
        sides = {
            "student": self.student.representation_width,
            "teachers": self.teachers.representation.shape[1],
        }
        if missing := [side for side, width in sides.items() if not width]:
            raise CorrKDError(
                f"{self.title or type(self).__name__}: {loss} compares representations, and the "
                f"{' and the '.join(missing)} have none; let forward return (representation, "
                f"logits), give a file of outputs an array `representation`, or {remedy}"
            )

    def make_projector(self, loss: str, remedy: str) -> nn.Module:
        """Return a projection of the student's representation to the width of the teachers', which
        is trained with the method and discarded with it.

        Args:
            loss: as in `check_representations`.
            remedy: as in `check_representations`.

        Raises:
            CorrKDError: if either side has no representation.
        """
        self.check_representations(loss, remedy)
        assert self.teachers is not None, "checked"
        student, teachers = self.student.representation_width, self.teachers.representation.shape[1]
        return nn.Identity() if student == teachers else nn.Linear(student, teachers, bias=False)

    def check_widths(self, loss: str, remedy: str) -> None:
        """Check that the student's and the teachers' representations have the same width.

        Args:
            loss: name of the loss that compares them, for the error message.
            remedy: what the user can do instead of making the widths equal, for the error message.

        Raises:
            CorrKDError: if the widths differ, or either side has no representation.
        """
        self.check_representations(loss, remedy)
        assert self.teachers is not None, "only methods with `needs_teacher` ask for it"
        student, teachers = self.student.representation_width, self.teachers.representation.shape[1]
        if student != teachers:
            raise CorrKDError(
                f"{self.title}: {loss} compares representations of one width, but the student's is "
                f"{student} and the teachers' is {teachers}; make the width of both networks "
                f"equal, or {remedy}"
            )


AnyMethod = Method[Any]
