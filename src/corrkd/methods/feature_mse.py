"""Plain distillation of the representations (FitNets, Romero et al., ICLR 2015): a control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import mse_loss

from corrkd.methods.base import Method, TeacherOutput
from corrkd.networks.base import Output
from corrkd.networks.corrkd import CorrKDNetwork


class FeatureMSEOptions(BaseModel):
    """Options of `FeatureMSE`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mse: Annotated[float, Field(ge=0.0)] = Field(1.0, description="weight of the representations' squared error")


class FeatureMSE(Method[CorrKDNetwork]):
    """Task loss, and the squared error of H from the teacher's, mean over samples and features. Both have one structure: no projection."""

    title: ClassVar[str] = "Feature-MSE distillation"
    options_type = FeatureMSEOptions
    needs_teacher: ClassVar[bool] = True
    search: ClassVar[Mapping[str, tuple[float, float]]] = {"options.mse": (0.1, 4.0)}

    def terms(self, output: Output, targets: Tensor, teacher: TeacherOutput | None) -> dict[str, Tensor]:
        """Task and mse."""
        assert teacher is not None, "a distillation is trained with a teacher"
        mse = mse_loss(output.representation, teacher.representation.detach())
        return {**super().terms(output, targets, teacher), "mse": mse}

    @property
    def weights(self) -> dict[str, float]:
        """1 for the task."""
        return {"task": 1.0, "mse": self.options.mse}
