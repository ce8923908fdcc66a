"""Words and their times."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from corrkd.errors import CorrKDError
from corrkd.media.clip import Clip
from corrkd.media.transcripts import Word, spread, subtitle_words, transcript_of
from tests.media.clips import tone, write_clip

VTT = """WEBVTT

00:01.000 --> 00:03.000 align:start
<v Ann>It was</v> <i>good</i>

1
01:00:04.500 --> 01:00:05.500
a<01:00:05.000> b
"""
SRT = (
    "\ufeff1\r\n00:00:00,500 --> 00:00:01,500\r\nno {\\an8}way\r\n\r\n2\r\nbroken --> "
    "times\r\nlost\r\n"
)


def test_subtitles_give_words_their_times() -> None:
    words = subtitle_words(VTT)
    assert [word.text for word in words] == ["It", "was", "good", "a", "b"]
    # Two seconds are shared by letters, and one for the gap after each word: 3 + 4 + 5.
    np.testing.assert_allclose([word.start for word in words], [1, 1.5, 1 + 7 / 6, 3604.5, 3605])
    np.testing.assert_allclose([word.end for word in words], [1.5, 1 + 7 / 6, 3, 3605, 3605.5])
    assert [word.text for word in subtitle_words(SRT.replace("\ufeff", ""))] == ["no", "way"]


def test_sources_of_transcripts(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.wav", sound=tone(1.0))
    assert transcript_of(path).source == "none"
    (tmp_path / "clip.txt").write_text("plain words here", "utf-8")
    assert (transcript_of(path).source, len(transcript_of(path).words)) == ("txt", 3)
    (tmp_path / "clip.srt").write_text(SRT, "utf-8")
    assert (transcript_of(path).source, transcript_of(path).is_timed) == ("srt", True)
    labelled = transcript_of(path, "from the labels")
    assert (labelled.source, labelled.words[0].text, labelled.is_timed) == ("labels", "from", False)
    assert math.isnan(labelled.words[0].start)
    (tmp_path / "clip.srt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorrKDError, match=r"clip.srt: not UTF-8"):
        transcript_of(path)


def test_words_without_times_lie_between_the_first_and_the_last_sound(tmp_path: Path) -> None:
    pause = np.zeros(16_000, np.float32)
    path = write_clip(tmp_path / "clip.wav", sound=np.concatenate([pause, tone(1.0), pause]))
    words = Clip(path, "ab abcd").timed_words
    assert words[0].start == pytest.approx(1.0)
    assert words[1].end == pytest.approx(2.0)
    assert words[0].end == words[1].start == pytest.approx(1 + 3 / 8)


def test_spread_keeps_order_and_span() -> None:
    words = spread([Word("a"), Word("bbb"), Word("cc")], 2.0, 4.0)
    assert words[0].start == 2.0
    assert words[-1].end == pytest.approx(4.0)
    assert all(first.end == second.start for first, second in pairwise(words))
