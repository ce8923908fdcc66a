"""Decoupled divergence of responses: RCD's two parts, the target response and the others, each
drawn to the teacher's by a divergence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corrkd.losses._shared import check_labels, check_pair, full_precision, no_autocast


def decoupled_divergence(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, nontarget: float = 1.0
) -> Tensor:
    r"""Divergence of the student's response from the teacher's, target and non-targets apart (Zhao
    et al., "Decoupled Knowledge Distillation", CVPR 2022).

    .. math:: L = \frac{1}{N} \sum_i KL(b^t_i \,\|\, b^s_i) + w\, KL(n^t_i \,\|\, n^s_i)

    With the response R = softmax(logits) and the label y_i, b = (R[y], 1 - R[y]) says how sure one
    is of the label and n, the other K - 1 responses divided by their sum, how the rest is shared
    out. The plain divergence is the same with w = 1 - R^t[y_i]: where the teacher is sure, it hears
    nothing of the non-targets. CorrKD's RCD splits the response in the same way and maximises
    mutual information instead, which ties the student's numbers to no value.

    Args:
        student_logits: (N, K), K >= 2, N >= 1; or (N, Q, 2) of Q yes/no questions, for which the
            loss is the mean over the questions.
        teacher_logits: of the same shape. Not detached: gradients flow wherever they are required.
        labels: (N,) classes in 0 ... K - 1, or (N, Q) answers. The range is not checked, since that
            would wait for the device.
        nontarget: w >= 0. With K = 2 nothing is left to share out, and the second divergence is 0.

    Returns:
        A scalar >= 0, float32 (float64 where an input is): computed in full precision also under
        autocast. 0 where both respond alike.

    Raises:
        ValueError: for shapes or dtypes that do not fit, or a negative weight.

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
    """Logarithms of (R[y], 1 - R[y]) and of the other responses divided by their sum: (..., 2) and
    (..., K - 1).
    """
    rest = logits.gather(-1, others)
    both = torch.cat([logits.gather(-1, label), rest.logsumexp(-1, keepdim=True)], -1)
    return both.log_softmax(-1), rest.log_softmax(-1)


def _divergence(of: Tensor, other: Tensor) -> Tensor:
    """KL from log-probabilities, over the last axis."""
    return (of.exp() * (of - other)).sum(-1)


class DecoupledDivergence(nn.Module):
    """The decoupled divergence as a Module; see `decoupled_divergence`. It has no parameters.

    Args:
        nontarget: w, the weight of the non-target part.
    """

    def __init__(self, nontarget: float = 1.0) -> None:
        super().__init__()
        _check_weight(nontarget)
        self.nontarget = nontarget

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar, of logits (N, K) and labels (N,), or (N, Q, 2) and (N, Q)."""
        return decoupled_divergence(
            student_logits, teacher_logits, labels, nontarget=self.nontarget
        )

    def extra_repr(self) -> str:
        """The options, for print()."""
        return f"nontarget={self.nontarget}"


def _check_weight(nontarget: float) -> None:
    if not nontarget >= 0:
        raise ValueError(f"nontarget must not be negative, but it is {nontarget}")
