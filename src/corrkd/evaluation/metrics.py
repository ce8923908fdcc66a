"""Metrics by the field's conventions (docs/metrics.md), computed by scikit-learn, SciPy and torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score, auc, f1_score
from torchmetrics.functional.classification import multiclass_calibration_error

from corrkd.data.targets import Target

Array = npt.NDArray[Any]
F1 = "weighted_f1"
CALIBRATION_BINS = 15


def measure(target: Target, truth: Array, response: Array) -> dict[str, float]:
    """All metrics of one condition, as fractions of 1; `nan` where a metric is undefined.

    Args:
        target: what is predicted.
        truth: (N,) classes, (N, Q) answers, or (N,) scores.
        response: probabilities (N, K) or (N, Q, 2), or scores (N, 1).

    Returns:
        For classes: weighted_f1, accuracy, ece, f1/<class>. For questions: the means over questions, and weighted_f1/<question>. For
        scores: mae, corr, and weighted_f1, accuracy, f1/<class> of the target's categories.
    """
    if target.kind == "questions":
        return _questions(target, truth, response)
    if target.kind == "score":
        return _scores(target, truth, response[:, 0])
    out = _classes(target.classes, truth, response.argmax(-1))
    return {**out, "ece": response_calibration_error(target, truth, response)}


def weighted_f1(truth: Array, prediction: Array) -> float:
    """F1 of each class weighted by its support in `truth` (the arguments are not interchangeable)."""
    return float(f1_score(truth, prediction, average="weighted", zero_division=0.0))


def main_score(target: Target, truth: Array, response: Array) -> float:
    """The weighted F1 alone: what an epoch is chosen by."""
    if target.kind == "questions":
        picked = response.argmax(-1)
        return float(np.mean([weighted_f1(truth[:, q], picked[:, q]) for q in range(truth.shape[1])]))
    if target.kind == "score":
        return weighted_f1(target.categories(truth), target.categories(response[:, 0]))
    return weighted_f1(truth, response.argmax(-1))


def measure_predictions(target: Target, truth: Array, predictions: Array) -> dict[str, float]:
    """The metrics of `measure` that need no probabilities.

    Args:
        target: what is predicted.
        truth: (N,) classes, (N, Q) answers, or (N,) scores.
        predictions: likewise.
    """
    if target.kind == "score":
        return _scores(target, truth, predictions)
    if target.kind == "questions":
        return {k: v for k, v in _questions(target, truth, np.eye(2)[predictions]).items() if k != "ece"}
    return _classes(target.classes, truth, predictions)


def calibration_error(truth: Array, probabilities: Array) -> float:
    """Expected calibration error: |accuracy - confidence| averaged over 15 equal bins of confidence (Guo et al., ICML 2017)."""
    error = multiclass_calibration_error(
        torch.as_tensor(probabilities, dtype=torch.float64),
        torch.as_tensor(truth),
        num_classes=probabilities.shape[-1],
        n_bins=CALIBRATION_BINS,
    )
    return float(error)


def response_calibration_error(target: Target, truth: Array, response: Array) -> float:
    """The same of a target's response; for questions its mean over questions."""
    if target.kind == "questions":
        return float(np.mean([calibration_error(truth[:, q], response[:, q]) for q in range(len(target.questions))]))
    return calibration_error(truth, response)


def area_under_ratios(ratios: Sequence[float], values: Sequence[float]) -> float:
    """Area under a metric's curve over missing ratios, divided by the range of ratios: 1 is a perfect metric at every ratio."""
    order = np.argsort(ratios)
    x, y = np.asarray(ratios)[order], np.asarray(values)[order]
    return float(auc(x, y) / (x[-1] - x[0]))


def correlation(truth: Array, prediction: Array) -> float:
    """Pearson's r; nan (undefined) where either side is constant, as predictions are when everything is missing."""
    spread = [float(np.ptp(side)) for side in (truth, prediction)]
    if len(truth) < 2 or any(
        s <= 1e-7 * max(1.0, float(np.abs(side).max())) for s, side in zip(spread, (truth, prediction), strict=True)
    ):
        return math.nan
    return float(pearsonr(truth, prediction).statistic)


def _classes(names: Sequence[str], truth: Array, prediction: Array) -> dict[str, float]:
    each = f1_score(truth, prediction, labels=range(len(names)), average=None, zero_division=0.0)
    return {
        F1: weighted_f1(truth, prediction),
        "accuracy": float(accuracy_score(truth, prediction)),
        **{f"f1/{name}": float(value) for name, value in zip(names, each, strict=True)},
    }


def _questions(target: Target, truth: Array, response: Array) -> dict[str, float]:
    picked = response.argmax(-1)
    each = [weighted_f1(truth[:, q], picked[:, q]) for q in range(len(target.questions))]
    yes = [
        float(f1_score(truth[:, q], picked[:, q], pos_label=1, zero_division=0.0)) for q in range(len(target.questions))
    ]
    return {
        F1: float(np.mean(each)),
        "accuracy": float((truth == picked).mean()),
        "ece": response_calibration_error(target, truth, response),
        **{f"{F1}/{name}": value for name, value in zip(target.questions, each, strict=True)},
        **{f"f1/{name}": value for name, value in zip(target.questions, yes, strict=True)},
    }


def _scores(target: Target, truth: Array, prediction: Array) -> dict[str, float]:
    return {
        **_classes(target.classes, target.categories(truth), target.categories(prediction)),
        "mae": float(np.abs(truth - prediction).mean()),
        "corr": correlation(truth, prediction),
    }
