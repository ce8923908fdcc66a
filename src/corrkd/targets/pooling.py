"""Weights for combining the responses of several networks, fitted on samples that none of them was
trained on.

*Probabilities*: a logarithmic opinion pool, softmax(sum of w_f log p_f) with w_f >= 0 (Heskes,
Selecting Weighting Factors in Logarithmic Opinion Pools, NIPS 1997). The weights need not sum to 1,
so they set the temperature too. *Scores*: a weighted mean. Fitted out of fold, this is stacking
(Wolpert, Neural Networks 1992; with weights >= 0: Breiman, Machine Learning 1996).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from corrkd.targets.calibration import LOWEST

HIGHEST = 1 / LOWEST  # a weight is the reciprocal of a temperature


def fit_log_pool(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the weights that maximise the likelihood of the targets under softmax(sum of w_f log
    p_f).

    Args:
        logits: (F, N, K), or (F, N, Q, 2) for yes/no questions, which share the weights.
        targets: (N,) classes or (N, Q) answers.

    Returns:
        (F,), each between 0 and 20. The loss is convex in them.
    """
    from scipy.optimize import minimize  # imported here: networks need targets, but not fits

    flat = logits.detach().cpu().double().log_softmax(-1).flatten(1, -2)
    labels = targets.flatten().cpu()

    def loss_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        loss = cross_entropy(torch.einsum("f,fnk->nk", weights, flat), labels)
        (gradient,) = torch.autograd.grad(loss, weights)
        return loss.item(), gradient.numpy()

    start, bounds = np.full(len(flat), 1 / len(flat)), [(0.0, HIGHEST)] * len(flat)
    fitted = minimize(loss_and_gradient, start, jac=True, bounds=bounds, method="L-BFGS-B")
    return torch.as_tensor(fitted.x)


def log_pool(logits: Tensor, weights: Tensor) -> Tensor:
    """Return the pooled logits, the sum of w_f log p_f: (F, N, ..., K), (F,) -> (N, ..., K)."""
    pooled = torch.einsum("f,f...->...", weights.to(logits.device), logits.double().log_softmax(-1))
    return pooled.to(logits.dtype)


def fit_weighted_mean(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the weights of the weighted mean of scores that is closest to the targets (least
    squares).

    Args:
        scores: (F, N, 1).
        targets: (N,).

    Returns:
        (F,), each at least 0, with sum 1.
    """
    from scipy.optimize import minimize

    every = scores.detach().cpu().double()[..., 0].numpy()
    truth = targets.cpu().double().numpy()
    scale = max(float(np.abs(every - truth).max()), np.finfo(float).tiny)

    def loss_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        errors = (weights @ every - truth) / scale
        return float(np.mean(errors**2)), 2 * (every / scale) @ errors / len(truth)

    fitted = minimize(
        loss_and_gradient,
        np.full(len(every), 1 / len(every)),
        jac=True,
        bounds=[(0.0, 1.0)] * len(every),
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        method="SLSQP",
    )
    weights = np.clip(fitted.x, 0.0, None)
    return torch.as_tensor(weights / weights.sum())
