"""Decoupled divergence of responses: target and non-target response, split as in RCD, should each
match the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corrkd.losses._shared import check_labels, check_pair, full_precision, no_autocast


def decoupled_divergence(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, nontarget: float = 1.0
) -> Tensor:
    r"""Return the divergence of the student's response from the teacher's, separately for target
    and non-targets (Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022).

    .. math:: L = \frac{1}{N} \sum_i KL(b^t_i \,\|\, b^s_i) + w\, KL(n^t_i \,\|\, n^s_i)

    For the response R = softmax(logits) and the label y_i, b = (R[y], 1 - R[y]) is the confidence
    in the label, and n, the other K - 1 responses divided by their sum, is the distribution over
    the non-targets. The plain divergence is the case w = 1 - R^t[y_i]: a confident teacher then
    teaches nothing about the non-targets. CorrKD's RCD splits the response in the same way, but
    maximises mutual information, which does not tie the student's responses to the teacher's
    values.

    Args:
        student_logits: (N, K), K >= 2, N >= 1; or (N, Q, 2) for Q yes/no questions, over which the
            loss is averaged.
        teacher_logits: the same shape. Not detached: gradients flow to it if it requires them.
        labels: (N,) classes in 0 ... K - 1, or (N, Q) answers. The range is not checked (that would
            wait for the device).
        nontarget: w >= 0. With K = 2 there is only one non-target, and the second divergence is 0.

    Returns:
        A scalar >= 0, float32 (float64 if an input is), computed in full precision even under
        autocast; 0 if both responses are equal.

    Raises:
        ValueError: if a shape or dtype is wrong, or the weight is negative.

    Examples:
        >>> import torch
        >>> from corrkd.losses import decoupled_divergence
        >>> teacher, labels = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
        >>> even = torch.tensor([[2.0, 0.5, 0.5]])  # nearly as sure, the rest shared evenly
        >>> decoupled_divergence(even, teacher, labels)
        tensor(0.1125)
    """
    check_pair(student_logits, teacher_logits, "(N, K), or (N, Q, 2),", [2, 3])
    check_labels(labels, tuple(student_logits.shape[:-1]))
    classes = student_logits.shape[-1]
    if classes < 2:
        raise ValueError(
            f"logits must be of at least 2 classes, but they are {tuple(student_logits.shape)}"
        )
    _check_weight(nontarget)
    with no_autocast(student_logits):
        student, teacher = full_precision(student_logits, teacher_logits)
        label = labels.unsqueeze(-1).long()
        other = torch.arange(classes - 1, device=labels.device)
        others = other + (other >= label).long()
        target_s, rest_s = _parts(student, label, others)
        target_t, rest_t = _parts(teacher, label, others)
        return (_divergence(target_t, target_s) + nontarget * _divergence(rest_t, rest_s)).mean()


def _parts(logits: Tensor, label: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of (R[y], 1 - R[y]), (..., 2), and of the other responses divided by
    their sum, (..., K - 1).
    """
    rest = logits.gather(-1, others)
    both = torch.cat([logits.gather(-1, label), rest.logsumexp(-1, keepdim=True)], -1)
    return both.log_softmax(-1), rest.log_softmax(-1)


def _divergence(of: Tensor, other: Tensor) -> Tensor:
    """Return KL(of || other) over the last axis, from log-probabilities."""
    return (of.exp() * (of - other)).sum(-1)


class DecoupledDivergence(nn.Module):
    """The decoupled divergence as a Module without parameters; see `decoupled_divergence`.

    Args:
        nontarget: w, the weight of the non-target part.

    Raises:
        ValueError: if the weight is negative.
    """

    def __init__(self, nontarget: float = 1.0) -> None:
        super().__init__()
        _check_weight(nontarget)
        self.nontarget = nontarget

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (N, K) and labels (N,), or (N, Q, 2) and (N, Q)."""
        return decoupled_divergence(
            student_logits, teacher_logits, labels, nontarget=self.nontarget
        )

    def extra_repr(self) -> str:
        """Return the options, for print()."""
        return f"nontarget={self.nontarget}"


def _check_weight(nontarget: float) -> None:
    if not nontarget >= 0:
        raise ValueError(f"nontarget must not be negative, but it is {nontarget}")
