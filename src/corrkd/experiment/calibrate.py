"""What an arm learns about itself before it is tested: temperatures from the validation split,
prediction sets from the people held out.
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
    """The splits that an evaluation reads, in its order; nothing is calibrated on the split that is
    tested.
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
    """The samples that an evaluation of an arm reads, by split."""
    return {name: experiment.samples(name) for name in swept_splits(experiment)}


Swept = Mapping[str, Sequence[Result]]
"""A network's answers under every condition, by split."""


def sweep_splits(
    networks: Sequence[AnyNetwork],
    experiment: Experiment,
    samples: Mapping[str, Samples],
    on_batch: Callable[[int], None] | None = None,
) -> list[Swept]:
    """Return what an evaluation needs of each of several networks of one structure.

    Args:
        networks: on the experiment's device.
        experiment: with the conditions.
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
    """Return temperature and threshold of each condition; empty where the tests are on the
    validation split.

    Args:
        swept: a network's answers, from `sweep_splits`.
        experiment: with the conditions.
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
    """What a model's card tells of its evaluation: each condition's calibration, and its metrics
    averaged over draws.
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
