"""What an evaluation found out about a model under each missing condition: it travels on the
model's card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from corrkd.missing.conditions import Condition, Family

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class EvaluatedCondition(_Frozen):
    """One condition.

    Attributes:
        name, kind, available, ratio: as in corrkd.missing.conditions.Condition.
        rates_samples: whether it says how reliable predictions are: of samples that miss about
            `ratio` of their frames, or, where there is no ratio, of samples with exactly the
            `available` modalities.
        temperature: by which logits are divided under it, fitted on the validation split.
        threshold: of its prediction sets (corrkd.evaluation.calibration); None: nothing is left out
            of them.
        measured: metrics on the tested split, as fractions of 1; one that is undefined is left out.
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
    """All of them.

    Attributes:
        split: whose samples were tested.
        samples: how many of them.
        data: name of the dataset.
        level: target coverage of the prediction sets, a share of samples; None: no sets.
        conditions: in the evaluation's order.
    """

    split: str
    samples: int
    data: str = ""
    level: Share | None = None
    conditions: tuple[EvaluatedCondition, ...] = ()
