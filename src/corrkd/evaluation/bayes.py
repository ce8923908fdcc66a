"""Ceilings of a report: the best expected scores under exact class posteriors (docs/synthetic.md).

For accuracy, the ceiling is the expected share of samples with a correct most probable class.
Weighted F1 is not a mean over samples; its ceiling is the expectation of the best joint decision
for all samples. On one draw of the labels, a method may by chance score slightly higher.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from corrkd.errors import CorrKDError

Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SUM_TOLERANCE = 1e-6
TAIL = 40.0  # e^-40 is below a double's precision
GAIN = 1e-9  # smaller gains end the ascent


def bayes_accuracy(posteriors: npt.ArrayLike) -> float:
    """Return the expected accuracy of predicting the most probable class: the mean of max_k p_ik,
    for posteriors (N, K).

    Raises:
        CorrKDError: if the posteriors are not (N, K) probabilities.
    """
    return float(_checked(posteriors).max(1).mean())


def expected_weighted_f1(posteriors: npt.ArrayLike, decisions: npt.ArrayLike) -> float:
    """Return the exact expectation of the weighted F1 of fixed decisions, with labels drawn
    independently from the posteriors.

    With n_k samples of class k, m_k samples decided as k and TP_k true positives, weighted F1 is
    (1/N) sum_k n_k 2 TP_k / (n_k + m_k). Its expectation is

        (2/N) sum_k sum_{i decided k} p_ik G_k(i, m_k)
        G_k(i, m) = E[n_k / (n_k + m) | y_i = k] = 1 - m E[1 / (1 + n' + m)]
        E[1 / (1 + n' + m)] = int_0^1 u^m prod_{j != i} (1 - p_jk (1 - u)) du

    where n' is the number of other samples of class k. The product is its generating function.
    Gauss-Legendre quadrature computes the integral up to rounding.

    Args:
        posteriors: (N, K) class probabilities.
        decisions: (N,) classes.

    Raises:
        CorrKDError: if the posteriors are not (N, K) probabilities, or the decisions are not N
            classes from 0 to K-1.
    """
    p = _checked(posteriors)
    picked = np.asarray(decisions)
    if picked.shape != (len(p),) or picked.min() < 0 or picked.max() >= p.shape[1]:
        raise CorrKDError(
            f"expected F1: decisions must be {len(p)} classes from 0 to {p.shape[1] - 1}"
        )
    return _Expectation.of(p).value(picked.astype(np.int64))


def best_expected_weighted_f1(posteriors: npt.ArrayLike) -> tuple[IntArray, float]:
    """Return the decisions that maximise the expected weighted F1, and its value
    (`expected_weighted_f1`).

    A deterministic steepest ascent starts from the most probable classes, and from each class for
    all samples; the best result is returned. Each step computes the exact gain of moving each
    sample to each other class, and makes the best 1, 2, 4, ... moves, whichever number gains most,
    until no move gains. So the value is never below that of the most probable classes.

    It is a local maximum, and in practice the global one: in 14,000 random cases of up to seven
    samples, searched exhaustively, it was the maximum in 99.7 %, and at most 0.033 below it (0.017
    with three classes). At N = 800, ascents from random starts end within 1e-5 of it.

    Args:
        posteriors: (N, K) class probabilities.

    Returns:
        The decisions (N,) and their expected weighted F1.

    Raises:
        CorrKDError: if the posteriors are not (N, K) probabilities.
    """
    p = _checked(posteriors)
    expectation = _Expectation.of(p)
    starts = [
        p.argmax(1).astype(np.int64),
        *(np.full(len(p), k, np.int64) for k in range(p.shape[1])),
    ]
    return max(
        (_ascend(expectation, start) for start in starts), key=lambda candidate: candidate[1]
    )


def _ascend(expectation: _Expectation, decisions: IntArray) -> tuple[IntArray, float]:
    value = expectation.value(decisions)
    while True:
        moved, higher = _best_moves(expectation, decisions)
        if higher <= value + GAIN:
            return decisions, value
        decisions, value = moved, higher


def _best_moves(expectation: _Expectation, decisions: IntArray) -> tuple[IntArray, float]:
    gains = expectation.gains(decisions)
    to = gains.argmax(1)
    gain = gains.max(1)
    order = np.argsort(-gain, kind="stable")[: int((gain > 0).sum())]
    best, highest = decisions, -math.inf
    count = 1
    while count <= len(order):
        trial = decisions.copy()
        trial[order[:count]] = to[order[:count]]
        value = expectation.value(trial)
        if value > highest:
            best, highest = trial, value
        count *= 2
    return best, highest


@dataclass(frozen=True)
class _Expectation:
    """Integrals of `expected_weighted_f1`, tabulated at the nodes u_q of the quadrature.

    Attributes:
        p: (N, K) posteriors.
        log_node: (K, Q) log u_q.
        log_weight: (K, Q) log of the quadrature's weight times prod_j (1 - p_jk (1 - u_q)).
        others: (K, Q, N) 1 / (1 - p_ik (1 - u_q)), which takes sample i out of that product.
    """

    p: Float64Array
    log_node: Float64Array
    log_weight: Float64Array
    others: Float64Array

    @staticmethod
    def of(p: Float64Array) -> _Expectation:
        # The integrand is below exp(-a (1 - u)) with a = E[n'] + m, so only [1 - TAIL / a, 1]
        # contributes.
        expected = p.sum(0)
        stretch = np.minimum(1.0, TAIL / np.maximum(expected - 1.0, 1e-9))
        # This many nodes integrate exp(-A v) over [0, 1] up to rounding; A is the steepest decay
        # over the stretch (m = N).
        steepest = float((stretch * (expected + len(p))).max())
        node, weight = np.polynomial.legendre.leggauss(16 + math.ceil(3.0 * math.sqrt(steepest)))
        gap = stretch[:, None] * (1.0 - node)[None, :] / 2.0  # 1 - u
        factors = 1.0 - gap[:, :, None] * p.T[:, None, :]
        log_weight = np.log(stretch[:, None] * weight[None, :] / 2.0) + np.log(factors).sum(2)
        return _Expectation(p, np.log1p(-gap), log_weight, 1.0 / factors)

    def weights(self, k: int, decided: int) -> Float64Array:
        """Return G_k(i, m) for all i, (N,), with m = `decided`."""
        integral: Float64Array = (
            np.exp(self.log_weight[k] + decided * self.log_node[k]) @ self.others[k]
        )
        return 1.0 - decided * integral

    def worth(self, decisions: IntArray) -> Float64Array:
        """Return p_ik G_k(i, m_k), (N, K): the contribution of sample i if it is decided as k, with
        the class counts m_k of the decisions.
        """
        counts = np.bincount(decisions, minlength=self.p.shape[1])
        return self.p * np.stack([self.weights(k, int(m)) for k, m in enumerate(counts)], axis=1)

    def value(self, decisions: IntArray) -> float:
        """Return the expected weighted F1 of decisions (N,)."""
        return 2.0 * float(self.worth(decisions)[np.arange(len(self.p)), decisions].mean())

    def gains(self, decisions: IntArray) -> Float64Array:
        """Return by how much moving sample i alone to class l raises the value (times N/2), (N, K);
        0 for its present class.
        """
        rows = np.arange(len(self.p))
        leaving = np.zeros(len(self.p))
        joining = np.zeros_like(self.p)
        for k in range(self.p.shape[1]):
            chosen = decisions == k
            m = int(chosen.sum())
            now, more = self.p[:, k] * self.weights(k, m), self.p[:, k] * self.weights(k, m + 1)
            joining[:, k] = more + (more - now)[chosen].sum()
            if m:
                less = self.p[:, k] * self.weights(k, m - 1)
                change = less - now
                leaving[chosen] = change[chosen].sum() - less[chosen]
        gains = leaving[:, None] + joining
        gains[rows, decisions] = 0.0
        return gains


def _checked(posteriors: npt.ArrayLike) -> Float64Array:
    p = np.asarray(posteriors, np.float64)
    if p.ndim != 2 or 0 in p.shape:
        raise CorrKDError(f"posteriors have shape {p.shape}, expected (samples, classes)")
    if not (p >= 0).all() or not (np.abs(p.sum(1) - 1.0) <= SUM_TOLERANCE).all():
        raise CorrKDError(
            "posteriors must be probabilities: no negative or NaN entry, every row summing to 1"
        )
    return np.minimum(p, 1.0)
