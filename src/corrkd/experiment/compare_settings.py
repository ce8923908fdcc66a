"""A comparison whole: datasets, methods, seeds. One YAML file describes it, and the folder keeps it as it was resolved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from corrkd.errors import CorrKDError
from corrkd.experiment.arm import GROUPS, TEACHER, laid_over, resolve
from corrkd.experiment.budget import BudgetRule
from corrkd.files import PLAN
from corrkd.settings import ArmSettings, Settings, first_line, load_settings, merged, read_yaml

_FOLDER = re.compile(r"[\w][\w.-]*")
NO_SEARCH = "none: every method has its default settings"


class DatasetPlan(BaseModel):
    """One dataset of a comparison.

    Attributes:
        settings: of its runs.
        methods: the arms, with what differs from their defaults.
        budget: the rule by which each arm's number of epochs is chosen; None: the arms' own.
        epochs: by arm, what was chosen; such an arm's budget is not chosen again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: Settings
    methods: dict[str, ArmSettings]
    budget: BudgetRule | None = None
    epochs: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)

    def chooses(self, arm: str) -> bool:
        """Whether the arm's number of epochs is chosen by the rule."""
        return self.budget is not None and arm not in self.epochs


class ComparePlan(BaseModel):
    """A comparison resolved.

    Attributes:
        datasets: by the name of their folder.
        search: what was searched, for the report.
        jobs: runs at once, a process each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    datasets: dict[str, DatasetPlan]
    search: str = NO_SEARCH
    jobs: int = Field(1, ge=1)

    def to_yaml(self) -> str:
        """The file that `load_plan` reads."""
        tree = self.model_dump(mode="json")
        for name, part in self.datasets.items():
            # Only what was said: what an arm leaves open is its method's, or the ablation's.
            tree["datasets"][name]["methods"] = {
                arm: changes.model_dump(mode="json", exclude_unset=True) for arm, changes in part.methods.items()
            }
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def load_plan(
    source: str | Path | None = None,
    *,
    data: Sequence[str] = (),
    preset: str | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int | None = None,
    overrides: Iterable[str] = (),
    budget: str | None = None,
) -> ComparePlan:
    """A comparison from a YAML file and/or the command line, which lies over the file.

    The file's keys: `datasets`, by name {settings: as of a run, methods: changes there}; `methods`, a list of names or {name: changes};
    `seeds`, `jobs`, `search`; `budget`, "doubling" (the default), "fixed", or the rule's own keys.

    Args:
        source: the file.
        data: dataset files, in place of the file's datasets.
        preset: their preset.
        methods: names; the groups paper, controls, ablation, all.
        seeds: of every run.
        jobs: runs at once.
        overrides: `key=value` settings of every dataset.
        budget: "doubling": an arm's number of epochs is doubled until its validation score gains little (`corrkd.experiment.budget`);
            "fixed": it is the settings'.

    Raises:
        CorrKDError: for an unknown key, value or method, or a name that no folder can have.
    """
    tree = read_yaml(Path(source)) if source is not None else {}
    unknown = set(tree) - {"datasets", "methods", "seeds", "jobs", "search", "budget"}
    if unknown:
        raise CorrKDError(
            f"comparison {source}: {sorted(unknown)[0]} is unknown; allowed: datasets, methods, seeds, jobs, search, budget"
        )
    common_budget = tree.get("budget", "doubling")
    common = _named(tree.get("methods"), "methods")
    if methods is not None:
        common = {name: common.get(name, {}) for name in expanded(methods)}
    found = {_name_of(path): {"settings": {"preset": preset, "data": {"path": path}}} for path in data}
    if len(found) < len(data):
        raise CorrKDError("comparison: two datasets have one name; name them in a file under `datasets`")
    datasets = found or tree.get("datasets") or {"synthetic": {"settings": {"preset": preset or "synthetic"}}}
    if not isinstance(datasets, Mapping):
        raise CorrKDError(f"comparison {source}: datasets: expected {{name: {{settings: ..., methods: ...}}}}")
    given = seeds if seeds is not None else tree.get("seeds")
    shared = {} if given is None else {"seeds": list(range(given)) if isinstance(given, int) else list(given)}
    plans = {
        str(name): _dataset(str(name), part or {}, common, shared, list(overrides), common_budget, budget)
        for name, part in datasets.items()
    }
    chosen = jobs if jobs is not None else tree.get("jobs", 1)
    try:
        return ComparePlan(datasets=plans, search=tree.get("search", NO_SEARCH), jobs=chosen)
    except ValidationError as error:
        raise CorrKDError(f"comparison: {first_line(error)}") from None


def read_plan(out: Path) -> ComparePlan:
    """The plan that a comparison's folder keeps. Raises CorrKDError where there is none, or it is damaged."""
    path = out / PLAN
    try:
        return ComparePlan.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except OSError as error:
        raise CorrKDError(f"{path}: {error.strerror or error}") from None
    except yaml.YAMLError:
        raise CorrKDError(f"{path}: damaged: not YAML") from None
    except ValidationError as error:
        raise CorrKDError(f"{path}: damaged: {first_line(error, ComparePlan)}") from None


