"""Recognising files that are not datasets, and what to do with them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from corrkd.data.readers.containers import check_directory

START = 512  # bytes that are examined
ARRAYS = "numpy.savez('data.npz', audio=..., scores=...)"
UNPACK = "unpack it and give the file inside"
EXTRACT = "extract features from its folder first: `corrkd features FOLDER --out data.h5`"
TEXT = (
    "text, not a dataset; give a table with a heading (audio_0, audio_1, label) and one row "
    "per sample, or arrays"
)

# (offset, first bytes, what it is, what to do)
SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (
        0,
        b"\x93NUMPY",
        "a single NumPy array without labels",
        f"save features and labels together: {ARRAYS}",
    ),
    (
        0,
        b"SQLite format 3",
        "an SQLite database",
        "save its table: pandas.read_sql(query, connection).to_parquet('data.parquet')",
    ),
    (0, b"\xd0\xcf\x11\xe0", "an old Excel or Office file", "save the sheet as `CSV UTF-8`"),
    (
        0,
        b"MATLAB 5.0",
        "a MATLAB file",
        f"load it with scipy.io.loadmat and save its arrays: {ARRAYS}",
    ),
    (8, b"WAVE", "a recording (WAV)", EXTRACT),
    (0, b"ID3", "a recording (MP3)", EXTRACT),
    (0, b"\xff\xfb", "a recording (MP3)", EXTRACT),
    (0, b"fLaC", "a recording (FLAC)", EXTRACT),
    (0, b"OggS", "a recording (Ogg)", EXTRACT),
    (4, b"ftyp", "a video (MP4)", EXTRACT),
    (0, b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)", EXTRACT),
    (8, b"AVI ", "a video (AVI)", EXTRACT),
    (0, b"\x89PNG", "an image (PNG)", EXTRACT),
    (0, b"\xff\xd8\xff", "an image (JPEG)", EXTRACT),
    (0, b"%PDF", "a PDF document", "give a dataset file"),
    (0, b"\x1f\x8b", "compressed by gzip", UNPACK),
    (0, b"BZh", "compressed by bzip2", UNPACK),
    (0, b"\xfd7zXZ", "compressed by xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", UNPACK),
    (0, b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
)


def what_it_is(path: Path) -> str | None:
    """Return what a file is and what to do with it, in one line, if its first bytes show it; else
    None.
    """
    with path.open("rb") as file:
        start = file.read(START)
    for offset, magic, kind, advice in SIGNATURES:
        if start[offset:].startswith(magic):
            return f"{kind}; {advice}"
    return _text(start) if start else None


def _text(start: bytes) -> str | None:
    """Return what a text file is; None if it is not text."""
    try:
        text = start.decode().lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # not just a character cut in two
            return None
        text = start[: error.start].decode()
    if not all(c.isprintable() or c in "\t\r\n" for c in text):
        return None
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; get the file with `git lfs pull`"
    if text[:200].lower().startswith(("<!doctype", "<html", "<head", "<?xml")):
        return (
            "a web page, not the file itself: a download page or a quota notice was saved "
            "instead; download the file again"
        )
    if text.startswith(("{", "[")):
        return "JSON; make it a table: pandas.read_json('data.json').to_parquet('data.parquet')"
    return TEXT


def what_zip_it_is(path: Path) -> str | None:
    """Return what a zip file is and what to do with it, if it has no arrays and its first names
    show it; else None.
    """
    try:
        check_directory(path, path.name)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return None
    if any(name.endswith((".npy", "data.pkl")) for name in names) or not names:
        return None
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook; save the sheet as `CSV UTF-8`"
    if "[Content_Types].xml" in names or any(name.startswith("word/") for name in names):
        return "an Office document, not a dataset"
    return f"a zip archive of {len(names)} files; {UNPACK}"
