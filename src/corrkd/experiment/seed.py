"""One seed of an experiment: each arm trained once in the seed's folder, then its evaluation."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from corrkd.errors import CorrKDError
from corrkd.evaluation.calibration import coverage_by_group
from corrkd.evaluation.judge import tabulate
from corrkd.evaluation.sweep import Result, mean_f1, mean_missing_f1, sweep
from corrkd.experiment.arm import TEACHER, Arm
from corrkd.experiment.calibrate import calibrate, found_out, swept_samples
from corrkd.experiment.prepare import Experiment
from corrkd.experiment.progress import Reporter, Task
from corrkd.experiment.teachers import Member, answers, members, trained_on
from corrkd.files import make_folder, write_bytes, write_text, write_with
from corrkd.methods.base import AnyMethod, TeacherOutput
from corrkd.missing.conditions import COMPLETE, condition
from corrkd.networks.base import AnyNetwork
from corrkd.networks.saved import (
    SavedNetwork,
    add_evaluated,
    build_network,
    load_network,
    recorded,
    save_network,
    usual_missing,
)
from corrkd.parsing import LARGEST_YAML, read_text, refusing
from corrkd.training.distributed import gather
from corrkd.training.loop import (
    VALID,
    Record,
    derived_seed,
    train,
)

RESULTS, SUMS = "results.csv", "SHA256SUMS"
SUMMED = ("history.csv", "representations.safetensors", "predictions.parquet", "coverage.csv")
COLUMNS = ["dataset", "method", "seed", "condition", "draw", "metric", "value"]


def train_seed(experiment: Experiment, seed: int, folder: Path, fabric: Fabric, reporter: Reporter) -> None:
    """Trains what is not there yet: the teacher on complete samples, then student and control under MRM."""
    train_arms(experiment, experiment.arms, seed, folder, fabric, reporter)
    if fabric.is_global_zero and not (folder / "history.csv").is_file():
        _write_history(folder, experiment.arms)


def train_arms(
    experiment: Experiment,
    arms: Iterable[Arm],
    seed: int,
    folder: Path,
    fabric: Fabric,
    reporter: Reporter,
    taught_in: Path | None = None,
    teaching: bool = True,
) -> None:
    """Trains the arms that the folder does not hold yet.

    `experiment` is the seed's. `taught_in` is the folder of the teachers; default: the folder itself, whose teacher comes first.
    `teaching`: with the teacher, those who teach beside it, too.
    """
    make_folder(folder)
    trained = [one for arm in arms for one in _with_members(arm, experiment, teaching)]
    left = [one for one in trained if not (folder / f"{one[0].name}.json").is_file()]
    if left:
        samples, valid = experiment.samples("train"), experiment.samples("valid")
        outputs: TeacherOutput | None = None
        for arm, member in left:
            if arm.method.needs_teacher and outputs is None:
                outputs = answers(experiment, samples, seed, taught_in or folder)
            known = outputs if arm.method.needs_teacher else None
            own = samples if member is None else trained_on(member, experiment, samples, seed)
            _train_arm(arm, experiment, seed, folder, fabric, own, valid, known, reporter)
            del own  # before the next is made
    if fabric.is_global_zero:
        for arm, _ in trained:  # of a run that was killed between the model and this line
            (folder / f"{arm.name}.ckpt").unlink(missing_ok=True)


def _with_members(arm: Arm, experiment: Experiment, teaching: bool) -> list[tuple[Arm, Member | None]]:
    """An arm; after the teacher those others who teach."""
    if arm.name != TEACHER or not teaching:
        return [(arm, None)]
    others = [member for member in members(experiment.settings.teacher) if member.name != TEACHER]
    return [(arm, None), *((member.arm(arm), member) for member in others)]


def _train_arm(
    arm: Arm,
    experiment: Experiment,
    seed: int,
    folder: Path,
    fabric: Fabric,
    samples: Samples,
    valid: Samples,
    teacher: TeacherOutput | None,
    reporter: Reporter,
) -> None:
    method = make_method(arm, experiment, seed, samples)
    began = time.monotonic()
    with reporter.task(f"seed {seed}  {arm.name}", arm.stage.epochs) as task:
        writer = _Watch(folder / "tfevents" / arm.name, task) if fabric.is_global_zero else None
        trained = train(
            method,
            samples,
            settings=arm.stage,
            validate=_validation(arm, experiment, valid),
            seed=seed,
            fabric=fabric,
            missing=None if arm.complete else experiment.settings.missing,
            teacher=teacher,
            checkpoint=folder / f"{arm.name}.ckpt",
            on_epoch=writer,
        )
        if writer:
            writer.close(trained.history)
    method.network.load_state_dict(trained.state)
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
            network=method.network.cpu().float(),
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


def make_method(arm: Arm, experiment: Experiment, seed: int, samples: Samples) -> AnyMethod:
    """An arm's method. All arms but the teacher begin with the same parameters, where their networks agree."""
    weights = None
    if arm.stage.class_weights == "balanced":
        weights = experiment.target.balanced_class_weights(samples.targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "init", arm.start))
        network = build_network(
            experiment.target, samples.widths, experiment.frames, arm.network, arm.method.network_type
        )
        if getattr(arm.network, "fill", None) == "mean":
            network.set_fill(samples.mean_frames())
        method = arm.method(network, experiment.target, arm.options, class_weights=weights, gather=gather)
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


