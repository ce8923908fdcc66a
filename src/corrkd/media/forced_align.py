"""Forced alignment: when each word of a transcript is spoken, from the most probable path of its
letters through the output of a CTC speech model.

Source: connectionist temporal classification (CTC), Graves et al., ICML 2006.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import FloatArray
from corrkd.errors import CorrKDError
from corrkd.hub import ModelFiles, parse_model
from corrkd.media.decode import RATE, Recording
from corrkd.media.sound_windows import SpeechModel
from corrkd.media.transcripts import Word, spread

Integers = npt.NDArray[np.int64]
MOST_CELLS = 2**28  # states of the path x frames, one byte each
BETWEEN = -1  # instead of a word's index: a delimiter


class Letters(NamedTuple):
    """The letters of a transcript that are in a model's vocabulary.

    Attributes:
        ids: (L,) ids in the vocabulary.
        words: (L,) index of the word of each letter; `BETWEEN` for the delimiter between words.
    """

    ids: Integers
    words: Integers


class Aligner:
    """Aligns words with a CTC speech model of transformers whose tokens are letters, such as a
    wav2vec 2 fine-tuned for recognition.

    Args:
        model: "MODEL" or "MODEL@REVISION"; MODEL is a name on the hub or a folder.
        device: device of the model, as "cpu" or "cuda".

    Raises:
        CorrKDError: if transformers is not installed or the model cannot be read.
    """

    name: ClassVar[str] = "ctc"
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("av", "numpy", "torch", "transformers")

    def __init__(self, model: str, device: str = "cpu") -> None:
        self.files = ModelFiles(parse_model(model))
        self._speech = SpeechModel(self.files, "AutoModelForCTC", "logits", device)

    def describe(self) -> dict[str, Any]:
        """Return what identifies the model: equal descriptions give equal times."""
        return {"name": self.name, "version": self.version} | self.files.describe()

    @cached_property
    def _tokenizer(self) -> Any:
        return self.files.load("AutoTokenizer")

    def load(self) -> None:
        """Load the model. Raises CorrKDError if it cannot be read."""
        self._speech.load()
        _ = self._tokenizer

    def __call__(self, recording: Recording, words: Sequence[Word]) -> tuple[Word, ...] | None:
        """Return the words with times in seconds; None if the model has none of their letters, or
        there are too many letters for the sound.

        Raises:
            CorrKDError: if recording and transcript are too long to align.
        """
        vocabulary = self._tokenizer.get_vocab()
        delimiter = vocabulary.get(getattr(self._tokenizer, "word_delimiter_token", None))
        letters = letters_of([word.text for word in words], vocabulary, delimiter)
        if not len(letters.ids):
            return None
        blank = self.files.config.pad_token_id or 0
        used, ids = np.unique(np.append(letters.ids, blank), return_inverse=True)
        scores, middles, seconds = self._heard(recording, used)
        if len(scores) * (2 * len(letters.ids) + 1) > MOST_CELLS:
            raise CorrKDError(
                f"{recording.path.name}: {recording.seconds:,.0f} s with {len(words):,} words "
                f"are too long to align; "
                "cut it into clips of a few minutes"
            )
        path = best_path(scores, ids[:-1], int(ids[-1]))
        if path is None:
            return None
        return timed(words, letters, path, middles - seconds / 2, middles + seconds / 2)

    def _heard(self, recording: Recording, used: Integers) -> tuple[FloatArray, FloatArray, float]:
        """Return (T, V) log-probabilities of the ids `used`, their centres (T,) in seconds, and the
        duration of each in seconds.
        """
        scores, middles, seconds = [], [], 0.0
        for window, states in self._speech.states([recording], silence=True):
            assert states is not None
            logits = states.values - states.values.max(1, keepdims=True)
            scores.append((logits - np.log(np.exp(logits).sum(1, keepdims=True)))[:, used])
            middles.append(window.start / RATE + states.middles)
            seconds = states.seconds
        return np.concatenate(scores), np.concatenate(middles), seconds


def letters_of(
    words: Sequence[str], vocabulary: Mapping[str, int], delimiter: int | None
) -> Letters:
    """Return the letters of words that are in a vocabulary: as written, in upper case, in lower
    case, or without accents.

    Args:
        words: in order.
        vocabulary: id by token; tokens of several letters are not used.
        delimiter: id of the delimiter between words, or None.
    """
    ids: list[int] = []
    owners: list[int] = []
    for index, word in enumerate(words):
        of_word = [number for letter in word for number in _ids_of(letter, vocabulary)]
        if of_word and ids and delimiter is not None:
            ids.append(delimiter)
            owners.append(BETWEEN)
        ids += of_word
        owners += [index] * len(of_word)
    return Letters(np.array(ids, np.int64), np.array(owners, np.int64))


def _ids_of(letter: str, vocabulary: Mapping[str, int]) -> list[int]:
    base = unicodedata.normalize("NFD", letter)[:1]
    written = (letter, letter.upper(), letter.lower(), base.upper(), base.lower())
    return next(
        ([vocabulary[form]] for form in written if len(form) == 1 and form in vocabulary), []
    )


def best_path(scores: FloatArray, ids: Integers, blank: int) -> Integers | None:
    """Return the most probable CTC path (Viterbi algorithm).

    Args:
        scores: (T, V) log-probabilities.
        ids: (L,) columns of the letters, L >= 1.
        blank: column of the blank.

    Returns:
        (T,) index of the letter at each time, -1 for the blank; None if T is too small for the
        letters.
    """
    frames, count = len(scores), len(ids)
    states = np.full(2 * count + 1, blank)  # a blank before, between and after the letters
    states[1::2] = ids
    # From the previous letter, skipping the blank; not between equal letters, which the blank keeps
    # apart.
    skips = np.zeros(len(states), bool)
    skips[3::2] = ids[1:] != ids[:-1]
    best = np.full(len(states), -np.inf)
    best[:2] = scores[0, states[:2]]
    steps = np.zeros((frames, len(states)), np.int8)
    for t in range(1, frames):
        options = np.full((3, len(states)), -np.inf)
        options[0] = best
        options[1, 1:] = best[:-1]
        options[2, 2:] = np.where(skips[2:], best[:-2], -np.inf)
        steps[t] = options.argmax(0)
        best = options.max(0) + scores[t, states]
    state = len(states) - 2 + int(best[-1] > best[-2])
    if not np.isfinite(best[state]):
        return None
    path = np.zeros(frames, np.int64)
    for t in range(frames - 1, -1, -1):
        path[t] = state // 2 if state % 2 else -1
        state -= int(steps[t, state])
    return path


def timed(
    words: Sequence[Word], letters: Letters, path: Integers, starts: FloatArray, ends: FloatArray
) -> tuple[Word, ...]:
    """Return the words from the first frame of their letters to the last.

    Words without a letter share the gap between their neighbours.

    Args:
        words: in order.
        letters: their letters, from `letters_of`.
        path: (T,) as `best_path` returns it.
        starts, ends: (T,) start and end of each frame in seconds.
    """
    word_at = np.where(path >= 0, letters.words[path], BETWEEN)
    spans = {
        int(index): np.flatnonzero(word_at == index)[[0, -1]]
        for index in np.unique(word_at[word_at >= 0])
    }
    out: list[Word] = []
    without: list[Word] = []
    at = float(starts[min(rows[0] for rows in spans.values())])
    for index, word in enumerate(words):
        if index not in spans:
            without.append(word)
            continue
        first, last = spans[index]
        out += spread(without, at, max(at, float(starts[first])))
        without, at = [], float(ends[last])
        out.append(Word(word.text, max(0.0, float(starts[first])), at))
    return (*out, *spread(without, at, at))
