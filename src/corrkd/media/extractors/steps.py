"""Frames at equal steps, and the rules by which they are missing, shared by all extractors of sound
and of faces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, tee

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
    recording = clip.with_sound
    if recording is None:
        reason = "no recording" if clip.recording is None else "no audio stream"
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
    clips: Sequence[Clip], width: int, measure: Callable[[WithFaces], Iterator[FloatArray | None]]
) -> list[Frames]:
    """Return (steps, width) of each clip. Steps without a face or without a picture are missing.

    Args:
        clips: whose pictures are measured one clip after the other.
        width: number of features.
        measure: yields the features of the face in each picture, or None.
    """
    collectors = [_FaceFrames(clip, width) for clip in clips]
    steps = (
        (collector, step) for collector in collectors for step in range(collector.num_pictures)
    )
    rows = measure(chain.from_iterable(collector.with_faces() for collector in collectors))
    for (collector, step), row in zip(steps, rows, strict=True):
        if row is not None:
            collector.values[step], collector.present[step] = row, True
    return [collector.frames() for collector in collectors]


class _FaceFrames:
    """Collects the features of the faces of a clip."""

    def __init__(self, clip: Clip, width: int) -> None:
        recording = clip.recording
        self._clip, self._recording = clip, recording
        self.num_pictures = 0 if recording is None or not recording.has_video else clip.num_steps
        self.values = np.zeros((clip.num_steps, width), np.float32)
        self.present, self._shows = np.zeros((2, clip.num_steps), bool)

    def with_faces(self) -> WithFaces:
        """Yield the pictures with their faces."""
        if not self.num_pictures or self._recording is None:
            return
        pictures, looked_at = tee(self._pictures(self._recording))  # `faces` looks ahead a little
        for picture, face in zip(pictures, faces(looked_at), strict=True):
            if self._clip.on_face is not None:
                self._clip.on_face(face)
            yield picture, face

    def _pictures(self, recording: Recording) -> Iterator[Picture | None]:
        for step, picture in enumerate(recording.pictures()):
            self._shows[step] = picture is not None
            yield picture

    def frames(self) -> Frames:
        """Return what was measured."""
        if not self.num_pictures:
            reason = "no recording" if self._recording is None else "no video stream"
            return absent(self.values.shape[1], reason, len(self.present), STEP)
        counts = {
            "no face": int((self._shows & ~self.present).sum()),
            "video stream over": int((~self._shows).sum()),
        }
        missing = {reason: count for reason, count in counts.items() if count}
        return Frames(self.values, self.present, middles(len(self.present), STEP), missing)
