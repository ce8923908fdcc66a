"""The stages of a run: an arm trained with one seed, a teacher with those who teach beside it, and
the test of what was trained.
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
from corrkd.experiment.teachers import Member, answers, members, trained_on
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

MOST_STACKED = 32  # more are no faster: the GPU is busy
MEMORY_SHARE = 0.8  # of what is free, for the trainings of a stack
HISTORY, RESULTS, SUMS = "history.csv", "results.csv", "SHA256SUMS"
SUMMED = (HISTORY, "representations.safetensors", "predictions.parquet", "coverage.csv")
COLUMNS = ["dataset", "method", "seed", "condition", "draw", "metric", "value"]


@dataclass(frozen=True)
class Training:
    """A network to be trained.

    Attributes:
        arm: how.
        folder: of the arm and seed, where the model goes.
        experiment: the seed's.
        seed: of initial parameters, order, masks and dropout.
        taught_in: folder of the arm's teachers with that seed; None: it has none.
        member: which of several teachers it is; None: it is trained on all samples.
    """

    arm: Arm
    folder: Path
    experiment: Experiment
    seed: int
    taught_in: Path | None
    member: Member | None = None

    @property
    def done(self) -> bool:
        """Whether its model is there."""
        return (self.folder / f"{self.arm.name}.json").is_file()

    def stackable(self, fabric: Fabric) -> bool:
        """Whether it can be trained by `train_together`."""
        settings, arm = self.experiment.settings, self.arm
        pure = arm.method.class_.stackable and arm.network.class_.stackable
        one_process = fabric.world_size == 1 and settings.precision != "16-mixed"
        return pure and one_process and self.experiment.samples("train").resident

    def alike(self, other: Training) -> bool:
        """Whether both train one network in one way, so that they can be stacked."""
        first, another = (replace(training.arm, name="", start="") for training in (self, other))
        return first == another

    def begin(self, task: Task, fabric: Fabric) -> TrainingRun:
        """Return the training, ready to begin, whose epochs `task` follows."""
        experiment, arm = self.experiment, self.arm
        samples, valid = experiment.samples("train"), experiment.samples("valid")
        teachers = None
        if arm.taught_by is not None:
            assert self.taught_in is not None, "jobs say where an arm's teachers are"
            teachers = answers(experiment, samples, self.seed, self.taught_in, arm.taught_by)
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
        """Write the model of a training that took so many seconds."""
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
    """Return what is trained for an arm and seed: the arm; after a teacher those who teach beside
    it, where `teaching`.
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
    """Train what the folder of an arm and seed does not hold yet, and write its history.

    Args:
        arm: in training.
        folder: of the arm and seed.
        experiment: the seed's.
        seed: of initial parameters, order, masks and dropout.
        fabric: device, precision and processes.
        reporter: where progress goes.
        taught_in: folder of the arm's teachers with that seed; None: it has none.
        teaching: of a teacher, whether those who teach beside it are trained too.
    """
    make_folder(folder)
    every = trainings(
        arm, folder, experiment=experiment, seed=seed, taught_in=taught_in, teaching=teaching
    )
    train_all(every, fabric, reporter)
    if fabric.is_global_zero:
        for training in every:  # of a run that was killed between the model and this line
            (folder / f"{training.arm.name}.ckpt").unlink(missing_ok=True)
        if not (folder / HISTORY).is_file():
            _write_history(folder, arm)


def train_all(trainings: Sequence[Training], fabric: Fabric, reporter: Reporter) -> None:
    """Train those of one arm that are not done yet, several of one network at once where the
    settings say so.
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
    """Train them, in one pass where they can be, and write their models."""
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
    """Return how many trainings like this one are done at once: as the settings ask; "auto": as
    many as fit into a GPU's memory.
    """
    requested = training.experiment.settings.stack
    if not training.stackable(fabric) or (requested == "auto" and fabric.device.type != "cuda"):
        return 1
    if requested != "auto":
        return requested
    run = training.begin(Task(), fabric)
    run.method.to(fabric.device)
    gc.collect()  # graphs and parameters of trainings that have ended
    return fitting(bytes_of_run(run), free_memory(fabric.device))


def device_name(device: torch.device) -> str:
    """Return a device's name as people call it: "NVIDIA H200", "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def fitting(each: int, free: int) -> int:
    """Return how many trainings of so many bytes each fit into what is free; at least one, and at
    most as many as pay.
    """
    return max(1, min(MOST_STACKED, int(MEMORY_SHARE * free) // each))


def _one_pass(trainings: Sequence[Training], fabric: Fabric) -> bool:
    """Whether they go through `train_together`: several, or a single one whose steps are captured
    or compiled.
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
    """An arm's method. All arms but the teacher begin with the same parameters, where their
    networks agree.

    Raises:
        CorrKDError: it cannot be made for these modalities, or the language is ids of tokens and
            its network does not read them.
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
    """Raise CorrKDError where a modality is ids of tokens and the network does not read them;
    `where` opens the line.
    """
    tokens = [m for m in experiment.dataset.tokens if m in experiment.dataset.modalities]
    if tokens and not network.reads_tokens:
        raise CorrKDError(
            f"{where}: modality {tokens[0]} holds ids of tokens, which network {network.name!r} "
            f"would read as measurements; "
            "put the network bert before it, or set data.tokens to false"
        )


def _validation(arm: Arm, experiment: Experiment, valid: Samples) -> Validation:
    """The score on complete samples, or its mean over the missing subsets ("Avg.")."""
    modalities = experiment.dataset.modalities
    conditions = [condition(COMPLETE, modalities)] if arm.complete else missing_subsets(modalities)
    return Validation(valid, tuple(conditions), experiment.settings.evaluation.batch_size)


@dataclass(frozen=True)
class Tested:
    """What the evaluation of one arm gives: metrics, every prediction, representations by
    "<arm>/<condition>", and how many of each group's samples had their truth in the prediction set.
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
    """Calibrate the models of an arm, one in each folder, and test them under every condition;
    their cards record what was found.

    Args:
        arm: of which the models are.
        experiment: of all their seeds.
        samples: from `swept_samples`.
        folders: of the arm and each seed; several models answer in one pass.
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
    """representations.safetensors, predictions.parquet, coverage.csv where there are prediction
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
    """Raise CorrKDError where a file of an evaluation is not as it was written. `sha256sum -c
    SHA256SUMS` checks the same.
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
    """results.csv: tidy, in the columns' agreed order, with all digits of a float64."""
    write_csv(path, table[COLUMNS])


def read_table(path: Path) -> pd.DataFrame:
    """What `write_table` wrote, to the last bit; seeds as text. Raises CorrKDError where it is
    damaged.
    """
    try:
        # As text first: a modality may be called "NA", and pandas' own reading of numbers is not
        # exact everywhere.
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
    """Follows a training: the progress bar and TensorBoard."""

    def __init__(self, folder: Path, task: Task) -> None:
        self._folder, self._task = folder, task
        self._writer: SummaryWriter | None = None

    def __call__(self, record: Record) -> None:
        epoch = int(record["epoch"])
        if self._writer is None:
            # A resumed training repeats the epoch it was stopped in: what was written after the
            # last whole one is discarded.
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
    """history.csv: a row an epoch; `kept` is 1 where the model is that epoch's."""
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
