"""Anyone's own data: named arrays in one `.npz`, `.h5` or `.safetensors` file. N samples; the first axis of every array is N.

    any name                      (N, T, d) or (N, d) real numbers, or (N, T, d) integers: a modality of that name, padded on
                                  the right. Integers of one or two axes may be ids or labels: left out, with a note
    <modality>_lengths, lengths   (N,) how many frames exist
    <modality>_present            (N, T) or (N,) booleans: False where a frame is missing in the data
    scores (score, sentiment)     (N,) real numbers
    labels (label)                (N,) classes from 0 up, or (N, Q) yes/no answers
    ids (id)                      (N,) strings, best as video$_$clip
    split                         (N,) "train", "valid" (or "dev"), "test"; or 0, 1, 2
    person, speaker, session, video   (N,) groups
    order                         (N,) position within the video or session
    <modality>_frame_ids, frame_ids   (N, T) integers: which frame of the video or session a frame is, where samples overlap
    class_names, question_names   strings, not N of them

Without `split`, the first group found in the order above, else each sample by itself, is dealt to 70/10/20 % by a hash of its name.
Where targets are not needed, as for predictions, a file with neither targets nor `split` is one split, "all".
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
from safetensors import SafetensorError, safe_open

from corrkd.data.dataset import SPLITS, WHOLE, IntArray, MultimodalDataset, StrArray
from corrkd.data.readers.assemble import GROUPS, SPLIT_NAMES, Array, RawSplit, assemble, column, strings
from corrkd.errors import CorrKDError

SCORES = ("scores", "score", "sentiment")
LABELS = ("labels", "label")
IDS = ("ids", "id")
RESERVED = {*SCORES, *LABELS, *IDS, *GROUPS, "split", "order", "lengths", "frame_ids", "class_names", "question_names"}
SHARES = (0.7, 0.1, 0.2)
ONE_HOT = "{key}: every row has a single 1 and is read as yes/no answers, a question each; if they are classes, save {key}.argmax(1)"

# Deflate packs at most 1032:1 and padding packs well; beyond this the file is a bomb.
EXPANSION = 300
SLACK = 256 << 20


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz`, never unpickling. Raises CorrKDError where it is damaged or unpacks to far more than its size."""
    return unpacked_npz(path, path.name, most=most_unpacked(path))


def unpacked_npz(file: Path | BinaryIO, name: str, *, most: int) -> dict[str, Array]:
    """The arrays of an `.npz` file, or of its bytes, never unpickling.

    Args:
        file: a path, or an open file.
        name: opens error lines.
        most: bytes that the arrays may have.

    Raises:
        CorrKDError: where it is damaged, holds objects, or declares more bytes.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            refuse_bomb(name, sum(info.file_size for info in members), most)
            for info in members:
                with archive.open(info) as member:
                    # The header's shape is checked against the member's size before NumPy allocates for it.
                    version = np.lib.format.read_magic(member)
                    read_header = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, fortran, dtype = read_header(member)
                    if dtype.hasobject:
                        raise CorrKDError(
                            f"{name}: array {info.filename} holds pickled objects; save plain numbers or strings"
                        )
                    data = member.read(info.file_size)
                arrays[info.filename.removesuffix(".npy")] = np.frombuffer(data, dtype).reshape(
                    shape, order="F" if fortran else "C"
                )
    except CorrKDError:
        raise
    except Exception as error:  # whatever a file of others' makes zipfile and NumPy raise
        raise CorrKDError(f"{name}: a damaged .npz file ({str(error)[:120] or type(error).__name__})") from None
    return arrays


def read_h5(path: Path) -> dict[str, Array]:
    """The datasets at the root of an HDF5 file. Raises CorrKDError where it is damaged or unpacks to far more than its size."""
    arrays = {}
    try:
        with h5py.File(path, "r") as file:
            datasets = {key: item for key, item in file.items() if isinstance(item, h5py.Dataset)}
            if not datasets:
                raise CorrKDError(
                    f"{path.name}: no arrays at its root; of .csd files, give the folder that holds them all"
                )
            refuse_bomb(path.name, sum(item.nbytes for item in datasets.values()), most_unpacked(path))
            for key, item in datasets.items():
                arrays[key] = item.asstr()[()] if h5py.check_string_dtype(item.dtype) else np.asarray(item)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CorrKDError(f"{path.name}: a damaged HDF5 file ({str(error)[:120]})") from None
    return arrays


def read_safetensors(path: Path) -> dict[str, Array]:
    """The tensors of a `.safetensors` file. Raises CorrKDError where it is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorrKDError(f"{path.name}: a damaged .safetensors file ({str(error)[:120]})") from None


