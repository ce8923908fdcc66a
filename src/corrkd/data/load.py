"""`load_dataset`: reading a path or an object in memory, in any layout, as a
`MultimodalDataset`.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from corrkd.data import in_memory, safe_pickle
from corrkd.data.dataset import SPLITS, MultimodalDataset, check_split, check_values
from corrkd.data.published_files import PUBLISHED_FILES
from corrkd.data.readers import (
    arrays,
    converted,
    csd,
    csv_tables,
    folders,
    mag,
    mmsa,
    mult,
    split_dicts,
    tables,
    utterances,
)
from corrkd.data.readers.containers import read_h5, read_npz, read_safetensors
from corrkd.data.readers.options import ReadOptions
from corrkd.data.readers.sniff import ARRAYS, TEXT, what_it_is, what_zip_it_is
from corrkd.errors import CorrKDError
from corrkd.files import sha256_of
from corrkd.parsing import refusing

SYNTHETIC = "synthetic"
ZIP, HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"  # first bytes of such files, complete or truncated
PARQUET, ARROW = b"PAR1", b"ARROW1"
FOLDER = (
    "a folder of .csd files, of train.csv, dev.csv and test.csv (.parquet, .pkl, ...), or one "
    "that `datasets` saved"
)
LAYOUTS = "MMSA, MulT, MAG, GCNet, MERBench, .csd folder, named arrays, tables"


def load_dataset(
    source: Any,
    *,
    glove: Path | None = None,
    folds: Path | None = None,
    label: str | None = None,
    tokens: bool = False,
    name: str | None = None,
    targets: bool = True,
) -> MultimodalDataset:
    """Return the dataset in a file, a folder or an object. Its layout is recognised by its
    contents, not by its name.

    Args:
        source: a path or an object in memory. A path: a pickle in MMSA's, MulT's, MAG's or GCNet's
            layout, a MERBench label file, a folder of `.csd` files or of one file a split, arrays
            in `.npz`, `.h5`, `.safetensors` or a pickle, a table in `.csv`, `.parquet` or `.arrow`,
            a folder of `datasets.save_to_disk`, a file that `corrkd data convert` wrote, or
            "synthetic" for the built-in dataset. An object: a data frame, a `datasets.Dataset` or
            `DatasetDict`, an Arrow table, a dict of arrays ({"audio": X, "label": y}), or a dict of
            splits of such. A `MultimodalDataset` is returned as it is.
        glove: a GloVe text file, for layouts that contain words instead of vectors.
        folds: a JSON file {split: [video, ...]}, for `.csd` folders other than CMU-MOSI's.
        label: label column to read, `[scores:|questions:]COLUMN[@THRESHOLD][,COLUMN...]`
            (docs/data.md); default: the usual one of the layout.
        tokens: whether to read the token ids of BERT as the language (MMSA's `text_bert`), for a
            network that embeds them (`bert`).
        name: name of the dataset in reports; default: the published name of a public file, else the
            name of the file, else "in-memory".
        targets: whether scores or labels are required. If not, data may lack them, as recordings to
            predict do; arrays that also lack `split` are then the single split "all".

    Raises:
        CorrKDError: if the source does not exist, is truncated, has an unknown layout, or cannot be
            learned from.
    """
    options = ReadOptions(glove=glove, folds=folds, label=label, tokens=tokens, targets=targets)
    if not isinstance(source, str | Path):
        return _from_memory(source, name, options)
    if str(source) == SYNTHETIC:
        from corrkd.data import synthetic  # needed only here

        return synthetic.make(synthetic.SyntheticSpec())
    path = Path(source)
    if not path.exists():
        raise CorrKDError(
            f"{path}: no such file; give a dataset file or folder, or `{SYNTHETIC}` for the "
            f"built-in one"
        )
    if not path.is_dir() and not path.is_file():
        raise CorrKDError(
            f"{path}: neither a file nor a folder (a device or a pipe); give a dataset file"
        )
    try:  # the readers raise specific errors for the cases that they expect
        with refusing(path.name, "damaged, or not quite in the layout that it appears to have"):
            dataset = _read(path, name, options)
    except OSError as error:
        raise CorrKDError(f"{path}: cannot be read: {error.strerror or error}") from None
    if tokens and not dataset.tokens:
        raise CorrKDError(
            f"{path.name}: {dataset.layout}: has no token ids of BERT (`text_bert`); read it "
            f"without tokens"
        )
    return dataset


def _from_memory(source: Any, name: str | None, options: ReadOptions) -> MultimodalDataset:
    """Return the dataset in an object."""
    for what in ("glove", "folds", "tokens"):
        if getattr(options, what):
            raise CorrKDError(
                f"{name or in_memory.NAME}: {what} is for dataset files; leave it out"
            )
    if isinstance(source, MultimodalDataset):
        if options.label is not None:
            raise CorrKDError(
                f"dataset {source.name}: its label is already chosen; choose it when the dataset "
                f"is loaded, with load_dataset(label=...)"
            )
        dataset = source if name is None else replace(source, name=name)
        for split_name, split in dataset.splits.items():
            where = f"dataset {dataset.name}, {split_name}"
            trains = split_name == SPLITS[0] and options.targets
            check_split(where, split, targets=options.targets, trains=trains)
            check_values(where, split)
        check_training(dataset)
        return dataset
    with refusing(name or in_memory.NAME, f"expected {in_memory.FORMS}"):
        dataset = in_memory.read(source, name, options)
    check_training(dataset)
    return dataset


def _read(path: Path, name: str | None, options: ReadOptions) -> MultimodalDataset:
    """Return the dataset in a file or folder."""
    if not path.is_dir() and converted.recognises(path):  # checked when it was converted
        if options.label is not None:
            raise CorrKDError(
                f"{path.name}: a converted file has a single label; choose it with `corrkd data "
                f"convert --label`"
            )
        dataset = converted.read(path, targets=options.targets)
        return replace(dataset, name=name or dataset.name)
    dataset = (
        _read_folder(path, name or path.name, options)
        if path.is_dir()
        else _read_known(path, name, options)
    )
    check_training(dataset)
    return dataset


def _read_folder(path: Path, title: str, options: ReadOptions) -> MultimodalDataset:
    if csd.recognises(path):
        return replace(
            csd.read(path, title, options), sha256=_sha256_of_files(sorted(path.glob("*.csd")))
        )
    if saved := _read_saved(path, title, options):
        return saved
    files = folders.split_files(path)
    if files and folders.are_tables(files):
        dataset = tables.read_splits(
            folders.read_tables(files), title, "a table for each split", options
        )
        return replace(
            dataset, sha256=_sha256_of_files([file for some in files.values() for file in some])
        )
    if not files:
        raise CorrKDError(f"{path}: no dataset in this folder; give a dataset file, or {FOLDER}")
    dataset = _read_data(folders.read_data(files), path, title, options)
    return replace(
        dataset, sha256=_sha256_of_files([file for some in files.values() for file in some])
    )


def _read_saved(path: Path, title: str, options: ReadOptions) -> MultimodalDataset | None:
    """Return the dataset in a folder that `datasets` saved; None for another folder."""
    from corrkd.data.readers import arrow  # slow to import and rarely needed

    if not arrow.recognises_folder(path):
        return None
    content = arrow.read_folder(path)
    read = (
        tables.read_splits if isinstance(next(iter(content.values()), None), dict) else tables.read
    )
    dataset = read(content, title, "Hugging Face dataset", options)  # type: ignore[arg-type]
    return replace(dataset, sha256=_sha256_of_files(arrow.files_of_folder(path)))


def _read_known(path: Path, name: str | None, options: ReadOptions) -> MultimodalDataset:
    """Return the dataset in a file, with its published name and labels if it is a public one."""
    digest = sha256_of(path)
    published = PUBLISHED_FILES.get(digest)
    dataset = _read_file(path, name or (published.name if published else path.stem), options)
    if published and options.label is None:
        names = dataset.class_names or published.class_names
        layout = f"{dataset.layout} (public file: {published.name} {published.file})"
        dataset = replace(
            dataset, score_range=published.score_range, class_names=names, layout=layout
        )
    return replace(dataset, sha256=dataset.sha256 or digest)


def _read_file(path: Path, title: str, options: ReadOptions) -> MultimodalDataset:
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith((PARQUET, ARROW)):
        kind = "Parquet table" if start.startswith(PARQUET) else "Arrow table"
        return tables.read(folders.read_table(path), title, kind, options)
    if start.startswith(ZIP):
        if archive := what_zip_it_is(path):
            raise CorrKDError(f"{path.name}: {archive}")
        content = read_npz(path)
        if utterances.recognises_merbench(content):
            return utterances.read_merbench(content, path, title, options)
        return arrays.read(content, title, "npz", options)
    if start == HDF5:
        return arrays.read(read_h5(path), title, "h5", options)
    if converted.is_safetensors(path):
        return arrays.read(read_safetensors(path), title, "safetensors", options)
    stranger = what_it_is(path)
    named_so = stranger is None and bool(start) and path.suffix.lower() in csv_tables.ENDINGS
    if named_so or (
        stranger == TEXT
        and (path.suffix.lower() in csv_tables.ENDINGS or csv_tables.recognises(path))
    ):
        return tables.read(csv_tables.read(path), title, "CSV table", options)
    if stranger:
        raise CorrKDError(f"{path.name}: {stranger}")
    return _read_data(safe_pickle.load(path), path, title, options)


def _read_data(data: Any, path: Path, title: str, options: ReadOptions) -> MultimodalDataset:
    """Return the dataset in the contents of a pickle."""
    data = split_dicts.with_text_keys(data)
    if mag.recognises(data):
        return mag.read(data, title, options)
    if arrays.recognises_splits(data):
        parts, notes = split_dicts.splits_of(data, title)
        return arrays.read_splits(parts, title, "pickled", options, notes)
    if split_dicts.recognises(data):
        reader = mmsa if mmsa.recognises(data) else mult
        return reader.read(data, title, options)
    if mult.recognises_emotions(data):
        return mult.read_emotion(data, title, options)
    if utterances.recognises_gcnet(data):
        return utterances.read_gcnet(data, path, title, options)
    if mmsa.recognises_clip(data):
        return mmsa.read_clip(data, title, options)
    if arrays.recognises(data):
        return arrays.read(data, title, "pickled", options)
    shape = (
        f"a dict of {', '.join(map(str, list(data)[:8]))[:120]}"
        if isinstance(data, dict)
        else f"a {type(data).__name__}"
    )
    raise CorrKDError(
        f"{path.name}: {shape}, in an unknown layout (supported: {LAYOUTS}); save its arrays: "
        f"{ARRAYS}"
    )


def check_training(dataset: MultimodalDataset) -> None:
    """Raise CorrKDError if a modality is constant over the present frames of the training split, so
    that nothing can be learned from it.

    A split without targets is not trained on, so it is accepted.
    """
    if SPLITS[0] not in dataset.splits:
        return
    train = dataset.splits[SPLITS[0]]
    if train.scores is None and train.labels is None:
        return
    for modality, frames in train.frames.items():
        present = train.present[modality]  # missing frames are stored as zeros and do not count
        if present.sum() < 2:
            continue
        sample, frame = np.unravel_index(present.argmax(), present.shape)
        first = frames[sample, frame]
        if all(
            (np.asarray(frames[row : row + 256])[present[row : row + 256]] == first).all()
            for row in range(0, len(train), 256)
        ):
            raise CorrKDError(
                f"{dataset.name}: modality {modality} is constant in the training split; leave "
                f"it out"
            )


def _sha256_of_files(files: list[Path]) -> str:
    """Return the SHA-256 of the digests and names of files, one per line, as `sha256sum *.csd |
    sha256sum` prints it.
    """
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
