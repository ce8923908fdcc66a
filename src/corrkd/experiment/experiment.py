"""From settings to what every seed of an experiment shares: data, target, normalisation,
conditions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from corrkd.data.batches import Samples
from corrkd.data.dataset import SPLITS, IntArray, MultimodalDataset
from corrkd.data.load import load_dataset
from corrkd.data.modalities import with_modalities
from corrkd.data.normalise import Normalisation, fit_normalisation
from corrkd.data.resample import (
    dependence_groups,
    group_folds,
    resampled,
    seed_rows,
    with_calibration,
)
from corrkd.data.synthetic import SyntheticSpec, make
from corrkd.errors import CorrKDError
from corrkd.experiment.arm import Arm, teachers_of
from corrkd.experiment.folder import settings_of
from corrkd.experiment.settings import Settings
from corrkd.missing.conditions import Condition, check_settings, condition, standard_conditions
from corrkd.networks.saved import dataset_folder
from corrkd.settings import DataSettings, ReadingSettings, ResampleSettings
from corrkd.targets.base import Target
from corrkd.targets.labels import MOST_CLASSES, check_labels
from corrkd.targets.registry import make_target

SYNTHETIC = "synthetic"
LARGEST_SYNTHETIC = 2**31  # numbers: 8 GB


@dataclass(frozen=True, eq=False)
class Experiment:
    """The data of an experiment, ready for training. Nothing here depends on a seed but what `at`
    gives.
    """

    settings: Settings
    dataset: MultimodalDataset
    target: Target
    normalisation: Normalisation
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and frames; half precision is autocast's affair."""
        return torch.float64 if self.settings.precision == "64-true" else torch.float32

    def samples(self, split: str) -> Samples:
        """A split on the device, or read batch by batch where it is larger than the settings allow.
        Made once.
        """
        if split not in self._samples:
            self._samples[split] = Samples(
                self.dataset.split(split),
                self.target,
                self.normalisation,
                device=self.device,
                resident_bytes=self.settings.data.resident_gigabytes * 1e9,
                where=f"dataset {self.dataset.name}, {split}",
                dtype=self.dtype,
            )
        return self._samples[split]

    @cached_property
    def _samples(self) -> dict[str, Samples]:
        return {}

    @cached_property
    def _of_seed(self) -> dict[int, Experiment]:
        """The last seed's experiment."""
        return {}

    @cached_property
    def frames(self) -> dict[str, int]:
        """The most frames T_m by modality over the splits."""
        return {
            m: max(s.frames[m].shape[1] for s in self.dataset.splits.values())
            for m in self.dataset.modalities
        }

    def at(self, seed: int) -> Experiment:
        """The experiment of a seed: with its own splits, where the settings ask for such; the
        target stays the same.
        """
        resample = self.settings.data.resample
        if resample == ResampleSettings():
            return self
        if seed not in self._of_seed:
            dataset = resampled(self.dataset, resample, seed)
            self._of_seed.clear()
            self._of_seed[seed] = replace(
                self, dataset=dataset, normalisation=_normalisation(dataset, self.settings.data)
            )
        return self._of_seed[seed]

    def teacher_folds(self, folds: int, seed: int) -> IntArray:
        """A fold for each training sample that counts, (n,), none dividing a group: which of so
        many teachers was not trained on it.
        """
        return group_folds(self.groups("train"), folds, seed=seed, where="settings: teacher.folds")

    def training_ids(self) -> list[str]:
        """Ids of all samples that some seed trains on and that count for the target, in the order
        of the data.
        """
        names = SPLITS[:2] if self.settings.data.resample.folds is not None else SPLITS[:1]
        ids: list[str] = []
        for name in names:
            split = self.dataset.split(name)
            ids += split.ids[
                self.target.of(split, f"dataset {self.dataset.name}, {name}")[1]
            ].tolist()
        return ids

    @property
    def cross_validated(self) -> bool:
        """Whether each seed tests other samples: its own fold."""
        return (
            self.settings.data.resample.folds is not None
            and self.settings.evaluation.split == "valid"
        )

    def conditions(self) -> list[Condition]:
        """What the evaluation runs."""
        name = self.settings.evaluation.split
        split = self.dataset.split(name)
        counts = self.target.of(split, f"dataset {self.dataset.name}, {name}")[1]
        incomplete = split.naturally_incomplete()[counts]
        return standard_conditions(
            self.dataset.modalities,
            self.settings.evaluation,
            naturally_incomplete=bool(incomplete.any()),
            intact=not incomplete.all(),
        )

    def projection(self) -> str:
        """The condition whose representations the report shows beside the complete ones."""
        name = self.settings.evaluation.projection or self.dataset.modalities[0]
        return condition(name, self.dataset.modalities).name

    def groups(self, split: str) -> npt.NDArray[np.str_]:
        """Return the group of each sample that counts, (n,): samples that share a person or a video
        depend on each other.
        """
        chosen = self.dataset.split(split)
        kept = self.target.of(chosen, f"dataset {self.dataset.name}, {split}")[1]
        groups: npt.NDArray[np.str_] = dependence_groups(chosen)[1][kept]
        return groups

    def targets(self, split: str) -> Any:
        """Targets of the samples that count for the target, (n,) or (n, Q)."""
        values, keep = self.target.of(
            self.dataset.split(split), f"dataset {self.dataset.name}, {split}"
        )
        return values[keep]


