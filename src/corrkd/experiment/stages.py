"""Stages of a run: training an arm with one seed, training a teacher with its committee, and
testing the trained models.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.numpy import save as save_arrays
from torch.utils.tensorboard import SummaryWriter

from corrkd._version import __version__
from corrkd.csv_files import csv_bytes, read_csv, write_csv
from corrkd.data.batches import Samples
from corrkd.data.modalities import usual_missing
from corrkd.errors import CorrKDError
from corrkd.evaluation.calibration import coverage_by_group
from corrkd.evaluation.judge import tabulate
from corrkd.evaluation.sweep import Result, Validation
from corrkd.experiment.arm import Arm
from corrkd.experiment.calibrate import Swept, calibrate, found_out, sweep_splits
from corrkd.experiment.experiment import Experiment
from corrkd.experiment.progress import Reporter, Task
from corrkd.experiment.teachers import Member, committee_outputs, members, trained_on
from corrkd.files import make_folder, sha256_of, write_bytes, write_text, write_with
from corrkd.memory import free_memory
from corrkd.methods.base import AnyMethod, TeacherOutputs
from corrkd.missing.conditions import COMPLETE, condition, missing_subsets
from corrkd.networks.base import AnyNetwork
from corrkd.networks.saved import (
    SavedNetwork,
    add_evaluated,
    build_network,
    load_network,
    recorded,
    save_network,
)
from corrkd.parsing import LARGEST_YAML, read_text, refusing
from corrkd.training.distributed import gather
from corrkd.training.fabric import Fabric
from corrkd.training.loop import train_run
from corrkd.training.memory import bytes_of_run
from corrkd.training.run import VALID, Record, Trained, TrainingRun
from corrkd.training.seeds import derived_seed
from corrkd.training.stacked import train_together

MOST_STACKED = 32  # more are no faster, as the GPU is saturated
MEMORY_SHARE = 0.8  # of the free memory, for a stack of trainings
HISTORY, RESULTS, SUMS = "history.csv", "results.csv", "SHA256SUMS"
SUMMED = (HISTORY, "representations.safetensors", "predictions.parquet", "coverage.csv")
COLUMNS = ["dataset", "method", "seed", "condition", "draw", "metric", "value"]


@dataclass(frozen=True)
class Training:
    """Training of one network.

    Attributes:
        arm: arm to train.
        folder: folder of the arm and seed, in which the model is saved.
        experiment: experiment of the seed.
        seed: seed of initial parameters, order, masks and dropout.
        taught_in: folder of the arm's teachers with this seed; None: it has no teacher.
        member: member of a committee of teachers; None: the arm itself, trained on all samples.
    """

    arm: Arm
    folder: Path
    experiment: Experiment
    seed: int
    taught_in: Path | None
    member: Member | None = None

    @property
    def done(self) -> bool:
        """Whether the model has been saved."""
        return (self.folder / f"{self.arm.name}.json").is_file()

    def stackable(self, fabric: Fabric) -> bool:
        """Return whether `train_together` can train it."""
        settings, arm = self.experiment.settings, self.arm
        pure = arm.method.class_.stackable and arm.network.class_.stackable
        one_process = fabric.world_size == 1 and settings.precision != "16-mixed"
        return pure and one_process and self.experiment.samples("train").resident

    def alike(self, other: Training) -> bool:
        """Return whether both train the same network in the same way and can be stacked."""
        first, another = (replace(training.arm, name="", start="") for training in (self, other))
        return first == another

    def begin(self, task: Task, fabric: Fabric) -> TrainingRun:
        """Return the run, ready to start. `task` shows its epochs."""
        experiment, arm = self.experiment, self.arm
        samples, valid = experiment.samples("train"), experiment.samples("valid")
        teachers = None
        if arm.taught_by is not None:
            assert self.taught_in is not None, "jobs say where an arm's teachers are"
            teachers = committee_outputs(
                experiment, samples, self.seed, self.taught_in, arm.taught_by
            )
        rows = (
            samples
            if self.member is None
            else trained_on(self.member, experiment, samples, self.seed)
        )
        return TrainingRun(
            method=make_method(arm, experiment, self.seed, rows, teachers),
            samples=rows,
            settings=arm.training,
            validate=_validation(arm, experiment, valid),
            seed=self.seed,
            missing=None if arm.complete else experiment.settings.missing,
            checkpoint=self.folder / f"{arm.name}.ckpt",
            on_epoch=_Watch(self.folder / "tfevents" / arm.name, task)
            if fabric.is_global_zero
            else None,
        )

    def write(self, run: TrainingRun, trained: Trained, seconds: float) -> None:
        """Write the trained model and its timing. `seconds`: duration of the training."""
        arm, experiment, folder = self.arm, self.experiment, self.folder
        run.method.student.load_state_dict(trained.state)
        about = {
            "role": arm.name,
            "seed": self.seed,
            "epoch": trained.epoch,
            VALID: trained.score,
            "selection": arm.selection,
            "data": {"name": experiment.dataset.name, "sha256": experiment.dataset.sha256},
            "versions": {"corrkd": __version__, "torch": torch.__version__},
            "history": trained.history,
            **(
                {"extractors": dict(experiment.dataset.extractors)}
                if experiment.dataset.extractors
                else {}
            ),
        }
        saved = SavedNetwork(
            network=run.method.student.cpu().float(),
            normalisation=experiment.normalisation,
            target=experiment.target,
            frames=experiment.frames,
            missing=usual_missing(experiment.dataset.split("train")),
            about=about,
        )
        save_network(folder / arm.name, saved)
        _write_timing(folder, arm.name, seconds, len(trained.history) * len(run.samples))
        (folder / f"{arm.name}.ckpt").unlink(missing_ok=True)


def trainings(
    arm: Arm,
    folder: Path,
    *,
    experiment: Experiment,
    seed: int,
    taught_in: Path | None,
    teaching: bool = False,
) -> list[Training]:
    """Return the trainings of an arm and seed: the arm and, if `teaching`, the other members of its
    committee.
    """
    out = [Training(arm, folder, experiment, seed, taught_in)]
    if teaching:
        settings = experiment.settings.teacher
        others = [member for member in members(settings, arm.name) if member.name != arm.name]
        out += [
            Training(member.arm(arm, settings), folder, experiment, seed, taught_in, member)
            for member in others
        ]
    return out


def train_arm(
    arm: Arm,
    folder: Path,
    *,
    experiment: Experiment,
    seed: int,
    fabric: Fabric,
    reporter: Reporter,
    taught_in: Path | None,
    teaching: bool = False,
) -> None:
    """Train the models that the folder of an arm and seed lacks, and write their history.

    Args:
        arm: arm to train.
        folder: folder of the arm and seed.
        experiment: experiment of the seed.
        seed: seed of initial parameters, order, masks and dropout.
        fabric: device, precision and processes.
        reporter: receives the progress.
        taught_in: folder of the arm's teachers with this seed; None: it has no teacher.
        teaching: whether to train the other members of a teacher's committee too.
    """
    make_folder(folder)
    every = trainings(
        arm, folder, experiment=experiment, seed=seed, taught_in=taught_in, teaching=teaching
    )
    train_all(every, fabric, reporter)
    if fabric.is_global_zero:
        for training in every:  # left by a run killed before this line
            (folder / f"{training.arm.name}.ckpt").unlink(missing_ok=True)
        if not (folder / HISTORY).is_file():
            _write_history(folder, arm)


def train_all(trainings: Sequence[Training], fabric: Fabric, reporter: Reporter) -> None:
    """Carry out the unfinished trainings of one arm. The settings decide how many of the same
    network are stacked.
    """
    left = [training for training in trainings if not training.done]
    while left:
        alike = [training for training in left if training.alike(left[0])]
        count = stack_size(alike[0], fabric) if len(alike) > 1 else 1
        some = alike[:count]
        left = alike[count:] + [training for training in left if not training.alike(alike[0])]
        _train_some(some, fabric, reporter)
        fabric.barrier()


def _train_some(some: Sequence[Training], fabric: Fabric, reporter: Reporter) -> None:
    """Train networks, stacked if possible, and write their models."""
    seeds = ", ".join(map(str, dict.fromkeys(training.seed for training in some)))
    names = some[0].arm.name if len(some) == 1 else f"{len(some)} x {some[0].arm.name}"
    if len(some) > 1:
        reporter.say(
            f"{some[0].arm.name}: {len(some)} trainings at once on {device_name(fabric.device)}"
        )
    began = time.monotonic()
    epochs = sum(training.arm.training.epochs for training in some)
    with reporter.task(f"seed {seeds}  {names}", epochs) as task:
        runs = [replace(training.begin(task, fabric), together=len(some)) for training in some]
        if _one_pass(some, fabric) and all(run.method.stacks(run.batch_size) for run in runs):
            trained = train_together(
                runs, fabric=fabric, compiled=some[0].experiment.settings.compile
            )
        else:
            trained = [train_run(run, fabric) for run in runs]
    if fabric.is_global_zero:
        seconds = (time.monotonic() - began) / len(some)
        for training, run, result in zip(some, runs, trained, strict=True):
            if isinstance(run.on_epoch, _Watch):
                run.on_epoch.close(result.history)
            training.write(run, result, seconds)


def stack_size(training: Training, fabric: Fabric) -> int:
    """Return how many trainings like this one to stack: the number in the settings, or for "auto"
    as many as fit into a GPU's memory. It is 1 if stacking is not possible.
    """
    requested = training.experiment.settings.stack
    if not training.stackable(fabric) or (requested == "auto" and fabric.device.type != "cuda"):
        return 1
    if requested != "auto":
        return requested
    run = training.begin(Task(), fabric)
    run.method.to(fabric.device)
    gc.collect()  # frees graphs and parameters of finished trainings
    return fitting(bytes_of_run(run), free_memory(fabric.device))


def device_name(device: torch.device) -> str:
    """Return the display name of a device: "NVIDIA H200", "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def fitting(each: int, free: int) -> int:
    """Return how many trainings of `each` bytes fit into `MEMORY_SHARE` of the `free` bytes: at
    least 1, at most `MOST_STACKED`.
    """
    return max(1, min(MOST_STACKED, int(MEMORY_SHARE * free) // each))


def _one_pass(trainings: Sequence[Training], fabric: Fabric) -> bool:
    """Return whether to use `train_together`: for several trainings, or for captured or compiled
    steps of a single one.
    """
    compiled = trainings[0].experiment.settings.compile
    return trainings[0].stackable(fabric) and (
        len(trainings) > 1 or compiled or fabric.device.type == "cuda"
    )


def make_method(
    arm: Arm,
    experiment: Experiment,
    seed: int,
    samples: Samples,
    teachers: TeacherOutputs | None = None,
) -> AnyMethod:
    """Return the method of an arm. All arms except teachers start from the same parameters if their
    networks agree.

    Raises:
        CorrKDError: if the method does not support these modalities, or a modality consists of
            token ids that its network does not read.
    """
    check_tokens(experiment, arm.network.class_, f"arm {arm.name}")
    weights = None
    if arm.training.class_weights == "balanced":
        weights = experiment.target.balanced_class_weights(samples.targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "init", arm.start))
        network = build_network(
            experiment.target,
            samples.widths,
            experiment.frames,
            arm.network.options,
            arm.network.class_,
        )
        if getattr(arm.network.options, "fill", None) == "mean":
            network.set_fill(samples.mean_frames())
        method = arm.method.class_(
            network, arm.method.options, teachers=teachers, class_weights=weights, gather=gather
        )
    return method.to(experiment.dtype)


def check_tokens(experiment: Experiment, network: type[AnyNetwork], where: str) -> None:
    """Raise CorrKDError if a modality consists of token ids and the network does not read them.
    `where` begins the message.
    """
    tokens = [m for m in experiment.dataset.tokens if m in experiment.dataset.modalities]
    if tokens and not network.reads_tokens:
        raise CorrKDError(
            f"{where}: modality {tokens[0]} holds ids of tokens, which network {network.name!r} "
            f"would read as measurements; "
            "put the network bert before it, or set data.tokens to false"
        )


def _validation(arm: Arm, experiment: Experiment, valid: Samples) -> Validation:
    """Return the criterion of an epoch: the score on complete samples for an arm trained on them,
    else its mean over the missing subsets ("Avg.").
    """
    modalities = experiment.dataset.modalities
    conditions = [condition(COMPLETE, modalities)] if arm.complete else missing_subsets(modalities)
    return Validation(valid, tuple(conditions), experiment.settings.evaluation.batch_size)


@dataclass(frozen=True)
class Tested:
    """Evaluation results of one arm: metrics, all predictions, representations by
    "<arm>/<condition>", and coverage of the prediction sets by group.
    """

    table: pd.DataFrame
    predictions: pd.DataFrame
    representations: Mapping[str, npt.NDArray[Any]]
    coverage: pd.DataFrame


def evaluate_arm(
    arm: Arm,
    experiment: Experiment,
    samples: Mapping[str, Samples],
    folders: Sequence[Path],
    on_batch: Callable[[int], None],
) -> Iterator[Tested]:
    """Yield the test results of each model of an arm, calibrated and evaluated under every
    condition. The results are added to the model's card.

    Args:
        arm: arm of the models.
        experiment: experiment of all their seeds.
        samples: from `swept_samples`.
        folders: folder of the arm for each seed; the models are evaluated in one pass.
        on_batch: called with the number of samples done.
    """
    networks = [
        load_network(folder / arm.name).network.to(experiment.device, experiment.dtype)
        for folder in folders
    ]
    for folder, swept in zip(
        folders, sweep_splits(networks, experiment, samples, on_batch), strict=True
    ):
        yield _test(arm, experiment, samples, folder, swept)


def _test(
    arm: Arm, experiment: Experiment, samples: Mapping[str, Samples], folder: Path, swept: Swept
) -> Tested:
    split = experiment.settings.evaluation.split
    tested, results = samples[split], swept[split]
    truth = tested.targets.cpu().numpy()
    calibrations = calibrate(swept, experiment, samples)
    target, groups = experiment.target, experiment.groups(split)
    table = tabulate(results, target, truth, tested.modalities, calibrations)
    add_evaluated(folder / arm.name, found_out(experiment, table, calibrations, len(tested)))
    return Tested(
        table.assign(method=arm.name),
        pd.concat(
            [_predictions(arm.name, result, tested, truth) for result in results], ignore_index=True
        ),
        {
            f"{arm.name}/{r.condition.name}": r.representation
            for r in results
            if r.representation is not None
        },
        coverage_by_group(results, target, truth, groups, calibrations).assign(method=arm.name),
    )


def write_tested(folder: Path, tested: Tested, experiment: Experiment, seed: int) -> None:
    """Write representations.safetensors, predictions.parquet, coverage.csv if there are prediction
    sets, SHA256SUMS and, last, results.csv.
    """
    truth = np.ascontiguousarray(experiment.targets(experiment.settings.evaluation.split))
    write_bytes(
        folder / "representations.safetensors",
        save_arrays({**tested.representations, "targets": truth}),
    )
    write_with(
        folder / "predictions.parquet",
        lambda path: tested.predictions.to_parquet(path, index=False),
    )
    if len(tested.coverage):
        write_csv(folder / "coverage.csv", tested.coverage)
    results = csv_bytes(tested.table.assign(dataset=experiment.dataset.name, seed=seed)[COLUMNS])
    sums = {name: sha256_of(folder / name) for name in SUMMED if (folder / name).is_file()}
    sums[RESULTS] = hashlib.sha256(results).hexdigest()
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    write_bytes(folder / RESULTS, results)


def check_tested(folder: Path) -> None:
    """Raise CorrKDError if a file of an evaluation has changed since it was written, as
    `sha256sum -c SHA256SUMS` would report.
    """
    advice = f"delete {folder / RESULTS} to evaluate again"
    lines = read_text(folder / SUMS, LARGEST_YAML).splitlines() if (folder / SUMS).is_file() else []
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in (*SUMMED, RESULTS):
        is_file = (folder / name).is_file()
        if is_file != (name in sums) or (is_file and sha256_of(folder / name) != sums[name]):
            raise CorrKDError(
                f"{folder / name}: damaged: its SHA-256 is not the one in {SUMS}; {advice}"
            )


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write results.csv: tidy rows, columns in a fixed order, all digits of a float64."""
    write_csv(path, table[COLUMNS])


def read_table(path: Path) -> pd.DataFrame:
    """Return the table that `write_table` wrote, bit-identical, with seeds as text. Raises
    CorrKDError if it is damaged.
    """
    try:
        # As text: a modality may be called "NA", and pandas does not parse all numbers exactly.
        table = read_csv(path, dtype=str, keep_default_na=False)
        return table.assign(
            draw=table["draw"].astype(int), value=[float(text or "nan") for text in table["value"]]
        )
    except (ValueError, KeyError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorrKDError(f"{path}: damaged ({reason}); delete it to evaluate again") from None


def _predictions(
    role: str,
    result: Result,
    samples: Samples,
    truth: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
) -> pd.DataFrame:
    about = {"method": role, "condition": result.condition.name, "draw": result.draw}
    columns = samples.target.prediction_columns(
        samples.ids[result.rows], truth[result.rows], result.response
    )
    return pd.DataFrame({**about, **columns})


class _Watch:
    """Callback that reports each epoch to the progress bar and TensorBoard."""

    def __init__(self, folder: Path, task: Task) -> None:
        self._folder, self._task = folder, task
        self._writer: SummaryWriter | None = None

    def __call__(self, record: Record) -> None:
        epoch = int(record["epoch"])
        if self._writer is None:
            # A resumed training repeats the epoch in which it stopped, so later events are purged.
            self._writer = SummaryWriter(str(self._folder), purge_step=epoch)
            self._task.step(epoch - 1)
        for name, value in record.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, epoch)
        self._task.step(1, f"loss {record['loss/total']:.3f}  valid F1 {100 * record[VALID]:.1f}")

    def close(self, history: Sequence[Record]) -> None:
        if self._writer is not None:
            self._writer.close()


def _write_history(folder: Path, arm: Arm) -> None:
    """Write history.csv: one row per epoch; `kept` is 1 for the epoch of the saved model."""
    table = pd.DataFrame(recorded(folder / arm.name, "history")).assign(method=arm.name)
    table = table.assign(kept=(table["epoch"] == recorded(folder / arm.name, "epoch")).astype(int))
    losses = [str(column) for column in table if str(column).startswith("loss/")]
    write_csv(
        folder / HISTORY,
        table[["method", "epoch", "kept", *losses, VALID, "lr"]].astype({"epoch": int}),
    )


def _write_timing(folder: Path, stage: str, seconds: float, samples: int) -> None:
    path = folder / "timings.csv"
    row = pd.DataFrame(
        [
            {
                "stage": stage,
                "seconds": round(seconds, 3),
                "samples_per_second": round(samples / seconds, 1),
            }
        ]
    )
    with refusing(path, "damaged; delete it to go on"):
        before = read_csv(path) if path.is_file() else row.iloc[:0]
        table = pd.concat([before[before["stage"] != stage], row], ignore_index=True)
    write_csv(path, table)
