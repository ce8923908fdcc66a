"""CorrKD: task loss, SCD, CPD and RCD (method, Objective)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from corrkd.data.targets import Target
from corrkd.losses import (
    CategoryPrototypeDistillation,
    ResponseDisentangledConsistency,
    SampleContrastiveDistillation,
)
from corrkd.methods.base import Gather, Method, TeacherOutput
from corrkd.networks.corrkd import CorrKDNetwork, Output
from corrkd.settings import DistillationSettings


class CorrKD(Method):
    """The student under MRM, with what the teacher knows of the complete sample.

    A term of weight 0 is not computed. For a score there are no classes: CPD takes the target's categories (sign, or tertiles), and RCD,
    which splits a response by class, is left out.
    """

    needs_teacher: ClassVar[bool] = True

    def __init__(
        self,
        network: CorrKDNetwork,
        target: Target,
        settings: DistillationSettings,
        *,
        class_weights: Tensor | None = None,
        gather: Gather | None = None,
    ) -> None:
        super().__init__(network, target, class_weights=class_weights, gather=gather)
        self.settings = settings
        classes = len(target.classes)
        self.scd = (
            SampleContrastiveDistillation(settings.boundary, settings.normalize, settings.reduction)
            if settings.scd
            else None
        )
        self.cpd = CategoryPrototypeDistillation(classes) if settings.cpd else None
        self.rcd = (
            ResponseDisentangledConsistency(classes, hidden=settings.critic_hidden, renormalize=settings.renormalize)
            if settings.rcd and target.kind != "score"
            else None
        )

    def terms(self, output: Output, targets: Tensor, teacher: TeacherOutput | None) -> dict[str, Tensor]:
        """task, and scd, cpd, rcd where their weight is not 0."""
        assert teacher is not None, "CorrKD is trained with a teacher"
        out = super().terms(output, targets, teacher)
        classes = self.classes_of(targets)
        if self.scd is not None:
            out["scd"] = self.scd(output.representation, teacher.representation)
        if self.cpd is not None:
            out["cpd"] = self.cpd(output.representation, teacher.representation, classes)
        if self.rcd is not None:
            out["rcd"] = self.rcd(output.logits, teacher.logits, classes)
        return out

    def classes_of(self, targets: Tensor) -> Tensor:
        """Classes of the targets: themselves, or the categories of scores."""
        if not targets.is_floating_point():
            return targets
        cuts = torch.tensor(self.target.cuts, dtype=targets.dtype, device=targets.device)
        return torch.bucketize(targets, cuts, right=self.target.upward)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term that is computed [open: the paper reports none; 1 each]."""
        terms = {"scd": self.scd, "cpd": self.cpd, "rcd": self.rcd}
        computed = [name for name, module in terms.items() if module is not None]
        return {"task": self.settings.task, **{name: getattr(self.settings, name) for name in computed}}
