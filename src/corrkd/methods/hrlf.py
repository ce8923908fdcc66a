"""HRLF: task loss, FRF, HMI, HAL and KL; and the method that trains its teacher (docs/hrlf.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from corrkd.losses import (
    FactorisationReconstruction,
    HierarchicalAdversarial,
    HierarchicalInformation,
)
from corrkd.methods.base import Losses, Method, Options, TrainingBatch, WeightedLoss
from corrkd.methods.response_kl import KL
from corrkd.networks.hrlf import Details, HRLFNetwork
from corrkd.settings import NonNegative, Width


class FRF(WeightedLoss):
    """Reconstruction of factorised representations."""

    reduction: Literal["mean", "sum"] = Field(
        "mean",
        description="squared errors averaged over features, or their sum as it is printed [open]",
    )

    reach: Literal["factors", "encoders", "targets"] = Field(
        "factors",
        description="how far its gradient reaches: the factors' encoders and the decoder; the "
        "modalities' encoders, too; and what is to be made again, too [open; docs/hrlf.md measures "
        "it]",
    )

    def make(self) -> FactorisationReconstruction:
        """Return the loss."""
        return FactorisationReconstruction(self.reduction, detach=self.reach != "targets")


class HMI(WeightedLoss):
    """Mutual information of teacher and student at each scale, by critics."""

    critic_hidden: Width = Field(64, description="hidden width of the statistics networks [open]")


class HAL(WeightedLoss):
    """One discriminator per scale, which the student tries to fool. The weight applies to both
    players.
    """

    weight: NonNegative = Field(
        0.01,
        description="of both players [open: at 1 the student learned nothing else on the "
        "built-in data; docs/hrlf.md]",
    )
    discriminator_hidden: Width = Field(
        64, description="hidden width of the discriminators De [open]"
    )
    nonsaturating: bool = Field(
        False, description="the student maximises log De instead of minimising log(1 - De) [ours]"
    )


class HRLFOptions(Options):
    """The loss terms of `HRLF`, each with a weight [open: the paper sums them without], and the
    choices that the paper leaves open.
    """

    task: WeightedLoss = Field(
        default=WeightedLoss(), description="cross-entropy, or as the target has it"
    )
    frf: FRF = Field(default=FRF(), description="fine-grained representation factorisation")
    hmi: HMI = Field(default=HMI(), description="hierarchical mutual information maximisation")
    hal: HAL = Field(default=HAL(), description="hierarchical adversarial learning")
    kl: KL = Field(default=KL(), description="KL divergence of the responses")


class HRLFTeacherOptions(Options):
    """The loss terms of `HRLFTeacher`."""

    task: WeightedLoss = Field(
        default=WeightedLoss(), description="cross-entropy, or as the target has it"
    )
    frf: FRF = Field(
        default=FRF(),
        description="fine-grained representation factorisation; 0: the task loss alone [open]",
    )


class _Factorised(Method[HRLFNetwork]):
    """The common part of both stages: the task loss and FRF."""

    network = "hrlf"
    stackable: ClassVar[bool] = True

    def build(self) -> None:
        """Create the reconstruction loss."""
        self.frf = self.options.frf.make() if self.options.frf.weight else None

    def losses_of(self, details: Details, batch: TrainingBatch) -> Losses:
        """Return task, and frf unless its weight is 0, for the rows of all processes."""
        logits, targets = self.gather(details.output.logits), self.gather(batch.targets)
        losses = {"task": (self.options.task.weight, self.task_loss(logits, targets))}
        if self.frf is not None:
            encoded = (
                details.encoded.detach() if self.options.frf.reach == "factors" else details.encoded
            )
            losses["frf"] = (
                self.options.frf.weight,
                self.frf(*map(self.gather, self.student.factors(encoded))),
            )
        return losses


class HRLFTeacher(_Factorised):
    """HRLF's teacher: task loss and FRF on complete samples."""

    title: ClassVar[str] = "HRLF teacher"
    options_type = HRLFTeacherOptions
    trains_on: ClassVar[Literal["complete", "missing"]] = "complete"
    teaches: ClassVar[bool] = True

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task, and frf unless its weight is 0 [open: the paper gives the objective of the
        student only].
        """
        return self.losses_of(self.student.details(batch.inputs), batch)


class HRLF(_Factorised):
    """HRLF's student on incomplete samples (Li et al., NeurIPS 2024): the teacher's losses, and
    three terms that compare teacher and student.

    HMI and HAL compare the representations of teacher and student at the network's three scales, KL
    their responses. A term of weight 0 is not computed. Critics and discriminators are trained
    along with the student by one optimiser; HAL is the minimax game with simultaneous steps
    (`corrkd.losses.hierarchical_adversarial`). A score has no response, so KL is the squared
    difference of the scores.
    """

    title: ClassVar[str] = "HRLF"
    options_type = HRLFOptions
    needs_teacher: ClassVar[bool] = True
    taught_by: ClassVar[str | None] = "hrlf-teacher"
    search: ClassVar[Mapping[str, tuple[float, float]]] = {
        **{f"method.{term}.weight": (0.1, 4.0) for term in ("frf", "hmi", "kl")},
        "method.hal.weight": (0.001, 0.1),
    }

    @property
    def reads_representation(self) -> bool:
        """Whether HMI or HAL is in use."""
        return bool(self.options.hmi.weight or self.options.hal.weight)

    def build(self) -> None:
        """Create the losses, of which HMI and HAL have parameters. Raises CorrKDError if they are
        used and the teachers' scales differ from the student's.
        """
        super().build()
        options: HRLFOptions = self.options
        scales = self.student.scales
        if self.reads_representation:
            self.check_widths("HMI, like HAL,", "set method.hmi.weight and method.hal.weight to 0")
        self.hmi = (
            HierarchicalInformation(scales, scales, hidden=options.hmi.critic_hidden)
            if options.hmi.weight
            else None
        )
        self.hal = (
            HierarchicalAdversarial(
                scales,
                hidden=options.hal.discriminator_hidden,
                nonsaturating=options.hal.nonsaturating,
            )
            if options.hal.weight
            else None
        )

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task, and frf, hmi, hal and kl unless their weight is 0 [open: the paper sums them
        without weights].
        """
        options: HRLFOptions = self.options
        details, teachers = self.student.details(batch.inputs), self.teacher_output(batch)
        losses = self.losses_of(details, batch)
        if self.hmi is not None or self.hal is not None:
            both = self.gather(details.output.representation), teachers.representation
            student, teacher = (x.split(list(self.student.scales), 1) for x in both)
        if self.hmi is not None:
            losses["hmi"] = (options.hmi.weight, self.hmi(student, teacher))
        if self.hal is not None:
            losses["hal"] = (options.hal.weight, self.hal(student, teacher))
        if options.kl.weight:
            losses["kl"] = options.kl.loss(
                self.target, self.gather(details.output.logits), teachers.logits
            )
        return losses
