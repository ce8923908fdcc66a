"""Evaluation results of a model under each condition, as stored on its card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from corrkd.missing.conditions import Condition, Family

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class EvaluatedCondition(_Frozen):
    """Results under one condition.

    Attributes:
        name, kind, available, ratio: as in `corrkd.missing.conditions.Condition`.
        rates_samples: whether the results say how reliable predictions are: for samples with about
            `ratio` of their frames missing or, without a ratio, for samples with exactly the
            `available` modalities.
        temperature: divisor of the logits under the condition, fitted on the validation split.
        threshold: threshold of the prediction sets (`corrkd.evaluation.calibration`); None: nothing
            is left out of them.
        measured: metrics on the tested split, as fractions of 1, without those that are undefined.
    """

    name: str
    kind: str
    available: tuple[str, ...]
    ratio: Share | None = None
    rates_samples: bool = True
    temperature: Annotated[float, Field(ge=0.01, le=100.0)] = 1.0
    threshold: Annotated[float, Field(ge=0.0)] | None = None
    measured: Mapping[str, float] = Field(default_factory=dict)

    @classmethod
    def of(cls, condition: Condition, **values: Any) -> EvaluatedCondition:
        """Return the card entry of a condition; `values`: temperature, threshold, measured."""
        return cls(
            name=condition.name,
            kind=condition.kind,
            available=condition.available,
            ratio=condition.ratio,
            rates_samples=condition.family is not Family.OTHERS,
            **values,
        )


class Evaluated(_Frozen):
    """Results under all conditions.

    Attributes:
        split: name of the tested split.
        samples: number of tested samples.
        data: name of the dataset.
        level: target coverage of the prediction sets, a share of samples; None: no sets.
        conditions: results by condition, in the order of the evaluation.
    """

    split: str
    samples: int
    data: str = ""
    level: Share | None = None
    conditions: tuple[EvaluatedCondition, ...] = ()
