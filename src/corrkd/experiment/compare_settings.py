"""A comparison whole: datasets, methods, seeds. One YAML file describes it, and the folder keeps it as it was resolved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from corrkd.errors import CorrKDError
from corrkd.experiment.arm import GROUPS, TEACHER, laid_over, resolve
from corrkd.experiment.budget import BudgetRule
from corrkd.experiment.run_folder import OURS
from corrkd.files import FAILURES, PLAN, check_names, file_names
from corrkd.parsing import quoted, read_yaml_file, yaml_with_digest
from corrkd.settings import ArmSettings, Count, Settings, first_line, read_yaml, settings_of_tree

REPORTED = "reported.csv"
# What a comparison keeps beside its datasets' folders, and an arm beside its model.
_BESIDE_DATASETS = (*OURS, PLAN, FAILURES, REPORTED)
_BESIDE_MODELS = ("budget", "cost")
MOST_SEEDS = 10_000
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
    epochs: dict[str, Count] = Field(default_factory=dict)

    @field_validator("methods", mode="after")
    @classmethod
    def _names_are_folders(cls, methods: dict[str, ArmSettings]) -> dict[str, ArmSettings]:
        check_names(methods, "comparison: method")
        for name in _BESIDE_MODELS:
            if name in methods:
                raise CorrKDError(
                    f"comparison: method {name!r}: a file of that name lies beside the model; choose another"
                )
        return methods

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
    jobs: int = Field(1, ge=1, le=4096)

    @field_validator("datasets", mode="after")
    @classmethod
    def _names_are_folders(cls, datasets: dict[str, DatasetPlan]) -> dict[str, DatasetPlan]:
        check_dataset_names(datasets)
        return datasets

    def to_yaml(self) -> str:
        """The file that `load_plan` reads."""
        tree = self.model_dump(mode="json")
        for name, part in self.datasets.items():
            # Only what was said: what an arm leaves open is its method's, or the ablation's.
            tree["datasets"][name]["methods"] = {
                arm: changes.model_dump(mode="json", exclude_unset=True) for arm, changes in part.methods.items()
            }
        return yaml_with_digest(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def check_dataset_names(names: Iterable[str]) -> None:
    """Raise CorrKDError where a dataset's name is not fit for its folder, or is that of something else in a comparison's folder."""
    names = list(names)
    check_names(names, "comparison: dataset")
    for name in names:
        if any(Path(name).match(pattern) for pattern in _BESIDE_DATASETS):
            raise CorrKDError(
                f"comparison: dataset {name!r}: a comparison's folder has other use for the name; choose another"
            )


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
            f"comparison {source}: {quoted(min(unknown))} is unknown; allowed: datasets, methods, seeds, jobs, search, budget"
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
    chosen_seeds = _seeds(tree.get("seeds") if seeds is None else seeds)
    shared = {} if chosen_seeds is None else {"seeds": chosen_seeds}
    plans = {
        str(name): _dataset(str(name), part or {}, common, shared, list(overrides), common_budget, budget)
        for name, part in datasets.items()
    }
    chosen = jobs if jobs is not None else tree.get("jobs", 1)
    try:
        return ComparePlan(datasets=plans, search=tree.get("search", NO_SEARCH), jobs=chosen)
    except ValidationError as error:
        raise CorrKDError(f"comparison: {first_line(error, ComparePlan)}") from None


def _seeds(value: Any) -> list[Any] | None:
    """A list of seeds, or the first so many."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_SEEDS:
        return list(range(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    raise CorrKDError(
        f"comparison: seeds: expected a number from 1 to {MOST_SEEDS:,} or a list (given: {quoted(value)})"
    )


def read_plan(out: Path) -> ComparePlan:
    """The plan that a comparison's folder keeps. Raises CorrKDError where there is none, or it is damaged."""
    path = out / PLAN
    try:
        return ComparePlan.model_validate(read_yaml_file(path))
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
    check_dataset_names([name])
    if not isinstance(part, Mapping) or set(part) - {"settings", "methods", "budget", "epochs"}:
        raise CorrKDError(f"{where}: expected {{settings: ..., methods: ..., budget: ..., epochs: ...}}")
    rule = _budget(part.get("budget", common_budget) if budget is None else budget, where)
    own = _named(part.get("methods"), f"datasets.{name}.methods")
    in_file = part.get("settings") or {}
    if not isinstance(in_file, Mapping):
        raise CorrKDError(f"{where}: settings: expected keys and values (given: {quoted(in_file)})")
    settings = settings_of_tree(in_file, overrides=overrides, changes={"jobs": 1, **shared})
    arms = {arm: laid_over(_arm(arm, common.get(arm)), _arm(arm, own.get(arm))) for arm in (common or own)}
    if not arms:
        raise CorrKDError(f"{where}: no method; name some under `methods`, or give --methods")
    stray = set(own) - set(arms)
    if stray:
        raise CorrKDError(f"{where}.methods.{sorted(stray)[0]}: is not among the comparison's methods")
    epochs = part.get("epochs") or {}
    if not isinstance(epochs, Mapping):
        raise CorrKDError(f"{where}: epochs: expected {{method: number}} (given: {quoted(epochs)})")
    stray = set(epochs) - {TEACHER, *arms}
    if stray:
        raise CorrKDError(f"{where}.epochs.{min(stray)}: is not among the comparison's methods")
    resolved = [resolve(arm, changes, settings) for arm, changes in arms.items()]
    if TEACHER not in arms and any(arm.method.needs_teacher for arm in resolved):
        arms = {TEACHER: ArmSettings(), **arms}
    if settings.evaluation.split == "valid" and rule is not None:
        raise CorrKDError(
            f"{where}: tests on the validation split, by which budgets are chosen; set budget: fixed (or --budget fixed)"
        )
    try:
        return DatasetPlan(settings=settings, methods=arms, budget=rule, epochs=epochs)
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
    legible = re.sub(r"[^\w.-]", "-", Path(path).name.split(".")[0]) or "data"
    return file_names([legible])[legible]
