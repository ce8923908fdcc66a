"""Typed settings: one YAML file, or a named preset, describes an experiment whole.

A file holds only what differs from the defaults below; `preset: NAME` in it starts from a preset instead. Every key and value is
checked, and a wrong one is a single line that names it and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from corrkd import plugins
from corrkd.errors import CorrKDError
from corrkd.escape import is_unicode
from corrkd.parsing import parse_yaml, quoted, read_yaml_file

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
# Bounds far above any use, so that a file of somebody else's asks for no memory or time without end.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Width = Annotated[int, Field(ge=1, le=16_384)]  # of a layer
Depth = Annotated[int, Field(ge=1, le=256)]  # layers
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Ratios = Annotated[tuple[Probability, ...], Field(max_length=1000)]

MASK_SEED = 2024
STANDARD_CONDITIONS = {
    "ratio": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    "burst": [0.3, 0.5, 0.7],
    "late": [],
    "noise": [],
    "natural": True,
}

TARGET_GROUP = "corrkd.targets"  # entry points of other packages' kinds of target
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
)


def _is_target(name: str) -> str:
    names = plugins.names(dict.fromkeys(TARGETS, ""), TARGET_GROUP)
    if name not in names:
        *first, last = map(repr, names)
        raise ValueError(f"Input should be {', '.join(first)} or {last}")
    return name


TargetName = Annotated[str, AfterValidator(_is_target)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ResampleSettings(_Strict):
    """Splits of its own for every seed, made of the data's train and valid; the test split stays as it is."""

    folds: Annotated[int, Field(ge=2, le=10_000)] | None = Field(
        None,
        description="cross-validation: train and valid together fall into so many folds, which keep people (speakers, videos, sessions) "
        "together; seed s validates on fold s mod folds and trains on the others",
    )
    train: Count | None = Field(None, description="so many training samples, drawn anew for every seed; null: all")


class DataSettings(_Strict):
    """Which samples, which target, how features are normalised."""

    path: str = Field("synthetic", description="a dataset file or folder, or `synthetic` for the built-in dataset")
    name: str | None = Field(None, description="what reports call it; default: the file's name")
    glove: Path | None = Field(None, description="GloVe text file, for layouts that hold words")
    folds: Path | None = Field(
        None, description="JSON file {split: [video ids]}, for .csd folders without standard folds"
    )
    label: str | None = Field(
        None,
        description="which label column, as `happy`, `questions:happy,sad` ; default: the layout's usual one (docs/data.md)",
    )
    modalities: tuple[str, ...] | None = Field(None, description="use only these modalities; default: all")
    target: TargetName = Field(
        "auto", description="auto: questions, classes or tertiles of the score, whichever the data has first"
    )
    normalise: Literal["robust", "standard", "scale", "none"] = Field(
        "robust",
        description="robust: median and interquartile range; standard: mean and deviation; scale: robust, not centred",
    )
    clip: Positive | None = Field(5.0, description="bound on normalised features; null for none")
    resident_gigabytes: NonNegative = Field(
        4.0, description="a split up to this size is held on the device whole; a larger one is read batch by batch"
    )
    resample: ResampleSettings = Field(default_factory=ResampleSettings)
    calibration: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="about this share of the training samples, by whole groups (people, videos), takes part in no training and no choice: "
        "prediction sets are made from it; null: no prediction sets",
    )
    synthetic: dict[str, Any] = Field(
        default_factory=dict, description="what to change in the built-in dataset (docs/synthetic.md)"
    )

    @field_validator("path", "name", mode="after")
    @classmethod
    def _is_text(cls, value: str | None) -> str | None:
        if not is_unicode(value or ""):
            raise ValueError("is not UTF-8 text, which files about it have to be; rename the file")
        return value


