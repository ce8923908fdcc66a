"""Statistics for comparing methods: intervals and tests from confusion counts per group of samples.

Samples of a group (a person, a video) are not independent; groups are assumed to be. Counts have
the shape (..., G, Q, K, K): G groups, Q questions (1 if classes are predicted), true classes in
rows and predicted classes in columns. The counts of a method are (S, C, G, Q, K, K), with S seeds
and C conditions. Its Avg. is the mean of weighted F1 over seeds and conditions. Pass
`counts[:, [c]]` for one condition alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from corrkd.errors import CorrKDError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer[Any]]

LEVEL = 0.95
CHUNK = 2**21  # elements in the largest array of a chunk of draws; changes memory only
TIE = 1e-10  # differences this close are equal but for rounding


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval, as fractions of 1."""

    mean: float
    low: float
    high: float


def half_width(values: FloatArray) -> float:
    """Return the half-width of the Student-t 95 % interval of the mean of values (S,); NaN for
    fewer than two values.
    """
    if len(values) < 2:
        return math.nan
    quantile = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)
    return float(quantile * values.std(ddof=1) / math.sqrt(len(values)))


def confusion_counts(
    truth: npt.ArrayLike, prediction: npt.ArrayLike, groups: npt.ArrayLike, classes: int
) -> npt.NDArray[np.int32]:
    """Return the confusion counts of each group.

    Args:
        truth: (N,) classes 0 to K - 1, or (N, Q) answers to questions.
        prediction: (..., N) or (..., N, Q) likewise; `...` is, for example, seeds and conditions.
        groups: (N,) names or numbers of the groups.
        classes: K; 2 for questions.

    Returns:
        (..., G, Q, K, K), with the groups sorted and Q = 1 for classes.

    Raises:
        CorrKDError: if the shapes do not match or a class is not from 0 to K - 1.
    """
    true, predicted = np.asarray(truth), np.asarray(prediction)
    labels, group = np.unique(np.asarray(groups), return_inverse=True)
    if (
        true.ndim not in (1, 2)
        or predicted.shape[-true.ndim :] != true.shape
        or group.shape != true.shape[:1]
    ):
        raise CorrKDError(
            f"confusion counts: truth {true.shape}, predictions {predicted.shape} and groups "
            f"{group.shape} do not fit together; "
            "expected (N,) or (N, Q), the same after any leading axes, and (N,)"
        )
    for name, side in (("truth", true), ("predictions", predicted)):
        if side.dtype.kind not in "biu" or (
            side.size and not 0 <= side.min() <= side.max() < classes
        ):
            raise CorrKDError(
                f"confusion counts: {name} must be whole numbers from 0 to {classes - 1}"
            )
    leading = predicted.shape[: predicted.ndim - true.ndim]
    true = true.reshape(len(true), -1).astype(np.int64)
    shape = (len(labels), true.shape[1], classes, classes)
    cell = (group[:, None] * shape[1] + np.arange(shape[1])) * classes + true
    rows = predicted.reshape(-1, *cell.shape)
    counts = [
        np.bincount((cell * classes + row).ravel(), minlength=math.prod(shape)).astype(np.int32)
        for row in rows
    ]
    return np.array(counts, np.int32).reshape(*leading, *shape)


def weighted_f1(counts: npt.ArrayLike) -> FloatArray:
    """Return the weighted F1 (...) from confusion counts (..., Q, K, K), averaged over questions.
    It is NaN without samples.

    Equals scikit-learn's `f1_score(truth, prediction, average="weighted", zero_division=0)`.
    """
    return _f1(_margins(np.asarray(counts)))


def group_interval(counts: npt.ArrayLike, *, seed: int, draws: int = 10_000) -> Interval:
    """Return the Avg. of one method with a 95 % percentile bootstrap interval over test groups and
    seeds.

    Each draw takes G groups and, independently, S seeds, both with replacement; a drawn group
    counts in all drawn seeds (Owen, The pigeonhole bootstrap, Annals of Applied Statistics 2007).
    With one seed the interval covers the variation between groups only. With few groups or few
    seeds it is too narrow.

    Args:
        counts: (S, C, G, Q, K, K).
        seed: seed of the resampling.
        draws: number of resamples.

    Raises:
        CorrKDError: if the counts have another shape, or a condition has no samples.
    """
    methods = _methods(counts)
    return _interval(_estimates(methods)[0], _resampled(methods, seed, draws)[:, 0])


