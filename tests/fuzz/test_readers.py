"""Mutated datasets: each is read, or refused in one short line; 25 cases a target, 2,000 in the
slow tests.
"""

from __future__ import annotations

import json
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from corrkd.data.inspect import describe, inspect
from corrkd.data.load import load_dataset
from corrkd.data.readers.glove import read_glove
from corrkd.errors import CorrKDError
from tests.data.readers.samples import COUNTS, csd_file, glove, mag, mmsa, mult
from tests.data.readers.test_tables import frame_of, records
from tests.data.readers.test_utterances import gcnet, merbench
from tests.fuzz.mutate import mutate
from tests.fuzz.objects import mutated, write_h5

LONGEST_LINE = 600
Target = Callable[
    [Path, random.Random], Path
]  # writes a mutated dataset into a folder and returns what is to be read


def named() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "text": rng.normal(size=(30, 5, 3)).astype(np.float32),
        "text_lengths": rng.integers(1, 6, 30),
        "acoustic": rng.normal(size=(30, 4)),
        "acoustic_present": rng.random(30) < 0.8,
        "labels": np.arange(30) % 3,
        "ratings": rng.random((30, 3)),
        "ids": np.array([f"v{i // 3}$_${i % 3}" for i in range(30)]),
        "person": np.array([f"p{i // 6}" for i in range(30)]),
        "split": np.repeat(["train", "valid", "test"], 10),
        "order": np.arange(30),
    }


def pickled(make: Callable[[], Any]) -> Target:
    """Mutate the pickled objects, and in half of the cases the bytes."""

    def write(folder: Path, rng: random.Random) -> Path:
        data = make()
        for _ in range(rng.randint(0, 3)):
            data = mutated(data, rng)
        content = pickle.dumps(data, rng.choice([0, 2, 4, 5]))
        (folder / "set.pkl").write_bytes(mutate(content, rng) if rng.random() < 0.5 else content)
        return folder / "set.pkl"

    return write


def stored(suffix: str, write: Callable[[Path, dict[str, Any]], object]) -> Target:
    """Mutate named arrays, and in half of the cases the bytes of their file."""

    def target(folder: Path, rng: random.Random) -> Path:
        data, path = named(), folder / f"set{suffix}"
        for _ in range(rng.randint(0, 3)):
            data = mutated(data, rng)
        write(path, {str(key): np.asarray(x) for key, x in data.items()})
        if rng.random() < 0.5:
            path.write_bytes(mutate(path.read_bytes(), rng))
        return path

    return target


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **{key: x for key, x in arrays.items() if key != "file"})


def write_safetensors(path: Path, arrays: dict[str, Any]) -> None:
    save_file(
        {
            key: np.ascontiguousarray(x)
            for key, x in arrays.items()
            if x.dtype.kind in "fiub" and x.dtype.itemsize < 16
        },
        path,
    )


def csd(folder: Path, rng: random.Random) -> Path:
    random_numbers = np.random.default_rng(0)
    spans = np.arange(8.0)[:, None] / 2 + [0.0, 0.5]
    data = folder / "mosi"
    data.mkdir()
    for name, width in (("COVAREP", 3), ("glove_vectors", 4), ("All Labels", 7)):
        rows = {v: [np.abs(random_numbers.normal(size=(8, width))), spans] for v in "abcd"}
        if rng.random() < 0.5:
            video = rng.choice("abcd")
            rows[video][rng.randrange(2)] = _array(mutated(rows[video][0], rng))
        csd_file(data / f"{name}.csd", name, {v: (x, s) for v, (x, s) in rows.items()})
    victim = rng.choice(sorted(data.glob("*.csd")))
    if rng.random() < 0.6:
        victim.write_bytes(mutate(victim.read_bytes(), rng))
    folds = json.dumps({"train": ["a", "b"], "valid": ["c"], "test": ["d"]}).encode()
    (folder / "folds.json").write_bytes(mutate(folds, rng) if rng.random() < 0.3 else folds)
    return data


def _array(value: Any) -> Any:
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else np.zeros(0)


def utterances(make: Callable[[Path], object], pattern: str) -> Target:
    def write(folder: Path, rng: random.Random) -> Path:
        result = make(folder)
        path = result[0] if isinstance(result, tuple) else next(folder.glob("*.npz"))
        victim = path if rng.random() < 0.6 else rng.choice(sorted(folder.glob(pattern)))
        if victim.suffix == ".pkl" and rng.random() < 0.6:
            victim.write_bytes(pickle.dumps(mutated(pickle.loads(victim.read_bytes()), rng)))
        elif victim.suffix == ".npz" and rng.random() < 0.6:
            corpora = {key: x.item() for key, x in np.load(victim, allow_pickle=True).items()}
            corpora = mutated(corpora, rng)
            np.savez(
                victim, **{str(key) or "none": np.array(x, object) for key, x in corpora.items()}
            )
        else:
            victim.write_bytes(mutate(victim.read_bytes(), rng))
        return path

    return write


def folder_of_lists(folder: Path, rng: random.Random) -> Path:
    data: dict[str, Any] = mag("vectors")
    victim = rng.choice(list(data))
    data[victim] = mutated(data[victim], rng)
    for split, samples in data.items():
        content = pickle.dumps(samples)
        (folder / f"{split}.pkl").write_bytes(
            mutate(content, rng) if split == victim and rng.random() < 0.4 else content
        )
    return folder


