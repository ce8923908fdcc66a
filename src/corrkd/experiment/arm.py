"""Arms of an experiment: methods with resolved settings, and how they are trained and selected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from corrkd.errors import CorrKDError
from corrkd.experiment.choices import MethodChoice, NetworkChoice, over
from corrkd.experiment.settings import ArmSettings, Settings
from corrkd.methods.registry import method_names
from corrkd.settings import TrainingSettings, first_line

TEACHER = "teacher"
STUDENT = "student"
WITHOUT_TEACHER = "no-distillation"
BY_MISSING = (
    "the epoch with the highest weighted F1 averaged over the missing subsets of the validation "
    "split, earliest on ties"
)
BY_COMPLETE = (
    "the epoch with the highest weighted F1 on the complete validation split, earliest on ties"
)
BY_LAST = "the last epoch"

# Ablation in Table 3 of the paper: one loss left out, or RCD replaced by the KL divergence of the
# responses.
ABLATION = {
    name: ArmSettings(
        title=title,
        method={"name": "corrkd", **{term: {"weight": x} for term, x in weights.items()}},
    )
    for name, title, weights in (
        ("corrkd-without-scd", "CorrKD without SCD", {"scd": 0.0}),
        ("corrkd-without-cpd", "CorrKD without CPD", {"cpd": 0.0}),
        ("corrkd-without-rcd", "CorrKD without RCD", {"rcd": 0.0}),
        ("corrkd-kl", "CorrKD, RCD → KL", {"rcd": 0.0, "kl": 1.0}),
    )
}
# Other sizes or forms of a baseline, as in public code.
VARIANTS = {
    "transm-original": ArmSettings(
        method={"name": "transm"},
        title="TransM, original sizes",
        network={
            "network": {"width": 100, "heads": 5, "feedforward": 200, "layers": 10, "dropout": 0.5},
            "decoder_layers": 5,
            "unimodal": True,
            "forward": 10.0,
            "backward": 10.0,
        },
    )
}
BASELINES = ("self-mm", "cubemlp", "dmd", "mctn", "transm", "smil", "gcnet")
CONTROLS = ("late-fusion", TEACHER, WITHOUT_TEACHER, "kl", "feature-mse")
GROUPS = {
    "paper": (*BASELINES, "hrlf", "corrkd"),
    "controls": CONTROLS,
    "ablation": ("corrkd", *ABLATION, WITHOUT_TEACHER),
    "all": (*BASELINES, "mctn-per-source", "hrlf-teacher", "hrlf", *CONTROLS, *ABLATION, "corrkd"),
}

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Arm:
    """A method with the settings of its training.

    Attributes:
        name: name in files and rows.
        title: name in tables.
        network, method: by name, with their settings and options.
        training: epochs, batch size, optimiser.
        complete: whether it is trained on complete samples; else modality random missing applies.
        selection: rule by which its epoch is selected.
        start: key that determines the initial parameters together with the seed. It differs for
            each teacher and is the same for all other arms.
        taught_by: name of the arm that teaches it; None: its losses use no teacher.
    """

    name: str
    title: str
    network: NetworkChoice
    method: MethodChoice
    training: TrainingSettings
    complete: bool
    selection: str = BY_MISSING
    start: str = STUDENT
    taught_by: str | None = None

    @property
    def is_teacher(self) -> bool:
        """Whether it has the settings of the run's teacher."""
        return self.name == TEACHER or self.method.class_.teaches

    @property
    def kind(self) -> str:
        """Its kind in tables: "baseline", "control", "ablation" or "method"."""
        kinds = {
            "baseline": (*BASELINES, "mctn-per-source", "hrlf", *VARIANTS),
            "control": (*CONTROLS, "hrlf-teacher"),
            "ablation": tuple(ABLATION),
        }
        return next((kind for kind, names in kinds.items() if self.name in names), "method")

    def to_json(self) -> dict[str, Any]:
        """Return everything that its training depends on, except data and seed."""
        return {
            "method": self.method.model_dump(mode="json"),
            "network": self.network.model_dump(mode="json"),
            **self.training.model_dump(mode="json"),
            "complete": self.complete,
            "selection": self.selection,
        }


def arm_names() -> tuple[str, ...]:
    """Return the names of all arms: methods, the teacher, the ablation, variants of baselines."""
    return (*method_names(), TEACHER, *ABLATION, *VARIANTS)


