"""By whom the student is taught: the teacher itself, or several teachers whose answers are put together (docs/corrkd-plus.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from corrkd.data.batches import Samples
from corrkd.experiment.arm import TEACHER, Arm
from corrkd.experiment.experiment import Experiment
from corrkd.experiment.settings import TeacherSettings
from corrkd.methods.base import TeacherOutputs
from corrkd.networks.base import AnyNetwork
from corrkd.networks.saved import load_network
from corrkd.training.loop import derived_seed, teacher_outputs


@dataclass(frozen=True)
class Member:
    """One of several teachers.

    Attributes:
        repeat: which repeat it is of.
        fold: what it was not trained on and answers for; None: it answers for all.
        teacher: name of the arm.
    """

    repeat: int
    fold: int | None = None
    teacher: str = TEACHER

    @property
    def name(self) -> str:
        """Of its files. The first of those trained on all samples is the teacher itself."""
        if self.fold is None:
            return self.teacher if self.repeat == 0 else f"{self.teacher}-{self.repeat}"
        return f"{self.teacher}-{self.repeat}-{self.fold}"

    def arm(self, teacher: Arm) -> Arm:
        """How it is trained: as the teacher, from a start of its own."""
        return replace(teacher, name=self.name, start=self.name)


def members(settings: TeacherSettings, teacher: str = TEACHER) -> list[Member]:
    """All that a student of that teacher is taught by."""
    folds: list[int | None] = [None] if settings.folds is None else list(range(settings.folds))
    return [Member(repeat, fold, teacher) for repeat in range(settings.repeats) for fold in folds]


def rows_of(member: Member, experiment: Experiment, samples: Samples, seed: int) -> tuple[Tensor, Tensor]:
    """Rows that a teacher out of fold is trained on, and rows that it answers for."""
    fold = torch.as_tensor(experiment.teacher_folds(derived_seed(seed, "folds", member.repeat)), device=samples.device)
    rows = torch.arange(len(samples), device=samples.device)
    return rows[fold != member.fold], rows[fold == member.fold]


def trained_on(member: Member, experiment: Experiment, samples: Samples, seed: int) -> Samples:
    """The training samples of one of several teachers."""
    return samples if member.fold is None else samples.subset(rows_of(member, experiment, samples, seed)[0])


def answers(
    experiment: Experiment, samples: Samples, seed: int, folder: Path, teacher: str = TEACHER
) -> TeacherOutputs:
    """Return the outputs of the teachers in `folder` for the training split: logits of all, representations of the first repeat.

    Out of fold, each scale of the representations is rotated by itself, towards that of the teacher of all samples.
    """
    settings = experiment.settings.teacher
    if settings.folds is None:
        outputs = [
            teacher_outputs(_network(member.name, experiment, folder), samples) for member in members(settings, teacher)
        ]
        return TeacherOutputs(
            outputs[0].representation, ensemble([o.logits for o in outputs], settings.temperature, samples)
        )
    network = _network(teacher, experiment, folder)
    scales, whole = list(network.scales), teacher_outputs(network, samples)
    representation = torch.empty_like(whole.representation)
    answered_by = torch.empty_like(samples.keys)
    repeats = [torch.empty_like(whole.logits) for _ in range(settings.repeats)]
    for member in members(settings, teacher):
        trained, held_out = rows_of(member, experiment, samples, seed)
        output = teacher_outputs(_network(member.name, experiment, folder), samples)
        repeats[member.repeat][held_out] = output.logits[held_out]
        if member.repeat == 0:
            parts = zip(output.representation.split(scales, 1), whole.representation.split(scales, 1), strict=True)
            rotated = [part[held_out] @ procrustes(part[trained], target[trained]) for part, target in parts]
            representation[held_out] = torch.cat(rotated, 1)
            answered_by[held_out] = member.fold or 0
    return TeacherOutputs(representation, ensemble(repeats, settings.temperature, samples), answered_by)


def placeholder_outputs(teacher: AnyNetwork, samples: Samples) -> TeacherOutputs:
    """Return zeros in the shapes of a teacher's outputs: with them a method can be made, and refused, before anything is trained."""
    representation = torch.zeros(len(samples), teacher.representation_width, device=samples.device)
    return TeacherOutputs(representation, representation.new_zeros(len(samples), *samples.target.response_shape))


def procrustes(source: Tensor, target: Tensor) -> Tensor:
    """Return the orthogonal R that minimises ||source R - target|| (Schoenemann, Psychometrika 1966).

    Two networks have no axes in common. R brings one's representations near the other's and keeps all distances and angles.

    Args:
        source: (N, D).
        target: (N, D), of the same samples.

    Returns:
        (D, D), computed on the CPU in float64.
    """
    left, _, right = torch.linalg.svd(source.cpu().double().T @ target.cpu().double())
    return (left @ right).to(source)


def _network(name: str, experiment: Experiment, folder: Path) -> AnyNetwork:
    return load_network(folder / name).network.to(experiment.device, experiment.dtype)


def ensemble(logits: list[Tensor], temperature: float | Literal["fit"], samples: Samples) -> Tensor:
    """Return one answer of several teachers, each tempered: the mean response as logits, or the mean score.

    Args:
        logits: of each teacher, (n, ...).
        temperature: by which logits are divided; "fit": fitted on the samples.
        samples: the n that they are of.
    """
    tempered = torch.stack([_tempered(one, temperature, samples) for one in logits])
    if len(tempered) == 1:
        return tempered[0]
    # A mean of responses is less sure than each of them: fitted anew.
    return _tempered(samples.target.ensemble(tempered), "fit" if temperature == "fit" else 1.0, samples)


def _tempered(logits: Tensor, temperature: float | Literal["fit"], samples: Samples) -> Tensor:
    """Logits divided by the temperature that the settings ask for; a score has none."""
    target = samples.target
    return target.temper(
        logits, target.fit_temperature(logits, samples.targets) if temperature == "fit" else temperature
    )
