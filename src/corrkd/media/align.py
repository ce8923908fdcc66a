"""Averaging frames at equal steps to one frame per word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from corrkd.media.extractors.base import Frames
from corrkd.media.transcripts import Word

ROUNDING = 1e-6  # seconds: rounding error of times


def by_word(frames: Frames, words: Sequence[Word]) -> Frames:
    """Return one frame per word: the mean of the present frames that overlap it, or a missing
    frame.

    Args:
        frames: at equal steps, in temporal order; `times` are their centres.
        words: W words with times.
    """
    half = (frames.times[1] - frames.times[0]) / 2 if len(frames.times) > 1 else np.inf
    starts, ends = frames.times - half, frames.times + half
    values = np.zeros((len(words), frames.values.shape[1]), np.float32)
    present = np.zeros(len(words), bool)
    for index, word in enumerate(words):
        first = int(np.searchsorted(ends, word.start + ROUNDING, "right"))
        # a word of zero duration overlaps one frame too
        after = max(first + 1, int(np.searchsorted(starts, word.end - ROUNDING, "left")))
        rows = np.arange(first, min(after, len(starts)))
        rows = rows[frames.present[rows]]
        if len(rows):
            values[index], present[index] = frames.values[rows].mean(0), True
    times = np.array([(word.start + word.end) / 2 for word in words])
    lost = int((~present).sum())
    reason = max(
        frames.missing, key=lambda name: frames.missing[name], default="nothing under the word"
    )
    return Frames(values, present, times, {reason: lost} if lost else {})
