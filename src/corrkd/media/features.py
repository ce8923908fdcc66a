"""Extracting the features of one clip. They depend only on the clip and the settings, not on the
process.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from corrkd.errors import CorrKDError
from corrkd.hub import spec
from corrkd.media.align import by_word
from corrkd.media.clip import Clip, OnFace
from corrkd.media.decode import STEP, Limits
from corrkd.media.extractors.base import Extractor, Frames
from corrkd.media.extractors.model import ModelExtractor
from corrkd.media.extractors.registry import PRESETS, make_extractor
from corrkd.media.forced_align import Aligner
from corrkd.media.transcribe import Transcriber
from corrkd.media.transcripts import Word
from corrkd.parsing import check_tree, refusing

Align = Literal["none", "words"]
# from the extra [hub]
HUB_LIBRARIES = ("ctranslate2", "faster-whisper", "tokenizers", "transformers")


class FeatureSettings(BaseModel):
    """Which features are extracted from each clip, and how.

    Attributes:
        extractors: name of the extractor of each modality, as "prosody" or "speech:MODEL".
        align: "none": each stream at its own rate; "words": one frame per word in every modality.
        transcribe: faster-whisper model for recordings without a transcript; "": they have no
            words.
        align_model: CTC speech model that gives words their times; "": times are estimated from the
            lengths of the words.
        device: device of the models from the hub, as "cpu" or "cuda".
        most_pixels: largest width x height of a picture; larger recordings are refused.
        longest_seconds: longest duration in seconds; longer recordings are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    extractors: Annotated[dict[str, str], Field(min_length=1, max_length=20)] = dict(
        PRESETS["embedded"]
    )
    align: Align = "none"
    transcribe: Annotated[str, Field(max_length=1000)] = ""
    align_model: Annotated[str, Field(max_length=1000)] = ""
    device: Annotated[str, Field(max_length=20)] = "cpu"
    most_pixels: Annotated[int, Field(ge=1)] = Limits.pixels
    longest_seconds: Annotated[float, Field(gt=0)] = Limits.seconds

    @model_validator(mode="after")
    def _aligned_by_word(self) -> FeatureSettings:
        if self.align_model and self.align != "words":
            raise ValueError(
                "an align model gives words their times, which frames by word alone use; add "
                "--align words"
            )
        return self

    @property
    def limits(self) -> Limits:
        """Limits on the size of a recording."""
        return Limits(self.most_pixels, self.longest_seconds)


@dataclass(frozen=True)
class ClipFeatures:
    """The features of one clip.

    Attributes:
        seconds: duration in seconds; 0 for a text.
        transcript: source of the words: "labels", "vtt", "srt", "txt", "transcribed" or "none".
        frames: by modality.
    """

    seconds: float
    transcript: str
    frames: Mapping[str, Frames]


def extract(path: Path | None, settings: FeatureSettings, text: str = "") -> ClipFeatures:
    """Return the features of a clip.

    Args:
        path: a recording or a .txt file; None: the clip is `text` only.
        settings: extractors, alignment and limits.
        text: transcript; "": a .vtt, .srt or .txt file beside the recording is read if there is
            one.

    Raises:
        CorrKDError: if the clip cannot be read or an extractor is unknown.
    """
    return extract_together([(path, text)], settings)[0]


def extract_together(
    clips: Sequence[tuple[Path | None, str]], settings: FeatureSettings
) -> list[ClipFeatures]:
    """Return the features of several clips, which pass through models together: as of each alone,
    to rounding. Arguments and errors as of `extract`.
    """
    with one_thread():
        return features_of([open_clip(path, settings, text) for path, text in clips], settings)


def open_clip(
    path: Path | None, settings: FeatureSettings, text: str = "", on_face: OnFace | None = None
) -> Clip:
    """Return a clip that transcribes and aligns as set. Arguments and errors as in `extract`,
    `on_face` as in `Clip`.
    """
    transcribe, align = _transcriber_of(settings), _aligner_of(settings)
    return Clip(path, text, settings.limits, transcribe=transcribe, align=align, on_face=on_face)


def features_of(clips: Sequence[Clip], settings: FeatureSettings) -> list[ClipFeatures]:
    """Return the features of open clips. Raises as `extract`."""
    with one_thread():
        streams = {m: e.batch(clips) for m, e in extractors(settings).items()}
        return [
            _of_clip(clip, {m: frames[index] for m, frames in streams.items()}, settings)
            for index, clip in enumerate(clips)
        ]


def _of_clip(clip: Clip, frames: Mapping[str, Frames], settings: FeatureSettings) -> ClipFeatures:
    if settings.align == "words":
        # A clip without words becomes a single frame.
        words = clip.timed_words or (Word("", 0.0, max(clip.seconds, STEP)),)
        frames = {m: f if m == "language" else by_word(f, words) for m, f in frames.items()}
    for m, f in frames.items():
        _check(m, f, extractors(settings)[m])
    return ClipFeatures(clip.seconds, clip.transcript.source, frames)


def _check(modality: str, frames: Frames, extractor: Extractor) -> None:
    """Raise CorrKDError if an extractor, perhaps of another package, returns invalid frames."""
    count = len(frames.present)
    if (
        count < 1
        or frames.values.shape != (count, extractor.width)
        or frames.times.shape != (count,)
    ):
        raise CorrKDError(
            f"extractor {extractor.name!r} of {modality}: values of shape {frames.values.shape} "
            f"for {count} frames; "
            f"expected ({count}, {extractor.width}) and at least one frame"
        )


def extractors(settings: FeatureSettings) -> dict[str, Extractor]:
    """Return the extractors by modality, created once per process. Raises CorrKDError if one is
    unknown.
    """
    return {m: _extractor(name, m, settings.device) for m, name in settings.extractors.items()}


