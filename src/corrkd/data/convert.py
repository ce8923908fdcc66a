"""`convert`: writing a dataset to one file that contains no code and is opened by memory map.
readers/converted.py describes its layout.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from corrkd.data.dataset import MultimodalDataset, Split, StrArray
from corrkd.data.readers.converted import DTYPES, FORMAT, KEY, SOURCE, About, check_strings
from corrkd.data.readers.raw import Array
from corrkd.errors import CorrKDError
from corrkd.files import make_folder, remove_parts, replacing
from corrkd.parsing import parse_json, refusing

ROWS = 256  # samples copied at a time


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    values: Array

    @property
    def size(self) -> int:
        return math.prod(self.values.shape) * DTYPES[self.dtype].itemsize

    @property
    def heading(self) -> bytes:
        """Name, type and shape, as they enter the digest."""
        return f"{self.name} {self.dtype} {self.values.shape}\n".encode()

    def contents(self) -> Iterator[memoryview]:
        """Yield the bytes, a few samples at a time."""
        for start in range(0, len(self.values), ROWS):
            rows = np.ascontiguousarray(self.values[start : start + ROWS], DTYPES[self.dtype])
            yield rows.reshape(-1).view(np.uint8).data


def convert(dataset: MultimodalDataset, path: str | Path) -> None:
    """Write a dataset to `path` (`.safetensors`) atomically, a few samples at a time.

    The file's `sha256` is a digest of its contents: of the tensors' names, types, shapes and bytes,
    and of what the targets depend on (class and question names, score range). The digest of the
    source stays in `extra` and in a note. The exact posterior of the built-in dataset is a function
    and is not written; a note in the file says so.

    Raises:
        CorrKDError: if `path` has another ending or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CorrKDError(f"{path}: the converted file's name must end in .safetensors")
    tensors = _checked_tensors(dataset)
    make_folder(path.parent)
    remove_parts(path.parent, path.name)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_header(dataset, tensors, "0" * 64))  # the digest is filled in at the end
        digest = hashlib.sha256(_facts(dataset).encode())
        for tensor in tensors:
            digest.update(tensor.heading)
            for content in tensor.contents():
                file.write(content)
                digest.update(content)
        file.seek(0)
        file.write(_header(dataset, tensors, digest.hexdigest()))


def as_converted(dataset: MultimodalDataset) -> MultimodalDataset:
    """Return the dataset as `convert` would write it and a reader would return it, without writing
    a file.

    Raises:
        CorrKDError: if the dataset cannot be converted.
    """
    digest = hashlib.sha256(_facts(dataset).encode())
    for tensor in _checked_tensors(dataset):
        digest.update(tensor.heading)
        for content in tensor.contents():
            digest.update(content)
    about = json.loads(_about(dataset, digest.hexdigest()))
    return replace(
        dataset,
        notes=tuple(about["notes"]),
        extra=about["extra"],
        sha256=about["sha256"],
        posterior=None,
        splits={name: dataset.splits[name] for name in about["splits"]},
    )


def _checked_tensors(dataset: MultimodalDataset) -> list[_Tensor]:
    """Return the tensors of the dataset's file, in order. Raises CorrKDError if the file could not
    be opened again.
    """
    where = f"dataset {dataset.name}: cannot be converted"
    with refusing(where, "a converted file cannot contain it"):
        tensors = [
            tensor for name, split in dataset.splits.items() for tensor in _tensors(name, split)
        ]
        About.model_validate(parse_json(_about(dataset, "0" * 64), f"{where}: its metadata"))
    # Sorted so that each starts at a multiple of its item size.
    return sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)


def _facts(dataset: MultimodalDataset) -> str:
    """Return what the targets depend on besides the tensors. Names, notes and the layout may differ
    between equal contents.
    """
    tokens = [list(dataset.tokens)] if dataset.tokens else []
    return (
        json.dumps(
            [list(dataset.class_names), list(dataset.question_names), dataset.score_range, *tokens]
        )
        + "\n"
    )


def _tensors(name: str, split: Split) -> Iterator[_Tensor]:
    for m, frames in split.frames.items():
        yield _Tensor(f"{name}/frames/{m}", "F32", frames)
        yield _Tensor(f"{name}/lengths/{m}", "I64", split.lengths[m])
        yield _Tensor(f"{name}/present/{m}", "BOOL", split.present[m])
        if m in split.frame_ids:
            yield _Tensor(f"{name}/frame_ids/{m}", "I64", split.frame_ids[m])
        if m in split.missing_reasons:
            yield _Tensor(
                f"{name}/missing_reasons/{m}", "U8", _json_bytes(split.missing_reasons[m])
            )
    for key, dtype, values in (
        ("scores", "F64", split.scores),
        ("labels", "I64", split.labels),
        ("order", "I64", split.order),
    ):
        if values is not None:
            yield _Tensor(f"{name}/{key}", dtype, values)
    yield _Tensor(f"{name}/ids", "U8", _json_bytes(split.ids))
    for group, names in split.groups.items():
        yield _Tensor(f"{name}/groups/{group}", "U8", _json_bytes(names))


def _json_bytes(names: StrArray) -> Array:
    check_strings(names.tolist())
    return np.frombuffer(json.dumps(names.tolist()).encode(), np.uint8)


def _header(dataset: MultimodalDataset, tensors: list[_Tensor], digest: str) -> bytes:
    """Return eight bytes with the length, then JSON padded with spaces to a multiple of eight, as
    the safetensors format requires.
    """
    header: dict[str, object] = {"__metadata__": {KEY: _about(dataset, digest)}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.values.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _about(dataset: MultimodalDataset, digest: str) -> str:
    """Return the metadata of the dataset as JSON."""
    notes, extra = list(dataset.notes), dict(dataset.extra)
    if dataset.posterior:
        notes.append("the exact posterior is not part of a converted file")
    # a file that is converted again keeps its first source
    if dataset.sha256 and SOURCE not in extra:
        extra[SOURCE] = dataset.sha256
        notes.append(f"converted from a file or folder with sha256 {dataset.sha256}")
    about = {
        "format": FORMAT,
        "name": dataset.name,
        "splits": list(dataset.splits),
        "modalities": list(dataset.modalities),
        "class_names": dataset.class_names,
        "question_names": dataset.question_names,
        "score_range": dataset.score_range,
        "layout": dataset.layout,
        "missing_rule": dict(dataset.missing_rule),
        "notes": notes,
        "sha256": digest,
        "extra": extra,
        **({"tokens": list(dataset.tokens)} if dataset.tokens else {}),
        **({"extractors": dict(dataset.extractors)} if dataset.extractors else {}),
    }
    return json.dumps(about)
