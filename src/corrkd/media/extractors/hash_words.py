"""Language without weights: hashed character n-grams of each word."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from corrkd.media.clip import Clip
from corrkd.media.extractors.base import Extractor, Frames, absent

WIDTH = 256
NGRAMS = (2, 4)  # shortest and longest n-gram, in characters


class HashWords(Extractor):
    """One frame per word: its character n-grams of two to four, hashed into 256 features and scaled
    to unit norm. For languages with spaces between words.
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
        """Return (words, 256); a single missing frame if there are no words."""
        words = clip.words
        if not words:
            return absent(WIDTH, "no words")
        values = (
            self._vectorizer.transform([word.text for word in words]).toarray().astype(np.float32)
        )
        times = np.array([(word.start + word.end) / 2 for word in words])
        return Frames(values, np.ones(len(words), bool), times)
