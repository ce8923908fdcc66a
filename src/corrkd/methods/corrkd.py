"""CorrKD: task loss, SCD, CPD and RCD (docs/method.md, Objective)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
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
from corrkd.losses.sample_contrastive import BLOCK
from corrkd.methods.base import Losses, Method, Options, TeacherOutputs, TrainingBatch, WeightedLoss
from corrkd.methods.response_kl import KL
from corrkd.networks.base import AnyNetwork
from corrkd.settings import Positive, Width
from corrkd.targets.base import Target


class Contrast(WeightedLoss):
    """SCD as in the paper: distances from the teacher's samples (Eqs. 5 and 6)."""

    form: Literal["contrast"] = "contrast"
    boundary: Positive = Field(
        1.2, description="eta, the distance boundary [paper: 1.2 MOSI, 1.0 MOSEI, 1.4 IEMOCAP]"
    )
    normalize: bool = Field(True, description="on unit vectors [open]")
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="the double sum as it is, or divided by N (N - 1) [open]"
    )

    def make(self) -> SampleContrastiveDistillation:
        """Return the loss."""
        return SampleContrastiveDistillation(self.boundary, self.normalize, self.reduction)


class Relations(WeightedLoss):
    """SCD by the cosines between samples within each side [ours]."""

    form: Literal["relations"] = "relations"
    center: bool = Field(True, description="on representations without their common part")

    def make(self) -> SampleRelationDistillation:
        """Return the loss."""
        return SampleRelationDistillation(center=self.center)


class BatchPrototypes(WeightedLoss):
    """CPD as in the paper: the teacher's prototypes are computed per batch (Eqs. 7 to 9)."""

    form: Literal["batch"] = "batch"
    center: ClassVar[bool] = False
    parts: ClassVar[bool] = False


class AllPrototypes(WeightedLoss):
    """CPD with teacher prototypes from the whole training split [ours]."""

    form: Literal["all"] = "all"
    center: bool = Field(True, description="on representations without their common part")
    parts: bool = Field(
        False, description="each visible modality's part of H, too, beside the whole"
    )


class Information(WeightedLoss):
    """RCD as in the paper: mutual information of both parts of the response, by critics (Eqs. 10 to
    12).
    """

    form: Literal["information"] = "information"
    critic_hidden: Width = Field(64, description="hidden width of the statistics networks [open]")
    renormalize: bool = Field(
        False, description="non-target responses renormalised over the K - 1 classes [open]"
    )

    def make(self, num_classes: int) -> ResponseDisentangledConsistency:
        """Return the loss with new critics."""
        return ResponseDisentangledConsistency(
            num_classes, hidden=self.critic_hidden, renormalize=self.renormalize
        )


class Divergence(WeightedLoss):
    """RCD by separate divergences of both parts of the response [ours]."""

    form: Literal["divergence"] = "divergence"
    nontarget: Annotated[float, Field(ge=0.0)] = Field(
        1.0, description="weight of the non-target part"
    )

    def make(self, num_classes: int) -> DecoupledDivergence:
        """Return the loss."""
        return DecoupledDivergence(self.nontarget)


class CorrKDOptions(Options):
    """The loss terms of `CorrKD`, each with a weight [open: the paper reports none], and the
    choices that the paper leaves open.
    """

    task: WeightedLoss = Field(
        default=WeightedLoss(), description="cross-entropy, or as the target has it"
    )
    scd: Annotated[Contrast | Relations, Field(discriminator="form")] = Field(
        default=Contrast(), description="sample-level contrastive distillation"
    )
    cpd: Annotated[BatchPrototypes | AllPrototypes, Field(discriminator="form")] = Field(
        default=BatchPrototypes(), description="category-guided prototype distillation"
    )
    rcd: Annotated[Information | Divergence, Field(discriminator="form")] = Field(
        default=Information(), description="response-disentangled consistency distillation"
    )
    kl: KL = Field(
        default=KL(weight=0.0),
        description="plain KL divergence of the responses; with rcd.weight = 0 the paper's "
        "ablation of RCD",
    )


