"""Plans: arms x datasets x seeds. `corrkd run` is a plan of three arms on one dataset. A plan is
stored in its folder in resolved form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from corrkd.errors import CorrKDError
from corrkd.experiment.arm import (
    GROUPS,
    STUDENT,
    TEACHER,
    WITHOUT_TEACHER,
    Arm,
    laid_over,
    resolve,
    teachers_of,
)
from corrkd.experiment.budget import BudgetRule
from corrkd.experiment.folder import BESIDE_DATASETS
from corrkd.experiment.settings import ArmSettings, Settings, read_yaml, settings_of_tree
from corrkd.files import PLAN, check_names, file_names
from corrkd.parsing import check_yaml_digest, quoted, read_yaml_file, yaml_with_digest
from corrkd.settings import Count, DataSettings, Strict, first_line

_BESIDE_MODELS = ("budget", "cost")  # files next to an arm's model
RUN_ARMS = {
    TEACHER: ArmSettings(),
    STUDENT: ArmSettings(),
    "control": ArmSettings(method={"name": WITHOUT_TEACHER}, title="No-distillation control"),
}
REFERENCES, CONTROLS = (
    (STUDENT, "corrkd"),
    ("control", WITHOUT_TEACHER),
)  # names of arms in a run and in a comparison
MOST_SEEDS = 10_000
MOST_ARMS, MOST_DATASETS = 1_000, 1_000
NO_SEARCH = "none: every method has its default settings"


class DatasetPlan(Strict):
    """One dataset of a plan.

    Attributes:
        settings: settings of its runs.
        arms: by name, with the settings that differ from the defaults.
        budget: rule for choosing each arm's number of epochs; None: the numbers in the settings.
        epochs: numbers of epochs already chosen, by arm. They are not chosen again.
        reference: arm with which the report compares the others; None: see `reference_arm`.
    """

    settings: Settings
    arms: Annotated[dict[str, ArmSettings], Field(min_length=1, max_length=MOST_ARMS)]
    budget: BudgetRule | None = None
    epochs: dict[str, Count] = Field(default_factory=dict)
    reference: str | None = None

    @field_validator("arms", mode="after")
    @classmethod
    def _names_are_folders(cls, arms: dict[str, ArmSettings]) -> dict[str, ArmSettings]:
        check_names(arms, "plan: arm")
        for name in _BESIDE_MODELS:
            if name in arms:
                raise CorrKDError(
                    f"plan: arm {name!r}: a file of that name lies beside the model; choose another"
                )
        return arms

    def chooses(self, arm: str) -> bool:
        """Return whether the arm's number of epochs is to be chosen by the rule."""
        return self.budget is not None and arm not in self.epochs

    @field_validator("reference", mode="after")
    @classmethod
    def _reference_is_an_arm(cls, reference: str | None, info: ValidationInfo) -> str | None:
        arms = info.data.get("arms", {})
        if reference is not None and reference not in arms:
            raise ValueError(f"is not one of the arms {', '.join(arms)}")
        return reference

    @property
    def reference_arm(self) -> str:
        """Arm with which the others are compared: `reference` if set, else the student of a run or
        CorrKD in a comparison, else the last arm.
        """
        usual = next((name for name in REFERENCES if name in self.arms), list(self.arms)[-1])
        return self.reference or usual

    @property
    def control(self) -> str | None:
        """Name of the arm without distillation, if any."""
        return next((name for name in CONTROLS if name in self.arms), None)


