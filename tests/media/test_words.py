"""Words of recordings without a transcript, and times of words, by a fake of faster-whisper and by
tiny CTC models.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from corrkd.errors import CorrKDError
from corrkd.media import forced_align
from corrkd.media.clip import Clip
from corrkd.media.decode import Recording
from corrkd.media.features import FeatureSettings, describe, extract, settings_of
from corrkd.media.forced_align import BETWEEN, Aligner, best_path, letters_of, timed
from corrkd.media.transcribe import Transcriber, quiet_cuts
from corrkd.media.transcripts import Word
from corrkd.parsing import refusing
from tests.media.clips import tone, write_clip
from tests.media.hub_models import CTC_VOCABULARY, wav2vec

PAUSE = np.zeros(16_000, np.float32)

# --------------------------------------------------------------------------------------------------
# paths


def collapsed(path: tuple[int, ...]) -> list[int]:
    """Collapse a path of CTC: repeats once, without blanks (0)."""
    return [label for label, _ in itertools.groupby(path) if label]


@pytest.mark.parametrize("ids", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 2], [2, 2, 2]])
@pytest.mark.parametrize("frames", [1, 3, 5, 6])
def test_the_best_path_matches_an_exhaustive_search(ids: list[int], frames: int) -> None:
    scores = np.log(np.random.default_rng(frames).dirichlet(np.ones(3), frames)).astype(np.float32)
    every = [path for path in itertools.product(range(3), repeat=frames) if collapsed(path) == ids]
    alignment = best_path(scores, np.array(ids), 0)
    if not every:
        assert alignment is None
        return
    assert alignment is not None
    labels = np.where(alignment >= 0, np.array(ids)[alignment], 0)
    assert collapsed(tuple(labels.tolist())) == ids
    best = max(scores[np.arange(frames), list(path)].sum() for path in every)
    assert scores[np.arange(frames), labels].sum() == pytest.approx(best, rel=1e-5)
    assert (np.diff(alignment[alignment >= 0]) >= 0).all()


def test_letters_are_mapped_to_the_models_vocabulary() -> None:
    letters = letters_of(["Café", "42", "it's"], CTC_VOCABULARY, 4)
    text = {number: letter for letter, number in CTC_VOCABULARY.items()}
    assert "".join(text[i] for i in letters.ids.tolist()) == "CAFE|IT'S"
    assert letters.words.tolist() == [0] * 4 + [BETWEEN] + [2] * 4
    assert letters_of(["42"], CTC_VOCABULARY, 4).ids.tolist() == []
    assert letters_of(["a", "b"], {"a": 0, "b": 1}, None).ids.tolist() == [0, 1]


def test_words_last_from_their_first_letter_to_their_last() -> None:
    letters = letters_of(["1", "ab", "2", "3", "c", "4"], {"a": 1, "b": 2, "c": 3, "|": 4}, 4)
    path = np.array([-1, 0, -1, 1, 2, -1, 3, 3])
    times = np.arange(8) * 0.02
    words = timed(
        [Word(text) for text in ("1", "ab", "2", "3", "c", "4")], letters, path, times, times + 0.02
    )
    spans = [(word.text, round(word.start, 3), round(word.end, 3)) for word in words]
    assert spans == [
        ("1", 0.02, 0.02),
        ("ab", 0.02, 0.08),
        ("2", 0.08, 0.1),
        ("3", 0.1, 0.12),
        ("c", 0.12, 0.16),
        ("4", 0.16, 0.16),
    ]


# --------------------------------------------------------------------------------------------------
# times of words


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wav2vec(tmp_path_factory.mktemp("ctc"), letters=True)


def test_words_get_times_from_a_model(reader: Path, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.wav", sound=np.concatenate([tone(1.0), PAUSE, tone(0.5, 300)]))
    align = Aligner(str(reader))
    align.load()
    clip = Clip(path, "so very 7 good", align=align)
    words = clip.timed_words
    assert [word.text for word in words] == ["so", "very", "7", "good"]
    assert all(0 <= word.start <= word.end <= clip.seconds + 0.02 for word in words)
    assert all(a.end <= b.start + 1e-9 for a, b in itertools.pairwise(words))
    assert words != Clip(path, "so very 7 good").timed_words
    assert words == Clip(path, "so very 7 good", align=align).timed_words


def test_the_path_follows_the_models_scores(
    reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is certain of a letter at a time gives its word that time."""
    recording = Recording(write_clip(tmp_path / "a.wav", sound=tone(2.0)))
    align = Aligner(str(reader))

    def certain_scores(_: Recording, used: Any) -> tuple[Any, Any, float]:
        scores = np.full((100, len(CTC_VOCABULARY)), -20.0, np.float32)
        scores[:, 0] = 0
        for letter, frames in (("N", (20, 22)), ("O", (22, 30)), ("|", (40, 41)), ("W", (70, 75))):
            scores[slice(*frames), [0, CTC_VOCABULARY[letter]]] = -20, 0
        return scores[:, used], (np.arange(100) + 0.5) * 0.02, 0.02

    monkeypatch.setattr(align, "_heard", certain_scores)
    words = align(recording, [Word("no"), Word("w")])
    assert words is not None
    np.testing.assert_allclose([(w.start, w.end) for w in words], [(0.4, 0.6), (1.4, 1.5)])


def test_where_a_model_cannot_align_letters_are_spread(
    reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "a.wav", sound=tone(1.0))
    align = Aligner(str(reader))
    for text in ("42 17", "far too many letters for a second " * 9):
        assert Clip(path, text, align=align).timed_words == Clip(path, text).timed_words
    assert Clip(None, "words", align=align).timed_words == Clip(None, "words").timed_words
    monkeypatch.setattr(forced_align, "MOST_CELLS", 100)
    with pytest.raises(CorrKDError, match=r"a.wav: 1 s with 2 words are too long to align; cut it"):
        _ = Clip(path, "so good", align=align).timed_words


