"""Predicting with an exported student: `python predict.py SAMPLE.json` (or .npz). It needs only
NumPy and onnxruntime.

This file is part of corrkd (Apache-2.0). It is copied next to model.onnx and card.json, so it
imports nothing of the package.

A *sample* is a mapping from modality to raw features of shape (frames, width), or (width,) for a
single vector. A missing modality is None or left out. Missing frames are None in a list of frames,
or False in a boolean array `<modality>_present`; their values are ignored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Sample = Mapping[str, Any]
ReadSample = Mapping[str, tuple[Array, Array]]
"""Frames (T, width) float32 and a mask (T,) of present frames, by modality of the sample."""
PRESENT = "_present"
SQUARES = 1 << 20  # limit of samples x (frames of the longest)² in a batch
# excess of a modality's share of missing frames over the tested ratio that may arise by chance
CLEARLY = 0.3


class InputError(ValueError):
    """Raised for invalid input. The message states what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Arrays:
    """N samples of one modality as input of a network: raw frames (N, T, width), and masks (N, T)
    of existing and of visible frames.
    """

    frames: npt.NDArray[np.float32]
    exists: npt.NDArray[np.bool_]
    visible: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Reliability:
    """Test results of the model under the most similar condition.

    Attributes:
        condition: name of the tested condition: the present modalities, or "ratio-R" if a fraction
            R of all frames was missing.
        harder: whether the sample has more missing frames than this condition, so that the
            prediction may be less reliable than these numbers.
        split, samples: name of the test split, and its number of samples.
        measured: weighted_f1, accuracy, ece (calibration error) and others, as fractions of 1.
    """

    condition: str
    harder: bool
    split: str
    samples: int
    measured: dict[str, float]


@dataclass(frozen=True)
class Prediction:
    """The prediction for a sample.

    Attributes:
        label: the most probable class; for yes/no questions, the label by question; for a score,
            its category.
        probabilities: probabilities by class, or by question and class, 0 to 1; None for a score.
        score: the predicted score; None for other targets.
        used: fraction of present frames by modality, 0 to 1.
        reliability: test results; None if no similar condition was tested.
        prediction_set: classes that cannot be ruled out, by question for questions; None if no
            prediction sets are valid for the condition.
        interval: lowest and highest score that cannot be ruled out; None likewise.
    """

    label: str | dict[str, str]
    probabilities: dict[str, Any] | None
    score: float | None
    used: dict[str, float]
    reliability: Reliability | None
    prediction_set: Any = None
    interval: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as JSON values, without optional fields that are None."""
        optional = ("probabilities", "score", "prediction_set", "interval")
        values = asdict(self)
        return {k: v for k, v in values.items() if v is not None or k not in optional}


Run = Callable[[Mapping[str, Arrays]], Array]
"""N samples -> logits (N, K) or (N, Q, 2), or scores (N, 1)."""


# --------------------------------------------------------------------------------------------------
# samples to arrays


def read_sample(sample: Any, card: Mapping[str, Any], where: str = "sample") -> ReadSample:
    """Return frames (T, width) float32 and a mask (T,) of present frames, by modality.

    Raises:
        InputError: if a modality is unknown, has another width, no frames, too many frames or
            infinite or NaN values, or if the sample has no modality.
    """
    modalities = card["modalities"]
    if not isinstance(sample, Mapping):
        raise InputError(
            f"{where}: expected a mapping from modality to frames, found {type(sample).__name__}"
        )
    for key in sample:
        if str(key).removesuffix(PRESENT) not in modalities and key not in modalities:
            raise InputError(
                f"{where}: {key!r} is not a modality of this model; it has {', '.join(modalities)}"
            )
    out = {}
    for m, size in modalities.items():
        if sample.get(m) is not None:
            out[m] = _read_modality(
                sample[m], sample.get(f"{m}{PRESENT}"), int(size["width"]), f"{where}, {m}"
            )
            longest = card.get("longest", {}).get(m)
            if longest is not None and len(out[m][0]) > longest:
                raise InputError(
                    f"{where}, {m}: {len(out[m][0])} frames, but the model reads no more than "
                    f"{longest}"
                )
        elif sample.get(f"{m}{PRESENT}") is not None:
            raise InputError(
                f"{where}, {m}: {m}{PRESENT} without {m}; give the frames too, or leave out both"
            )
    if not out:
        raise InputError(
            f"{where}: no modality is given; give at least one of {', '.join(modalities)}"
        )
    return out


def _read_modality(values: Any, present: Any, width: int, where: str) -> tuple[Array, Array]:
    exists = None
    if (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and any(frame is None for frame in values)
    ):
        exists = np.array([frame is not None for frame in values])
        blank = [0.0] * width
        values = [blank if frame is None else frame for frame in values]
    try:
        frames = np.asarray(values)
        if frames.dtype.kind == "O":  # some numbers are too large, or None
            frames = frames.astype(np.float64)
        if frames.dtype.kind not in "fiub":
            raise TypeError
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{where}: not numbers of shape (frames, {width})") from None
    if frames.ndim == 1 and frames.shape == (width,):
        frames = frames[None]
    if frames.size == 0:
        raise InputError(f"{where}: no frames; for a missing modality use null or leave it out")
    if frames.ndim != 2 or frames.shape[1] != width:
        raise InputError(f"{where}: shape {frames.shape}, expected (frames, {width})")
    exists = np.ones(len(frames), bool) if exists is None else exists
    if present is not None:
        try:
            mask = np.asarray(present)
        except ValueError:
            mask = np.empty(0)
        if mask.shape != (len(frames),) or not np.isin(mask, (0, 1)).all():
            raise InputError(
                f"{where}: the mask must be {len(frames)} booleans, found shape {mask.shape}"
            )
        exists &= mask.astype(bool)
    with np.errstate(over="ignore"):
        frames = frames.astype(np.float32)
    bad = ~np.isfinite(frames).all(1) & exists
    if bad.any():
        raise InputError(
            f"{where}: NaN or infinite values in frame {int(bad.argmax())}; give null for a "
            f"frame that is missing"
        )
    frames[~exists] = 0.0
    return frames, exists


def frames_seen(sample: ReadSample, card: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of frames that the network reads of each modality, for a sample from
    `read_sample`. A modality without a present frame has the usual (median) number of frames of the
    training samples, all invisible.
    """
    out = {}
    for m, size in card["modalities"].items():
        longest = card.get("longest", {}).get(m, sys.maxsize)
        visible = m in sample and bool(sample[m][1].any())
        out[m] = (
            len(sample[m][0]) if visible else min(int(size.get("usual", size["frames"])), longest)
        )
    return out


