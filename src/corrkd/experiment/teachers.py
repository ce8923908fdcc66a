"""The student's teachers: a single one, or a committee whose outputs are combined
(docs/corrkd-plus.md).
"""

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
    """One of several teachers.

    Attributes:
        repeat: of its network's.
        fold: the one that it was not trained on and answers for; None: it answers for all.
        teacher: name of the arm.
        network: 0: the arm's; i: that of the i-th of `teacher.others`.
    """

    repeat: int
    fold: int | None = None
    teacher: str = TEACHER
    network: int = 0

    @property
    def name(self) -> str:
        """Of its files. The first of those of the teacher's network that are trained on all samples
        is the teacher itself.
        """
        if self.network:
            numbers = (self.repeat,) if self.fold is None else (self.repeat, self.fold)
            return "-".join([self.teacher, f"other{self.network}", *map(str, numbers)])
        if self.fold is None:
            return self.teacher if self.repeat == 0 else f"{self.teacher}-{self.repeat}"
        return f"{self.teacher}-{self.repeat}-{self.fold}"

    def arm(self, teacher: Arm, settings: TeacherSettings) -> Arm:
        """Return how it is trained: as the teacher, but for what the settings of its network set,
        with another initialisation.

        Raises:
            CorrKDError: the teacher's method does not train its network, or what is set does not go
                with the teacher's training.
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
    """All that a student of that teacher is taught by: those of the teacher's network first, repeat
    by repeat.
    """
    return [
        member
        for network, line in enumerate(settings.committee)
        for member in line_members(line, network, teacher)
    ]


def line_members(line: Line, network: int = 0, teacher: str = TEACHER) -> list[Member]:
    """The teachers of one network, repeat by repeat."""
    folds = [None] if line.folds is None else range(line.folds)
    return [
        Member(repeat, fold, teacher, network) for repeat in range(line.repeats) for fold in folds
    ]


def rows_of(
    member: Member, experiment: Experiment, samples: Samples, seed: int
) -> tuple[Tensor, Tensor]:
    """Rows that a teacher out of fold is trained on, and rows that it answers for."""
    folds = experiment.settings.teacher.committee[member.network].folds
    assert folds is not None, "only teachers of folds have rows"
    purpose = ("folds", member.repeat, *([member.network] if member.network else []))
    fold = torch.as_tensor(
        experiment.teacher_folds(folds, derived_seed(seed, *purpose)), device=samples.device
    )
    rows = torch.arange(len(samples), device=samples.device)
    return rows[fold != member.fold], rows[fold == member.fold]


def trained_on(member: Member, experiment: Experiment, samples: Samples, seed: int) -> Samples:
    """The training samples of one of several teachers."""
    return (
        samples
        if member.fold is None
        else samples.subset(rows_of(member, experiment, samples, seed)[0])
    )


def others_arms(teacher: Arm, settings: TeacherSettings) -> list[Arm]:
    """Return how the first teacher of each other network is trained. Raises CorrKDError as
    `Member.arm`.
    """
    firsts = [
        member
        for member in members(settings, teacher.name)
        if member.network and not member.repeat and not member.fold
    ]
    return [member.arm(teacher, settings) for member in firsts]


def answers(
    experiment: Experiment, samples: Samples, seed: int, folder: Path, teacher: str = TEACHER
) -> TeacherOutputs:
    """Return the outputs of the teachers in `folder` for the training split: logits of all,
    representations of the first repeat.

    They are computed once and kept beside the teachers, for all students of the seed. Out of fold,
    each scale of the representations is rotated by itself, towards that of the teacher of all
    samples.

    Args:
        experiment: the seed's.
        samples: its training split.
        seed: of the folds.
        folder: of the teachers.
        teacher: name of their arm.

    Raises:
        CorrKDError: a teacher, or the file of one from outside, is missing or damaged.
    """
    if (outputs := _from_outside(experiment, samples)) is not None:
        return outputs
    return kept_outputs(
        folder / FILE,
        _dependencies(experiment, samples, seed, folder, teacher),
        samples.device,
        lambda: computed_answers(experiment, samples, seed, folder, teacher),
    )


def outputs_from_outside(experiment: Experiment) -> TeacherOutputs | None:
    """Return the outputs of a teacher from outside for the training split, checked for all seeds;
    None: teachers are trained.

    Raises:
        CorrKDError: the file is missing, damaged, of another target, or lacks training samples.
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


def computed_answers(
    experiment: Experiment, samples: Samples, seed: int, folder: Path, teacher: str
) -> TeacherOutputs:
    """Return what `answers` does, computed by the teachers."""
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
    """All that the outputs of the teachers follow from. Where the data lie, on disk or in memory,
    does not matter.
    """
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
    """What a saved network is: of its card what training wrote, and the sum of its parameters as
    they are now.
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
    """Outputs of the teachers of a repeat; those of folds with representations in the space of the
    teacher of all samples.
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
    """Logits of the teachers of a repeat, those of folds each for the samples that it answers
    for.
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
    """Return zeros in the shapes of a teacher's outputs: with them a method can be made, and
    refused, before anything is trained.
    """
    representation = torch.zeros(len(samples), teacher.representation_width, device=samples.device)
    return TeacherOutputs(
        representation, representation.new_zeros(len(samples), *samples.target.response_shape)
    )


def turned_towards(target: Tensor, source: Tensor, rows: Tensor, scales: Sequence[int]) -> Tensor:
    """Return one teacher's representations rotated towards another's, each scale by itself.

    Args:
        target: (n, D).
        source: (n, D).
        rows: of the samples from which the rotation is computed.
        scales: widths of the parts, D together.
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

    Two networks have no axes in common. R brings one's representations near the other's and keeps
    all distances and angles.

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
    """Return the common response of several teachers as logits, (n, ...): their mean, each
    tempered, or with weights that are fitted on the samples and set the temperature too.

    Args:
        logits: of each teacher, (n, ...).
        settings: `weights`, and `temperature`, by which logits are divided.
        samples: the n that they are of.
    """
    temperature = settings.temperature
    if settings.weights == "fit" and len(logits) > 1:
        every = torch.stack(logits)
        return samples.target.pool(every, samples.target.fit_pool(every, samples.targets))
    tempered = torch.stack([_tempered(member, temperature, samples) for member in logits])
    if len(tempered) == 1:
        return tempered[0]
    # A mean of responses is less sure than each of them: fitted anew.
    return _tempered(
        samples.target.ensemble(tempered), "fit" if temperature == "fit" else 1.0, samples
    )


def _tempered(logits: Tensor, temperature: float | Literal["fit"], samples: Samples) -> Tensor:
    """Logits divided by the temperature that the settings ask for; a score has none."""
    target = samples.target
    return target.temper(
        logits,
        target.fit_temperature(logits, samples.targets) if temperature == "fit" else temperature,
    )
