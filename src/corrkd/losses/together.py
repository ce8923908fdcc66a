"""The three losses of CorrKD as one Module, for training loops of other libraries."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from corrkd.losses.category_prototype import CategoryPrototypeDistillation
from corrkd.losses.response_disentangled import ResponseDisentangledConsistency
from corrkd.losses.sample_contrastive import SampleContrastiveDistillation

TERMS = ("scd", "cpd", "rcd")


class CorrKDLoss(nn.Module):
    """The weighted sum of CorrKD's distillation losses (Li et al., CVPR 2024).

    .. math:: L = w_{scd} L_{SCD} + w_{cpd} L_{CPD} + w_{rcd} L_{RCD}

    The task loss is not included: add one, such as the cross-entropy of the student's logits. RCD's
    two critics have parameters, so pass `parameters()` to the optimizer along with the student's. A
    loss with weight 0 is not computed.

    Args:
        num_classes: K >= 2 (K >= 1 without RCD); 2 for yes/no questions.
        weights: by "scd", "cpd", "rcd", each >= 0; a missing one is 1 [open: the paper reports
            none].
        boundary: eta of SCD [paper: 1.2 on MOSI, 1.0 on MOSEI, 1.4 on IEMOCAP].
        critic_hidden: hidden units of each critic of RCD.
        generator: draws the critics' initial parameters; None: torch's global one.

    Raises:
        ValueError: if a weight is unknown, negative or not finite, or a loss refuses the number of
            classes or the boundary.

    Examples:
        >>> import torch
        >>> from corrkd.losses import CorrKDLoss
        >>> loss = CorrKDLoss(num_classes=3, weights={"scd": 0.5})
        >>> student, teacher, labels = torch.randn(8, 16), torch.randn(8, 16), torch.arange(8) % 3
        >>> total, parts = loss(student, student[:, :3], teacher, teacher[:, :3], labels)
        >>> sorted(parts)
        ['cpd', 'rcd', 'scd']
    """

    def __init__(
        self,
        num_classes: int,
        *,
        weights: Mapping[str, float] | None = None,
        boundary: float = 1.2,
        critic_hidden: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        weights = weights or {}
        for name, weight in weights.items():
            if name not in TERMS:
                raise ValueError(f"weights: unknown loss {name!r}; available: {', '.join(TERMS)}")
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weights: {name} must be a number from 0 up, but it is {weight}")
        self.weights = {name: float(weights.get(name, 1.0)) for name in TERMS}
        self.scd = SampleContrastiveDistillation(boundary) if self.weights["scd"] else None
        self.cpd = CategoryPrototypeDistillation(num_classes) if self.weights["cpd"] else None
        self.rcd = (
            ResponseDisentangledConsistency(num_classes, hidden=critic_hidden, generator=generator)
            if self.weights["rcd"]
            else None
        )

    def forward(
        self,
        student_representation: Tensor,
        student_logits: Tensor,
        teacher_representation: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum, a scalar, and each loss without its weight.

        The teacher is not detached: run it under `torch.no_grad()`. All samples of a batch are
        compared with one another, so if a batch is split over processes, gather the arguments first
        (with gradients for the student's).

        Args:
            student_representation: (N, D) of the incomplete samples, N >= 1.
            student_logits: (N, K), or (N, Q, 2) for Q yes/no questions.
            teacher_representation: (N, D) of the same samples, complete; (N, E) if SCD has weight
                0.
            teacher_logits: the same shape as the student's.
            labels: (N,) classes in 0 ... K - 1, or (N, Q) answers.

        Returns:
            The sum, and {"scd": ..., "cpd": ..., "rcd": ...}, detached, without losses of weight 0:
            float32 scalars (float64 if an input is).

        Raises:
            ValueError: if a shape or dtype is wrong.
        """
        parts: dict[str, Tensor] = {}
        if self.scd is not None:
            parts["scd"] = self.scd(student_representation, teacher_representation)
        if self.cpd is not None:
            parts["cpd"] = self.cpd(student_representation, teacher_representation, labels)
        if self.rcd is not None:
            parts["rcd"] = self.rcd(student_logits, teacher_logits, labels)
        terms = [self.weights[name] * value for name, value in parts.items()]
        total = torch.stack(terms).sum() if terms else student_logits.sum() * 0.0
        return total, {name: value.detach() for name, value in parts.items()}

    def extra_repr(self) -> str:
        """Return the weights, for print()."""
        return f"weights={self.weights}"