FILES: dict[str, Callable[[Path], dict[str, Array]]] = {"npz": read_npz, "h5": read_h5, "safetensors": read_safetensors}


def most_unpacked(path: Path) -> int:
    """How many bytes of arrays a file of its size may hold."""
    return EXPANSION * path.stat().st_size + SLACK


def refuse_bomb(name: str, declared: int, most: int) -> None:
    """Raises CorrKDError where a file declares more bytes of arrays than it may hold."""
    if declared > most:
        raise CorrKDError(
            f"{name}: declares {declared:,} bytes of arrays where {most:,} are allowed; refused as a decompression bomb"
        )


def read(arrays: Mapping[str, Array], name: str, kind: str, *, targets: bool = True) -> MultimodalDataset:
    """The dataset in named arrays (see the top of this file for the names).

    Args:
        arrays: by name.
        name: of the dataset.
        kind: "npz", "h5" or "safetensors", for people.
        targets: whether scores or labels are needed.

    Raises:
        CorrKDError: no target, no modality, or arrays that do not fit one another.
    """
    target = next((arrays[key] for key in (*SCORES, *LABELS) if key in arrays), None)
    if (target is None and targets) or (target is not None and np.ndim(target) == 0):
        raise CorrKDError(f"{name}: holds {', '.join(arrays) or 'no arrays'}; an array `scores` or `labels` is needed")
    count = _count(name, arrays) if target is None else len(target)
    if not count:
        raise CorrKDError(f"{name}: holds no samples")
    modalities = _modalities(arrays, count)
    of_modalities = [f"{m}_{what}" for m in modalities for what in ("lengths", "present", "frame_ids")]
    for key in (*SCORES, *LABELS, *IDS, *GROUPS, "split", "order", "lengths", "frame_ids", *of_modalities):
        if key in arrays and (np.ndim(arrays[key]) == 0 or len(arrays[key]) != count):
            raise CorrKDError(f"{name}: array {key} has shape {np.shape(arrays[key])}, expected {count} samples first")
    for key in (*IDS, *GROUPS, "split", "order"):
        if key in arrays and np.size(arrays[key]) != count:
            raise CorrKDError(
                f"{name}: array {key} has shape {np.shape(arrays[key])}, but `{key}` holds one value for each sample; "
                "a modality needs another name, as `vision`"
            )
    if not modalities:
        raise CorrKDError(
            f"{name}: no modality: no (N, T, d) array of numbers or (N, d) array of real ones with N = {count}"
        )
    used = {*RESERVED, *modalities, *of_modalities}
    unused = sorted(set(arrays) - used)
    notes = [f"left out: {', '.join(unused)}"] if unused else []
    notes += [ONE_HOT.format(key=key) for key in LABELS if key in arrays and _is_one_hot(arrays[key])]
    ids = next(
        (strings(arrays[key]) for key in IDS if key in arrays), np.array([f"sample-{row}" for row in range(count)])
    )
    groups = {g: strings(arrays[g]) for g in GROUPS if g in arrays}
    by = next(iter(groups), "")
    names = groups[by] if by else ids
    too_few = len(set(names.tolist())) < len(SPLITS)
    if "split" in arrays:
        place = _given_split(name, arrays["split"])
    elif target is None or (too_few and not targets):
        place = np.full(count, WHOLE)
    else:
        place = dealt_split(names)
        notes.append(f"no array `split`: dealt to train/valid/test as 70/10/20 % by a hash of each {by or 'sample id'}")
    raw = {}
    for split in (*SPLITS, WHOLE):
        rows = np.flatnonzero(place == split)
        if len(rows):
            raw[split] = RawSplit(
                frames={m: arrays[m][rows] for m in modalities},
                lengths={m: arrays[key][rows] for m in modalities for key in _keys_of(arrays, m, "lengths")},
                present={m: arrays[f"{m}_present"][rows] for m in modalities if f"{m}_present" in arrays},
                ids=ids[rows],
                scores=next((column(name, arrays[key], key, count)[rows] for key in SCORES if key in arrays), None),
                labels=next((arrays[key][rows] for key in LABELS if key in arrays), None),
                groups={g: values[rows] for g, values in groups.items()},
                order=arrays["order"][rows] if "order" in arrays else None,
                frame_ids={m: arrays[key][rows] for m in modalities for key in _keys_of(arrays, m, "frame_ids")},
            )
    return assemble(
        name,
        raw,
        layout=f"{kind} arrays",
        notes=notes,
        class_names=tuple(strings(arrays.get("class_names", ())).tolist()),
        question_names=tuple(strings(arrays.get("question_names", ())).tolist()),
        targets=targets,
    )