class NetworkSettings(_Strict):
    """The structure that teacher and student share (method, Network). What the paper leaves open has its default here."""

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
    norm: Literal["pre", "post"] = Field("pre", description="layer norm before or after each block [open]")
    positions: Literal["sinusoidal", "learned", "none"] = Field("sinusoidal", description="positional encoding [open]")
    fill: Literal["zeros", "mean", "learned"] = Field(
        "zeros", description="what stands for a missing frame [paper: zeros]"
    )
    exclude_missing: bool = Field(
        False, description="leave missing frames out of attention and pooling [open: they are seen as fill]"
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> NetworkSettings:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} must divide width = {self.width}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel = {self.kernel} must be odd")
        return self


class MissingSettings(_Strict):
    """Modality random missing (MRM) in training: both kinds at once, drawn anew for every sample and epoch."""

    modality: Probability = Field(0.3, description="probability that a modality is lost whole, each on its own [open]")
    frames_low: Probability = Field(
        0.0, description="lowest ratio of dropped frames, drawn per sample and modality [open]"
    )
    frames_high: Probability = Field(0.7, description="highest such ratio [open]")
    complete: Probability = Field(0.1, description="probability that a sample is left complete [open]")

    @model_validator(mode="after")
    def _ordered(self) -> MissingSettings:
        if self.frames_low > self.frames_high:
            raise ValueError(f"frames_low = {self.frames_low} must not exceed frames_high = {self.frames_high}")
        return self


class StageSettings(_Strict):
    """How one network is trained."""

    epochs: Count = 30
    batch_size: Count = 64
    lr: Positive = 1e-3
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: NonNegative = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: Probability = Field(0.0, description="share of the steps over which the learning rate rises to lr")
    clip_norm: Positive | None = Field(1.0, description="bound on the gradient's norm; null for none")
    patience: Count | None = Field(None, description="stop after so many epochs without a better validation score")
    class_weights: Literal["none", "balanced"] = "none"
    average: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="decay of a running average of the weights over the steps, which is what is validated and kept; 0: none",
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="the epoch that is kept: the best on validation, or the last, for which validation is only watched",
    )

    @model_validator(mode="after")
    def _last_is_not_stopped(self) -> StageSettings:
        if self.keep == "last" and self.patience is not None:
            raise ValueError("patience stops by the validation score and does not go with keep = last")
        return self


class TeacherSettings(StageSettings):
    """The teacher's training, and by how many teachers the student is taught."""

    folds: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        None,
        description="out of fold: so many teachers, each trained without one fold of the people (speakers, videos, sessions) and answering "
        "for that fold alone; null: teachers trained on all, which answer for what they have learned by heart",
    )
    repeats: Annotated[int, Field(ge=1, le=1000)] = Field(
        1,
        description="how often over, from other starts and folds; responses are averaged",
    )
    temperature: Positive | Literal["fit"] = Field(
        1.0,
        description="by which the teachers' logits are divided; fit: by what makes the training labels most likely (out of fold)",
    )

    @model_validator(mode="after")
    def _fitted_out_of_fold(self) -> TeacherSettings:
        if self.temperature == "fit" and self.folds is None:
            raise ValueError("temperature = fit needs folds: a teacher is sure of the labels that it was trained on")
        return self


