"""Hierarchical mutual information (HMI): at each scale, the student's representations should share
as much information as possible with the teacher's.
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
    r"""Return the HMI loss of a batch (Li et al., "Toward Robust Incomplete Multimodal Sentiment
    Analysis via Hierarchical Representation Learning", NeurIPS 2024, "Hierarchical Mutual
    Information Maximization").

    .. math:: L = - \sum_i J(E^t_i; E^s_i)

    where J is `corrkd.losses.jensen_shannon_information`, as in CorrKD's RCD, and i runs over the
    scales.

    Args:
        student: (N, D_i) representations E^s_i of the incomplete samples at each scale, N >= 1.
        teacher: (N, B_i) representations E^t_i of the same samples, complete. Not detached:
            gradients flow to it if it requires them.
        critics: one per scale, called with the teacher's (M, B_i) and the student's (M, D_i);
            returns (M,).

    Returns:
        A scalar >= 0, float32 (float64 if an input is), computed in full precision even under
        autocast. Uninformative critics give log 4 = 1.39 per scale. At N = 1 there is no mismatched
        pair, and the loss and its gradients are 0.

    Raises:
        ValueError: if a shape or dtype is wrong, or the numbers of scales and critics differ or are
            0.

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
    """HMI as a Module with one critic per scale, trained along with the student; see
    `hierarchical_information`.

    Args:
        student_widths: D_i, by scale.
        teacher_widths: B_i, by scale.
        hidden: hidden units of each critic.
        generator: draws the initial parameters; None: torch's global one (`torch.manual_seed`).

    Raises:
        ValueError: if there is no scale, or the numbers of scales differ.
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
