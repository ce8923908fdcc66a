"""Settings for data that come without any: the preset `corrkd-plus`, scaled to the number of
training samples and of their groups.
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
PRESET_SAMPLES = 1300  # for which the preset's epochs were chosen
FEWEST_EPOCHS, MOST_EPOCHS = 32, 256  # of the student
FEWEST_TEACHER_EPOCHS = 12
MOST_STEPS = 20_000  # of the student; a pass over more data than that is a single one


class Epochs(NamedTuple):
    """Passes over the training split."""

    teacher: int
    student: int


@dataclass(frozen=True)
class Unscaled:
    """The preset `corrkd-plus` with changes, before it is scaled to data.

    Attributes:
        overrides: `key=value` lines, as of `load_settings`.
        changes: nested keys and values, over the overrides.
    """

    overrides: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)

    def load(self, scale: Mapping[str, Any] | None = None) -> Settings:
        """Return the settings, with a scale between the preset and the changes. Raises CorrKDError
        as `load_settings`.
        """
        return settings_of_tree(
            scale or {}, preset=PRESET, overrides=self.overrides, changes=self.changes
        )


def scaled(unscaled: Unscaled, dataset: MultimodalDataset) -> tuple[Settings, str]:
    """Return settings scaled to a dataset, and a note on what was chosen. What the changes name
    stays as they say.

    Raises:
        CorrKDError: for anything wrong with settings or data.
    """
    settings = unscaled.load()
    num_samples, num_groups = training_size(settings, dataset)
    epochs = scaled_epochs(num_samples, settings.student.batch_size)
    folds = scaled_folds(settings.teacher.folds, num_groups)
    scale = {"teacher": {"epochs": epochs.teacher, **folds}, "student": {"epochs": epochs.student}}
    settings = unscaled.load(scale)
    return settings, scale_note(settings, num_samples, num_groups)


def scale_note(settings: Settings, num_samples: int, num_groups: int) -> str:
    """Return what was chosen for so many training samples and groups, in a sentence."""
    teacher, student = settings.teacher, settings.student
    groups = "" if num_groups == num_samples else f" of {num_groups} groups"
    by_fold = "on all samples" if teacher.folds is None else f"in {teacher.folds} folds"
    return (
        f"neither a preset nor settings are named: {PRESET}, scaled to {num_samples} training "
        f"samples{groups}; teachers of {teacher.epochs} epochs, trained {by_fold}; students of "
        f"{student.epochs} epochs"
    )


def training_size(settings: Settings, dataset: MultimodalDataset) -> tuple[int, int]:
    """Return how many samples count in training and of how many groups they are: the fewest of any
    seed.

    Raises:
        CorrKDError: the dataset lacks a split or the target, or cannot be divided as the settings
            say.
    """
    dataset, target = prepared_data(settings, dataset)
    members = [
        training_members(dataset, target, settings.data.resample, seed) for seed in settings.seeds
    ]
    return min(map(len, members)), min(len(np.unique(of_seed)) for of_seed in members)


def scaled_epochs(num_samples: int, batch_size: int = 64) -> Epochs:
    """Return epochs for so many training samples, so that training takes about as many steps as the
    preset's.

    The student's are the preset's, doubled or halved for each doubling of 1,300 samples, from 32 to
    256, and fewer where these would be more than 20,000 steps; the teacher's are a quarter of them,
    at least 12. For 300, 1,300 and 5,000 samples that gives 64/256, 16/64 and 12/32, as in
    benchmarks/ablation.yaml.

    Args:
        num_samples: that count in training.
        batch_size: samples a step.

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
    """Return what to change of the teacher's settings where there are fewer groups than folds, by
    key.

    Args:
        folds: of the settings.
        num_groups: of the training samples.

    Returns:
        As many folds as groups; of a single group none, and nothing fitted, for which folds
        are needed. Nothing where there are enough.

    Examples:
        >>> scaled_folds(4, 3), scaled_folds(4, 1), scaled_folds(4, 9)
        ({'folds': 3}, {'folds': None, 'temperature': 1.0, 'weights': 'equal'}, {})
    """
    if folds is None or folds <= num_groups:
        return {}
    if num_groups > 1:
        return {"folds": num_groups}
    return {"folds": None, "temperature": 1.0, "weights": "equal"}
