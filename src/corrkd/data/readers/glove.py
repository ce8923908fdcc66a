"""Looking up words in a GloVe text file, of which only the required words are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from corrkd.data.dataset import FloatArray
from corrkd.errors import CorrKDError

LONGEST_LINE = 1 << 20  # characters
WIDEST = 10_000  # numbers per line; more cannot be a vector file


def look_up(
    where: str, sentences: Sequence[Sequence[str]], glove: Path | None
) -> tuple[list[FloatArray], int]:
    """Return the vectors (T_i, d) of each sentence, and the number of words without one, which get
    zeros, as missing frames do.

    Raises:
        CorrKDError: if `glove` is None or not a vector file, or has none of the words.
    """
    if glove is None:
        raise CorrKDError(
            f"{where}: its language is words, not vectors; pass --glove FILE, a GloVe text file "
            f"such as glove.840B.300d.txt"
        )
    vectors = read_glove(glove, {word for sentence in sentences for word in sentence})
    width = len(next(iter(vectors.values())))
    blank = np.zeros(width, np.float32)
    frames = [
        np.array([vectors.get(word, blank) for word in sentence], np.float32).reshape(
            len(sentence), width
        )
        for sentence in sentences
    ]
    return frames, sum(word not in vectors for sentence in sentences for word in sentence)


def read_glove(path: Path, needed: Iterable[str]) -> dict[str, FloatArray]:
    """Return the vectors of the needed words from a text file "word number number ...". A word that
    is not found is looked up in lower case.

    The file is read line by line; a first line "count width" (of word2vec) is skipped.

    Raises:
        CorrKDError: if the file does not exist, or a line is not a word and a vector.
    """
    needed = set(needed)
    wanted = needed | {word.lower() for word in needed}
    found: dict[str, FloatArray] = {}
    width = 0
    if not Path(path).is_file():
        raise CorrKDError(f"{path}: no such file; pass --glove FILE, a GloVe text file")
    try:
        with Path(path).open(encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), ""), 1):
                parts = line.rstrip().split(" ")
                if number == 1 and len(parts) == 2:
                    continue
                width = width or len(parts) - 1
                if not 1 < width <= WIDEST or len(parts) <= width:
                    raise CorrKDError(
                        f"{path}: line {number} is not a word and {width or 'some'} numbers; "
                        f"pass a GloVe text file"
                    )
                word = " ".join(parts[:-width])
                if word in wanted:
                    found[word] = np.array(parts[-width:], np.float32)
    except OSError as error:
        raise CorrKDError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise CorrKDError(
            f"{path}: line {number} is not a word and {width} numbers; pass a GloVe text file"
        ) from None
    vectors = {
        word: found[word] if word in found else found[word.lower()]
        for word in needed
        if word in found or word.lower() in found
    }
    if not vectors:
        raise CorrKDError(
            f"{path}: has none of the {len(needed)} words of the data; is it the right vector file?"
        )
    return vectors
