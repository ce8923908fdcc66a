"""Transcribing recordings with faster-whisper (extra `[hub]`): words with times."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from corrkd.data.dataset import FloatArray
from corrkd.errors import CorrKDError
from corrkd.hub import ModelFiles, first_line_of, parse_model
from corrkd.media.clip import audible
from corrkd.media.decode import RATE, STEP_SAMPLES, Recording
from corrkd.media.transcripts import Word

FILES = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*")
# in steps: the longest segment, and the range at its end in which the quietest step is sought
PART, MARGIN = 3000, 300


class Transcriber:
    """Whisper, run by faster-whisper.

    Args:
        model: a size, as "base" or "large-v3", a name on the hub, or a folder with a model for
            CTranslate2; optionally with "@REVISION".
        device: device of the model, as "cpu" or "cuda".

    Raises:
        CorrKDError: if faster-whisper is not installed or the model cannot be loaded.
    """

    name: ClassVar[str] = "faster-whisper"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("av", "ctranslate2", "faster-whisper")

    def __init__(self, model: str, device: str = "cpu") -> None:
        self._library, self._device = _faster_whisper(), device
        self.files = ModelFiles(
            parse_model(model),
            FILES,
            lambda name, revision: self._library.download_model(name, revision=revision),
        )

    def describe(self) -> dict[str, Any]:
        """Return what identifies the model: equal descriptions give equal words."""
        return {"name": self.name, "version": self.version} | self.files.describe()

    @cached_property
    def _model(self) -> Any:
        kind, _, index = self._device.partition(":")
        # int8 everywhere, so that the words do not depend on the default type of the device.
        options = {
            "device": kind,
            "device_index": int(index or 0),
            "compute_type": "int8",
            "cpu_threads": 1,
        }
        try:
            return self._library.WhisperModel(str(self.files.folder), **options)
        except Exception as error:  # from CTranslate2, on unexpected files
            raise CorrKDError(
                f"transcription model {self.files.name}: cannot be read: {first_line_of(error)}"
            ) from None

    def load(self) -> None:
        """Load the model. Raises CorrKDError if it cannot be read."""
        _ = self._model

    def __call__(self, recording: Recording) -> tuple[Word, ...]:
        """Return the words of a recording by start time; empty if nobody speaks."""
        words: list[Word] = []
        for start, samples in quiet_cuts(recording):
            # At temperature 0 nothing is sampled, so two runs are equal.
            segments, _ = self._model.transcribe(
                samples,
                word_timestamps=True,
                temperature=0.0,
                vad_filter=True,
                condition_on_previous_text=False,
            )
            for word in (word for segment in segments for word in segment.words or ()):
                begins = float(np.clip(start + word.start, 0, recording.seconds))
                ends = float(np.clip(start + word.end, begins, recording.seconds))
                words += [Word(text, begins, ends) for text in word.word.split()]
        return tuple(sorted(words, key=lambda word: word.start))


def quiet_cuts(
    recording: Recording, piece: int = PART, margin: int = MARGIN
) -> Iterator[tuple[float, FloatArray]]:
    """Yield (start in seconds, samples) of the segments of a recording that have sound, cut at the
    quietest step.

    Args:
        recording: with sound.
        piece: longest segment, in steps.
        margin: steps at the end of a segment among which the quietest is sought.
    """
    held: FloatArray = np.zeros(0, np.float32)
    sounds = False
    start = 0
    for sound in recording.sound(piece * STEP_SAMPLES):
        held, sounds = (
            np.concatenate([held, sound.samples]),
            sounds or bool(audible(sound)[0].any()),
        )
        while len(held) > piece * STEP_SAMPLES:
            ending = held[(piece - margin) * STEP_SAMPLES : piece * STEP_SAMPLES].reshape(
                margin, STEP_SAMPLES
            )
            cut = (
                piece - margin + int((ending**2).sum(1).argmin())
            ) * STEP_SAMPLES + STEP_SAMPLES // 2
            if sounds:
                yield start / RATE, held[:cut]
            start, held = start + cut, held[cut:]
            sounds = bool(held.any())
    if len(held) and sounds:
        yield start / RATE, held


def _faster_whisper() -> Any:
    try:
        return import_module("faster_whisper")
    except ImportError:
        raise CorrKDError("transcription needs faster-whisper: pip install 'corrkd[hub]'") from None
