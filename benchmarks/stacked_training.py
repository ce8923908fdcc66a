"""Several seeds at once against one after the other: samples/s of all seeds together, on MOSI's shapes.

    python benchmarks/stacked_training.py [--method corrkd] [--network cubemlp] [--runs 5] [--threads 1] [--device cuda] [--rounds 5]

A round is an epoch of each seed: of `corrkd.training.loop.train`, one seed after the other, and of `train_together`, all in one pass.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from side_by_side import MOSI, Program, measure, mosi_experiment, speeds, times_as_fast
from training_step import BATCH, make_fabric, wait_for

from corrkd.experiment.arm import resolve
from corrkd.experiment.processes import keep_freed_memory
from corrkd.experiment.settings import ArmSettings
from corrkd.experiment.stages import make_method
from corrkd.settings import TrainingSettings
from corrkd.training.loop import teacher_outputs, train_run
from corrkd.training.run import TrainingRun
from corrkd.training.stacked import train_together


def make_runs(
    method: str, network: str, runs: int, device: str, precision: str
) -> tuple[Callable[[], list[TrainingRun]], Callable[[], None], object]:
    """What makes the trainings of an epoch anew, and what waits for the device."""
    keep_freed_memory()
    experiment = mosi_experiment(device=device, precision=precision)
    fabric = make_fabric(device, precision)
    samples = experiment.samples("train")
    arm = resolve(method, ArmSettings(network={"name": network} if network else {}), experiment.settings)
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
                settings=TrainingSettings(epochs=1, batch_size=BATCH),
                validate=lambda network: 0.0,
                seed=seed,
                missing=experiment.settings.missing,
            )
            for seed in range(runs)
        ]

    return make, lambda: wait_for(device), fabric


def make_alone(**options: object) -> Program:
    """One seed after the other."""
    make, wait, fabric = make_runs(**options)  # type: ignore[arg-type]

    def epoch() -> None:
        for run in make():
            train_run(run, fabric)  # type: ignore[arg-type]
        wait()

    return epoch


def make_together(**options: object) -> Program:
    """All at once."""
    make, wait, fabric = make_runs(**options)  # type: ignore[arg-type]

    def epoch() -> None:
        train_together(make(), fabric=fabric)  # type: ignore[arg-type]
        wait()

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="corrkd")
    parser.add_argument("--network", default="")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    names = ("method", "network", "runs", "device", "precision")
    makers = {"one after the other": make_alone, "all at once": make_together}
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("stacked_training.py: no CUDA device here; leave --device out")
    seconds = measure(makers, {n: getattr(asked, n) for n in names}, threads=asked.threads, rounds=asked.rounds)
    samples = MOSI["train"] * asked.runs
    print(f"{asked.runs} x {asked.method} {asked.network}, {asked.device}, {asked.precision}, {asked.threads} threads")
    print(f"samples per second of all, median of {asked.rounds} epochs each in turn (lowest to highest)")
    for name, times in seconds.items():
        print(f"  {name:<20}{speeds(samples, times)}")
    print(f"  all at once: {times_as_fast(*seconds.values())}")


if __name__ == "__main__":
    main()
