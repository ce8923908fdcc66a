"""CorrKD: task loss, SCD, CPD and RCD (method, Objective)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from corrkd.losses import (
    CategoryPrototypeDistillation,
    ResponseDisentangledConsistency,
    SampleContrastiveDistillation,
)
from corrkd.methods.base import Method, TeacherOutput
from corrkd.methods.response_kl import response_divergence
from corrkd.networks.base import Output
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.settings import DistillationSettings


class CorrKD(Method[CorrKDNetwork]):
    """The student under MRM, with what the teacher knows of the complete sample.

    A term of weight 0 is not computed. For a score there are no classes: CPD takes the target's categories (sign, or tertiles), and RCD,
    which splits a response by class, is left out.
    """

    title: ClassVar[str] = "CorrKD"
    options_type = DistillationSettings
    needs_teacher: ClassVar[bool] = True
    search: ClassVar[Mapping[str, tuple[float, float]]] = {
        f"options.{term}": (0.1, 4.0) for term in ("scd", "cpd", "rcd")
    }

    def build(self) -> None:
        """The losses, of which RCD has parameters."""
        options: DistillationSettings = self.options
        classes = len(self.target.classes)
        self.scd = (
            SampleContrastiveDistillation(options.boundary, options.normalize, options.reduction)
            if options.scd
            else None
        )
        self.cpd = CategoryPrototypeDistillation(classes) if options.cpd else None
        self.rcd = (
            ResponseDisentangledConsistency(classes, hidden=options.critic_hidden, renormalize=options.renormalize)
            if options.rcd and self.target.kind != "score"
            else None
        )

    def terms(self, output: Output, targets: Tensor, teacher: TeacherOutput | None) -> dict[str, Tensor]:
        """task, and scd, cpd, rcd, kl where their weight is not 0."""
        assert teacher is not None, "CorrKD is trained with a teacher"
        out = super().terms(output, targets, teacher)
        classes = self.classes_of(targets)
        if self.scd is not None:
            out["scd"] = self.scd(output.representation, teacher.representation)
        if self.cpd is not None:
            out["cpd"] = self.cpd(output.representation, teacher.representation, classes)
        if self.rcd is not None:
            out["rcd"] = self.rcd(output.logits, teacher.logits, classes)
        if self.options.kl:
            out["kl"] = response_divergence(output.logits, teacher.logits, self.target.kind)
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
        terms = {"scd": self.scd, "cpd": self.cpd, "rcd": self.rcd, "kl": self.options.kl or None}
        computed = [name for name, term in terms.items() if term is not None]
        return {"task": self.options.task, **{name: getattr(self.options, name) for name in computed}}
