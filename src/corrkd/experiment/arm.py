"""An arm of an experiment: a method with its settings resolved, and how it is trained and chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from corrkd.errors import CorrKDError
from corrkd.methods.base import AnyMethod
from corrkd.methods.registry import method_class, method_names
from corrkd.networks.base import AnyNetwork
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.networks.registry import network_class
from corrkd.parsing import quoted
from corrkd.settings import ArmSettings, DistillationSettings, NetworkSettings, Settings, StageSettings, merged

TEACHER = "teacher"
STUDENT = "student"
BY_MISSING = (
    "the epoch with the highest weighted F1 averaged over the missing subsets of the validation split, earliest on ties"
)
BY_COMPLETE = "the epoch with the highest weighted F1 on the complete validation split, earliest on ties"
BY_LAST = "the last epoch"

# The paper's ablation (its Table 3): a loss left out, or RCD replaced by the plain divergence of the responses.
ABLATION = {
    "corrkd-without-scd": ArmSettings(method="corrkd", title="CorrKD without SCD", options={"scd": 0.0}),
    "corrkd-without-cpd": ArmSettings(method="corrkd", title="CorrKD without CPD", options={"cpd": 0.0}),
    "corrkd-without-rcd": ArmSettings(method="corrkd", title="CorrKD without RCD", options={"rcd": 0.0}),
    "corrkd-kl": ArmSettings(method="corrkd", title="CorrKD, RCD → KL", options={"rcd": 0.0, "kl": 1.0}),
}
# Other sizes or forms of a baseline, as public code has them.
VARIANTS = {
    "transm-original": ArmSettings(
        method="transm",
        title="TransM, original sizes",
        network={
            "network": {"width": 100, "heads": 5, "feedforward": 200, "layers": 10, "dropout": 0.5},
            "decoder_layers": 5,
            "unimodal": True,
            "forward": 10.0,
            "backward": 10.0,
        },
    ),
}
BASELINES = ("self-mm", "cubemlp", "dmd", "mctn", "transm", "smil", "gcnet")
CONTROLS = ("late-fusion", TEACHER, "no-distillation", "kl", "feature-mse")
GROUPS = {
    "paper": (*BASELINES, "corrkd"),
    "controls": CONTROLS,
    "ablation": ("corrkd", *ABLATION, "no-distillation"),
    "all": (*BASELINES, "mctn-per-source", *CONTROLS, *ABLATION, "corrkd"),
}

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Arm:
    """A method ready to be trained.

    Attributes:
        name: of its files and rows.
        title: in tables.
        method: the class.
        base: the method's name.
        network, options: settings of the network and of the method.
        stage: epochs, batch size, optimiser.
        complete: trained on complete samples, else on what modality random missing leaves.
        selection: the rule by which its epoch is chosen.
        start: what the initial parameters follow from beside the seed: each teacher has its own, all others agree where networks agree.
    """

    name: str
    title: str
    method: type[AnyMethod]
    base: str
    network: BaseModel
    options: BaseModel
    stage: StageSettings
    complete: bool
    selection: str = BY_MISSING
    start: str = STUDENT

    @property
    def network_type(self) -> type[AnyNetwork]:
        """The class of the network."""
        return network_of(self.method)

    @property
    def kind(self) -> str:
        """Where it stands in tables: "baseline", "control", "ablation" or "method"."""
        kinds = {
            "baseline": (*BASELINES, "mctn-per-source", *VARIANTS),
            "control": CONTROLS,
            "ablation": tuple(ABLATION),
        }
        return next((kind for kind, names in kinds.items() if self.name in names), "method")

    def to_json(self) -> dict[str, Any]:
        """All that its training depends on beside data and seed."""
        return {
            "method": self.base,
            "network": self.network.model_dump(mode="json"),
            "options": self.options.model_dump(mode="json"),
            "stage": self.stage.model_dump(mode="json"),
            "complete": self.complete,
            "selection": self.selection,
        }


def network_of(method: type[AnyMethod]) -> type[AnyNetwork]:
    """Return the network that a method needs, or CorrKD's where any will do."""
    return network_class(method.network or CorrKDNetwork.name)


def arm_names() -> tuple[str, ...]:
    """All arms that can be asked for by name: methods, the teacher alone, the ablation, other forms of the baselines."""
    return (*method_names(), TEACHER, *ABLATION, *VARIANTS)


def resolve(name: str, settings: ArmSettings, run: Settings) -> Arm:
    """The arm of that name within a run's settings.

    The network's settings are the run's where the method uses CorrKD's structure, else the method's own defaults; the options are the
    run's distillation where they are CorrKD's; the stage is the run's `student`, for the teacher its `teacher`.

    Raises:
        CorrKDError: for an unknown method, or a setting that it does not have.
    """
    preset = {**ABLATION, **VARIANTS}.get(name)
    if preset is not None:
        settings = laid_over(preset, settings)
    teacher = name == TEACHER
    base = settings.method or ("no-distillation" if teacher else name)
    method = method_class(base)
    kind = network_of(method).settings_type
    network = run.network if kind is NetworkSettings else kind()
    options = run.student.distillation if method.options_type is DistillationSettings else method.options_type()
    whole = run.teacher if teacher else run.student
    stage = StageSettings(**{name: getattr(whole, name) for name in StageSettings.model_fields})
    trains_on = "complete" if teacher else method.trains_on if settings.trains_on == "method" else settings.trains_on
    where = f"settings: methods.{name}"
    stage = _changed(stage, settings.stage, f"{where}.stage")
    return Arm(
        name=name,
        title=settings.title or ("Teacher" if teacher else method.title or name),
        method=method,
        base=base,
        network=_changed(network, settings.network, f"{where}.network"),
        options=_changed(options, settings.options, f"{where}.options"),
        stage=stage,
        complete=trains_on == "complete",
        selection=BY_LAST if stage.keep == "last" else BY_COMPLETE if trains_on == "complete" else BY_MISSING,
        start=TEACHER if teacher else STUDENT,
    )


def laid_over(below: ArmSettings, above: ArmSettings) -> ArmSettings:
    """`above` where it says something, else `below`."""
    said = above.model_dump(exclude_unset=True)
    return ArmSettings.model_validate(merged(below.model_dump(exclude_unset=True), said))


def _changed(settings: M, changes: Mapping[str, Any], where: str) -> M:
    try:
        return type(settings).model_validate(merged(settings.model_dump(), changes))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([where, *map(str, first["loc"])])
        if first["type"] == "extra_forbidden":
            raise CorrKDError(f"{key} is unknown; allowed there: {', '.join(type(settings).model_fields)}") from None
        raise CorrKDError(
            f"{key}: {first['msg'].removeprefix('Value error, ')} (given: {quoted(first['input'])})"
        ) from None
