"""What every table is read against, and no training changes: the majority-class floor and, where the data's law is known, the ceiling."""

from __future__ import annotations

import numpy as np
import pandas as pd

from corrkd.data.batches import Samples
from corrkd.data.dataset import Posterior
from corrkd.evaluation.judge import tabulate_bayes, tabulate_majority
from corrkd.evaluation.sweep import Result, tested_rows
from corrkd.experiment.prepare import Experiment
from corrkd.missing.conditions import Condition


def references(experiment: Experiment) -> pd.DataFrame:
    """Tidy rows of "majority" and, on the built-in dataset, "bayes"; their seed is empty, but where each seed tests a fold of its own."""
    if not experiment.cross_validated:
        return _references(experiment)
    return pd.concat([_references(experiment.at(seed), seed) for seed in experiment.settings.seeds], ignore_index=True)


def _references(experiment: Experiment, seed: int | str = "") -> pd.DataFrame:
    split = experiment.settings.evaluation.split
    samples = experiment.samples(split)
    conditions = experiment.conditions()
    truth, train = samples.targets.cpu().numpy(), experiment.samples_kept("train")
    nothing = np.empty((len(samples), 0), np.float32)
    incomplete = samples.incomplete.cpu().numpy()
    floor = [Result(c, 0, tested_rows(c, incomplete), nothing) for c in conditions]
    tables = [tabulate_majority(floor, experiment.target, train, truth, samples.modalities).assign(method="majority")]
    posterior = experiment.dataset.posterior
    if posterior is not None and experiment.target.name == "classes":
        exact = [
            _exact(c, draw, samples, posterior, split, experiment.settings.evaluation.mask_seed, incomplete)
            for c in conditions
            for draw in range(c.draws)
        ]
        tables.append(tabulate_bayes(exact, samples.modalities).assign(method="bayes"))
    return pd.concat(tables, ignore_index=True).assign(dataset=experiment.dataset.name, seed=str(seed))


def _exact(
    chosen: Condition,
    draw: int,
    samples: Samples,
    posterior: Posterior,
    split: str,
    seed: int,
    incomplete: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
) -> Result:
    dropped = chosen.dropped(samples.without_frames(), seed=seed, draw=draw)
    visible = {m: (samples.present[m] & ~dropped[m]).cpu().numpy() for m in samples.modalities}
    rows = tested_rows(chosen, incomplete)
    return Result(chosen, draw, rows, posterior(split, visible)[rows].astype(np.float32))
