"""What the service takes and gives, as types: a sample's modalities and widths are the model's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from corrkd.serve.limits import Limits, Refused

# Beyond float32's reach a feature would be infinite.
Feature = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ReliabilityAnswer(BaseModel):
    """How good predictions were when the model was tested in a like condition, as fractions of 1."""

    condition: str
    harder: bool = Field(description="the sample misses more than this condition did")
    split: str
    samples: int
    measured: dict[str, float]


class PredictionAnswer(BaseModel):
    """What the model says of one sample."""

    label: str | dict[str, str] = Field(description="the likeliest class; of yes/no questions an answer each")
    probabilities: dict[str, float] | dict[str, dict[str, float]] | None = None
    score: float | None = None
    used: dict[str, float] = Field(description="share of each modality's frames that was there")
    reliability: ReliabilityAnswer | None = None
    prediction_set: list[str] | dict[str, list[str]] | None = Field(
        None, description="classes that cannot be ruled out"
    )
    interval: tuple[float, float] | None = Field(None, description="of a score")


class PredictAnswer(BaseModel):
    """Predictions in the order of the samples."""

    model: str = Field(description="SHA-256 of the model's parameters")
    predictions: list[PredictionAnswer]


class Problem(BaseModel):
    """What is wrong with a request, in one line."""

    detail: str


def sample_type(card: Mapping[str, Any], longest: Mapping[str, int]) -> type[BaseModel]:
    """The type of a sample: for each modality a list of frames, null for a frame or a modality that is missing; one at least is given."""
    fields: dict[str, Any] = {}
    for place, (m, size) in enumerate(card["modalities"].items()):
        width = int(size["width"])
        frame = Annotated[list[Feature], Field(min_length=width, max_length=width)]
        frames = Annotated[list[frame | None], Field(min_length=1, max_length=longest[m])]
        about = f"frames of {width} raw features; null for a frame that is missing"
        # A modality may be called anything, a field may not.
        fields[f"modality_{place}"] = (frames | None, Field(None, alias=m, description=about))
    given: list[Any] = [
        {"required": [m], "properties": {m: {"type": "array"}}}  # nothing else can say that one must not be null
        for m in card["modalities"]
    ]
    example: dict[str, Any] = {m: [[0.0] * int(size["width"])] for m, size in list(card["modalities"].items())[:1]}
    config = ConfigDict(extra="forbid", json_schema_extra={"anyOf": given, "examples": [example]})
    made: type[BaseModel] = create_model("Sample", __config__=config, **fields)
    return made


def request_type(sample: type[BaseModel], limits: Limits) -> type[BaseModel]:
    """The type of a request for predictions."""
    samples = Annotated[list[sample], Field(min_length=1, max_length=limits.samples)]  # type: ignore[valid-type]
    made: type[BaseModel] = create_model("PredictRequest", __base__=_Strict, samples=(samples, ...))
    return made


def parsed(kind: type[BaseModel], body: bytes, modalities: Iterable[str]) -> Any:
    """A body as that type, as plain values. Raises Refused with one line that says where it is wrong. `modalities`: of a sample."""
    try:
        made = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith("function"))
        message, in_sample = first["msg"], len(first["loc"]) == 3 or "samples" not in kind.model_fields
        if first["type"] == "extra_forbidden" and in_sample:
            message = f"no modality of this model; it has {', '.join(modalities)}"
        raise Refused(422, f"{place or 'body'}: {message}") from None
    return made.model_dump(by_alias=True)
