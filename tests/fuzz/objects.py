"""Mutations of a file's contents, for formats in which mutated bytes are rarely a valid file."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: None,
    lambda rng: rng.choice(
        ["", "x", "train", "é\ud800", "a" * 2000, "1", "nan", "\x1b[31m", "=1+1"]
    ),
    lambda rng: rng.choice([b"", b"\xff\xfe", b"train"]),
    lambda rng: rng.choice(
        [0, -1, 2**31, 2**56, 2**64, 0.5, 1e308, float("nan"), float("inf"), True]
    ),
    lambda rng: rng.choice([[], {}, (), set(), [[]], {"train": {}}, [None], ["a", 1]]),
    lambda rng: np.full(
        rng.choice([(), (0,), (3,), (12,), (12, 0), (12, 1), (0, 4, 2), (2, 2, 2, 2)]), rng.random()
    ),
    lambda rng: np.array(
        rng.choice([["a", "b"], [None, {}], [b"x"], [[1], [2]], [True], [2**62]]), object
    ),
    lambda rng: np.zeros(3, rng.choice(["S4", "U4", "c16", "M8[s]", "f2", "u8", "i1", "?"])),
)


def mutated(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """Return a copy of dicts, lists and arrays with one value dropped, added or replaced."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.9):
        return _mutated_dict(dict(value), rng, depth)
    if isinstance(value, list | tuple) and value and rng.random() < 0.85:
        items = list(value)
        index = rng.randrange(len(items))
        if rng.random() < 0.2:
            del items[index]
        else:
            items[index] = mutated(items[index], rng, depth + 1)
        return type(value)(items) if isinstance(value, list) else tuple(items)
    if isinstance(value, np.ndarray) and value.size and rng.random() < 0.7:
        return _mutated_array(value, rng)
    return rng.choice(VALUES)(rng)


def _mutated_dict(value: dict[Any, Any], rng: random.Random, depth: int) -> dict[Any, Any]:
    key = rng.choice(list(value))
    kind = rng.random()
    if kind < 0.1:
        del value[key]
    elif kind < 0.2:
        value[
            rng.choice(
                [
                    "labels",
                    "config",
                    "text_bert",
                    "audio_present",
                    "emotion_labels",
                    "train",
                    "x",
                    3,
                    "",
                ]
            )
        ] = value[key]
    elif kind < 0.25:
        value[
            rng.choice(["audio_lengths", "lengths", "frame_ids", "split", "ids", "class_names"])
        ] = rng.choice(VALUES)(rng)
    else:
        value[key] = mutated(value[key], rng, depth + 1)
    return value


def _mutated_array(value: np.ndarray, rng: random.Random) -> np.ndarray:
    kind = rng.randrange(6)
    if kind == 0:
        return value[: rng.randint(0, len(value))] if value.ndim else value
    if kind == 1:
        return value[..., None] if rng.random() < 0.5 else value.reshape(-1)
    if kind == 2:
        return value.astype(object)
    if kind == 3 and value.dtype.kind in "fiu":
        return value.astype(rng.choice(["f2", "i1", "u8", "f8", "c16", "?", "U5"]))
    out = value.copy()
    if value.dtype.kind == "f":
        out.flat[rng.randrange(value.size)] = rng.choice(
            [np.nan, np.inf, -1e30, 1e38, 0.5, 2.0**56]
        )
    elif value.dtype.kind in "iu":
        out.flat[rng.randrange(value.size)] = rng.choice([0, 1, 2, 100, np.iinfo(value.dtype).max])
    return out


def write_h5(path: Any, arrays: dict[str, Any]) -> None:
    """Write the arrays of a dict that HDF5 can store."""
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            try:
                file[str(key) or "none"] = values
            except (TypeError, ValueError, OSError):
                continue