class Plan(Strict):
    """A resolved plan.

    Attributes:
        datasets: by the name of their folder.
        search: description of how hyper-parameters were searched.
        jobs: number of runs at once, one process each.
        trials: trials of each arm in a search over hyper-parameters; None: no search.
    """

    datasets: Annotated[dict[str, DatasetPlan], Field(min_length=1, max_length=MOST_DATASETS)]
    search: Annotated[str, Field(max_length=1000)] = NO_SEARCH
    jobs: int = Field(1, ge=1, le=4096)
    trials: Annotated[int, Field(ge=1, le=1_000_000)] | None = None

    @field_validator("datasets", mode="after")
    @classmethod
    def _names_are_folders(cls, datasets: dict[str, DatasetPlan]) -> dict[str, DatasetPlan]:
        check_dataset_names(datasets)
        return datasets

    def to_yaml(self) -> str:
        """Return the plan as a YAML file for `load_plan` and `read_plan`, with a digest."""
        tree = self.model_dump(mode="json", exclude={"trials"} if self.trials is None else None)
        for name, dataset_plan in self.datasets.items():
            # Only keys that were set: the others default to those of the method or ablation.
            tree["datasets"][name]["arms"] = {
                arm: changes.model_dump(mode="json", exclude_unset=True)
                for arm, changes in dataset_plan.arms.items()
            }
        return yaml_with_digest(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def arms_of(dataset_plan: DatasetPlan) -> list[Arm]:
    """Return the resolved arms of a dataset."""
    return [
        resolve(name, changes, dataset_plan.settings) for name, changes in dataset_plan.arms.items()
    ]


def with_teachers(arms: Mapping[str, ArmSettings], settings: Settings) -> dict[str, ArmSettings]:
    """Return the arms, preceded by the teachers that they need and that are not among them."""
    teachers = teachers_of(
        [resolve(name, changes, settings) for name, changes in arms.items()], settings
    )
    return {**{name: ArmSettings() for name in teachers if name not in arms}, **arms}


def plan_of_run(settings: Settings) -> Plan:
    """Return the plan of `corrkd run`: teacher (unless it is external), student and control on one
    dataset.
    """
    arms = dict(RUN_ARMS)
    if settings.teacher.outputs is not None:
        del arms[TEACHER]
    dataset_plan = DatasetPlan(settings=settings, arms=arms)
    return Plan(datasets={dataset_name(settings.data): dataset_plan}, jobs=settings.jobs)


def dataset_name(data: DataSettings) -> str:
    """Return the name of a dataset's folder in a run: the name in the settings, else that of its
    file, prefixed with "data-" if it is reserved.
    """
    name = _name_of(data.path) if data.name is None else file_names([data.name])[data.name]
    return (
        name
        if not any(Path(name).match(pattern) for pattern in BESIDE_DATASETS)
        else f"data-{name}"
    )


def check_dataset_names(names: Iterable[str]) -> None:
    """Raise CorrKDError if the name of a dataset is invalid for a folder or reserved."""
    names = list(names)
    check_names(names, "plan: dataset")
    for name in names:
        if any(Path(name).match(pattern) for pattern in BESIDE_DATASETS):
            raise CorrKDError(
                f"plan: dataset {name!r}: the folder has another use for the name; choose another"
            )


def load_plan(
    source: str | Path | None = None,
    *,
    data: Sequence[str] = (),
    preset: str | None = None,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int | None = None,
    overrides: Iterable[str] = (),
    budget: str | None = None,
    reference: str | None = None,
) -> Plan:
    """Return a plan from a YAML file and/or the command line, which overrides the file.

    The keys of the file are `datasets`, {name: {settings: as for a run, arms: changes for this
    dataset}}; `arms`, a list of names or {name: changes}; `seeds`, `jobs`, `search`; `reference`,
    the arm with which the report compares the others; and `budget`, "doubling" (the default),
    "fixed" or the keys of `BudgetRule`.

    Args:
        source: the file.
        data: paths of datasets, instead of the file's datasets.
        preset: preset of the datasets in `data`, or of the built-in one if there are none.
        arms: names of arms, or of the groups paper, controls, ablation, all.
        seeds: seeds of every arm.
        jobs: number of runs at once.
        overrides: `key=value` settings of every dataset.
        budget: "doubling": an arm's number of epochs is doubled until its validation score gains
            little (`corrkd.experiment.budget`); "fixed": the number in the settings.
        reference: arm with which the report compares the others.

    Raises:
        CorrKDError: if a key, value or method is unknown, or a name is invalid for a folder.
    """
    tree = read_yaml(Path(source)) if source is not None else {}
    unknown = set(tree) - {"datasets", "arms", "seeds", "jobs", "search", "budget", "reference"}
    if unknown:
        raise CorrKDError(
            f"plan {source}: unknown key {quoted(min(unknown))}; allowed: datasets, arms, seeds, "
            f"jobs, search, budget, reference"
        )
    common_budget = tree.get("budget", "doubling")
    common = _named(tree.get("arms"), "arms")
    if arms is not None:
        common = {name: common.get(name, {}) for name in expanded(arms)}
    from_paths = {
        _name_of(path): {"settings": {"preset": preset, "data": {"path": path}}} for path in data
    }
    if len(from_paths) < len(data):
        raise CorrKDError("plan: two datasets have one name; name them in a file under `datasets`")
    datasets = (
        from_paths
        or tree.get("datasets")
        or {"synthetic": {"settings": {"preset": preset or "synthetic"}}}
    )
    if not isinstance(datasets, Mapping):
        raise CorrKDError(
            f"plan {source}: datasets: expected {{name: {{settings: ..., arms: ...}}}}"
        )
    chosen_seeds = _seeds(tree.get("seeds") if seeds is None else seeds)
    shared = {} if chosen_seeds is None else {"seeds": chosen_seeds}
    plans = {
        str(name): _dataset(
            str(name),
            dataset_plan or {},
            common,
            shared,
            list(overrides),
            common_budget,
            budget,
            tree.get("reference"),
            reference,
        )
        for name, dataset_plan in datasets.items()
    }
    chosen = jobs if jobs is not None else tree.get("jobs", 1)
    try:
        return Plan(datasets=plans, search=tree.get("search", NO_SEARCH), jobs=chosen)
    except ValidationError as error:
        raise CorrKDError(f"plan: {first_line(error)}") from None


def _seeds(value: Any) -> list[Any] | None:
    """Return a list of seeds; a number n stands for the seeds 0 to n - 1."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_SEEDS:
        return list(range(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    raise CorrKDError(
        f"plan: seeds: expected a number from 1 to {MOST_SEEDS:,} or a list (given: "
        f"{quoted(value)})"
    )


def read_plan(out: Path, *, unchanged: bool = False) -> Plan:
    """Return the plan stored in a folder.

    Args:
        out: the folder.
        unchanged: whether the file must be unedited.

    Raises:
        CorrKDError: if there is no plan, or it is damaged or, with `unchanged`, edited.
    """
    path = out / PLAN
    if not out.is_dir():
        raise CorrKDError(f"{out}: no such folder")
    if not path.is_file():
        raise CorrKDError(
            f"{out}: contains no {PLAN}; give a folder that this version of `corrkd run` or "
            f"`corrkd compare` wrote"
        )
    if unchanged:
        check_yaml_digest(
            path, "put it back, choose another folder, or replace the run with --overwrite"
        )
    tree = read_yaml_file(path)
    try:
        return Plan.model_validate(tree)
    except ValidationError as error:
        raise CorrKDError(
            f"{path}: damaged: {first_line(error)}; delete {out}, or choose another folder"
        ) from None


def _dataset(
    name: str,
    dataset_plan: Mapping[str, Any],
    common: Mapping[str, Any],
    shared: Mapping[str, Any],
    overrides: list[str],
    common_budget: Any,
    budget: str | None,
    common_reference: Any,
    reference: str | None,
) -> DatasetPlan:
    where = f"plan: datasets.{name}"
    check_dataset_names([name])
    if not isinstance(dataset_plan, Mapping) or set(dataset_plan) - {
        "settings",
        "arms",
        "budget",
        "epochs",
        "reference",
    }:
        raise CorrKDError(
            f"{where}: expected {{settings: ..., arms: ..., budget: ..., epochs: ..., "
            f"reference: ...}}"
        )
    rule = _budget(dataset_plan.get("budget", common_budget) if budget is None else budget, where)
    dataset_arms = _named(dataset_plan.get("arms"), f"datasets.{name}.arms")
    in_file = dataset_plan.get("settings") or {}
    if not isinstance(in_file, Mapping):
        raise CorrKDError(f"{where}: settings: expected keys and values (given: {quoted(in_file)})")
    settings = settings_of_tree(in_file, overrides=overrides, changes={"jobs": 1, **shared})
    arms = {
        arm: laid_over(arm, _arm(arm, common.get(arm)), _arm(arm, dataset_arms.get(arm)))
        for arm in (common or dataset_arms)
    }
    if not arms:
        raise CorrKDError(f"{where}: no arm; name some under `arms`, or give --methods")
    stray = set(dataset_arms) - set(arms)
    if stray:
        raise CorrKDError(f"{where}.arms.{sorted(stray)[0]}: is not among the plan's arms")
    epochs = dataset_plan.get("epochs") or {}
    if not isinstance(epochs, Mapping):
        raise CorrKDError(f"{where}: epochs: expected {{arm: number}} (given: {quoted(epochs)})")
    arms = with_teachers(arms, settings)
    stray = set(epochs) - {TEACHER, *arms}
    if stray:
        raise CorrKDError(f"{where}.epochs.{min(stray)}: is not among the plan's arms")
    if settings.evaluation.split == "valid" and rule is not None:
        raise CorrKDError(
            f"{where}: tests on the validation split, by which budgets are chosen; set budget: "
            f"fixed (or --budget fixed)"
        )
    try:
        return DatasetPlan(
            settings=settings,
            arms=arms,
            budget=rule,
            epochs=epochs,
            reference=reference or dataset_plan.get("reference", common_reference),
        )
    except ValidationError as error:
        raise CorrKDError(f"{where}: {first_line(error)}") from None


def _budget(value: Any, where: str = "plan") -> BudgetRule | None:
    """Return the rule that a plan gives by name or by its keys; None for a fixed budget."""
    if value == "doubling":
        return BudgetRule()
    if value is None or value == "fixed":
        return None
    if not isinstance(value, Mapping):
        raise CorrKDError(
            f"{where}: budget: expected doubling, fixed, or {{gain: 0.3, doublings: 5}}"
        )
    try:
        return BudgetRule.model_validate(value)
    except ValidationError as error:
        raise CorrKDError(f"{where}: budget: {first_line(error)}") from None


def _arm(name: str, changes: Any) -> ArmSettings:
    try:
        return ArmSettings.model_validate({} if changes is None else changes)
    except ValidationError as error:
        raise CorrKDError(first_line(error, f"plan: arms.{name}")) from None


def _named(methods: Any, where: str) -> dict[str, Any]:
    """Return {name: changes} for a list of names, the name of a group (expanded) or a mapping."""
    if methods is None:
        return {}
    if isinstance(methods, Mapping):
        return {str(name): changes for name, changes in methods.items()}
    names = [methods] if isinstance(methods, str) else methods
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CorrKDError(f"plan: {where}: expected a list of names, or {{name: changes}}")
    return {name: {} for name in expanded(names)}


def expanded(names: Iterable[str]) -> list[str]:
    """Return the names, each once, with groups (paper, controls, ablation, all) expanded."""
    return list(dict.fromkeys(arm for name in names for arm in GROUPS.get(name, (name,))))


def _name_of(path: str) -> str:
    legible = re.sub(r"[^\w.-]", "-", Path(path).name.split(".")[0]) or "data"
    return file_names([legible])[legible]
