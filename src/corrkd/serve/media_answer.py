"""What the service answers of a recording."""

from __future__ import annotations

import base64
import io

import numpy as np
from pydantic import BaseModel, Field

from corrkd.media.decode import STEP
from corrkd.media.face_outline import OUTLINE, SCALE
from corrkd.serve.clip_processes import ReadClip
from corrkd.serve.schema import PredictionAnswer

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
"""A request's body, for OpenAPI."""


class Word(BaseModel):
    """A word, and the seconds when it is spoken."""

    text: str
    start: float | None = None
    end: float | None = None


class Details(BaseModel):
    """What a page shows of a recording."""

    words: list[Word]
    by_word: list[str] = Field(
        description="modalities of which a frame is a word; of the others it is a step"
    )
    step: float = Field(description="seconds of a frame of `loudness` and `faces`")
    loudness: list[float] = Field(description="dBFS; -120 of silence and where there is no sound")
    faces: list[list[int] | None] = Field(
        description="x, y, x, y, ... of the points of `outline`; null where there is no face"
    )
    outline: dict[str, int] = Field(description="lines of a face, and how many points each has")
    aspect: float = Field(
        description="width of the picture, divided by its height; 0 without a face"
    )
    scale: int = Field(
        description="parts of the picture's width and height in which points are counted"
    )
    sample: str = Field(
        description="the features as .npz, in base64, to be sent to the other routes"
    )


class MediaAnswer(BaseModel):
    """What the model says of a recording."""

    model: str = Field(description="SHA-256 of the model's parameters")
    prediction: PredictionAnswer
    seconds: float = Field(description="duration of the recording; 0 of a text")
    transcript: str = Field(
        description="where the words are from: text, subtitles, transcribed or none"
    )
    frames: dict[str, int] = Field(description="how many there are of each modality")
    missing: dict[str, dict[str, int]] = Field(description="how many of them are missing, and why")
    details: Details | None = None


def details_of(read: ReadClip, by_word: list[str]) -> Details:
    """Return what a page shows of a recording; `by_word`: modalities of which a frame is a word."""
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
