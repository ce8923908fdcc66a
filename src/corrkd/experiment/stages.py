"""The stages of a run: an arm trained with one seed, a teacher with those who teach beside it, and the test of what was trained."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from lightning_fabric import Fabric
from safetensors.numpy import save as save_arrays
from torch.utils.tensorboard import SummaryWriter

from corrkd._version import __version__
from corrkd.csv_files import csv_bytes, read_csv, write_csv
from corrkd.data.batches import Samples
from corrkd.data.load import sha256_of
from corrkd.data.modalities import usual_missing
from corrkd.errors import CorrKDError
from corrkd.evaluation.calibration import coverage_by_group
from corrkd.evaluation.judge import tabulate
from corrkd.evaluation.sweep import Result, mean_f1, mean_missing_f1, sweep
from corrkd.experiment.arm import TEACHER, Arm
from corrkd.experiment.calibrate import calibrate, found_out
from corrkd.experiment.experiment import Experiment
from corrkd.experiment.progress import Reporter, Task
from corrkd.experiment.teachers import Member, answers, members, trained_on
from corrkd.files import make_folder, write_bytes, write_text, write_with
from corrkd.methods.base import AnyMethod, TeacherOutputs
from corrkd.missing.conditions import COMPLETE, condition
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
from corrkd.training.loop import (
    VALID,
    Record,
    derived_seed,
    train,
)

HISTORY, RESULTS, SUMS = "history.csv", "results.csv", "SHA256SUMS"
SUMMED = (HISTORY, "representations.safetensors", "predictions.parquet", "coverage.csv")
COLUMNS = ["dataset", "method", "seed", "condition", "draw", "metric", "value"]


def train_arm(
    arm: Arm,
    folder: Path,
    *,
    experiment: Experiment,
    seed: int,
    fabric: Fabric,
    reporter: Reporter,
    taught_in: Path,
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
        taught_in: folder of the seed's teachers.
        teaching: of a teacher, whether those who teach beside it are trained too.
    """
    make_folder(folder)
    trained = _with_members(arm, experiment, teaching)
    left = [(each, member) for each, member in trained if not (folder / f"{each.name}.json").is_file()]
    if left:
        samples, valid = experiment.samples("train"), experiment.samples("valid")
        teachers = answers(experiment, samples, seed, taught_in) if arm.needs_teacher else None
        for each, member in left:
            rows = samples if member is None else trained_on(member, experiment, samples, seed)
            _train(each, experiment, seed, folder, fabric, rows, valid, teachers, reporter)
            del rows  # before the next are taken
    if fabric.is_global_zero:
        for each, _ in trained:  # of a run that was killed between the model and this line
            (folder / f"{each.name}.ckpt").unlink(missing_ok=True)
        if not (folder / HISTORY).is_file():
            _write_history(folder, arm)


def _with_members(arm: Arm, experiment: Experiment, teaching: bool) -> list[tuple[Arm, Member | None]]:
    """An arm; after the teacher those others who teach."""
    if arm.name != TEACHER or not teaching:
        return [(arm, None)]
    others = [member for member in members(experiment.settings.teacher) if member.name != TEACHER]
    return [(arm, None), *((member.arm(arm), member) for member in others)]


