"""The conditions by name, and their kinds, including those of other packages (entry points in the
group `corrkd.conditions`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from corrkd import plugins
from corrkd.errors import CorrKDError
from corrkd.missing.conditions.at_ratio import AtRatio
from corrkd.missing.conditions.base import Condition
from corrkd.missing.conditions.protocols import PROTOCOLS
from corrkd.missing.conditions.subset import COMPLETE, Subset
from corrkd.parsing import quoted
from corrkd.settings import EvaluationSettings, first_line

GROUP = "corrkd.conditions"
BUILT_IN = {
    "ratio": "corrkd.missing.conditions.ratio:Ratio",
    "burst": "corrkd.missing.conditions.burst:Burst",
    "late": "corrkd.missing.conditions.late:Late",
    "noise": "corrkd.missing.conditions.noise:Noise",
    "natural": "corrkd.missing.conditions.natural:Natural",
    "intact": "corrkd.missing.conditions.natural:Intact",
    "absent": "corrkd.missing.conditions.absent:Absent",
}
AVERAGE, RATIOS = "average", "ratios"  # rows of results besides the conditions
MOST_MODALITIES = 10  # with 1,023 subsets
LONGEST_NAME = 100  # of a condition other than a subset


def condition_class(kind: str) -> type[Condition]:
    """Return the class of a kind. Raises CorrKDError if the kind is unknown, or its name contains
    "-" and could not be parsed.
    """
    class_: type[Condition] = plugins.find(
        kind, BUILT_IN, GROUP, Condition, "condition", attribute="kind"
    )
    if "-" in kind:
        raise CorrKDError(f"condition {kind!r}: the name of a kind of condition must have no -")
    return class_


def subsets(modalities: Sequence[str]) -> list[Condition]:
    """Return every non-empty subset of the modalities, smallest first; the last is "complete".

    Raises:
        CorrKDError: if a modality has the name of a condition or of a row of results, or there are
            too many modalities.
    """
    _check_modalities(modalities)
    sizes = range(1, len(modalities) + 1)
    return [
        Subset.of(kept, modalities)
        for size in sizes
        for kept in itertools.combinations(modalities, size)
    ]


def missing_subsets(modalities: Sequence[str]) -> list[Condition]:
    """Return all subsets except the complete one, over which "Avg." is the mean. With one modality,
    return the complete one.
    """
    return subsets(modalities)[:-1] or subsets(modalities)


def condition(name: str, modalities: Sequence[str], draws: int = 1) -> Condition:
    """Return a condition by name. Raises CorrKDError with the valid names if it is unknown."""
    _check_modalities(modalities)
    kind = name.partition("-")[0]
    match: Condition | None = Subset.parse(name, modalities)
    if match is None and len(name) <= LONGEST_NAME and (kind in BUILT_IN or kind in _other_kinds()):
        match = condition_class(kind).parse(name, modalities, draws)
    if match is None:
        ratios = [f"{other.kind}-R" for other in _built_in() if issubclass(other, AtRatio)]
        plain = [other.kind for other in _built_in() if not issubclass(other, AtRatio)]
        raise CorrKDError(
            f"unknown condition {quoted(name)}; available: complete, {', '.join(modalities)}, "
            f"sums such as {'+'.join(modalities[:2])}, {', '.join([*plain, *_other_kinds()])} "
            f"and {', '.join(ratios)} with R from 0 to 1"
        )
    return match


def named_conditions(
    names: Iterable[str], modalities: Sequence[str], draws: int
) -> list[Condition]:
    """Return several conditions by name, without duplicates, in the given order. The name of a
    protocol's mean selects the protocol's conditions.
    """
    protocols = {protocol.row: protocol for protocol in PROTOCOLS.values()}
    chosen: dict[str, Condition] = {}
    for name in names:
        several = (
            protocols[name].conditions(modalities, draws)
            if name in protocols
            else [condition(name, modalities, draws)]
        )
        chosen |= {c.name: c for c in several}
    return list(chosen.values())


def check_settings(values: Mapping[str, Any]) -> dict[type[Condition], Any]:
    """Return the values of `evaluation.conditions` by class. Raises CorrKDError if a kind is
    unknown or its class refuses the value.
    """
    checked = {}
    for kind, value in values.items():
        try:
            condition = condition_class(kind)
            adapter = TypeAdapter(dict[str, condition.settings_type])  # type: ignore[name-defined]
            checked[condition] = adapter.validate_python({kind: value})[kind]
        except ValidationError as error:
            raise CorrKDError(f"settings: evaluation.conditions.{first_line(error)}") from None
        except CorrKDError as error:
            raise CorrKDError(f"settings: evaluation.conditions: {error}") from None
    return checked


def standard_conditions(
    modalities: Sequence[str], settings: EvaluationSettings, *, incomplete: npt.NDArray[np.bool_]
) -> list[Condition]:
    """Return the conditions of an evaluation: every subset, then those that the settings ask for.

    Args:
        modalities: names of the dataset's modalities.
        settings: settings of the evaluation.
        incomplete: (N,) booleans: tested samples that are incomplete in the data. Conditions that
            would test no sample are left out.

    Raises:
        CorrKDError: if a modality has the name of a condition, or the settings are wrong.
    """
    kinds = check_settings(settings.conditions)
    _check_modalities(modalities, tuple(kinds))
    configured = [
        c
        for kind, value in kinds.items()
        for c in kind.from_settings(value, modalities, settings.draws)
    ]
    for name in settings.protocols:
        configured += [
            c for c in PROTOCOLS[name].conditions(modalities, settings.draws) if c not in configured
        ]
    for c in configured:
        # Reports and manifests store only the name.
        if condition(c.name, modalities, settings.draws) != c:
            raise CorrKDError(
                f"condition {c.name!r}: {type(c).__name__}.parse reads another condition from "
                f"its name"
            )
    return subsets(modalities) + [
        c
        for c in configured
        # Of data without natural missingness, the intact samples are all samples.
        if len(c.tested_rows(incomplete)) and (incomplete.any() or not c.intact_samples_only)
    ]


def _check_modalities(modalities: Sequence[str], kinds: Sequence[type[Condition]] = ()) -> None:
    """Raise CorrKDError if a modality could be mistaken for a condition, also of `kinds`, or there
    are too many modalities.
    """
    if len(modalities) > MOST_MODALITIES:
        raise CorrKDError(
            f"{len(modalities)} modalities have too many subsets to test; use at most "
            f"{MOST_MODALITIES}"
        )
    kinds = (*_built_in(), *kinds)
    for m in modalities:
        if (
            m in ("", COMPLETE, AVERAGE, RATIOS, *(p.row for p in PROTOCOLS.values()))
            or {"+", ","} & set(m)
            or any(kind.claims(m) for kind in kinds)
        ):
            raise CorrKDError(
                f"modality {m!r}: its name means something else in the results; give it another"
            )


def _built_in() -> list[type[Condition]]:
    return [condition_class(kind) for kind in BUILT_IN]


def _other_kinds() -> tuple[str, ...]:
    return plugins.names(BUILT_IN, GROUP)[len(BUILT_IN) :]
