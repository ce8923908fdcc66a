"""The folder of a plan: its layout, its lock, and the settings and data to which it belongs.

OUT/: plan.yaml, results.csv, failures.csv, report.html, report.md, tables/, figures/, reported.csv
OUT/DATASET/: run.json, settings.yaml, data.safetensors (if the dataset was in memory), results.csv,
    costs.csv, groups.csv
OUT/DATASET/seed-N/ARM/: ARM.safetensors, ARM.json, history.csv, predictions.parquet, results.csv
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from corrkd.errors import CorrKDError
from corrkd.experiment.settings import Settings, load_settings
from corrkd.files import FAILURES, LOCK, PART, PLAN, REPORTED, RUN, exclusive, write_text
from corrkd.parsing import (
    check_digest,
    check_yaml_digest,
    json_text,
    read_json,
    refusing,
    with_digest,
    yaml_with_digest,
)
from corrkd.report.run_folder import Card

SETTINGS, RESULTS, COSTS, GROUPS = "settings.yaml", "results.csv", "costs.csv", "groups.csv"
DATA = "data.safetensors"
# Files in a dataset's folder and next to the datasets. The file that identifies a folder is first,
# so that it is removed last.
IN_DATASET = (SETTINGS, RUN, DATA, RESULTS, COSTS, GROUPS, "seed-*")
BESIDE_DATASETS = (
    PLAN,
    RESULTS,
    FAILURES,
    REPORTED,
    "report.html",
    "report.md",
    "figures",
    "tables",
)
OF_VERSION_01 = ("compare.yaml", RUN)


def locked(out: Path) -> AbstractContextManager[None]:
    """Lock a folder, so that only one process writes in it at a time. The lock is released when the
    process ends.
    """
    return exclusive(
        out, f"{out}: another process is writing this run; wait for it or choose another folder"
    )


def check(out: Path, *, overwrite: bool, continues: bool) -> None:
    """Raise CorrKDError if a plan cannot be carried out in a folder.

    Args:
        out: the folder; it need not exist.
        overwrite: whether an existing plan may be replaced.
        continues: whether an existing plan may be continued.
    """
    if out.exists() and not out.is_dir():
        raise CorrKDError(f"{out}: is a file; choose another folder")
    inside = (
        [p.name for p in out.iterdir() if not p.name.endswith((LOCK, PART))] if out.is_dir() else []
    )
    if not inside:
        return
    if PLAN not in inside:
        if any(name in inside for name in OF_VERSION_01):
            raise CorrKDError(
                f"{out}: contains a run of corrkd 0.1, which this version cannot continue; choose "
                f"another folder"
            )
        raise CorrKDError(f"{out}: contains other files and no run; choose another folder")
    if not (overwrite or continues):
        raise CorrKDError(
            f"{out}: already contains a run; continue it with `corrkd resume {out}`, or replace it "
            f"with --overwrite"
        )


def empty(out: Path, datasets: Iterable[str]) -> None:
    """Remove only the files that a plan with these datasets wrote. Raises CorrKDError if a file
    cannot be removed.
    """
    datasets = list(datasets)
    refuse_links(out, datasets)
    try:
        for folder in (out / name for name in datasets):
            if folder.is_dir():
                _remove(folder, IN_DATASET)
                if not any(folder.iterdir()):
                    folder.rmdir()
        _remove(out, BESIDE_DATASETS)
    except OSError as error:
        raise CorrKDError(f"{error.filename}: cannot be removed: {error.strerror}") from None


def _remove(folder: Path, patterns: tuple[str, ...]) -> None:
    for pattern in reversed(patterns):
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def refuse_links(out: Path, datasets: Iterable[str]) -> None:
    """Raise CorrKDError if a dataset's folder is a link, so that nothing outside the plan's folder
    is written or removed.
    """
    for name in datasets:
        if (out / name).is_symlink():
            raise CorrKDError(
                f"{out / name}: is a link to another folder; remove the link, or put the folder "
                f"itself there"
            )


def write_settings(folder: Path, settings: Settings) -> None:
    """Write settings.yaml, with its digest in the first line."""
    write_text(folder / SETTINGS, yaml_with_digest(settings.to_yaml()))


def with_whole_paths(settings: Settings) -> Settings:
    """Return the settings with absolute paths, so that a run can be resumed from any working
    directory.
    """
    data = settings.data
    absolute = {name: value.resolve() for name, value in data if isinstance(value, Path)}
    path = str(Path(data.path).resolve()) if Path(data.path).exists() else data.path
    outputs = settings.teacher.outputs and settings.teacher.outputs.resolve()
    return settings.model_copy(
        update={
            "data": data.model_copy(update={"path": path, **absolute}),
            "teacher": settings.teacher.model_copy(update={"outputs": outputs}),
        }
    )


def settings_of(folder: Path, *, unchanged: bool = False) -> Settings:
    """Return the settings in a dataset's folder. Raises CorrKDError if there are none or, with
    `unchanged`, if they were edited.
    """
    if not (folder / SETTINGS).is_file():
        raise CorrKDError(f"{folder}: not a run folder (no {SETTINGS})")
    if unchanged:
        check_yaml_digest(
            folder / SETTINGS,
            "put it back to go on, or begin another run with `corrkd run --settings` and this file",
        )
    return load_settings(folder / SETTINGS)


def write_card(folder: Path, card: Card) -> None:
    """Write run.json, after checking that an existing one has the same data and version.

    Raises:
        CorrKDError: if the run was started with other data, other teacher outputs or another
            version, or the existing file was edited.
    """
    path = folder / RUN
    if path.is_file():
        tree = read_json(path, "delete it to go on")
        with refusing(path, "damaged; delete it to go on"):
            sha256, version = str(tree["dataset"]["sha256"]), str(tree["corrkd"])
            taught_by = str(tree.get("teacher_outputs", ""))
        if version != card.corrkd:
            raise CorrKDError(
                f"{folder}: was begun with corrkd {version}, and this is {card.corrkd}, whose "
                "numbers may differ; choose another folder, or continue with that version"
            )
        if sha256 != card.dataset.sha256:
            raise CorrKDError(
                f"{folder}: the data has changed since the run began (SHA-256 was "
                f"{sha256[:12]}...); start a new run"
            )
        if taught_by != card.teacher_outputs:
            raise CorrKDError(
                f"{folder}: the file of teacher.outputs has changed since the run began (SHA-256 "
                f"was {taught_by[:12]}...); start a new run"
            )
        check_digest(tree, path, "delete it to go on")
    write_text(path, json_text(with_digest(card.model_dump(mode="json"))))
