"""Sample relations: SCD's correlations across samples as cosines within each side, so that student
and teacher need no common axes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corrkd.losses._shared import check_labels, check_rows, full_precision, no_autocast, unit


def sample_relation_distillation(
    student: Tensor, teacher: Tensor, answered_by: Tensor | None = None, *, center: bool = True
) -> Tensor:
    r"""Return the mean squared difference between student and teacher in the cosines of pairs of
    samples (after Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019).

    .. math:: L = \frac{1}{|P|} \sum_{(i, j) \in P} (\cos(H^s_i, H^s_j) - \cos(H^t_i, H^t_j))^2

    over the pairs P of different samples with representations from the same teacher. CorrKD's SCD
    compares the student's samples with the teacher's in one space and pushes all different samples
    apart, even within a class; here each side is compared only with itself.

    Args:
        student: (N, D) representations of the incomplete samples, N >= 1.
        teacher: (N, E) representations of the same samples, complete. Not detached: gradients flow
            to it if it requires them.
        answered_by: (N,) integers, index of the teacher that produced each row; None: one teacher
            for all.
        center: subtract the student's mean over the batch first: pooled, normalised representations
            share one large component, so that all their cosines are near 1. Center the teacher's
            representations beforehand, by each teacher's mean over all of its samples.

    Returns:
        A scalar in [0, 4], float32 (float64 if an input is), computed in full precision even under
        autocast; 0 if there is no pair. The cosine of a zero vector is 0.

    Raises:
        ValueError: if a shape or dtype is wrong.

    Examples:
        >>> import torch
        >>> from corrkd.losses import sample_relation_distillation
        >>> teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        >>> turned_and_stretched = teacher @ torch.tensor([[0.0, -2.0], [2.0, 0.0]])
        >>> sample_relation_distillation(turned_and_stretched, teacher)
        tensor(0.)
    """
    check_rows(student, teacher)
    n = len(student)
    pairs = ~torch.eye(n, dtype=torch.bool, device=student.device)
    if answered_by is not None:
        check_labels(answered_by, (n,))
        pairs = pairs & (answered_by[:, None] == answered_by[None, :])
    with no_autocast(student):
        student, teacher = full_precision(student, teacher)
        student_directions, teacher_directions = (
            unit(student - student.mean(0) if center else student),
            unit(teacher),
        )
        difference = (
            student_directions @ student_directions.T - teacher_directions @ teacher_directions.T
        ).masked_fill(~pairs, 0.0)
        return difference.square().sum() / pairs.sum().clamp(min=1)


class SampleRelationDistillation(nn.Module):
    """Sample relations as a Module without parameters; see `sample_relation_distillation`.

    Args:
        center: subtract the student's mean first.
    """

    def __init__(self, *, center: bool = True) -> None:
        super().__init__()
        self.center = center

    def forward(
        self, student: Tensor, teacher: Tensor, answered_by: Tensor | None = None
    ) -> Tensor:
        """Return the loss, a scalar, of representations (N, D) and (N, E)."""
        return sample_relation_distillation(student, teacher, answered_by, center=self.center)

    def extra_repr(self) -> str:
        """Return the options, for print()."""
        return f"center={self.center}"
