"""Which names files may have, and writing them so that a reader finds the old one or the new one,
never half of either.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from corrkd.errors import CorrKDError

# Of a plan's folder, which one room writes and another reads.
PLAN, FAILURES, REPORTED, RUN = "plan.yaml", "failures.csv", "reported.csv", "run.json"
PART, LOCK = ".part", ".lock"  # end the names of a file in progress, and of what locks it
WRITING = ".writing-"  # begins the name of a folder in progress
# Of a model by itself, as on the hub and in a zoo.
WEIGHTS, CARD, README = "model.safetensors", "config.json", "README.md"
# bytes: what is put before and after a name still fits into the 255 that file systems allow
LONGEST_NAME = 100
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_DEVICES = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE
)  # of Windows, with any ending


def name_fault(name: str) -> str | None:
    """Return why a name is not fit to be a file's on every system; None where it is.

    The one place where this is decided. A name that somebody chooses (dataset, method) and that is
    not fit is refused, by `check_name`, so that the folder is called what its maker calls it. A
    name that data bring is mapped to a fit one, by `file_names`: whoever has the data did not
    choose it, and cannot change it.
    """
    if not name:
        return "is empty"
    if len(name.encode(errors="surrogatepass")) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} bytes"
    letters = "".join("a" if character.isalpha() else character for character in name)
    if not _NAME.fullmatch(letters) or unicodedata.normalize("NFC", name) != name:
        return "must be letters, digits, ., - and _, and begin with a letter, a digit or _"
    if name.endswith("."):
        return "must not end in a dot"
    if _DEVICES.fullmatch(name):
        return "is a device's on Windows"
    return None


def leads_elsewhere(name: str) -> bool:
    """Return whether a name, as the last part of a path that is read, could lead out of its folder.

    Less is asked than of a file that is written: other people's files have names as
    "-3g5yACwYnA_1".
    """
    return name in ("", ".", "..") or bool(re.search(r"[/\\\0]", name))


def check_names(names: Iterable[str], what: str) -> None:
    """Raise CorrKDError where a name that somebody chose is not fit to be a file's, or two are one
    where case does not count.

    Args:
        names: of files or folders side by side.
        what: opens the error, as "comparison: dataset".
    """
    taken: dict[str, str] = {}
    for name in names:
        fault = name_fault(name)
        if fault is not None:
            raise CorrKDError(f"{what} {name!r}: a name of a folder, which {fault}; choose another")
        other = taken.setdefault(name.casefold(), name)
        if other != name:
            raise CorrKDError(
                f"{what}s {other!r} and {name!r} are one folder where case does not count; "
                f"rename one"
            )


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Return a file name for each name that data bring: the name itself where it is fit and no
    other differs in case alone.

    Any other becomes what is legible of it, a + and the start of its SHA-256. No fit name holds a
    +, so that two names never share a file.
    """
    names = list(dict.fromkeys(names))
    counts = Counter(name.casefold() for name in names)
    return {
        n: n if name_fault(n) is None and counts[n.casefold()] == 1 else _coded(n) for n in names
    }


def _coded(name: str) -> str:
    legible = re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-")
    return f"{legible}+{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:16]}"


def check_new(path: Path, *, overwrite: bool) -> None:
    """Raises CorrKDError where a file to write is there already and is not to be replaced, or is a
    folder.

    What killed processes left half-written of it goes.
    """
    remove_parts(path.parent, path.name)
    if path.is_dir():
        raise CorrKDError(f"{path}: is a folder; name a file")
    if path.exists() and not overwrite:
        raise CorrKDError(
            f"{path}: already exists; choose another file, or replace it with --overwrite"
        )


