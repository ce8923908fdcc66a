"""Running speech models on recordings of any length: in batches of windows with context on both
sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, compress, pairwise
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
WINDOWS_TOGETHER = 8  # windows per batch; one for a single recording on a CPU, no slower there


class Window(NamedTuple):
    """A segment of a recording with its context.

    Attributes:
        recording: its index.
        samples: (n,) with the context.
        lead: how many of them are context before the segment.
        start: position of the segment in the recording, in samples.
        sound: the segment without context.
    """

    recording: int
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


def windows(recording: Recording, core: int, context: int, index: int = 0) -> Iterator[Window]:
    """Yield a recording in segments of `core` samples, each with up to `context` samples before and
    after it. `index` is the index of the recording.
    """
    before: FloatArray = np.zeros(0, np.float32)
    start = 0
    for sound, following in pairwise(chain(recording.sound(core), [None])):
        assert sound is not None
        after = before[:0] if following is None else following.samples[:context]
        samples = np.concatenate([before, sound.samples, after])
        yield Window(index, samples, len(before), start, sound)
        before = sound.samples[-context:]
        start += len(sound.samples)


def together(in_order: Iterator[Window], most: int, *, any_length: bool) -> Iterator[list[Window]]:
    """Yield batches of at most `most` consecutive windows, of equal length unless `any_length`."""
    batch: list[Window] = []
    for window in in_order:
        fits = any_length or not batch or len(window.samples) == len(batch[0].samples)
        if len(batch) == most or not fits:
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
    def _fills(self) -> int:
        """Samples to which every window is filled: Whisper's have a fixed length; else 0."""
        return getattr(self._prepare, "n_samples", 0)

    @cached_property
    def _sizes(self) -> tuple[int, int]:
        """Samples of a segment and of its context."""
        if not self._fills:
            return CORE * STEP_SAMPLES, CONTEXT * STEP_SAMPLES
        steps = self._fills // STEP_SAMPLES
        context = min(CONTEXT, steps // 4)
        return max(1, steps - 2 * context) * STEP_SAMPLES, context * STEP_SAMPLES

    def load(self) -> None:
        """Load the model and its preprocessor. Raises CorrKDError if one cannot be read."""
        _ = self._model, self._prepare

    @cached_property
    def _masks_padding(self) -> bool:
        """Whether the model ignores padding. Those that normalise over time (the base models of
        wav2vec 2 and its kin) do not, and their preparation says so.
        """
        return bool(getattr(self._prepare, "return_attention_mask", False))

    def states(
        self, recordings: Sequence[Recording], *, silence: bool
    ) -> Iterator[tuple[Window, States | None]]:
        """Yield the windows of recordings, one recording after the other, with their states.

        Args:
            recordings: with sound; their windows are batched if the model allows it.
            silence: whether to run the model on segments without sound too; else their states are
                None.
        """
        alone = self._device == "cpu" and len(recordings) == 1
        in_order = chain.from_iterable(
            windows(recording, *self._sizes, index) for index, recording in enumerate(recordings)
        )
        for batch in together(
            in_order,
            1 if alone else WINDOWS_TOGETHER,
            any_length=self._fills > 0 or self._masks_padding,
        ):
            heard = [silence or bool(audible(window.sound)[0].any()) for window in batch]
            read = iter(self._read(list(compress(batch, heard))))
            for window, sounds in zip(batch, heard, strict=True):
                yield window, next(read) if sounds else None

    def _read(self, batch: list[Window]) -> list[States]:
        """Return the states of windows, of equal length unless `_fills` or `_masks_padding`."""
        import torch

        if not batch:
            return []
        sounds = [
            np.pad(window.samples, (0, max(0, SHORTEST - len(window.samples)))) for window in batch
        ]
        lengths = [len(sound) for sound in sounds]
        padded = not self._fills and len(set(lengths)) > 1
        options = {"padding": True, "return_attention_mask": True} if padded else {}
        inputs = self._prepare(sounds, sampling_rate=RATE, return_tensors="pt", **options)
        keys = ["input_values" if "input_values" in inputs else "input_features"]
        keys += ["attention_mask"] if padded else []
        with torch.inference_mode(), exact():
            output = self._model(**{key: inputs[key].to(self._device) for key in keys})
            values = getattr(output, self._output).float().cpu().numpy()
        counts = [values.shape[1]] * len(batch)
        if padded:
            counts = self._model._get_feat_extract_output_lengths(torch.tensor(lengths)).tolist()
        # The states of a model that fills its windows cover the filling too.
        return [
            _inside(window, states[:count], max(length, self._fills))
            for window, states, count, length in zip(batch, values, counts, lengths, strict=True)
        ]


def _inside(window: Window, values: FloatArray, num_samples: int) -> States:
    """Return the states of the segment without its context; the nearest state if the segment is
    shorter than one. The values (T, d) cover `num_samples`.
    """
    per_state = num_samples / len(values)
    middle = (np.arange(len(values)) + 0.5) * per_state
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
