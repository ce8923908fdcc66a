"""Language without weights: the letters of each word, hashed."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from corrkd.media.clip import Clip
from corrkd.media.extractors.base import Extractor, Frames, absent

WIDTH = 256
NGRAMS = (2, 4)  # letters: the shortest and the longest piece of a word


class HashWords(Extractor):
    """A frame a word: its pieces of two to four letters, hashed into 256 columns, of length 1; for
    languages that have spaces.
    """

    name: ClassVar[str] = "hash-words"
    version: ClassVar[int] = 1
    modality: ClassVar[str] = "language"
    columns: tuple[str, ...] = tuple(f"hash_{i}" for i in range(WIDTH))
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "scikit-learn")

    @cached_property
    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import HashingVectorizer

        return HashingVectorizer(
            analyzer="char_wb", ngram_range=NGRAMS, n_features=WIDTH, norm="l2", lowercase=True
        )

    def frames(self, clip: Clip) -> Frames:
        """Return (words, 256); a single missing frame where there are no words."""
        words = clip.words
        if not words:
            return absent(WIDTH, "no words")
        values = (
            self._vectorizer.transform([word.text for word in words]).toarray().astype(np.float32)
        )
        times = np.array([(word.start + word.end) / 2 for word in words])
        return Frames(values, np.ones(len(words), bool), times)
