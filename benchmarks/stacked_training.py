"""Several seeds at once against one after the other: samples/s of all seeds together, on MOSI's
shapes.

    python benchmarks/stacked_training.py [--method corrkd] [--network cubemlp] [--runs 5]
    [--threads 1] \
        [--device cuda] [--precision tf32] [--compile] [--rounds 5]

A round is an epoch of each seed: of `corrkd.training.loop.train`, one seed after the other, and of
`train_together`, all in one pass, captured on a GPU; with --compile the latter compiled, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import (
    MOSI,
    Program,
    epoch_by_epoch,
    measure,
    mosi_experiment,
    speeds,
    times_as_fast,
)
from training_step import BATCH, make_fabric, wait_for

from corrkd.experiment.arm import resolve
from corrkd.experiment.processes import keep_freed_memory
from corrkd.experiment.settings import ArmSettings
from corrkd.experiment.stages import make_method
from corrkd.settings import TrainingSettings
from corrkd.training.fabric import Fabric
from corrkd.training.loop import teacher_outputs, train_run
from corrkd.training.run import TrainingRun
from corrkd.training.stacked import train_together


def make_runs(
    method: str, network: str, runs: int, device: str, precision: str, compiled: bool
) -> tuple[Callable[[], list[TrainingRun]], Fabric]:
    """What makes the trainings anew, and where they run."""
    keep_freed_memory()
    experiment = mosi_experiment(device=device, precision=precision)
    fabric = make_fabric(device, precision)
    samples = experiment.samples("train")
    arm = resolve(
        method, ArmSettings(network={"name": network} if network else {}), experiment.settings
    )
    teachers = None
    if arm.needs_teacher:
        teacher = resolve("teacher", ArmSettings(), experiment.settings)
        student = make_method(teacher, experiment, 0, samples).student.to(fabric.device)
        teachers = teacher_outputs(student, samples)

    def make() -> list[TrainingRun]:
        return [
            TrainingRun(
                method=make_method(arm, experiment, seed, samples, teachers),
                samples=samples,
                settings=TrainingSettings(epochs=100_000, batch_size=BATCH),
                validate=lambda network: 0.0,
                seed=seed,
                missing=experiment.settings.missing,
            )
            for seed in range(runs)
        ]

    return make, fabric


def make_alone(**options: Any) -> Program:
    """One seed after the other, an epoch each."""
    make, fabric = make_runs(**options)
    epochs = [
        epoch_by_epoch(lambda on_epoch, run=run: _train_alone(run, fabric, on_epoch))
        for run in make()
    ]

    def epoch() -> None:
        for each in epochs:
            each()
        wait_for(options["device"])

    return epoch


def _train_alone(run: TrainingRun, fabric: Fabric, on_epoch: Callable[[Any], None]) -> None:
    run.on_epoch = on_epoch
    train_run(run, fabric)


def make_together(**options: Any) -> Program:
    """All at once; on a GPU, their steps are captured."""
    make, fabric = make_runs(**options)

    def train(on_epoch: Callable[[Any], None]) -> None:
        runs = make()
        runs[-1].on_epoch = on_epoch
        train_together(runs, fabric=fabric, compiled=options["compiled"])

    return epoch_by_epoch(train)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="corrkd")
    parser.add_argument("--network", default="")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", dest="compiled")
    asked = parser.parse_args()
    names = ("method", "network", "runs", "device", "precision", "compiled")
    makers = {"one after the other": make_alone, "all at once": make_together}
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("stacked_training.py: no CUDA device here; leave --device out")
    seconds = measure(
        makers, {n: getattr(asked, n) for n in names}, threads=asked.threads, rounds=asked.rounds
    )
    samples = MOSI["train"] * asked.runs
    print(
        f"{asked.runs} x {asked.method} {asked.network}, {asked.device}, {asked.precision}, "
        f"{asked.threads} threads"
    )
    print(
        f"samples per second of all, median of {asked.rounds} epochs each in turn (lowest to "
        f"highest)"
    )
    for name, times in seconds.items():
        print(f"  {name:<20}{speeds(samples, times)}")
    print(f"  all at once: {times_as_fast(*seconds.values())}")


if __name__ == "__main__":
    main()
