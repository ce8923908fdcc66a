"""Calibrated probabilities and prediction sets under each missing condition.

*Temperature*: a number by which logits are divided (Guo et al., On Calibration of Modern Neural
Networks, ICML 2017). It changes no decision. *Prediction sets*: split conformal prediction for new
groups (hierarchical conformal prediction: Lee, Barber & Willett, Distribution-Free Inference with
Hierarchical Data, 2023). If groups (people, videos) are exchangeable, and so are samples within a
group, the set contains the true class of a sample from a new group with probability at least
`level`, on average over groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from corrkd.evaluation.sweep import Result
from corrkd.targets.base import Target
from corrkd.targets.calibration import fit_temperature, log_probabilities


@dataclass(frozen=True)
class Calibration:
    """Calibration of a condition: its temperature, and the threshold of its prediction sets
    (infinite: they contain every class; None: no sets).
    """

    temperature: float = 1.0
    threshold: float | None = None


# --------------------------------------------------------------------------------------------------
# temperature


def fit_temperatures(
    results: Sequence[Result], target: Target, truth: npt.NDArray[Any]
) -> dict[str, float]:
    """Return the temperature of each condition that has a sample, fitted on all of its draws. The
    mapping is empty for scores.

    Args:
        results: of a sweep of the validation split.
        target: what is predicted.
        truth: (N,) classes or (N, Q) answers of the split.
    """
    if not target.has_classes:
        return {}
    out = {}
    for name, draws in by_condition(results).items():
        logits = np.concatenate([log_probabilities(draw.response) for draw in draws])
        if len(logits):
            targets = np.concatenate([truth[draw.rows] for draw in draws])
            out[name] = fit_temperature(torch.as_tensor(logits), torch.as_tensor(targets))
    return out


# --------------------------------------------------------------------------------------------------
# prediction sets


def fit_thresholds(
    results: Sequence[Result],
    target: Target,
    truth: npt.NDArray[Any],
    groups: npt.ArrayLike,
    level: float,
    temperatures: Mapping[str, float],
) -> dict[str, float]:
    """Return the threshold of each condition: prediction sets contain the classes with a
    nonconformity score up to it.

    Args:
        results: of a sweep of samples from groups used neither for training nor for selection.
        target: what is predicted.
        truth: (N,) classes, (N, Q) answers or (N,) scores of the samples.
        groups: (N,) the group of each sample.
        level: target coverage, a fraction of the samples.
        temperatures: by condition, fitted on other samples.
    """
    names = np.asarray(groups)
    out = {}
    for name, draws in by_condition(results).items():
        temperature = temperatures.get(name, 1.0)
        scores = [
            target.nonconformity(truth[d.rows], target.calibrate(d.response, temperature))
            for d in draws
        ]
        group_of = [
            np.repeat(names[d.rows], s.size // max(1, len(s)))
            for d, s in zip(draws, scores, strict=True)
        ]
        out[name] = group_quantile(
            np.concatenate([s.ravel() for s in scores]), np.concatenate(group_of), level
        )
    return out


def group_quantile(values: npt.NDArray[Any], groups: npt.NDArray[Any], level: float) -> float:
    """Return the `level` quantile of the values (n,) of K groups (n,).

    Each group weighs 1/(K + 1), whatever its size, and infinity weighs the rest. The quantile is
    infinite for fewer than level / (1 - level) groups.
    """
    if not len(values):
        return math.inf
    group, counts = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    order = np.argsort(values, kind="stable")
    weight = (1.0 / (len(counts) + 1) / counts)[group][order].cumsum()
    index = int(np.searchsorted(weight, level - 1e-9))
    return float(values[order][index]) if index < len(values) else math.inf


def coverage_by_group(
    results: Sequence[Result],
    target: Target,
    truth: npt.NDArray[Any],
    groups: npt.ArrayLike,
    calibrations: Mapping[str, Calibration],
) -> pd.DataFrame:
    """Return the fraction of each group's samples with the true value in the prediction set.

    The columns are condition, group, samples, coverage and set_size. Each draw and each yes/no
    question is counted separately.
    """
    names, rows = np.asarray(groups), []
    for name, draws in by_condition(results).items():
        calibration = calibrations.get(name, Calibration())
        if calibration.threshold is None:
            continue
        responses = [target.calibrate(d.response, calibration.temperature) for d in draws]
        parts = [
            pd.DataFrame(
                {
                    "group": names[d.rows],
                    "coverage": _per_sample(
                        target.nonconformity(truth[d.rows], r) <= calibration.threshold
                    ),
                    "set_size": _per_sample(target.set_sizes(r, calibration.threshold)),
                }
            )
            for d, r in zip(draws, responses, strict=True)
        ]
        together = pd.concat(parts, ignore_index=True).groupby("group", sort=True)
        frame = (
            together.mean()
            .assign(samples=together.size() // len(draws), condition=name)
            .reset_index()
        )
        rows.append(frame)
    columns = ["condition", "group", "samples", "coverage", "set_size"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def _per_sample(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return values.reshape(len(values), -1).mean(1) if len(values) else np.zeros(0)


def by_condition(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return a sweep's results grouped by condition."""
    out: dict[str, list[Result]] = {}
    for result in results:
        out.setdefault(result.condition.name, []).append(result)
    return out
