"""The input of extractors: a recording, its words, and when it has sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corrkd.data.dataset import BoolArray, FloatArray
from corrkd.media.decode import STEP, STEP_SAMPLES, Limits, Recording, Sound
from corrkd.media.transcripts import PLAIN, Transcript, Word, spread, transcript_file, transcript_of

if TYPE_CHECKING:
    from corrkd.media.extractors.face_networks import Face

Transcribe = Callable[[Recording], Sequence[Word]]
AlignWords = Callable[[Recording, Sequence[Word]], tuple[Word, ...] | None]
OnFace = Callable[["Face | None"], None]

TRANSCRIBED = "transcribed"  # source of words that come from a model
SILENCE = 10 ** (-70 / 20)  # root mean square below which a step is silent: -70 dBFS


class Clip:
    """A recording with its transcript, or a transcript alone.

    Args:
        path: a recording, or a .txt; None: there is text alone.
        text: the transcript; "": it is read from a file beside the recording, if there is one.
        limits: how large the recording may be.
        transcribe: returns the words of a recording without a transcript; None: there are none.
        align: returns words with times, or None if it cannot; None: times are estimated from the
            lengths of the words.
        on_face: called by vision extractors with the face of each step, or None.

    Raises:
        CorrKDError: a file cannot be read, or exceeds a limit.
    """

    def __init__(
        self,
        path: Path | None,
        text: str = "",
        limits: Limits | None = None,
        *,
        transcribe: Transcribe | None = None,
        align: AlignWords | None = None,
        on_face: OnFace | None = None,
    ) -> None:
        self.transcript: Transcript = transcript_of(path, text)
        self.recording = (
            None if path is None or path.suffix.lower() == PLAIN else Recording(path, limits)
        )
        self._align, self.on_face = align, on_face
        recording = self.with_sound
        if (
            transcribe is not None
            and recording is not None
            and not text.strip()
            and transcript_file(path) is None
        ):
            words = tuple(transcribe(recording))
            self.transcript = Transcript(words, TRANSCRIBED if words else "none")

    @property
    def words(self) -> tuple[Word, ...]:
        """The words, with times if they come from a subtitle file."""
        return self.transcript.words

    @property
    def seconds(self) -> float:
        """Duration in seconds; 0 for a text."""
        return 0.0 if self.recording is None else self.recording.seconds

    @property
    def num_steps(self) -> int:
        """Number of frames of `STEP` seconds; 1 for a text."""
        return 1 if self.recording is None else self.recording.num_steps

    @cached_property
    def timed_words(self) -> tuple[Word, ...]:
        """The words with times: from the file, else aligned, else estimated from the lengths of the
        words between the first and the last sound.
        """
        if self.transcript.is_timed:
            return self.words
        recording = self.with_sound
        if self._align is not None and recording is not None:
            aligned = self._align(recording, self.words)
            if aligned is not None:
                return aligned
        sounding = np.flatnonzero(self.loudness > SILENCE)
        first, last = (sounding[0], sounding[-1] + 1) if len(sounding) else (0, self.num_steps)
        return tuple(spread(self.words, float(first) * STEP, min(float(last) * STEP, self.seconds)))

    @property
    def with_sound(self) -> Recording | None:
        """The recording if it has sound, else None."""
        return self.recording if self.recording is not None and self.recording.has_audio else None

    @cached_property
    def loudness(self) -> FloatArray:
        """(steps,) root mean square of the sound, 0 to 1 (full scale); 0 without sound."""
        if self.recording is None:
            return np.zeros(1, np.float32)
        levels = [
            np.where(exists, level, 0) for level, exists in map(levels_of, self.recording.sound())
        ]
        return np.concatenate(levels).astype(np.float32)


def audible(sound: Sound) -> tuple[BoolArray, BoolArray]:
    """Return, for each step of a block, (whether it is above the silence level, whether the stream
    has sound there). The last step may be shorter.
    """
    level, exists = levels_of(sound)
    return exists & (level > SILENCE), exists


def levels_of(sound: Sound) -> tuple[FloatArray, BoolArray]:
    """Return, for each step of a block, (root mean square, whether the stream has sound there)."""
    starts = np.arange(0, len(sound.samples), STEP_SAMPLES)
    counts = np.diff(np.append(starts, len(sound.samples)))
    power = np.add.reduceat(sound.samples.astype(np.float64) ** 2, starts) / counts
    exists = np.add.reduceat(sound.exists.astype(np.int64), starts) * 2 >= counts
    return np.sqrt(power), exists
