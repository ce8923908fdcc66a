"""Response-disentangled consistency distillation (RCD): target and non-target response should each
share as much information as possible with the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from corrkd.losses._shared import check_labels, check_pair, full_precision, no_autocast
from corrkd.losses.critics import ConcatCritic, Critic


def jensen_shannon_information(critic: Critic, q: Tensor, u: Tensor) -> Tensor:
    r"""Return the Jensen-Shannon estimate of mutual information, up to a monotone map (Hjelm et
    al., "Deep InfoMax", ICLR 2019).

    .. math:: J(Q; U) = E_{joint}[-\mathrm{softplus}(-F(Q, U))]
        - E_{product}[\mathrm{softplus}(F(Q, U))]

    The joint distribution is estimated from the N pairs (q_i, u_i), the product of marginals from
    all N(N-1) pairs (q_i, u_j) with i != j [open: the choice with the lowest variance]. The maximum
    over critics is 2 JSD(joint, product) - log 4, at F = log p(q, u) / (p(q) p(u)).

    Args:
        critic: F, called once with (M, a) and (M, b), M = N^2; returns (M,). A `ConcatCritic`
            scores all pairs without storing N^2 (a + b) numbers.
        q: (N, a), N >= 1.
        u: (N, b), row i from the same sample as row i of q.

    Returns:
        A scalar <= 0, float32 (float64 if an input is), computed in full precision even under
        autocast. At N = 1 there is no mismatched pair, and the estimate and its gradients are 0.

    Raises:
        ValueError: if a shape or dtype of the inputs, or the shape of the critic's output, is
            wrong.
    """
    if q.ndim != 2 or u.ndim != 2 or len(q) != len(u) or len(q) == 0:
        raise ValueError(
            f"q and u must be (N, a) and (N, b) with N >= 1, but they are {tuple(q.shape)} and "
            f"{tuple(u.shape)}"
        )
    if not (q.is_floating_point() and u.is_floating_point()):
        raise ValueError(f"q and u must be floating point, but they are {q.dtype} and {u.dtype}")
    with no_autocast(q):
        q, u = full_precision(q, u)
        if isinstance(critic, ConcatCritic):
            return _estimate(critic.all_pairs(q, u).unsqueeze(0))
        return _information(critic, q.unsqueeze(0), u.unsqueeze(0))


def response_disentangled_consistency(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    target_critic: Critic,
    nontarget_critic: Critic,
    *,
    renormalize: bool = False,
) -> Tensor:
    """Return the RCD loss (Li et al., CVPR 2024, "Response-disentangled Consistency Distillation").

    .. math:: L = -J(T^t; T^s) - J(NT^t; NT^s)

    where J is `jensen_shannon_information`. The response R is softmax(logits), the target response
    T_i = R_i[y_i] is one number, and the non-target response NT_i is the other K - 1 in the order
    of the classes. Mismatched pairs are teacher i with student j.

    Args:
        student_logits: (N, K), K >= 2, N >= 1; or (N, Q, 2) for Q yes/no questions, over which the
            loss is averaged and which share the two critics [open].
        teacher_logits: the same shape. Not detached: gradients flow to it if it requires them.
        labels: (N,) classes y in 0 ... K - 1, or (N, Q) answers. The range is not checked (that
            would wait for the device).
        target_critic: called with the teacher's and the student's T, (M, 1) each; returns (M,).
        nontarget_critic: called with the teacher's and the student's NT, (M, K - 1) each; returns
            (M,).
        renormalize: divide NT by its sum, so that it is the distribution over the non-targets,
            independent of T [open: raw probabilities by default]. With K = 2, a renormalised NT is
            the constant 1; a raw NT is 1 - T, and the second term repeats the first.

    Returns:
        A scalar >= 0, float32 (float64 if an input is), computed in full precision even under
        autocast. Uninformative critics give 2 log 4 = 2.77. At N = 1 there is no mismatched pair,
        and the loss and its gradients are 0.

    Raises:
        ValueError: if a shape or dtype of the inputs, or the shape of a critic's output, is wrong.

    Examples:
        >>> import torch
        >>> from corrkd.losses import response_disentangled_consistency
        >>> student, teacher, labels = torch.randn(8, 3), torch.randn(8, 3), torch.arange(8) % 3
        >>> indifferent = lambda teacher, student: torch.zeros(len(teacher))
        >>> response_disentangled_consistency(student, teacher, labels, indifferent, indifferent)
        tensor(2.7726)
    """
    check_pair(student_logits, teacher_logits, "(N, K), or (N, Q, 2),", [2, 3])
    check_labels(labels, tuple(student_logits.shape[:-1]))
    if student_logits.shape[-1] < 2:
        raise ValueError(
            f"logits must be of at least 2 classes, but they are {tuple(student_logits.shape)}"
        )
    with no_autocast(student_logits):
        student_logits, teacher_logits = full_precision(student_logits, teacher_logits)
        target_s, nontarget_s = _disentangle(student_logits, labels, renormalize)
        target_t, nontarget_t = _disentangle(teacher_logits, labels, renormalize)
        return -_information(target_critic, target_t, target_s) - _information(
            nontarget_critic, nontarget_t, nontarget_s
        )


def _disentangle(logits: Tensor, labels: Tensor, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Return target response (Q, N, 1) and non-target response (Q, N, K - 1) of logits (N, K) or
    (N, Q, K); Q = 1 for classes.
    """
    n, k = len(logits), logits.shape[-1]
    logits = logits.reshape(n, -1, k).transpose(0, 1)
    label = labels.reshape(n, -1, 1).transpose(0, 1).long()
    other = torch.arange(k - 1, device=labels.device)
    others = other + (other >= label).long()
    response = logits.softmax(-1)
    nontarget = (
        logits.gather(-1, others).softmax(-1) if renormalize else response.gather(-1, others)
    )
    return response.gather(-1, label), nontarget


