"""Metrics by the conventions of the field (docs/metrics.md): fractions from 0 to 1 if possible, NaN
if undefined.

SciPy is imported only when it is called: networks need targets, but not metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
F1 = "weighted_f1"
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Metric:
    """How a metric is shown in reports, on model cards and in terminals.

    Attributes:
        title: title of a table.
        heading: heading of a column.
        scale: factor by which values are multiplied.
        digits: number of decimals.
        sign: 1 if more is better, -1 if less is better, 0 if neither: no value is marked as best.
    """

    title: str
    heading: str
    scale: float = 100.0
    digits: int = 2
    sign: int = 1

    def format(self, value: float) -> str:
        """Return a value as text."""
        return f"{self.scale * value:.{self.digits}f}"


METRICS = {
    F1: Metric("Weighted F1 × 100", "Weighted F1"),
    "accuracy": Metric("Accuracy × 100", "Accuracy"),
    "unweighted_accuracy": Metric(
        "Unweighted accuracy × 100 (mean recall of the classes)", "Unweighted accuracy"
    ),
    "acc2_has_zero": Metric("Acc-2 × 100, negative against non-negative", "Acc-2, has zero"),
    "weighted_f1_has_zero": Metric(
        "Weighted F1 × 100, negative against non-negative", "F1, has zero"
    ),
    "acc2_nonzero": Metric("Acc-2 × 100, negative against positive", "Acc-2, non-zero"),
    "weighted_f1_nonzero": Metric("Weighted F1 × 100, negative against positive", "F1, non-zero"),
    "acc2": Metric("Acc-2 × 100", "Acc-2"),
    "acc3": Metric("Acc-3 × 100", "Acc-3"),
    "acc5": Metric("Acc-5 × 100", "Acc-5"),
    "acc7": Metric("Acc-7 × 100", "Acc-7"),
    "ece": Metric(
        "Expected calibration error × 100 (less is better)", "Calibration error", sign=-1
    ),
    "ece_calibrated": Metric(
        "Expected calibration error × 100 after temperature scaling (less is better)",
        "… with temperature",
        sign=-1,
    ),
    "coverage": Metric(
        "Samples whose truth is in the prediction set, %", "Coverage of the sets", digits=1
    ),
    "set_size": Metric("Size of the prediction set", "Size of a set", scale=1.0),
    "mae": Metric(
        "Mean absolute error (less is better)", "Mean absolute error", scale=1.0, digits=3, sign=-1
    ),
    "corr": Metric("Pearson correlation", "Correlation", scale=1.0, digits=3),
}
"""Metrics by their name in results.csv, in the order in which they are listed."""


def metric_of(name: str) -> Metric:
    """Return how a metric is shown. A metric that is not in `METRICS`, from a target of another
    package, is shown unscaled under its name.
    """
    return METRICS.get(name, Metric(name, name, scale=1.0, digits=3, sign=0))


def weighted_f1(truth: Array, prediction: Array) -> float:
    """Return the F1 of classes (N,), weighted by their support in `truth`. The arguments are not
    interchangeable.
    """
    labels, indices = np.unique([truth, prediction], return_inverse=True)
    true, predicted = indices.reshape(2, -1)
    each, support = _f1(true, predicted, len(labels))
    return float((each * support).sum() / support.sum())


def _f1(truth: Array, prediction: Array, classes: int) -> tuple[Array, Array]:
    """Return the F1 of each class, 0 for absent classes as in scikit-learn, and its support."""
    support = np.bincount(truth, minlength=classes)
    both = support + np.bincount(prediction, minlength=classes)
    hits = np.bincount(truth[truth == prediction], minlength=classes)
    return 2 * hits / np.maximum(both, 1), support


def accuracy(truth: Array, prediction: Array) -> float:
    """Return the share of correct predictions among N >= 1. In the field this is the *weighted*
    accuracy (WA), in which each class counts by its size.
    """
    return float((np.asarray(truth) == np.asarray(prediction)).mean())


def unweighted_accuracy(truth: Array, prediction: Array) -> float:
    """Return the mean recall of the classes in `truth`, (N,) with N >= 1, in which each class
    counts equally (UA).
    """
    return float(
        np.mean([(prediction[truth == label] == label).mean() for label in np.unique(truth)])
    )


def calibration_error(truth: Array, probabilities: Array) -> float:
    """Return the expected calibration error of probabilities (N, K): |accuracy - confidence| in 15
    equal bins of confidence, averaged over the samples (Guo et al., ICML 2017).
    """
    confidence, prediction = torch.as_tensor(probabilities).max(-1)
    confidence, right = confidence.float(), prediction.eq(torch.as_tensor(truth)).float()
    bins = torch.bucketize(confidence, torch.linspace(0, 1, CALIBRATION_BINS + 1), right=True) - 1
    count, sure, hits = (
        torch.bincount(bins, x, CALIBRATION_BINS + 1)
        for x in (torch.ones_like(right), confidence, right)
    )
    gaps = (hits / count).nan_to_num() - (sure / count).nan_to_num()
    return float((gaps.abs() * (count / count.sum())).sum())


def correlation(truth: Array, prediction: Array) -> float:
    """Return Pearson's r; nan if N < 2 or either side is constant, as predictions are when
    everything is missing.
    """
    from scipy.stats import pearsonr

    spread = [float(np.ptp(side)) for side in (truth, prediction)]
    if len(truth) < 2 or any(
        s <= 1e-7 * max(1.0, float(np.abs(side).max()))
        for s, side in zip(spread, (truth, prediction), strict=True)
    ):
        return math.nan
    return float(pearsonr(truth, prediction).statistic)


def class_metrics(names: Sequence[str], truth: Array, prediction: Array) -> dict[str, float]:
    """Return weighted_f1, accuracy, unweighted_accuracy and f1/<class> of classes (N,)."""
    each, support = _f1(truth, prediction, len(names))
    return {
        F1: float((each * support).sum() / support.sum()),
        "accuracy": accuracy(truth, prediction),
        "unweighted_accuracy": unweighted_accuracy(truth, prediction),
        **{f"f1/{name}": float(value) for name, value in zip(names, each, strict=True)},
    }


def positive_f1(truth: Array, prediction: Array) -> float:
    """Return the F1 of class 1, for labels (N,) in {0, 1}."""
    return float(_f1(truth, prediction, 2)[0][1])
