"""Datasets in memory, stored in the plan's folder so that workers, `resume` and readers of the
folder can use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from corrkd.data.convert import as_converted, convert
from corrkd.data.dataset import MultimodalDataset
from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError
from corrkd.experiment.folder import DATA
from corrkd.experiment.plan import DatasetPlan, Plan, dataset_name, plan_of_run
from corrkd.experiment.settings import Settings
from corrkd.files import file_names
from corrkd.settings import DataSettings, ReadingSettings

InMemory = Mapping[str, MultimodalDataset]
"""Datasets by the name of their folder."""


def dataset_in_memory(source: Any, settings: DataSettings) -> MultimodalDataset:
    """Return the dataset in a source, read according to the settings.

    Args:
        source: a dataset, or any input of `load_dataset`.
        settings: settings of the data; `path` is ignored.

    Raises:
        CorrKDError: as `load_dataset`; or if `source` is a dataset already in memory and the
            settings contain options for reading.
    """
    reading = {
        name: getattr(settings, name)
        for name in ReadingSettings.model_fields
        if getattr(settings, name)
    }
    if isinstance(source, MultimodalDataset) and reading:
        raise CorrKDError(
            f"settings: data.{min(reading)} says how a file is read, but the dataset is in "
            f"memory; give it to `load_dataset` instead"
        )
    return load_dataset(source, name=settings.name, **reading)


def plan_with_dataset(settings: Settings, dataset: MultimodalDataset) -> tuple[Plan, InMemory]:
    """Return the plan of a run on a dataset in memory, and the dataset by its folder's name."""
    (dataset_plan,) = plan_of_run(settings).datasets.values()
    name = dataset_name(settings.data.model_copy(update={"name": dataset.name}))
    return Plan(datasets={name: dataset_plan}, jobs=settings.jobs), {name: dataset}


def plan_with_datasets(plan: Plan, sources: Mapping[str, Any]) -> tuple[Plan, InMemory]:
    """Return a plan on datasets in memory, and these datasets by the name of their folder.

    Args:
        plan: plan with datasets of these names, which are replaced; or with a single dataset. Its
            settings and arms then apply to all sources.
        sources: by name, datasets or any inputs of `load_dataset`.

    Raises:
        CorrKDError: if the plan has several datasets, and a name is not among them.
    """
    if set(sources) <= set(plan.datasets):
        parts = dict(plan.datasets)
    elif len(plan.datasets) == 1:
        (dataset_plan,) = plan.datasets.values()
        parts = dict.fromkeys(sources, dataset_plan)
    else:
        stray = min(set(sources) - set(plan.datasets))
        raise CorrKDError(
            f"plan: has no dataset {stray!r}; it has {', '.join(plan.datasets)}: give those "
            f"names, or a plan of a single dataset"
        )
    in_memory = {}
    for name, source in sources.items():
        dataset = dataset_in_memory(source, parts[name].settings.data)
        named = (
            isinstance(source, str | Path | MultimodalDataset)
            or parts[name].settings.data.name is not None
        )
        in_memory[name] = dataset if named else replace(dataset, name=name)
    return Plan.model_validate({**dict(plan), "datasets": parts}), in_memory


def usual_folder(in_memory: InMemory) -> Path:
    """Return the default folder of a run on a dataset in memory."""
    name = next(iter(in_memory.values())).name
    return Path("runs") / file_names([name])[name]


def stored_in(
    plan: Plan, in_memory: InMemory, out: Path
) -> tuple[Plan, dict[str, MultimodalDataset]]:
    """Return the plan with paths of the datasets in its folder, and the datasets as they will be
    read from there.

    Raises:
        CorrKDError: if a dataset cannot be stored.
    """
    unread = {name: field.default for name, field in ReadingSettings.model_fields.items()}
    parts: dict[str, DatasetPlan] = dict(plan.datasets)
    for name in in_memory:
        settings = parts[name].settings
        changes = {**unread, "path": str((out / name / DATA).resolve()), "synthetic": {}}
        data = settings.data.model_copy(update=changes)
        parts[name] = parts[name].model_copy(
            update={"settings": settings.model_copy(update={"data": data})}
        )
    return plan.model_copy(update={"datasets": parts}), {
        name: as_converted(x) for name, x in in_memory.items()
    }


def store(dataset: MultimodalDataset, folder: Path) -> None:
    """Write a dataset in memory to its folder, unless it exists: run.json was already checked
    against it.
    """
    if not (folder / DATA).is_file():
        convert(dataset, folder / DATA)
