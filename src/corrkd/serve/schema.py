"""Types of requests and responses. The type of a sample depends on the modalities of the model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from corrkd.serve.access import Refused
from corrkd.serve.limits import Limits

# Larger features would be infinite in float32.
Feature = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False, strict=True)]
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ReliabilityResponse(BaseModel):
    """Test results under the most similar tested condition, as fractions of 1."""

    condition: str
    harder: bool = Field(description="the sample has more missing frames than this condition")
    split: str
    samples: int
    measured: dict[str, float]


class PredictionResponse(BaseModel):
    """The prediction for one sample."""

    label: str | dict[str, str] = Field(
        description="the most probable class; for yes/no questions, the answer to each"
    )
    probabilities: dict[str, float] | dict[str, dict[str, float]] | None = None
    score: float | None = None
    used: dict[str, float] = Field(
        description="fraction of each modality's frames that was present"
    )
    reliability: ReliabilityResponse | None = None
    prediction_set: list[str] | dict[str, list[str]] | None = Field(
        None, description="classes that cannot be ruled out"
    )
    interval: tuple[float, float] | None = Field(None, description="of a score")


class PredictResponse(BaseModel):
    """Predictions in the order of the samples."""

    model: str = Field(description="SHA-256 of the model's parameters")
    predictions: list[PredictionResponse]


class EffectResponse(BaseModel):
    """The difference between the predictions with and without a modality."""

    value: float = Field(
        description="in log-odds of the label, or in units of the score; 0 for a modality that is "
        "already missing"
    )
    probability: float | None = Field(None, description="in probability of the label, -1 to 1")


class EffectsResponse(BaseModel):
    """The effect of each modality on a prediction."""

    quantity: str = Field(description="log-odds, or score")
    label: str | None = None
    question: str | None = None
    modalities: dict[str, EffectResponse]


class Problem(BaseModel):
    """The error of a request, in one line."""

    detail: str


def sample_type(card: Mapping[str, Any], longest: Mapping[str, int]) -> type[BaseModel]:
    """Return the type of a sample: for each modality a list of frames, with null for missing frames
    and modalities. At least one modality is required.
    """
    fields: dict[str, Any] = {}
    for index, (m, size) in enumerate(card["modalities"].items()):
        width = int(size["width"])
        frame = Annotated[list[Feature], Field(min_length=width, max_length=width, fail_fast=True)]
        frames = Annotated[
            list[frame | None], Field(min_length=1, max_length=longest[m], fail_fast=True)
        ]
        about = f"frames of {width} raw features; null for a missing frame"
        # An alias, since a modality may have any name, but a field may not.
        fields[f"modality_{index}"] = (frames | None, Field(None, alias=m, description=about))
    alternatives: list[Any] = [
        # the only way to require that at least one is not null
        {"required": [m], "properties": {m: {"type": "array"}}}
        for m in card["modalities"]
    ]
    example: dict[str, Any] = {
        m: [[0.0] * int(size["width"])] for m, size in list(card["modalities"].items())[:1]
    }
    config = ConfigDict(
        extra="forbid", json_schema_extra={"anyOf": alternatives, "examples": [example]}
    )
    return create_model("Sample", __config__=config, **fields)


def request_type(sample: type[BaseModel], limits: Limits) -> type[BaseModel]:
    """Return the type of a request for predictions."""
    length = Field(min_length=1, max_length=limits.samples, fail_fast=True)
    samples = Annotated[list[sample], length]  # type: ignore[valid-type]
    return create_model("PredictRequest", __base__=_Strict, samples=(samples, ...))


def parsed(kind: type[BaseModel], body: bytes, modalities: Iterable[str]) -> list[dict[str, Any]]:
    """Return the samples of a body. Raises Refused with the location of the error.

    Args:
        kind: type of the body, from `request_type` or `sample_type`.
        body: JSON text.
        modalities: modalities of the model, for error messages.
    """
    try:
        read = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = ".".join(str(step) for step in first["loc"] if not str(step).startswith("function"))
        message, in_sample = (
            first["msg"],
            len(first["loc"]) == 3 or "samples" not in kind.model_fields,
        )
        if first["type"] == "extra_forbidden" and in_sample:
            message = f"not a modality of this model; it has {', '.join(modalities)}"
        raise Refused(422, f"{path or 'body'}: {message}") from None
    samples: list[BaseModel] = getattr(read, "samples", [read])
    _refuse_repeated_keys(
        body,
        sum(len(model.model_fields_set) for model in {id(m): m for m in (read, *samples)}.values()),
    )
    return [
        {str(info.alias): getattr(sample, name) for name, info in type(sample).model_fields.items()}
        for sample in samples
    ]


def refuse_oversized(body: bytes, *, cost: int, samples: int, modalities: int) -> None:
    """Raise Refused if a body has more values, lists or names than a request of this cost can have.
    Parsing takes up to 300 bytes for each.
    """
    lists = samples * modalities
    # N lists of T frames cost at least N T (width + T), so they have at most sqrt(N cost) frames,
    # and each frame is a list.
    most_brackets = isqrt(lists * cost) + lists + samples + 2
    names = lists + 1
    # A name may contain an escaped quote.
    if (
        body.count(b",") > cost
        or body.count(b"[") + body.count(b"{") > most_brackets
        or body.count(b'"') - body.count(rb"\"") > 2 * names
    ):
        raise Refused(
            413, "the body has more values, lists or names than a request may; send fewer samples"
        )


def _refuse_repeated_keys(body: bytes, num_keys: int) -> None:
    """Raise Refused if a key of a parsed body is repeated, since pydantic keeps only the last. All
    strings in the body are keys.
    """
    if len(STRING.findall(body)) > num_keys:
        json.loads(body, object_pairs_hook=_without_repeated)


def _without_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise Refused(
                422, f"body: {key[:60]!r} appears {count} times in one object; write it once"
            )
    return dict(pairs)
