"""Teachers of a student: one, or a committee with combined outputs (docs/corrkd-plus.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from corrkd._version import __version__
from corrkd.data.batches import Samples
from corrkd.errors import CorrKDError
from corrkd.experiment.arm import TEACHER, Arm, selection_rule
from corrkd.experiment.experiment import Experiment
from corrkd.experiment.kept_outputs import FILE, kept_outputs
from corrkd.experiment.settings import Line, TeacherSettings
from corrkd.experiment.teacher_file import read_teacher_file
from corrkd.files import sha256_of
from corrkd.methods.base import TeacherOutputs
from corrkd.networks.base import AnyNetwork
from corrkd.networks.saved import load_network, read_card
from corrkd.settings import first_line
from corrkd.training.loop import derived_seed, teacher_outputs


@dataclass(frozen=True)
class Member:
    """One teacher of a committee.

    Attributes:
        repeat: index of the repeat among those of its network.
        fold: fold excluded from its training, for which its outputs are used; None: it is trained
            on all samples, and its outputs are used for all.
        teacher: name of the arm.
        network: 0: the network of the arm; i: that of the i-th of `teacher.others`.
    """

    repeat: int
    fold: int | None = None
    teacher: str = TEACHER
    network: int = 0

    @property
    def name(self) -> str:
        """Name of its files. The first repeat with the arm's network is the teacher itself if it is
        trained on all samples.
        """
        if self.network:
            numbers = (self.repeat,) if self.fold is None else (self.repeat, self.fold)
            return "-".join([self.teacher, f"other{self.network}", *map(str, numbers)])
        if self.fold is None:
            return self.teacher if self.repeat == 0 else f"{self.teacher}-{self.repeat}"
        return f"{self.teacher}-{self.repeat}-{self.fold}"

    def arm(self, teacher: Arm, settings: TeacherSettings) -> Arm:
        """Return its arm: that of the teacher, with the settings of its network and another
        initialisation.

        Raises:
            CorrKDError: if the teacher's method does not train its network, or its settings
                conflict with the teacher's training.
        """
        out = replace(teacher, name=self.name, start=self.name)
        if not self.network:
            return out
        other, where = (
            settings.others[self.network - 1],
            f"settings: teacher.others.{self.network - 1}",
        )
        try:
            training = other.over(teacher.training)
            teacher.method.check_trains(other.network)
        except ValidationError as error:
            raise CorrKDError(first_line(error, where)) from None
        except ValueError as error:
            raise CorrKDError(f"{where}.{error}") from None
        return replace(
            out,
            network=other.network,
            training=training,
            selection=selection_rule(training, complete=teacher.complete),
        )


def members(settings: TeacherSettings, teacher: str = TEACHER) -> list[Member]:
    """Return the committee of a teacher by network, the teacher's first, and by repeat."""
    return [
        member
        for network, line in enumerate(settings.committee)
        for member in line_members(line, network, teacher)
    ]


def line_members(line: Line, network: int = 0, teacher: str = TEACHER) -> list[Member]:
    """Return the members with one network, ordered by repeat."""
    folds = [None] if line.folds is None else range(line.folds)
    return [
        Member(repeat, fold, teacher, network) for repeat in range(line.repeats) for fold in folds
    ]


