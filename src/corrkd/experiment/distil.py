"""Distillation between any networks in one call: `corrkd.distil`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from corrkd.data.batches import Samples
from corrkd.errors import CorrKDError
from corrkd.evaluation.judge import evaluate
from corrkd.evaluation.sweep import Validation
from corrkd.experiment.arm import TEACHER, WITHOUT_TEACHER
from corrkd.experiment.choices import NetworkChoice
from corrkd.experiment.experiment import Experiment, prepare
from corrkd.experiment.processes import make_fabric
from corrkd.experiment.progress import Reporter, Task, reporter_of
from corrkd.experiment.settings import OtherTeachers, Settings, load_settings
from corrkd.experiment.stages import check_tokens
from corrkd.experiment.stored_data import dataset_in_memory
from corrkd.experiment.teachers import (
    Member,
    ensemble,
    line_members,
    placeholder_outputs,
    rows_of,
    turned_towards,
)
from corrkd.methods.base import AnyMethod, TeacherOutputs
from corrkd.methods.registry import method_class
from corrkd.missing.conditions import COMPLETE, condition, missing_subsets
from corrkd.networks.base import AnyNetwork, Network
from corrkd.networks.registry import network_class
from corrkd.networks.saved import SavedNetwork, build_network
from corrkd.networks.wrapped import WrappedNetwork
from corrkd.settings import TrainingSettings
from corrkd.training.fabric import Fabric
from corrkd.training.loop import derived_seed, teacher_outputs, train
from corrkd.training.run import Record, Trained

TeacherFunction = Callable[[Sequence[str]], Any]
"""Function from the ids of the training samples to logits (n, ...), or to a pair of representations
(n, D) and logits. It is called once.
"""

EXAMPLE = 4  # samples in the first forward pass of a module


@dataclass(frozen=True)
class Distilled:
    """Result of `distil`.

    Attributes:
        student: the trained network with everything needed for prediction. If the student was a
            module, it is `student.network.module`.
        history: a row per epoch: epoch, lr, the losses, the validation score.
        evaluation: metrics on the test split under every missing condition, as from
            `corrkd.evaluate`; empty if `test` was False.
        teachers: outputs of the teachers for the training samples.
        notes: losses of the preset that were left out, and why.
    """

    student: SavedNetwork
    history: pd.DataFrame
    evaluation: pd.DataFrame
    teachers: TeacherOutputs
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        notes = "".join(f"; {note}" for note in self.notes)
        return f"Distilled({self.student!r}; {len(self.history)} epochs{notes})"


def distil(
    student: nn.Module | str,
    teachers: Sequence[nn.Module | str | TeacherOutputs | TeacherFunction] = (),
    *,
    dataset: Any = "synthetic",
    preset: str | None = "corrkd-plus",
    seed: int = 0,
    test: bool = True,
    settings: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Distilled:
    """Train a network to be robust to missing modalities: on incomplete samples, with teachers
    trained on complete samples.

    Args:
        student: any module with a `forward` as in `corrkd.networks.wrapped.WrappedNetwork`, trained
            in place; or the name of a network of this package.
        teachers: untrained modules or network names, copies of which are trained (out of fold if
            the settings say so); or outputs of external teachers: a function of the training
            samples' ids, called once, or `TeacherOutputs` in their order. Responses are averaged or
            weighted according to the settings; representations are those of the first teacher.
            Default: a copy of the student, and `teacher.others` of the settings.
        dataset: a `MultimodalDataset`, or any input of `load_dataset`.
        preset: name of a preset of settings; None: the defaults.
        seed: seed of initial parameters of named networks, order, masks and dropout.
        test: whether to test the student on the test split.
        settings: nested settings that override the preset, as in `corrkd.load_settings`.
        progress: whether to show progress; default: only on a terminal or in a notebook.

    Raises:
        CorrKDError: if networks, settings or data are invalid, or a loss requested in `settings`
            needs a representation or parts that the networks do not have.
    """
    reporter = reporter_of(progress)
    settings = settings or {}
    if teachers and (settings.get("teacher") or {}).get("others"):
        raise CorrKDError("settings: teacher.others: give such teachers in `teachers`, too")
    experiment = _prepared(dataset, preset, seed, settings)
    fabric = make_fabric(experiment.settings)
    samples = experiment.samples("train")
    _made(student, experiment, "student", seed)  # fails now if the student is invalid
    chosen: list[Any] = list(teachers)
    if not chosen:
        copied = student if isinstance(student, str) else copy.deepcopy(student)
        chosen = [copied, *experiment.settings.teacher.others]
    placeholder = _placeholder(chosen[0], experiment, seed)
    _method(student, placeholder, experiment, settings)
    outputs = _committee_outputs(chosen, experiment, fabric, seed, reporter, placeholder)
    method, notes = _method(student, outputs, experiment, settings)
    trained = _train(
        method,
        samples,
        experiment,
        fabric,
        seed,
        complete=False,
        reporter=reporter,
        training=experiment.settings.student,
        title="student",
    )
    method.student.load_state_dict(trained.state)
    saved = SavedNetwork(
        network=method.student.cpu().float().eval(),
        normalisation=experiment.normalisation,
        target=experiment.target,
        frames=experiment.frames,
        about={"role": "student", "seed": seed, "epoch": trained.epoch},
    )
    table = evaluate(saved, experiment.dataset) if test else pd.DataFrame()
    return Distilled(saved, pd.DataFrame(trained.history), table, outputs, tuple(notes))


def _prepared(
    dataset: Any, preset: str | None, seed: int, changes: Mapping[str, Any]
) -> Experiment:
    tree = {**changes, "seeds": [seed]}
    if isinstance(dataset, str | Path):
        tree["data"] = {**(changes.get("data") or {}), "path": str(dataset)}
    settings = load_settings(preset=preset, **tree)
    if settings.teacher.outputs:
        raise CorrKDError(
            "settings: teacher.outputs: is of runs; give `distil` such teachers in `teachers`"
        )
    if isinstance(dataset, str | Path):
        return prepare(settings)
    return prepare(settings, dataset_in_memory(dataset, settings.data))


@contextmanager
def _seeded(seed: int, role: str) -> Iterator[None]:
    """Seed the initialisation of parameters in this context, as for the role in a run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "init", role))
        yield


