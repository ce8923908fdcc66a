"""An extractor of features from recordings: the loudness of each tenth of a second.

python examples/extending/extractor.py RECORDING     prints it
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from corrkd.media.clip import Clip, audible
from corrkd.media.decode import STEP, STEP_SAMPLES
from corrkd.media.extractors.base import Extractor, Frames, absent, middles


class Loudness(Extractor):
    """Loudness of each tenth of a second, in decibels below full scale."""

    name, version, modality, columns = "loudness", 1, "audio", ("decibels",)
    libraries = ("av", "numpy")  # whose versions the numbers may depend on

    def frames(self, clip: Clip) -> Frames:
        """Return its features, or why there are none."""
        if clip.recording is None or not clip.recording.has_audio:
            return absent(self.width, "no audio stream", clip.num_steps, STEP)
        decibels, present = [], []
        for sound in clip.recording.sound():
            starts = np.arange(0, len(sound.samples), STEP_SAMPLES)
            power = np.add.reduceat(sound.samples**2, starts) / STEP_SAMPLES
            decibels.append(10 * np.log10(power + 1e-9))
            present.append(audible(sound)[0])
        values = np.concatenate(decibels).astype(np.float32)[:, None]
        return Frames(values, np.concatenate(present), middles(len(values), STEP))


if __name__ == "__main__":
    print(Loudness().frames(Clip(Path(sys.argv[1]))).values)