def prepare(settings: Settings, dataset: MultimodalDataset | None = None) -> Experiment:
    """Read the data and fit on its training split what depends on it.

    Args:
        settings: of the experiment.
        dataset: in memory, in place of what `data.path` names.

    Raises:
        CorrKDError: for anything wrong with data or settings, before any training.
    """
    dataset, target = prepared_data(settings, dataset)
    for what, names in (
        ("classes", target.classes),
        ("questions", target.questions),
        ("modalities", dataset.modalities),
    ):
        check_labels(
            names, f"dataset {dataset.name}: {what}"
        )  # the saved model could not be read otherwise
    normalisation = _normalisation(dataset, settings.data)
    experiment = Experiment(settings, dataset, target, normalisation, pick_device(settings.device))
    (
        experiment.conditions(),
        experiment.projection(),
    )  # a wrong name is an error now, not after the training
    return experiment


def prepared_data(
    settings: Settings, dataset: MultimodalDataset | None = None
) -> tuple[MultimodalDataset, Target]:
    """Return the dataset with the modalities and splits that the settings ask for, and its target.
    Arguments as of `prepare`.

    Raises:
        CorrKDError: the data cannot be read, or lack a split, a modality or the target.
    """
    check_settings(settings.evaluation.conditions)
    dataset = read(settings.data) if dataset is None else _with_modalities(dataset, settings.data)
    for split in {*SPLITS[:2], settings.evaluation.split}:
        dataset.split(split)
    if settings.data.calibration is not None:
        dataset = with_calibration(dataset, settings.data.calibration)
    return dataset, make_target(settings.data.target, dataset)


def _normalisation(dataset: MultimodalDataset, settings: DataSettings) -> Normalisation:
    return fit_normalisation(
        dataset.split("train"), settings.normalise, settings.clip, tokens=dataset.tokens
    )


