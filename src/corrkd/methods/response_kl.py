"""Plain distillation of responses (Hinton et al., 2015): a control, and the replacement of RCD in
the paper's ablation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from corrkd.methods.base import Losses, Method, Options, TrainingBatch, WeightedLoss
from corrkd.networks.base import AnyNetwork
from corrkd.settings import Positive
from corrkd.targets.base import Target


class KL(WeightedLoss):
    """The divergence of the student's response from the teacher's."""

    temperature: Positive = Field(1.0, description="T, by which both sides' logits are divided")

    def loss(self, target: Target, student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
        """Return weight and value, from the logits of N samples."""
        return self.weight, target.response_divergence(student, teacher, self.temperature)


class ResponseKLOptions(Options):
    """Options of `ResponseKL`."""

    kl: KL = KL()


class ResponseKL(Method[AnyNetwork]):
    """Task loss, and the divergence of the student's response from the teacher's, which RCD
    refines.
    """

    title: ClassVar[str] = "Plain KL distillation"
    stackable: ClassVar[bool] = True
    options_type = ResponseKLOptions
    needs_teacher: ClassVar[bool] = True
    search: ClassVar[Mapping[str, tuple[float, float]]] = {"method.kl.weight": (0.1, 4.0)}

    @property
    def reads_representation(self) -> bool:
        """Always False: the loss compares responses."""
        return False

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task and kl."""
        student, teachers = self.student_output(batch), self.teacher_output(batch)
        return {
            "task": (1.0, self.task_loss(student.logits, self.gather(batch.targets))),
            "kl": self.options.kl.loss(self.target, student.logits, teachers.logits),
        }