class CorrKD(Method[AnyNetwork]):
    """A student under MRM, distilled from a teacher that sees complete samples.

    The losses are the paper's, or the alternatives of docs/corrkd-plus.md if the options say so. A
    term of weight 0 is not computed. A score has no classes: CPD uses the target's categories
    (sign, or tertiles), and RCD, which splits a response by class, is left out.
    """

    title: ClassVar[str] = "CorrKD"
    stackable: ClassVar[bool] = True
    options_type = CorrKDOptions
    needs_teacher: ClassVar[bool] = True
    search: ClassVar[Mapping[str, tuple[float, float]]] = {
        f"method.{term}.weight": (0.1, 4.0) for term in ("scd", "cpd", "rcd")
    }
    means: Tensor  # (F, D), of the F teachers' representations
    prototypes: Tensor  # (F, Q, K, D), minus the mean if CPD is centred

    @classmethod
    def notes(cls, options: CorrKDOptions, target: Target) -> list[str]:
        """Return a note if RCD is left out."""
        if target.has_classes or not options.rcd.weight:
            return []
        return [f"RCD splits a response by class and is left out for the target `{target.name}`"]

    @property
    def reads_representation(self) -> bool:
        """Whether SCD or CPD is in use."""
        return bool(self.options.scd.weight or self.options.cpd.weight)

    def build(self) -> None:
        """Create the losses; SCD's projection and RCD's critics have parameters."""
        options: CorrKDOptions = self.options
        classes = len(self.target.classes)
        if options.cpd.weight and options.cpd.parts and self.student.parts is None:
            raise CorrKDError(
                f"method.cpd.parts: network {self.student.name!r} declares no parts of its "
                "representation by modality (Network.parts); set it to false"
            )
        self.scd = options.scd.make() if options.scd.weight else None
        if isinstance(self.scd, SampleContrastiveDistillation):
            self.projector = self.make_projector("SCD", "set method.scd.weight to 0")
        elif self.scd is not None:
            self.check_representations("SCD", "set method.scd.weight to 0")
        if options.cpd.weight:
            self.check_representations("CPD", "set method.cpd.weight to 0")
        self.cpd = (
            CategoryPrototypeDistillation(classes, center=options.cpd.center)
            if options.cpd.weight
            else None
        )
        self.rcd = (
            options.rcd.make(classes) if options.rcd.weight and self.target.has_classes else None
        )

    def stacks(self, batch_size: int) -> bool:
        """Return whether several trainings can run at once: not if SCD computes distances in blocks
        and recomputes them in the backward pass.
        """
        in_blocks = isinstance(self.scd, SampleContrastiveDistillation) and (
            batch_size**2 * self.student.representation_width > BLOCK
        )
        return super().stacks(batch_size) and not in_blocks

    def start(self, samples: Samples) -> None:
        """Compute mean and prototypes of each teacher's representations, over the samples it is
        used for.
        """
        if not self.reads_representation:
            return
        assert self.teachers is not None, "checked when the method was made"
        representation, fold = self.teachers.representation, _fold(self.teachers)
        of_fold = one_hot(fold).to(representation.dtype)  # (n, F)
        means = of_fold.T @ representation / of_fold.sum(0)[:, None]
        center = self.options.cpd.center
        labels = self.target.category_tensor(samples.targets).reshape(len(fold), -1)
        member = one_hot(labels, len(self.target.classes)).to(representation.dtype)  # (n, Q, K)
        totals = torch.einsum(
            "nf,nqk,nd->fqkd", of_fold, member, representation - center * means[fold]
        )
        counts = torch.einsum("nf,nqk->fqk", of_fold, member)
        # Undefined for a class without samples and, if centred, for the only class (just rounding).
        undefined = (counts == 0) | (center & (counts == of_fold.sum(0)[:, None, None]))
        prototypes = (totals / counts.clamp(min=1.0)[..., None]).masked_fill(
            undefined[..., None], 0.0
        )
        for name, value in (("means", means), ("prototypes", prototypes)):
            self.register_buffer(name, value, persistent=False)

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task, and scd, cpd, rcd and kl unless their weight is 0 [open: the paper reports
        no weights; 1 each].
        """
        options: CorrKDOptions = self.options
        student, teachers, targets = (
            self.student_output(batch),
            self.teacher_output(batch),
            self.gather(batch.targets),
        )
        classes = self.target.category_tensor(targets)
        losses = {"task": (options.task.weight, self.task_loss(student.logits, targets))}
        if isinstance(self.scd, SampleContrastiveDistillation):
            losses["scd"] = (
                options.scd.weight,
                self.scd(self.projector(student.representation), teachers.representation),
            )
        elif self.scd is not None:
            centred = self._centred(teachers, self.scd.center)
            losses["scd"] = (
                options.scd.weight,
                self.scd(student.representation, centred, _fold(teachers)),
            )
        if self.cpd is not None:
            prototypes = self._prototype_loss(
                self.cpd, student.representation, teachers, classes, batch.inputs
            )
            losses["cpd"] = (options.cpd.weight, prototypes)
        if self.rcd is not None:
            losses["rcd"] = (options.rcd.weight, self.rcd(student.logits, teachers.logits, classes))
        if options.kl.weight:
            losses["kl"] = options.kl.loss(self.target, student.logits, teachers.logits)
        return losses

    def _centred(self, teachers: TeacherOutputs, center: bool) -> Tensor:
        """Return the teachers' representations, minus the mean of each teacher's if `center`."""
        return teachers.representation - center * self.means[_fold(teachers)]

    def _prototype_loss(
        self,
        cpd: CategoryPrototypeDistillation,
        student: Tensor,
        teachers: TeacherOutputs,
        classes: Tensor,
        inputs: Inputs,
    ) -> Tensor:
        """Return the CPD loss of H. If the options ask for it, add its mean over the modalities'
        parts of H, each on the samples that show the modality.
        """
        form = self.options.cpd
        if isinstance(form, BatchPrototypes):
            return cpd(student, teachers.representation, classes)
        representation, prototypes = (
            self._centred(teachers, form.center),
            self.prototypes[_fold(teachers)],
        )
        loss = cpd(student, representation, classes, prototypes)
        if not form.parts:
            return loss
        assert self.student.parts is not None, "checked when the method was made"
        visible = self.gather(inputs.shown(tuple(self.student.parts))).unbind(1)
        parts = student.split(list(self.student.parts.values()), 1)
        each = [
            cpd(block, representation, classes, prototypes, counted)
            for block, counted in zip(parts, visible, strict=True)
        ]
        return loss + torch.stack(each).mean()


def _fold(teachers: TeacherOutputs) -> Tensor:
    """Return the index of each row's teacher, (N,), for losses that compare within a teacher."""
    if teachers.answered_by is None:
        return torch.zeros_like(teachers.logits.flatten(1)[:, 0], dtype=torch.int64)
    return teachers.answered_by
