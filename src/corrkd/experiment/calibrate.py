"""Calibration of an arm before it is tested: temperatures from the validation split, prediction
sets from held-out groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from corrkd.data.batches import Samples
from corrkd.data.resample import CALIBRATION
from corrkd.evaluation.calibration import Calibration, fit_temperatures, fit_thresholds
from corrkd.evaluation.sweep import Result, sweep_together
from corrkd.experiment.experiment import Experiment
from corrkd.missing.conditions import COMPLETE
from corrkd.networks.base import AnyNetwork
from corrkd.networks.evaluated import Evaluated, EvaluatedCondition
from corrkd.targets.measures import METRICS


def swept_splits(experiment: Experiment) -> tuple[str, ...]:
    """Return the splits that an evaluation uses, in order. Nothing is calibrated on the tested
    split.
    """
    tested = experiment.settings.evaluation.split
    if tested == "valid":
        return (tested,)
    return (
        "valid",
        *(name for name in (CALIBRATION,) if name in experiment.dataset.splits),
        tested,
    )


def swept_samples(experiment: Experiment) -> dict[str, Samples]:
    """Return the samples that an evaluation uses, by split."""
    return {name: experiment.samples(name) for name in swept_splits(experiment)}


Swept = Mapping[str, Sequence[Result]]
"""Results of a network under every condition, by split."""


def sweep_splits(
    networks: Sequence[AnyNetwork],
    experiment: Experiment,
    samples: Mapping[str, Samples],
    on_batch: Callable[[int], None] | None = None,
) -> list[Swept]:
    """Return the results of networks of one structure on the splits of an evaluation.

    Args:
        networks: on the experiment's device.
        experiment: experiment with the conditions.
        samples: from `swept_samples`.
        on_batch: called with the number of samples done.
    """
    evaluation = experiment.settings.evaluation
    shown = tuple(dict.fromkeys((COMPLETE, experiment.projection())))
    by_split = {
        name: sweep_together(
            networks,
            split,
            experiment.conditions(),
            mask_seed=evaluation.mask_seed,
            batch_size=evaluation.batch_size,
            keep_representations=shown if name == evaluation.split else (),
            on_batch=on_batch,
        )
        for name, split in samples.items()
    }
    return [
        {name: results[index] for name, results in by_split.items()}
        for index in range(len(networks))
    ]


def calibrate(
    swept: Swept, experiment: Experiment, samples: Mapping[str, Samples]
) -> dict[str, Calibration]:
    """Return the temperature and threshold of each condition; empty if the tested split is the
    validation split.

    Args:
        swept: results of a network, from `sweep_splits`.
        experiment: experiment with the conditions.
        samples: from `swept_samples`.
    """
    evaluation = experiment.settings.evaluation
    if evaluation.split == "valid":
        return {}
    target = experiment.target
    temperatures = fit_temperatures(swept["valid"], target, samples["valid"].targets.cpu().numpy())
    thresholds: Mapping[str, float] = {}
    if CALIBRATION in samples:
        groups, truth = experiment.groups(CALIBRATION), samples[CALIBRATION].targets.cpu().numpy()
        thresholds = fit_thresholds(
            swept[CALIBRATION], target, truth, groups, evaluation.coverage, temperatures
        )
    return {
        condition.name: Calibration(
            temperatures.get(condition.name, 1.0), thresholds.get(condition.name)
        )
        for condition in experiment.conditions()
    }


def found_out(
    experiment: Experiment,
    table: pd.DataFrame,
    calibrations: Mapping[str, Calibration],
    samples: int,
) -> Evaluated:
    """Return the evaluation results for a model's card: the calibration of each condition, and its
    metrics averaged over draws.

    Args:
        experiment: experiment with the conditions.
        table: tidy rows of metrics, from `corrkd.evaluation.judge.tabulate`.
        calibrations: by condition, from `calibrate`.
        samples: number of tested samples.
    """
    kept = [*METRICS, *(m for m in experiment.target.tabled_metrics if m not in METRICS)]
    inside = table[table["metric"].isin(kept)]
    means = inside.groupby(["condition", "metric"])["value"].agg(
        lambda values: values.mean(skipna=False)
    )
    conditions = []
    for c in experiment.conditions():
        calibration = calibrations.get(c.name, Calibration())
        bounded = calibration.threshold is not None and math.isfinite(calibration.threshold)
        values = {m: float(means[c.name, m]) for m in kept if (c.name, m) in means.index}
        conditions.append(
            EvaluatedCondition.of(
                c,
                temperature=calibration.temperature,
                threshold=calibration.threshold if bounded else None,
                measured={m: value for m, value in values.items() if math.isfinite(value)},
            )
        )
    return Evaluated(
        split=experiment.settings.evaluation.split,
        samples=samples,
        data=experiment.dataset.name,
        level=experiment.settings.evaluation.coverage
        if CALIBRATION in swept_splits(experiment)
        else None,
        conditions=tuple(conditions),
    )