def low_rank() -> dict[bytes, Any]:
    rng = np.random.default_rng(0)
    return {
        split.encode(): {b"covarep": rng.normal(size=(n, 5)), b"label": rng.normal(size=(n, 1))}
        for split, n in COUNTS.items()
    }


def clip() -> dict[str, Any]:
    return {
        "audio": np.ones((5, 3)),
        "text": np.ones((4, 2)),
        "text_bert": np.ones((3, 4)),
        "config": {},
    }


def table(suffix: str, write: Callable[[pd.DataFrame, Path], object]) -> Target:
    """Mutate cells of a table, and in half of the cases the bytes of its file."""

    def target(folder: Path, rng: random.Random) -> Path:
        frame, path = frame_of(records()).astype(object), folder / f"set{suffix}"
        for _ in range(rng.randint(0, 3)):
            row, column = rng.randrange(len(frame)), rng.randrange(len(frame.columns))
            frame.iat[row, column] = mutated(frame.iat[row, column], rng)
        write(frame.infer_objects(), path)
        victim = next(path.glob("*.arrow")) if path.is_dir() else path
        if rng.random() < 0.5:
            victim.write_bytes(mutate(victim.read_bytes(), rng))
        return path

    return target


def save_to_disk(frame: pd.DataFrame, folder: Path) -> None:
    """Write the files that `datasets` writes."""
    content = pa.Table.from_pandas(frame, preserve_index=False)
    folder.mkdir()
    with (
        pa.OSFile(str(folder / "data.arrow"), "wb") as file,
        pa.ipc.new_stream(file, content.schema) as out,
    ):
        out.write_table(content)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))


TARGETS: dict[str, Target] = {
    "csv": table(".csv", lambda frame, path: frame.to_csv(path, index=False)),
    "parquet": table(".parquet", lambda frame, path: frame.to_parquet(path)),
    "arrow": table(".arrow", lambda frame, path: frame.to_feather(path)),
    "saved-to-disk": table("", save_to_disk),
    "mmsa": pickled(mmsa),
    "mmsa-aligned": pickled(lambda: mmsa(aligned=True)),
    "mmsa-fet-clip": pickled(clip),
    "mult": pickled(mult),
    "mult-questions": pickled(lambda: mult(questions=True)),
    "low-rank-fusion": pickled(low_rank),
    "mag": pickled(lambda: mag("vectors")),
    "mag-words": pickled(lambda: mag("misa")),
    "pickled-arrays": pickled(named),
    "npz": stored(".npz", write_npz),
    "h5": stored(".h5", write_h5),
    "safetensors": stored(".safetensors", write_safetensors),
    "csd": csd,
    "gcnet": utterances(gcnet, "features/*/*.npy"),
    "merbench": utterances(merbench, "features/*/*.npy"),
    "folder": folder_of_lists,
}


def check(target: Target, tmp_path: Path, seed: int) -> bool:
    """Return whether a mutated dataset is read; else its error must be one short line."""
    rng = random.Random(seed)
    folder = tmp_path / str(seed)
    folder.mkdir()
    try:
        path = target(folder, rng)
    except (
        ValueError,
        TypeError,
        OverflowError,
        UnicodeError,
        pa.ArrowException,
    ):  # the formats' writers refuse them
        return False
    vectors, folds = glove(folder / "glove.txt"), folder / "folds.json"
    label = rng.choice([None, None, "0", "questions:ratings@0.5", "happy", "sentiment", "emo,val"])
    try:
        describe(
            inspect(
                load_dataset(
                    path, glove=vectors, folds=folds, label=label, targets=rng.random() < 0.5
                )
            )
        )
    except CorrKDError as error:
        message = str(error)
        assert "\n" not in message, message
        assert len(message) <= LONGEST_LINE, message
        return False
    return True


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_datasets(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = sum(check(TARGETS[name], tmp_path, seed) for seed in range(25))
        read = read or any(check(TARGETS[name], tmp_path, seed) for seed in range(5000, 5200))
    assert read, "no mutated dataset is read: the target starts from one that is damaged"


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_mutated_datasets(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(25, 2025):
            check(TARGETS[name], tmp_path, seed)


def test_mutated_arrays_in_memory() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(300):
            rng, data = random.Random(seed), records() if seed % 2 else named()
            for _ in range(rng.randint(1, 3)):
                data = mutated(data, rng)
            try:
                load_dataset(data, targets=rng.random() < 0.5)
            except CorrKDError as error:
                assert len(str(error)) <= LONGEST_LINE  # noqa: PT017  (some are read)


def test_mutated_vectors(tmp_path: Path) -> None:
    content = glove(tmp_path / "glove.txt").read_bytes()
    for seed in range(200):
        (tmp_path / "glove.txt").write_bytes(mutate(content, random.Random(seed)))
        try:
            read_glove(tmp_path / "glove.txt", {"good", "film"})
        except CorrKDError as error:
            assert len(str(error)) <= LONGEST_LINE  # noqa: PT017  (most are read)
