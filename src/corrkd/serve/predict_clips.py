"""Predicting recordings with the feature extractors of the training data."""

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

EXTRACTORS = "extractors"  # key in `about` of a card


def feature_settings(
    card: Mapping[str, Any], device: str = "cpu"
) -> tuple[FeatureSettings, list[str]]:
    """Return settings that extract features as for the training data of a model, and notes on
    libraries of other versions.

    Args:
        card: card of the model.
        device: device of extractors with models from the hub, such as "cpu" or "cuda".

    Raises:
        CorrKDError: if the model was not trained on features of recordings, or the installed
            extractors differ.
    """
    described = card["about"].get(EXTRACTORS)
    if not isinstance(described, Mapping) or not isinstance(described.get("modalities"), Mapping):
        raise CorrKDError(
            "the model card lists no extractors: its data does not come from `corrkd features`; "
            "predict from features of the same kind"
        )
    lacking = [m for m in card["modalities"] if m not in described["modalities"]]
    if lacking:
        raise CorrKDError(
            f"the model card lists no extractor of {', '.join(lacking)}; predict from features "
            f"of the same kind"
        )
    used = {m: described["modalities"][m] for m in card["modalities"]}
    return settings_of({**described, "modalities": used}, "the model card", device)


def clip_sample(path: Path, settings: FeatureSettings, text: str = "") -> dict[str, Any]:
    """Return the features of a recording as a sample, without modalities that have no present
    frame.

    Args:
        path: a recording or a .txt file.
        settings: from `feature_settings`.
        text: transcript; "" to read a .vtt, .srt or .txt file next to the recording.

    Raises:
        CorrKDError: if the recording cannot be read or has none of the model's modalities.
    """
    return sample_of(
        extract(path, settings, text),
        path.name,
        "put a transcript beside it as a .vtt, .srt or .txt file",
    )


def sample_of(features: ClipFeatures, name: str, advice: str) -> dict[str, Any]:
    """Return features as a sample, without modalities that have no present frame.

    Args:
        features: features of a recording.
        name: prefix of the error message.
        advice: suffix of the error message.

    Raises:
        CorrKDError: if no modality has a present frame.
    """
    sample: dict[str, Any] = {}
    for m, frames in features.frames.items():
        if frames.present.any():
            sample |= {m: frames.values, f"{m}_present": frames.present}
    if not sample:
        raise CorrKDError(f"{name}: has none of {', '.join(features.frames)}; {advice}")
    return sample


def predict_clips(
    predict: Callable[[Path], Prediction],
    clips: Sequence[Path],
    on_clip: Callable[[Path, str], None],
) -> tuple[dict[Path, Prediction], dict[Path, str]]:
    """Return the predictions and the error lines by clip. An error in one clip does not stop the
    others.

    Args:
        predict: function that predicts one clip.
        clips: paths of the clips.
        on_clip: called after each clip with its path and its error line or "".
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
    """Write the predictions of clips as a table, atomically, with their paths in the column `id`.
    Raises CorrKDError if the table cannot be written.
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
    """Return a prediction as one line: clip, label, probability or score, and the percentage of
    frames used of each modality.
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