def resolve(name: str, settings: ArmSettings, run: Settings) -> Arm:
    """Return an arm by name, resolved with the settings of a run.

    The method has the options of the run's student if both use the same method, else its defaults.
    The network has the settings of the student's network (for a teacher, the teacher's) if both are
    of the same kind, else its defaults. The training is the student's (for a teacher, the
    teacher's). `settings` override all of these.

    The arm `teacher` is trained by the method that the run's student names for its teacher. If a
    method names another method for its teacher, the arm of that name teaches it.

    Raises:
        CorrKDError: if a method or setting is unknown, a teacher needs a teacher or incomplete
            samples, or an arm needs another teacher than the external one.
    """
    settings = laid_over(name, {**ABLATION, **VARIANTS}.get(name, ArmSettings()), settings)
    where = f"settings: arms.{name}"
    method = _method(name, settings, run, where)
    teacher = name == TEACHER or method.class_.teaches
    stage = run.teacher if teacher else run.student
    network = _network(method, settings, stage.network, where)
    fields = TrainingSettings.model_fields
    changes = {key: value for key, value in settings.changes().items() if key in fields}
    training = _valid(
        TrainingSettings, {key: getattr(stage, key) for key in fields} | changes, where
    )
    trains_on = method.class_.trains_on if settings.trains_on == "method" else settings.trains_on
    if teacher and (method.class_.needs_teacher or settings.trains_on == "missing"):
        raise CorrKDError(
            f"{where}: a teacher has no teacher and is trained on complete samples; name the arm "
            f"otherwise"
        )
    complete = teacher or trains_on == "complete"
    return Arm(
        name=name,
        title=settings.title or _title(name, method),
        network=network,
        method=method,
        training=training,
        complete=complete,
        selection=selection_rule(training, complete=complete),
        start=TEACHER if teacher else STUDENT,
        taught_by=_teacher_of(method, run, where),
    )


def teachers_of(arms: Iterable[Arm], run: Settings) -> list[str]:
    """Return the names of the arms that must be trained to teach these arms, each once. There are
    none if the teacher is external.
    """
    if run.teacher.outputs is not None:
        return []
    return list(dict.fromkeys(arm.taught_by for arm in arms if arm.taught_by is not None))


def _teacher_of(method: MethodChoice, run: Settings, where: str) -> str | None:
    """Return the name of the arm that teaches a method: the run's teacher, unless the method needs
    a teacher trained by another method.
    """
    if not method.class_.needs_teacher:
        return None
    needed = method.class_.taught_by
    if needed in (None, run.student.method.class_.taught_by):
        return TEACHER
    if run.teacher.outputs is not None:
        raise CorrKDError(
            f"{where}: is taught by {needed}, and the outputs in teacher.outputs are not of that; "
            f"leave the arm out, set student.method to {method.name} to teach it by them, or set "
            "teacher.outputs to null"
        )
    return needed


def selection_rule(training: TrainingSettings, *, complete: bool) -> str:
    """Return the rule by which an epoch is selected. `complete`: whether training uses complete
    samples.
    """
    return BY_LAST if training.keep == "last" else BY_COMPLETE if complete else BY_MISSING


def _method(name: str, settings: ArmSettings, run: Settings, where: str) -> MethodChoice:
    """Return the arm's method, with its changes: the method of its name, that of the run's student,
    or the one that trains the student's teacher.
    """
    trains_teacher = run.student.method.class_.taught_by or WITHOUT_TEACHER
    usual = {TEACHER: trains_teacher, STUDENT: run.student.method.name}.get(name, name)
    chosen = settings.method.get("name", usual)
    below = run.student.method
    if chosen != below.name:
        below = _valid(MethodChoice, {"name": chosen}, f"{where}.method")
    return _valid(MethodChoice, below.over(settings.method), f"{where}.method")


def _network(
    method: MethodChoice, settings: ArmSettings, usual: NetworkChoice, where: str
) -> NetworkChoice:
    """Return the arm's network, with its changes: the one that its method needs, else the run's."""
    below = NetworkChoice.needed_by(method.class_, usual.model_dump())
    network = _valid(NetworkChoice, over(below, settings.network), f"{where}.network")
    try:
        method.check_trains(network)
    except ValueError as error:
        raise CorrKDError(f"{where}.{error}") from None
    return network


def _title(name: str, method: MethodChoice) -> str:
    """Return the default title of an arm in tables."""
    title = method.class_.title or method.name
    return "Teacher" if name == TEACHER else f"{title} student" if name == STUDENT else title


def laid_over(name: str, below: ArmSettings, above: ArmSettings) -> ArmSettings:
    """Return the settings of an arm, with those set in `above` overriding those in `below`."""
    low, high = below.changes(), above.changes()
    preset = {**ABLATION, **VARIANTS}.get(name, ArmSettings())
    usual = {"method": preset.method.get("name", name), "network": None}
    choices = {
        key: over(low[key], high[key], usual[key]) for key in usual if key in low and key in high
    }
    return ArmSettings.model_validate({**low, **high, **choices})


def _valid(model: type[M], tree: Mapping[str, Any], where: str) -> M:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise CorrKDError(first_line(error, where)) from None
