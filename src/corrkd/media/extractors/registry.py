"""Extractors by name, with those of other packages (entry points in the group
`corrkd.extractors`).
"""

from __future__ import annotations

from collections.abc import Iterable

from corrkd.errors import CorrKDError
from corrkd.media.extractors.base import Extractor
from corrkd.media.extractors.model import ModelExtractor
from corrkd.plugins import find

GROUP = "corrkd.extractors"
NONE = "none"  # instead of a name
BUILT_IN = {
    "hash-words": "corrkd.media.extractors.hash_words:HashWords",
    "prosody": "corrkd.media.extractors.prosody:Prosody",
    "facemesh": "corrkd.media.extractors.face_mesh:FaceMesh",
    "text": "corrkd.media.extractors.text:Text",
    "speech": "corrkd.media.extractors.speech:Speech",
    "image": "corrkd.media.extractors.image:Image",
}
PRESETS = {
    "embedded": {"language": "hash-words", "audio": "prosody", "vision": "facemesh"},
    "hub": {
        "language": "text:intfloat/multilingual-e5-small",
        "audio": "speech:openai/whisper-base",
        "vision": "image:facebook/dinov2-small",
    },
}
"""Extractors by modality, for each preset."""


def extractor_class(name: str, modality: str) -> type[Extractor]:
    """Return the extractor of that name.

    Raises:
        CorrKDError: if the name is unknown, the class has another name, or it is for another
            modality.
    """
    kind: type[Extractor] = find(name, BUILT_IN, GROUP, Extractor, "extractor", attribute="name")
    if kind.modality != modality:
        raise CorrKDError(
            f"extractor {name!r}: makes features of {kind.modality}, not of {modality}"
        )
    return kind


def make_extractor(text: str, modality: str, device: str = "cpu") -> Extractor:
    """Return the extractor "NAME", or "NAME:MODEL" with a model on the hub or in a folder.

    Args:
        text: NAME, NAME:MODEL or NAME:MODEL@REVISION.
        modality: modality of its features.
        device: device of the model, as "cpu" or "cuda".

    Raises:
        CorrKDError: as `extractor_class`; or if the model cannot be read, is missing, or is given
            to an extractor without one.
    """
    name, colon, model = text.partition(":")
    kind = extractor_class(name, modality)
    if issubclass(kind, ModelExtractor):
        if not model:
            raise CorrKDError(
                f"extractor {name!r}: add a model on the hub or a folder, as "
                f"{modality}={name}:MODEL"
            )
        return kind(model, device)
    if colon:
        raise CorrKDError(f"extractor {name!r}: takes no model; write {modality}={name}")
    return kind()


def with_changes(preset: str, changes: Iterable[str] = ()) -> dict[str, str]:
    """Return the extractors of a preset by modality, with changes "modality=name"; "modality=none"
    leaves one out.

    Raises:
        CorrKDError: if the preset is unknown, a change has another form, or every modality is left
            out.
    """
    if preset not in PRESETS:
        raise CorrKDError(
            f"unknown preset of extractors {preset!r}; available: {', '.join(PRESETS)}"
        )
    extractors = dict(PRESETS[preset])
    for change in changes:
        modality, equals, name = change.partition("=")
        if not (modality and equals and name):
            raise CorrKDError(
                f"extractor {change!r}: expected MODALITY=NAME, as audio=prosody, "
                f"audio=speech:MODEL, or audio=none"
            )
        extractors[modality] = name
    extractors = {modality: name for modality, name in extractors.items() if name != NONE}
    if not extractors:
        raise CorrKDError("extractors: every modality is left out; keep at least one")
    return extractors
