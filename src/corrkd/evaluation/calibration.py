"""How sure a network may be: one temperature for its logits (Guo et al., On Calibration of Modern Neural Networks, ICML 2017)."""

from __future__ import annotations

import math

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

LOWEST, HIGHEST = 0.05, 20.0


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature T under which softmax(logits / T) makes the targets most likely. It changes no decision.

    Args:
        logits: (N, K), or (N, Q, 2) of yes/no questions, which share T. Of samples that the network was not trained on.
        targets: (N,) classes or (N, Q) answers.

    Returns:
        T between 0.05 and 20.
    """
    scores, labels = logits.detach().flatten(0, -2).cpu().double(), targets.flatten().cpu()

    def loss(log_temperature: float) -> float:
        return float(cross_entropy(scores / math.exp(log_temperature), labels))

    # In 1/T the loss is convex, so there is one minimum in log T too.
    found = minimize_scalar(loss, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded")
    return math.exp(float(found.x))