def _count(name: str, arrays: Mapping[str, Array]) -> int:
    """How many samples there are, where no target tells. Raises CorrKDError where the arrays tell nothing, or differ."""
    for key in (*IDS, "split", *GROUPS, "order", "lengths"):
        if key in arrays and np.ndim(arrays[key]):
            return len(arrays[key])
    sizes = {key: len(x) for key, x in arrays.items() if _may_be_modality(key, x)}
    if not sizes:
        raise CorrKDError(f"{name}: no modality: no (N, T, d) array of numbers or (N, d) array of real ones")
    if len(set(sizes.values())) > 1:
        counted = ", ".join(f"{key} {size}" for key, size in sizes.items())
        raise CorrKDError(
            f"{name}: modalities differ in their number of samples ({counted}); add an array `ids`, one for each sample"
        )
    return next(iter(sizes.values()))


def _modalities(arrays: Mapping[str, Array], count: int) -> list[str]:
    """Names of the arrays that are modalities: language, audio and vision first, the others as the file has them."""
    found = [key for key, x in arrays.items() if _may_be_modality(key, x) and len(x) == count]
    usual = [m for m in ("language", "audio", "vision") if m in found]
    return usual + [m for m in found if m not in usual]


def _may_be_modality(key: str, x: Array) -> bool:
    """(N, T, d) numbers, or (N, d) real ones, that nothing else claims by its name."""
    free = key not in RESERVED and not key.endswith(("_lengths", "_present", "_frame_ids"))
    return free and x.ndim in (2, 3) and x.dtype.kind in ("f" if x.ndim == 2 else "fiu")


def _is_one_hot(labels: Array) -> bool:
    """Whether (N, K) labels, K > 2, hold a single 1 in every row: classes written out, more often than answers."""
    return (
        labels.ndim == 2
        and labels.shape[1] > 2
        and labels.dtype.kind in "fiub"
        and bool(np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all())
    )


def _keys_of(arrays: Mapping[str, Array], modality: str, what: str) -> list[str]:
    """The array that gives a modality's lengths or frame_ids, if any: its own, else the common one for sequences."""
    if f"{modality}_{what}" in arrays:
        return [f"{modality}_{what}"]
    return [what] if what in arrays and arrays[modality].ndim == 3 else []


def _given_split(name: str, values: Array) -> StrArray:
    by_number = dict(zip("012", SPLITS, strict=True))
    words = strings(values).tolist()
    for word in words:
        if word not in SPLIT_NAMES and word not in by_number:
            raise CorrKDError(
                f"{name}: array split holds {word[:40]!r}; allowed are train, valid (dev, val), test, or 0, 1, 2"
            )
    return np.array([SPLIT_NAMES.get(word) or by_number[word] for word in words])


def dealt_split(names: Iterable[str]) -> StrArray:
    """(N,) split of each sample: its name's place in the order of all names' SHA-256 sums, cut at 70 and 80 %.

    The same name always falls together, so a group is never in two splits.
    """
    names = list(names)
    order = sorted(set(names), key=lambda text: hashlib.sha256(text.encode()).digest())
    if len(order) < len(SPLITS):
        raise CorrKDError(
            f"{len(order)} groups or samples cannot be dealt to {len(SPLITS)} splits; give an array `split`"
        )
    valid, test = (max(1, round(share * len(order))) for share in SHARES[1:])
    counts: IntArray = np.array([len(order) - valid - test, valid, test])
    place = dict(zip(order, np.repeat(SPLITS, counts).tolist(), strict=True))
    return np.array([place[text] for text in names])
