"""An experiment as one file describes it whole: a YAML file, or a named preset, with changes on top.

A file holds only what differs from the defaults; `preset: NAME` in it starts from a preset instead. Networks and methods are chosen
by name, with their options beside the name: `network: {name: corrkd, width: 80}`. Every key and value is checked, and a wrong one is
a single line that names it and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from corrkd.errors import CorrKDError
from corrkd.methods.base import AnyMethod
from corrkd.methods.registry import method_class
from corrkd.networks.base import AnyNetwork
from corrkd.networks.registry import network_class
from corrkd.parsing import parse_yaml, quoted, read_yaml_file
from corrkd.presets import preset_text
from corrkd.settings import (
    DataSettings,
    EvaluationSettings,
    MissingSettings,
    Positive,
    Seed,
    Strict,
    TrainingSettings,
    check_keys,
    first_line,
)

CHOICES = ("network", "method")  # keys whose value is a `Choice`


class Choice(BaseModel):
    """Something registered, chosen by name, with its options: `{name: corrkd, width: 80}`. A name alone has their defaults."""

    model_config = ConfigDict(frozen=True)
    usual: ClassVar[str] = "corrkd"

    name: str
    options: SerializeAsAny[BaseModel]

    @classmethod
    def options_type(cls, name: str) -> type[BaseModel]:
        """Return the class of the options. Raises CorrKDError for an unknown name."""
        raise NotImplementedError

    @classmethod
    def default(cls) -> Self:
        """Return what is chosen where nothing is."""
        return cls.model_validate({})

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, tree: Any) -> Any:
        if isinstance(tree, str):
            tree = {"name": tree}
        if not isinstance(tree, Mapping):
            raise ValueError("expected a name, or {name: ..., and options}")
        name, options = tree.get("name", cls.usual), {key: value for key, value in tree.items() if key != "name"}
        try:
            kind = cls.options_type(str(name))
        except CorrKDError as error:
            raise ValueError(str(error)) from None
        check_keys(tree, ["name", *kind.model_fields])
        return {"name": name, "options": kind.model_validate(options)}

    @model_serializer
    def _flat(self, info: SerializationInfo) -> dict[str, Any]:
        return {"name": self.name, **self.options.model_dump(mode=info.mode)}


class NetworkChoice(Choice):
    """A network, by name, with its settings."""

    @property
    def class_(self) -> type[AnyNetwork]:
        """The class."""
        return network_class(self.name)

    @classmethod
    def options_type(cls, name: str) -> type[BaseModel]:
        """Return the class of the network's settings. Raises CorrKDError for an unknown name."""
        return network_class(name).settings_type


class MethodChoice(Choice):
    """A method, by name, with its options."""

    @property
    def class_(self) -> type[AnyMethod]:
        """The class."""
        return method_class(self.name)

    @classmethod
    def options_type(cls, name: str) -> type[BaseModel]:
        """Return the class of the method's options. Raises CorrKDError for an unknown name."""
        return method_class(name).options_type


class TeacherSettings(TrainingSettings):
    """The teacher's training, and by how many teachers the student is taught."""

    network: NetworkChoice = Field(default_factory=NetworkChoice.default, description="by name, with its settings")
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


class StudentSettings(TrainingSettings):
    """The student's network and training, which the no-distillation control shares, and the method by which it is taught."""

    network: NetworkChoice = Field(
        default_factory=NetworkChoice.default, description="by name, with its settings; default: the teacher's"
    )
    method: MethodChoice = Field(default_factory=MethodChoice.default, description="by name, with its options")


class ArmSettings(TrainingSettings):
    """One arm of a comparison: its method, and what differs from the student's settings. Only what is set counts."""

    method: dict[str, Any] = Field(
        default_factory=dict, description="name and options; default: the method of the arm's name"
    )
    network: dict[str, Any] = Field(
        default_factory=dict,
        description="name and settings, laid over those of the student's network, or of the method's",
    )
    title: str | None = Field(None, description="in tables; default: the method's")
    trains_on: Literal["method", "complete", "missing"] = Field(
        "method", description="complete samples, or what modality random missing leaves; method: as its paper does"
    )

    @field_validator("method", "network", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Settings(Strict):
    """An experiment: data -> teacher -> student and control -> evaluation -> run folder."""

    data: DataSettings = Field(default_factory=DataSettings)
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

    @model_validator(mode="before")
    @classmethod
    def _student_like_teacher(cls, tree: Any) -> Any:
        """The student's network is the teacher's but for what is set of it."""
        teacher, student = (
            (tree.get(key, {}) for key in ("teacher", "student")) if isinstance(tree, Mapping) else (0, 0)
        )
        if isinstance(teacher, TeacherSettings):
            teacher = {"network": teacher.network.model_dump()}
        if not isinstance(teacher, Mapping) or not isinstance(student, Mapping) or teacher.get("network") is None:
            return tree
        below = {"network": teacher["network"]}
        return {**tree, "student": {**student, **merged(below, {"network": student.get("network") or {}})}}

    @field_validator("seeds", mode="after")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError("needs at least one seed, each once")
        return seeds

    def to_yaml(self) -> str:
        """The settings whole, as a file that runs the same experiment again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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
    in_file = dict(tree)
    named = in_file.pop("preset", None)
    preset = named if preset is None else preset
    below = {} if preset is None else parse_yaml(preset_text(preset), f"preset {preset}") or {}
    tree = {}
    for layer in (below, in_file, *map(_override, overrides), changes or {}):
        tree = merged(_with_forms(tree), layer)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise CorrKDError(f"settings: {first_line(error)}") from None


def _with_forms(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The student's method with all its options, so that a layer above which names a loss term's other form replaces the term."""
    student = tree.get("student", {})
    if not isinstance(student, Mapping):
        return tree
    try:
        method = MethodChoice.model_validate(student.get("method", {}))
    except ValidationError:  # said when all layers lie on each other
        return tree
    return {**tree, "student": {**student, "method": method.model_dump(mode="json")}}


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
    """Return nested keys and values of both; those of `above` where both have one.

    Where `above` names another network, method or form of a loss term than `below`, nothing of the one below is kept.
    """
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        if key in CHOICES:
            old, value = ({"name": one} if isinstance(one, str) else one for one in (old, value))
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _chooses_another(key, old, value):
            value = merged(old, value)
        out[key] = value
    return out


def _chooses_another(key: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    if key in CHOICES:
        return "name" in above and above["name"] != below.get("name", Choice.usual)
    return "form" in above and above["form"] != below.get("form")