def paired_group_interval(
    first: npt.ArrayLike, second: npt.ArrayLike, *, seed: int, draws: int = 10_000
) -> Interval:
    """Return the Avg. of `first` minus the Avg. of `second` with a 95 % interval, by the bootstrap
    of `group_interval` with the same draws of groups and seeds for both.

    Args:
        first, second: (S, C, G, Q, K, K), with the same seeds in the same order.
        seed: seed of the resampling.
        draws: number of resamples.

    Raises:
        CorrKDError: if the shapes differ or the methods were not tested on the same samples.
    """
    methods = _methods(first, second)
    estimates, resampled = _estimates(methods), _resampled(methods, seed, draws)
    return _interval(estimates[0] - estimates[1], resampled[:, 0] - resampled[:, 1])


def sign_flip_test(
    first: npt.ArrayLike, second: npt.ArrayLike, *, seed: int, draws: int = 10_000
) -> float:
    """Return the two-sided p value of the difference between two methods' Avg., by swapping the
    methods within groups.

    Under the null hypothesis the counts of the two methods within a group are exchangeable. Each
    assignment swaps or keeps the counts of each group, for all seeds and conditions together. The
    difference is recomputed from the totals, since F1 is not a sum over groups. All 2^G assignments
    are used if they are at most `draws`; otherwise random ones, with p = (1 + hits) / (1 + draws)
    (Phipson and Smyth 2010).

    The test generalises to other groups, not to other trainings of the networks. The smallest p is
    2 / 2^G, so it cannot fall below 0.05 with five groups or fewer.

    Args:
        first, second: (S, C, G, Q, K, K).
        seed: seed of the random assignments.
        draws: largest number of assignments.

    Raises:
        CorrKDError: if the shapes differ or the methods were not tested on the same samples.
    """
    methods = _methods(first, second)
    margins = _by_group(methods)
    groups, total, change = len(margins), margins.sum(0), margins[:, 1] - margins[:, 0]
    least = abs(np.subtract(*_estimates(methods))) - TIE
    exact = 2**groups <= draws
    assignments = (
        _all_swaps(groups)
        if exact
        else np.random.default_rng(seed).integers(0, 2, (draws, groups), np.int8)
    )
    hits = 0
    for start in range(0, len(assignments), _chunk(margins)):
        swaps = assignments[start : start + _chunk(margins)].astype(np.float64)
        swapped = total[0] + np.tensordot(swaps, change, 1)
        difference = _f1(swapped) - _f1(total.sum(0) - swapped)
        hits += int((np.abs(difference.mean((-2, -1))) >= least).sum())
    return hits / len(assignments) if exact else (1 + hits) / (1 + draws)


