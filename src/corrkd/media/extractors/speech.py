"""Audio from a speech encoder: WavLM, HuBERT, wav2vec 2, Whisper's encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import ClassVar

import numpy as np

from corrkd.data.dataset import FloatArray
from corrkd.media.clip import Clip
from corrkd.media.decode import STEP, STEP_SAMPLES, Recording
from corrkd.media.extractors.base import Frames
from corrkd.media.extractors.model import ModelExtractor
from corrkd.media.extractors.steps import Measured, sound_frames
from corrkd.media.sound_windows import SpeechModel, States


class Speech(ModelExtractor):
    """10 frames per second: the mean of the encoder's last hidden states."""

    name: ClassVar[str] = "speech"
    version: ClassVar[int] = 1
    modality: ClassVar[str] = "audio"

    @cached_property
    def _model(self) -> SpeechModel:
        return SpeechModel(self.files, "AutoModel", "last_hidden_state", self.device)

    def load(self) -> None:
        """Load the encoder."""
        self._model.load()

    def batch(self, clips: Sequence[Clip]) -> list[Frames]:
        """Return (steps, width) of each clip. Steps below -70 dBFS or without sound are missing."""
        recordings = [clip.with_sound for clip in clips if clip.with_sound is not None]
        read = self._model.states(recordings, silence=False)
        by_recording = groupby(read, key=lambda part: part[0].recording)

        def measured(_: Recording) -> Measured:  # called in the order of `recordings`
            for window, states in next(by_recording)[1]:
                count = -(-len(window.sound.samples) // STEP_SAMPLES)
                yield (
                    np.zeros((count, self.width), np.float32)
                    if states is None
                    else by_step(states, count),
                    window.sound,
                )

        return [sound_frames(clip, self.width, measured) for clip in clips]


def by_step(states: States, count: int) -> FloatArray:
    """Return (count, d): the mean of the states in each step, or the nearest state if a step has
    none.
    """
    step = np.clip((states.middles / STEP).astype(np.int64), 0, count - 1)
    number = np.bincount(step, minlength=count)
    sums = np.zeros((count, states.values.shape[1]), np.float64)
    np.add.at(sums, step, states.values)
    values = sums / np.maximum(number, 1)[:, None]
    for empty in np.flatnonzero(number == 0):
        values[empty] = states.values[np.abs(states.middles - (empty + 0.5) * STEP).argmin()]
    return values.astype(np.float32)