def _train(
    arm: Arm,
    experiment: Experiment,
    seed: int,
    folder: Path,
    fabric: Fabric,
    samples: Samples,
    valid: Samples,
    teachers: TeacherOutputs | None,
    reporter: Reporter,
) -> None:
    method = make_method(arm, experiment, seed, samples, teachers)
    began = time.monotonic()
    with reporter.task(f"seed {seed}  {arm.name}", arm.training.epochs) as task:
        writer = _Watch(folder / "tfevents" / arm.name, task) if fabric.is_global_zero else None
        trained = train(
            method,
            samples,
            settings=arm.training,
            validate=_validation(arm, experiment, valid),
            seed=seed,
            fabric=fabric,
            missing=None if arm.complete else experiment.settings.missing,
            checkpoint=folder / f"{arm.name}.ckpt",
            on_epoch=writer,
        )
        if writer:
            writer.close(trained.history)
    method.student.load_state_dict(trained.state)
    if fabric.is_global_zero:
        about = {
            "role": arm.name,
            "seed": seed,
            "epoch": trained.epoch,
            VALID: trained.score,
            "selection": arm.selection,
            "data": {"name": experiment.dataset.name, "sha256": experiment.dataset.sha256},
            "versions": {"corrkd": __version__, "torch": torch.__version__},
            "history": trained.history,
        }
        saved = SavedNetwork(
            network=method.student.cpu().float(),
            normalisation=experiment.normalisation,
            target=experiment.target,
            frames=experiment.frames,
            missing=usual_missing(experiment.dataset.split("train")),
            about=about,
        )
        save_network(folder / arm.name, saved)
        _write_timing(folder, arm.name, time.monotonic() - began, len(trained.history) * len(samples))
        (folder / f"{arm.name}.ckpt").unlink(missing_ok=True)
    fabric.barrier()


def make_method(
    arm: Arm, experiment: Experiment, seed: int, samples: Samples, teachers: TeacherOutputs | None = None
) -> AnyMethod:
    """An arm's method. All arms but the teacher begin with the same parameters, where their networks agree."""
    weights = None
    if arm.training.class_weights == "balanced":
        weights = experiment.target.balanced_class_weights(samples.targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "init", arm.start))
        network = build_network(
            experiment.target, samples.widths, experiment.frames, arm.network.options, arm.network.class_
        )
        if getattr(arm.network.options, "fill", None) == "mean":
            network.set_fill(samples.mean_frames())
        method = arm.method.class_(network, arm.method.options, teachers=teachers, class_weights=weights, gather=gather)
    return method.to(experiment.dtype)


def _validation(arm: Arm, experiment: Experiment, valid: Samples) -> Callable[[AnyNetwork], float]:
    size = experiment.settings.evaluation.batch_size
    if arm.complete:
        complete = [condition(COMPLETE, experiment.dataset.modalities)]
        return lambda network: mean_f1(network, valid, complete, batch_size=size)
    return lambda network: mean_missing_f1(network, valid, batch_size=size)


@dataclass(frozen=True)
class Tested:
    """What the evaluation of one arm gives: metrics, every prediction, representations by "<arm>/<condition>", and how many of each
    group's samples had their truth in the prediction set.
    """

    table: pd.DataFrame
    predictions: pd.DataFrame
    representations: Mapping[str, npt.NDArray[Any]]
    coverage: pd.DataFrame


def evaluate_arm(
    arm: Arm, experiment: Experiment, samples: Mapping[str, Samples], folder: Path, on_batch: Callable[[int], None]
) -> Tested:
    """Calibrates one arm, then tests it under every condition. Its model is read from the folder, and its card told what was found.

    `samples`: from `swept_samples`.
    """
    evaluation = experiment.settings.evaluation
    network = load_network(folder / arm.name).network.to(experiment.device, experiment.dtype)
    calibrations = calibrate(network, experiment, samples, on_batch)
    tested = samples[evaluation.split]
    truth = tested.targets.cpu().numpy()
    results = sweep(
        network,
        tested,
        experiment.conditions(),
        mask_seed=evaluation.mask_seed,
        batch_size=evaluation.batch_size,
        keep_representations=tuple(dict.fromkeys((COMPLETE, experiment.projection()))),
        on_batch=on_batch,
    )
    target, groups = experiment.target, experiment.groups(evaluation.split)
    table = tabulate(results, target, truth, tested.modalities, calibrations)
    add_evaluated(folder / arm.name, found_out(experiment, table, calibrations, len(tested)))
    return Tested(
        table.assign(method=arm.name),
        pd.concat([_predictions(arm.name, result, tested, truth) for result in results], ignore_index=True),
        {f"{arm.name}/{r.condition.name}": r.representation for r in results if r.representation is not None},
        coverage_by_group(results, target, truth, groups, calibrations).assign(method=arm.name),
    )


