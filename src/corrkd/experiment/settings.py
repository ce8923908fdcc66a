"""Settings of an experiment: a YAML file or a named preset, with overrides.

A file contains only what differs from the defaults, or from the preset that it selects with
`preset: NAME`. Networks and methods are selected by name, with their options next to the name:
`network: {name: corrkd, width: 80}`. Every key and value is checked; an error is one line with the
key and the valid values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from corrkd.errors import CorrKDError
from corrkd.experiment.choices import (
    USUAL,
    MethodChoice,
    NetworkChoice,
    Tree,
    merged,
    over,
    tree_of,
)
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
    first_line,
)

CHOICES = (("teacher", "network"), ("student", "network"), ("student", "method"))
Folds = Annotated[int, Field(ge=2, le=1000)]
Repeats = Annotated[int, Field(ge=1, le=1000)]


class OtherTeachers(TrainingSettings):
    """Teachers with another network. Keys that are not set are those of the teacher."""

    network: NetworkChoice = Field(description="by name, with its settings")
    folds: Folds | None = Field(None, description="as teacher.folds; default: the same")
    repeats: Repeats = Field(1, description="as teacher.repeats; default: the same")

    def over(self, training: TrainingSettings) -> TrainingSettings:
        """Return training settings overridden by those that are set here. Raises ValidationError if
        they conflict.
        """
        fields = TrainingSettings.model_fields
        changes = {key: getattr(self, key) for key in fields if key in self.model_fields_set}
        return TrainingSettings.model_validate(
            {key: getattr(training, key) for key in fields} | changes
        )

    @model_serializer(mode="wrap")
    def _only_what_is_set(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if key in self.model_fields_set}


class Line(NamedTuple):
    """Teachers with one network: number of folds (None: each is trained on all samples) and number
    of repeats.
    """

    folds: int | None
    repeats: int

    @property
    def num_teachers(self) -> int:
        """Number of teachers."""
        return self.repeats * (self.folds or 1)


class TeacherSettings(TrainingSettings):
    """The training of the teacher, and the teachers that the student learns from."""

    network: NetworkChoice = Field(
        default_factory=NetworkChoice.default, description="by name, with its settings"
    )
    folds: Folds | None = Field(
        None,
        description="number of out-of-fold teachers, each trained without one fold of the people "
        "(speakers, videos, sessions) and used only for that fold; null: teachers trained on all "
        "samples, whose responses to them are overfitted",
    )
    repeats: Repeats = Field(
        1,
        description="number of repeats with other initial parameters and folds; responses are "
        "averaged",
    )
    temperature: Positive | Literal["fit"] = Field(
        1.0,
        description="by which the teachers' logits are divided; fit: by what makes the training "
        "labels most likely (out of fold)",
    )

    weights: Literal["equal", "fit"] = Field(
        "equal",
        description="of the teachers in their common response; fit: those that make the training "
        "labels most likely, out of fold (`corrkd.targets.pooling`)",
    )

    others: Annotated[tuple[OtherTeachers, ...], Field(max_length=100)] = Field(
        (),
        description="teachers of other networks beside it, each {network: ..., and any key of "
        "the teacher's training, folds and repeats}; "
        "responses are averaged over all, representations are the teacher's",
    )

    outputs: Path | None = Field(
        None,
        description="an .npz file with `ids`, `logits` and, where there are any, "
        "`representation` of the training samples: no teacher is trained, students are taught by "
        "these (corrkd.experiment.teacher_file)",
    )

    @property
    def committee(self) -> list[Line]:
        """Teachers by network: the teacher's network, then those of `others` in order."""
        lines = [Line(self.folds, self.repeats)]
        for other in self.others:
            folds, repeats = (
                getattr(other if key in other.model_fields_set else self, key)
                for key in ("folds", "repeats")
            )
            lines.append(Line(folds, repeats))
        return lines

    @model_validator(mode="after")
    def _fitted_out_of_fold(self) -> TeacherSettings:
        in_sample = any(line.folds is None for line in self.committee)
        if self.outputs is None and self.temperature == "fit" and in_sample:
            raise ValueError(
                "temperature = fit needs folds: a teacher is sure of the labels that it was "
                "trained on"
            )
        if self.weights == "fit" and self.temperature != "fit":
            raise ValueError("weights = fit sets the temperature too: temperature = fit is needed")
        return self

    @model_validator(mode="after")
    def _others_can_be_trained(self) -> TeacherSettings:
        for index, other in enumerate(self.others):
            try:
                other.over(self)
            except ValidationError as error:
                raise ValueError(first_line(error, f"others.{index}")) from None
        return self


class StudentSettings(TrainingSettings):
    """The student's network and training, shared by the control without distillation, and the
    student's method.
    """

    network: NetworkChoice = Field(
        default_factory=NetworkChoice.default,
        description="by name, with its settings; default: the teacher's, or what the method needs",
    )
    method: MethodChoice = Field(
        default_factory=MethodChoice.default, description="by name, with its options"
    )

    @model_validator(mode="after")
    def _network_fits(self) -> StudentSettings:
        self.method.check_trains(self.network)
        return self


