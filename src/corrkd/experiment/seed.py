"""One seed of an experiment: teacher, student and control in its folder, each once, then their evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from safetensors.numpy import save as save_arrays
from torch.utils.tensorboard import SummaryWriter

from corrkd._version import __version__
from corrkd.data.batches import Samples
from corrkd.errors import CorrKDError
from corrkd.evaluation.judge import tabulate
from corrkd.evaluation.sweep import Result, mean_f1, mean_missing_f1, sweep
from corrkd.experiment.prepare import SELECTION, Experiment
from corrkd.experiment.progress import Reporter, Task
from corrkd.files import make_folder, write_bytes, write_with
from corrkd.methods.base import Method, TeacherOutput
from corrkd.methods.corrkd import CorrKD
from corrkd.methods.task import TaskOnly
from corrkd.missing.conditions import COMPLETE, condition
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.networks.saved import SavedNetwork, build_network, load_network, save_network
from corrkd.settings import StageSettings
from corrkd.training.distributed import gather
from corrkd.training.loop import (
    VALID,
    Record,
    balanced_class_weights,
    derived_seed,
    teacher_outputs,
    train,
)

ROLES = ("teacher", "student", "control")


def train_seed(experiment: Experiment, seed: int, folder: Path, fabric: Fabric, reporter: Reporter) -> None:
    """Trains what is not there yet: the teacher on complete samples, then student and control under MRM."""
    make_folder(folder)
    missing_roles = [role for role in ROLES if not (folder / f"{role}.json").is_file()]
    if missing_roles:
        _train_roles(missing_roles, experiment, seed, folder, fabric, reporter)
    if fabric.is_global_zero:
        for role in ROLES:  # of a run that was killed between the model and this line
            (folder / f"{role}.ckpt").unlink(missing_ok=True)
        if not (folder / "history.csv").is_file():
            _write_history(folder)


def _train_roles(
    roles: Sequence[str], experiment: Experiment, seed: int, folder: Path, fabric: Fabric, reporter: Reporter
) -> None:
    train_samples, valid = experiment.samples("train"), experiment.samples("valid")
    outputs: TeacherOutput | None = None
    for role in roles:
        if role == "student":
            teacher = load_network(folder / "teacher").network.to(fabric.device, experiment.dtype)
            outputs = teacher_outputs(teacher, train_samples)
        _train_role(
            role,
            experiment,
            seed,
            folder,
            fabric,
            train_samples,
            valid,
            outputs if role == "student" else None,
            reporter,
        )


def _train_role(
    role: str,
    experiment: Experiment,
    seed: int,
    folder: Path,
    fabric: Fabric,
    samples: Samples,
    valid: Samples,
    teacher: TeacherOutput | None,
    reporter: Reporter,
) -> None:
    settings = experiment.settings
    stage: StageSettings = settings.teacher if role == "teacher" else settings.student
    method = make_method(role, experiment, seed, samples, stage)
    validate = _validation(role, experiment, valid)
    checkpoint = folder / f"{role}.ckpt"
    began = time.monotonic()
    with reporter.task(f"seed {seed}  {role}", stage.epochs) as task:
        writer = _Watch(folder / "tfevents" / role, task) if fabric.is_global_zero else None
        trained = train(
            method,
            samples,
            settings=stage,
            validate=validate,
            seed=seed,
            fabric=fabric,
            missing=None if role == "teacher" else settings.missing,
            teacher=teacher,
            checkpoint=checkpoint,
            on_epoch=writer,
        )
        if writer:
            writer.close(trained.history)
    method.network.load_state_dict(trained.state)
    if fabric.is_global_zero:
        about = {
            "role": role,
            "seed": seed,
            "epoch": trained.epoch,
            VALID: trained.score,
            "selection": SELECTION[role],
            "data": {"name": experiment.dataset.name, "sha256": experiment.dataset.sha256},
            "versions": {"corrkd": __version__, "torch": torch.__version__},
            "history": trained.history,
        }
        saved = SavedNetwork(
            network=method.network.cpu().float(),
            normalisation=experiment.normalisation,
            target=experiment.target,
            frames=experiment.frames,
            about=about,
        )
        save_network(folder / role, saved)
        _write_timing(folder, role, time.monotonic() - began, len(trained.history) * len(samples))
    fabric.barrier()


def make_method(role: str, experiment: Experiment, seed: int, samples: Samples, stage: StageSettings) -> Method:
    """The method of a role. Student and control begin with the same parameters; the teacher's are its own."""
    settings = experiment.settings
    weights = None
    if stage.class_weights == "balanced" and experiment.target.kind != "score":
        weights = balanced_class_weights(samples).to(experiment.device, experiment.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "init", "teacher" if role == "teacher" else "student"))
        network = build_network(experiment.target, samples.widths, experiment.frames, settings.network)
        if settings.network.fill == "mean":
            network.set_fill(samples.mean_frames())
        method: Method
        if role == "student":
            method = CorrKD(
                network, experiment.target, settings.student.distillation, class_weights=weights, gather=gather
            )
        else:
            method = TaskOnly(network, experiment.target, class_weights=weights, gather=gather)
    return method.to(experiment.dtype)


