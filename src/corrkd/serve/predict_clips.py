"""A trained student on recordings, with the same extractors that made the features of its
training data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from corrkd.errors import CorrKDError
from corrkd.files import replacing
from corrkd.media.features import ClipFeatures, FeatureSettings, extract, settings_of
from corrkd.serve.prediction_table import WRITERS, columns
from corrkd.serve.standalone import Prediction

EXTRACTORS = "extractors"  # in a card's `about`


def feature_settings(
    card: Mapping[str, Any], device: str = "cpu"
) -> tuple[FeatureSettings, list[str]]:
    """Return settings that make features as a model's training data had them, and notes on
    libraries of other versions.

    Args:
        card: of the model.
        device: where extractors with models of the hub compute.

    Raises:
        CorrKDError: the model was not trained on features of recordings, or the extractors here are
            not the same.
    """
    described = card["about"].get(EXTRACTORS)
    if not isinstance(described, Mapping) or not isinstance(described.get("modalities"), Mapping):
        raise CorrKDError(
            "the model's card names no extractors: its data are not from `corrkd features`; "
            "predict from features of the same kind"
        )
    lacking = [m for m in card["modalities"] if m not in described["modalities"]]
    if lacking:
        raise CorrKDError(
            f"the model's card names no extractor of {', '.join(lacking)}; predict from features "
            f"of the same kind"
        )
    used = {m: described["modalities"][m] for m in card["modalities"]}
    return settings_of({**described, "modalities": used}, "the model's card", device)


def clip_sample(path: Path, settings: FeatureSettings, text: str = "") -> dict[str, Any]:
    """Return a recording as a sample, without the modalities of which it has no frame.

    Args:
        path: the recording, or a .txt.
        settings: of `feature_settings`.
        text: the transcript; "": that of a .vtt, .srt or .txt beside it.

    Raises:
        CorrKDError: the recording cannot be read, or has nothing that the model knows.
    """
    return sample_of(
        extract(path, settings, text),
        path.name,
        "a transcript may lie beside it as a .vtt, .srt or .txt",
    )


def sample_of(features: ClipFeatures, name: str, advice: str) -> dict[str, Any]:
    """Return features as a sample, without the modalities of which there is no frame.

    Args:
        features: of a recording.
        name, advice: of the recording and what to do, for the error.

    Raises:
        CorrKDError: there is no frame at all.
    """
    sample: dict[str, Any] = {}
    for m, frames in features.frames.items():
        if frames.present.any():
            sample |= {m: frames.values, f"{m}_present": frames.present}
    if not sample:
        raise CorrKDError(f"{name}: nothing of {', '.join(features.frames)} in it; {advice}")
    return sample


def predict_clips(
    predict: Callable[[Path], Prediction],
    clips: Sequence[Path],
    on_clip: Callable[[Path, str], None],
) -> tuple[dict[Path, Prediction], dict[Path, str]]:
    """Return predictions and errors by clip; a clip that cannot be read does not stop the others.

    Args:
        predict: of one clip.
        clips: paths.
        on_clip: called after each, with the error's line or "".
    """
    predictions: dict[Path, Prediction] = {}
    errors: dict[Path, str] = {}
    for clip in clips:
        try:
            predictions[clip] = predict(clip)
        except CorrKDError as error:
            errors[clip] = str(error)
        on_clip(clip, errors.get(clip, ""))
    return predictions, errors


def write_predictions(
    out: Path, predictions: Mapping[Path, Prediction], card: Mapping[str, Any]
) -> None:
    """Write the predictions of clips as a table, whole or not at all; `id` is the path as it was
    given.
    """
    lines = [
        json.dumps({"id": str(clip), **p.to_json()}, ensure_ascii=False)
        for clip, p in predictions.items()
    ]
    with TemporaryDirectory() as folder, replacing(out) as temporary:
        rows = Path(folder) / "rows.jsonl"
        rows.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        WRITERS[out.suffix](temporary, [rows], columns(card, splits=False))


def prediction_text(clip: Path, prediction: Prediction) -> str:
    """Return a prediction as a line: the clip, the answer, its probability or score, and what was
    used.
    """
    used = ", ".join(f"{m} {100 * share:.0f} %" for m, share in prediction.used.items())
    if isinstance(prediction.label, str):
        labels = [
            _answer(
                prediction.label,
                (prediction.probabilities or {}).get(prediction.label),
                prediction.score,
            )
        ]
    else:
        chances = prediction.probabilities or {}
        labels = [
            f"{q}: {_answer(label, chances.get(q, {}).get(label), None)}"
            for q, label in prediction.label.items()
        ]
    return f"{clip}: {', '.join(labels)} (from {used})"


def _answer(label: str, probability: float | None, score: float | None) -> str:
    if score is not None:
        return f"{label}, score {score:.2f}"
    return label if probability is None else f"{label} {100 * probability:.0f} %"
