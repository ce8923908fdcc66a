"""The response of the service for a recording."""

from __future__ import annotations

import base64
import io

import numpy as np
from pydantic import BaseModel, Field

from corrkd.media.decode import STEP
from corrkd.media.face_outline import OUTLINE, SCALE
from corrkd.serve.clip_processes import ReadClip
from corrkd.serve.schema import PredictionResponse

MEDIA_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "file": {"type": "string", "format": "binary"},
                    "text": {"type": "string"},
                },
            }
        },
        "video/mp4": {"schema": {"type": "string", "format": "binary"}},
        "audio/wav": {"schema": {"type": "string", "format": "binary"}},
        "text/plain": {"schema": {"type": "string"}},
    },
}
"""The body of a request, for OpenAPI."""


class Word(BaseModel):
    """A word with start and end in seconds."""

    text: str
    start: float | None = None
    end: float | None = None


class Details(BaseModel):
    """Details of a recording for the page."""

    words: list[Word]
    by_word: list[str] = Field(
        description="modalities with one frame per word; the others have one per step"
    )
    step: float = Field(description="seconds per frame of `loudness` and `faces`")
    loudness: list[float] = Field(description="dBFS; -120 for silence and without sound")
    faces: list[list[int] | None] = Field(
        description="x, y, x, y, ... of the points of `outline`; null without a face"
    )
    outline: dict[str, int] = Field(description="lines of a face, and the number of points of each")
    aspect: float = Field(
        description="width of the picture, divided by its height; 0 without a face"
    )
    scale: int = Field(description="units of the points per width and height of the picture")
    sample: str = Field(description="the features as .npz in base64, which the other routes accept")


class MediaResponse(BaseModel):
    """The prediction for a recording."""

    model: str = Field(description="SHA-256 of the model's parameters")
    prediction: PredictionResponse
    seconds: float = Field(description="duration of the recording in seconds; 0 for a text")
    transcript: str = Field(description="source of the words: text, subtitles, transcribed or none")
    frames: dict[str, int] = Field(description="number of frames of each modality")
    missing: dict[str, dict[str, int]] = Field(
        description="number of missing frames of each modality, by reason"
    )
    details: Details | None = None


def details_of(read: ReadClip, by_word: list[str]) -> Details:
    """Return the details of a recording for the page. `by_word`: modalities with one frame per
    word.
    """
    faces, present = (
        read.drawn.get("faces", np.zeros((0, 0, 2))),
        read.drawn.get("faces_present", np.zeros(0, bool)),
    )
    file = io.BytesIO()
    np.savez_compressed(file, **read.sample)  # type: ignore[arg-type]
    return Details(
        by_word=by_word,
        words=[Word(**word.model_dump()) for word in read.result.words],
        step=STEP,
        loudness=read.drawn.get("loudness", np.zeros(0)).round(1).tolist(),
        faces=[
            face.reshape(-1).tolist() if seen else None
            for face, seen in zip(faces, present, strict=False)
        ],
        outline={name: len(line) for name, line in OUTLINE.items()},
        aspect=read.result.aspect,
        scale=SCALE,
        sample=base64.b64encode(file.getvalue()).decode(),
    )