def collate(samples: Sequence[ReadSample], card: Mapping[str, Any]) -> dict[str, Arrays]:
    """Return samples from `read_sample` as one batch, padded on the right."""
    seen = [frames_seen(sample, card) for sample in samples]
    out = {}
    for m, size in card["modalities"].items():
        lengths = [frames[m] for frames in seen]
        frames = np.zeros((len(samples), max(lengths), int(size["width"])), np.float32)
        visible = np.zeros(frames.shape[:2], bool)
        for row, sample in enumerate(samples):
            if m in sample and sample[m][1].any():
                frames[row, : lengths[row]], visible[row, : lengths[row]] = sample[m]
        exists = np.arange(frames.shape[1])[None] < np.array(lengths)[:, None]
        out[m] = Arrays(frames, exists, visible)
    return out


# --------------------------------------------------------------------------------------------------
# conditions


def tested_condition(
    card: Mapping[str, Any], used: Mapping[str, float]
) -> tuple[Mapping[str, Any] | None, bool]:
    """Return the tested condition that is most similar to a sample, and whether the sample has more
    missing frames. The condition is None if no similar condition was tested.

    If a modality is missing, the condition is that of the present modalities. If no more frames are
    missing than usual in the training data, it is the complete condition, whose test samples have
    such missing frames too. Otherwise it is the condition with the nearest ratio of missing frames;
    of two, the larger.

    Args:
        card: card of the model.
        used: fraction of present frames by modality, 0 to 1.
    """
    evaluated = (card.get("evaluated") or {}).get("conditions", ())
    conditions = [c for c in evaluated if c["rates_samples"]]
    available = {m for m, share in used.items() if share > 0}
    missing = 1.0 - sum(used.values()) / len(used)
    usual = _lacks_no_more_than_usual({m: 1.0 - used[m] for m in available}, card)
    if available and (len(available) < len(used) or usual):
        for c in conditions:
            if c["ratio"] is None and set(c["available"]) == available:
                return c, not usual
        return None, False
    ratios = [c for c in conditions if c["ratio"] is not None]
    if not ratios:
        return None, False
    nearest = min(ratios, key=lambda c: (abs(c["ratio"] - missing), -c["ratio"]))
    most = max(1.0 - share for share in used.values())
    return nearest, missing > nearest["ratio"] + 1e-9 or most > nearest["ratio"] + CLEARLY


