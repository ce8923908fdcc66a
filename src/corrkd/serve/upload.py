"""Reading a recording and its transcript from the body of a request, which is untrusted."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesHeaderParser
from email.utils import collapse_rfc2231_value
from mmap import ACCESS_READ, mmap
from pathlib import Path, PurePath
from typing import NamedTuple

from corrkd.errors import CorrKDError
from corrkd.media.decode import AUDIO_ENDINGS, VIDEO_ENDINGS
from corrkd.media.transcripts import LARGEST, PLAIN, SUBTITLES, subtitle_words

FORM, TEXT, BYTES = "multipart/form-data", "text/plain", "application/octet-stream"
NAMES = ("file", "text")  # of a form's fields
MOST_FIELDS = 8
LARGEST_HEAD = 1 << 12  # bytes of a field's headers
CHUNK = 1 << 20


class Upload(NamedTuple):
    """The recording and transcript from a client.

    Attributes:
        recording: file with the recording; None if there is only text.
        text: the transcript; "" without one, or if it is in a .vtt file next to the recording.
    """

    recording: Path | None
    text: str


def is_taken(content_type: str) -> bool:
    """Return whether bodies of a content type are supported."""
    kind = _kind(content_type)
    return kind in (FORM, TEXT, BYTES) or kind.startswith(("video/", "audio/"))


def read_upload(body: Path, content_type: str) -> Upload:
    """Return the contents of a body, with the recording in a file in the same folder.

    Args:
        body: file with the body of a request.
        content_type: type of the body: a form with the fields `file` and `text`, a recording, or
            text.

    Raises:
        CorrKDError: if the body has another type, is damaged, or is empty.
    """
    kind, recording, text = _kind(content_type), None, ""
    if kind == FORM:
        recording, text = _read_form(body, content_type)
    elif kind == TEXT:
        text = _decoded(body.read_bytes() if body.stat().st_size <= LARGEST else None)
    elif body.stat().st_size:
        recording = body.rename(
            body.with_name(f"recording{_ending(mimetypes.guess_extension(kind) or '')}")
        )
    if recording is None and not text.strip():
        raise CorrKDError(
            "nothing to predict from: send a recording as `file`, its transcript as `text`, or both"
        )
    return _with_subtitles(Upload(recording, text))


def _with_subtitles(upload: Upload) -> Upload:
    """Move subtitles to a file next to the recording, where extractors look for them."""
    words = subtitle_words(upload.text) if "-->" in upload.text else []
    if not words:
        return upload
    if upload.recording is None:
        return Upload(None, " ".join(word.text for word in words))
    upload.recording.with_suffix(SUBTITLES[0]).write_text(upload.text, "utf-8")
    return Upload(upload.recording, "")


def _read_form(body: Path, content_type: str) -> tuple[Path | None, str]:
    boundary = _message(content_type).get_boundary()
    if not boundary or not body.stat().st_size:
        raise CorrKDError("the form has no boundary, or is empty; send multipart/form-data")
    recording, text, met = None, "", set()
    with body.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        for name, filename, start, end in _fields(data, boundary.encode()):
            if name not in NAMES or name in met:
                raise CorrKDError(
                    f"the form has an unknown or repeated field {name[:60]!r}; send `file` "
                    f"and `text`"
                )
            met.add(name)
            is_text = name == "text" or PurePath(filename).suffix.lower() in (PLAIN, *SUBTITLES)
            if is_text and text.strip():
                raise CorrKDError("the form has two transcripts; send one")
            if is_text:
                text = _decoded(data[start:end] if end - start <= LARGEST else None)
            elif end > start:
                recording = body.with_name(f"recording{_ending(PurePath(filename).suffix)}")
                with recording.open("wb") as out:
                    for at in range(start, end, CHUNK):
                        out.write(data[at : min(at + CHUNK, end)])
    return recording, text


def _fields(data: mmap, boundary: bytes) -> Iterator[tuple[str, str, int, int]]:
    """Yield (name, file name, start, end) of each field of a form."""
    mark = b"\r\n--" + boundary
    at = 0 if data[: len(mark) - 2] == mark[2:] else data.find(mark) + 2
    for _ in range(MOST_FIELDS + 1):
        at += len(mark) - 2
        if data[at : at + 2] == b"--":
            return
        head = data.find(b"\r\n\r\n", at, at + LARGEST_HEAD)
        end = data.find(mark, head + 4)
        if head < 0 or end < 0:
            break
        fields = BytesHeaderParser().parsebytes(data[at:head].lstrip(b"\r\n"))
        name = fields.get_param("name", "", "content-disposition")
        yield collapse_rfc2231_value(name or ""), fields.get_filename("") or "", head + 4, end
        at = end + 2
    raise CorrKDError(
        f"the form ends early, or has more than {MOST_FIELDS} fields; send multipart/form-data"
    )


def _decoded(data: bytes | None) -> str:
    if data is None:
        raise CorrKDError(f"the transcript has more than {LARGEST:,} bytes; cut the recording")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CorrKDError("the transcript is not UTF-8; save it as UTF-8") from None


def _ending(ending: str) -> str:
    """Return the suffix in lower case if FFmpeg uses it, else ""."""
    return ending.lower() if ending.lower() in VIDEO_ENDINGS + AUDIO_ENDINGS else ""


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _message(content_type: str) -> Message:
    message = Message()
    message["content-type"] = content_type
    return message
