"""Frames at equal steps, and the rules by which they are missing, shared by all extractors of sound
and of faces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import tee

import numpy as np

from corrkd.data.dataset import FloatArray
from corrkd.media.clip import Clip, audible
from corrkd.media.decode import STEP, Picture, Recording, Sound
from corrkd.media.extractors.base import Frames, absent, middles
from corrkd.media.extractors.face_networks import Face, faces

Measured = Iterator[tuple[FloatArray, Sound]]
"""Blocks of sound, each with the features (steps, width) of its steps."""
WithFaces = Iterator[tuple[Picture | None, Face | None]]
"""Pictures at equal steps, each with its face."""


def sound_frames(clip: Clip, width: int, measure: Callable[[Recording], Measured]) -> Frames:
    """Return (T, width). Steps below -70 dBFS or without sound are missing.

    Args:
        clip: T steps long.
        width: number of features.
        measure: yields the blocks of a recording with the features of their steps.
    """
    recording = clip.recording
    if recording is None or not recording.has_audio:
        reason = "no recording" if recording is None else "no audio stream"
        return absent(width, reason, clip.num_steps, STEP)
    values, present, exists = [], [], []
    for steps, sound in measure(recording):
        sounds, streamed = audible(sound)
        steps[~sounds] = 0
        values.append(steps)
        present.append(sounds)
        exists.append(streamed)
    heard, streamed = np.concatenate(present), np.concatenate(exists)
    counts = {
        "silence": int((streamed & ~heard).sum()),
        "audio stream over": int((~streamed).sum()),
    }
    missing = {reason: count for reason, count in counts.items() if count}
    return Frames(np.concatenate(values), heard, middles(len(heard), STEP), missing)


def face_frames(
    clip: Clip, width: int, measure: Callable[[WithFaces], Iterator[FloatArray | None]]
) -> Frames:
    """Return (T, width). Steps without a face or without a picture are missing.

    Args:
        clip: T steps long.
        width: number of features.
        measure: yields the features of the face in each picture, or None.
    """
    recording = clip.recording
    if recording is None or not recording.has_video:
        reason = "no recording" if recording is None else "no video stream"
        return absent(width, reason, clip.num_steps, STEP)
    values = np.zeros((clip.num_steps, width), np.float32)
    present = np.zeros(clip.num_steps, bool)
    shows = np.zeros(clip.num_steps, bool)

    def watched() -> Iterator[Picture | None]:
        for index, picture in enumerate(recording.pictures()):
            shows[index] = picture is not None
            yield picture

    def with_faces() -> WithFaces:
        pictures, looked_at = tee(watched())  # `faces` looks ahead by a few pictures
        for picture, face in zip(pictures, faces(looked_at), strict=True):
            if clip.on_face is not None:
                clip.on_face(face)
            yield picture, face

    for index, row in enumerate(measure(with_faces())):
        if row is not None:
            values[index], present[index] = row, True
    counts = {"no face": int((shows & ~present).sum()), "video stream over": int((~shows).sum())}
    missing = {reason: count for reason, count in counts.items() if count}
    return Frames(values, present, middles(len(present), STEP), missing)
