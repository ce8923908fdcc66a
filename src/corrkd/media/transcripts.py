"""The words of a clip: from the labels, else from a text or subtitle file beside the clip.
Subtitles give times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from corrkd.errors import CorrKDError
from corrkd.parsing import read_text

LARGEST = 4 << 20  # bytes of a transcript file
MOST_WORDS = 100_000
SUBTITLES, PLAIN = (".vtt", ".srt"), ".txt"
ENDINGS = (*SUBTITLES, PLAIN)  # in order of preference

_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,6})"
_CUE = re.compile(rf"{_TIME}\s*-->\s*{_TIME}[^\n]*")
_INSIDE = re.compile(rf"<{_TIME}>")  # a timestamp within a cue of WebVTT
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


class Word(NamedTuple):
    """A word and its time.

    Attributes:
        text: the word as written.
        start, end: seconds from the start of the clip; NaN if unknown.
    """

    text: str
    start: float = math.nan
    end: float = math.nan


class Transcript(NamedTuple):
    """The words of a clip and their source.

    Attributes:
        words: in order.
        source: "labels", "vtt", "srt", "txt", "transcribed", or "none".
    """

    words: tuple[Word, ...] = ()
    source: str = "none"

    @property
    def is_timed(self) -> bool:
        """Whether each word has a time."""
        return not any(math.isnan(word.start) for word in self.words)


def transcript_of(path: Path | None, text: str = "") -> Transcript:
    """Return the transcript of a clip.

    Args:
        path: the recording, which may have a .vtt, .srt or .txt file of the same name beside it; or
            a .txt file; None: there is no file.
        text: from the labels; unless empty, it is used instead of a file.

    Raises:
        CorrKDError: if the file is not UTF-8 or is too long.
    """
    if text.strip():
        return _limited(
            Transcript(tuple(Word(word) for word in text.split()), "labels"),
            "the text in the labels",
        )
    file = transcript_file(path)
    if file is None:
        return Transcript()
    content = read_text(file, LARGEST).removeprefix("\ufeff")
    timed = file.suffix.lower() in SUBTITLES
    words = subtitle_words(content) if timed else [Word(word) for word in content.split()]
    return _limited(
        Transcript(tuple(words), file.suffix.lower()[1:] if words else "none"), file.name
    )


def transcript_file(path: Path | None) -> Path | None:
    """Return the transcript file beside a recording, or the clip itself if it is one; None if there
    is none.
    """
    if path is None:
        return None
    if path.suffix.lower() == PLAIN:
        return path
    return next((file for ending in ENDINGS if (file := path.with_suffix(ending)).is_file()), None)


def _limited(transcript: Transcript, where: str) -> Transcript:
    if len(transcript.words) > MOST_WORDS:
        raise CorrKDError(
            f"{where}: {len(transcript.words):,} words, and {MOST_WORDS:,} are allowed; cut the "
            f"clip"
        )
    return transcript


def subtitle_words(text: str) -> list[Word]:
    """Return the words of WebVTT or SubRip subtitles by start time.

    The words of a cue, or between two timestamps within it, divide its time in proportion to their
    lengths.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    words: list[Word] = []
    for block in re.split(r"\n[ \t]*\n", lines):
        cue = _CUE.search(block)
        if cue:
            start, end = _seconds(cue.groups()[:4]), _seconds(cue.groups()[4:])
            words += _cue_words(block[cue.end() :], start, max(start, end))
    return sorted(words, key=lambda word: word.start)


def _cue_words(text: str, start: float, end: float) -> list[Word]:
    pieces = _INSIDE.split(text)  # text, then four groups of a timestamp and the text after it
    words: list[Word] = []
    times = [start, *(_seconds(pieces[i : i + 4]) for i in range(1, len(pieces), 5)), end]
    for piece, first, last in zip(pieces[::5], times[:-1], times[1:], strict=True):
        words += spread(
            [Word(word) for word in _TAG.sub("", piece).split()], first, max(first, last)
        )
    return words


def _seconds(groups: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = (group or "0" for group in groups)
    return (
        3600 * int(hours) + 60 * int(minutes) + int(seconds) + int(fraction) / 10 ** len(fraction)
    )


def spread(words: Iterable[Word], start: float, end: float) -> list[Word]:
    """Return the words one after another from `start` to `end` (seconds), with durations in
    proportion to their number of letters plus one for the gap.
    """
    words = list(words)
    per_letter = (end - start) / max(1, sum(len(word.text) + 1 for word in words))
    out, at = [], start
    for word in words:
        following = at + per_letter * (len(word.text) + 1)
        out.append(Word(word.text, at, following))
        at = following
    return out
