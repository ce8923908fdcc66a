"""CorrKD: task loss, SCD, CPD and RCD (method, Objective)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from corrkd.data.batches import Samples
from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.losses import (
    CategoryPrototypeDistillation,
    DecoupledDivergence,
    ResponseDisentangledConsistency,
    SampleContrastiveDistillation,
    SampleRelationDistillation,
)
from corrkd.methods.base import Losses, Method, TeacherOutputs, TrainingBatch
from corrkd.networks.base import AnyNetwork
from corrkd.settings import DistillationSettings


class CorrKD(Method[AnyNetwork]):
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
        """Make the losses, of which RCD has parameters."""
        options: DistillationSettings = self.options
        classes = len(self.target.classes)
        if options.cpd and options.cpd_parts and self.student.parts is None:
            raise CorrKDError(
                f"options.cpd_parts: network {self.student.name!r} declares no parts of its representation by modality "
                "(Network.parts); set cpd_parts to false"
            )
        self.scd = _scd(options) if options.scd else None
        if isinstance(self.scd, SampleContrastiveDistillation):
            self.check_widths("SCD", "set options.scd_form to relations")
        self.cpd = CategoryPrototypeDistillation(classes, center=options.center) if options.cpd else None
        self.rcd = _rcd(options, classes) if options.rcd and self.target.has_classes else None

    def start(self, samples: Samples) -> None:
        """Take mean and prototypes of each teacher's representations, over all samples that it answers for."""
        assert self.teachers is not None, "checked when the method was made"
        representation, fold = self.teachers.representation, _fold(self.teachers)
        of_fold = one_hot(fold).to(representation.dtype)  # (n, F)
        means = of_fold.T @ representation / of_fold.sum(0)[:, None] * self.options.center
        labels = self.target.category_tensor(samples.targets).reshape(len(fold), -1)
        member = one_hot(labels, len(self.target.classes)).to(representation.dtype)  # (n, Q, K)
        totals = torch.einsum("nf,nqk,nd->fqkd", of_fold, member, representation - means[fold])
        counts = torch.einsum("nf,nqk->fqk", of_fold, member)
        # No prototype of a class that a teacher did not meet; nor, without the mean, of one that is all it met: that is rounding alone.
        undefined = (counts == 0) | (self.options.center & (counts == of_fold.sum(0)[:, None, None]))
        prototypes = (totals / counts.clamp(min=1.0)[..., None]).masked_fill(undefined[..., None], 0.0)
        self.means, self.prototypes = means, prototypes

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task, and scd, cpd, rcd, kl where their weight is not 0 [open: the paper reports none; 1 each]."""
        options: DistillationSettings = self.options
        student, teachers, targets = self.student_output(batch), self.teacher_output(batch), self.gather(batch.targets)
        classes = self.target.category_tensor(targets)
        losses = {"task": (options.task, self.task_loss(student.logits, targets))}
        if isinstance(self.scd, SampleContrastiveDistillation):
            losses["scd"] = (options.scd, self.scd(student.representation, teachers.representation))
        elif self.scd is not None:
            fold = _fold(teachers)
            centred = teachers.representation - self.means[fold]
            losses["scd"] = (options.scd, self.scd(student.representation, centred, fold))
        if self.cpd is not None:
            prototypes = self._prototype_loss(self.cpd, student.representation, teachers, classes, batch.inputs)
            losses["cpd"] = (options.cpd, prototypes)
        if self.rcd is not None:
            losses["rcd"] = (options.rcd, self.rcd(student.logits, teachers.logits, classes))
        if options.kl:
            losses["kl"] = (options.kl, self.target.response_divergence(student.logits, teachers.logits))
        return losses

    def _prototype_loss(
        self,
        cpd: CategoryPrototypeDistillation,
        student: Tensor,
        teachers: TeacherOutputs,
        classes: Tensor,
        inputs: Inputs,
    ) -> Tensor:
        """CPD of H and, where the options ask for it, the mean over its modalities' parts, each of the samples that show the modality."""
        if self.options.cpd_prototypes == "batch":
            return cpd(student, teachers.representation, classes)
        fold = _fold(teachers)
        representation, prototypes = teachers.representation - self.means[fold], self.prototypes[fold]
        loss = cpd(student, representation, classes, prototypes)
        if not self.options.cpd_parts:
            return loss
        assert self.student.parts is not None, "checked when the method was made"
        visible = self.gather(inputs.shown(tuple(self.student.parts))).unbind(1)
        parts = student.split(list(self.student.parts.values()), 1)
        each = [
            cpd(part, representation, classes, prototypes, counted)
            for part, counted in zip(parts, visible, strict=True)
        ]
        return loss + torch.stack(each).mean()


def _scd(options: DistillationSettings) -> SampleContrastiveDistillation | SampleRelationDistillation:
    if options.scd_form == "relations":
        return SampleRelationDistillation(center=options.center)
    return SampleContrastiveDistillation(options.boundary, options.normalize, options.reduction)


def _rcd(options: DistillationSettings, classes: int) -> ResponseDisentangledConsistency | DecoupledDivergence:
    if options.rcd_form == "divergence":
        return DecoupledDivergence(options.nontarget)
    return ResponseDisentangledConsistency(classes, hidden=options.critic_hidden, renormalize=options.renormalize)


def _fold(teachers: TeacherOutputs) -> Tensor:
    """Which teacher each row is of, (N,), for losses that compare within a teacher."""
    if teachers.answered_by is None:
        return torch.zeros_like(teachers.representation[:, 0], dtype=torch.int64)
    return teachers.answered_by
