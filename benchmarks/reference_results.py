"""Whether a change of the code changes a number: results and predictions of one set of runs, made
by two versions.

    python benchmarks/reference_results.py make FOLDER [--data FILE] [--only NAME]   # with each
    version python benchmarks/reference_results.py compare BEFORE AFTER

The runs: the preset `synthetic` (five seeds); two modalities and a score; four modalities with
yes/no questions, some of them missing in the data; every method of a comparison with one seed; and,
where `--data` names Hazumi's file, one seed of `corrkd-plus` on it. `compare` fails where a number
of results.csv or predictions.parquet differs in a single bit. Numbers depend on the machine: both
have to be made on one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

KEYS = ["method", "seed", "condition", "draw"]
SMALL = ["--set", "data.synthetic={train: 120, valid: 60, test: 90}"]
SHORT = ["--set", "teacher.epochs=2", "--set", "student.epochs=3"]


def write_made_data(folder: Path) -> None:
    """Two files of random frames that say something of their labels."""
    rng = np.random.default_rng(0)
    count = 240
    signal = rng.normal(size=count)

    def modality(frames: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        x = rng.normal(size=(count, frames, width))
        x[:, :, 0] += signal[:, None]
        return x.astype(np.float32)

    common = {
        "split": np.repeat(["train", "valid", "test"], [120, 60, 60]),
        "person": np.array([f"p{i}" for i in rng.integers(0, 30, count)]),
    }
    two = {
        "language": modality(9, 6),
        "audio": modality(14, 4),
        "scores": signal + 0.3 * rng.normal(size=count),
    }
    np.savez(folder / "two.npz", **two, **common)
    four = {
        m: modality(frames, 5)
        for m, frames in (("language", 6), ("audio", 10), ("vision", 8), ("heart", 12))
    }
    four["heart_present"] = rng.uniform(size=(count, 12)) > 0.3
    answers = (signal[:, None] + rng.normal(size=(count, 3)) > 0).astype(np.int64)
    np.savez(folder / "four.npz", **four, labels=answers, **common)


def commands(folder: Path, data: str | None) -> dict[str, list[str]]:
    """The command line of each run by name."""
    runs = {
        "synthetic": ["run", "--preset", "synthetic"],
        "two": ["run", "--data", str(folder / "two.npz"), "--target", "score", *SHORT],
        "four": ["run", "--data", str(folder / "four.npz"), "--preset", "corrkd-plus", *SHORT],
        "compare": [
            *(
                "compare",
                "--preset",
                "synthetic",
                "--methods",
                "all,transm-original",
                "--seeds",
                "1",
                "--jobs",
                "2",
            ),
            *("--budget", "fixed", *SMALL, *SHORT),
        ],
    }
    if data is not None:
        runs["hazumi"] = ["run", "--data", data, "--preset", "corrkd-plus"]
    return runs


def make(folder: Path, data: str | None, only: str | None) -> None:
    """Run them all, each in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    write_made_data(folder)
    for name, command in commands(folder, data).items():
        if only in (None, name):
            subprocess.run(
                [sys.executable, "-m", "corrkd", *command, "--out", str(folder / name)], check=True
            )


def tables(run: Path, name: str) -> pd.DataFrame:
    """All files of that name in the seeds' folders below one another, wherever they lie."""
    frames = []
    for path in sorted(run.rglob(name)):
        seeds = [part for part in path.relative_to(run).parts if part.startswith("seed-")]
        if seeds and path.suffix == ".parquet":
            frames.append(pd.read_parquet(path).assign(seed=int(seeds[0].removeprefix("seed-"))))
        elif seeds:
            frames.append(pd.read_csv(path, dtype=str, keep_default_na=False))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def differences(before: Path, after: Path) -> list[str]:
    """What differs between two runs, a line each."""
    lines = []
    for name, more in (("results.csv", ["metric"]), ("predictions.parquet", ["id", "question"])):
        old, new = (tables(run, name) for run in (before, after))
        if old.empty or new.empty:
            lines.append(f"{before.name}, {name}: {len(old)} and {len(new)} rows")
            continue
        columns = [c for c in old if c not in ("dataset", "group")]
        old, new = (x[columns].sort_values([*KEYS, *more], ignore_index=True) for x in (old, new))
        if len(old) != len(new):
            lines.append(f"{before.name}, {name}: {len(old)} and {len(new)} rows")
        elif not old.equals(new):
            changed = ~((old == new) | (old.isna() & new.isna())).all(axis=1)
            lines.append(
                f"{before.name}, {name}: {changed.sum()} of {len(old)} rows differ, in "
                f"{old[changed]['method'].unique()}"
            )
    return lines


def main() -> int:
    """Make, or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sub = parser.add_subparsers(dest="what", required=True)
    making = sub.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("--data")
    making.add_argument("--only")
    comparing = sub.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.what == "make":
        make(options.folder.resolve(), options.data, options.only)
        return 0
    runs = [
        path.name
        for path in sorted(options.before.iterdir())
        if path.is_dir() and (options.after / path.name).is_dir()
    ]
    lines = [
        line for name in runs for line in differences(options.before / name, options.after / name)
    ]
    print("\n".join(lines) or f"equal to the last bit: {', '.join(runs)}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
