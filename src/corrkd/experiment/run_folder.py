"""The run folder while it is being written: who may write, and which settings and data it belongs to."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from corrkd.errors import CorrKDError
from corrkd.files import exclusive, write_text
from corrkd.parsing import (
    check_digest,
    check_yaml_digest,
    json_text,
    read_json,
    refusing,
    with_digest,
    yaml_with_digest,
)
from corrkd.settings import Settings, load_settings

SETTINGS = "settings.yaml"
RUN = "run.json"
RESULTS = "results.csv"
# All that a run and its report write; the first two say what a folder is, so they go last.
OURS = (SETTINGS, RUN, RESULTS, "report.html", "report.md", "figures", "tables", "seed-*")


def locked(folder: Path) -> AbstractContextManager[None]:
    """Only one process writes a run at a time. The lock goes with the process, however it ends."""
    return exclusive(folder, f"{folder}: another process is writing this run; wait for it or choose another folder")


def check(folder: Path, *, overwrite: bool) -> None:
    """Raises CorrKDError where a run cannot begin in the folder: it holds a run (unless `overwrite`) or other files."""
    if folder.exists() and not folder.is_dir():
        raise CorrKDError(f"{folder}: is a file; choose another folder")
    inside = [p for p in folder.iterdir() if p.name != ".lock" and p.suffix != ".part"] if folder.is_dir() else []
    known = not inside or (folder / RUN).is_file()
    if not known and any(not any(p.match(ours) for ours in OURS) for p in inside):
        raise CorrKDError(f"{folder}: holds other files and no run; choose another folder")
    if inside and not overwrite:
        raise CorrKDError(
            f"{folder}: holds a run already; go on with `corrkd resume {folder}`, or start anew with --overwrite"
        )


def begin(folder: Path, settings: Settings, *, overwrite: bool) -> None:
    """Makes the folder a run of these settings. Raises CorrKDError as `check` does."""
    check(folder, overwrite=overwrite)
    try:
        empty(folder)
    except OSError as error:
        raise CorrKDError(f"{error.filename}: cannot be removed: {error.strerror}") from None
    write_settings(folder, with_whole_paths(settings))


def write_settings(folder: Path, settings: Settings) -> None:
    """Writes settings.yaml, with its digest in the first line."""
    write_text(folder / SETTINGS, yaml_with_digest(settings.to_yaml()))


def with_whole_paths(settings: Settings) -> Settings:
    """The settings with the data's paths from the root on, so that a run resumes from any folder."""
    data = settings.data
    whole = {name: Path(path).resolve() for name in ("glove", "folds") if (path := getattr(data, name)) is not None}
    path = str(Path(data.path).resolve()) if Path(data.path).exists() else data.path
    return settings.model_copy(update={"data": data.model_copy(update={"path": path, **whole})})


def empty(folder: Path) -> None:
    """Removes what a run wrote, and nothing else."""
    for pattern in reversed(OURS):
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def settings_of(folder: Path, *, unchanged: bool = False) -> Settings:
    """The settings of a run. Raises CorrKDError where the folder holds none; `unchanged`: also where they were edited since."""
    if not (folder / SETTINGS).is_file():
        raise CorrKDError(f"{folder}: not a run folder (no {SETTINGS})")
    if unchanged:
        check_yaml_digest(
            folder / SETTINGS, "put it back to go on, or begin another run with `corrkd run --settings` and this file"
        )
    return load_settings(folder / SETTINGS)


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes run.json; where there is one, it must be as it was written, and data and version the same.

    Raises:
        CorrKDError: where the run began with other data, or with another version, or the file was changed.
    """
    path = folder / RUN
    if path.is_file():
        facts_before = read_json(path, "delete it to go on")
        with refusing(path, "damaged; delete it to go on"):
            before, version = str(facts_before["dataset"]["sha256"]), str(facts_before["corrkd"])
        if version != facts["corrkd"]:
            raise CorrKDError(
                f"{folder}: was begun with corrkd {version}, and this is {facts['corrkd']}, whose numbers may differ; choose another "
                "folder, or go on with that version"
            )
        if before != facts["dataset"]["sha256"]:
            raise CorrKDError(
                f"{folder}: the data has changed since the run began (SHA-256 was {before[:12]}...); start a new run"
            )
        check_digest(facts_before, path, "delete it to go on")
    write_text(path, json_text(with_digest(facts)))
