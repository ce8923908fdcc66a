"""Frames at equal steps of the two streams, and the rules by which one is missing: the same for all extractors of sound and of faces."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from corrkd.data.dataset import FloatArray
from corrkd.media.clip import Clip, audible
from corrkd.media.decode import STEP, Picture, Recording, Sound
from corrkd.media.extractors.base import Frames, absent, middles

Measured = Iterator[tuple[FloatArray, Sound]]
"""Blocks of sound, each with the features (steps, width) of its steps."""


def sound_frames(clip: Clip, width: int, measure: Callable[[Recording], Measured]) -> Frames:
    """Return (steps, width); missing are steps below -70 dBFS and those of which the stream has no sound.

    Args:
        clip: T steps long.
        width: features of a step.
        measure: what is made of the sound, in order.
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
    counts = {"silence": int((streamed & ~heard).sum()), "audio stream over": int((~streamed).sum())}
    missing = {reason: count for reason, count in counts.items() if count}
    return Frames(np.concatenate(values), heard, middles(len(heard), STEP), missing)


def face_frames(
    clip: Clip, width: int, measure: Callable[[Iterator[Picture | None]], Iterator[FloatArray | None]]
) -> Frames:
    """Return (steps, width); missing are steps without a face and those at which the stream shows nothing.

    Args:
        clip: T steps long.
        width: features of a step.
        measure: what is made of the pictures, in order; None where there is no face.
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

    for index, row in enumerate(measure(watched())):
        if row is not None:
            values[index], present[index] = row, True
    counts = {"no face": int((shows & ~present).sum()), "video stream over": int((~shows).sum())}
    missing = {reason: count for reason, count in counts.items() if count}
    return Frames(values, present, middles(len(present), STEP), missing)
