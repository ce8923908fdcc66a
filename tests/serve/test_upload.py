"""Bodies with recordings: forms and others, good and bad."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrkd.errors import CorrKDError
from corrkd.serve.upload import LARGEST, is_taken, read_upload

SUBTITLES = "WEBVTT\n\n00:00.100 --> 00:00.500\ngo away\n"


def form(tmp_path: Path, **fields: Any) -> tuple[Path, str]:
    """Write a form's body to a file; return it and its content type."""
    request = httpx.Request("POST", "http://localhost", files=fields)
    path = tmp_path / "body"
    path.write_bytes(request.read())
    return path, request.headers["content-type"]


def test_a_recording_and_its_transcript(tmp_path: Path) -> None:
    content = b"\r\n--not the boundary\r\n\r\n" * 1000
    upload = read_upload(
        *form(tmp_path, file=("My clip.MP4", content), text=(None, "schön\r\nhier"))
    )
    assert upload.recording is not None
    assert (upload.recording.name, upload.recording.read_bytes()) == ("recording.mp4", content)
    assert upload.text == "schön\r\nhier"


def test_file_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    upload = read_upload(*form(tmp_path, file=("../../etc/passwd.sh", b"x")))
    assert upload.recording == tmp_path / "recording"


def test_subtitles_are_written_beside_the_recording(tmp_path: Path) -> None:
    upload = read_upload(*form(tmp_path, file=("a.wav", b"x"), text=(None, SUBTITLES)))
    assert upload == (tmp_path / "recording.wav", "")
    assert (tmp_path / "recording.vtt").read_text("utf-8") == SUBTITLES
    assert read_upload(*form(tmp_path, text=(None, SUBTITLES))) == (None, "go away")
    assert read_upload(*form(tmp_path, file=("a.vtt", SUBTITLES.encode()))) == (None, "go away")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("video/mp4", "recording.mp4"),
        ("audio/x-new", "recording"),
        ("application/octet-stream", "recording"),
    ],
)
def test_a_body_is_the_recording(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / "body").write_bytes(b"x")
    assert is_taken(kind)
    assert read_upload(tmp_path / "body", kind) == (tmp_path / name, "")
    (tmp_path / "body").write_text("so good", "utf-8")
    assert read_upload(tmp_path / "body", "Text/Plain; charset=utf-8") == (None, "so good")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": (None, " ")}, "nothing to predict from"),
        ({"file": ("a.mp4", b"")}, "nothing to predict from"),
        ({"clip": ("a.mp4", b"x")}, "unknown or repeated field 'clip'"),
        ({"text": (None, b"\xff")}, "not UTF-8"),
        ({"file": ("a.txt", b"one"), "text": (None, "two")}, "two transcripts"),
        ({"text": (None, b"x" * (LARGEST + 1))}, "has more than"),
    ],
)
def test_bad_forms_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CorrKDError, match=message):
        read_upload(*form(tmp_path, **fields))


def test_a_form_without_its_end(tmp_path: Path) -> None:
    body, kind = form(tmp_path, file=("a.mp4", b"x" * 100), text=(None, "y"))
    data = body.read_bytes()
    for size in range(0, len(data) - 4, 7):
        body.write_bytes(data[:size])
        with pytest.raises(CorrKDError, match=r"the form (ends early|has no boundary)"):
            read_upload(body, kind)
    with pytest.raises(CorrKDError, match="has no boundary"):
        read_upload(body, "multipart/form-data")


PIECES = st.sampled_from(
    [
        b"--b",
        b"\r\n",
        b"--",
        b'content-disposition: form-data; name="file"',
        b'; filename="a.mp4"',
        b"\r\n\r\n",
        b"\0",
    ]
)


@given(st.lists(PIECES | st.binary(max_size=4), max_size=20).map(b"".join))
@settings(deadline=None, max_examples=100)
def test_any_form_is_read_or_refused(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(data)
        with suppress(CorrKDError):
            upload = read_upload(body, "multipart/form-data; boundary=b")
            assert upload.text.strip() or upload.recording is not None


def test_unsupported_types_are_not_taken() -> None:
    assert not any(
        map(is_taken, ("", "application/json", "image/png", "text/html", "multipart/mixed"))
    )