class DistillationSettings(_Strict):
    """The student's loss terms (method, Objective): a weight each, and the choices the paper leaves open."""

    task: NonNegative = 1.0
    scd: NonNegative = Field(1.0, description="sample-level contrastive distillation")
    cpd: NonNegative = Field(1.0, description="category-guided prototype distillation")
    rcd: NonNegative = Field(1.0, description="response-disentangled consistency distillation")
    kl: NonNegative = Field(
        0.0, description="plain KL divergence of the responses; with rcd = 0 the paper's ablation of RCD"
    )
    center: bool = Field(
        False, description="SCD's relations and CPD on representations without their common part [ours]"
    )
    scd_form: Literal["contrast", "relations"] = Field(
        "contrast",
        description="contrast: distances from the teacher's samples [paper]; relations: cosines within each side [ours]",
    )
    cpd_prototypes: Literal["batch", "all"] = Field(
        "batch",
        description="the teacher's prototypes: of the batch [paper], or of the whole training split [ours]",
    )
    cpd_parts: bool = Field(
        False, description="CPD of each visible modality's part of H beside the whole [ours]; with cpd_prototypes: all"
    )
    rcd_form: Literal["information", "divergence"] = Field(
        "information",
        description="information: mutual information by critics [paper]; divergence: of both parts of the response, apart [ours]",
    )
    nontarget: NonNegative = Field(1.0, description="weight of the non-target part in rcd_form: divergence [ours]")
    boundary: Positive = Field(
        1.2, description="eta, the distance boundary of SCD [paper: 1.2 MOSI, 1.0 MOSEI, 1.4 IEMOCAP]"
    )
    normalize: bool = Field(True, description="SCD on unit vectors [open]")
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="SCD's double sum as it is, or divided by N (N - 1) [open]"
    )
    critic_hidden: Width = Field(64, description="hidden width of RCD's statistics networks [open]")
    renormalize: bool = Field(
        False, description="RCD's non-target responses renormalised over the K - 1 classes [open]"
    )

    @model_validator(mode="after")
    def _parts_need_prototypes(self) -> DistillationSettings:
        if self.cpd_parts and self.cpd_prototypes == "batch":
            raise ValueError("cpd_parts compares parts of H with the teacher's whole H; set cpd_prototypes to all")
        return self


class StudentSettings(StageSettings):
    """The student's training, which the no-distillation control shares but for the loss terms."""

    distillation: DistillationSettings = Field(default_factory=DistillationSettings)


class ArmSettings(_Strict):
    """One method in a comparison: which, and what differs from its defaults."""

    method: str | None = Field(None, description="the method's name; default: the arm's own")
    title: str | None = Field(None, description="in tables; default: the method's")
    trains_on: Literal["method", "complete", "missing"] = Field(
        "method", description="complete samples, or what modality random missing leaves; method: as its paper does"
    )
    network: dict[str, Any] = Field(default_factory=dict, description="laid over the method's network settings")
    options: dict[str, Any] = Field(default_factory=dict, description="laid over the method's options")
    stage: dict[str, Any] = Field(
        default_factory=dict, description="laid over the run's `student` settings: lr, epochs, ..."
    )