def holm(p_values: Sequence[float] | FloatArray) -> FloatArray:
    """Return the p values, in their order, adjusted for multiple tests (Holm, Scandinavian Journal
    of Statistics 1979).

    Raises:
        CorrKDError: if a value is not from 0 to 1.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise CorrKDError("holm: expected a list of p values from 0 to 1")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def ranks(values: npt.ArrayLike) -> FloatArray:
    """Return the mean rank (M,) of each of M methods over C conditions, from scores (M, C).

    Rank 1 is the highest score, and ties share their mean rank. A method with a NaN score has rank
    NaN, and the others are ranked without it.
    """
    scores = np.asarray(values, np.float64)
    ranked = ~np.isnan(scores).any(1)
    out = np.full(len(scores), math.nan)
    if ranked.any():
        out[ranked] = stats.rankdata(-scores[ranked], axis=0).mean(1)
    return out


# --------------------------------------------------------------------------------------------------
# internals


def _methods(*counts: npt.ArrayLike) -> IntArray:
    """Return the counts of comparable methods as one array (M, S, C, G, Q, K, K)."""
    arrays = [np.asarray(c) for c in counts]
    for array in arrays:
        if array.ndim != 6 or 0 in array.shape or array.shape[-1] != array.shape[-2]:
            raise CorrKDError(
                f"comparison: counts have shape {array.shape}, expected (seeds, conditions, "
                f"groups, questions, K, K)"
            )
        if array.shape != arrays[0].shape:
            raise CorrKDError(
                f"comparison: counts of shapes {arrays[0].shape} and {array.shape}; pair the "
                f"same seeds, conditions and groups"
            )
        if (array.sum(-1) != arrays[0].sum(-1)).any():
            raise CorrKDError(
                "comparison: the methods were not tested on the same samples: their true classes "
                "differ"
            )
    if not arrays[0].sum((2, 4, 5)).all():
        raise CorrKDError("comparison: a condition without any sample has no score")
    return np.stack(arrays)


def _margins(counts: IntArray) -> IntArray:
    """Return the true positives, true and predicted samples of each class, (..., 3, K), which
    suffice for F1, from counts (..., K, K).
    """
    return np.stack(
        [np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)], axis=-2
    )


def _f1(margins: IntArray | FloatArray) -> FloatArray:
    """Return the weighted F1 (...) of margins (..., Q, 3, K)."""
    right, true, predicted = np.moveaxis(margins, -2, 0)
    each = true * 2.0 * right / np.maximum(true + predicted, 1)
    with np.errstate(invalid="ignore"):
        score: FloatArray = (each.sum(-1) / true.sum(-1)).mean(-1)
    return score


def _by_group(methods: IntArray) -> FloatArray:
    """Return the margins (G, M, S, C, Q, 3, K) of counts (M, S, C, G, Q, K, K), as floats: products
    are fast and integers stay exact.
    """
    return np.ascontiguousarray(np.moveaxis(_margins(methods), 3, 0), np.float64)


def _estimates(methods: IntArray) -> FloatArray:
    """Return the Avg. of each method, (M,)."""
    return weighted_f1(methods.sum(3)).mean((-2, -1))


def _chunk(margins: FloatArray) -> int:
    """Return the number of draws per chunk, for margins (G, ...)."""
    return max(1, CHUNK // max(len(margins), margins[0].size))


def _resampled(methods: IntArray, seed: int, draws: int) -> FloatArray:
    """Return the Avg. of each method in each draw, (draws, M)."""
    margins = _by_group(methods)
    margins = margins[margins.any(tuple(range(1, margins.ndim)))]  # tested by some seed
    groups, seeds = len(margins), margins.shape[2]
    of_groups, of_seeds = np.random.default_rng(seed).spawn(2)
    out = np.empty((draws, margins.shape[1]))
    for start in range(0, draws, _chunk(margins)):
        chunk = out[start : start + _chunk(margins)]
        group_weight = of_groups.multinomial(
            groups, np.full(groups, 1 / groups), len(chunk)
        ).astype(np.float64)
        seed_weight = of_seeds.multinomial(seeds, np.full(seeds, 1 / seeds), len(chunk)) / seeds
        scores = _f1(np.tensordot(group_weight, margins, 1)).mean(-1)
        # A seed with a separate test fold has no score if none of its groups was drawn; the mean
        # is then over the other seeds.
        scored = np.isfinite(scores).all(1)
        seed_weight = np.where(scored, seed_weight, 0.0)
        total = seed_weight.sum(1, keepdims=True)
        seed_weight = np.divide(
            seed_weight, total, out=np.full_like(seed_weight, np.nan), where=total > 0
        )
        chunk[:] = np.einsum("nms,ns->nm", np.nan_to_num(scores), seed_weight)
    return out


def _interval(estimate: float, drawn: FloatArray) -> Interval:
    # If each seed tests a different fold, a draw without any group of its seeds has score NaN.
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(estimate), float(low), float(high))


def _all_swaps(groups: int) -> npt.NDArray[np.int64]:
    """Return all assignments of swaps to groups, 1 or 0, (2^G, G)."""
    return (np.arange(2**groups)[:, None] >> np.arange(groups)) & 1
