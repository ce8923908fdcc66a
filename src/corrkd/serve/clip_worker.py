"""Extracting the features of an untrusted recording in a separate process, which may crash without
affecting the service.

The process writes two files, `RESULT` (JSON) and `ARRAYS`, which the service does not trust.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from corrkd.errors import CorrKDError
from corrkd.files import write_text
from corrkd.media.clip import Clip
from corrkd.media.extractors.face_networks import Face
from corrkd.media.face_outline import NUM_OUTLINE_POINTS, outline
from corrkd.media.features import FeatureSettings, features_of, one_thread, open_clip
from corrkd.memory import size_text
from corrkd.serve.predict_clips import sample_of
from corrkd.serve.upload import read_upload
from corrkd.workers import end_with_parent

RESULT, ARRAYS = "result.json", "arrays.npz"
SAMPLE = "sample_"  # prefix of the arrays of the sample; other arrays are for the page
LARGEST_OUTPUT = 64_000_000  # bytes: limit of written files, unless the body is larger
DESCRIPTORS = 256  # limit of open files


class TimedWord(BaseModel):
    """A word with start and end in seconds."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(max_length=100_000)]
    start: Annotated[float, Field(ge=0)] | None = None
    end: Annotated[float, Field(ge=0)] | None = None


class ClipResult(BaseModel):
    """The result of reading a recording.

    Attributes:
        error: why it cannot be read; "" if it can.
        seconds: duration in seconds; 0 for a text.
        transcript: source of the words: "text", "subtitles", "transcribed" or "none".
        frames: number of frames, by modality.
        missing: number of missing frames, by modality and reason.
        words: words, with times unless there is only text.
        aspect: width divided by height of the first picture with a face; 0 without a face.
    """

    model_config = ConfigDict(extra="forbid")

    error: Annotated[str, Field(max_length=2000)] = ""
    seconds: Annotated[float, Field(ge=0)] = 0.0
    transcript: Annotated[str, Field(max_length=20)] = "none"
    frames: dict[str, int] = {}
    missing: dict[str, dict[str, int]] = {}
    words: list[TimedWord] = []
    aspect: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True)
class Task:
    """The task of one process.

    Attributes:
        body: file with the body of a request, in a separate folder.
        content_type: content type of the body.
        settings: which features to extract.
        details: whether to return the data for the page too.
        memory: limit of memory, in bytes.
        cpu_seconds: limit of CPU time, in seconds.
    """

    body: Path
    content_type: str
    settings: FeatureSettings
    details: bool
    memory: int
    cpu_seconds: int


def work(task: Task) -> None:
    """Extract the features of the recording in a body, and write them or the error."""
    if hasattr(os, "setsid"):  # not on Windows
        os.setsid()  # so that child processes can be ended with it
    end_with_parent()
    _be_silent()
    _limit(task)
    folder = task.body.parent
    try:
        result = _write_arrays(task, folder / ARRAYS)
    except CorrKDError as error:
        result = ClipResult(error=str(error)[:2000])
    except Exception as error:  # from libraries, on unexpected files
        full = isinstance(error, MemoryError) or "allocate memory" in str(error)
        problem = (
            f"needs more than {size_text(task.memory)} of memory"
            if full
            else f"cannot be read ({type(error).__name__})"
        )
        result = ClipResult(error=f"the recording {problem}; convert it, or cut it")
    write_text(folder / RESULT, result.model_dump_json())


def _be_silent() -> None:
    """Discard output, so that a file cannot fill the log of the service."""
    sys.stdout.flush()
    with open(os.devnull, "wb") as nowhere:
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)


def _limit(task: Task) -> None:
    """Limit the resources of the process: all on Linux, all except memory on macOS, and none on
    Windows, where only the service limits its time.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    largest = max(LARGEST_OUTPUT, task.body.stat().st_size)
    # RLIMIT_DATA counts only writable memory, since CUDA maps far more.
    for limit, value in (
        (resource.RLIMIT_DATA, task.memory),
        (resource.RLIMIT_CPU, task.cpu_seconds),
        (resource.RLIMIT_FSIZE, largest),
        (resource.RLIMIT_NOFILE, DESCRIPTORS),
        (resource.RLIMIT_CORE, 0),
    ):
        most = resource.getrlimit(limit)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (value, value))


def _write_arrays(task: Task, path: Path) -> ClipResult:
    upload = read_upload(task.body, task.content_type)
    faces: list[Face | None] = []
    clip = open_clip(
        upload.recording, task.settings, upload.text, faces.append if task.details else None
    )
    features = features_of([clip], task.settings)[0]
    sample = sample_of(features, "the recording", "send its transcript as `text`")
    arrays = {f"{SAMPLE}{key}": array for key, array in sample.items()}
    if task.details:
        arrays |= _drawn(clip, faces)
    np.savez(path, **arrays)
    source = {"labels": "text", "vtt": "subtitles"}.get(features.transcript, features.transcript)
    return ClipResult(
        seconds=clip.seconds,
        transcript=source,
        frames={m: len(frames.present) for m, frames in features.frames.items()},
        missing={m: dict(frames.missing) for m, frames in features.frames.items()},
        words=_timed_words(clip) if task.details else [],
        aspect=next(
            (face.picture_size[1] / face.picture_size[0] for face in faces if face is not None), 0.0
        ),
    )


def _drawn(clip: Clip, faces: list[Face | None]) -> Mapping[str, npt.NDArray[Any]]:
    """Return the arrays for the page: the loudness (steps,) in dBFS and, if the vision extractor
    uses faces, their outlines (steps, points, 2) and a mask of the steps with a face (steps,).
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    if clip.recording is not None and clip.recording.has_audio:
        arrays["loudness"] = (20 * np.log10(np.maximum(clip.loudness, 1e-6))).astype(np.float32)
    if faces:
        arrays["faces"] = np.zeros((len(faces), NUM_OUTLINE_POINTS, 2), np.int16)
        for index, face in enumerate(faces):
            if face is not None:
                arrays["faces"][index] = outline(face)
        arrays["faces_present"] = np.array([face is not None for face in faces])
    return arrays


def _timed_words(clip: Clip) -> list[TimedWord]:
    if clip.recording is None:
        return [TimedWord(text=word.text) for word in clip.words]
    with one_thread():
        return [
            TimedWord(text=word.text, start=word.start, end=word.end) for word in clip.timed_words
        ]