def _information(critic: Critic, q: Tensor, u: Tensor) -> Tensor:
    """Return J, averaged over G groups of N samples: (G, N, a) and (G, N, b) -> scalar."""
    g, n, _ = q.shape
    every_q = q.unsqueeze(2).expand(-1, -1, n, -1).reshape(g * n * n, -1)
    every_u = u.unsqueeze(1).expand(-1, n, -1, -1).reshape(g * n * n, -1)
    scores = critic(every_q, every_u)
    if scores.shape != (g * n * n,):
        raise ValueError(
            f"a critic must return (M,), here ({g * n * n},), but it returned {tuple(scores.shape)}"
        )
    return _estimate(scores.view(g, n, n))


def _estimate(scores: Tensor) -> Tensor:
    """Return J from the scores of all pairs, averaged over groups: (G, N, N) -> scalar."""
    g, n, _ = scores.shape
    if n == 1:
        # Still a function of the critic's parameters: with several processes, all must be used.
        return scores.sum() * 0.0
    same = torch.eye(n, dtype=torch.bool, device=scores.device)
    # -softplus(-F) = logsigmoid(F), which neither overflows nor rounds to zero.
    joint = logsigmoid(scores.diagonal(dim1=1, dim2=2)).mean()
    product = logsigmoid(-scores).masked_fill(same, 0.0).sum() / (g * n * (n - 1))
    return joint + product


class ResponseDisentangledConsistency(nn.Module):
    """RCD as a Module with its two critics, trained along with the student; see
    `response_disentangled_consistency`.

    Args:
        num_classes: K >= 2; 2 for yes/no questions.
        hidden: hidden units of each critic.
        renormalize: divide the non-target response by its sum.
        generator: draws the initial parameters; None: torch's global one (`torch.manual_seed`).

    Raises:
        ValueError: if num_classes < 2.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        hidden: int = 64,
        renormalize: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, not {num_classes}")
        self.renormalize = renormalize
        self.target_critic = ConcatCritic(1, 1, hidden, generator=generator)
        self.nontarget_critic = ConcatCritic(
            num_classes - 1, num_classes - 1, hidden, generator=generator
        )

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, a scalar, of logits (N, K) and labels (N,), or (N, Q, 2) and (N, Q)."""
        return response_disentangled_consistency(
            student_logits,
            teacher_logits,
            labels,
            self.target_critic,
            self.nontarget_critic,
            renormalize=self.renormalize,
        )

    def extra_repr(self) -> str:
        """Return the options, for print()."""
        return f"renormalize={self.renormalize}"
