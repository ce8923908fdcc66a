"""From settings to what every seed of an experiment shares: data, target, normalisation, conditions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from corrkd._version import __version__
from corrkd.data.batches import Samples
from corrkd.data.dataset import SPLITS, IntArray, MultimodalDataset
from corrkd.data.load import load_dataset
from corrkd.data.normalise import Normalisation, fit_normalisation
from corrkd.data.resample import CALIBRATION, dependence_groups, group_folds, resampled, seed_rows, with_calibration
from corrkd.data.synthetic import SyntheticSpec, make
from corrkd.data.targets import Target, make_target
from corrkd.errors import CorrKDError
from corrkd.experiment.arm import TEACHER, Arm, resolve
from corrkd.experiment.run_folder import SETTINGS, settings_of
from corrkd.missing.conditions import Condition, check_settings, condition, standard_conditions
from corrkd.networks.saved import MOST_CLASSES, check_labels, with_modalities
from corrkd.settings import ArmSettings, DataSettings, ResampleSettings, Settings

SYNTHETIC = "synthetic"
LARGEST_SYNTHETIC = 2**31  # numbers: 8 GB
RUN_ARMS = {
    TEACHER: ArmSettings(),
    "student": ArmSettings(method="corrkd", title="CorrKD student"),
    "control": ArmSettings(method="no-distillation", title="No-distillation control"),
}


@dataclass(frozen=True)
class Experiment:
    """An experiment ready to run. Nothing here depends on a seed but what `at` gives."""

    settings: Settings
    dataset: MultimodalDataset
    target: Target
    normalisation: Normalisation
    device: torch.device
    arms: tuple[Arm, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and frames; half precision is autocast's affair."""
        return torch.float64 if self.settings.precision == "64-true" else torch.float32

    def samples(self, split: str) -> Samples:
        """A split on the device, or read batch by batch where it is larger than the settings allow."""
        return Samples(
            self.dataset.split(split),
            self.target,
            self.normalisation,
            device=self.device,
            resident_bytes=self.settings.data.resident_gigabytes * 1e9,
            where=f"dataset {self.dataset.name}, {split}",
            dtype=self.dtype,
        )

    @cached_property
    def frames(self) -> dict[str, int]:
        """The most frames T_m by modality over the splits."""
        return {m: max(s.frames[m].shape[1] for s in self.dataset.splits.values()) for m in self.dataset.modalities}

    def at(self, seed: int) -> Experiment:
        """The experiment of a seed: with the splits that are its own, where the settings ask for such; the target stays the same."""
        resample = self.settings.data.resample
        if resample == ResampleSettings():
            return self
        dataset = resampled(self.dataset, resample, seed)
        return replace(self, dataset=dataset, normalisation=_normalisation(dataset, self.settings.data))

    def teacher_folds(self, seed: int) -> IntArray:
        """A fold for each training sample that counts, (n,), none dividing a group: which teacher was not trained on it."""
        return _teacher_folds(self.groups("train"), self.settings, seed)

    @property
    def cross_validated(self) -> bool:
        """Whether each seed tests other samples: its own fold."""
        return self.settings.data.resample.folds is not None and self.settings.evaluation.split == "valid"

    def conditions(self) -> list[Condition]:
        """What the evaluation runs."""
        name = self.settings.evaluation.split
        split = self.dataset.split(name)
        counts = self.target.of(split, f"dataset {self.dataset.name}, {name}")[1]
        incomplete = bool((split.naturally_incomplete() & counts).any())
        return standard_conditions(self.dataset.modalities, self.settings.evaluation, naturally_incomplete=incomplete)

    def projection(self) -> str:
        """The condition whose representations the report shows beside the complete ones."""
        name = self.settings.evaluation.projection or self.dataset.modalities[0]
        return condition(name, self.dataset.modalities).name

    def groups(self, split: str) -> npt.NDArray[np.str_]:
        """Return the group of each sample that counts, (n,): samples that share a person or a video depend on each other."""
        chosen = self.dataset.split(split)
        kept = self.target.of(chosen, f"dataset {self.dataset.name}, {split}")[1]
        found: npt.NDArray[np.str_] = dependence_groups(chosen)[1][kept]
        return found

    def sets(self) -> dict[str, float] | None:
        """The share of samples whose truth prediction sets are to hold, and how many groups they are made from; None: there are no sets."""
        if CALIBRATION not in self.dataset.splits:
            return None
        return {"level": self.settings.evaluation.coverage, "groups": len(np.unique(self.groups(CALIBRATION)))}

    def notes(self) -> list[str]:
        """What a reader of the results has to know."""
        out = [*self.dataset.notes, *self.arrangement()]
        if self.settings.data.synthetic and self.settings.data.path != SYNTHETIC:
            out.append("data.synthetic changes the built-in dataset alone and is not used here")
        count = len(self.samples_kept("train"))
        for stage in ("teacher", "student"):
            size = getattr(self.settings, stage).batch_size
            if size > count:
                out.append(
                    f"{stage}.batch_size = {size} is more than the {count} training samples; one batch holds all of them"
                )
        if self.target.kind == "score" and self.settings.student.distillation.rcd:
            out.append("RCD splits a response by class and is left out for the target `score`")
        return out

    def arrangement(self) -> list[str]:
        """Which splits a seed has, and who teaches, in sentences, where that is not the plain way."""
        out, resample, teacher = [], self.settings.data.resample, self.settings.teacher
        group = dependence_groups(self.dataset.split("train"))[0]
        if resample.folds is not None:
            out.append(
                f"Cross-validation: train and valid together fall into {resample.folds} folds by {group}; seed s validates on fold s mod "
                f"{resample.folds} and trains on the others."
            )
        if resample.train is not None:
            out.append(f"Every seed draws {resample.train} training samples of its own.")
        if sets := self.sets():
            held, count = len(self.samples_kept(CALIBRATION)), sets["groups"]
            out.append(
                f"Prediction sets: {held} training samples of {count} groups by {group} took part in no training and no choice."
            )
        number = teacher.repeats * (teacher.folds or 1)
        if number > 1:
            how = (
                f"each trained without one of {teacher.folds} folds by {group} and answering for that fold alone"
                if teacher.folds
                else "each trained on all training samples"
            )
            out.append(
                f"Students are taught by {number} teachers a seed, {how}; responses are averaged over {teacher.repeats}."
            )
        if teacher.temperature != 1.0 and self.target.kind != "score":
            value = "fitted to the training labels" if teacher.temperature == "fit" else f"{teacher.temperature:g}"
            out.append(f"The teachers' temperature: {value}.")
        return out

    def samples_kept(self, split: str) -> Any:
        """Targets of the samples that count for the target, (n,) or (n, Q)."""
        values, keep = self.target.of(self.dataset.split(split), f"dataset {self.dataset.name}, {split}")
        return values[keep]

    def facts(self) -> dict[str, Any]:
        """What run.json says."""
        dataset, target = self.dataset, self.target
        return {
            "corrkd": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "dataset": {
                "name": dataset.name,
                "layout": dataset.layout,
                "sha256": dataset.sha256,
                "modalities": {m: {"width": w, "frames": self.frames[m]} for m, w in dataset.widths.items()},
                "splits": {name: len(self.samples_kept(name)) for name in dataset.splits},
                "labels": {name: self._histogram(name) for name in dataset.splits},
                "missing_rule": dict(dataset.missing_rule),
            },
            "target": {
                "name": target.name,
                "kind": target.kind,
                "classes": list(target.classes),
                "questions": list(target.questions),
                "cuts": list(target.cuts),
            },
            "split": self.settings.evaluation.split,
            "conditions": [c.to_json() for c in self.conditions()],
            "projection": self.projection(),
            "sets": self.sets(),
            "methods": [
                {
                    "name": arm.name,
                    "title": arm.title,
                    "selection": arm.selection,
                    "method": arm.base,
                    "kind": arm.kind,
                    "trains_on": "complete" if arm.complete else "missing",
                }
                for arm in self.arms
            ],
            "seeds": list(self.settings.seeds),
            "notes": self.notes(),
        }

    def _histogram(self, split: str) -> Mapping[str, int]:
        values = self.samples_kept(split)
        if self.target.kind == "questions":
            return {q: int(values[:, place].sum()) for place, q in enumerate(self.target.questions)}
        labels = self.target.categories(values) if self.target.kind == "score" else values
        counts = np.bincount(labels, minlength=len(self.target.classes))
        return {name: int(count) for name, count in zip(self.target.classes, counts, strict=True)}


