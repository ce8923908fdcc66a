"""Default settings for a dataset: the preset `corrkd-plus`, scaled to the numbers of training
samples and groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from corrkd.data.dataset import MultimodalDataset
from corrkd.experiment.experiment import prepared_data, training_members
from corrkd.experiment.settings import Settings, load_settings, settings_of_tree

PRESET = "corrkd-plus"
PRESET_SAMPLES = 1300  # training samples for which the preset's epochs were chosen
FEWEST_EPOCHS, MOST_EPOCHS = 32, 256  # of the student
FEWEST_TEACHER_EPOCHS = 12
MOST_STEPS = 20_000  # of the student, unless a single epoch has more


class Epochs(NamedTuple):
    """Numbers of epochs."""

    teacher: int
    student: int


@dataclass(frozen=True)
class Unscaled:
    """The preset `corrkd-plus` with changes, before it is scaled to data.

    Attributes:
        overrides: `key=value` strings, as in `load_settings`.
        changes: nested keys and values, which take precedence over the overrides.
    """

    overrides: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)

    def load(self, scale: Mapping[str, Any] | None = None) -> Settings:
        """Return the settings. `scale` overrides the preset, and `overrides` and `changes` override
        both. Raises CorrKDError as `load_settings` does.
        """
        return settings_of_tree(
            scale or {}, preset=PRESET, overrides=self.overrides, changes=self.changes
        )


def scaled(unscaled: Unscaled, dataset: MultimodalDataset) -> tuple[Settings, str]:
    """Return settings scaled to a dataset, and a note on them. Settings that `unscaled` changes
    explicitly are not scaled.

    Raises:
        CorrKDError: if settings or data are invalid.
    """
    settings = unscaled.load()
    num_samples, num_groups = training_size(settings, dataset)
    epochs = scaled_epochs(num_samples, settings.student.batch_size)
    folds = scaled_folds(settings.teacher.folds, num_groups)
    scale = {"teacher": {"epochs": epochs.teacher, **folds}, "student": {"epochs": epochs.student}}
    settings = unscaled.load(scale)
    return settings, scale_note(settings, num_samples, num_groups)


def scale_note(settings: Settings, num_samples: int, num_groups: int) -> str:
    """Return a sentence on the settings chosen for these numbers of training samples and groups."""
    teacher, student = settings.teacher, settings.student
    groups = "" if num_groups == num_samples else f" of {num_groups} groups"
    by_fold = "on all samples" if teacher.folds is None else f"in {teacher.folds} folds"
    return (
        f"neither a preset nor settings are named: {PRESET}, scaled to {num_samples} training "
        f"samples{groups}; teachers of {teacher.epochs} epochs, trained {by_fold}; students of "
        f"{student.epochs} epochs"
    )


def training_size(settings: Settings, dataset: MultimodalDataset) -> tuple[int, int]:
    """Return the number of training samples that count and the number of their groups, each the
    minimum over seeds.

    Raises:
        CorrKDError: if the dataset lacks a split or the target, or cannot be divided according to
            the settings.
    """
    dataset, target = prepared_data(settings, dataset)
    members = [
        training_members(dataset, target, settings.data.resample, seed) for seed in settings.seeds
    ]
    return min(map(len, members)), min(len(np.unique(of_seed)) for of_seed in members)


def scaled_epochs(num_samples: int, batch_size: int = 64) -> Epochs:
    """Return numbers of epochs with which training takes about as many steps as with the preset.

    The student has the preset's epochs for 1,300 samples. They are halved for each doubling of the
    samples and doubled for each halving, from 32 to 256, and limited to 20,000 steps. The teacher
    has a quarter of them, at least 12 and at most the student's. For 300, 1,300 and 5,000 samples
    that gives 64/256, 16/64 and 12/32 epochs of teacher/student, as in benchmarks/ablation.yaml.

    Args:
        num_samples: number of training samples that count.
        batch_size: samples per step.

    Examples:
        >>> [tuple(scaled_epochs(n)) for n in (300, 1284, 5457, 1_000_000)]
        [(64, 256), (16, 64), (12, 32), (1, 1)]
    """
    preset = load_settings(preset=PRESET).student.epochs
    doublings = round(math.log2(PRESET_SAMPLES / max(num_samples, 1)))
    epochs = min(max(preset * 2.0**doublings, FEWEST_EPOCHS), MOST_EPOCHS)
    steps_per_epoch = max(math.ceil(num_samples / batch_size), 1)
    student = max(min(int(epochs), MOST_STEPS // steps_per_epoch), 1)
    return Epochs(teacher=min(max(student // 4, FEWEST_TEACHER_EPOCHS), student), student=student)


def scaled_folds(folds: int | None, num_groups: int) -> dict[str, Any]:
    """Return the changes to the teacher's settings needed if there are fewer groups than folds, by
    key.

    Args:
        folds: number of folds in the settings.
        num_groups: number of groups of the training samples.

    Returns:
        As many folds as groups. With a single group no folds, and no fitted temperature or weights,
        which need folds. With enough groups, no changes.

    Examples:
        >>> scaled_folds(4, 3), scaled_folds(4, 1), scaled_folds(4, 9)
        ({'folds': 3}, {'folds': None, 'temperature': 1.0, 'weights': 'equal'}, {})
    """
    if folds is None or folds <= num_groups:
        return {}
    if num_groups > 1:
        return {"folds": num_groups}
    return {"folds": None, "temperature": 1.0, "weights": "equal"}
