"""Sample-level contrastive distillation (SCD): pull student and teacher together for the same
sample, push them apart for different samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from corrkd.losses._shared import check_pair, full_precision, no_autocast, safe_sqrt, unit

REDUCTIONS = ("mean", "sum")
BLOCK = 1 << 24  # N x N x D differences per block: 64 MB in float32


def sample_contrastive_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    boundary: float,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    r"""Return the SCD loss (Li et al., CVPR 2024, "Sample-level Contrastive Distillation").

    .. math:: L = \sum_i \sum_{j \ne i} D(H^s_i, H^t_i)^2 + \max(0, \eta - D(H^s_i, H^t_j))^2,
        \quad D(a, b) = \|a - b\|_2

    Each student representation is pulled towards the teacher's of the same sample, and pushed at
    least the boundary away from the teacher's of every other sample. If two representations
    coincide, their distance has no gradient; it is taken to be zero. The loss is twice
    differentiable. Its memory is bounded: more than 2^24 differences are computed in blocks, and
    again in the backward pass.

    Args:
        student: (N, D) representations H^s of the incomplete samples, N >= 1.
        teacher: (N, D) representations H^t of the same samples, complete. Not detached: gradients
            flow to it if it requires them.
        boundary: eta > 0, the distance beyond which different samples are not pushed apart. Unit
            vectors are at most 2 apart.
        normalize: divide each representation by its length first [open: with raw representations,
            the paper's eta of 1.0 to 1.4 rarely matters]. A zero vector stays zero.
        reduction: "sum" is the formula; "mean" divides it by its N(N-1) pairs [open: the sum grows
            with N^2].

    Returns:
        A scalar >= 0, float32 (float64 if an input is), computed in full precision even under
        autocast. At N = 1 there is no other sample: "mean" is the pull alone, "sum" is 0.

    Raises:
        ValueError: if a shape or dtype is wrong, the boundary is not positive, or the reduction is
            unknown.

    Examples:
        >>> import torch
        >>> from corrkd.losses import sample_contrastive_distillation
        >>> student, teacher = torch.eye(3), torch.eye(3)  # at right angles: 1.41 apart
        >>> sample_contrastive_distillation(student, teacher, boundary=1.2)
        tensor(0.)
    """
    check_pair(student, teacher, "(N, D)", [2])
    _check_options(boundary, reduction)
    with no_autocast(student):
        student, teacher = full_precision(student, teacher)
        if normalize:
            student, teacher = unit(student), unit(teacher)
        n = len(student)
        pairs = n * (n - 1)
        pull = (student - teacher).square().sum(-1).mean()
        push = _push(student, teacher, boundary) / max(pairs, 1)
        return pull + push if reduction == "mean" else (pull + push) * pairs


class SampleContrastiveDistillation(nn.Module):
    """SCD as a Module without parameters; see `sample_contrastive_distillation`.

    Args:
        boundary: eta [paper: 1.2 on MOSI, 1.0 on MOSEI, 1.4 on IEMOCAP].
        normalize: use unit vectors.
        reduction: "mean" or "sum".

    Raises:
        ValueError: if the boundary is not positive, or the reduction is unknown.
    """

    def __init__(
        self, boundary: float = 1.2, normalize: bool = True, reduction: str = "mean"
    ) -> None:
        super().__init__()
        _check_options(boundary, reduction)
        self.boundary = boundary
        self.normalize = normalize
        self.reduction = reduction

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss, a scalar, of representations (N, D)."""
        return sample_contrastive_distillation(
            student,
            teacher,
            boundary=self.boundary,
            normalize=self.normalize,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options, for print()."""
        return f"boundary={self.boundary}, normalize={self.normalize}, reduction={self.reduction!r}"


def _push(student: Tensor, teacher: Tensor, boundary: float) -> Tensor:
    """Return the sum over i and j != i of max(0, boundary - D(student_i, teacher_j))^2, in blocks
    of rows.
    """
    rows = torch.arange(len(student), device=student.device)
    count = max(1, BLOCK // teacher.numel())
    if count >= len(student):
        return _push_of_rows(student, teacher, rows, boundary)
    blocks = zip(student.split(count), rows.split(count), strict=True)
    sums = [
        checkpoint(_push_of_rows, s, teacher, r, boundary, use_reentrant=False) for s, r in blocks
    ]
    return torch.stack(sums).sum()


def _push_of_rows(student: Tensor, teacher: Tensor, rows: Tensor, boundary: float) -> Tensor:
    # Not as a^2 - 2ab + b^2: cancellation would spoil short distances.
    distance = safe_sqrt((student[:, None] - teacher).square().sum(-1))
    same = rows[:, None] == torch.arange(len(teacher), device=rows.device)
    return (boundary - distance).relu().square().masked_fill(same, 0.0).sum()


def _check_options(boundary: float, reduction: str) -> None:
    if not boundary > 0:
        raise ValueError(f"boundary must be greater than 0, not {boundary}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
