"""Temperature scaling of class probabilities, and prediction sets.

The *temperature* is a number by which logits are divided (Guo et al., On Calibration of Modern
Neural Networks, ICML 2017).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import cross_entropy

LOWEST, HIGHEST = 0.05, 20.0
SMALLEST = 1e-30  # smaller probabilities are meaningless in float32


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature T that maximises the likelihood of the targets under softmax(logits /
    T). It changes no prediction.

    Args:
        logits: (N, K), or (N, Q, 2) for yes/no questions, which share T; of samples that the
            network was not trained on.
        targets: (N,) classes or (N, Q) answers.

    Returns:
        T between 0.05 and 20.
    """
    from scipy.optimize import minimize_scalar  # imported here: networks need targets, but not fits

    scores, labels = logits.detach().flatten(0, -2).cpu().double(), targets.flatten().cpu()

    def loss(log_temperature: float) -> float:
        return float(cross_entropy(scores / math.exp(log_temperature), labels))

    # In 1/T the loss is convex, so there is one minimum in log T too.
    minimum = minimize_scalar(loss, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded")
    return math.exp(float(minimum.x))


def tempered(response: npt.NDArray[Any], temperature: float) -> npt.NDArray[np.float64]:
    """Return probabilities (..., K) with their logits divided by a temperature."""
    scores = log_probabilities(response) / temperature
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = raised / raised.sum(-1, keepdims=True)
    return probabilities


def log_probabilities(response: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the logarithm of probabilities (..., K), which are clipped to at least 1e-30."""
    return np.log(np.maximum(response.astype(np.float64), SMALLEST))


def in_set(response: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.bool_]:
    """Return a mask of the classes in the prediction set, which may be empty, from calibrated
    probabilities (..., K).
    """
    held: npt.NDArray[np.bool_] = 1.0 - response <= threshold
    return held
