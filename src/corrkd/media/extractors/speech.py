"""Audio from a speech encoder: WavLM, HuBERT, wav2vec 2, Whisper's encoder."""

from __future__ import annotations

from functools import cached_property
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

    def frames(self, clip: Clip) -> Frames:
        """Return (steps, width). Steps below -70 dBFS or without sound are missing."""
        return sound_frames(clip, self.width, self._measured)

    def _measured(self, recording: Recording) -> Measured:
        for window, states in self._model.states(recording, silence=False):
            count = -(-len(window.sound.samples) // STEP_SAMPLES)
            yield (
                np.zeros((count, self.width), np.float32)
                if states is None
                else by_step(states, count),
                window.sound,
            )


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