def _made(
    module: nn.Module | str | NetworkChoice, experiment: Experiment, role: str, seed: int
) -> AnyNetwork:
    """Return a network for the experiment's samples, initialised for a role and seed."""
    with _seeded(seed, role):
        return _network(module, experiment)


def _network(module: nn.Module | str | NetworkChoice, experiment: Experiment) -> AnyNetwork:
    """Return a network for the experiment's samples: built by name, or wrapping a module."""
    samples = experiment.samples("train")
    if isinstance(module, str | NetworkChoice):
        preset = experiment.settings.student.network
        choice = preset if module == preset.name else module
        name = choice if isinstance(choice, str) else choice.name
        kind = network_class(name)
        options = kind.settings_type() if isinstance(choice, str) else choice.options
        check_tokens(experiment, kind, name)
        network = build_network(experiment.target, samples.widths, experiment.frames, options, kind)
        if getattr(options, "fill", None) == "mean":
            network.set_fill(samples.mean_frames())
    elif isinstance(module, Network):
        network = module
    else:
        module = module.to(experiment.device, experiment.dtype)
        example = samples.take(torch.arange(min(EXAMPLE, len(samples)), device=samples.device))
        network = WrappedNetwork(module, example, experiment.target)
    return network.to(experiment.device, experiment.dtype)


# --------------------------------------------------------------------------------------------------
# teachers


def _placeholder(teacher: Any, experiment: Experiment, seed: int) -> TeacherOutputs:
    """Return the outputs of the first teacher if it is external, else zeros of the same shapes."""
    samples = experiment.samples("train")
    if not isinstance(teacher, nn.Module | str):
        return _external_outputs(teacher, samples, "teachers[0]")
    module = teacher if isinstance(teacher, str) else copy.deepcopy(teacher)
    return placeholder_outputs(_made(module, experiment, TEACHER, seed), samples)