def load_models(settings: FeatureSettings) -> None:
    """Load all models, so that errors appear before the first clip. Raises CorrKDError if one
    cannot be read.
    """
    for model in (*extractors(settings).values(), _transcriber_of(settings), _aligner_of(settings)):
        if isinstance(model, ModelExtractor | Transcriber | Aligner):
            model.load()


@cache
def _extractor(name: str, modality: str, device: str) -> Extractor:
    return make_extractor(name, modality, device)


def _transcriber_of(settings: FeatureSettings) -> Transcriber | None:
    return _transcriber(settings.transcribe, settings.device) if settings.transcribe else None


def _aligner_of(settings: FeatureSettings) -> Aligner | None:
    return _aligner(settings.align_model, settings.device) if settings.align_model else None


@cache
def _transcriber(model: str, device: str) -> Transcriber:
    return Transcriber(model, device)


@cache
def _aligner(model: str, device: str) -> Aligner:
    return Aligner(model, device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in a single thread, so that sums have the same order on every machine."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------
# provenance


class Description(BaseModel):
    """How the features of a file were extracted: all that is needed to extract those of another
    clip in the same way.

    Attributes:
        step: duration of a frame of audio and vision, in seconds.
        align: as in the settings.
        modalities: by modality, `Extractor.describe()`: name, version, columns, SHA-256 of the
            weights.
        libraries: versions of the libraries that the features may depend on.
        transcriber: model that transcribed recordings without a transcript; None: there was none.
        aligner: model that gave words their times; None: they were estimated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    step: float = STEP
    align: Align
    modalities: Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=20)]
    libraries: Annotated[dict[str, str], Field(max_length=100)]
    transcriber: dict[str, Any] | None = None
    aligner: dict[str, Any] | None = None


def describe(settings: FeatureSettings) -> Description:
    """Return how these settings extract features with the installed versions."""
    by_modality = extractors(settings)
    transcriber, aligner = _transcriber_of(settings), _aligner_of(settings)
    steps = [step for step in (*by_modality.values(), transcriber, aligner) if step is not None]
    libraries = sorted({library for step in steps for library in step.libraries})
    return Description(
        align=settings.align,
        modalities={m: extractor.describe() for m, extractor in by_modality.items()},
        libraries={library: _version(library) for library in libraries},
        transcriber=None if transcriber is None else transcriber.describe(),
        aligner=None if aligner is None else aligner.describe(),
    )


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        extra = "hub" if library in HUB_LIBRARIES else "media"
        raise CorrKDError(f"recordings need {library}: pip install 'corrkd[{extra}]'") from None


def settings_of(
    description: Mapping[str, Any], where: str, device: str = "cpu"
) -> tuple[FeatureSettings, list[str]]:
    """Return settings that extract features exactly as described, and notes on libraries whose
    version differs.

    Args:
        description: from a dataset file or a model card.
        where: begins the error message.
        device: device of the models from the hub, as "cpu" or "cuda".

    Raises:
        CorrKDError: if the description is damaged, or an extractor is not installed or differs from
            the one described; the message says how.
    """
    with refusing(where, "the description of its extractors is damaged"):
        check_tree(description)
        described = Description.model_validate(description)
        settings = FeatureSettings(
            extractors={m: _named(extractor) for m, extractor in described.modalities.items()},
            align=described.align,
            transcribe="" if described.transcriber is None else spec(described.transcriber),
            align_model="" if described.aligner is None else spec(described.aligner),
            device=device,
        )
    present = describe(settings)
    if described.step != present.step:
        raise CorrKDError(
            f"{where}: its frames last {described.step:g} s, but this version of corrkd "
            f"extracts frames of {present.step:g} s; use the version that made it"
        )
    for m, extractor in described.modalities.items():
        _check_same(f"{where}: its {m} was extracted by", extractor, present.modalities[m])
    _check_same(
        f"{where}: its words were transcribed by", described.transcriber, present.transcriber
    )
    _check_same(f"{where}: its words got their times from", described.aligner, present.aligner)
    # The libraries of modalities that the model does not use do not matter.
    notes = [
        f"{library} {version} is installed, but the features of the training data were extracted "
        f"with {described.libraries[library]}"
        for library, version in present.libraries.items()
        if described.libraries.get(library, version) != version
    ]
    return settings, notes


def _named(described: Mapping[str, Any]) -> str:
    """Return "NAME" or "NAME:MODEL@REVISION" of an extractor's description."""
    return (
        f"{described['name']}:{spec(described)}" if "model" in described else str(described["name"])
    )


def _check_same(
    what: str, stored: Mapping[str, Any] | None, present: Mapping[str, Any] | None
) -> None:
    """Raise CorrKDError if the stored description of an extractor or model differs from the present
    one; the message lists the differences.
    """
    stored, present = stored or {}, present or {}
    different = [
        f"{name} {_short(before)}, installed {_short(now)}"
        for key in {**stored, **present}
        if stored.get(key) != present.get(key)
        for name, before, now in _differences(key, stored.get(key), present.get(key))
    ]
    if different:
        raise CorrKDError(
            f"{what} {stored.get('name')!r}, which differs from the installed one "
            f"({', '.join(different)}); install the same version"
        )


def _differences(key: str, stored: Any, present: Any) -> list[tuple[str, Any, Any]]:
    """Return (name, stored value, present value) of each difference; for mappings, one per key."""
    if not (isinstance(stored, Mapping) and isinstance(present, Mapping)):
        return [(key, stored, present)]
    names = {**stored, **present}
    return [
        (f"{key} of {n}", stored.get(n), present.get(n))
        for n in names
        if stored.get(n) != present.get(n)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."