def _lacks_no_more_than_usual(missing: Mapping[str, float], card: Mapping[str, Any]) -> bool:
    """Return whether the shares of missing frames of the present modalities, each and on average,
    are at most the 95th percentile of the training split.
    """
    together = sum(missing.values()) / max(1, len(missing))
    each = all(
        share <= card["modalities"][m].get("missing", 0.0) + 1e-9 for m, share in missing.items()
    )
    return each and together <= card.get("missing", 0.0) + 1e-9


# --------------------------------------------------------------------------------------------------
# logits to predictions


def predictions(
    samples: Sequence[Any],
    card: Mapping[str, Any],
    run: Run,
    *,
    batch_size: int = 256,
    where: str = "sample",
) -> list[Prediction]:
    """Return the predictions for samples of any length, in order.

    Args:
        samples: samples as described at the top of this file.
        card: card of the model.
        run: the network, from arrays to logits.
        batch_size: samples per batch; samples of similar length share a batch.
        where: prefix of error messages, followed by the index if there are several samples.

    Raises:
        InputError: like `read_sample` and `described`.
    """
    read = [
        read_sample(s, card, where if len(samples) == 1 else f"{where} {n}")
        for n, s in enumerate(samples)
    ]
    return predicted(read, card, run, batch_size=batch_size)


def predicted(
    read: Sequence[ReadSample], card: Mapping[str, Any], run: Run, *, batch_size: int = 256
) -> list[Prediction]:
    """Return the predictions for samples from `read_sample`, in order."""
    lengths = [max(frames_seen(sample, card).values()) for sample in read]
    order = sorted(range(len(read)), key=lengths.__getitem__)
    out: list[Prediction | None] = [None] * len(read)
    for rows in _cut(order, lengths, batch_size):
        arrays = collate([read[n] for n in rows], card)
        for n, prediction in zip(rows, described(arrays, run(arrays), card), strict=True):
            out[n] = prediction
    return [prediction for prediction in out if prediction is not None]


