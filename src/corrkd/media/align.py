"""From frames at equal steps to a frame a word."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from corrkd.media.extractors.base import Frames
from corrkd.media.transcripts import Word


def by_word(frames: Frames, words: Sequence[Word]) -> Frames:
    """Return a frame for each word: the mean of the present frames that begin and end around it, missing where none is present.

    Args:
        frames: at equal steps, in the order of time; their `times` are the middles.
        words: with times.
    """
    half = (frames.times[1] - frames.times[0]) / 2 if len(frames.times) > 1 else np.inf
    values = np.zeros((len(words), frames.values.shape[1]), np.float32)
    present = np.zeros(len(words), bool)
    for index, word in enumerate(words):
        first = int(np.searchsorted(frames.times + half, word.start, "right"))
        after = int(np.searchsorted(frames.times - half, word.end, "left"))
        rows = np.arange(min(first, len(frames.times) - 1), max(after, first + 1))
        rows = rows[rows < len(frames.times)]
        rows = rows[frames.present[rows]]
        if len(rows):
            values[index], present[index] = frames.values[rows].mean(0), True
    times = np.array([(word.start + word.end) / 2 for word in words])
    lost = int((~present).sum())
    reason = max(frames.missing, key=lambda name: frames.missing[name], default="nothing under the word")
    return Frames(values, present, times, {reason: lost} if lost else {})
