"""Category-guided prototype distillation (CPD): the student's samples are as similar to each class
as the teacher's.
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
    r"""CPD of a batch (Li et al., CVPR 2024, "Category-guided Prototype Distillation").

    .. math:: L = \frac{1}{N K} \sum_i \sum_k (M^s_k(i) - M^t_k(i))^2, \quad M_k(i) = \cos(H_i, c_k)

    where the prototype c_k is the mean of H over the batch's samples of class k, the student's from
    H^s and the teacher's from H^t. Gradients flow through the student's prototypes too. Only angles
    count: rotating or scaling either side's representations changes nothing.

    Args:
        student: (N, D) representations H^s of the incomplete samples, N >= 1.
        teacher: (N, E) representations H^t of the same samples, complete. Not detached: gradients
            flow wherever they are required.
        labels: (N,) classes in 0 ... num_classes - 1, or (N, Q) answers to Q questions, for which
            the loss is the mean over the questions of its form for one. The range is not checked,
            since that would wait for the device: a sample whose label lies outside is in no
            prototype, but is compared with all; if all lie outside, it is NaN.
        num_classes: K >= 1; 2 for yes/no questions.
        center: subtract each side's mean over the batch first [ours: pooled, normed representations
            have one large part in common, and their cosines are all near 1].
        teacher_prototypes: (N, Q, K, E), Q = 1 for classes: the teacher's prototypes from
            elsewhere, as from the whole training split, each row those of the teacher that made its
            representation [ours: those of a batch are noisy]. They and `teacher` are then taken as
            they are, so center both by one mean before. A prototype of zeros is none: it is
            compared with nothing.
        counted: (N,) booleans: samples that take part; the others are in no mean and compared with
            nothing. None: all.

    Returns:
        A scalar in [0, 4], float32 (float64 where an input is): computed in full precision also
            under autocast. A class
        that is absent from the batch has no prototype: it is left out, and K counts the classes
            present [open]. The
        cosine of a zero vector is 0.

    Raises:
        ValueError: for shapes or dtypes that do not fit.

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
        # (N, Q, K); classes are one question. Comparing, unlike one_hot, needs no look at the
        # largest label.
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
    """Cosine of every sample with every prototype: (N, D), membership (N, Q, K) and who takes part
    (N,) -> (N, Q, K).
    """
    of_class = member.flatten(1).to(h.dtype)
    if center:
        h = h - weights @ h / weights.sum().clamp(min=1.0)
        # The mean of a class that holds the whole batch is zero but for rounding, which has no
        # direction.
        of_class = of_class * (of_class.sum(0) < weights.sum())
    prototypes = of_class.T @ h / of_class.sum(0).clamp(min=1.0).unsqueeze(-1)
    return (unit(h) @ unit(prototypes).T).view(member.shape)


class CategoryPrototypeDistillation(nn.Module):
    """CPD as a Module; see `category_prototype_distillation`. It has no parameters.

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
        """The loss, a scalar, of representations (N, D) and (N, E), labels (N,) or (N, Q),
        prototypes from elsewhere, and who counts.
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
        """The options, for print()."""
        return f"num_classes={self.num_classes}, center={self.center}"
