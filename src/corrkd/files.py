"""Valid file names, and atomic writing: a reader sees the old file or the new one, never part of
one.
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

# Files in the folder of a plan that one package writes and another reads.
PLAN, FAILURES, REPORTED, RUN = "plan.yaml", "failures.csv", "reported.csv", "run.json"
PART, LOCK = ".part", ".lock"  # suffixes of a temporary file and of its lock
WRITING = ".writing-"  # prefix of a temporary folder
# Files of a saved model, named as on the Hugging Face hub.
WEIGHTS, CARD, README = "model.safetensors", "config.json", "README.md"
# In bytes; leaves space for prefixes and suffixes within the 255 that file systems allow.
LONGEST_NAME = 100
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
# device names on Windows, with any suffix
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def name_fault(name: str) -> str | None:
    """Return why a name is not a valid file name on every operating system, or None if it is valid.

    `check_names` refuses invalid names that users chose (of a dataset or method) so that folders
    have exactly these names. `file_names` replaces invalid names from data, which users cannot
    change.
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
        return "is the name of a device on Windows"
    return None


def leads_elsewhere(name: str) -> bool:
    """Return whether a name, as the last component of a path to read, could lead out of the folder.

    The check is weaker than for files to write, because datasets contain names such as
    "-3g5yACwYnA_1".
    """
    return name in ("", ".", "..") or bool(re.search(r"[/\\\0]", name))


def check_names(names: Iterable[str], what: str) -> None:
    """Raise CorrKDError if a name that a user chose is not a valid file name, or if two names
    differ only in case.

    Args:
        names: names of files or folders in the same folder.
        what: prefix of the error message, such as "comparison: dataset".
    """
    taken: dict[str, str] = {}
    for name in names:
        fault = name_fault(name)
        if fault is not None:
            raise CorrKDError(f"{what} {name!r}: a name of a folder, which {fault}; choose another")
        other = taken.setdefault(name.casefold(), name)
        if other != name:
            raise CorrKDError(
                f"{what}s {other!r} and {name!r} are the same folder on systems that ignore case; "
                f"rename one"
            )


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Return a file name for each name from data: the name itself if it is valid and differs from
    the others in more than case.

    Any other name becomes its letters and digits, a + and the start of its SHA-256. Valid names
    contain no +, so two names never share a file.
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
    """Raise CorrKDError if the output file exists and must not be overwritten, or is a folder.
    Remove its temporary files that killed processes left.
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
    """Yield a temporary path that replaces `path` when the block succeeds and is removed when it
    fails.

    Args:
        path: the file.
        aside: folder on the same disk for the temporary file, which the caller cleans up after
            killed processes. Default: the folder of `path`.

    Raises:
        CorrKDError: if the disk is full or the folder cannot be written.
    """
    try:
        make_folder(path.parent)
        with _new_name(aside or path.parent, f".{path.name}.", PART) as temporary:
            try:
                open_no_link(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL).close()
                yield temporary
                with open_no_link(temporary, os.O_RDWR) as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)  # closed: Windows cannot move an open file
            finally:
                with suppress(OSError):  # already moved, or never created
                    temporary.unlink()
    except OSError as error:
        raise CorrKDError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def _new_name(folder: Path, prefix: str, suffix: str = "") -> Iterator[Path]:
    """Yield a new name for a temporary file or folder. A lock file next to it exists as long as the
    writer runs.
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
    """Try to take a lock, which ends with this process. Return False if another process holds the
    lock or has just removed its file.
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
    with suppress(OSError):  # another process has just opened it and will remove it
        os.unlink(lock.lock_file)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_no_link(path: Path, flags: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC) -> IO[bytes]:
    """Open a file for writing, but not through a symbolic link, which could lead out of the folder.

    Raises:
        OSError: if the path is a link or cannot be opened.
    """
    mode = "r+b" if flags & os.O_RDWR else "wb"
    # Each flag exists on one system only; without O_BINARY, Windows would translate line endings.
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o666), mode)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically. Raises CorrKDError like `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8. Raises CorrKDError like `replacing`."""
    write_bytes(path, text.encode())


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically with a function of its path. Raises CorrKDError like `replacing`."""
    with replacing(path) as temporary:
        write(temporary)


@contextmanager
def replacing_all(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder whose files move to `folder` when the block succeeds and are removed
    when it fails.

    Args:
        folder: may exist; its other files stay.
        names: names of the files in the order in which they move into an existing folder; the file
            that readers look for first comes last.

    Raises:
        CorrKDError: if the disk is full or the folder cannot be written.
    """
    exists = folder.is_dir()
    parent = folder if exists else folder.parent
    make_folder(parent)
    remove_parts(parent, "")
    try:
        with _new_name(parent, WRITING) as private:
            try:
                private.mkdir(mode=0o700)
                aside = private / "new"  # with the default permissions of a folder
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
    """Create a folder and let only one process at a time run the block for it. The lock ends with
    the process, even if it is killed.

    Raises:
        CorrKDError: with the message `busy` if another process is in the block, or if the folder
            cannot be written or locked.
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
    """Remove temporary files and folders of ended processes, which are no longer locked.

    Args:
        folder: where to look.
        name: remove only the temporary files of this file and temporary folders of `replacing_all`,
            not in subfolders; default: remove all, in subfolders too.
    """
    temporary = re.compile(
        rf"(\.{'.+' if name is None else re.escape(name)}\.[0-9a-f]{{8}})({PART}|{LOCK})"
        rf"|({re.escape(WRITING)}\w{{8}})({LOCK})?"
    )
    for path in list(folder.rglob(".*") if name is None else folder.glob(".*")):
        match = temporary.fullmatch(path.name)
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
    """Create a folder and its parents. Raises CorrKDError if a parent is a file or cannot be
    written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorrKDError(f"{path}: cannot create the folder: {error.strerror or error}") from None
