"""Running speech models on recordings of any length: in batches of windows with context on both
sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import FloatArray
from corrkd.errors import CorrKDError
from corrkd.hub import ModelFiles
from corrkd.media.clip import audible
from corrkd.media.decode import RATE, STEP_SAMPLES, Recording, Sound

CORE, CONTEXT = 100, 10  # in steps: a window, and its context before and after
SHORTEST = 2 * STEP_SAMPLES  # samples that the convolutions need
WINDOWS_ON_GPU = 8  # windows per batch; one on a CPU, where more are no faster


class Window(NamedTuple):
    """A segment of a recording with its context.

    Attributes:
        samples: (n,) with the context.
        lead: how many of them are context before the segment.
        start: position of the segment in the recording, in samples.
        sound: the segment without context.
    """

    samples: FloatArray
    lead: int
    start: int
    sound: Sound


class States(NamedTuple):
    """The hidden states of the segment of a window.

    Attributes:
        values: (T, d) float32.
        middles: (T,) centre of each state, in seconds from the start of the segment.
        seconds: duration of each state, in seconds.
    """

    values: FloatArray
    middles: npt.NDArray[np.float64]
    seconds: float


def windows(recording: Recording, core: int, context: int) -> Iterator[Window]:
    """Yield a recording in segments of `core` samples, each with up to `context` samples before and
    after it.
    """
    before: FloatArray = np.zeros(0, np.float32)
    start = 0
    for sound, following in pairwise(chain(recording.sound(core), [None])):
        assert sound is not None
        after = before[:0] if following is None else following.samples[:context]
        yield Window(np.concatenate([before, sound.samples, after]), len(before), start, sound)
        before = sound.samples[-context:]
        start += len(sound.samples)


def alike(windows: Iterator[Window], most: int) -> Iterator[list[Window]]:
    """Yield batches of at most `most` consecutive windows of equal length, so that none is
    padded.
    """
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) == most or len(window.samples) != len(batch[0].samples)):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


class SpeechModel:
    """A speech model of transformers that reads samples or a spectrogram.

    Args:
        files: files of the model.
        kind: its Auto class in transformers, as "AutoModel".
        output: attribute of its result that is used.
        device: device of the model, as "cpu" or "cuda".
    """

    def __init__(self, files: ModelFiles, kind: str, output: str, device: str) -> None:
        self.files, self._kind, self._output, self._device = files, kind, output, device

    @cached_property
    def _prepare(self) -> Any:
        extractor = self.files.load("AutoFeatureExtractor")
        if getattr(extractor, "sampling_rate", None) != RATE:
            raise CorrKDError(
                f"model {self.files.name}: reads no sound at {RATE} Hz; choose a speech model"
            )
        return extractor

    @cached_property
    def _model(self) -> Any:
        model = self.files.load_model(self._kind)
        if model.config.is_encoder_decoder:  # for Whisper, only the encoder
            model = model.get_encoder()
        return model.to(self._device)

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        """Samples of a segment and of its context. Whisper reads windows of a fixed length, which
        are padded.
        """
        fixed = getattr(self._prepare, "n_samples", None)
        if fixed is None:
            return CORE * STEP_SAMPLES, CONTEXT * STEP_SAMPLES
        steps = fixed // STEP_SAMPLES
        context = min(CONTEXT, steps // 4)
        return max(1, steps - 2 * context) * STEP_SAMPLES, context * STEP_SAMPLES

    def load(self) -> None:
        """Load the model and its preprocessor. Raises CorrKDError if one cannot be read."""
        _ = self._model, self._prepare

    def states(
        self, recording: Recording, *, silence: bool
    ) -> Iterator[tuple[Window, States | None]]:
        """Yield the windows of a recording with their states.

        Args:
            recording: with sound.
            silence: whether to run the model on segments without sound too; else their states are
                None.
        """
        most = 1 if self._device == "cpu" else WINDOWS_ON_GPU
        for batch in alike(windows(recording, *self._sizes), most):
            heard = [window for window in batch if silence or audible(window.sound)[0].any()]
            read = iter(self._read(heard) if heard else ())
            sounding = {window.start for window in heard}
            for window in batch:
                yield window, next(read) if window.start in sounding else None

    def _read(self, batch: list[Window]) -> list[States]:
        """Return the states of windows of equal length."""
        import torch

        length = len(batch[0].samples)
        sounds = [np.pad(window.samples, (0, max(0, SHORTEST - length))) for window in batch]
        inputs = self._prepare(sounds, sampling_rate=RATE, return_tensors="pt")
        key = "input_values" if "input_values" in inputs else "input_features"
        with torch.inference_mode(), exact():
            output = self._model(**{key: inputs[key].to(self._device)})
            values = getattr(output, self._output).float().cpu().numpy()
        read = max(len(sounds[0]), getattr(self._prepare, "n_samples", 0))  # samples, with padding
        per_state = read / values.shape[1]
        middle = (np.arange(values.shape[1]) + 0.5) * per_state
        return [
            _inside(window, states, middle, per_state)
            for window, states in zip(batch, values, strict=True)
        ]


def _inside(
    window: Window, values: FloatArray, middle: npt.NDArray[np.float64], per_state: float
) -> States:
    """Return the states of the segment without its context; the nearest state if the segment is
    shorter than one.
    """
    after = window.lead + len(window.sound.samples)
    inside = np.flatnonzero((middle >= window.lead) & (middle < after))
    if not len(inside):
        inside = np.array([np.abs(middle - (window.lead + after) / 2).argmin()])
    return States(values[inside], (middle[inside] - window.lead) / RATE, per_state / RATE)


def exact() -> Any:
    """Return a context in which convolutions on a GPU use full float32 precision and are
    deterministic.
    """
    import torch

    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