def _validation(role: str, experiment: Experiment, valid: Samples) -> Callable[[CorrKDNetwork], float]:
    size = experiment.settings.evaluation.batch_size
    if role == "teacher":
        complete = [condition(COMPLETE, experiment.dataset.modalities)]
        return lambda network: mean_f1(network, valid, complete, batch_size=size)
    return lambda network: mean_missing_f1(network, valid, batch_size=size)


def evaluate_seed(experiment: Experiment, seed: int, folder: Path, reporter: Reporter) -> None:
    """Tests the three networks under every condition and writes what a report needs; results.csv last."""
    if (folder / "results.csv").is_file():
        return
    samples = experiment.samples(experiment.settings.evaluation.split)
    truth = samples.targets.cpu().numpy()
    conditions = experiment.conditions()
    kept = tuple(dict.fromkeys((COMPLETE, experiment.projection())))
    tables, predictions, arrays = [], [], {}
    with reporter.task(f"seed {seed}  evaluation", len(samples) * len(ROLES)) as task:
        for role in ROLES:
            began = time.monotonic()
            network = load_network(folder / role).network.to(experiment.device, experiment.dtype)
            results = sweep(
                network,
                samples,
                conditions,
                mask_seed=experiment.settings.evaluation.mask_seed,
                batch_size=experiment.settings.evaluation.batch_size,
                keep_representations=kept,
                on_batch=task.step,
            )
            table = tabulate(results, experiment.target, truth, samples.modalities)
            tables.append(table.assign(method=role))
            predictions += [_predictions(role, result, samples, truth) for result in results]
            arrays.update(
                {f"{role}/{r.condition.name}": r.representation for r in results if r.representation is not None}
            )
            _write_timing(folder, f"{role} evaluation", time.monotonic() - began, len(samples) * len(results))
    arrays["targets"] = truth
    write_bytes(folder / "representations.safetensors", save_arrays(arrays))
    frame = pd.concat(predictions, ignore_index=True)
    write_with(folder / "predictions.parquet", lambda path: frame.to_parquet(path, index=False))
    results_table = pd.concat(tables, ignore_index=True).assign(dataset=experiment.dataset.name, seed=seed)
    write_table(folder / "results.csv", results_table)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """results.csv: tidy, in the columns' agreed order, with all digits of a float64."""
    columns = ["dataset", "method", "seed", "condition", "draw", "metric", "value"]
    write_with(path, lambda part: table[columns].to_csv(part, index=False))


def read_table(path: Path) -> pd.DataFrame:
    """What `write_table` wrote, to the last bit; seeds as text. Raises CorrKDError where it is damaged."""
    try:
        # As text first: a modality may be called "NA", and pandas' own reading of numbers is not exact everywhere.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return table.assign(draw=table["draw"].astype(int), value=[float(text or "nan") for text in table["value"]])
    except (ValueError, KeyError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorrKDError(f"{path}: damaged ({reason}); delete it to evaluate again") from None


def _predictions(
    role: str, result: Result, samples: Samples, truth: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> pd.DataFrame:
    ids, target, response = samples.ids[result.rows], truth[result.rows], result.response
    kind, questions = samples.target.kind, samples.target.questions
    about = {"method": role, "condition": result.condition.name, "draw": result.draw}
    if kind == "score":
        return pd.DataFrame({**about, "id": ids, "question": "", "target": target, "prediction": response[:, 0]})
    if kind == "classes":
        target, response, questions = target[:, None], response[:, None, :], ("",)
    rows, asked, classes = response.shape
    flat = response.reshape(rows * asked, classes)
    return pd.DataFrame(
        {
            **about,
            "id": np.repeat(ids, asked),
            "question": np.tile(np.array(questions), rows),
            "target": target.reshape(-1),
            "prediction": flat.argmax(1),
            **{f"p_{k}": flat[:, k] for k in range(classes)},
        }
    )


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


def _write_history(folder: Path) -> None:
    parts = []
    for role in ROLES:
        history = load_network(folder / role).about["history"]
        parts.append(pd.DataFrame(history).assign(method=role))
    table = pd.concat(parts, ignore_index=True)
    known = ("loss/total", "loss/task", "loss/scd", "loss/cpd", "loss/rcd")
    losses = dict.fromkeys([*(c for c in known if c in table), *(str(c) for c in table if str(c).startswith("loss/"))])
    table = table[["method", "epoch", *losses, VALID, "lr"]].astype({"epoch": int})
    write_with(folder / "history.csv", lambda part: table.to_csv(part, index=False))


def _write_timing(folder: Path, stage: str, seconds: float, samples: int) -> None:
    path = folder / "timings.csv"
    row = pd.DataFrame(
        [{"stage": stage, "seconds": round(seconds, 3), "samples_per_second": round(samples / seconds, 1)}]
    )
    before = pd.read_csv(path) if path.is_file() else row.iloc[:0]
    table = pd.concat([before[before["stage"] != stage], row], ignore_index=True)
    write_with(path, lambda part: table.to_csv(part, index=False))