def write_tested(folder: Path, tested: Tested, experiment: Experiment, seed: int) -> None:
    """representations.safetensors, predictions.parquet, coverage.csv where there are prediction sets, SHA256SUMS and, last, results.csv."""
    truth = np.ascontiguousarray(experiment.targets(experiment.settings.evaluation.split))
    write_bytes(folder / "representations.safetensors", save_arrays({**tested.representations, "targets": truth}))
    write_with(folder / "predictions.parquet", lambda path: tested.predictions.to_parquet(path, index=False))
    if len(tested.coverage):
        write_csv(folder / "coverage.csv", tested.coverage)
    results = csv_bytes(tested.table.assign(dataset=experiment.dataset.name, seed=seed)[COLUMNS])
    sums = {name: sha256_of(folder / name) for name in SUMMED if (folder / name).is_file()}
    sums[RESULTS] = hashlib.sha256(results).hexdigest()
    write_text(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    write_bytes(folder / RESULTS, results)


def check_tested(folder: Path) -> None:
    """Raise CorrKDError where a file of an evaluation is not as it was written. `sha256sum -c SHA256SUMS` checks the same."""
    advice = f"delete {folder / RESULTS} to evaluate again"
    lines = read_text(folder / SUMS, LARGEST_YAML).splitlines() if (folder / SUMS).is_file() else []
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in (*SUMMED, RESULTS):
        is_file = (folder / name).is_file()
        if is_file != (name in sums) or (is_file and sha256_of(folder / name) != sums[name]):
            raise CorrKDError(f"{folder / name}: damaged: its SHA-256 is not the one in {SUMS}; {advice}")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """results.csv: tidy, in the columns' agreed order, with all digits of a float64."""
    write_csv(path, table[COLUMNS])


def read_table(path: Path) -> pd.DataFrame:
    """What `write_table` wrote, to the last bit; seeds as text. Raises CorrKDError where it is damaged."""
    try:
        # As text first: a modality may be called "NA", and pandas' own reading of numbers is not exact everywhere.
        table = read_csv(path, dtype=str, keep_default_na=False)
        return table.assign(draw=table["draw"].astype(int), value=[float(text or "nan") for text in table["value"]])
    except (ValueError, KeyError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorrKDError(f"{path}: damaged ({reason}); delete it to evaluate again") from None


def _predictions(
    role: str, result: Result, samples: Samples, truth: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> pd.DataFrame:
    about = {"method": role, "condition": result.condition.name, "draw": result.draw}
    columns = samples.target.prediction_columns(samples.ids[result.rows], truth[result.rows], result.response)
    return pd.DataFrame({**about, **columns})


class _Watch:
    """Follows a training: the progress bar and TensorBoard."""

    def __init__(self, folder: Path, task: Task) -> None:
        self._folder, self._task = folder, task
        self._writer: SummaryWriter | None = None

    def __call__(self, record: Record) -> None:
        epoch = int(record["epoch"])
        if self._writer is None:
            # A resumed training repeats the epoch it was stopped in: what was written after the last whole one is discarded.
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
    write_csv(folder / HISTORY, table[["method", "epoch", "kept", *losses, VALID, "lr"]].astype({"epoch": int}))


def _write_timing(folder: Path, stage: str, seconds: float, samples: int) -> None:
    path = folder / "timings.csv"
    row = pd.DataFrame(
        [{"stage": stage, "seconds": round(seconds, 3), "samples_per_second": round(samples / seconds, 1)}]
    )
    with refusing(path, "damaged; delete it to go on"):
        before = read_csv(path) if path.is_file() else row.iloc[:0]
        table = pd.concat([before[before["stage"] != stage], row], ignore_index=True)
    write_csv(path, table)