def rows_of(
    member: Member, experiment: Experiment, samples: Samples, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the rows on which an out-of-fold teacher is trained, and those for which its outputs
    are used.
    """
    folds = experiment.settings.teacher.committee[member.network].folds
    assert folds is not None, "only teachers of folds have rows"
    purpose = ("folds", member.repeat, *([member.network] if member.network else []))
    fold = torch.as_tensor(
        experiment.teacher_folds(folds, derived_seed(seed, *purpose)), device=samples.device
    )
    rows = torch.arange(len(samples), device=samples.device)
    return rows[fold != member.fold], rows[fold == member.fold]


def trained_on(member: Member, experiment: Experiment, samples: Samples, seed: int) -> Samples:
    """Return the training samples of a member."""
    return (
        samples
        if member.fold is None
        else samples.subset(rows_of(member, experiment, samples, seed)[0])
    )


def others_arms(teacher: Arm, settings: TeacherSettings) -> list[Arm]:
    """Return the arm of the first member with each of the other networks. Raises CorrKDError as
    `Member.arm` does.
    """
    firsts = [
        member
        for member in members(settings, teacher.name)
        if member.network and not member.repeat and not member.fold
    ]
    return [member.arm(teacher, settings) for member in firsts]


def committee_outputs(
    experiment: Experiment, samples: Samples, seed: int, folder: Path, teacher: str = TEACHER
) -> TeacherOutputs:
    """Return the outputs of the teachers in `folder` for the training split: the combined logits of
    all, and the representations of the first repeat.

    They are computed once and stored next to the teachers, for all students of the seed. For
    out-of-fold teachers, each scale of the representations is rotated separately towards that of
    the teacher trained on all samples.

    Args:
        experiment: experiment of the seed.
        samples: its training split.
        seed: seed of the folds.
        folder: folder of the teachers.
        teacher: name of their arm.

    Raises:
        CorrKDError: if a teacher, or the file of an external one, is missing or damaged.
    """
    if (outputs := _from_outside(experiment, samples)) is not None:
        return outputs
    return kept_outputs(
        folder / FILE,
        _dependencies(experiment, samples, seed, folder, teacher),
        samples.device,
        lambda: compute_committee_outputs(experiment, samples, seed, folder, teacher),
    )


def outputs_from_outside(experiment: Experiment) -> TeacherOutputs | None:
    """Return the outputs of an external teacher for the training split, checked for all seeds; None
    if teachers are trained.

    Raises:
        CorrKDError: if the file is missing, damaged, for another target or without some samples.
    """
    path = experiment.settings.teacher.outputs
    if path is not None:
        read_teacher_file(path).check_covers(experiment.training_ids())
    return _from_outside(experiment, experiment.samples("train"))


def _from_outside(experiment: Experiment, samples: Samples) -> TeacherOutputs | None:
    settings = experiment.settings.teacher
    if settings.outputs is None:
        return None
    outputs = read_teacher_file(settings.outputs).outputs(samples, experiment.dtype)
    return outputs._replace(logits=ensemble([outputs.logits], settings, samples))


def compute_committee_outputs(
    experiment: Experiment, samples: Samples, seed: int, folder: Path, teacher: str
) -> TeacherOutputs:
    """Compute the outputs that `committee_outputs` returns, without reading stored ones."""
    settings = experiment.settings.teacher
    first, *others = [
        list(of_repeat)
        for _, of_repeat in groupby(
            members(settings, teacher), key=lambda member: (member.network, member.repeat)
        )
    ]
    output = _teacher_outputs(first, experiment, samples, seed, folder)
    logits = [
        output.logits,
        *(_logits(of_repeat, experiment, samples, seed, folder) for of_repeat in others),
    ]
    return output._replace(logits=ensemble(logits, settings, samples))


def _dependencies(
    experiment: Experiment, samples: Samples, seed: int, folder: Path, teacher: str
) -> dict[str, Any]:
    """Return everything that determines the outputs of the teachers (not the path of the data)."""
    settings = experiment.settings
    names = dict.fromkeys(
        [teacher, *(member.name for member in members(settings.teacher, teacher))]
    )
    values = (samples.keys, samples.targets)
    return {
        "versions": {"corrkd": __version__, "torch": torch.__version__},
        "data": experiment.dataset.sha256,
        "reading": settings.data.model_dump(
            mode="json", exclude={"path", "name", "glove", "folds", "resident_gigabytes"}
        ),
        "samples": hashlib.sha256(b"".join(x.cpu().numpy().tobytes() for x in values)).hexdigest(),
        "seed": seed,
        "teacher": settings.teacher.model_dump(
            mode="json", include={"folds", "repeats", "temperature", "weights", "others"}
        ),
        "computing": [samples.device.type, settings.precision, settings.threads],
        "models": {name: _model(folder / name) for name in names},
    }


def _model(stem: Path) -> list[Any]:
    """Return what identifies a saved network: facts on its card from training, and the present
    SHA-256 of its parameters.
    """
    card = read_card(stem.with_name(f"{stem.name}.json"))
    parameters = stem.with_name(f"{stem.name}.safetensors")
    facts = [
        card.get(key)
        for key in ("sha256", "architecture", "network", "modalities", "clip", "target")
    ]
    return [*facts, sha256_of(parameters) if parameters.is_file() else None]


def _teacher_outputs(
    of_repeat: Sequence[Member], experiment: Experiment, samples: Samples, seed: int, folder: Path
) -> TeacherOutputs:
    """Return the outputs of the teachers of a repeat. Representations of out-of-fold teachers are
    rotated towards those of the teacher trained on all samples.
    """
    network = _network(of_repeat[0].teacher, experiment, folder)
    scales, complete = network.scales, teacher_outputs(network, samples)
    if of_repeat[0].fold is None:
        return complete
    answered = TeacherOutputs(
        torch.empty_like(complete.representation),
        torch.empty_like(complete.logits),
        torch.empty_like(samples.keys),
    )
    assert answered.answered_by is not None
    for member in of_repeat:
        trained, held_out = rows_of(member, experiment, samples, seed)
        output = teacher_outputs(_network(member.name, experiment, folder), samples)
        rotated = turned_towards(complete.representation, output.representation, trained, scales)
        answered.representation[held_out] = rotated[held_out]
        answered.logits[held_out] = output.logits[held_out]
        answered.answered_by[held_out] = member.fold or 0
    return answered


def _logits(
    of_repeat: Sequence[Member], experiment: Experiment, samples: Samples, seed: int, folder: Path
) -> Tensor:
    """Return the logits of the teachers of a repeat; each out-of-fold teacher contributes its
    held-out samples.
    """
    first, *others = of_repeat
    logits = teacher_outputs(_network(first.name, experiment, folder), samples).logits
    for member in others:
        held_out = rows_of(member, experiment, samples, seed)[1]
        logits[held_out] = teacher_outputs(
            _network(member.name, experiment, folder), samples
        ).logits[held_out]
    return logits


def placeholder_outputs(teacher: AnyNetwork, samples: Samples) -> TeacherOutputs:
    """Return zeros in the shapes of a teacher's outputs, with which a method can be created and
    checked before any training.
    """
    representation = torch.zeros(len(samples), teacher.representation_width, device=samples.device)
    return TeacherOutputs(
        representation, representation.new_zeros(len(samples), *samples.target.response_shape)
    )


def turned_towards(target: Tensor, source: Tensor, rows: Tensor, scales: Sequence[int]) -> Tensor:
    """Return a teacher's representations (n, D), rotated towards another's separately by scale.

    Args:
        target: (n, D) representations of the other teacher.
        source: (n, D) representations to rotate.
        rows: indices of the samples from which the rotation is computed.
        scales: widths of the parts, D in total.
    """
    if not source.shape[1]:
        return source
    parts = zip(source.split(list(scales), 1), target.split(list(scales), 1), strict=True)
    return torch.cat(
        [rotated @ procrustes(rotated[rows], towards[rows]) for rotated, towards in parts], 1
    )


def procrustes(source: Tensor, target: Tensor) -> Tensor:
    """Return the orthogonal R that minimises ||source R - target|| (Schoenemann, Psychometrika
    1966).

    Two networks have no axes in common. R brings the representations of one close to those of the
    other and preserves all distances and angles.

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


def ensemble(logits: list[Tensor], settings: TeacherSettings, samples: Samples) -> Tensor:
    """Return the combined response of several teachers as logits, (n, ...): the mean of their
    tempered responses, or a pool with fitted weights, which also determine the temperature.

    Args:
        logits: of each teacher, (n, ...).
        settings: `weights`, and `temperature`, by which logits are divided.
        samples: the n samples of the logits.
    """
    temperature = settings.temperature
    if settings.weights == "fit" and len(logits) > 1:
        every = torch.stack(logits)
        return samples.target.pool(every, samples.target.fit_pool(every, samples.targets))
    tempered = torch.stack([_tempered(member, temperature, samples) for member in logits])
    if len(tempered) == 1:
        return tempered[0]
    # A mean of responses is less confident than each of them, so its temperature is fitted again.
    return _tempered(
        samples.target.ensemble(tempered), "fit" if temperature == "fit" else 1.0, samples
    )


def _tempered(logits: Tensor, temperature: float | Literal["fit"], samples: Samples) -> Tensor:
    """Return logits divided by the temperature in the settings; scores are not changed."""
    target = samples.target
    return target.temper(
        logits,
        target.fit_temperature(logits, samples.targets) if temperature == "fit" else temperature,
    )
