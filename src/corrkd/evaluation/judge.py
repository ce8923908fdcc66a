"""Metrics of a network under every condition, as tidy rows. All results are computed here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from corrkd.data.batches import Batch, Samples
from corrkd.data.dataset import BoolArray, FloatArray, MultimodalDataset
from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError
from corrkd.evaluation.bayes import best_expected_weighted_f1
from corrkd.evaluation.calibration import Calibration
from corrkd.evaluation.metrics import area_under_ratios
from corrkd.evaluation.sweep import MaskSource, Result, sweep
from corrkd.missing.conditions import (
    AVERAGE,
    PROTOCOLS,
    RATIOS,
    Condition,
    Family,
    missing_subsets,
    named_conditions,
    standard_conditions,
)
from corrkd.missing.manifest import Manifest, make_manifest
from corrkd.networks.saved import SavedNetwork
from corrkd.settings import MASK_SEED, EvaluationSettings
from corrkd.targets.base import Target
from corrkd.targets.measures import F1

COLUMNS = ["condition", "draw", "metric", "value"]

Predictor = Callable[
    [Mapping[str, FloatArray], Mapping[str, BoolArray], Mapping[str, BoolArray]], npt.ArrayLike
]
"""(frames, exists, visible) of N samples, each by modality as in `Inputs` -> probabilities (N, K)
or (N, Q, 2), or scores (N, 1).
"""


def evaluate(
    student: SavedNetwork,
    dataset: Any,
    *,
    split: str = "test",
    conditions: Sequence[str] | None = None,
    draws: int = 3,
    mask_seed: int = MASK_SEED,
    masks: Manifest | None = None,
    batch_size: int = 256,
    on_batch: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Return the metrics of a trained network on a dataset, under the standard or the named
    conditions.

    Args:
        student: from `load_student`; its normalisation and thresholds are applied.
        dataset: raw features, with the student's modalities: a `MultimodalDataset`, or anything
            that `load_dataset` takes. A dataset without splits is split as for a run, so that no
            sample is tested on which the run was trained.
        split: which samples.
        conditions: names as in `corrkd.missing.conditions`; default: the manifest's, or the
            standard ones.
        draws: random draws of each ratio and burst.
        mask_seed: seed of the masks; the default is that of every run.
        masks: masks to replay instead of drawing new ones.
        batch_size: changes memory only.
        on_batch: called with the number of samples done.

    Returns:
        Tidy rows: condition, draw, metric, value (a fraction of 1; NaN if a metric is undefined).
        "average" is the mean over the missing subsets, "ratios" the area under the curve over
        missing ratios, "mean-lnln" and "mean-gcnet" the means of those protocols.

    Raises:
        CorrKDError: if the split, a modality or a condition is unknown, a width differs, or the
            manifest is for other samples.
    """
    dataset = load_dataset(dataset)
    samples = samples_of(
        student, student.fit(dataset), split, device=next(student.network.parameters()).device
    )
    chosen = (
        masks.conditions
        if masks and conditions is None
        else conditions_of(samples, conditions, draws)
    )
    results = sweep(
        student.network,
        samples,
        chosen,
        masks=masks.replay(samples) if masks else None,
        mask_seed=masks.seed if masks else mask_seed,
        batch_size=batch_size,
        on_batch=on_batch,
    )
    return tabulate(
        results,
        samples.target,
        samples.targets.cpu().numpy(),
        student.modalities,
        calibrations_of(student),
    )


def calibrations_of(saved: SavedNetwork) -> dict[str, Calibration]:
    """Return the calibrations on the model's card by condition; empty if it was not evaluated."""
    if saved.evaluated is None:
        return {}

    def threshold(tolerance: float | None) -> float | None:
        if saved.evaluated is None or saved.evaluated.level is None:
            return None
        return math.inf if tolerance is None else tolerance

    return {
        c.name: Calibration(c.temperature, threshold(c.threshold))
        for c in saved.evaluated.conditions
    }


