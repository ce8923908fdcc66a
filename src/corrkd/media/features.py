"""The features of one clip: a function of the clip and the settings alone, which any process may call."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from corrkd.errors import CorrKDError
from corrkd.media.align import by_word
from corrkd.media.clip import Clip
from corrkd.media.decode import STEP, Limits
from corrkd.media.extractors.base import Extractor, Frames
from corrkd.media.extractors.registry import PRESETS, extractor_class
from corrkd.media.transcripts import Word
from corrkd.parsing import check_tree, refusing

Align = Literal["none", "words"]


class FeatureSettings(BaseModel):
    """What is made of each clip.

    Attributes:
        extractors: by modality, their names.
        align: "none": each stream at its own rate; "words": a frame a word in every modality.
        most_pixels: width x height of a picture, beyond which a recording is refused.
        longest_seconds: duration, beyond which a recording is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    extractors: Annotated[dict[str, str], Field(min_length=1, max_length=20)] = dict(PRESETS["embedded"])
    align: Align = "none"
    most_pixels: Annotated[int, Field(ge=1)] = Limits.pixels
    longest_seconds: Annotated[float, Field(gt=0)] = Limits.seconds

    @property
    def limits(self) -> Limits:
        """What a recording may be."""
        return Limits(self.most_pixels, self.longest_seconds)


@dataclass(frozen=True)
class ClipFeatures:
    """What was made of one clip.

    Attributes:
        seconds: duration; 0 of a text.
        transcript: where the words are from: "labels", "vtt", "srt", "txt" or "none".
        frames: by modality.
    """

    seconds: float
    transcript: str
    frames: Mapping[str, Frames]


def extract(path: Path | None, settings: FeatureSettings, text: str = "") -> ClipFeatures:
    """Return the features of a clip.

    Args:
        path: a recording, or a .txt; None: there is text alone.
        settings: which extractors, and whether they are aligned.
        text: what is said in it; where there is none, a .vtt, .srt or .txt beside the recording is read.

    Raises:
        CorrKDError: the clip cannot be read, or an extractor is unknown.
    """
    with one_thread():
        clip = Clip(path, text, settings.limits)
        frames = {m: e.frames(clip) for m, e in extractors(settings).items()}
        if settings.align == "words":
            # Where nothing is said, the whole clip stands in the place of one word.
            words = clip.timed_words or (Word("", 0.0, max(clip.seconds, STEP)),)
            frames = {m: f if m == "language" else by_word(f, words) for m, f in frames.items()}
    for m, f in frames.items():
        _check(m, f, extractors(settings)[m])
    return ClipFeatures(clip.seconds, clip.transcript.source, frames)


def _check(modality: str, frames: Frames, extractor: Extractor) -> None:
    """Raise CorrKDError where an extractor, perhaps another package's, gives what is no frames."""
    count = len(frames.present)
    if count < 1 or frames.values.shape != (count, extractor.width) or frames.times.shape != (count,):
        raise CorrKDError(
            f"extractor {extractor.name!r} of {modality}: values of shape {frames.values.shape} for {count} frames; "
            f"expected ({count}, {extractor.width}), and one frame at least"
        )


def extractors(settings: FeatureSettings) -> dict[str, Extractor]:
    """Return the extractors by modality; made once in a process. Raises CorrKDError where one is unknown."""
    return {m: _extractor(name, m) for m, name in settings.extractors.items()}


@cache
def _extractor(name: str, modality: str) -> Extractor:
    return extractor_class(name, modality)()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute by a single thread, so that sums are taken in the same order whatever the machine."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------------------ provenance


class Description(BaseModel):
    """What made the features of a file: all that is needed to make those of another clip in the same way.

    Attributes:
        step: seconds of a frame of audio and vision.
        align: as in the settings.
        modalities: by modality, what its extractor says of itself: name, version, columns, sums of its weights.
        libraries: versions of what the numbers may depend on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    step: float = STEP
    align: Align
    modalities: Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=20)]
    libraries: Annotated[dict[str, str], Field(max_length=100)]


def describe(settings: FeatureSettings) -> Description:
    """Return what these settings make features with, here and now."""
    used = extractors(settings)
    libraries = sorted({library for extractor in used.values() for library in extractor.libraries})
    return Description(
        align=settings.align,
        modalities={m: extractor.describe() for m, extractor in used.items()},
        libraries={library: _version(library) for library in libraries},
    )


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        raise CorrKDError(f"recordings need {library}: pip install 'corrkd[media]'") from None


def settings_of(description: Mapping[str, Any], where: str) -> tuple[FeatureSettings, list[str]]:
    """Return settings that make features exactly as described, and notes on libraries of other versions.

    Args:
        description: of a dataset file or a model's card.
        where: opens the error.

    Raises:
        CorrKDError: it is damaged, an extractor is not installed, or is not the one described; the line names what differs.
    """
    with refusing(where, "its description of extractors is damaged"):
        check_tree(description)
        described = Description.model_validate(description)
        settings = FeatureSettings(
            extractors={m: str(extractor["name"]) for m, extractor in described.modalities.items()},
            align=described.align,
        )
    present = describe(settings)
    if described.step != present.step:
        raise CorrKDError(
            f"{where}: its frames last {described.step:g} s, here {present.step:g} s; use its version of corrkd"
        )
    for m, extractor in described.modalities.items():
        different = [
            key
            for key in {**extractor, **present.modalities[m]}
            if extractor.get(key) != present.modalities[m].get(key)
        ]
        if different:
            what = ", ".join(
                f"{key} {_short(extractor.get(key))} there, {_short(present.modalities[m].get(key))} here"
                for key in different
            )
            raise CorrKDError(
                f"{where}: its {m} was made by another extractor {extractor['name']!r} than the one installed ({what}); install that one"
            )
    notes = [
        f"{library} {present.libraries.get(library, 'none')} here, {version} when the model's features were made"
        for library, version in described.libraries.items()
        if present.libraries.get(library) != version
    ]
    return settings, notes


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."
