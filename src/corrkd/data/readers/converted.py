"""The layout of corrkd: one `.safetensors` file that `corrkd data convert` writes, opened by memory
map.

Tensors `<split>/frames/<modality>` float32 (N, T, d), `<split>/lengths/<modality>` int64 (N,),
`<split>/present/<modality>` bool (N, T), `<split>/frame_ids/<modality>` int64 (N, T) if frames are
numbered, `<split>/scores` float64, `<split>/labels` int64, `<split>/order` int64, and strings as
UTF-8 JSON lists in uint8: `<split>/ids`, `<split>/groups/<name>`,
`<split>/missing_reasons/<modality>`. Metadata of the dataset is JSON in the header's metadata under
`corrkd`; its `sha256` is the digest of the contents, computed while the file is written. It is not
checked when the file is opened, which stays cheap.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from corrkd.data.dataset import SPLITS, MultimodalDataset, Split, StrArray, check_split
from corrkd.data.readers.bounds import refused
from corrkd.data.readers.raw import Array
from corrkd.errors import CorrKDError
from corrkd.escape import is_unicode
from corrkd.memory import size_text
from corrkd.parsing import parse_json, quoted, refusing

FORMAT = 2
SOURCE = "source_sha256"  # in `extra`: digest of the file that was converted
KEY = "corrkd"
LONGEST_HEADER = 16 << 20  # bytes; parsed JSON takes ten times as much in Python
FORMATS_LONGEST_HEADER = 100_000_000  # the limit of the safetensors format
LONGEST_ID = 1000  # characters: in a NumPy array, all strings take as much memory as the longest
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
}
# Type of each tensor, by the part of its name after the split.
TYPES = {
    **{
        "frames": "F32",
        "lengths": "I64",
        "present": "BOOL",
        "frame_ids": "I64",
        "scores": "F64",
        "labels": "I64",
    },
    **{"order": "I64", "ids": "U8", "groups": "U8", "missing_reasons": "U8"},
}
Name = Annotated[str, Field(min_length=1, max_length=200)]
Names = Annotated[list[Name], Field(max_length=1000)]


class About(BaseModel):
    """The metadata, with all allowed keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    format: Literal[2]
    name: Annotated[str, Field(max_length=1000)]
    splits: Annotated[list[Literal["train", "valid", "test", "all"]], Field(min_length=1)]
    modalities: Annotated[list[Name], Field(min_length=1, max_length=100)]
    class_names: Names
    question_names: Names
    score_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None
    layout: Annotated[str, Field(max_length=1000)]
    missing_rule: dict[Name, str]
    notes: list[str]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    extra: dict[str, Any]
    tokens: Names = []
    extractors: dict[str, Any] = {}

    @model_validator(mode="after")
    def _distinct(self) -> About:
        for names in (self.splits, self.modalities, self.class_names, self.question_names):
            if len(set(names)) < len(names):
                raise ValueError("a name appears twice")
        if self.score_range is not None and self.score_range[0] > self.score_range[1]:
            raise ValueError("score_range falls")
        return self


def is_safetensors(path: Path) -> bool:
    """Return whether a file starts with eight bytes of header length and then a JSON object."""
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return head[8:] == b"{" and length <= FORMATS_LONGEST_HEADER


def recognises(path: Path) -> bool:
    """Return whether a file is a `.safetensors` file with corrkd's metadata."""
    return is_safetensors(path) and KEY in _metadata(_header(path)[0])


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header as JSON, and the offset of the tensors. Raises CorrKDError if it is
    damaged.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise refused(path.name, f"its header is longer than {size_text(LONGEST_HEADER)}")
        text = file.read(length)
    header = parse_json(text, f"{path.name}: a damaged .safetensors file: its header")
    if not isinstance(header, dict):
        raise CorrKDError(
            f"{path.name}: a damaged .safetensors file: its header is not an object; write it again"
        )
    return header, 8 + length


