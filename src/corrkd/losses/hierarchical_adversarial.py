"""Hierarchical adversarial learning (HAL): at each scale, a discriminator should not be able to
distinguish the student's representations from the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from corrkd.losses._shared import check_scales, full_precision, no_autocast
from corrkd.losses.critics import Discriminator


def hierarchical_adversarial(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    discriminators: Sequence[Discriminator],
    *,
    nonsaturating: bool = False,
) -> Tensor:
    r"""Return the HAL loss of a batch (Li et al., "Toward Robust Incomplete Multimodal Sentiment
    Analysis via Hierarchical Representation Learning", NeurIPS 2024, "Hierarchical Adversarial
    Learning").

    .. math:: \min_{student} \max_{De} V,
        \qquad V = \sum_i E[\log(1 - De_i(E^s_i))] + E[\log De_i(E^t_i)]

    Both players are trained in one step by one optimiser, which minimises a single number. Its
    value is -V, the cross-entropy of the discriminators, which learn on detached representations of
    the student. The student's term, computed by discriminators without parameter gradients, is
    added and its value subtracted again. Minimising this is the minimax game with simultaneous
    steps, as with a gradient reversal layer (Ganin and Lempitsky, ICML 2015). It uses only plain
    operations, so `torch.func.vmap` needs no rule for them, and the student's term need not be the
    negated loss of the discriminators.

    Args:
        student: (N, D_i) representations E^s_i of the incomplete samples at each scale, N >= 1.
        teacher: (N, D_i) representations E^t_i of the same samples, complete. Not detached:
            gradients of the discriminators' loss flow to it if it requires them.
        discriminators: one per scale, each returning the logit of De [open: the paper names a
            single De].
        nonsaturating: the student maximises log De(E^s) instead of minimising log(1 - De(E^s))
            (Goodfellow et al., NeurIPS 2014): the same aim, with a gradient even if the
            discriminator is certain [ours].

    Returns:
        A scalar >= 0, float32 (float64 if an input is), computed in full precision even under
        autocast. Each scale adds log 4 = 1.39 if the two sides cannot be distinguished, 0 if they
        always can.

    Raises:
        ValueError: if a shape or dtype is wrong, or the numbers of scales and discriminators differ
            or are 0.

    Examples:
        >>> import torch
        >>> from corrkd.losses import Discriminator, hierarchical_adversarial
        >>> undecided = Discriminator(3)
        >>> for parameter in undecided.parameters():
        ...     _ = parameter.data.zero_()
        >>> hierarchical_adversarial([torch.randn(8, 3)], [torch.randn(8, 3)], [undecided]).detach()
        tensor(1.3863)
    """
    check_scales(student, teacher, len(discriminators), same_widths=True)
    losses = []
    for discriminator, s, t in zip(discriminators, student, teacher, strict=True):
        with no_autocast(s):
            s, t = full_precision(s, t)
            # log De = logsigmoid(logit) and log(1 - De) = logsigmoid(-logit), but never log 0.
            discrimination = -(
                logsigmoid(-discriminator(s.detach())) + logsigmoid(discriminator(t))
            ).mean()
            logit = discriminator(s, frozen=True)
            misled = (-logsigmoid(logit) if nonsaturating else logsigmoid(-logit)).mean()
            losses.append(discrimination + misled - misled.detach())
    return torch.stack(losses).sum()


class HierarchicalAdversarial(nn.Module):
    """HAL as a Module with one discriminator per scale, trained along with the student; see
    `hierarchical_adversarial`.

    Args:
        widths: D_i, by scale.
        hidden: hidden units of each discriminator.
        nonsaturating: the student maximises log De.
        generator: draws the initial parameters; None: torch's global one (`torch.manual_seed`).

    Raises:
        ValueError: if there is no scale.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        hidden: int = 64,
        nonsaturating: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError("needs at least one scale")
        self.nonsaturating = nonsaturating
        self.discriminators = nn.ModuleList(
            Discriminator(width, hidden, generator=generator) for width in widths
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss, a scalar, of representations (N, D_i) at each scale."""
        discriminators: list[Discriminator] = list(self.discriminators)  # type: ignore[arg-type]
        return hierarchical_adversarial(
            student, teacher, discriminators, nonsaturating=self.nonsaturating
        )

    def extra_repr(self) -> str:
        """Return the options, for print()."""
        return f"nonsaturating={self.nonsaturating}"
