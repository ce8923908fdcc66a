"""Writing files so that a reader finds the old one or the new one, never half of either."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from corrkd.errors import CorrKDError

PLAN, FAILURES = "compare.yaml", "failures.csv"  # of a comparison's folder, which one room writes and another reads
WRITING = ".writing-"  # begins the name of the folder that `replacing_all` leaves where it is killed


def check_new(path: Path, *, overwrite: bool) -> None:
    """Raises CorrKDError where a file to write is there already and is not to be replaced, or is a folder."""
    if path.is_dir():
        raise CorrKDError(f"{path}: is a folder; name a file")
    if path.exists() and not overwrite:
        raise CorrKDError(f"{path}: is there already; choose another file, or replace it with --overwrite")


@contextmanager
def replacing(path: Path, *, aside: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends well and vanishes when it does not.

    Args:
        path: the file.
        aside: a folder on the same disk for the temporary file, from which somebody removes what a killed process leaves.

    Raises:
        CorrKDError: where the disk is full or the folder cannot be written, in one line.
    """
    part = (aside or path.parent) / f".{path.name}.{os.getpid()}.part"
    try:
        make_folder(path.parent)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise CorrKDError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # gone, or its folder is none
            part.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, as UTF-8."""
    write_bytes(path, text.encode())


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Lets a library write to a path of its own, whole or not at all."""
    with replacing(path) as part:
        write(part)


@contextmanager
def replacing_all(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A temporary folder, whose files take their places in `folder` when the block ends well, and vanish when it does not.

    Args:
        folder: new or not; other files in it stay.
        names: the files, in the order in which they are moved where the folder is there: last the one by which a reader knows the others.

    Raises:
        CorrKDError: where the disk is full or the folder cannot be written, in one line.
    """
    there = folder.is_dir()
    parent = folder if there else folder.parent
    make_folder(parent)
    try:
        with TemporaryDirectory(prefix=WRITING, dir=parent, ignore_cleanup_errors=True) as private:  # on the same disk
            aside = Path(private) / "new"  # with the permissions of a usual folder
            make_folder(aside)
            yield aside
            if there:
                for name in names:
                    os.replace(aside / name, folder / name)
            else:
                os.rename(aside, folder)
    except OSError as error:
        raise CorrKDError(f"{folder}: cannot be written: {error.strerror or error}") from None


@contextmanager
def exclusive(folder: Path, busy: str) -> Iterator[None]:
    """Only one process at a time is inside for a folder, which is made. The lock goes with the process, however it ends.

    Raises:
        CorrKDError: `busy`, where another process is inside; or the folder cannot be written or locked.
    """
    import fcntl  # not on every system, and needed for this alone

    make_folder(folder)
    try:
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise CorrKDError(f"{folder}: cannot be written: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorrKDError(busy) from None
        except OSError as error:
            raise CorrKDError(f"{folder}: cannot be locked: {error.strerror or error}") from None
        yield


def remove_parts(folder: Path) -> None:
    """Removes what processes that were killed left half-written in a folder. For the one process that writes there."""
    for part in folder.rglob(".*.part"):
        with suppress(OSError):
            part.unlink()


def make_folder(path: Path) -> None:
    """Makes a folder and its parents. Raises CorrKDError where a parent is a file or may not be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorrKDError(f"{path}: the folder cannot be made: {error.strerror or error}") from None