def prepare(settings: Settings, arms: Mapping[str, ArmSettings] = RUN_ARMS) -> Experiment:
    """Reads the data and fits on its training split what depends on it.

    Args:
        settings: of the experiment.
        arms: what is trained, by name; a teacher comes before those it teaches.

    Raises:
        CorrKDError: for anything wrong with data or settings, before any training.
    """
    check_settings(settings.evaluation.conditions)
    resolved = tuple(resolve(name, changes, settings) for name, changes in arms.items())
    dataset = read(settings.data)
    for split in {*SPLITS[:2], settings.evaluation.split}:
        dataset.split(split)
    if settings.data.calibration is not None:
        dataset = with_calibration(dataset, settings.data.calibration)
    target = make_target(settings.data.target, dataset)
    for what, names in (
        ("classes", target.classes),
        ("questions", target.questions),
        ("modalities", dataset.modalities),
    ):
        check_labels(names, f"dataset {dataset.name}: {what}")  # the saved model could not be read otherwise
    normalisation = _normalisation(dataset, settings.data)
    experiment = Experiment(settings, dataset, target, normalisation, pick_device(settings.device), resolved)
    experiment.conditions(), experiment.projection()  # a wrong name is said now, not after the training
    _check_splits(experiment)
    return experiment


def _normalisation(dataset: MultimodalDataset, settings: DataSettings) -> Normalisation:
    return fit_normalisation(dataset.split("train"), settings.normalise, settings.clip)


