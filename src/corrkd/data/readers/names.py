"""The meaning of names in public files: aliases of modalities, and arrays that are not features."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from corrkd.errors import CorrKDError

USUAL = ("language", "audio", "vision")
ALIASES = {
    "text": "language",
    "glove": "language",
    "acoustic": "audio",
    "covarep": "audio",
    "visual": "vision",
    "facet": "vision",
    "video_features": "vision",
}
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "dev": "valid",
    "val": "valid",
    "test": "test",
}
LENGTHS, PRESENT, FRAME_IDS = "_lengths", "_present", "_frame_ids"  # suffixes of a modality's name
MISSING_REASONS = "_missing_reasons"

WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z][a-z0-9]*")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words in the name of a feature set -> modality, in this order: "bert" would be found in "hubert".
FEATURE_SETS = {
    "audio": _words(
        "audio acoustic covarep coavarep opensmile egemaps is09 is10 is13 mfcc prosody wav2vec "
        "hubert wavlm vggish whisper emotion2vec encodec"
    ),
    "language": _words(
        "wordvectors word_vectors glove bert text language words gpt llama electra xlnet mpnet "
        "word2vec fasttext baichuan"
    ),
    "vision": _words(
        "facet openface visual vision video face manet resnet senet clip dinov2 emonet densenet "
        "eva02 vgg"
    ),
}

# An array with one of these words in its name contains labels, ids or text: as a feature it would
# leak the label.
LABEL_WORDS = _words(
    "label labels emotion emotions emo annotation annotations annotator annotators rating ratings "
    "score scores target targets sentiment sentiments valence arousal dominance class classes "
    "truth gold y"
)
# anywhere in a name: `moseiemotions`
LABEL_STEMS = ("label", "emotion", "sentiment", "annotation", "rating")
OTHER_WORDS = _words(
    "id ids uid uids index indices idx length lengths len lens mask masks split splits fold folds "
    "transcript transcripts sentence sentences raw tokens"
)


def modality_of(key: str) -> str:
    """Return the modality that an array's name refers to: `text` is language, `acoustic` audio,
    `visual` vision.
    """
    return ALIASES.get(key.lower(), key.lower() if key.lower() in USUAL else key)


def modality_names(keys: Iterable[str]) -> dict[str, str]:
    """Return each array's modality, {key: modality}. If two keys mean the same one, aliases keep
    their names.
    """
    keys = list(keys)
    meant = [modality_of(key) for key in keys]
    return {key: m if meant.count(m) == 1 else key for key, m in zip(keys, meant, strict=True)}


def feature_set_modality(name: str) -> str | None:
    """Return the modality of a feature set by its name ("COVAREP", "wav2vec-large-c-UTT"), or
    None.
    """
    text = name.lower()
    return next(
        (m for m, words in FEATURE_SETS.items() if any(word in text for word in words)), None
    )


def in_usual_order(modalities: Iterable[str]) -> list[str]:
    """Return the modalities with language, audio and vision first, the others in the given
    order.
    """
    modalities = list(modalities)
    return [m for m in USUAL if m in modalities] + [m for m in modalities if m not in USUAL]


def words_of(key: str) -> set[str]:
    """Return the words in an array's name: `emotion_labels` and `EmotionLabels` are both
    {"emotion", "labels"}.
    """
    return {word.lower().rstrip("0123456789") for word in WORDS.findall(key)}


def is_no_feature(key: str) -> bool:
    """Return whether an array's name shows that it contains labels, ids or text."""
    text = key.lower().replace("emotion2vec", "")
    return any(stem in text for stem in LABEL_STEMS) or not words_of(key).isdisjoint(
        LABEL_WORDS | OTHER_WORDS
    )


def feature_keys(
    where: str,
    arrays: Mapping[str, Any],
    count: int,
    claimed: Iterable[str],
    *,
    lenient: bool = False,
) -> list[str]:
    """Return the keys of the arrays that are features of `count` samples.

    Features are real numbers, (N, T, d) or (N, d). Arrays with words for labels, ids or text in
    their names are never features.

    Args:
        where: begins the error message.
        arrays: by name.
        count: N.
        claimed: names with another meaning in the layout.
        lenient: whether (N, T, d) integers and (N, 1) columns are features too.

    Raises:
        CorrKDError: if an array looks like features but has another number of rows.
    """
    keys = feature_candidates(arrays, claimed, lenient=lenient)
    for key in keys:
        rows = len(arrays[key])
        if rows != count and _can_only_be_features(key, arrays, count):
            raise CorrKDError(
                f"{where}: array {key} has {rows} rows for {count} samples; give it one row "
                f"per sample, or leave it out"
            )
    return [key for key in keys if len(arrays[key]) == count]


def feature_candidates(
    arrays: Mapping[str, Any], claimed: Iterable[str], *, lenient: bool = False
) -> list[str]:
    """Return the keys of the arrays that can be features by name, type and number of axes, with any
    number of rows.
    """
    claimed = set(claimed)
    return [
        key
        for key, values in arrays.items()
        if key not in claimed
        and not is_no_feature(key)
        and _looks_like_features(values, lenient=lenient)
    ]


def label_keys(arrays: Mapping[str, Any], count: int, claimed: Iterable[str] = ()) -> list[str]:
    """Return the keys of the arrays that contain labels of `count` samples, by their names: (N,),
    (N, Q) or (N, 1, Q) numbers.
    """
    claimed = set(claimed)
    return [
        key
        for key, x in arrays.items()
        if key not in claimed
        and isinstance(x, np.ndarray)
        and x.dtype.kind in "fiub"
        and (
            any(stem in key.lower() for stem in LABEL_STEMS)
            or not words_of(key).isdisjoint(LABEL_WORDS)
        )
        and words_of(key).isdisjoint(OTHER_WORDS)
        and x.ndim in (1, 2, 3)
        and len(x) == count
        and (x.ndim < 3 or x.shape[1] == 1)
    ]


def _looks_like_features(values: Any, *, lenient: bool) -> bool:
    if not isinstance(values, np.ndarray) or values.ndim not in (2, 3):
        return False
    if lenient:
        return values.dtype.kind in ("fiu" if values.ndim == 3 else "f")
    return values.dtype.kind == "f" and values.shape[1:] not in ((1,), (1, 1))


def _can_only_be_features(key: str, arrays: Mapping[str, Any], count: int) -> bool:
    """Return whether an array with another number of rows is damaged features rather than a table:
    a table is left out with a note.
    """
    companions = any(f"{key}{suffix}" in arrays for suffix in (LENGTHS, PRESENT, FRAME_IDS))
    close = abs(len(arrays[key]) - count) <= max(1, count // 10)
    return modality_of(key) in USUAL or arrays[key].ndim == 3 or companions or close
