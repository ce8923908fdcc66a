"""The standing of each method on Avg., and whether it differs significantly from the reference,
from stored predictions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from corrkd.errors import CorrKDError
from corrkd.evaluation.comparison import (
    Interval,
    confusion_counts,
    group_interval,
    holm,
    paired_group_interval,
    sign_flip_test,
)
from corrkd.missing.conditions import missing_subsets
from corrkd.report import tables
from corrkd.report.run_folder import AbsentError, RunFolder

SEED = 0  # of the resampling, so that the same folder gives the same numbers
LEVEL = 0.05  # of significance
LOWER, HIGHER = "significantly lower", "significantly higher"
EQUAL, NOT_TESTED = "not significantly different", "not tested"

Counts = Mapping[str, Mapping[int, npt.NDArray[np.int32]]]
"""Confusion counts under the missing subsets, (C, G, Q, K, K) as in `corrkd.evaluation.comparison`,
by method and seed.
"""


@dataclass(frozen=True)
class Standing:
    """The standing of one method on Avg. of weighted F1, in fractions of 1.

    Attributes:
        seeds: number of seeds.
        average: Avg. with its interval over groups and seeds.
        difference: difference from the reference over common seeds; None for the reference, or
            without common seeds.
        p: p value of the sign-flip test of the difference.
        adjusted: p, adjusted for the family by Holm's method.
    """

    seeds: int
    average: Interval
    difference: Interval | None = None
    p: float | None = None
    adjusted: float | None = None

    @property
    def verdict(self) -> str:
        """How the method compares with the reference. The interval over groups and seeds has to
        exclude zero too, because the test is valid only for the trained networks.
        """
        if self.difference is None or self.adjusted is None:
            return NOT_TESTED
        excludes_zero = self.difference.low > 0 or self.difference.high < 0
        if self.adjusted >= LEVEL or not excludes_zero:
            return EQUAL
        return LOWER if self.difference.mean < 0 else HIGHER


@dataclass(frozen=True)
class Clusters:
    """The units of the resampling: their name in the singular, their number, and the number of
    draws.
    """

    name: str
    count: int
    draws: int

    @property
    def words(self) -> str:
        """Number and name, as in "15 persons"."""
        return f"{self.count:,} {self.name}{'' if self.count == 1 else 's'}"


@dataclass(frozen=True)
class Analysis:
    """The statistics of one dataset.

    Attributes:
        name: name of its folder, which is the prefix of its tables and figures if there are several
            datasets.
        run: its folder.
        main, ablation: standings of the two families on Avg., or why there are none.
        clusters: units of the resampling.
    """

    name: str
    run: RunFolder
    main: dict[str, Standing] | AbsentError
    ablation: dict[str, Standing] | AbsentError
    clusters: Clusters


def analyse(name: str, run: RunFolder, draws: int) -> Analysis:
    """Return the statistics of a dataset, which takes seconds.

    Args:
        name: name of its folder.
        run: its folder.
        draws: number of draws of the bootstrap and the test.

    Raises:
        CorrKDError: if predictions and groups.csv cannot be read or do not fit together.
    """
    try:
        counts = method_counts(run)
    except AbsentError as error:
        return Analysis(name, run, error, error, Clusters(run.card.groups.name, 0, draws))
    num_groups = next(iter(next(iter(counts.values())).values())).shape[1]
    main = standings(counts, tables.main_methods(run), run.reference, draws)
    ablation = standings(counts, tables.ablation_methods(run), run.reference, draws)
    clusters = Clusters(run.card.groups.name, num_groups, draws)
    return Analysis(
        name,
        run,
        main,
        ablation or AbsentError("No arm of the ablation has predictions."),
        clusters,
    )


def method_counts(run: RunFolder) -> Counts:
    """Return the confusion counts of each method and seed under the missing subsets.

    Raises:
        AbsentError: if predictions or groups.csv do not exist.
        CorrKDError: if they cannot be read or do not fit together.
    """
    conditions = [c.name for c in missing_subsets(run.modalities)]
    columns = ["method", "condition", "draw", "id", "question", "target", "prediction"]
    counts: dict[str, dict[int, npt.NDArray[np.int32]]] = {}
    for part in run.prediction_parts(conditions, columns):
        for method, arm_rows in part[part["draw"] == 0].groupby("method"):
            seed = int(arm_rows["seed"].iloc[0])
            counts.setdefault(str(method), {})[seed] = _counted(
                run, arm_rows, conditions, f"{method}, seed {seed}"
            )
    if not counts:
        raise AbsentError("The stored predictions hold none under the missing subsets.")
    return counts


def _counted(
    run: RunFolder, rows: pd.DataFrame, conditions: Sequence[str], who: str
) -> npt.NDArray[np.int32]:
    """Return the confusion counts of one method and seed, (C, G, Q, K, K)."""
    target = run.card.target
    questions = target.questions or ("",)
    order = pd.MultiIndex.from_product([conditions, questions])
    sides = []
    for side in ("target", "prediction"):
        try:
            wide = rows.pivot(index="id", columns=["condition", "question"], values=side).reindex(
                columns=order
            )
        except ValueError:
            raise CorrKDError(f"{run.path}: the predictions of {who} name a sample twice") from None
        responses = wide.to_numpy(np.float64).reshape(len(wide), len(conditions), len(questions))
        if np.isnan(responses).any():
            raise CorrKDError(
                f"{run.path}: the predictions of {who} are not all there; run it again"
            )
        sides.append(np.moveaxis(target.categories(responses), 1, 0))
    groups = run.groups.reindex(wide.index)
    if groups.isna().any():
        raise CorrKDError(
            f"{run.path / 'groups.csv'}: sample {groups.index[groups.isna()][0]!r} has no group"
        )
    counts = confusion_counts(sides[0][0], sides[1], groups.to_numpy(str), len(target.classes))
    # Groups outside a fold get counts of zero, so that seeds with different folds can be stacked.
    everyone = np.unique(run.groups.to_numpy(str))
    total = np.zeros((counts.shape[0], len(everyone), *counts.shape[2:]), counts.dtype)
    total[:, np.searchsorted(everyone, np.unique(groups.to_numpy(str)))] = counts
    return total


def standings(
    counts: Counts, methods: Sequence[str], reference: str, draws: int
) -> dict[str, Standing]:
    """Return the standings of the methods that have predictions. All but the reference are one
    family of tests.

    Args:
        counts: from `method_counts`.
        methods: names of the methods.
        reference: name of the method that the others are compared with.
        draws: number of draws of the bootstrap and the test.
    """
    out = {m: _standing(m, counts, reference, draws) for m in methods if m in counts}
    tested = [m for m, standing in out.items() if standing.p is not None]
    adjusted = holm([out[m].p or 0.0 for m in tested])
    return out | {
        m: replace(out[m], adjusted=float(p)) for m, p in zip(tested, adjusted, strict=True)
    }


def _standing(method: str, counts: Counts, reference: str, draws: int) -> Standing:
    arm_counts, others = counts[method], counts.get(reference, {})
    chance: dict[str, Any] = {"seed": SEED, "draws": draws}
    average = group_interval(np.stack([arm_counts[seed] for seed in sorted(arm_counts)]), **chance)
    common = sorted(arm_counts.keys() & others.keys())
    if method == reference or not common:
        return Standing(len(arm_counts), average)
    pair = [np.stack([side[seed] for seed in common]) for side in (arm_counts, others)]
    return Standing(
        len(arm_counts),
        average,
        paired_group_interval(*pair, **chance),
        sign_flip_test(*pair, **chance),
    )


def least_p(groups: int, draws: int) -> float:
    """Return the smallest p value that the sign-flip test can give."""
    return 2 / 2**groups if 2**groups <= draws else 1 / (1 + draws)
