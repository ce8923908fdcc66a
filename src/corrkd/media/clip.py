"""What an extractor is given: a recording, its words, and when it sounds."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from corrkd.data.dataset import BoolArray
from corrkd.media.decode import STEP, STEP_SAMPLES, Limits, Recording, Sound
from corrkd.media.transcripts import PLAIN, Transcript, Word, spread, transcript_of

SILENCE = 10 ** (-70 / 20)  # root mean square of a step that holds no signal at all: -70 dBFS


class Clip:
    """A recording with its transcript, or a transcript alone.

    Args:
        path: a recording, or a .txt; None: there is text alone.
        text: what is said in it, where that is known; else a file beside it is looked for.
        limits: how large the recording may be.

    Raises:
        CorrKDError: a file cannot be read, or exceeds a limit.
    """

    def __init__(self, path: Path | None, text: str = "", limits: Limits | None = None) -> None:
        self.transcript: Transcript = transcript_of(path, text)
        self.recording = None if path is None or path.suffix.lower() == PLAIN else Recording(path, limits)

    @property
    def words(self) -> tuple[Word, ...]:
        """The words, with times where a subtitle file gives them."""
        return self.transcript.words

    @property
    def seconds(self) -> float:
        """Duration; 0 of a text."""
        return 0.0 if self.recording is None else self.recording.seconds

    @property
    def num_steps(self) -> int:
        """How many frames of `STEP` seconds the clip has; one of a text."""
        return 1 if self.recording is None else self.recording.num_steps

    @cached_property
    def timed_words(self) -> tuple[Word, ...]:
        """The words with times: where no file gives them, by letters from the first to the last sound."""
        if self.transcript.is_timed:
            return self.words
        sounding = np.flatnonzero(self._sounds())
        first, last = (sounding[0], sounding[-1] + 1) if len(sounding) else (0, self.num_steps)
        return tuple(spread(self.words, float(first) * STEP, min(float(last) * STEP, self.seconds)))

    def _sounds(self) -> BoolArray:
        if self.recording is None:
            return np.zeros(1, bool)
        return np.concatenate([audible(sound)[0] for sound in self.recording.sound()])


def audible(sound: Sound) -> tuple[BoolArray, BoolArray]:
    """Return for each step of a block (whether it sounds, whether the stream has sound there); the last step may be shorter."""
    starts = np.arange(0, len(sound.samples), STEP_SAMPLES)
    counts = np.diff(np.append(starts, len(sound.samples)))
    power = np.add.reduceat(sound.samples.astype(np.float64) ** 2, starts) / counts
    exists = np.add.reduceat(sound.exists.astype(np.int64), starts) * 2 >= counts
    return exists & (np.sqrt(power) > SILENCE), exists
