"""How sure a network may be, and which answers it cannot rule out, under each missing condition.

*Temperature*: one number by which logits are divided (Guo et al., On Calibration of Modern Neural Networks, ICML 2017). It changes no
decision. *Prediction sets*: split conformal prediction for people who are new (hierarchical conformal prediction: Lee, Barber & Willett,
Distribution-Free Inference with Hierarchical Data, 2023). Assumed is that groups (people, videos) are exchangeable, and samples within a
group; then the set holds the true class of a sample of a new group with probability `level` at least, on average over groups.
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
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

from corrkd.data.targets import Target
from corrkd.evaluation.sweep import Result

LOWEST, HIGHEST = 0.05, 20.0
SMALLEST = 1e-30  # a probability below it says no more in float32


@dataclass(frozen=True)
class Calibration:
    """What is known of a condition: its temperature, and the threshold of its sets (infinite: nothing is left out; None: no sets)."""

    temperature: float = 1.0
    threshold: float | None = None


# ------------------------------------------------------------------------------------------------------------------ temperature


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


def fit_temperatures(results: Sequence[Result], target: Target, truth: npt.NDArray[Any]) -> dict[str, float]:
    """A temperature for each condition with any sample, fitted on its draws together; none for scores.

    Args:
        results: of a sweep of the validation split.
        target: what is predicted.
        truth: (N,) classes or (N, Q) answers of the split.
    """
    if target.kind == "score":
        return {}
    out = {}
    for name, draws in by_condition(results).items():
        logits = np.concatenate([_logits(draw.response) for draw in draws])
        if len(logits):
            targets = np.concatenate([truth[draw.rows] for draw in draws])
            out[name] = fit_temperature(torch.as_tensor(logits), torch.as_tensor(targets))
    return out


def tempered(response: npt.NDArray[Any], temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities (..., K) after their logits are divided by a temperature."""
    scores = _logits(response) / temperature
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    shared: npt.NDArray[np.float64] = raised / raised.sum(-1, keepdims=True)
    return shared


def _logits(response: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Logits that have these probabilities."""
    return np.log(np.maximum(response.astype(np.float64), SMALLEST))


# --------------------------------------------------------------------------------------------------------------- prediction sets


def fit_thresholds(
    results: Sequence[Result],
    target: Target,
    truth: npt.NDArray[Any],
    groups: npt.ArrayLike,
    level: float,
    temperatures: Mapping[str, float],
) -> dict[str, float]:
    """A threshold for each condition: what is no stranger than that is in the set.

    Args:
        results: of a sweep of samples whose groups took part in no training and no choice.
        target: what is predicted.
        truth: (N,) classes, (N, Q) answers or (N,) scores of the samples.
        groups: (N,) whose each sample is.
        level: share of samples whose truth the sets are to hold.
        temperatures: by condition, fitted on other samples.
    """
    names = np.asarray(groups)
    out = {}
    for name, draws in by_condition(results).items():
        strange = [
            strangeness(target, truth[d.rows], calibrated(target, d.response, temperatures.get(name, 1.0)))
            for d in draws
        ]
        whose = [np.repeat(names[d.rows], s.size // max(1, len(s))) for d, s in zip(draws, strange, strict=True)]
        out[name] = group_quantile(np.concatenate([s.ravel() for s in strange]), np.concatenate(whose), level)
    return out


def calibrated(target: Target, response: npt.NDArray[Any], temperature: float) -> npt.NDArray[np.float64]:
    """A response with its temperature applied; scores have none."""
    return response.astype(np.float64) if target.kind == "score" else tempered(response, temperature)


def strangeness(target: Target, truth: npt.NDArray[Any], response: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """How little a response expects the truth: 1 minus its probability, (N,) or (N, Q); for scores the distance to it, (N,)."""
    if target.kind == "score":
        return np.abs(response[:, 0] - truth)
    chosen: npt.NDArray[np.float64] = 1.0 - np.take_along_axis(response, truth[..., None], -1)[..., 0]
    return chosen


def group_quantile(values: npt.NDArray[Any], groups: npt.NDArray[Any], level: float) -> float:
    """The `level` quantile of values among K groups, each weighing 1/(K + 1) whatever its size, and infinity the rest.

    Infinite where there are too few groups: fewer than level / (1 - level).
    """
    if not len(values):
        return math.inf
    whose, counts = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    order = np.argsort(values, kind="stable")
    weight = (1.0 / (len(counts) + 1) / counts)[whose][order].cumsum()
    place = int(np.searchsorted(weight, level - 1e-9))
    return float(values[order][place]) if place < len(values) else math.inf


def in_set(response: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.bool_]:
    """Which classes a prediction set holds, (..., K), of calibrated probabilities. It may hold none."""
    held: npt.NDArray[np.bool_] = 1.0 - response <= threshold
    return held


def set_sizes(target: Target, response: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.float64]:
    """Classes in each set, (N,) or (N, Q); for scores the length of the interval, (N,)."""
    if target.kind == "score":
        return np.full(len(response), 2.0 * threshold)
    return in_set(response, threshold).sum(-1).astype(np.float64)


def coverage_by_group(
    results: Sequence[Result],
    target: Target,
    truth: npt.NDArray[Any],
    groups: npt.ArrayLike,
    calibrations: Mapping[str, Calibration],
) -> pd.DataFrame:
    """How many of each group's samples have their truth in the set: rows condition, group, samples, coverage, set_size.

    Questions count one by one, and so do draws.
    """
    names, rows = np.asarray(groups), []
    for name, draws in by_condition(results).items():
        known = calibrations.get(name, Calibration())
        if known.threshold is None:
            continue
        responses = [calibrated(target, d.response, known.temperature) for d in draws]
        parts = [
            pd.DataFrame(
                {
                    "group": names[d.rows],
                    "coverage": _per_sample(strangeness(target, truth[d.rows], r) <= known.threshold),
                    "set_size": _per_sample(set_sizes(target, r, known.threshold)),
                }
            )
            for d, r in zip(draws, responses, strict=True)
        ]
        together = pd.concat(parts, ignore_index=True).groupby("group", sort=True)
        frame = together.mean().assign(samples=together.size() // len(draws), condition=name).reset_index()
        rows.append(frame)
    columns = ["condition", "group", "samples", "coverage", "set_size"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def _per_sample(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return values.reshape(len(values), -1).mean(1) if len(values) else np.zeros(0)


def by_condition(results: Sequence[Result]) -> dict[str, list[Result]]:
    """A sweep's results by condition, a condition's draws together."""
    out: dict[str, list[Result]] = {}
    for result in results:
        out.setdefault(result.condition.name, []).append(result)
    return out
