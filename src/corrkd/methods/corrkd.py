"""CorrKD: task loss, SCD, CPD and RCD (method, Objective)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from corrkd.data.batches import Context
from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.losses import (
    CategoryPrototypeDistillation,
    DecoupledDivergence,
    ResponseDisentangledConsistency,
    SampleContrastiveDistillation,
    SampleRelationDistillation,
)
from corrkd.methods.base import Method, TeacherOutput
from corrkd.networks.base import Output
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.settings import DistillationSettings


class CorrKD(Method[CorrKDNetwork]):
    """The student under MRM, with what the teacher knows of the complete sample.

    The losses are the paper's, or the mended forms of docs/corrkd-plus.md where the options say so. A term of weight 0 is not computed.
    For a score there are no classes: CPD takes the target's categories (sign, or tertiles), and RCD, which splits a response by class, is
    left out.
    """

    title: ClassVar[str] = "CorrKD"
    options_type = DistillationSettings
    needs_teacher: ClassVar[bool] = True
    search: ClassVar[Mapping[str, tuple[float, float]]] = {
        f"options.{term}": (0.1, 4.0) for term in ("scd", "cpd", "rcd")
    }
    means: Tensor  # (F, D) of the F teachers' representations; 0 where nothing is centred
    prototypes: Tensor  # (F, Q, K, D) of those less their mean

    def build(self) -> None:
        """The losses, of which RCD has parameters."""
        options: DistillationSettings = self.options
        classes = len(self.target.classes)
        if options.cpd and options.cpd_parts and self.network.part_widths is None:
            raise CorrKDError(
                f"options.cpd_parts: network {self.network.name!r} declares no parts of its representation by modality "
                "(Network.part_widths); set cpd_parts to false"
            )
        self.scd = _scd(options) if options.scd else None
        self.cpd = CategoryPrototypeDistillation(classes, center=options.center) if options.cpd else None
        self.rcd = _rcd(options, classes) if options.rcd and self.target.has_classes else None

    def forward(
        self,
        inputs: Inputs,
        targets: Tensor,
        teacher: TeacherOutput | None = None,
        context: Context | None = None,
    ) -> dict[str, Tensor]:
        """The loss terms of a batch by name. Those of `cpd_parts` also look at which modalities a sample shows."""
        if not self.options.cpd_parts:
            return super().forward(inputs, targets, teacher, context)
        output = self.answer(inputs)
        shown = inputs.shown(self.network.modalities)
        whole = None if teacher is None else teacher.apply(self.gather)
        return self.terms(output, self.gather(targets), whole, self.gather(shown))

    def taught(self, teacher: TeacherOutput, targets: Tensor) -> None:
        """Mean and prototypes of each teacher's representations, over all samples that it answers for."""
        representation, fold = teacher.representation, _fold(teacher)
        of_fold = one_hot(fold).to(representation.dtype)  # (n, F)
        means = of_fold.T @ representation / of_fold.sum(0)[:, None] * self.options.center
        labels = self.target.category_tensor(targets).reshape(len(targets), -1)
        member = one_hot(labels, len(self.target.classes)).to(representation.dtype)  # (n, Q, K)
        totals = torch.einsum("nf,nqk,nd->fqkd", of_fold, member, representation - means[fold])
        counts = torch.einsum("nf,nqk->fqk", of_fold, member)
        # No prototype of a class that a teacher did not meet; nor, without the mean, of one that is all it met: that is rounding alone.
        undefined = (counts == 0) | (self.options.center & (counts == of_fold.sum(0)[:, None, None]))
        prototypes = (totals / counts.clamp(min=1.0)[..., None]).masked_fill(undefined[..., None], 0.0)
        self.means, self.prototypes = means, prototypes

    def terms(
        self, output: Output, targets: Tensor, teacher: TeacherOutput | None, shown: Tensor | None = None
    ) -> dict[str, Tensor]:
        """task, and scd, cpd, rcd, kl where their weight is not 0. `shown`: which modalities each sample shows, (N, M); None: all."""
        assert teacher is not None, "CorrKD is trained with a teacher"
        out = super().terms(output, targets, teacher)
        classes = self.target.category_tensor(targets)
        if isinstance(self.scd, SampleContrastiveDistillation):
            out["scd"] = self.scd(output.representation, teacher.representation)
        elif self.scd is not None:
            fold = _fold(teacher)
            out["scd"] = self.scd(output.representation, teacher.representation - self.means[fold], fold)
        if self.cpd is not None:
            out["cpd"] = self._prototype_terms(self.cpd, output.representation, teacher, classes, shown)
        if self.rcd is not None:
            out["rcd"] = self.rcd(output.logits, teacher.logits, classes)
        if self.options.kl:
            out["kl"] = self.target.response_divergence(output.logits, teacher.logits)
        return out

    def _prototype_terms(
        self,
        cpd: CategoryPrototypeDistillation,
        student: Tensor,
        teacher: TeacherOutput,
        classes: Tensor,
        shown: Tensor | None,
    ) -> Tensor:
        """CPD of H and, where the options say so, the mean over its modalities' parts, each of the samples that show the modality."""
        if self.options.cpd_prototypes == "batch":
            return cpd(student, teacher.representation, classes)
        fold = _fold(teacher)
        representation, prototypes = teacher.representation - self.means[fold], self.prototypes[fold]
        whole = cpd(student, representation, classes, prototypes)
        if not self.options.cpd_parts:
            return whole
        widths = self.network.part_widths
        assert widths is not None, "checked when the method was made"
        parts = student.split(list(widths.values()), 1)
        counts = [None] * len(parts) if shown is None else shown.unbind(1)
        each = [
            cpd(part, representation, classes, prototypes, count) for part, count in zip(parts, counts, strict=True)
        ]
        return whole + torch.stack(each).mean()

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each term that is computed [open: the paper reports none; 1 each]."""
        terms = {"scd": self.scd, "cpd": self.cpd, "rcd": self.rcd, "kl": self.options.kl or None}
        computed = [name for name, term in terms.items() if term is not None]
        return {"task": self.options.task, **{name: getattr(self.options, name) for name in computed}}


def _scd(options: DistillationSettings) -> SampleContrastiveDistillation | SampleRelationDistillation:
    if options.scd_form == "relations":
        return SampleRelationDistillation(center=options.center)
    return SampleContrastiveDistillation(options.boundary, options.normalize, options.reduction)


def _rcd(options: DistillationSettings, classes: int) -> ResponseDisentangledConsistency | DecoupledDivergence:
    if options.rcd_form == "divergence":
        return DecoupledDivergence(options.nontarget)
    return ResponseDisentangledConsistency(classes, hidden=options.critic_hidden, renormalize=options.renormalize)


def _fold(teacher: TeacherOutput) -> Tensor:
    """Which teacher each row is of, (N,), for losses that compare within a teacher."""
    if teacher.answered_by is None:
        return torch.zeros_like(teacher.representation[:, 0], dtype=torch.int64)
    return teacher.answered_by
