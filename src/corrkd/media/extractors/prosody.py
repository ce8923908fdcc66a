"""Audio without weights: descriptors of timbre, loudness and pitch, computed with NumPy and
SciPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import chain, pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy import fft

from corrkd.data.dataset import FloatArray
from corrkd.media.clip import Clip
from corrkd.media.decode import BLOCK, RATE, STEP_SAMPLES, Recording, Sound
from corrkd.media.extractors.base import Extractor, Frames
from corrkd.media.extractors.steps import Measured, sound_frames

HOP = 160  # samples between the windows of descriptors: 10 ms
WINDOW, PITCH_WINDOW = 400, 640  # samples: 25 and 40 ms
FFT, PITCH_FFT = 512, 2048
BANDS, LOWEST, HIGHEST = 40, 50.0, 7600.0  # of the mel scale; Hz
NUM_MFCC = 20
ROLLOFF = 0.85  # fraction of the power below the roll-off frequency
PITCH_LOW, PITCH_HIGH = 60, 500  # Hz
OCTAVE_COST = 0.05  # of a peak's height, for each doubling of the period
VOICED = 0.5  # height of the autocorrelation's peak
SEMITONES_FROM = 55.0  # Hz
# samples around a block that its windows reach
BEFORE, AFTER = HOP + PITCH_WINDOW // 2, PITCH_WINDOW // 2
DESCRIPTORS = (
    *(f"mfcc_{i}" for i in range(NUM_MFCC)),
    *(
        "log_energy",
        "zero_crossings",
        "centroid_khz",
        "rolloff_khz",
        "flux",
        "pitch_semitones",
        "voicing",
    ),
)
PITCH = DESCRIPTORS.index("pitch_semitones")


class Prosody(Extractor):
    """Mean and standard deviation of 27 descriptors over each tenth of a second; for pitch, over
    its voiced windows.
    """

    name: ClassVar[str] = "prosody"
    version: ClassVar[int] = 1
    modality: ClassVar[str] = "audio"
    columns: tuple[str, ...] = (
        *(f"{d}_mean" for d in DESCRIPTORS),
        *(f"{d}_std" for d in DESCRIPTORS),
    )
    libraries: ClassVar[tuple[str, ...]] = ("av", "numpy", "scipy")

    def frames(self, clip: Clip) -> Frames:
        """Return (steps, 54). Steps below -70 dBFS or without sound are missing."""
        return sound_frames(clip, self.width, _measured)


def _measured(recording: Recording) -> Measured:
    """Yield each block with the features of its steps."""
    for context, sound in _in_context(recording.sound(BLOCK)):
        yield _steps(context, -(-len(sound.samples) // STEP_SAMPLES)), sound


def _in_context(blocks: Iterator[Sound]) -> Iterator[tuple[FloatArray, Sound]]:
    """Yield each block with the samples before and after it that its windows reach; zeros beyond
    the ends.
    """
    before: FloatArray = np.zeros(BEFORE, np.float32)
    for sound, following in pairwise(chain(blocks, [None])):
        assert sound is not None
        # the last step may be shorter
        num_samples = -(-len(sound.samples) // STEP_SAMPLES) * STEP_SAMPLES
        padded = np.pad(sound.samples, (0, num_samples - len(sound.samples)))
        after = np.zeros(AFTER, np.float32) if following is None else following.samples[:AFTER]
        after = np.pad(after, (0, AFTER - len(after)))
        yield np.concatenate([before, padded, after]), sound
        before = padded[-BEFORE:]


def _steps(context: FloatArray, count: int) -> FloatArray:
    """Return (count, 54) of a block with its context."""
    per_step = STEP_SAMPLES // HOP
    d = _descriptors(context).reshape(count, per_step, len(DESCRIPTORS))
    mean, std = d.mean(1), d.std(1)
    voiced = d[:, :, PITCH] > 0
    number = np.maximum(voiced.sum(1), 1)
    mean[:, PITCH] = d[:, :, PITCH].sum(1) / number
    std[:, PITCH] = np.sqrt(
        (np.where(voiced, d[:, :, PITCH] - mean[:, PITCH, None], 0) ** 2).sum(1) / number
    )
    return np.concatenate([mean, std], 1).astype(np.float32)


def _descriptors(context: FloatArray) -> FloatArray:
    """Return (windows, 27), a window every 10 ms of the block, centred there."""
    # One window more, before the first: the flux is a difference.
    windows = _windows(context, WINDOW, BEFORE - HOP, HOP)
    spectrum = np.abs(fft.rfft(windows * np.hanning(WINDOW).astype(np.float32), FFT))
    change = np.diff(spectrum / (np.linalg.norm(spectrum, axis=1, keepdims=True) + 1e-6), axis=0)
    windows, power = windows[1:], spectrum[1:] ** 2
    mfcc = fft.dct(np.log(power @ _mel_bands().T + 1e-6), norm="ortho")[:, :NUM_MFCC]
    frequencies = fft.rfftfreq(FFT, 1000 / RATE).astype(np.float32)  # kHz
    total = power.sum(1) + 1e-9
    rolloff = (np.cumsum(power, 1) < ROLLOFF * total[:, None]).sum(1)
    columns = (
        mfcc,
        np.log((windows**2).mean(1) + 1e-9),
        np.diff(np.signbit(windows), axis=1).mean(1),
        power @ frequencies / total,
        frequencies[np.minimum(rolloff, len(frequencies) - 1)],
        np.linalg.norm(change, axis=1),
        *_pitch(_windows(context, PITCH_WINDOW, BEFORE, HOP)),
    )
    return np.column_stack(columns).astype(np.float32)


def _windows(context: FloatArray, width: int, first: int, hop: int) -> FloatArray:
    """Return (windows, width) of a block's context, centred at `first` and every `hop` samples up
    to the block's end.
    """
    count = (len(context) - AFTER - first) // hop
    start = first - width // 2
    view = np.lib.stride_tricks.sliding_window_view(context, width)
    return view[start : start + count * hop : hop]


def _pitch(windows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return (semitones above 55 Hz, 0 where unvoiced; height of the autocorrelation's peak, 0 to
    1).
    """
    shape = np.hanning(PITCH_WINDOW).astype(np.float32)
    low, high = RATE // PITCH_HIGH, RATE // PITCH_LOW
    tapered = (windows - windows.mean(1, keepdims=True)) * shape
    products = fft.irfft(np.abs(fft.rfft(tapered, PITCH_FFT)) ** 2)[:, : high + 1]
    of_shape = fft.irfft(np.abs(fft.rfft(shape, PITCH_FFT)) ** 2)[: high + 1]
    correlation = np.clip(products / (products[:, :1] + 1e-7) / (of_shape / of_shape[0]), -1, 1)
    # A period of the signal also repeats at its multiples: of similar peaks the first one counts.
    cost = OCTAVE_COST * np.log2(np.arange(low, high) / low).astype(np.float32)
    lag = low + (correlation[:, low:high] - cost).argmax(1)
    before, peak, after = (
        np.take_along_axis(correlation, (lag + i)[:, None], 1)[:, 0] for i in (-1, 0, 1)
    )
    curve = before - 2 * peak + after
    exact = lag + np.where(curve < 0, 0.5 * (before - after) / np.minimum(curve, -1e-6), 0).clip(
        -0.5, 0.5
    )
    semitones = np.where(peak > VOICED, 12 * np.log2(RATE / exact / SEMITONES_FROM), 0.0)
    return semitones.astype(np.float32), np.maximum(peak, 0)


@cache
def _mel_bands() -> npt.NDArray[np.float32]:
    """Return triangles (bands, frequencies) of equal width on the mel scale."""

    def mel(hertz: float) -> float:
        return float(2595 * np.log10(1 + hertz / 700))

    edges = 700 * (10 ** (np.linspace(mel(LOWEST), mel(HIGHEST), BANDS + 2) / 2595) - 1)
    frequencies = fft.rfftfreq(FFT, 1 / RATE)[None]
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
