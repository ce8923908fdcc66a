"""Reconstruction of factorised representations (HRLF's FRF): each modality should be decodable from
shared and modality-specific parts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corrkd.losses._shared import full_precision, no_autocast

REDUCTIONS = ("mean", "sum")


def factorisation_reconstruction(
    encoded: Tensor,
    decoded: Tensor,
    relevant: Tensor,
    recovered: Tensor,
    *,
    reduction: str = "mean",
    detach: bool = True,
) -> Tensor:
    r"""Return the loss of HRLF's fine-grained representation factorisation for a batch (Li et al.,
    "Toward Robust Incomplete Multimodal Sentiment Analysis via Hierarchical Representation
    Learning", NeurIPS 2024, "Fine-grained Representation Factorization").

    .. math:: L = \frac{1}{n} \sum_a \|Z_{aa} - Z_a\|^2
        + \frac{1}{n^2 - n} \sum_a \sum_{b \ne a} \|Z_{ab} - Z_b\|^2
        + \frac{1}{n^2} \sum_a \sum_b \|Q_{ba} - Q_a\|^2

    averaged over samples, where Z_ab = D(Q_a, U_b) is decoded from the sentiment-relevant part Q_a
    of modality a and the modality-specific part U_b of modality b, and Q_ba is the
    sentiment-relevant part of Z_ba. So each modality can be decoded from its specific part and the
    sentiment of any modality, and the sentiment can be recovered from the decoded vector.

    Args:
        encoded: (N, n, D) vectors Z of n modalities, N >= 1.
        decoded: (N, n, n, D), Z_ab at [:, a, b].
        relevant: (N, n, E) parts Q.
        recovered: (N, n, n, E), Q_ba at [:, b, a].
        reduction: "sum" is the formula, with squared lengths; "mean" divides them by D or E [open:
            the sum grows with the width].
        detach: the targets, `encoded` and `relevant`, get no gradient [open]. Otherwise training
            soon finds a trivial minimum: equal vectors for all samples.

    Returns:
        A scalar >= 0, float32 (float64 if an input is), computed in full precision even under
        autocast. With a single modality the second sum is left out.

    Raises:
        ValueError: if a shape or dtype is wrong, or the reduction is unknown.

    Examples:
        >>> import torch
        >>> from corrkd.losses import factorisation_reconstruction
        >>> encoded, relevant = torch.ones(4, 2, 6), torch.ones(4, 2, 3)
        >>> decoded = torch.zeros(4, 2, 2, 6)  # nothing is decoded
        >>> recovered = torch.ones(4, 2, 2, 3)
        >>> factorisation_reconstruction(encoded, decoded, relevant, recovered)
        tensor(2.)
    """
    _check_reduction(reduction)
    if (
        encoded.ndim != 3
        or relevant.ndim != 3
        or encoded.shape[:2] != relevant.shape[:2]
        or not encoded.numel() * relevant.numel()
    ):
        raise ValueError(
            "encoded and relevant must be (N, n, D) and (N, n, E) with N, n >= 1, but they are "
            f"{tuple(encoded.shape)} and {tuple(relevant.shape)}"
        )
    for name, of_pair, of_modality in (
        ("decoded", decoded, encoded),
        ("recovered", recovered, relevant),
    ):
        samples, count, width = of_modality.shape
        if of_pair.shape != (expected := (samples, count, count, width)):
            raise ValueError(f"{name} must be {expected}, but it is {tuple(of_pair.shape)}")
    if not all(x.is_floating_point() for x in (encoded, decoded, relevant, recovered)):
        raise ValueError("encoded, decoded, relevant and recovered must be floating point")
    with no_autocast(encoded):
        encoded, decoded, relevant, recovered = full_precision(
            encoded, decoded, relevant, recovered
        )
        if detach:
            encoded, relevant = encoded.detach(), relevant.detach()
        count = encoded.shape[1]
        same = torch.eye(count, dtype=torch.bool, device=encoded.device)
        of_vectors = _errors(decoded, encoded, reduction)
        itself = of_vectors.masked_fill(~same, 0.0).sum() / count
        cross = of_vectors.masked_fill(same, 0.0).sum() / max(count * (count - 1), 1)
        return itself + cross + _errors(recovered, relevant, reduction).mean()


def _errors(of_pair: Tensor, of_modality: Tensor, reduction: str) -> Tensor:
    """Return the squared errors of each pair of modalities against the vectors of its second
    modality, averaged over samples: (N, n, n, D) and (N, n, D) -> (n, n).
    """
    squares = (of_pair - of_modality[:, None]).square()
    return (squares.mean(-1) if reduction == "mean" else squares.sum(-1)).mean(0)


class FactorisationReconstruction(nn.Module):
    """The reconstruction loss as a Module without parameters; see `factorisation_reconstruction`.

    Args:
        reduction: "mean" or "sum".
        detach: the targets get no gradient.

    Raises:
        ValueError: if the reduction is unknown.
    """

    def __init__(self, reduction: str = "mean", *, detach: bool = True) -> None:
        super().__init__()
        _check_reduction(reduction)
        self.reduction = reduction
        self.detach = detach

    def forward(
        self, encoded: Tensor, decoded: Tensor, relevant: Tensor, recovered: Tensor
    ) -> Tensor:
        """Return the loss, a scalar, of (N, n, D), (N, n, n, D), (N, n, E) and (N, n, n, E)."""
        return factorisation_reconstruction(
            encoded, decoded, relevant, recovered, reduction=self.reduction, detach=self.detach
        )

    def extra_repr(self) -> str:
        """Return the options, for print()."""
        return f"reduction={self.reduction!r}, detach={self.detach}"


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