def check_splits(experiment: Experiment, arms: Sequence[Arm]) -> None:
    """Raise CorrKDError where a seed cannot have its splits or folds, or an arm would choose an
    epoch on the fold that it is tested on.
    """
    settings, dataset = experiment.settings, experiment.dataset
    resample = settings.data.resample
    if resample != ResampleSettings() and settings.evaluation.split == "train":
        raise CorrKDError(
            "settings: evaluation.split = train: with data.resample every seed has another; set "
            "valid or test"
        )
    if settings.data.calibration is not None and settings.evaluation.split != "test":
        raise CorrKDError(
            "settings: data.calibration makes prediction sets for the test split alone; with "
            f"evaluation.split = {settings.evaluation.split} set it to null"
        )
    stages = {arm.name: arm.training for arm in arms}
    for name in teachers_of(arms, settings):
        stages.setdefault(name, settings.teacher)
    for name, stage in stages.items():
        if experiment.cross_validated and stage.keep != "last":
            raise CorrKDError(
                f"settings: {name}: keep = {stage.keep} would choose an epoch on the fold that is "
                "judged; with data.resample.folds and tests (or a search) on valid, set "
                "teacher.keep and student.keep to last"
            )
    for seed in settings.seeds:
        members = training_members(dataset, experiment.target, resample, seed)
        for index, line in enumerate(
            settings.teacher.committee if settings.teacher.outputs is None else []
        ):
            if line.folds is not None:
                where = "teacher.folds" if index == 0 else f"teacher.others.{index - 1}: folds"
                group_folds(members, line.folds, seed=0, where=f"settings: {where}")


def training_members(
    dataset: MultimodalDataset, target: Target, resample: ResampleSettings, seed: int
) -> npt.NDArray[np.str_]:
    """Return the group of each sample that counts and that a seed trains on, (n,).

    Raises:
        CorrKDError: the seed cannot have its splits.
    """
    both = [dataset.split(name) for name in SPLITS[:2]]
    counts = np.concatenate([target.of(split, f"dataset {dataset.name}")[1] for split in both])
    rows = seed_rows(dataset, resample, seed)[0]
    members: npt.NDArray[np.str_] = dependence_groups(*both)[1][rows][counts[rows]]
    return members


def read(settings: DataSettings) -> MultimodalDataset:
    """The dataset that the settings name, with the modalities they ask for."""
    spec = synthetic_spec(settings.synthetic)  # refuses a wrong key, wherever it is
    if settings.path == SYNTHETIC:
        made = make(spec)
        dataset = replace(made, name=settings.name or made.name)
    else:
        reading = {name: getattr(settings, name) for name in ReadingSettings.model_fields}
        dataset = load_dataset(settings.path, name=settings.name, **reading)
    return _with_modalities(dataset, settings)


def _with_modalities(dataset: MultimodalDataset, settings: DataSettings) -> MultimodalDataset:
    return dataset if settings.modalities is None else with_modalities(dataset, settings.modalities)


def dataset_of(model: Path, data: str, **reading: Any) -> MultimodalDataset:
    """Return the dataset to use a model on, as from `load_dataset` with the keywords `reading`.

    `synthetic` is that of the run in which the model lies, if the run changed it.
    """
    if data == SYNTHETIC:
        folder = dataset_folder(model.absolute())
        if folder is not None and (settings := settings_of(folder).data).path == SYNTHETIC:
            return read(settings)
    return load_dataset(data, **reading)


def synthetic_spec(changes: Mapping[str, Any]) -> SyntheticSpec:
    """The built-in dataset's law with changes. Raises CorrKDError for an unknown key."""
    fields = SyntheticSpec.__dataclass_fields__
    for key in changes:
        if key not in fields:
            raise CorrKDError(
                f"settings: data.synthetic.{key}: unknown key; allowed: {', '.join(fields)}"
            )
    try:
        spec = SyntheticSpec(**changes)
        size = sum(law.frames * law.width for law in spec.laws().values()) * (
            spec.train + spec.valid + spec.test
        )
        if size > LARGEST_SYNTHETIC or spec.classes > MOST_CLASSES:
            raise ValueError(
                f"asks for {size:.1e} numbers and {spec.classes} classes; at most "
                f"{LARGEST_SYNTHETIC:.1e}, {MOST_CLASSES}"
            )
        return spec
    except (TypeError, ValueError) as error:
        raise CorrKDError(f"settings: data.synthetic: {error}") from None


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one. Raises CorrKDError where the
    machine lacks it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(name):
        raise CorrKDError(
            f"device {name!r} is not available; use "
            f"{', '.join(n for n, there in available.items() if there)}"
        )
    return torch.device(name)
