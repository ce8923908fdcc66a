"""Data, target, normalisation and conditions of an experiment, prepared from its settings."""

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
LARGEST_SYNTHETIC = 2**31  # numbers, 8 GB as float32


@dataclass(frozen=True, eq=False)
class Experiment:
    """The data of an experiment, ready for training. It is the same for all seeds; `at` returns the
    experiment of one seed.
    """

    settings: Settings
    dataset: MultimodalDataset
    target: Target
    normalisation: Normalisation
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of parameters and frames; autocast applies half precision."""
        return torch.float64 if self.settings.precision == "64-true" else torch.float32

    def samples(self, split: str) -> Samples:
        """Return a split, kept on the device unless it exceeds `data.resident_gigabytes`. It is
        created once.
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
        """Cache with the experiment of the last seed."""
        return {}

    @cached_property
    def frames(self) -> dict[str, int]:
        """Largest number of frames T_m over the splits, by modality."""
        return {
            m: max(s.frames[m].shape[1] for s in self.dataset.splits.values())
            for m in self.dataset.modalities
        }

    def at(self, seed: int) -> Experiment:
        """Return the experiment of a seed. Its splits differ by seed if `data.resample` is set; the
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
        """Return the fold of each training sample that counts, (n,): the index of the teacher that
        is not trained on it. Folds do not divide groups.
        """
        return group_folds(self.groups("train"), folds, seed=seed, where="settings: teacher.folds")

    def training_ids(self) -> list[str]:
        """Return the ids of all samples that count for the target and on which some seed trains, in
        the order of the data.
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
        """Whether each seed is tested on a different fold."""
        return (
            self.settings.data.resample.folds is not None
            and self.settings.evaluation.split == "valid"
        )

    def conditions(self) -> list[Condition]:
        """Return the conditions of the evaluation."""
        name = self.settings.evaluation.split
        split = self.dataset.split(name)
        counts = self.target.of(split, f"dataset {self.dataset.name}, {name}")[1]
        incomplete = split.naturally_incomplete()[counts]
        return standard_conditions(
            self.dataset.modalities, self.settings.evaluation, incomplete=incomplete
        )

    def projection(self) -> str:
        """Return the name of the condition that the report projects next to "complete"."""
        name = self.settings.evaluation.projection or self.dataset.modalities[0]
        return condition(name, self.dataset.modalities).name

    def groups(self, split: str) -> npt.NDArray[np.str_]:
        """Return the group of each sample that counts, (n,). Samples of the same person or video
        are not independent.
        """
        chosen = self.dataset.split(split)
        kept = self.target.of(chosen, f"dataset {self.dataset.name}, {split}")[1]
        groups: npt.NDArray[np.str_] = dependence_groups(chosen)[1][kept]
        return groups

    def targets(self, split: str) -> Any:
        """Return the targets of the samples that count, (n,) or (n, Q)."""
        values, keep = self.target.of(
            self.dataset.split(split), f"dataset {self.dataset.name}, {split}"
        )
        return values[keep]


def prepare(settings: Settings, dataset: MultimodalDataset | None = None) -> Experiment:
    """Read the data and fit target and normalisation to its training split.

    Args:
        settings: settings of the experiment.
        dataset: dataset in memory, used instead of `data.path`.

    Raises:
        CorrKDError: if data or settings are invalid.
    """
    dataset, target = prepared_data(settings, dataset)
    for what, names in (
        ("classes", target.classes),
        ("questions", target.questions),
        ("modalities", dataset.modalities),
    ):
        check_labels(
            names, f"dataset {dataset.name}: {what}"
        )  # a saved model with invalid names could not be read
    normalisation = _normalisation(dataset, settings.data)
    experiment = Experiment(settings, dataset, target, normalisation, pick_device(settings.device))
    (
        experiment.conditions(),
        experiment.projection(),
    )  # a wrong name fails now, not after the training
    return experiment


def prepared_data(
    settings: Settings, dataset: MultimodalDataset | None = None
) -> tuple[MultimodalDataset, Target]:
    """Return the dataset with the modalities and splits of the settings, and its target. Arguments
    as for `prepare`.

    Raises:
        CorrKDError: if the data cannot be read, or lack a split, a modality or the target.
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
    """Raise CorrKDError if the splits or folds of a seed are impossible, or an arm would select its
    epoch on the fold on which it is tested.
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
    """Return the group of each training sample of a seed that counts, (n,).

    Raises:
        CorrKDError: if the splits of the seed are impossible.
    """
    both = [dataset.split(name) for name in SPLITS[:2]]
    counts = np.concatenate([target.of(split, f"dataset {dataset.name}")[1] for split in both])
    rows = seed_rows(dataset, resample, seed)[0]
    members: npt.NDArray[np.str_] = dependence_groups(*both)[1][rows][counts[rows]]
    return members


def read(settings: DataSettings) -> MultimodalDataset:
    """Return the dataset that the settings name, with the selected modalities."""
    spec = synthetic_spec(settings.synthetic)  # checks the keys even for another dataset
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
    """Return the dataset `data` for use with a model, as from `load_dataset` with the keywords
    `reading`.

    For "synthetic", the settings of the model's run apply if that run used the built-in dataset.
    """
    if data == SYNTHETIC:
        folder = dataset_folder(model.absolute())
        if folder is not None and (settings := settings_of(folder).data).path == SYNTHETIC:
            return read(settings)
    return load_dataset(data, **reading)


def synthetic_spec(changes: Mapping[str, Any]) -> SyntheticSpec:
    """Return the specification of the built-in dataset with changes. Raises CorrKDError if a key is
    unknown or a value invalid.
    """
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
    """Return the device with this name; `auto` is a CUDA GPU if available, else the CPU. Raises
    CorrKDError if the device is not available.
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
