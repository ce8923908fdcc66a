"""Typed and validated settings of the parts of an experiment, which `corrkd.experiment.settings`
combines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from corrkd import plugins
from corrkd.escape import is_unicode
from corrkd.parsing import quoted

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
# Bounds far above any use, so that an untrusted file cannot demand unlimited memory or time.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Width = Annotated[int, Field(ge=1, le=16_384)]  # of a layer
Depth = Annotated[int, Field(ge=1, le=256)]  # layers
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Ratios = Annotated[tuple[Probability, ...], Field(max_length=1000)]

MASK_SEED = 2024
UNKNOWN_KEY = "unknown_key"  # of a validation error
STANDARD_CONDITIONS = {
    "ratio": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    "burst": [0.3, 0.5, 0.7],
    "late": [],
    "noise": [],
    "natural": True,
    "intact": True,
    "absent": [],
}

TARGET_GROUP = "corrkd.targets"  # entry points of target kinds in other packages
TARGETS = (
    "auto",
    "classes",
    "tertiles",
    "binary-has-zero",
    "binary-nonzero",
    "ternary",
    "five",
    "seven",
    "sims-binary",
    "sims-ternary",
    "sims-five",
    "questions",
    "score",
    "mosi-score",
    "sims-score",
)


def _is_target(name: str) -> str:
    names = plugins.names(dict.fromkeys(TARGETS, ""), TARGET_GROUP)
    if name not in names:
        *first, last = map(repr, names)
        raise ValueError(f"Input should be {', '.join(first)} or {last}")
    return name


TargetName = Annotated[str, AfterValidator(_is_target)]


class Strict(BaseModel):
    """Settings with checked keys and values. The error for an unknown key lists allowed keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keys_exist(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping):
            check_keys(tree, cls.model_fields, groups=cls._groups())
        return tree

    @classmethod
    def _groups(cls) -> dict[str, type[BaseModel]]:
        """Return the fields that are groups of settings, by name."""
        return {
            name: field.annotation
            for name, field in cls.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        }


class ResampleSettings(Strict):
    """Separate training and validation splits for each seed; the test split stays the same."""

    folds: Annotated[int, Field(ge=2, le=10_000)] | None = Field(
        None,
        description="cross-validation: train and valid together fall into so many folds, which "
        "keep people (speakers, videos, sessions) together; seed s validates on fold s mod folds "
        "and trains on the others",
    )
    train: Count | None = Field(
        None, description="so many training samples, drawn anew for every seed; null: all"
    )


class ReadingSettings(Strict):
    """How a dataset file of any layout is read."""

    glove: Path | None = Field(None, description="GloVe text file, for layouts that hold words")
    folds: Path | None = Field(
        None, description="JSON file {split: [video ids]}, for .csd folders without standard folds"
    )
    tokens: bool = Field(
        False,
        description="read the ids of BERT's tokens (MMSA's `text_bert`) as the language, in "
        "place of its features",
    )
    label: str | None = Field(
        None,
        description="which label column, as `happy`, `questions:happy,sad` ; default: the "
        "layout's usual one (docs/data.md)",
    )


class DataSettings(ReadingSettings):
    """The samples, the target and the normalisation of features."""

    path: str = Field(
        "synthetic", description="a dataset file or folder, or `synthetic` for the built-in dataset"
    )
    name: str | None = Field(None, description="what reports call it; default: the file's name")
    modalities: tuple[str, ...] | None = Field(
        None, description="use only these modalities; default: all"
    )
    target: TargetName = Field(
        "auto",
        description="auto: questions, classes or tertiles of the score, whichever the data has "
        "first",
    )
    normalise: Literal["robust", "standard", "scale", "none"] = Field(
        "robust",
        description="robust: median and interquartile range; standard: mean and deviation; "
        "scale: robust, not centred",
    )
    clip: Positive | None = Field(5.0, description="bound on normalised features; null for none")
    resident_gigabytes: NonNegative = Field(
        4.0,
        description="a split up to this size is held on the device whole; a larger one is read "
        "batch by batch",
    )
    resample: ResampleSettings = Field(default_factory=ResampleSettings)
    calibration: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="about this share of the training samples, by whole groups (people, videos), "
        "takes part in no training and no choice: "
        "prediction sets are made from it; null: no prediction sets",
    )
    synthetic: dict[str, Any] = Field(
        default_factory=dict,
        description="what to change in the built-in dataset (docs/synthetic.md)",
    )

    @field_validator("path", "name", mode="after")
    @classmethod
    def _is_text(cls, value: str | None) -> str | None:
        if not is_unicode(value or ""):
            raise ValueError("is not UTF-8 text, which files about it have to be; rename the file")
        return value


