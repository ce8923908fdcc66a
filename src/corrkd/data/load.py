"""`load_dataset`: from a path to a `MultimodalDataset`, whatever the layout."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from corrkd.data import safe_pickle
from corrkd.data.dataset import SPLITS, MultimodalDataset
from corrkd.data.known_files import KNOWN_FILES
from corrkd.data.readers import arrays, converted, csd, mag, mmsa, mult
from corrkd.errors import CorrKDError

SYNTHETIC = "synthetic"
ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"  # how such files begin, whole or truncated


def load_dataset(
    path: str | Path,
    *,
    glove: Path | None = None,
    folds: Path | None = None,
    name: str | None = None,
    targets: bool = True,
) -> MultimodalDataset:
    """The dataset at `path`; its layout is recognised from what is in it, not from its name.

    Args:
        path: a pickle in MMSA's, MulT's or MAG's layout, a folder of `.csd` files, arrays in `.npz`, `.h5` or `.safetensors`, a file
            that `corrkd data convert` wrote, or "synthetic" for the built-in dataset.
        glove: a GloVe text file, for layouts that hold words instead of vectors.
        folds: a JSON file {split: [video, ...]}, for `.csd` folders other than CMU-MOSI's.
        name: of the dataset, in reports; else the published name of a known file, else the file's name.
        targets: whether scores or labels are needed. If not, named arrays and converted files may lack them, as recordings to be predicted
            do. Arrays that lack `split` as well are then the single split "all".

    Raises:
        CorrKDError: the file is missing, truncated, of an unknown layout, or holds what cannot be learned from; one line says which.
    """
    if str(path) == SYNTHETIC:
        from corrkd.data import synthetic  # its law and Bayes rule are needed by nobody else

        return synthetic.make(synthetic.SyntheticSpec())
    path = Path(path)
    if not path.exists():
        raise CorrKDError(f"{path}: no such file; give a dataset file or folder, or `{SYNTHETIC}` for the built-in one")
    try:
        if path.is_dir():
            if not csd.recognises(path):
                raise CorrKDError(
                    f"{path}: a folder without .csd files; give a dataset file, or a folder of .csd files"
                )
            digest = _sha256_of_folder(path)
            dataset = csd.read(path, name or path.name, folds)
        else:
            if converted.recognises(path):  # checked when it was converted
                dataset = converted.read(path, targets=targets)
                return replace(dataset, name=name or dataset.name)
            digest = sha256_of(path)
            known = KNOWN_FILES.get(digest)
            dataset = _read_file(path, name or (known.name if known else path.stem), glove, targets)
            if known:
                names = dataset.class_names or known.class_names
                layout = f"{dataset.layout} (known file: {known.name} {known.file})"
                dataset = replace(dataset, score_range=known.score_range, class_names=names, layout=layout)
    except OSError as error:
        raise CorrKDError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        # What the readers foresee has a line of its own; the rest of what a file can hold ends here.
        text = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise CorrKDError(f"{path.name}: damaged, or not quite in the layout that it seems to have ({text})") from error
    check_training(dataset)
    return replace(dataset, sha256=digest)


def _read_file(path: Path, title: str, glove: Path | None, targets: bool) -> MultimodalDataset:
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(ZIP):
        return arrays.read(arrays.read_npz(path), title, "npz", targets=targets)
    if start == HDF5:
        return arrays.read(arrays.read_h5(path), title, "h5", targets=targets)
    if converted.is_safetensors(path):
        return arrays.read(arrays.read_safetensors(path), title, "safetensors", targets=targets)
    data = safe_pickle.load(path)
    if mmsa.recognises(data):
        return mmsa.read(data, title)
    if mult.recognises(data):
        return mult.read(data, title)
    if mag.recognises(data):
        return mag.read(data, title, glove)
    shape = (
        f"a dict of {', '.join(map(str, list(data)[:8]))[:120]}"
        if isinstance(data, dict)
        else f"a {type(data).__name__}"
    )
    raise CorrKDError(
        f"{path.name}: {shape}, in no layout that is known here (MMSA, MulT, MAG, .csd folder, named arrays)"
    )


def check_training(dataset: MultimodalDataset) -> None:
    """Raises CorrKDError where a modality is the same in every present frame of the training split: nothing is to be learned.

    A split without targets trains nothing and is let through.
    """
    if SPLITS[0] not in dataset.splits:
        return
    train = dataset.splits[SPLITS[0]]
    if train.scores is None and train.labels is None:
        return
    for modality, frames in train.frames.items():
        present = train.present[modality]  # a missing frame is stored as zeros and says nothing about the others
        if present.sum() < 2:
            continue
        sample, frame = np.unravel_index(present.argmax(), present.shape)
        first = frames[sample, frame]
        if all(
            (np.asarray(frames[row : row + 256])[present[row : row + 256]] == first).all()
            for row in range(0, len(train), 256)
        ):
            raise CorrKDError(f"{dataset.name}: modality {modality} is constant in the training split; leave it out")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_folder(folder: Path) -> str:
    """SHA-256 of the sums and names of a folder's `.csd` files, a line each, as `sha256sum *.csd | sha256sum` prints it."""
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(folder.glob("*.csd"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