@contextmanager
def replacing(path: Path, *, aside: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends well and vanishes
    when it does not.

    Args:
        path: the file.
        aside: a folder on the same disk for the temporary file, from which somebody removes what a
            killed process leaves.

    Raises:
        CorrKDError: where the disk is full or the folder cannot be written, in one line.
    """
    try:
        make_folder(path.parent)
        with _new_name(aside or path.parent, f".{path.name}.", PART) as temporary:
            try:
                open_no_link(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL).close()
                yield temporary
                with open_no_link(temporary, os.O_RDWR) as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)  # closed: Windows moves no open file
            finally:
                with suppress(OSError):  # it has taken its place, or was never made
                    temporary.unlink()
    except OSError as error:
        raise CorrKDError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def _new_name(folder: Path, prefix: str, suffix: str = "") -> Iterator[Path]:
    """A new name for a temporary file or folder, locked by a file beside it for as long as its
    writer lives.
    """
    while True:
        stem = f"{prefix}{secrets.token_hex(4)}"
        lock = _lock(folder / f"{stem}{LOCK}")
        if _taken(lock):
            break
    try:
        yield folder / f"{stem}{suffix}"
    finally:
        _drop(lock)


def _lock(path: Path) -> FileLock:
    return FileLock(path, thread_local=False)


def _taken(lock: FileLock) -> bool:
    """Take a lock, which goes with this process. False where another process has it, or has just
    removed its file.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    if Path(lock.lock_file).exists():
        return True
    lock.release()
    return False


def _drop(lock: FileLock) -> None:
    """Release a lock and remove its file."""
    lock.release()
    with suppress(OSError):  # another process has just opened it, and removes it
        os.unlink(lock.lock_file)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_no_link(path: Path, flags: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC) -> IO[bytes]:
    """Open a file to write, never through a symbolic link, which may lead out of the folder.

    Raises:
        OSError: where the path is a link, or cannot be opened.
    """
    mode = "r+b" if flags & os.O_RDWR else "wb"
    # Each of the two exists on one system only; Windows would translate line ends without the last.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), mode)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, as UTF-8."""
    write_bytes(path, text.encode())


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Lets a library write to a path of its own, whole or not at all."""
    with replacing(path) as temporary:
        write(temporary)


@contextmanager
def replacing_all(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A temporary folder, whose files take their places in `folder` when the block ends well, and
    vanish when it does not.

    Args:
        folder: new or not; other files in it stay.
        names: the files, in the order in which they are moved where the folder is there: last the
            one by which a reader knows the others.

    Raises:
        CorrKDError: where the disk is full or the folder cannot be written, in one line.
    """
    exists = folder.is_dir()
    parent = folder if exists else folder.parent
    make_folder(parent)
    remove_parts(parent, "")
    try:
        with _new_name(parent, WRITING) as private:
            try:
                private.mkdir(mode=0o700)
                aside = private / "new"  # with the permissions of a usual folder
                make_folder(aside)
                yield aside
                if exists:
                    for name in names:
                        os.replace(aside / name, folder / name)
                else:
                    os.rename(aside, folder)
            finally:
                shutil.rmtree(private, ignore_errors=True)
    except OSError as error:
        raise CorrKDError(f"{folder}: cannot be written: {error.strerror or error}") from None


@contextmanager
def exclusive(folder: Path, busy: str) -> Iterator[None]:
    """Only one process at a time is inside for a folder, which is made. The lock goes with the
    process, however it ends.

    Raises:
        CorrKDError: `busy`, where another process is inside; or the folder cannot be written or
            locked.
    """
    make_folder(folder)
    lock = _lock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CorrKDError(busy) from None
    except OSError as error:
        raise CorrKDError(f"{folder}: cannot be locked: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


def remove_parts(folder: Path, name: str | None = None) -> None:
    """Removes what processes that are gone left half-written: their files and folders are no longer
    locked.

    Args:
        folder: where to look.
        name: of the file whose parts go, with folders of `replacing_all`, in `folder` alone;
            default: all in it and in the folders below.
    """
    ours = re.compile(
        rf"(\.{'.+' if name is None else re.escape(name)}\.[0-9a-f]{{8}})({PART}|{LOCK})"
        rf"|({re.escape(WRITING)}\w{{8}})({LOCK})?"
    )
    for path in list(folder.rglob(".*") if name is None else folder.glob(".*")):
        match = ours.fullmatch(path.name)
        if match and not path.is_symlink():
            with suppress(OSError):
                _remove_unlocked(path, path.with_name(f"{match[1] or match[3]}{LOCK}"))


def _remove_unlocked(path: Path, lock_file: Path) -> None:
    lock = _lock(lock_file)
    if not _taken(lock):
        return
    try:
        if path.is_dir():
            shutil.rmtree(path)
        elif path != lock_file:
            path.unlink()
    finally:
        _drop(lock)


def make_folder(path: Path) -> None:
    """Makes a folder and its parents. Raises CorrKDError where a parent is a file or may not be
    written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorrKDError(f"{path}: the folder cannot be made: {error.strerror or error}") from None