class ArmSettings(TrainingSettings):
    """One arm of a comparison: its method, and keys that override the student's settings."""

    method: dict[str, Any] = Field(
        default_factory=dict, description="name and options; default: the method of the arm's name"
    )
    network: dict[str, Any] = Field(
        default_factory=dict,
        description="name and settings, laid over those of the student's network, or of the "
        "method's",
    )
    title: str | None = Field(None, description="in tables; default: the method's")
    trains_on: Literal["method", "complete", "missing"] = Field(
        "method",
        description="complete samples, or what modality random missing leaves; method: as its "
        "paper does",
    )

    @field_validator("method", "network", mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        return tree_of(value)

    def changes(self) -> dict[str, Any]:
        """Return the keys that are set, with their values."""
        return {
            key: getattr(self, key)
            for key in type(self).model_fields
            if key in self.model_fields_set
        }


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
        1, description="seeds trained at a time, one process each; does not change results"
    )
    stack: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        "auto",
        description="trainings of one arm at once in a process, seeds and teachers of folds; "
        "changes no result but for rounding; auto: "
        "1 on a CPU; on a GPU as many as fit into its memory, up to 32",
    )
    compile: bool = Field(
        False,
        description="training steps are compiled (torch.compile; needs a C++ compiler on a CPU), "
        "which takes a minute or so for each arm: "
        "for long trainings; changes no result but for rounding",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: a GPU where there is one"
    )
    precision: Literal["32-true", "tf32", "bf16-mixed", "16-mixed", "64-true"] = Field(
        "32-true", description="tf32: float32 whose products a GPU multiplies in TensorFloat-32"
    )

    @model_validator(mode="before")
    @classmethod
    def _student_like_teacher(cls, tree: Any) -> Any:
        """Fill in the student's network: the teacher's, or the one that its method needs, with the
        keys that are set.
        """
        if not isinstance(tree, Mapping):
            return tree
        (_, usual), (student, network), (_, method) = (_choice_in(tree, *keys) for keys in CHOICES)
        usual = usual or {}
        if isinstance(student, StudentSettings):
            if "network" in student.model_fields_set:
                return tree
            return {**tree, "student": {**dict(student), "network": usual}}
        if not isinstance(student, Mapping) or not all(
            isinstance(x, Mapping | None) for x in (usual, network, method)
        ):
            return tree
        with suppress(CorrKDError):  # an unknown name is reported later, with its key
            if not (network or {}).get("name"):
                usual = NetworkChoice.needed_by(
                    MethodChoice.find((method or {}).get("name", USUAL))[0], usual
                )
        return {**tree, "student": {**student, "network": over(usual, network or {})}}

    @field_validator("seeds", mode="after")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError("needs at least one seed, each once")
        return seeds

    def to_yaml(self) -> str:
        """Return all settings as YAML, from which the experiment can be repeated."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_settings(
    source: str | Path | None = None,
    *,
    preset: str | None = None,
    overrides: Iterable[str] = (),
    **changes: Any,
) -> Settings:
    """Return settings from a preset, a YAML file or both, with overrides.

    Args:
        source: a YAML file.
        preset: name of a preset; a file overrides it.
        overrides: `key.sub=value` strings as on the command line; values are YAML.
        **changes: further overrides, as nested mappings: `data={"path": "mosi.pkl"}`.

    Raises:
        CorrKDError: if a preset or key is unknown, a value is invalid or the file is not YAML.
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
    """Return settings from nested keys and values as in a file, including `preset`, with overrides.

    Raises:
        CorrKDError: if a preset or key is unknown or a value is invalid.
    """
    in_file = dict(tree)
    named = in_file.pop("preset", None)
    preset = named if preset is None else preset
    below = {} if preset is None else parse_yaml(preset_text(preset), f"preset {preset}") or {}
    together: dict[str, Any] = {}
    for line in overrides:
        together = merged(together, _override(line))
    tree = {}
    for layer in (below, in_file, together, changes or {}):
        tree = _laid_over(tree, layer)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise CorrKDError(f"settings: {first_line(error)}") from None


def _laid_over(below: Tree, above: Tree) -> dict[str, Any]:
    """Merge two layers of settings; `above` overrides `below`."""
    tree = merged(below, above)
    for section, key in CHOICES:
        low, high = (_choice_in(layer, section, key)[1] for layer in (below, above))
        if isinstance(low, Mapping) and isinstance(high, Mapping):
            tree[section] = {
                **tree[section],
                key: over(_with_forms(low) if key == "method" else low, high),
            }
    return tree


def _choice_in(tree: Tree, section: str, key: str) -> tuple[Any, Any]:
    """Return the teacher or student section of a layer, and its network or method as keys and
    values.
    """
    settings = tree.get(section, {})
    value = settings.get(key) if isinstance(settings, Mapping) else getattr(settings, key, None)
    return settings, tree_of(value)


def _with_forms(method: Tree) -> Tree:
    """Return a method with all its options, so that the form of each loss term can be compared with
    the layer above.
    """
    try:
        return MethodChoice.model_validate(method).model_dump()
    except ValidationError:  # reported when all layers are merged
        return method


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file. Raises CorrKDError if it cannot be read or is not
    a mapping.
    """
    tree = read_yaml_file(path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise CorrKDError(f"{path}: holds a {type(tree).__name__}, expected keys and values")
    return tree


def _override(line: str) -> dict[str, Any]:
    key, equals, text = line.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise CorrKDError(f"--set {line!r}: expected key=value, as in student.lr=1e-3")
    value = parse_yaml(text, f"--set {quoted(line)}")
    if isinstance(value, str):
        value = _number(value)
    tree: Any = tree_of(value) if path in CHOICES else value
    for section in reversed(path):
        tree = {section: tree}
    assert isinstance(tree, dict)
    return tree


def _number(text: str) -> str | float:
    # YAML 1.1 reads 1e-3 as text.
    try:
        return float(text)
    except ValueError:
        return text