def judge_predictor(
    predict: Predictor,
    samples: Samples,
    *,
    conditions: Sequence[str] | None = None,
    draws: int = 3,
    mask_seed: int = MASK_SEED,
    masks: Manifest | None = None,
    batch_size: int = 256,
    on_batch: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Evaluate any predictor, under the same conditions and masks and with the same metrics as
    `evaluate`.

    Args:
        predict: takes three mappings by modality for a batch: frames (N, T_m, d_m), normalised as
            in `samples` and zero where not visible, and the boolean masks `exists` (N, T_m) (not
            padding) and `visible` (N, T_m) (exists, not naturally missing, not dropped). Under
            "noise" the affected frames are noise and count as visible.
        samples: a split.
        conditions, draws, mask_seed, masks, on_batch: as for `evaluate`.
        batch_size: samples in each call of `predict`.

    Returns:
        Tidy rows as from `evaluate`.

    Raises:
        CorrKDError: if a condition is unknown, the manifest is for other samples, or an output has
            a wrong shape, is not finite or is not a probability.
    """
    chosen = (
        masks.conditions
        if masks and conditions is None
        else conditions_of(samples, conditions, draws)
    )
    source = masks.replay(samples) if masks else None
    seed = masks.seed if masks else mask_seed
    runs = [(condition, draw) for condition in chosen for draw in range(condition.draws)]
    outputs: list[list[npt.NDArray[np.float32]]] = [[] for _ in runs]
    for batch in samples.batches(batch_size):
        for (condition, draw), out in zip(runs, outputs, strict=True):
            out.append(
                _checked_output(
                    predict(*_condition_arrays(batch, condition, draw, source, seed)),
                    len(batch),
                    samples.target,
                )
            )
        if on_batch:
            on_batch(len(batch))
    incomplete = samples.incomplete.cpu().numpy()
    results = []
    for (condition, draw), parts in zip(runs, outputs, strict=True):
        rows = condition.tested_rows(incomplete)
        results.append(Result(condition, draw, rows, np.concatenate(parts)[rows]))
    return tabulate(results, samples.target, samples.targets.cpu().numpy(), samples.modalities)


def _condition_arrays(
    batch: Batch, condition: Condition, draw: int, source: MaskSource | None, seed: int
) -> tuple[dict[str, FloatArray], dict[str, BoolArray], dict[str, BoolArray]]:
    """Return frames, exists and visible of a batch for a predictor; invisible frames are zero."""
    replayed = None if source is None else source(condition, draw, batch)
    inputs = condition.apply(batch, seed=seed, draw=draw, masks=replayed)
    hidden = {
        m: torch.where(inputs.visible[m][..., None], x, 0.0) for m, x in inputs.frames.items()
    }
    return _arrays(hidden), _arrays(inputs.exists), _arrays(inputs.visible)


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {m: x.cpu().numpy() for m, x in tensors.items()}


def _checked_output(output: npt.ArrayLike, count: int, target: Target) -> npt.NDArray[np.float32]:
    values = np.asarray(output, np.float32)
    expected = (count, *target.response_shape)
    if values.shape != expected:
        raise CorrKDError(
            f"predictor: answered with shape {values.shape}, expected {expected} for target "
            f"`{target.name}`"
        )
    if not np.isfinite(values).all():
        raise CorrKDError("predictor: answered with NaN or infinite values")
    if target.has_classes and ((values < 0).any() or (np.abs(values.sum(-1) - 1) > 1e-3).any()):
        raise CorrKDError(
            "predictor: expected probabilities, not negative and summing to 1 over the classes"
        )
    return values


def masks_of(
    student: SavedNetwork,
    dataset: MultimodalDataset,
    *,
    split: str = "test",
    conditions: Sequence[str] | None = None,
    draws: int = 3,
    mask_seed: int = MASK_SEED,
) -> Manifest:
    """Return the masks that `evaluate` applies with the same arguments, to save and replay them."""
    samples = samples_of(student, student.fit(dataset), split, device=torch.device("cpu"))
    return make_manifest(samples, conditions_of(samples, conditions, draws), seed=mask_seed)


def conditions_of(samples: Samples, names: Sequence[str] | None, draws: int) -> Sequence[Condition]:
    """Return the named conditions, or the standard ones if `names` is None. Raises CorrKDError if
    `names` is empty, a name is unknown, or a condition has no sample in the split.
    """
    incomplete = samples.incomplete.cpu().numpy()
    if names is not None:
        chosen = named_conditions(names, samples.modalities, draws)
        if not chosen:
            raise CorrKDError("conditions: none named")
        for c in chosen:
            if not len(c.tested_rows(incomplete)):
                what = "incomplete" if c.incomplete_samples_only else "complete"
                raise CorrKDError(f"conditions: {c.name}: no sample is naturally {what}")
        return chosen
    return standard_conditions(
        samples.modalities, EvaluationSettings(draws=draws), incomplete=incomplete
    )


def samples_of(
    student: SavedNetwork,
    dataset: MultimodalDataset,
    split: str,
    *,
    device: torch.device,
    resident_bytes: float = 4e9,
) -> Samples:
    """Return a split's samples for the student's target, normalised for its network. Raises
    CorrKDError if the split is unknown or no sample counts for the target.
    """
    chosen = dataset.split(split)
    where = f"dataset {dataset.name}, {split}"
    samples = Samples(
        chosen,
        student.target,
        student.normalisation,
        device=device,
        where=where,
        resident_bytes=resident_bytes,
    )
    if not len(samples):
        raise CorrKDError(f"{where}: no sample counts for target `{student.target.name}`")
    return samples


def tabulate(
    results: Sequence[Result],
    target: Target,
    truth: npt.NDArray[Any],
    modalities: Sequence[str],
    calibrations: Mapping[str, Calibration] | None = None,
) -> pd.DataFrame:
    """Return tidy rows of a sweep's metrics, with "average" and "ratios" if it has their
    conditions.

    `calibrations`, by condition, add `ece_calibrated`, and with thresholds `coverage` and
    `set_size`.
    """

    def measure(result: Result) -> dict[str, float]:
        targets, calibration = truth[result.rows], (calibrations or {}).get(result.condition.name)
        out = target.measure(targets, result.response)
        return (
            out
            if calibration is None
            else {**out, **_calibrated(target, targets, result, calibration)}
        )

    return _table(results, modalities, measure)


def _calibrated(
    target: Target, truth: npt.NDArray[Any], result: Result, calibration: Calibration
) -> dict[str, float]:
    """Return the metrics of a response that is calibrated for its condition."""
    response = target.calibrate(result.response, calibration.temperature)
    error = target.calibration_error(truth, response)
    out = {} if error is None else {"ece_calibrated": error}
    if calibration.threshold is not None:
        out["coverage"] = float(
            (target.nonconformity(truth, response) <= calibration.threshold).mean()
        )
        out["set_size"] = float(target.set_sizes(response, calibration.threshold).mean())
    return out


def tabulate_predictions(
    predictions: Mapping[tuple[str, int], npt.NDArray[Any]],
    results: Sequence[Result],
    target: Target,
    truth: npt.NDArray[Any],
    modalities: Sequence[str],
) -> pd.DataFrame:
    """Return the rows of `tabulate` for predictions without probabilities: (N,) or (N, Q) for the
    whole split, by condition and draw.
    """

    def measure(result: Result) -> dict[str, float]:
        values = predictions[result.condition.name, result.draw]
        return target.measure_predictions(truth[result.rows], values[result.rows])

    return _table(results, modalities, measure)


def tabulate_bayes(results: Sequence[Result], modalities: Sequence[str]) -> pd.DataFrame:
    """Return the ceiling, from exact posteriors as responses: the Bayes accuracy and the maximal
    weighted F1.

    Both are expectations under the exact posteriors, not values on the sampled labels: the average
    scores of the best possible classifier.
    """

    def ceiling(result: Result) -> dict[str, float]:
        posterior = result.response.astype(np.float64)
        return {
            F1: best_expected_weighted_f1(posterior)[1],
            "accuracy": float(posterior.max(1).mean()),
        }

    return _table(results, modalities, ceiling)


def _table(
    results: Sequence[Result],
    modalities: Sequence[str],
    measure: Callable[[Result], dict[str, float]],
) -> pd.DataFrame:
    rows = [
        (result.condition.name, result.draw, metric, value)
        for result in results
        for metric, value in measure(result).items()
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    area = _area(table, [r.condition for r in results])
    return pd.concat(
        [table, _average(table, modalities), area, *protocol_means(table, modalities)],
        ignore_index=True,
    )


def _average(table: pd.DataFrame, modalities: Sequence[str]) -> pd.DataFrame:
    names = [c.name for c in missing_subsets(modalities)]
    inside = table[table["condition"].isin(names)]
    if inside["condition"].nunique() < len(names):
        return pd.DataFrame(columns=COLUMNS).astype(table.dtypes)
    # A metric undefined under one condition (e.g. a correlation) is undefined on average.
    means = inside.groupby("metric", sort=False)["value"].agg(_strict_mean)
    return pd.DataFrame(
        [(AVERAGE, 0, metric, value) for metric, value in means.items()], columns=COLUMNS
    )


def protocol_means(table: pd.DataFrame, modalities: Sequence[str]) -> list[pd.DataFrame]:
    """Return the rows of each protocol that has all its conditions in a table of results. Draws are
    averaged first, then conditions.

    Args:
        table: tidy rows of the conditions (condition, draw, metric, value).
        modalities: names of the dataset's modalities.
    """
    means = []
    for protocol in PROTOCOLS.values():
        names = [c.name for c in protocol.conditions(modalities)]
        if set(names) <= set(table["condition"]):
            inside = table[table["condition"].isin(names)]
            by_condition = inside.groupby(["metric", "condition"], sort=False)["value"].agg(
                _strict_mean
            )
            by_metric = by_condition.groupby("metric", sort=False).agg(["size", _strict_mean])
            complete = by_metric.loc[by_metric["size"] == len(names), _strict_mean.__name__]
            means.append(
                pd.DataFrame(
                    [(protocol.row, 0, metric, value) for metric, value in complete.items()],
                    columns=COLUMNS,
                )
            )
    return means


def _strict_mean(values: pd.Series[float]) -> float:
    """Return the mean, NaN if any value is NaN."""
    return float(values.mean(skipna=False))


def _area(table: pd.DataFrame, conditions: Sequence[Condition]) -> pd.DataFrame:
    ratios = {
        c.name: c.ratio for c in conditions if c.family is Family.RATIOS and c.ratio is not None
    }
    if len(ratios) < 2:
        return pd.DataFrame(columns=COLUMNS).astype(table.dtypes)
    rows = []
    for metric in (F1, "accuracy"):
        inside = table[table["condition"].isin(ratios) & (table["metric"] == metric)]
        mean = inside.groupby("condition", sort=False)["value"].mean()
        area = area_under_ratios([ratios[str(name)] for name in mean.index], list(mean))
        rows.append((RATIOS, 0, f"auc_{metric}", area))
    return pd.DataFrame(rows, columns=COLUMNS)
