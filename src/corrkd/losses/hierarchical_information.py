"""Hierarchical mutual information (HMI): at each scale, the student's representations tell all they
can of the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from corrkd.losses._shared import check_scales
from corrkd.losses.critics import ConcatCritic, Critic
from corrkd.losses.response_disentangled import jensen_shannon_information


def hierarchical_information(
    student: Sequence[Tensor], teacher: Sequence[Tensor], critics: Sequence[Critic]
) -> Tensor:
    r"""HMI of a batch (Li et al., "Toward Robust Incomplete Multimodal Sentiment Analysis via
    Hierarchical Representation Learning", NeurIPS 2024, "Hierarchical Mutual Information
    Maximization").

    .. math:: L = - \sum_i J(E^t_i; E^s_i)

    where J is `corrkd.losses.jensen_shannon_information`, as in CorrKD's RCD, and i runs over the
    scales.

    Args:
        student: (N, D_i) representations E^s_i of the incomplete samples at each scale, N >= 1.
        teacher: (N, B_i) representations E^t_i of the same samples, complete. Not detached:
            gradients flow wherever they are required.
        critics: one for each scale, which takes (teacher's, student's) of shape (M, B_i) and (M,
            D_i) and returns (M,).

    Returns:
        A scalar >= 0, float32 (float64 where an input is): computed in full precision also under
        autocast. log 4 = 1.39 for each scale is the value of critics that tell nothing. At N = 1
        there is no mismatched pair, and it is 0, with gradients of zero.

    Raises:
        ValueError: for shapes or dtypes that do not fit, or another number of scales on either
            side.

    Examples:
        >>> import torch
        >>> from corrkd.losses import hierarchical_information
        >>> student = torch.randn(8, 6), torch.randn(8, 2)
        >>> teacher = torch.randn(8, 6), torch.randn(8, 2)
        >>> indifferent = lambda teacher, student: torch.zeros(len(teacher))
        >>> hierarchical_information(student, teacher, [indifferent, indifferent])
        tensor(2.7726)
    """
    check_scales(student, teacher, len(critics), same_widths=False)
    scales = zip(critics, teacher, student, strict=True)
    return -torch.stack([jensen_shannon_information(critic, t, s) for critic, t, s in scales]).sum()


class HierarchicalInformation(nn.Module):
    """HMI as a Module with a critic for each scale, trained along with the student; see
    `hierarchical_information`.

    Args:
        student_widths: D_i, by scale.
        teacher_widths: B_i, by scale.
        hidden: hidden units of each critic.
        generator: where the critics' starting values come from; None: torch's global generator, so
            seed that (`torch.manual_seed`).

    Raises:
        ValueError: there is no scale, or another number of them on either side.
    """

    def __init__(
        self,
        student_widths: Sequence[int],
        teacher_widths: Sequence[int],
        *,
        hidden: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(student_widths) != len(teacher_widths) or not student_widths:
            raise ValueError(
                "needs as many scales of the student as of the teacher, but there are "
                f"{len(student_widths)} and {len(teacher_widths)}"
            )
        widths = zip(teacher_widths, student_widths, strict=True)
        self.critics = nn.ModuleList(
            ConcatCritic(t, s, hidden, generator=generator) for t, s in widths
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss, a scalar, of representations (N, D_i) and (N, B_i) at each scale."""
        return hierarchical_information(student, teacher, list(self.critics))
