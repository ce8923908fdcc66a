"""corrkd's own layout: one `.safetensors` file that `corrkd data convert` writes, opened by memory map.

Tensors `<split>/frames/<modality>` float32 (N, T, d), `<split>/lengths/<modality>` int64 (N,), `<split>/present/<modality>` bool (N, T),
`<split>/frame_ids/<modality>` int64 (N, T) where frames are numbered,
`<split>/scores` float64, `<split>/labels` int64, `<split>/order` int64, and strings as UTF-8 JSON lists in uint8:
`<split>/ids`, `<split>/groups/<name>`. What concerns the whole dataset is JSON in the header's metadata under `corrkd`; its
`sha256` is the digest of the contents, which conversion takes while it writes: opening stays cheap, and trusts it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from corrkd.data.dataset import SPLITS, MultimodalDataset, Split, StrArray, check_split
from corrkd.data.readers.raw import Array
from corrkd.errors import CorrKDError

FORMAT = 2
SOURCE = "source_sha256"  # in `extra`: the sum of the file that was converted
KEY = "corrkd"
LONGEST_HEADER = 100_000_000  # the bound of the safetensors format
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
}


def is_safetensors(path: Path) -> bool:
    """Eight bytes of header length, then the start of a JSON object."""
    with path.open("rb") as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    return head[8:] == b"{" and length <= LONGEST_HEADER


def recognises(path: Path) -> bool:
    """A `.safetensors` file with corrkd's metadata."""
    return is_safetensors(path) and KEY in _metadata(_header(path)[0])


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header as JSON, and where the tensors start. Raises CorrKDError where it is damaged."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise CorrKDError(f"{path.name}: a damaged .safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise CorrKDError(f"{path.name}: a damaged .safetensors file: its header is no object")
    return header, 8 + length


def _metadata(header: dict[str, Any]) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def read(path: Path, *, targets: bool = True) -> MultimodalDataset:
    """The dataset in a converted file. Frames are memory-mapped: rows are read when they are taken.

    Args:
        path: the file.
        targets: whether it must hold scores or labels.

    Raises:
        CorrKDError: the file is truncated or damaged, of another format, or lacks targets that it must hold.
    """
    header, start = _header(path)
    try:
        about = json.loads(_metadata(header)[KEY])
        if about["format"] != FORMAT:
            raise CorrKDError(
                f"{path.name}: written by another corrkd (format {about['format']}, here {FORMAT}); convert it again or upgrade"
            )
        tensors = _map(path, header, start)
        splits = {name: _split(tensors, name, about["modalities"]) for name in about["splits"]}
        for name, split in splits.items():
            check_split(f"{path.name}, {name}", split, targets=targets, trains=name == SPLITS[0] and targets)
        return MultimodalDataset(
            name=about["name"],
            splits=splits,
            class_names=tuple(about["class_names"]),
            question_names=tuple(about["question_names"]),
            score_range=None if about["score_range"] is None else (about["score_range"][0], about["score_range"][1]),
            layout=about["layout"],
            missing_rule=about["missing_rule"],
            notes=tuple(about["notes"]),
            sha256=about["sha256"],
            extra=about["extra"],
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise CorrKDError(
            f"{path.name}: a damaged converted dataset ({type(error).__name__}: {str(error)[:120]})"
        ) from None


def _map(path: Path, header: dict[str, Any], start: int) -> dict[str, Array]:
    """Tensors by name, each a view into the file. Offsets are checked against shapes and the file's size."""
    size = path.stat().st_size - start
    tensors: dict[str, Array] = {}
    whole = np.memmap(path, np.uint8, mode="r")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (begin, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError(f"{name}: shape or offsets are no sizes")
        if end > size:
            raise CorrKDError(f"{path.name}: truncated: {name} ends {end - size:,} bytes beyond the end of the file")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name}: offsets do not fit its shape")
        tensors[name] = whole[start + begin : start + end].view(dtype).reshape(shape)
    return tensors


def _split(tensors: dict[str, Array], name: str, modalities: list[str]) -> Split:
    def small(key: str) -> Array | None:
        return np.array(tensors[f"{name}/{key}"]) if f"{name}/{key}" in tensors else None

    prefix = f"{name}/groups/"
    return Split(
        frames={m: tensors[f"{name}/frames/{m}"] for m in modalities},
        lengths={m: np.array(tensors[f"{name}/lengths/{m}"]) for m in modalities},
        present={m: np.array(tensors[f"{name}/present/{m}"]) for m in modalities},
        ids=_strings(tensors[f"{name}/ids"]),
        scores=small("scores"),
        labels=small("labels"),
        groups={key.removeprefix(prefix): _strings(x) for key, x in tensors.items() if key.startswith(prefix)},
        order=small("order"),
        frame_ids={m: np.array(tensors[key]) for m in modalities if (key := f"{name}/frame_ids/{m}") in tensors},
    )


def _strings(tensor: Array) -> StrArray:
    return np.array(json.loads(tensor.tobytes()), dtype=np.str_)
