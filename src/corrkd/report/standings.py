"""Where each method stands on Avg., and whether its difference from the reference is significant:
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

SEED = 0  # of the resampling: the same folder gives the same numbers
LEVEL = 0.05  # of significance
LOWER, HIGHER = "significantly lower", "significantly higher"
EQUAL, NOT_TESTED = "not significantly different", "not tested"

Counts = Mapping[str, Mapping[int, npt.NDArray[np.int32]]]
"""By method and seed: (C, G, Q, K, K) under the missing subsets, as in
corrkd.evaluation.comparison.
"""


@dataclass(frozen=True)
class Standing:
    """One method on Avg. of weighted F1, fractions of 1.

    Attributes:
        seeds: how many it has.
        average: with its interval over groups and seeds.
        difference: from the reference, over the seeds that both have; None for the reference
            itself, or without such a seed.
        p, adjusted: of the sign-flip test of that difference, and adjusted for the family by Holm.
    """

    seeds: int
    average: Interval
    difference: Interval | None = None
    p: float | None = None
    adjusted: float | None = None

    @property
    def verdict(self) -> str:
        """How the method compares with the reference. The test holds for the trained networks
        alone, so the interval over groups and seeds has to exclude zero as well.
        """
        if self.difference is None or self.adjusted is None:
            return NOT_TESTED
        excludes_zero = self.difference.low > 0 or self.difference.high < 0
        if self.adjusted >= LEVEL or not excludes_zero:
            return EQUAL
        return LOWER if self.difference.mean < 0 else HIGHER


@dataclass(frozen=True)
class Clusters:
    """By what the tested samples are resampled: a name in the singular, how many, and how often."""

    name: str
    count: int
    draws: int

    @property
    def words(self) -> str:
        """Number and name, as in 15 persons."""
        return f"{self.count:,} {self.name}{'' if self.count == 1 else 's'}"


@dataclass(frozen=True)
class Analysis:
    """What is computed of one dataset beside its folder.

    Attributes:
        name: of its folder, which opens the names of its tables and figures where there are
            several.
        run: its folder.
        main, ablation: standings of the two families on Avg., or why there are none.
        clusters: what was resampled.
    """

    name: str
    run: RunFolder
    main: dict[str, Standing] | AbsentError
    ablation: dict[str, Standing] | AbsentError
    clusters: Clusters


def analyse(name: str, run: RunFolder, draws: int) -> Analysis:
    """Return the statistics of a dataset: seconds of work.

    Args:
        name: of its folder.
        run: its folder.
        draws: of the bootstrap and the test.
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
    """Confusion counts of every method and seed under the missing subsets.

    Raises:
        AbsentError: where predictions or groups.csv are not there.
        CorrKDError: where they do not fit together.
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
    """One method's and seed's counts."""
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
        found = wide.to_numpy(np.float64).reshape(len(wide), len(conditions), len(questions))
        if np.isnan(found).any():
            raise CorrKDError(
                f"{run.path}: the predictions of {who} are not all there; run it again"
            )
        sides.append(np.moveaxis(target.categories(found), 1, 0))
    groups = run.groups.reindex(wide.index)
    if groups.isna().any():
        raise CorrKDError(
            f"{run.path / 'groups.csv'}: sample {groups.index[groups.isna()][0]!r} has no group"
        )
    counts = confusion_counts(sides[0][0], sides[1], groups.to_numpy(str), len(target.classes))
    # A fold holds some groups only; the others have counts of zero, so that seeds with other folds
    # stack.
    everyone = np.unique(run.groups.to_numpy(str))
    total = np.zeros((counts.shape[0], len(everyone), *counts.shape[2:]), counts.dtype)
    total[:, np.searchsorted(everyone, np.unique(groups.to_numpy(str)))] = counts
    return total


def standings(
    counts: Counts, methods: Sequence[str], reference: str, draws: int
) -> dict[str, Standing]:
    """Of those among `methods` that have predictions; all but the reference are one family of
    tests.

    Args:
        counts: from `method_counts`.
        methods: names.
        reference: which of them the others are compared with.
        draws: of the bootstrap and the test.
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
    """The smallest p value that the sign-flip test can give."""
    return 2 / 2**groups if 2**groups <= draws else 1 / (1 + draws)