def _metadata(header: dict[str, Any]) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def read(path: Path, *, targets: bool = True) -> MultimodalDataset:
    """Return the dataset in a converted file. Frames are memory-mapped: rows are read when they are
    taken.

    Args:
        path: the file.
        targets: whether scores or labels are required.

    Raises:
        CorrKDError: if the file is truncated or damaged, has another format, or lacks required
            targets.
    """
    header, start = _header(path)
    with refusing(path.name, "a damaged converted dataset"):
        metadata = parse_json(
            _metadata(header)[KEY], f"{path.name}: a damaged converted dataset: its metadata"
        )
        if metadata["format"] != FORMAT:
            raise CorrKDError(
                f"{path.name}: written by another version of corrkd (format "
                f"{metadata['format']}, expected {FORMAT}); convert it again or upgrade"
            )
        about = About.model_validate(metadata)
        tensors = _map(path, header, start)
        splits: dict[str, Split] = {
            name: _split(tensors, name, about.modalities) for name in about.splits
        }
        for name, split in splits.items():
            check_split(
                f"{path.name}, {name}", split, targets=targets, trains=name == SPLITS[0] and targets
            )
        return MultimodalDataset(
            name=about.name,
            splits=splits,
            class_names=tuple(about.class_names),
            question_names=tuple(about.question_names),
            score_range=None
            if about.score_range is None
            else (about.score_range[0], about.score_range[1]),
            layout=about.layout,
            missing_rule=about.missing_rule,
            notes=tuple(about.notes),
            sha256=about.sha256,
            extra=about.extra,
            tokens=tuple(about.tokens),
            extractors=about.extractors,
        )


def _map(path: Path, header: dict[str, Any], start: int) -> dict[str, Array]:
    """Return the tensors by name, as views into the file. Offsets are checked against shapes and
    the size of the file.
    """
    size = path.stat().st_size - start
    tensors: dict[str, Array] = {}
    contents = np.memmap(path, np.uint8, mode="r")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (begin, end) = (
            DTYPES[entry["dtype"]],
            tuple(entry["shape"]),
            entry["data_offsets"],
        )
        if entry["dtype"] != TYPES.get(name.split("/")[1]):
            raise ValueError(f"{name}: is {entry['dtype']}")
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError(f"{name}: shape or offsets are not sizes")
        if end > size:
            raise CorrKDError(
                f"{path.name}: truncated: {name} ends {end - size:,} bytes beyond the end of the "
                f"file; convert or copy it again"
            )
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: offsets do not fit its shape")
        tensors[name] = contents[start + begin : start + end].view(dtype).reshape(shape)
    return tensors


def _split(tensors: dict[str, Array], name: str, modalities: list[str]) -> Split:
    def small(key: str) -> Array | None:
        return np.array(tensors[f"{name}/{key}"]) if f"{name}/{key}" in tensors else None

    prefix = f"{name}/groups/"
    for m in modalities:
        if tensors[f"{name}/present/{m}"].view(np.uint8).max(initial=0) > 1:
            raise ValueError(f"{name}/present/{m}: has values other than 0 and 1")
    return Split(
        frames={m: tensors[f"{name}/frames/{m}"] for m in modalities},
        lengths={m: np.array(tensors[f"{name}/lengths/{m}"]) for m in modalities},
        present={m: np.array(tensors[f"{name}/present/{m}"]) for m in modalities},
        ids=_strings(tensors[f"{name}/ids"]),
        scores=small("scores"),
        labels=small("labels"),
        groups={
            key.removeprefix(prefix): _strings(x)
            for key, x in tensors.items()
            if key.startswith(prefix)
        },
        order=small("order"),
        frame_ids={
            m: np.array(tensors[key])
            for m in modalities
            if (key := f"{name}/frame_ids/{m}") in tensors
        },
        missing_reasons={
            m: _strings(tensors[key])
            for m in modalities
            if (key := f"{name}/missing_reasons/{m}") in tensors
        },
    )


def _strings(tensor: Array) -> StrArray:
    names = parse_json(tensor.tobytes(), "its strings")
    if not isinstance(names, list):
        raise ValueError("its strings are not a list")
    check_strings(names)
    return np.array(names, dtype=np.str_)


def check_strings(names: list[Any]) -> None:
    """Raise ValueError if ids or groups are not valid in a converted file."""
    for name in names:
        if not isinstance(name, str) or len(name) > LONGEST_ID or not is_unicode(name):
            raise ValueError(f"{quoted(name)} is not a text of up to {LONGEST_ID} characters")
