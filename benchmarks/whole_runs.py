"""Whole runs: how long until the report of a table stands.

    python benchmarks/whole_runs.py [--device cuda] [--seeds 5] [--precision tf32] [--compile]
    [--hazumi hazumi.npz]

`paper-mosi`, teacher, student and control, every seed, all conditions and the report, on samples of
MOSI's shapes: twice, so that the second finds compiled code of the first. With --hazumi also
`corrkd-plus` on that file, twenty seeds with eight teachers out of fold each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from side_by_side import MOSI

import corrkd


def seconds(settings: corrkd.Settings) -> float:
    """How long a run takes."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        corrkd.run(settings, Path(folder) / "run", progress=True)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--hazumi", type=Path)
    asked = parser.parse_args()
    common: dict[str, Any] = {
        "device": asked.device,
        "precision": asked.precision,
        "compile": asked.compile,
    }
    stage = {} if asked.epochs is None else {"epochs": asked.epochs}
    mosi = corrkd.load_settings(
        preset="paper-mosi",
        data={"path": "synthetic", "synthetic": MOSI, "target": "classes"},
        teacher=stage,
        student=stage,
        seeds=list(range(asked.seeds)),
        **common,
    )
    print(f"{asked.device}, {asked.precision}{', compiled' if asked.compile else ''}")
    for which in ("first", "again"):
        print(f"paper-mosi, {asked.seeds} seeds, {which}: {seconds(mosi):.1f} s", flush=True)
    if asked.hazumi is not None:
        hazumi = corrkd.load_settings(
            preset="corrkd-plus", data={"path": str(asked.hazumi)}, seeds=list(range(20)), **common
        )
        print(f"corrkd-plus on {asked.hazumi.name}, 20 seeds: {seconds(hazumi):.1f} s", flush=True)


if __name__ == "__main__":
    main()
