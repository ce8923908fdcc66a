"""Metrics over several conditions; those of one condition are in `corrkd.targets.measures`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def area_under_ratios(ratios: Sequence[float], values: Sequence[float]) -> float:
    """Return the area under a metric's curve over missing ratios (trapezoidal rule), divided by the
    range of ratios. It is 1 if the metric is 1 at every ratio.
    """
    order = np.argsort(ratios)
    x, y = np.asarray(ratios)[order], np.asarray(values)[order]
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / (x[-1] - x[0]))