def _dataset(
    name: str,
    part: Mapping[str, Any],
    common: Mapping[str, Any],
    shared: Mapping[str, Any],
    overrides: list[str],
    common_budget: Any,
    budget: str | None,
) -> DatasetPlan:
    where = f"comparison: datasets.{name}"
    if not _FOLDER.fullmatch(name):
        raise CorrKDError(f"{where}: a dataset's name is that of its folder: letters, digits, ., - and _")
    if not isinstance(part, Mapping) or set(part) - {"settings", "methods", "budget", "epochs"}:
        raise CorrKDError(f"{where}: expected {{settings: ..., methods: ..., budget: ..., epochs: ...}}")
    rule = _budget(part.get("budget", common_budget) if budget is None else budget, where)
    own = _named(part.get("methods"), f"datasets.{name}.methods")
    tree = merged(part.get("settings") or {}, {"jobs": 1, **shared})
    settings = load_settings(preset=tree.pop("preset", None), overrides=overrides, **tree)
    arms = {arm: laid_over(_arm(arm, common.get(arm)), _arm(arm, own.get(arm))) for arm in (common or own)}
    if not arms:
        raise CorrKDError(f"{where}: no method; name some under `methods`, or give --methods")
    stray = set(own) - set(arms)
    if stray:
        raise CorrKDError(f"{where}.methods.{sorted(stray)[0]}: is not among the comparison's methods")
    stray = set(part.get("epochs") or {}) - {TEACHER, *arms}
    if stray:
        raise CorrKDError(f"{where}.epochs.{sorted(stray)[0]}: is not among the comparison's methods")
    resolved = [resolve(arm, changes, settings) for arm, changes in arms.items()]
    if TEACHER not in arms and any(arm.method.needs_teacher for arm in resolved):
        arms = {TEACHER: ArmSettings(), **arms}
    if settings.evaluation.split == "valid" and rule is not None:
        raise CorrKDError(
            f"{where}: tests on the validation split, by which budgets are chosen; set budget: fixed (or --budget fixed)"
        )
    try:
        return DatasetPlan(settings=settings, methods=arms, budget=rule, epochs=part.get("epochs") or {})
    except ValidationError as error:
        raise CorrKDError(f"{where}: {first_line(error, DatasetPlan)}") from None


def _budget(value: Any, where: str = "comparison") -> BudgetRule | None:
    """The rule that a plan asks for: by name, or by its keys."""
    if value == "doubling":
        return BudgetRule()
    if value is None or value == "fixed":
        return None
    if not isinstance(value, Mapping):
        raise CorrKDError(f"{where}: budget: expected doubling, fixed, or {{gain: 0.3, doublings: 5}}")
    try:
        return BudgetRule.model_validate(value)
    except ValidationError as error:
        raise CorrKDError(f"{where}: budget: {first_line(error, BudgetRule)}") from None


def _arm(name: str, changes: Any) -> ArmSettings:
    try:
        return ArmSettings.model_validate(changes or {})
    except ValidationError as error:
        raise CorrKDError(f"comparison: methods.{name}: {first_line(error, ArmSettings)}") from None


def _named(methods: Any, where: str) -> dict[str, Any]:
    """{name: changes} of a list of names, a group's name, or a mapping; groups spelled out."""
    if methods is None:
        return {}
    if isinstance(methods, Mapping):
        return {str(name): changes for name, changes in methods.items()}
    names = [methods] if isinstance(methods, str) else methods
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CorrKDError(f"comparison: {where}: expected a list of names, or {{name: changes}}")
    return {name: {} for name in expanded(names)}


def expanded(names: Iterable[str]) -> list[str]:
    """Names with the groups (paper, controls, ablation, all) spelled out, each once."""
    return list(dict.fromkeys(one for name in names for one in GROUPS.get(name, (name,))))


def _name_of(path: str) -> str:
    return re.sub(r"[^\w.-]", "-", Path(path).name.split(".")[0]) or "data"
