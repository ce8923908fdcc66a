"""Predicting a dataset, batch by batch, to a table on disk. An interrupted prediction continues
from the last batch.

Batches are first written atomically, as numbered files of JSON lines, to a hidden folder next to
the output, with a description of the arguments. At the end they are joined into the output, and the
folder is removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from corrkd._version import __version__
from corrkd.data.batches import for_masks
from corrkd.data.dataset import WHOLE, MultimodalDataset, Split
from corrkd.errors import CorrKDError
from corrkd.files import check_new, exclusive, remove_parts, replacing, write_text
from corrkd.missing.conditions import Condition
from corrkd.missing.conditions import condition as condition_of
from corrkd.networks.saved import SavedNetwork
from corrkd.parsing import read_json
from corrkd.serve import standalone
from corrkd.serve.prediction_table import SUM_LINE, WRITERS, columns
from corrkd.serve.predictor import Predictor
from corrkd.serve.standalone import InputError, ReadSample
from corrkd.settings import MASK_SEED

ABOUT, PART = "about.json", "part-{:08d}.jsonl"
GLIMPSED = 16


def predict_file(
    predictor: Predictor,
    dataset: MultimodalDataset,
    out: Path,
    *,
    split: str = WHOLE,
    condition: str | None = None,
    batch_size: int = 256,
    overwrite: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> int:
    """Write the predictions for all samples. A call with the same arguments continues an
    interrupted one.

    Args:
        predictor: the student.
        dataset: raw features; targets are not needed. Modalities that it lacks are missing, and
            modalities that the student does not use are ignored (see `differences`).
        out: output file (.csv, .parquet or .jsonl).
        split: split to predict; "all" for every split.
        condition: missing condition to apply in addition, as in the first draw of an evaluation.
        batch_size: samples per batch. It affects memory, rounding, and how much an interruption
            loses.
        overwrite: replace an existing output, and batches of other arguments.
        on_batch: called after each batch, finished ones included, with its number of samples.

    Returns:
        The number of samples.

    Raises:
        CorrKDError: if the output exists, another process is writing it, its batches belong to
            other arguments, or a split, modality or condition does not fit.
    """
    check_output(out, overwrite=overwrite)
    splits = chosen(predictor.saved.fit(dataset, partly=True), split)
    taken = None if condition is None else _condition(predictor.saved, dataset, condition)
    about = {
        "corrkd": __version__,
        # includes temperatures and thresholds, which the digest of the parameters does not
        "model": _digest(predictor.card),
        "data": [
            dataset.sha256,
            _digest(
                [[name, data.ids.tolist(), _data_digest(data)] for name, data in splits.items()]
            ),
        ],
        "split": split,
        "condition": taken and taken.name,
        "samples at a time": batch_size,
    }
    batches = [
        (name, start)
        for name, split in splits.items()
        for start in range(0, len(split), batch_size)
    ]
    folder, finished = out.with_name(f".{out.name}.parts"), False
    files = [folder / PART.format(number) for number in range(len(batches))]
    with exclusive(
        folder, f"{out}: another process is writing it; wait for it or choose another file"
    ):
        try:
            check_output(out, overwrite=overwrite)
            _begin(folder, out, about, overwrite=overwrite)
            for file, (name, start) in zip(files, batches, strict=True):
                rows = np.arange(start, min(start + batch_size, len(splits[name])))
                if not _is_intact(file):
                    more = {} if name == WHOLE else {"split": name}
                    _write_batch(file, _json_lines(predictor, splits[name].take(rows), taken, more))
                if on_batch:
                    on_batch(len(rows))
            with replacing(out, aside=folder) as temporary:
                WRITERS[out.suffix](
                    temporary, files, columns(predictor.card, splits=WHOLE not in splits)
                )
            finished = True
        finally:
            if finished or not _finished_batches(folder):
                shutil.rmtree(folder, ignore_errors=True)
    return sum(map(len, splits.values()))


def check_output(out: Path, *, overwrite: bool) -> None:
    """Raise CorrKDError if the name of the output does not end in .csv, .parquet or .jsonl, or if
    it exists and must not be overwritten.
    """
    if out.suffix not in WRITERS:
        raise CorrKDError(f"{out}: the output's name must end in .csv, .parquet or .jsonl")
    check_new(out, overwrite=overwrite)


def chosen(dataset: MultimodalDataset, split: str) -> dict[str, Split]:
    """Return the splits to predict, by name. Raises CorrKDError if the split does not exist."""
    return dict(dataset.splits) if split == WHOLE else {split: dataset.split(split)}


def differences(saved: SavedNetwork, dataset: MultimodalDataset) -> list[str]:
    """Return a message for each modality that only the dataset or only the model has."""
    lacking = [m for m in saved.modalities if m not in dataset.modalities]
    unknown = [m for m in dataset.modalities if m not in saved.modalities]
    return [
        *(f"the data has no {m}: it is missing in every sample" for m in lacking),
        *(f"the model does not use {m}: ignored" for m in unknown),
    ]


def _condition(saved: SavedNetwork, dataset: MultimodalDataset, name: str) -> Condition:
    condition = condition_of(name, saved.modalities)
    if not condition.removes_frames:
        raise CorrKDError(
            f"condition {name!r} removes no frames; name the modalities to keep, ratio-R, burst-R "
            f"or late-R"
        )
    if not set(condition.available) & set(dataset.modalities):
        raise CorrKDError(
            f"condition {name!r} keeps no modality of dataset {dataset.name}, which has "
            f"{', '.join(dataset.modalities)}"
        )
    return condition


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _data_digest(split: Split) -> str:
    """Return a digest of the frames of some samples, for data without a digest of the file or with
    other word vectors.
    """
    digest = hashlib.sha256()
    for row in range(0, len(split), len(split) // GLIMPSED + 1):
        for frames in split.frames.values():
            digest.update(np.ascontiguousarray(frames[row : row + 1]).tobytes())
    return digest.hexdigest()


def _begin(folder: Path, out: Path, about: Mapping[str, Any], *, overwrite: bool) -> None:
    """Prepare the folder for these arguments. Raises CorrKDError if it contains batches of other
    arguments and must not be overwritten.
    """
    remove_parts(folder)
    try:
        before = read_json(folder / ABOUT)
    except CorrKDError:  # none, or damaged
        before = None
    before = before if isinstance(before, dict) else {}
    if before == about:
        return
    if _finished_batches(folder) and not overwrite:
        changed = ", ".join(key for key in about if about[key] != before.get(key))
        raise CorrKDError(
            f"{out}: half done, but with a different {changed}; continue with the same one, or "
            "start again with --overwrite"
        )
    for split in _finished_batches(folder):
        split.unlink()
    write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")


def _write_batch(file: Path, lines: str) -> None:
    """Write a batch after its digest, which shows the next start that the batch is complete."""
    write_text(file, f"{SUM_LINE}{_digest_of(lines.encode())}\n{lines}")


def _is_intact(file: Path) -> bool:
    """Return whether a batch is complete and unchanged; otherwise it is predicted again."""
    try:
        first, _, lines = file.read_bytes().partition(b"\n")
    except OSError:
        return False
    return first == f"{SUM_LINE}{_digest_of(lines)}".encode()


def _digest_of(lines: bytes) -> str:
    return hashlib.sha256(lines).hexdigest()


def _finished_batches(folder: Path) -> list[Path]:
    return list(folder.glob("part-*.jsonl"))


def _json_lines(
    predictor: Predictor, split: Split, condition: Condition | None, more: Mapping[str, str]
) -> str:
    """Return one line of JSON per sample of a batch."""
    samples = _read(split, condition)
    try:
        predictions = standalone.predicted(
            samples, predictor.card, predictor.logits, batch_size=len(samples)
        )
    except InputError as error:
        raise CorrKDError(f"samples {split.ids[0]} to {split.ids[-1]}: {error}") from None
    lines = [
        {"id": name, **more, **prediction.to_json()}
        for name, prediction in zip(split.ids.tolist(), predictions, strict=True)
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _read(split: Split, condition: Condition | None) -> list[ReadSample]:
    """Return the samples with missing and dropped frames set to 0, and masks of the others."""
    seen = dict(split.present)
    if condition is not None:
        seen = {
            m: x.numpy()
            for m, x in condition.visible(for_masks(split), seed=MASK_SEED, draw=0).items()
        }
    frames = {m: np.where(seen[m][..., None], x, np.float32(0)) for m, x in split.frames.items()}
    return [
        {
            m: (frames[m][row, : split.lengths[m][row]], seen[m][row, : split.lengths[m][row]])
            for m in frames
        }
        for row in range(len(split))
    ]
