"""Plain distillation of the responses (Hinton et al., 2015): a control, and what takes RCD's place in the paper's ablation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

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
        kl = self.target.response_divergence(output.logits, teacher.logits, self.options.temperature)
        return {**super().terms(output, targets, teacher), "kl": kl}

    @property
    def weights(self) -> dict[str, float]:
        """1 for the task."""
        return {"task": 1.0, "kl": self.options.kl}
