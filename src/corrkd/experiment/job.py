"""One run of a comparison, in a process of its own: an arm trained with one seed on one dataset, then tested.

python -m corrkd.experiment.job FOLDER DATASET ARM SEED
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from corrkd.csv_files import read_csv
from corrkd.errors import CorrKDError
from corrkd.experiment.arm import TEACHER, Arm, resolve
from corrkd.experiment.budget import BudgetRule, choose_budget, read_budget, with_epochs
from corrkd.experiment.calibrate import swept_samples
from corrkd.experiment.compare_settings import DatasetPlan, read_plan
from corrkd.experiment.memory import keep_freed_memory
from corrkd.experiment.prepare import prepare
from corrkd.experiment.processes import end_with_parent, make_fabric
from corrkd.experiment.progress import Reporter, Task
from corrkd.experiment.seed import evaluate_arm, train_arms, write_tested
from corrkd.files import make_folder, open_no_link, write_text
from corrkd.networks.saved import load_network, recorded
from corrkd.parsing import json_text, refusing, with_digest

COST = "cost.json"
PROGRESS = "progress"


def run_job(plan: DatasetPlan, dataset: Path, arm: str, seed: int) -> None:
    """Trains and tests one arm in `dataset`/seed-N/<arm>; what is there already is not done again."""
    folder = dataset / f"seed-{seed}" / arm
    make_folder(folder)
    try:
        _train_and_test(plan, folder, arm, seed)
    finally:
        (folder / PROGRESS).unlink(missing_ok=True)


def _train_and_test(plan: DatasetPlan, folder: Path, arm: str, seed: int) -> None:
    settings = plan.settings.model_copy(update={"seeds": (seed,)})
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    experiment = prepare(settings, {arm: plan.methods[arm]}).at(seed)
    fabric = make_fabric(settings)
    reporter = FileReporter(folder / PROGRESS)
    resumed = any(folder.rglob(f"{arm}.ckpt"))
    teaching = any(resolve(name, changes, settings).method.needs_teacher for name, changes in plan.methods.items())

    def train(variant: Arm, target: Path, teaching: bool = False) -> None:
        taught_in = folder.parent / TEACHER
        train_arms(experiment, [variant], seed, target, fabric, reporter, taught_in=taught_in, teaching=teaching)

    planned = experiment.arms[0]
    train(with_epochs(planned, _epochs(plan, planned, folder, seed, train)), folder, teaching)
    if not (folder / COST).is_file():
        write_text(folder / COST, json_text(with_digest(_cost(folder, arm, fabric.device, resumed))))
    samples = swept_samples(experiment)
    with reporter.task("testing", sum(map(len, samples.values()))) as task:
        tested = evaluate_arm(experiment.arms[0], experiment, samples, folder, task.step)
    write_tested(folder, [tested], experiment, seed)


def _epochs(plan: DatasetPlan, arm: Arm, folder: Path, seed: int, train: Callable[[Arm, Path], None]) -> int:
    """For how many epochs an arm trains: as the plan says, or as chosen here with its first seed."""
    first = plan.settings.seeds[0]
    if read_budget(folder) is not None or (plan.chooses(arm.name) and seed == first):
        return choose_budget(arm, plan.budget or BudgetRule(), seed, folder, train).epochs
    if plan.chooses(arm.name):
        raise CorrKDError(f"no budget was chosen: the training with seed {first}, which chooses it, has failed")
    return plan.epochs.get(arm.name, arm.stage.epochs)


def _cost(folder: Path, arm: str, device: torch.device, resumed: bool) -> dict[str, float | None]:
    """What the training took. Of one that was stopped and resumed, seconds and memory are not known whole."""
    path = folder / "timings.csv"  # absent where a kill came between the model and its timing
    with refusing(path, "damaged; delete it to go on"):
        timings = read_csv(path).set_index("stage")["seconds"] if path.is_file() else pd.Series(dtype=float)
    saved = load_network(folder / arm)
    return {
        "parameters": sum(p.numel() for p in saved.network.parameters()),
        "epochs": len(recorded(folder / arm, "history")),
        "train_seconds": None if resumed or arm not in timings else float(timings[arm]),
        "peak_memory_bytes": None if resumed else _peak_memory(device),
    }


def _peak_memory(device: torch.device) -> int | None:
    """Most memory held so far: of the GPU that trained, else resident in this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        # Not getrusage: its figure begins with what the process that started this one held.
        status = Path("/proc/self/status").read_text("utf-8")
        return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), None)
    if sys.platform != "darwin":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class FileReporter(Reporter):
    """Progress as a line in a file, for the process that waits."""

    def __init__(self, path: Path) -> None:
        super().__init__(quiet=True)
        self._path = path

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        """A piece of work whose state the file holds."""
        yield _Line(self._path, title.split()[-1], total, done)


class _Line(Task):
    def __init__(self, path: Path, title: str, total: int, done: int) -> None:
        self._path, self._title, self._total, self._done = path, title, total, done
        self.step(0)

    def step(self, count: int = 1, note: str = "") -> None:
        self._done += count
        with open_no_link(self._path) as file:
            file.write(f"{self._title} {self._done}/{self._total}\n".encode())


def main(arguments: list[str]) -> int:
    """Runs the job that the arguments name; its last line on stderr is the reason where it fails."""
    out, dataset, arm, seed = Path(arguments[0]), arguments[1], arguments[2], int(arguments[3])
    end_with_parent()
    try:
        run_job(read_plan(out).datasets[dataset], out / dataset, arm, seed)
    except CorrKDError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except Exception as error:  # whatever a method does, the others go on
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
