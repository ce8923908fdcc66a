"""References in every table that need no training: the floors and, for data with exact posteriors,
the ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from corrkd.data.batches import Samples
from corrkd.data.dataset import BoolArray, IntArray
from corrkd.evaluation.floors import LengthFloor, lengths_vary
from corrkd.evaluation.judge import tabulate_bayes, tabulate_predictions
from corrkd.evaluation.sweep import Result
from corrkd.experiment.experiment import Experiment
from corrkd.targets.classes import ClassesTarget

MAJORITY, BY_LENGTH, BAYES = "majority", "by-length", "bayes"
Visible = Mapping[str, BoolArray]


def references(experiment: Experiment) -> pd.DataFrame:
    """Return the rows of the floors and the ceiling: "majority", "by-length" if lengths vary,
    "bayes" on the built-in dataset.

    Their seed is empty, unless each seed has a separate test fold.
    """
    if not experiment.cross_validated:
        return _references(experiment)
    return pd.concat(
        [_references(experiment.at(seed), seed) for seed in experiment.settings.seeds],
        ignore_index=True,
    )


def _references(experiment: Experiment, seed: int | str = "") -> pd.DataFrame:
    evaluation, target = experiment.settings.evaluation, experiment.target
    samples, train = experiment.samples(evaluation.split), experiment.dataset.split("train")
    truth, labels = samples.targets.cpu().numpy(), experiment.targets("train")
    counted = experiment.target.of(train, f"dataset {experiment.dataset.name}, train")[1]
    incomplete = samples.incomplete.cpu().numpy()
    runs = [(c, draw) for c in experiment.conditions() for draw in range(c.draws)]
    batch, mask_seed = samples.without_frames(), evaluation.mask_seed
    nothing = np.empty((len(samples), 0), np.float32)
    results = [Result(c, draw, c.tested_rows(incomplete), nothing) for c, draw in runs]
    first = [result for result in results if result.draw == 0]

    def floor(
        name: str, predictions: Mapping[tuple[str, int], npt.NDArray[Any]], of: list[Result]
    ) -> pd.DataFrame:
        return tabulate_predictions(predictions, of, target, truth, samples.modalities).assign(
            method=name
        )

    constant = np.broadcast_to(target.majority(labels), truth.shape)
    tables = [floor(MAJORITY, {(r.condition.name, 0): constant for r in first}, first)]
    lengths = {m: x[counted] for m, x in train.lengths.items()}
    if lengths_vary(lengths):
        by_length = LengthFloor(
            target,
            labels,
            lengths,
            _visible_modalities({m: x[counted] for m, x in train.present.items()}),
        )
        tested = _lengths(samples)
        predictions = {
            (c.name, draw): by_length.predict(
                tested, _visible_modalities(_arrays(c.visible(batch, seed=mask_seed, draw=draw)))
            )
            for c, draw in runs
        }
        tables.append(floor(BY_LENGTH, predictions, results))
    posterior = experiment.dataset.posterior
    if posterior is not None and type(target) is ClassesTarget and not target.is_of_score:
        exact = []
        for result in results:
            # The ceiling is for a classifier that knows which frames are replaced by noise.
            dropped = result.condition.dropped(batch, seed=mask_seed, draw=result.draw)
            response = posterior(evaluation.split, _arrays(batch.visible(dropped)))[
                result.rows
            ].astype(np.float32)
            exact.append(Result(result.condition, result.draw, result.rows, response))
        tables.append(tabulate_bayes(exact, samples.modalities).assign(method=BAYES))
    return pd.concat(tables, ignore_index=True).assign(
        dataset=experiment.dataset.name, seed=str(seed)
    )


def _arrays(masks: Mapping[str, Tensor]) -> Visible:
    return {m: mask.cpu().numpy() for m, mask in masks.items()}


def _visible_modalities(visible: Visible) -> dict[str, BoolArray]:
    return {m: np.asarray(mask.any(1)) for m, mask in visible.items()}


def _lengths(samples: Samples) -> dict[str, IntArray]:
    return {m: exists.sum(1).cpu().numpy() for m, exists in samples.exists.items()}