class NetworkSettings(Strict):
    """The architecture that teacher and student share (section Network of docs/method.md), with
    defaults for everything that the paper leaves open.
    """

    width: Width = Field(40, description="d, the embedding size of each modality [paper: 40]")
    heads: Width = Field(10, description="attention heads; must divide width")
    layers: Depth = Field(2, description="encoder depth [open]")
    feedforward: Width = Field(160, description="width of the feed-forward block [open: 4 d]")
    kernel: Annotated[int, Field(ge=1, le=999)] = Field(
        3, description="kernel of the temporal convolution, odd [paper: 3]"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="after embedding, attention, feed-forward and on H [open]"
    )
    classifier: Annotated[tuple[Width, ...], Field(max_length=32)] = Field(
        (64,), description="hidden widths of the classifier [open]"
    )
    norm: Literal["pre", "post"] = Field(
        "pre", description="layer norm before or after each block [open]"
    )
    positions: Literal["sinusoidal", "learned", "none"] = Field(
        "sinusoidal", description="positional encoding [open]"
    )
    fill: Literal["zeros", "mean", "learned"] = Field(
        "zeros", description="what stands for a missing frame [paper: zeros]"
    )
    exclude_missing: bool = Field(
        False,
        description="leave missing frames out of attention and pooling [open: they are seen as "
        "fill]",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> NetworkSettings:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel = {self.kernel} must be odd")
        return self


class MissingSettings(Strict):
    """Modality random missing (MRM) in training: missing modalities and missing frames, redrawn for
    every sample and epoch.
    """

    modality: Probability = Field(
        0.3, description="probability that a modality is missing entirely, each by itself [open]"
    )
    frames_low: Probability = Field(
        0.0, description="lowest ratio of dropped frames, drawn per sample and modality [open]"
    )
    frames_high: Probability = Field(0.7, description="highest such ratio [open]")
    complete: Probability = Field(
        0.1, description="probability that a sample is left complete [open]"
    )

    @model_validator(mode="after")
    def _ordered(self) -> MissingSettings:
        if self.frames_low > self.frames_high:
            raise ValueError(
                f"frames_low = {self.frames_low} must not exceed frames_high = {self.frames_high}"
            )
        return self


class TrainingSettings(Strict):
    """How a network is trained."""

    epochs: Count = 30
    batch_size: Count = 64
    lr: Positive = 1e-3
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: NonNegative = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: Probability = Field(
        0.0, description="share of the steps over which the learning rate rises to lr"
    )
    clip_norm: Positive | None = Field(
        1.0, description="bound on the gradient's norm; null for none"
    )
    patience: Count | None = Field(
        None, description="stop after so many epochs without a better validation score"
    )
    class_weights: Literal["none", "balanced"] = "none"
    average: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="decay of a running average of the weights over the steps, which is what is "
        "validated and kept; 0: none",
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="the epoch that is kept: the best on validation, or the last, for which "
        "validation is only watched",
    )

    @model_validator(mode="after")
    def _last_is_not_stopped(self) -> TrainingSettings:
        if self.keep == "last" and self.patience is not None:
            raise ValueError(
                "patience stops by the validation score and does not go with keep = last"
            )
        return self


class EvaluationSettings(Strict):
    """Test conditions beyond the non-empty subsets of the modalities, which are always tested."""

    split: Literal["train", "valid", "test"] = "test"
    conditions: dict[str, Any] = Field(
        default_factory=dict,
        validate_default=True,
        description="by kind, laid over the defaults; each kind checks its own value "
        "(corrkd.missing.conditions)",
    )
    protocols: tuple[Literal["lnln", "gcnet"], ...] = Field(
        (),
        description="protocols of published tables whose conditions are tested too, and their "
        "means reported",
    )
    draws: Annotated[int, Field(ge=1, le=10_000)] = Field(
        3, description="random draws of each ratio and burst"
    )
    mask_seed: Seed = Field(
        MASK_SEED, description="seed of the masks: the same for every method and training seed"
    )
    coverage: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.9,
        description="target coverage of the prediction sets, a share of samples (data.calibration)",
    )
    batch_size: Count = 256
    projection: str | None = Field(
        None,
        description="the condition whose representations are shown; default: the first modality "
        "alone",
    )

    @field_validator("conditions", mode="before")
    @classmethod
    def _over_defaults(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        # Lists, as in YAML, so that settings are equal after they are saved and loaded.
        changes = {
            kind: list(values) if isinstance(values, tuple) else values
            for kind, values in value.items()
        }
        return STANDARD_CONDITIONS | changes


def check_keys(
    tree: Mapping[Any, Any],
    allowed: Iterable[str],
    groups: Mapping[str, type[BaseModel]] | None = None,
) -> None:
    """Raise a ValidationError that names the first key that is not allowed, and the groups that
    have such a key, or else the allowed keys.
    """
    allowed = list(allowed)
    for key in tree:
        if key not in allowed:
            meant = [
                f"{name}.{key}"
                for name, group in (groups or {}).items()
                if key in group.model_fields
            ]
            message = (
                "unknown key; did you mean {meant}?" if meant else "unknown key; allowed: {allowed}"
            )
            names = {"meant": " or ".join(meant), "allowed": ", ".join(allowed)}
            unknown = PydanticCustomError(UNKNOWN_KEY, message, names)
            raise ValidationError.from_exception_data(
                "settings", [{"type": unknown, "loc": (str(key),), "input": key}]
            )


def first_line(error: ValidationError, prefix: str = "") -> str:
    """Return the first validation error as one line that states the key, after a prefix, and what
    is allowed.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    path = ".".join(str(segment) for segment in first["loc"])[:120]
    where = ".".join(filter(None, (prefix, path))) or "the whole"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == UNKNOWN_KEY:
        return f"{where}: {message}"
    value = first["input"]
    text = "" if isinstance(value, Mapping | BaseModel) else f" (given: {quoted(value)})"
    more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{where}: {message[:1].lower()}{message[1:]}{text}{more}"
