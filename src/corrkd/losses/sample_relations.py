"""Sample relations: SCD's correlations across samples as cosines within each side, which need no
common axes of student and teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corrkd.losses._shared import check_labels, check_rows, full_precision, no_autocast, unit


def sample_relation_distillation(
    student: Tensor, teacher: Tensor, answered_by: Tensor | None = None, *, center: bool = True
) -> Tensor:
    r"""The student's samples are to each other as the teacher's are (as in Peng et al.,
    "Correlation Congruence for Knowledge Distillation", ICCV 2019, with cosines).

    .. math:: L = \frac{1}{|P|} \sum_{(i, j) \in P} (\cos(H^s_i, H^s_j) - \cos(H^t_i, H^t_j))^2

    over the pairs P of different samples of which one teacher made both representations. CorrKD's
    SCD compares the student's samples with the teacher's in one space and pushes all others away,
    those of the same class too; here each side is compared with itself.

    Args:
        student: (N, D) representations of the incomplete samples, N >= 1.
        teacher: (N, E) representations of the same samples, complete. Not detached: gradients flow
            wherever they are required.
        answered_by: (N,) integers, which of several teachers made a row; None: one made all.
        center: subtract the student's mean over the batch first: pooled, normed representations
            have one large part in common, and their cosines are all near 1. Center the teacher's
            before, by the mean of the teacher that made them over all its samples.

    Returns:
        A scalar in [0, 4], float32 (float64 where an input is): computed in full precision also
            under autocast. 0 where there is no pair.
        The cosine of a zero vector is 0.

    Raises:
        ValueError: for shapes or dtypes that do not fit.

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
    """Sample relations as a Module; see `sample_relation_distillation`. It has no parameters.

    Args:
        center: subtract the student's mean first.
    """

    def __init__(self, *, center: bool = True) -> None:
        super().__init__()
        self.center = center

    def forward(
        self, student: Tensor, teacher: Tensor, answered_by: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar, of representations (N, D) and (N, E)."""
        return sample_relation_distillation(student, teacher, answered_by, center=self.center)

    def extra_repr(self) -> str:
        """The options, for print()."""
        return f"center={self.center}"