class EvaluationSettings(_Strict):
    """What the networks are tested under. Every non-empty subset of the modalities is always in."""

    split: Literal["train", "valid", "test"] = "test"
    conditions: dict[str, Any] = Field(
        default_factory=dict,
        validate_default=True,
        description="by kind, laid over the defaults; each kind checks its own value (corrkd.missing.conditions)",
    )
    draws: Annotated[int, Field(ge=1, le=10_000)] = Field(3, description="random draws of each ratio and burst")
    mask_seed: Seed = Field(MASK_SEED, description="seed of the masks: the same for every method and training seed")
    coverage: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.9, description="share of samples whose true class the prediction sets are to hold (data.calibration)"
    )
    batch_size: Count = 256
    projection: str | None = Field(
        None, description="the condition whose representations are shown; default: the first modality alone"
    )

    @field_validator("conditions", mode="before")
    @classmethod
    def _over_defaults(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        # Lists as in YAML, so that settings that are read again are equal.
        changes = {kind: list(values) if isinstance(values, tuple) else values for kind, values in value.items()}
        return STANDARD_CONDITIONS | changes


class Settings(_Strict):
    """An experiment: data -> teacher -> student and control -> evaluation -> run folder."""

    data: DataSettings = Field(default_factory=DataSettings)
    network: NetworkSettings = Field(default_factory=NetworkSettings)
    missing: MissingSettings = Field(default_factory=MissingSettings)
    teacher: TeacherSettings = Field(default_factory=TeacherSettings)
    student: StudentSettings = Field(default_factory=StudentSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    seeds: Annotated[tuple[Seed, ...], Field(max_length=10_000)] = Field(
        (0,), description="a number n on the command line means 0 to n - 1"
    )
    threads: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="CPU threads of each process; part of what a result depends on"
    )
    jobs: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="seeds trained at once, a process each; changes no result"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: a GPU where there is one")
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"

    @field_validator("seeds", mode="after")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError("needs at least one seed, each once")
        return seeds

    def to_yaml(self) -> str:
        """The settings whole, as a file that runs the same experiment again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def preset_names() -> tuple[str, ...]:
    """Names of the presets that come with the package, sorted."""
    folder = resources.files("corrkd") / "presets"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def preset_text(name: str) -> str:
    """A preset's YAML as it is written. Raises CorrKDError for an unknown name."""
    if name not in preset_names():
        raise CorrKDError(f"preset {quoted(name)} is unknown; there are {', '.join(preset_names())}")
    return (resources.files("corrkd") / "presets" / f"{name}.yaml").read_text("utf-8")


def load_settings(
    source: str | Path | None = None, *, preset: str | None = None, overrides: Iterable[str] = (), **changes: Any
) -> Settings:
    """Settings from a preset and/or a YAML file, with changes on top.

    Args:
        source: a YAML file.
        preset: a preset's name; where a file is given too, the file is laid over the preset.
        overrides: `key.sub=value` lines as on the command line; values are read as YAML.
        **changes: the same from Python, as nested mappings: `data={"path": "mosi.pkl"}`.

    Raises:
        CorrKDError: for an unknown preset, key or value, or a file that is not YAML; one line each.
    """
    tree = read_yaml(Path(source)) if source is not None else {}
    return settings_of_tree(tree, preset=preset, overrides=overrides, changes=changes)


def settings_of_tree(
    tree: Mapping[str, Any],
    *,
    preset: str | None = None,
    overrides: Iterable[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from nested keys and values as a file holds them (`preset` among them), with changes on top.

    Raises:
        CorrKDError: for an unknown preset, key or value; one line.
    """
    tree = dict(tree)
    in_file = tree.pop("preset", None)
    preset = in_file if preset is None else preset
    if preset is not None:
        tree = merged(parse_yaml(preset_text(preset), f"preset {preset}") or {}, tree)
    for line in overrides:
        tree = merged(tree, _override(line))
    tree = merged(tree, changes or {})
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise CorrKDError(f"settings: {first_line(error)}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file. Raises CorrKDError where it cannot be read or holds something else."""
    tree = read_yaml_file(path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise CorrKDError(f"{path}: holds a {type(tree).__name__}, expected keys and values")
    return tree


def _override(line: str) -> dict[str, Any]:
    key, equals, text = line.partition("=")
    if not equals or not key.strip():
        raise CorrKDError(f"--set {line!r}: expected key=value, as in student.lr=1e-3")
    value = parse_yaml(text, f"--set {quoted(line)}")
    if isinstance(value, str):
        value = _number(value)
    tree: Any = value
    for part in reversed(key.strip().split(".")):
        tree = {part: tree}
    assert isinstance(tree, dict)
    return tree


def _number(text: str) -> str | float:
    # YAML 1.1 reads 1e-3 as text; people mean the number.
    try:
        return float(text)
    except ValueError:
        return text


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested keys and values of both; those of `above` where both have one."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def first_line(error: ValidationError, model: type[BaseModel] = Settings) -> str:
    """A validation's first error in a line that names the key, and what is allowed; `model` is what was validated."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:120] or "the whole"
    if first["type"] == "extra_forbidden":
        parents = first["loc"][:-1]
        return f"{where} is unknown; allowed there: {', '.join(_keys(parents, model))}"
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = "" if isinstance(given, Mapping | BaseModel) else f" (given: {quoted(given)})"
    more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{where}: {message[:1].lower()}{message[1:]}{shown}{more}"


def _keys(path: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    model: Any = root
    for part in path:
        field = model.model_fields.get(part)
        if field is None:
            return []
        options = [field.annotation, *get_args(field.annotation)]
        model = next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
