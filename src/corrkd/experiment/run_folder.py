"""The run folder while it is being written: who may write, and which settings and data it belongs to."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from corrkd.errors import CorrKDError
from corrkd.files import make_folder, write_text
from corrkd.settings import Settings, load_settings

SETTINGS = "settings.yaml"
RUN = "run.json"
RESULTS = "results.csv"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process writes a run at a time. The lock goes with the process, however it ends."""
    make_folder(folder)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CorrKDError(
                f"{folder}: another process is writing this run; wait for it or choose another folder"
            ) from None
        yield


def begin(folder: Path, settings: Settings, *, overwrite: bool) -> None:
    """Makes the folder a run of these settings.

    Raises:
        CorrKDError: where it already holds a run (unless `overwrite`) or other files.
    """
    if folder.exists() and not folder.is_dir():
        raise CorrKDError(f"{folder}: is a file; choose another folder")
    inside = {p.name for p in folder.iterdir()} - {".lock"} if folder.is_dir() else set()
    if inside and SETTINGS not in inside:
        raise CorrKDError(f"{folder}: holds other files and no run; choose another folder")
    if inside and not overwrite:
        raise CorrKDError(
            f"{folder}: holds a run already; go on with `corrkd resume {folder}`, or start anew with --overwrite"
        )
    if inside:
        empty(folder)
    write_text(folder / SETTINGS, settings.to_yaml())


def empty(folder: Path) -> None:
    """Removes what a run left; settings.yaml last, so that an interruption leaves a folder that is still known as a run."""
    for path in sorted(folder.iterdir(), key=lambda p: p.name == SETTINGS):
        if path.name == ".lock":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def settings_of(folder: Path) -> Settings:
    """The settings of a run. Raises CorrKDError where the folder holds none."""
    if not (folder / SETTINGS).is_file():
        raise CorrKDError(f"{folder}: not a run folder (no {SETTINGS})")
    return load_settings(folder / SETTINGS)


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes run.json; where there is one, the data must be the same.

    Raises:
        CorrKDError: where the run began with other data.
    """
    path = folder / RUN
    if path.is_file():
        try:
            before = json.loads(path.read_text("utf-8"))["dataset"]["sha256"]
        except (ValueError, KeyError, TypeError):
            raise CorrKDError(f"{path}: damaged; delete it to go on") from None
        if before != facts["dataset"]["sha256"]:
            raise CorrKDError(
                f"{folder}: the data has changed since the run began (SHA-256 was {before[:12]}...); start a new run"
            )
    write_text(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
