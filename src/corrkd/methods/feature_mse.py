"""Plain distillation of the representations (FitNets, Romero et al., ICLR 2015): a control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch.nn.functional import mse_loss

from corrkd.methods.base import Losses, Method, TrainingBatch
from corrkd.networks.base import AnyNetwork


class FeatureMSEOptions(BaseModel):
    """Options of `FeatureMSE`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mse: Annotated[float, Field(ge=0.0)] = Field(1.0, description="weight of the representations' squared error")


class FeatureMSE(Method[AnyNetwork]):
    """Task loss, and the squared error of H from the teacher's, mean over samples and features. No projection: both have one width."""

    title: ClassVar[str] = "Feature-MSE distillation"
    options_type = FeatureMSEOptions
    needs_teacher: ClassVar[bool] = True
    search: ClassVar[Mapping[str, tuple[float, float]]] = {"options.mse": (0.1, 4.0)}

    def build(self) -> None:
        """Refuse teachers of another width."""
        self.check_widths("the squared error", "train kl, which compares responses")

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task and mse."""
        student, teachers = self.student_output(batch), self.teacher_output(batch)
        return {
            "task": (1.0, self.task_loss(student.logits, self.gather(batch.targets))),
            "mse": (self.options.mse, mse_loss(student.representation, teachers.representation.detach())),
        }
