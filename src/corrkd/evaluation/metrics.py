"""Metrics above a target's own (`corrkd.targets.measures`): over several conditions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def area_under_ratios(ratios: Sequence[float], values: Sequence[float]) -> float:
    """Area under a metric's curve over missing ratios, divided by the range of ratios: 1 is a
    perfect metric at every ratio.
    """
    order = np.argsort(ratios)
    x, y = np.asarray(ratios)[order], np.asarray(values)[order]
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / (x[-1] - x[0]))