def _cut(order: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield indices in batches of at most `most`, fewer if samples are long: the memory of
    attention grows with the number of samples times the square of the longest length.
    """
    rows: list[int] = []
    for n in order:  # by increasing length
        if rows and (len(rows) == most or (len(rows) + 1) * lengths[n] ** 2 > SQUARES):
            yield rows
            rows = []
        rows.append(n)
    if rows:
        yield rows


def described(
    arrays: Mapping[str, Arrays], logits: Array, card: Mapping[str, Any]
) -> Iterator[Prediction]:
    """Yield the predictions for logits, with the test results under the condition of each sample.
    Raises InputError if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise InputError(
            "the network returned NaN or infinite values; check that the features have the usual "
            "magnitude"
        )
    counted = {m: (a.visible.sum(1), a.exists.sum(1)) for m, a in arrays.items()}
    for row, answer in enumerate(np.asarray(logits, np.float64)):
        used = {m: float(visible[row] / exists[row]) for m, (visible, exists) in counted.items()}
        condition, harder = tested_condition(card, used)
        yield _described(answer, used, condition, harder, card)


def _described(
    logits: Array,
    used: dict[str, float],
    condition: Mapping[str, Any] | None,
    harder: bool,
    card: Mapping[str, Any],
) -> Prediction:
    tested, target, reliability = card.get("evaluated") or {}, card["target"], None
    if condition is not None:
        measured = dict(condition["measured"])
        reliability = Reliability(
            condition["name"], harder, tested["split"], tested["samples"], measured
        )
    # Prediction sets are valid only under the condition for which they were calibrated.
    level = None if condition is None or harder else tested.get("level")
    threshold = None if condition is None else condition["threshold"]
    if logits.shape == (1,):  # a score, since classes have at least two logits
        score = float(logits[0])
        index = int(np.digitize(score, target["cuts"], right=not target["upward"]))
        interval = (
            None if level is None or threshold is None else (score - threshold, score + threshold)
        )
        return Prediction(
            target["classes"][index], None, score, used, reliability, interval=interval
        )
    shares = softmax(logits / (1.0 if condition is None else condition["temperature"]))
    names = target["classes"]

    def chosen(row: Array) -> list[str]:
        return [
            n for n, p in zip(names, row, strict=True) if threshold is None or 1.0 - p <= threshold
        ]

    def named(row: Array) -> dict[str, float]:
        return dict(zip(names, map(float, row), strict=True))

    if target["questions"]:
        rows = dict(zip(target["questions"], shares, strict=True))
        labels = {q: names[int(row.argmax())] for q, row in rows.items()}
        held = None if level is None else {q: chosen(row) for q, row in rows.items()}
        return Prediction(
            labels, {q: named(row) for q, row in rows.items()}, None, used, reliability, held
        )
    held_classes = None if level is None else chosen(shares)
    return Prediction(
        names[int(shares.argmax())], named(shares), None, used, reliability, held_classes
    )


def softmax(logits: Array) -> Array:
    """Return the softmax over the last axis."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    shares: Array = raised / raised.sum(-1, keepdims=True)
    return shares


# --------------------------------------------------------------------------------------------------
# the exported model


class ExportedStudent:
    """A model exported by `corrkd export`. Raises InputError if it does not exist or is damaged."""

    def __init__(self, folder: str | Path, *, threads: int = 0) -> None:
        import onnxruntime

        folder = Path(folder)
        try:
            self.card = json.loads((folder / "card.json").read_text("utf-8"))
            model = (folder / "model.onnx").read_bytes()
            if hashlib.sha256(model).hexdigest() != self.card["exported"]["sha256"]:
                raise ValueError(
                    "model.onnx is damaged or does not belong to card.json; export it again"
                )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            self._session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
            # Read everything that predictions need, so that a damaged card is reported here.
            tested_condition(self.card, dict.fromkeys(self.card["modalities"], 1.0))
            [int(size["width"]) for size in self.card["modalities"].values()]
            self.card["target"]["questions"], self.card["target"]["classes"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(f"{folder}: not an exported model ({error})") from None
        except Exception as error:  # exception types of onnxruntime
            raise InputError(
                f"{folder / 'model.onnx'}: cannot be read ({str(error)[:120]})"
            ) from None

    def run(self, arrays: Mapping[str, Arrays]) -> Array:
        """Return the logits for N samples, (N, K) or (N, Q, 2), or scores (N, 1)."""
        feed: dict[str, Array] = {}
        for index, m in enumerate(self.card["modalities"]):
            feed[f"frames_{index}"], feed[f"exists_{index}"] = arrays[m].frames, arrays[m].exists
            feed[f"visible_{index}"] = arrays[m].visible
        logits: Array = self._session.run(["logits"], feed)[0]
        return logits

    def predict(self, samples: Any, *, batch_size: int = 256) -> Any:
        """Return a `Prediction` for a sample, or a list for a list of samples. Raises InputError if
        a sample is invalid.
        """
        if isinstance(samples, Mapping):
            return predictions([samples], self.card, self.run)[0]
        return predictions(list(samples), self.card, self.run, batch_size=batch_size)


def load_samples(path: Path) -> Any:
    """Return the sample in a .json or .npz file, or a list of samples in a .json file. Raises
    InputError if the file cannot be read.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        return json.loads(path.read_text("utf-8"))
    except Exception as error:  # from json, zipfile or NumPy, on an untrusted file
        raise InputError(
            f"{path}: cannot be read: {str(error)[:120] or type(error).__name__}"
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the prediction for each sample as a line of JSON, and return the exit code."""
    parser = argparse.ArgumentParser(description="Predict with the model in this folder.")
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        help="a sample as .json or .npz; a .json file may hold a list",
    )
    parser.add_argument(
        "--model", type=Path, default=Path(__file__).parent, help="the exported folder"
    )
    options = parser.parse_args(arguments)
    try:
        student = ExportedStudent(options.model)
        for path in options.files:
            samples = load_samples(path)
            for prediction in student.predict(samples if isinstance(samples, list) else [samples]):
                print(json.dumps(prediction.to_json(), ensure_ascii=False))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
