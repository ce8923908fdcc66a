"""Plain distillation of the responses (Hinton et al., 2015): a control, and what takes RCD's place in the paper's ablation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from corrkd.methods.base import Losses, Method, TrainingBatch
from corrkd.networks.base import AnyNetwork


class ResponseKLOptions(BaseModel):
    """Options of `ResponseKL`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kl: Annotated[float, Field(ge=0.0)] = Field(1.0, description="weight of the divergence")
    temperature: Annotated[float, Field(gt=0.0)] = Field(1.0, description="T, by which both sides' logits are divided")


class ResponseKL(Method[AnyNetwork]):
    """Task loss, and the divergence of the student's response from the teacher's: the plain form of what RCD refines."""

    title: ClassVar[str] = "Plain KL distillation"
    options_type = ResponseKLOptions
    needs_teacher: ClassVar[bool] = True
    search: ClassVar[Mapping[str, tuple[float, float]]] = {"options.kl": (0.1, 4.0)}

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task and kl."""
        options: ResponseKLOptions = self.options
        student, teachers = self.student_output(batch), self.teacher_output(batch)
        divergence = self.target.response_divergence(student.logits, teachers.logits, options.temperature)
        return {
            "task": (1.0, self.task_loss(student.logits, self.gather(batch.targets))),
            "kl": (options.kl, divergence),
        }
