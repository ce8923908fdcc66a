"""Plain distillation of representations (FitNets, Romero et al., ICLR 2015): a control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch.nn.functional import mse_loss

from corrkd.methods.base import Losses, Method, Options, TrainingBatch, WeightedLoss
from corrkd.networks.base import AnyNetwork


class FeatureMSEOptions(Options):
    """Options of `FeatureMSE`."""

    mse: WeightedLoss = WeightedLoss()


class FeatureMSE(Method[AnyNetwork]):
    """Task loss, and the mean squared error between the student's and the teacher's H.

    If the widths differ, a linear layer that projects the student's H to the teacher's width is
    trained along, as in FitNets.
    """

    title: ClassVar[str] = "Feature-MSE distillation"
    stackable: ClassVar[bool] = True
    options_type = FeatureMSEOptions
    needs_teacher: ClassVar[bool] = True
    search: ClassVar[Mapping[str, tuple[float, float]]] = {"method.mse.weight": (0.1, 4.0)}

    def build(self) -> None:
        """Create the projection to the teachers' width."""
        self.projector = self.make_projector(
            "the squared error", "train kl, which compares responses"
        )

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task and mse."""
        student, teachers = self.student_output(batch), self.teacher_output(batch)
        return {
            "task": (1.0, self.task_loss(student.logits, self.gather(batch.targets))),
            "mse": (
                self.options.mse.weight,
                mse_loss(self.projector(student.representation), teachers.representation.detach()),
            ),
        }