def _check_splits(experiment: Experiment) -> None:
    """Raises CorrKDError where a seed cannot have the splits or folds asked for, or would choose an epoch on the fold it is judged on."""
    settings, dataset = experiment.settings, experiment.dataset
    resample = settings.data.resample
    if resample != ResampleSettings() and settings.evaluation.split == "train":
        raise CorrKDError(
            "settings: evaluation.split = train: with data.resample every seed has another; set valid or test"
        )
    if settings.data.calibration is not None and settings.evaluation.split != "test":
        raise CorrKDError(
            f"settings: data.calibration makes prediction sets for the test split alone; with evaluation.split = "
            f"{settings.evaluation.split} set it to null"
        )
    stages = {arm.name: arm.stage for arm in experiment.arms}
    if any(arm.method.needs_teacher for arm in experiment.arms):
        stages.setdefault(TEACHER, settings.teacher)
    for name, stage in stages.items():
        if experiment.cross_validated and stage.keep != "last":
            raise CorrKDError(
                f"settings: {name}: keep = {stage.keep} would choose an epoch on the fold that is judged; with data.resample.folds and "
                "tests (or a search) on valid, set teacher.keep and student.keep to last"
            )
    both = [dataset.split(name) for name in SPLITS[:2]]
    members = dependence_groups(*both)[1]
    kept = np.concatenate([experiment.target.of(split, f"dataset {dataset.name}")[1] for split in both])
    for seed in settings.seeds:
        rows = seed_rows(dataset, resample, seed)[0]
        if settings.teacher.folds is not None:
            _teacher_folds(members[rows][kept[rows]], settings, 0)


def _teacher_folds(members: npt.ArrayLike, settings: Settings, seed: int) -> IntArray:
    assert settings.teacher.folds is not None
    return group_folds(members, settings.teacher.folds, seed=seed, where="settings: teacher.folds")


def read(settings: DataSettings) -> MultimodalDataset:
    """The dataset that the settings name, with the modalities they ask for."""
    spec = synthetic_spec(settings.synthetic)  # a wrong key is said wherever it stands
    if settings.path == SYNTHETIC:
        made = make(spec)
        dataset = replace(made, name=settings.name or made.name)
    else:
        dataset = load_dataset(
            settings.path, glove=settings.glove, folds=settings.folds, label=settings.label, name=settings.name
        )
    return dataset if settings.modalities is None else with_modalities(dataset, settings.modalities)


def dataset_of(
    model: Path,
    data: str,
    *,
    glove: Path | None = None,
    folds: Path | None = None,
    label: str | None = None,
    targets: bool = True,
) -> MultimodalDataset:
    """The dataset to use a model on, as from `load_dataset`.

    `synthetic` is the one of the run that the model lies in, where that had one of its own.
    """
    if data == SYNTHETIC:
        for folder in (model, *model.parents[:2]):
            if (folder / SETTINGS).is_file() and (settings := settings_of(folder).data).path == SYNTHETIC:
                return read(settings)
    return load_dataset(data, glove=glove, folds=folds, label=label, targets=targets)


def synthetic_spec(changes: Mapping[str, Any]) -> SyntheticSpec:
    """The built-in dataset's law with changes. Raises CorrKDError for an unknown key."""
    known = SyntheticSpec.__dataclass_fields__
    for key in changes:
        if key not in known:
            raise CorrKDError(f"settings: data.synthetic.{key} is unknown; allowed there: {', '.join(known)}")
    try:
        spec = SyntheticSpec(**changes)
        size = sum(law.frames * law.width for law in spec.laws().values()) * (spec.train + spec.valid + spec.test)
        if size > LARGEST_SYNTHETIC or spec.classes > MOST_CLASSES:
            raise ValueError(
                f"asks for {size:.1e} numbers and {spec.classes} classes; at most {LARGEST_SYNTHETIC:.1e}, {MOST_CLASSES}"
            )
        return spec
    except (TypeError, ValueError) as error:
        raise CorrKDError(f"settings: data.synthetic: {error}") from None


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is a GPU where there is one. Raises CorrKDError where the machine lacks it."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name):
        raise CorrKDError(
            f"device {name!r} is not there; use {', '.join(n for n, there in available.items() if there)}"
        )
    return torch.device(name)
