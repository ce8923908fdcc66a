"""Plain distillation of the responses (Hinton et al., 2015): a control, and what takes RCD's place in the paper's ablation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, mse_loss

from corrkd.methods.base import Method, TeacherOutput
from corrkd.networks.base import Output
from corrkd.networks.corrkd import CorrKDNetwork


class ResponseKLOptions(BaseModel):
    """Options of `ResponseKL`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kl: Annotated[float, Field(ge=0.0)] = Field(1.0, description="weight of the divergence")
    temperature: Annotated[float, Field(gt=0.0)] = Field(1.0, description="T, by which both sides' logits are divided")


class ResponseKL(Method[CorrKDNetwork]):
    """Task loss, and the divergence of the student's response from the teacher's: the plain form of what RCD refines."""

    title: ClassVar[str] = "Plain KL distillation"
    options_type = ResponseKLOptions
    needs_teacher: ClassVar[bool] = True
    search: ClassVar[Mapping[str, tuple[float, float]]] = {"options.kl": (0.1, 4.0)}

    def terms(self, output: Output, targets: Tensor, teacher: TeacherOutput | None) -> dict[str, Tensor]:
        """Task and kl."""
        assert teacher is not None, "a distillation is trained with a teacher"
        kl = response_divergence(output.logits, teacher.logits, self.target.kind, self.options.temperature)
        return {**super().terms(output, targets, teacher), "kl": kl}

    @property
    def weights(self) -> dict[str, float]:
        """1 for the task."""
        return {"task": 1.0, "kl": self.options.kl}


def response_divergence(student: Tensor, teacher: Tensor, kind: str, temperature: float = 1.0) -> Tensor:
    """T² KL(teacher || student) of the responses softmax(logits / T), mean over samples and questions; of scores the squared difference.

    Args:
        student: logits (N, K), (N, Q, 2), or scores (N, 1).
        teacher: the same of the teacher; gets no gradient.
        kind: "classes", "questions" or "score".
        temperature: T; the factor T² keeps the gradient's size (Hinton et al., 2015, section 2).
    """
    precise = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(precise), teacher.detach().to(precise)
    if kind == "score":
        return mse_loss(student, teacher)
    own, known = (log_softmax(x.flatten(0, -2) / temperature, -1) for x in (student, teacher))
    return temperature**2 * kl_div(own, known, log_target=True, reduction="batchmean")