def _committee_outputs(
    teachers: Sequence[Any],
    experiment: Experiment,
    fabric: Fabric,
    seed: int,
    reporter: Reporter,
    first: TeacherOutputs,
) -> TeacherOutputs:
    """Return the outputs of a committee: combined logits of all teachers, representations of the
    first. `first`: from `_placeholder`, used if the first teacher is external.
    """
    samples = experiment.samples("train")
    every: list[TeacherOutputs] = []
    logits: list[Tensor] = []
    for index, teacher in enumerate(teachers):
        if isinstance(teacher, nn.Module | str | OtherTeachers):
            outputs, of_repeats = _trained_outputs(
                teacher, index, experiment, fabric, seed, reporter
            )
        else:
            outputs = (
                first if index == 0 else _external_outputs(teacher, samples, f"teachers[{index}]")
            )
            of_repeats = [outputs.logits]
        every.append(outputs)
        logits += of_repeats
    return every[0]._replace(logits=ensemble(logits, experiment.settings.teacher, samples))


def _trained_outputs(
    teacher: nn.Module | str | OtherTeachers,
    index: int,
    experiment: Experiment,
    fabric: Fabric,
    seed: int,
    reporter: Reporter,
) -> tuple[TeacherOutputs, list[Tensor]]:
    """Return the outputs of copies of a teacher, trained out of fold if the settings say so, and
    the logits of each repeat.
    """
    settings, samples = experiment.settings.teacher, experiment.samples("train")
    source: nn.Module | str | NetworkChoice
    training: TrainingSettings
    if isinstance(teacher, OtherTeachers):
        network_index, source, training = index, teacher.network, teacher.over(settings)
    else:
        network_index, source, training = 0, teacher, settings
    line = settings.committee[network_index]
    every = line_members(line, network_index)

    def outputs_of(member: Member, rows: Samples) -> TeacherOutputs:
        name = member.name if index == network_index else f"{member.name}/{index}"
        network = _made(copy.deepcopy(source), experiment, name, seed)
        method = method_class(WITHOUT_TEACHER)(network)
        title = f"teacher {index + 1}, {member.name}"
        # Copies of a module start with the same parameters, so their order and dropout must differ.
        copied = isinstance(teacher, nn.Module)
        of_member = derived_seed(seed, "teacher", name) if copied else seed
        trained = _train(
            method,
            rows,
            experiment,
            fabric,
            of_member,
            training=training,
            complete=True,
            reporter=reporter,
            title=title,
        )
        network.load_state_dict(trained.state)
        return teacher_outputs(network.to(experiment.device), samples)

    if line.folds is None:
        repeats = [outputs_of(member, samples) for member in every]
        return repeats[0], [outputs.logits for outputs in repeats]
    first = outputs_of(Member(0, network=network_index), samples)
    scales = _made(copy.deepcopy(source), experiment, TEACHER, seed).scales
    representation, fold_of = (
        torch.empty_like(first.representation),
        torch.empty_like(samples.keys),
    )
    logits = [torch.empty_like(first.logits) for _ in range(line.repeats)]
    for member in every:
        rows, held_out = rows_of(member, experiment, samples, seed)
        outputs = outputs_of(member, samples.subset(rows))
        logits[member.repeat][held_out] = outputs.logits[held_out]
        if member.repeat == 0:
            turned = turned_towards(first.representation, outputs.representation, rows, scales)
            representation[held_out] = turned[held_out]
            fold_of[held_out] = member.fold or 0
    return TeacherOutputs(representation, logits[0], fold_of), logits


