"""Simulated comparisons of two equally good methods on samples in groups."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

Array = npt.NDArray[np.int64]

SAMPLE_SD, NOISE_SD, EASE = 0.7, 0.7, 1.0


def simulate(
    rng: np.random.Generator,
    *,
    groups: int,
    size: int,
    seeds: int,
    conditions: int,
    group_sd: float,
    method_sd: float,
    seed_sd: float,
) -> tuple[Array, Array, Array]:
    """Return truth (N,), predictions (2, S, C, N) of two classes, and groups (N,).

    A prediction is wrong where a sum of normal effects exceeds EASE: of the group, of the method in
    the group (`method_sd`, shared by the group's samples: a person whom one method reads well), of
    the method's seed, of the sample, and noise.
    """
    group = np.repeat(np.arange(groups), size)
    effect = (
        rng.normal(0, group_sd, groups)[group]
        + rng.normal(0, method_sd, (2, 1, 1, groups))[..., group]
        + rng.normal(0, seed_sd, (2, seeds, 1, 1))
        + rng.normal(0, SAMPLE_SD, len(group))
        + rng.normal(0, NOISE_SD, (2, seeds, conditions, len(group)))
    )
    truth = rng.integers(0, 2, len(group))
    return truth, np.where(effect > EASE, 1 - truth, truth), group


def expected_score(*, group_sd: float, method_sd: float, seed_sd: float) -> float:
    """Return the weighted F1 over endless groups and seeds: the accuracy, as classes are alike."""
    return float(norm.cdf(EASE / math.hypot(group_sd, method_sd, seed_sd, SAMPLE_SD, NOISE_SD)))
