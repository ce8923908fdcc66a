"""Category-guided prototype distillation (CPD): the student's similarities between samples and
classes should match the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corrkd.losses._shared import check_labels, check_rows, full_precision, no_autocast, unit


def category_prototype_distillation(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    center: bool = False,
    teacher_prototypes: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    r"""Return the CPD loss (Li et al., CVPR 2024, "Category-guided Prototype Distillation").

    .. math:: L = \frac{1}{N K} \sum_i \sum_k (M^s_k(i) - M^t_k(i))^2, \quad M_k(i) = \cos(H_i, c_k)

    where the prototype c_k is the mean of H over the batch's samples of class k, computed from H^s
    for the student and from H^t for the teacher. Gradients flow through the student's prototypes
    too. Only angles count: rotating or scaling either side's representations changes nothing.

    Args:
        student: (N, D) representations H^s of the incomplete samples, N >= 1.
        teacher: (N, E) representations H^t of the same samples, complete. Not detached: gradients
            flow to it if it requires them.
        labels: (N,) classes in 0 ... num_classes - 1, or (N, Q) answers to Q questions, over which
            the loss is averaged. The range is not checked (that would wait for the device): a
            sample with a label out of range is in no prototype, but is compared with all of them.
            If all labels are out of range, the loss is NaN, or 0 with `counted`.
        num_classes: K >= 1; 2 for yes/no questions.
        center: subtract each side's mean over the batch first [ours: pooled, normalised
            representations share one large component, so that all their cosines are near 1].
        teacher_prototypes: (N, Q, K, E), Q = 1 for classes: the teacher's prototypes from
            elsewhere, such as the training split; row i is from the teacher that produced
            representation i [ours: prototypes of a batch are noisy]. They and `teacher` are used
            unchanged, so subtract one mean from both beforehand to center them. A prototype of
            zeros counts as absent: it is compared with nothing.
        counted: (N,) booleans: samples that count. The others are excluded from means and
            comparisons. None: all count.

    Returns:
        A scalar in [0, 4], float32 (float64 if an input is), computed in full precision even under
        autocast. A class that is absent from the batch has no prototype: it is left out, and K
        counts the classes present [open]. The cosine of a zero vector is 0.

    Raises:
        ValueError: if a shape or dtype is wrong, or num_classes < 1.

    Examples:
        >>> import torch
        >>> from corrkd.losses import category_prototype_distillation
        >>> teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> mixed_up = torch.ones(2, 2)
        >>> category_prototype_distillation(mixed_up, teacher, torch.tensor([0, 1]), 2)
        tensor(0.5000)
    """
    check_rows(student, teacher)
    check_labels(labels, (len(student), *labels.shape[1:2]))
    if labels.numel() == 0:
        raise ValueError(
            f"labels must hold at least one question, but they are {tuple(labels.shape)}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    wanted = labels[0].numel()
    if teacher_prototypes is not None and teacher_prototypes.shape != (
        expected := (len(teacher), wanted, num_classes, teacher.shape[1])
    ):
        raise ValueError(
            f"teacher_prototypes must be {expected}, but they are {tuple(teacher_prototypes.shape)}"
        )
    if counted is not None and (counted.shape != (len(student),) or counted.dtype != torch.bool):
        raise ValueError(
            f"counted must be ({len(student)},) booleans, but they are {counted.dtype} of "
            f"{tuple(counted.shape)}"
        )
    with no_autocast(student):
        student, teacher = full_precision(student, teacher)
        weights = student.new_ones(len(student)) if counted is None else counted.to(student.dtype)
        # (N, Q, K), Q = 1 for classes. Unlike one_hot, comparing does not read the largest label.
        member = labels.reshape(len(labels), -1, 1) == torch.arange(
            num_classes, device=labels.device
        )
        member = member & (weights > 0)[:, None, None]
        targets = (
            _similarity(teacher, member, weights, center)
            if teacher_prototypes is None
            else torch.einsum(
                "nd,nqkd->nqk", unit(teacher), unit(teacher_prototypes.to(teacher.dtype))
            )
        )
        present = member.any(0)
        # A class without a prototype on either side adds 0.
        both = present if teacher_prototypes is None else present & teacher_prototypes.any(-1)
        difference = (_similarity(student, member, weights, center) - targets).masked_fill(
            ~both, 0.0
        )
        per_question = torch.einsum("n,nqk->q", weights, difference.square()) / weights.sum().clamp(
            min=1.0
        )
        classes = present.sum(-1)
        return (per_question / (classes if counted is None else classes.clamp(min=1))).mean()


def _similarity(h: Tensor, member: Tensor, weights: Tensor, center: bool) -> Tensor:
    """Return the cosine of each sample with each prototype: representations (N, D), class
    membership (N, Q, K) and sample weights (N,) -> (N, Q, K).
    """
    of_class = member.flatten(1).to(h.dtype)
    if center:
        h = h - weights @ h / weights.sum().clamp(min=1.0)
        # The centred mean of a class with all samples is zero up to rounding: no direction.
        of_class = of_class * (of_class.sum(0) < weights.sum())
    prototypes = of_class.T @ h / of_class.sum(0).clamp(min=1.0).unsqueeze(-1)
    return (unit(h) @ unit(prototypes).T).view(member.shape)


class CategoryPrototypeDistillation(nn.Module):
    """CPD as a Module without parameters; see `category_prototype_distillation`.

    Args:
        num_classes: K; 2 for yes/no questions.
        center: subtract each side's mean first.
    """

    def __init__(self, num_classes: int, *, center: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.center = center

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        teacher_prototypes: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> Tensor:
        """Return the loss, a scalar, of representations (N, D) and (N, E) and labels (N,) or
        (N, Q). The other arguments are as in `category_prototype_distillation`.
        """
        return category_prototype_distillation(
            student,
            teacher,
            labels,
            self.num_classes,
            center=self.center,
            teacher_prototypes=teacher_prototypes,
            counted=counted,
        )

    def extra_repr(self) -> str:
        """Return the options, for print()."""
        return f"num_classes={self.num_classes}, center={self.center}"