def test_an_align_model_is_described(reader: Path, tmp_path: Path) -> None:
    extractors = {"language": "hash-words", "audio": "prosody"}
    settings = FeatureSettings(extractors=extractors, align="words", align_model=str(reader))
    described: dict[str, Any] = json.loads(describe(settings).model_dump_json())
    assert described["aligner"]["model"] == str(reader)
    assert settings_of(described, "x") == (settings, [])
    path = write_clip(tmp_path / "a.wav", sound=tone(1.0))
    assert len(extract(path, settings, "so good").frames["audio"].present) == 2
    described["aligner"]["weights"]["vocab.json"] = "0" * 64
    with pytest.raises(
        CorrKDError,
        match=r"its words got their times from 'ctc', which differs .*weights of vocab.json",
    ):
        settings_of(described, "x")
    with (
        pytest.raises(CorrKDError, match="add --align words"),
        refusing("settings of features", "x"),
    ):
        FeatureSettings(align_model=str(reader))
    other = wav2vec(tmp_path / "other")  # has no letters
    with pytest.raises(CorrKDError, match="its weights lack"):
        Aligner(str(other)).load()


# --------------------------------------------------------------------------------------------------
# transcription


class FakeModel:
    """A model that returns two words in the first second of any sound."""

    made: dict[str, Any]
    heard: list[int]

    def __init__(self, folder: str, **options: Any) -> None:
        FakeModel.made, FakeModel.heard = {"folder": folder, **options}, []

    def transcribe(self, samples: Any, **options: Any) -> tuple[Any, Any]:
        assert samples.dtype == np.float32
        assert options["word_timestamps"]
        assert options["temperature"] == 0.0
        self.heard.append(len(samples))
        words = [
            SimpleNamespace(word=" Hello", start=0.1, end=0.5),
            SimpleNamespace(word=" there.", start=0.5, end=99.0),
        ]
        return iter([SimpleNamespace(words=words), SimpleNamespace(words=None)]), None


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "whisper"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights")
    module = ModuleType("faster_whisper")
    module.WhisperModel = FakeModel  # type: ignore[attr-defined]
    module.download_model = lambda name, revision: str(folder)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    return folder


def test_recordings_without_a_transcript_are_transcribed(fake: Path, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.wav", sound=tone(1.0))
    transcribe = Transcriber(str(fake))
    clip = Clip(path, transcribe=transcribe)
    assert clip.words == (Word("Hello", 0.1, 0.5), Word("there.", 0.5, clip.seconds))
    assert clip.timed_words == clip.words
    assert clip.transcript.source == "transcribed"
    assert FakeModel.made == {
        "folder": str(fake),
        "device": "cpu",
        "device_index": 0,
        "compute_type": "int8",
        "cpu_threads": 1,
    }
    assert Clip(path, "a text", transcribe=transcribe).transcript.source == "labels"
    path.with_suffix(".txt").write_text("so good", "utf-8")
    assert Clip(path, transcribe=transcribe).transcript.source == "txt"
    path.with_suffix(".txt").write_text(" ", "utf-8")  # an empty transcript
    assert Clip(path, transcribe=transcribe).words == ()
    silent = write_clip(tmp_path / "b.wav", sound=PAUSE)
    FakeModel.heard.clear()
    assert Clip(silent, transcribe=transcribe).transcript.source == "none"
    assert FakeModel.heard == []
    described = transcribe.describe()
    assert described["name"] == "faster-whisper"
    assert list(described["weights"]) == ["model.bin"]
    assert "revision" not in described
    assert Transcriber("base").describe()["revision"] == fake.name


def test_long_sound_is_cut_where_it_is_quiet(tmp_path: Path) -> None:
    sound = np.concatenate([tone(1.75), PAUSE[:1600], tone(1.5), PAUSE, PAUSE, tone(0.4)])
    recording = Recording(write_clip(tmp_path / "a.wav", sound=sound))
    pieces = list(quiet_cuts(recording, piece=20, margin=5))
    assert pieces[0][0] == 0.0
    assert 1.7 < pieces[1][0] < 1.9
    for start, samples in pieces:
        assert len(samples) <= 20 * 1600
        index = round(start * 16_000)
        np.testing.assert_allclose(samples, sound[index : index + len(samples)], atol=1e-3)
    covered = np.zeros(len(sound), bool)
    for start, samples in pieces:
        covered[round(start * 16_000) :][: len(samples)] = True
    assert covered[np.abs(sound) > 0.01].all()


def test_without_faster_whisper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(
        CorrKDError, match=r"transcription needs faster-whisper: pip install 'corrkd\[hub\]'"
    ):
        Transcriber("base")


def test_the_real_package_accepts_the_arguments(tmp_path: Path) -> None:
    """Only names and options: a real model is too large for a test."""
    import inspect

    real = pytest.importorskip("faster_whisper")
    options = inspect.signature(real.WhisperModel.transcribe).parameters
    assert {"word_timestamps", "temperature", "vad_filter", "condition_on_previous_text"} <= set(
        options
    )
    assert {"device", "device_index", "compute_type", "cpu_threads"} <= set(
        inspect.signature(real.WhisperModel.__init__).parameters
    )
    assert "revision" in inspect.signature(real.download_model).parameters
    (tmp_path / "model.bin").write_bytes(b"damaged")
    with pytest.raises(CorrKDError, match="cannot be read"):
        Transcriber(str(tmp_path)).load()
