"""Which `threads` and `jobs` train three seeds soonest: the built-in dataset at the sizes of `make
run`, a few epochs of each network.

python benchmarks/threads_and_jobs.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

import corrkd
from corrkd.experiment.settings import load_settings

EPOCHS = 4


def seconds_of(threads: int, jobs: int) -> float:
    """Seconds until teacher, student and control of three seeds are trained, from start to end."""
    short = {"epochs": EPOCHS}
    settings = load_settings(
        preset="synthetic",
        teacher=short,
        student=short,
        seeds=[0, 1, 2],
        threads=threads,
        jobs=jobs,
        device="cpu",
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        corrkd.run(settings, Path(folder) / "run", evaluate=False)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    cores = os.cpu_count() or 1
    choices = sorted({(1, 1), (cores, 1), (1, min(cores, 3)), (1, 3)})
    seconds: dict[tuple[int, int], list[float]] = {choice: [] for choice in choices}
    for _, choice in itertools.product(range(asked.rounds), choices):
        seconds[choice].append(seconds_of(*choice))
    print(f"three seeds of teacher, student and control, {EPOCHS} epochs each, {cores} cores")
    print(f"seconds from start to end, median of {asked.rounds} in turn (lowest to highest)")
    for (threads, jobs), values in seconds.items():
        print(
            f"  threads {threads}, jobs {jobs}  {statistics.median(values):6.1f} "
            f"({min(values):.1f} to {max(values):.1f})"
        )


if __name__ == "__main__":
    main()