def _external_outputs(outputs: Any, samples: Samples, where: str) -> TeacherOutputs:
    """Return the outputs of an external teacher. Raises CorrKDError if they are not finite or do
    not match the training samples.
    """
    if not isinstance(outputs, TeacherOutputs):
        returned = outputs([str(name) for name in samples.ids])
        pair = returned if isinstance(returned, tuple) and len(returned) == 2 else (None, returned)
        logits = _tensor(pair[1], samples)
        representation = (
            logits.new_zeros(len(logits), 0) if pair[0] is None else _tensor(pair[0], samples)
        )
        outputs = TeacherOutputs(representation, logits)
    outputs = outputs.apply(lambda x: x.to(samples.device))
    expected = (len(samples), *samples.target.response_shape)
    if tuple(outputs.logits.shape) != expected:
        raise CorrKDError(
            f"{where}: logits of shape {tuple(outputs.logits.shape)}; the training samples need "
            f"{expected}"
        )
    if outputs.representation.dim() != 2 or len(outputs.representation) != len(samples):
        raise CorrKDError(
            f"{where}: representations of shape {tuple(outputs.representation.shape)}; expected "
            f"({len(samples)}, D)"
        )
    if not all(bool(x.isfinite().all()) for x in (outputs.logits, outputs.representation)):
        raise CorrKDError(f"{where}: not all numbers are finite")
    return outputs


def _tensor(values: Any, samples: Samples) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).to(samples.device)


# --------------------------------------------------------------------------------------------------
# the student


def _method(
    module: nn.Module | str,
    teachers: TeacherOutputs,
    experiment: Experiment,
    overrides: Mapping[str, Any],
) -> tuple[AnyMethod, list[str]]:
    """Return the student's method, with options that its networks support, and notes on changes."""
    settings = experiment.settings
    weights = None
    if settings.student.class_weights == "balanced":
        weights = experiment.target.balanced_class_weights(experiment.samples("train").targets)
    with _seeded(settings.seeds[0], "student"):
        student = _network(module, experiment)
        options, notes = _options(student, teachers, settings, overrides)
        method = settings.student.method.class_(
            student, options, teachers=teachers, class_weights=weights
        )
    return method.to(experiment.device, experiment.dtype), notes


def _options(
    student: AnyNetwork, teachers: TeacherOutputs, settings: Settings, options: Mapping[str, Any]
) -> tuple[BaseModel, list[str]]:
    """Return the method's options without losses that these networks do not support, and notes.
    Losses named in `options` stay, and are refused later.
    """
    choice, notes = settings.student.method, []
    tree: dict[str, Any] = choice.options.model_dump()
    named = (options.get("student") or {}).get("method") or {}
    if choice.name == "corrkd" and isinstance(named, Mapping):
        represented = student.representation_width and teachers.representation.shape[1]
        for term in ("scd", "cpd"):
            if tree[term]["weight"] and not represented and term not in named:
                tree[term]["weight"] = 0.0
                notes.append(
                    f"{term.upper()} is left out: it compares representations, and not all "
                    f"networks return one"
                )
        if (
            tree["cpd"]["weight"]
            and tree["cpd"].get("parts")
            and student.parts is None
            and "cpd" not in named
        ):
            tree["cpd"]["parts"] = False
            notes.append(
                "CPD is of the whole representation: the student declares no parts of it by "
                "modality"
            )
    return choice.class_.options_type.model_validate(tree), notes


def _train(
    method: AnyMethod,
    samples: Samples,
    experiment: Experiment,
    fabric: Fabric,
    seed: int,
    *,
    training: TrainingSettings,
    complete: bool,
    reporter: Reporter,
    title: str,
) -> Trained:
    """Train a teacher on complete samples, or the student on incomplete ones."""
    modalities = experiment.dataset.modalities
    conditions = [condition(COMPLETE, modalities)] if complete else missing_subsets(modalities)
    with reporter.task(title, training.epochs) as task:
        return train(
            method,
            samples,
            settings=training,
            validate=Validation(experiment.samples("valid"), tuple(conditions)),
            seed=seed,
            fabric=fabric,
            missing=None if complete else experiment.settings.missing,
            on_epoch=_follow(task),
        )


def _follow(task: Task) -> Callable[[Record], None]:
    return lambda record: task.step(1, f"loss {record['loss/total']:.3f}")