def evaluate_seed(experiment: Experiment, seed: int, folder: Path, reporter: Reporter) -> None:
    """Tests the arms under every condition and writes what a report needs; results.csv last."""
    if (folder / "results.csv").is_file():
        return
    samples, tested = swept_samples(experiment), []
    total = sum(map(len, samples.values())) * len(experiment.arms)
    with reporter.task(f"seed {seed}  evaluation", total) as task:
        for arm in experiment.arms:
            began = time.monotonic()
            tested.append(evaluate_arm(arm, experiment, samples, folder, task.step))
            rows = tested[-1].predictions[["id", "condition", "draw"]]
            _write_timing(folder, f"{arm.name} evaluation", time.monotonic() - began, len(rows.drop_duplicates()))
    write_tested(folder, tested, experiment, seed)


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


def write_tested(folder: Path, tested: Sequence[Tested], experiment: Experiment, seed: int) -> None:
    """representations.safetensors, predictions.parquet, coverage.csv where there are prediction sets, SHA256SUMS and, last, results.csv."""
    truth = experiment.samples_kept(experiment.settings.evaluation.split)
    arrays = {key: array for part in tested for key, array in part.representations.items()}
    write_bytes(folder / "representations.safetensors", save_arrays({**arrays, "targets": np.ascontiguousarray(truth)}))
    frame = pd.concat([part.predictions for part in tested], ignore_index=True)
    write_with(folder / "predictions.parquet", lambda path: frame.to_parquet(path, index=False))
    coverage = pd.concat([part.coverage for part in tested], ignore_index=True)
    if len(coverage):
        write_csv(folder / "coverage.csv", coverage)
    table = pd.concat([part.table for part in tested], ignore_index=True)
    results = csv_bytes(table.assign(dataset=experiment.dataset.name, seed=seed)[COLUMNS])
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


def _write_history(folder: Path, arms: Sequence[Arm]) -> None:
    parts = []
    for arm in arms:
        history = recorded(folder / arm.name, "history")
        parts.append(pd.DataFrame(history).assign(method=arm.name))
    table = pd.concat(parts, ignore_index=True)
    known = ("loss/total", "loss/task", "loss/scd", "loss/cpd", "loss/rcd")
    losses = dict.fromkeys([*(c for c in known if c in table), *(str(c) for c in table if str(c).startswith("loss/"))])
    table = table[["method", "epoch", *losses, VALID, "lr"]].astype({"epoch": int})
    write_csv(folder / "history.csv", table)


def _write_timing(folder: Path, stage: str, seconds: float, samples: int) -> None:
    path = folder / "timings.csv"
    row = pd.DataFrame(
        [{"stage": stage, "seconds": round(seconds, 3), "samples_per_second": round(samples / seconds, 1)}]
    )
    with refusing(path, "damaged; delete it to go on"):
        before = read_csv(path) if path.is_file() else row.iloc[:0]
        table = pd.concat([before[before["stage"] != stage], row], ignore_index=True)
    write_csv(path, table)
