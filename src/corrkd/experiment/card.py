"""Contents of run.json in the folder of a dataset: data, target, conditions, arms, and what all
arms have in common.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from corrkd._version import __version__
from corrkd.data.dataset import SPLITS, MultimodalDataset
from corrkd.data.missing_reasons import counted_reasons
from corrkd.data.resample import CALIBRATION, dependence_groups
from corrkd.experiment.arm import TEACHER, Arm
from corrkd.experiment.budget import with_epochs
from corrkd.experiment.experiment import SYNTHETIC, Experiment
from corrkd.experiment.plan import DatasetPlan
from corrkd.experiment.settings import Line, Settings, TeacherSettings
from corrkd.files import sha256_of
from corrkd.parsing import refusing
from corrkd.report.run_folder import FORMAT, MOST_REASONS, Card


def run_card(
    experiment: Experiment, dataset_plan: DatasetPlan, arms: Sequence[Arm], search: str
) -> Card:
    """Return the contents of run.json for a dataset.

    Args:
        experiment: experiment on the dataset.
        dataset_plan: plan of the dataset.
        arms: resolved arms, in the order of the tables.
        search: description of the hyper-parameter search.

    Raises:
        CorrKDError: if a value exceeds a limit of run.json, such as a title of 10,000 characters.
    """
    seed = experiment.settings.seeds[0]
    first, target = experiment.at(seed), experiment.target
    dataset = first.dataset
    group, groups = sample_groups(experiment)
    tree = {
        "format": FORMAT,
        "corrkd": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dataset": {
            "name": dataset.name,
            "layout": dataset.layout,
            "sha256": dataset.sha256,
            "modalities": {
                m: {"width": w, "frames": first.frames[m]} for m, w in dataset.widths.items()
            },
            "splits": {name: len(first.targets(name)) for name in dataset.splits},
            "labels": {name: target.histogram(first.targets(name)) for name in dataset.splits},
            "missing_rule": dict(dataset.missing_rule),
            "missing_frames": missing_frames(dataset),
        },
        "target": target.to_json(),
        "split": experiment.settings.evaluation.split,
        "conditions": [c.to_json() for c in first.conditions()],
        "projection": first.projection(),
        "sets": prediction_sets(first),
        "methods": [
            {
                "name": arm.name,
                "title": arm.title,
                "selection": arm.selection,
                "method": arm.method.name,
                "kind": "control" if arm.name == dataset_plan.control else arm.kind,
                "trains_on": "complete" if arm.complete else "missing",
            }
            for arm in arms
        ],
        "reference": dataset_plan.reference_arm,
        "control": dataset_plan.control,
        "teacher_outputs": outputs_digest(experiment.settings),
        "seeds": list(experiment.settings.seeds),
        "notes": notes(first, arms),
        "groups": {"name": group, "count": int(groups["group"].nunique())},
        "protocol": protocol(experiment, dataset_plan, arms, search),
    }
    with refusing(f"dataset {dataset.name}", "cannot be recorded in run.json"):
        return Card.model_validate(tree)


def missing_frames(dataset: MultimodalDataset) -> dict[str, dict[str, Any]]:
    """Return the numbers of frames, of missing frames and of missing frames per reason, by modality
    and split; {} for data without reasons.
    """
    return {
        m: {
            name: {
                "frames": int(split.lengths[m].sum()),
                "missing": int(split.lengths[m].sum() - split.present[m].sum()),
                "reasons": dict(
                    counted_reasons(split.missing_reasons[m].tolist()).most_common(MOST_REASONS)
                ),
            }
            for name, split in dataset.splits.items()
            if m in split.missing_reasons
        }
        for m in dataset.modalities
        if any(m in split.missing_reasons for split in dataset.splits.values())
    }


def prediction_sets(experiment: Experiment) -> dict[str, float] | None:
    """Return the target coverage of the prediction sets and the number of groups for calibration;
    None without prediction sets.
    """
    if CALIBRATION not in experiment.dataset.splits:
        return None
    return {
        "level": experiment.settings.evaluation.coverage,
        "groups": len(np.unique(experiment.groups(CALIBRATION))),
    }


def sample_groups(experiment: Experiment) -> tuple[str, pd.DataFrame]:
    """Return the kind of the groups of the tested samples, and the group of each sample (columns id
    and group). Cross-validation tests the samples of all folds.
    """
    names = SPLITS[:2] if experiment.cross_validated else [experiment.settings.evaluation.split]
    splits = [experiment.dataset.split(name) for name in names]
    keep = np.concatenate(
        [experiment.target.of(s, f"dataset {experiment.dataset.name}")[1] for s in splits]
    )
    group, members = dependence_groups(*splits)
    return group, pd.DataFrame(
        {"id": np.concatenate([s.ids for s in splits])[keep], "group": members[keep]}
    )


def notes(experiment: Experiment, arms: Sequence[Arm]) -> list[str]:
    """Return notes for readers of the results."""
    settings = experiment.settings
    out = [*experiment.dataset.notes, *arrangement(experiment)]
    if settings.data.synthetic and settings.data.path != SYNTHETIC:
        out.append("data.synthetic changes the built-in dataset alone and is not used here")
    count = len(experiment.targets("train"))
    for name in ("teacher", "student"):
        size = getattr(settings, name).batch_size
        if size > count:
            out.append(
                f"{name}.batch_size = {size} is more than the {count} training samples; one "
                f"batch holds all of them"
            )
    target = experiment.target
    of_methods = [
        note for arm in arms for note in arm.method.class_.notes(arm.method.options, target)
    ]
    return [*out, *dict.fromkeys(of_methods)]


def arrangement(experiment: Experiment) -> list[str]:
    """Return sentences on the splits of a seed and on its teachers, unless they are the default."""
    out, settings = [], experiment.settings
    resample, teacher = settings.data.resample, settings.teacher
    group = dependence_groups(experiment.dataset.split("train"))[0]
    if resample.folds is not None:
        out.append(
            f"Cross-validation: train and valid together are divided into {resample.folds} folds "
            f"by {group}; seed s validates on fold s mod {resample.folds} and trains on the others."
        )
    if resample.train is not None:
        out.append(f"Each seed draws its own {resample.train} training samples.")
    if sets := prediction_sets(experiment):
        held_out = len(experiment.targets(CALIBRATION))
        out.append(
            f"Prediction sets: {held_out} training samples in {sets['groups']} groups by {group} "
            f"were held out from training and selection."
        )
    out += _who_teaches(teacher, group, digest=outputs_digest(settings))
    if teacher.temperature != 1.0 and experiment.target.has_classes:
        value = (
            "fitted to the training labels"
            if teacher.temperature == "fit"
            else f"{teacher.temperature:g}"
        )
        out.append(f"The teachers' temperature: {value}.")
    return out


def outputs_digest(settings: Settings) -> str:
    """Return the SHA-256 of the file in `teacher.outputs`; "" without one."""
    return "" if settings.teacher.outputs is None else sha256_of(settings.teacher.outputs)


def _who_teaches(teacher: TeacherSettings, group: str, *, digest: str) -> list[str]:
    """Return a sentence on the teachers, unless there is only one. `digest`: SHA-256 of the file in
    `teacher.outputs`.
    """
    if digest:
        return [
            f"Students are taught by outputs from a file (SHA-256 {digest}); no teacher is "
            f"trained for them."
        ]
    lines = teacher.committee
    combined = (
        "weighted, with weights fitted to the training labels"
        if teacher.weights == "fit"
        else "averaged"
    )
    number, repeats = sum(line.num_teachers for line in lines), sum(line.repeats for line in lines)
    if teacher.others:
        networks = [
            "the teacher's network",
            *(f"network {other.network.name}" for other in teacher.others),
        ]
        each = "; ".join(
            f"{line.num_teachers} with {name}, {_how(line, group)}"
            for name, line in zip(networks, lines, strict=True)
        )
        return [
            f"Students learn from a committee of {number} teachers per seed: {each}. The {repeats} "
            f"responses to each sample are {combined}; representations come from the teacher's "
            "network."
        ]
    if number == 1:
        return []
    return [
        f"Students learn from {number} teachers per seed, {_how(lines[0], group)}."
        + (f" The {repeats} responses to each sample are {combined}." if repeats > 1 else "")
    ]


def _how(line: Line, group: str) -> str:
    """Return how the teachers of a network are trained."""
    if line.folds is None:
        return "each trained on all training samples"
    return (
        f"each trained on all but one of {line.folds} folds by {group} and used only for the "
        "samples of the fold left out"
    )


def protocol(
    experiment: Experiment, dataset_plan: DatasetPlan, arms: Sequence[Arm], search: str
) -> list[str]:
    """Return sentences on what all arms have in common."""
    settings = experiment.settings
    missing = settings.missing
    students = [arm for arm in arms if not arm.is_teacher]
    lines = [
        f"Test masks: the same for all methods and training seeds (mask seed "
        f"{settings.evaluation.mask_seed}; number of draws of each random condition: "
        f"{settings.evaluation.draws}).",
        "Training masks: drawn in every epoch from seed, sample and modality, so the same for all "
        "methods that train on incomplete samples (a modality is missing with probability "
        f"{missing.modality:g}, a share of {missing.frames_low:g} to {missing.frames_high:g} of "
        f"the frames is dropped, and a share of {missing.complete:g} of the samples stays "
        f"complete). Trained on complete samples, as in their papers: "
        f"{', '.join(arm.title for arm in arms if arm.complete) or 'none'}.",
        "Initialisation: networks of the same structure start from the same parameters for a given "
        "seed; the teacher has its own.",
        f"Selection: {selection_rules((arm.selection, arm.title) for arm in arms)}. Nothing is "
        f"chosen on the {settings.evaluation.split} split.",
        _epochs(arms, dataset_plan),
        f"Batch size: {_shared('batch_size', students)}; learning rate: {_shared('lr', students)}.",
        f"Search budget: {search}.",
    ]
    titles = {arm.name: arm.title for arm in arms}
    lines += [
        f"{arm.title} is taught by the {titles[arm.taught_by]}, not by the teacher of the others."
        for arm in arms
        if arm.taught_by in titles and arm.taught_by != TEACHER
    ]
    readers = [arm.title for arm in arms if arm.network.class_.reads_conversations]
    if readers:
        lines.append(f"{', '.join(readers)} {_neighbours(experiment)}")
    return lines


def _neighbours(experiment: Experiment) -> str:
    """Return how a network that reads conversations uses the other samples of a conversation."""
    split = experiment.dataset.split(experiment.settings.evaluation.split)
    if split.recordings() is None:
        return (
            "reads a sample among the others of its conversation, but there are no neighbours: "
            "each sample is a conversation by itself."
        )
    text = (
        "reads a sample among the others of its conversation, including later ones, all with the "
        "same modalities or frames missing."
    )
    if all(frames.shape[1] == 1 for frames in split.frames.values()):
        return text
    if set(split.frame_ids) == set(split.frames):
        return (
            f"{text} Random frames are dropped by recording: a dropped frame is missing in all "
            "samples that contain it. Bursts and late starts differ from sample to sample."
        )
    return (
        f"{text} The data do not number their frames: where samples overlap, it can see a frame "
        "that is missing in one sample in a neighbour that contains it too."
    )


def _epochs(arms: Sequence[Arm], dataset_plan: DatasetPlan) -> str:
    """Return the number of epochs of each arm, and the rule that set it."""
    trained = [
        with_epochs(arm, dataset_plan.epochs.get(arm.name, arm.training.epochs)) for arm in arms
    ]
    students = _shared("epochs", [arm for arm in trained if not arm.is_teacher])
    names = {
        arm.name: "the teacher" if arm.name == TEACHER else f"the {arm.title}" for arm in trained
    }
    teachers = "".join(
        f"; {names[arm.name]}: {arm.training.epochs}" for arm in trained if arm.is_teacher
    )
    if dataset_plan.budget is None:
        return f"Epochs: {students}{teachers}."
    rule = (
        "Where the plan does not set it, the number of epochs is doubled, with the schedule "
        "stretched accordingly, until the validation score gains less than "
        f"{dataset_plan.budget.gain:g} points (seed {dataset_plan.settings.seeds[0]} decides; at "
        f"most {dataset_plan.budget.doublings} doublings)."
    )
    if any(dataset_plan.chooses(arm.name) for arm in arms):
        return f"Epochs: not all are chosen yet. {rule}"
    return f"Epochs: {students}{teachers}. {rule}"


def _shared(key: str, arms: Sequence[Arm]) -> str:
    values: list[Any] = [getattr(arm.training, key) for arm in arms]
    common = max(set(values), key=values.count) if values else None
    others = [
        f"{arm.title} {value:g}" for arm, value in zip(arms, values, strict=True) if value != common
    ]
    return (
        f"{common:g} for all methods" + (f" except {', '.join(others)}" if others else "")
        if values
        else "none"
    )


def selection_rules(kept: Iterable[tuple[str, str]]) -> str:
    """Return the rules by which an epoch is selected, each with the titles of its arms, from pairs
    (rule, title).
    """
    rules: dict[str, list[str]] = {}
    for rule, title in kept:
        rules.setdefault(rule, []).append(title)
    return "; ".join(f"{rule} ({', '.join(titles)})" for rule, titles in rules.items())
