"""Files that are no dataset: what they are, and what to do."""

from __future__ import annotations

import gzip
import io
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError


def npy(path: Path) -> None:
    np.save(path, np.ones(3))


def excel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xl/workbook.xml", "<w/>")


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("mosi.pkl", b"x")


def wav(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(3200))


def checkpoint(path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, path)


def tarball(path: Path) -> None:
    import tarfile

    content = io.BytesIO(b"x")
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("mosi.pkl")
        info.size = 1
        archive.addfile(info, content)


def docx(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
QUOTA = b"\n<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy, "a single NumPy array without labels; save features and labels together"),
        (b"PAR1 and no more", "a damaged Parquet file"),
        (b"ARROW1 and no more", "a damaged Arrow file"),
        (excel, "an Excel workbook; save the sheet as `CSV UTF-8`"),
        (archive, "a zip archive of 1 files; unpack it"),
        (b"SQLite format 3\0", "an SQLite database; save its table: pandas.read_sql"),
        (wav, "a recording .WAV.; extract features from its folder"),
        (
            b"\x00\x00\x00\x20ftypisom" + bytes(100),
            "a video .MP4.; extract features from its folder",
        ),
        (QUOTA, "a web page, not the file itself: .* quota notice .*; download the file again"),
        (LFS, "a Git LFS pointer, not the file itself; get the file with `git lfs pull`"),
        (b"Dear all,\nthe data are on the shared drive.\n", "text, not a dataset"),
        ("Grüße, alles da\nund mehr".encode()[:6], "text, not a dataset"),
        (b'{"train": []}', "JSON; make it a table: pandas.read_json"),
        (gzip.compress(b"pickle", mtime=0), "compressed by gzip; unpack it"),
        (tarball, "a tar archive; unpack it"),
        (checkpoint, "a file of torch.save, not arrays; load it where it was made"),
        (docx, "an Office document, not a dataset"),
        (b"", "empty file"),
        (bytes(64), "not a pickle, or a damaged one .byte 0x00 is not an opcode."),
    ],
)
def test_a_line_says_what_it_is_and_what_to_do(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "mosi.pkl"  # the name plays no part
    if callable(content):
        content(tmp_path / "file.npy" if content is npy else path)
        if content is npy:
            (tmp_path / "file.npy").rename(path)
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    with pytest.raises(CorrKDError, match=words) as error:
        load_dataset(path)
    assert str(error.value).startswith("mosi")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
