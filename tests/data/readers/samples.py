"""Small files of every layout, made from one known sample set."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np

COUNTS = {"train": 12, "valid": 4, "test": 6}


def sequences(
    count: int, frames: int, width: int, seed: int, left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(N, T, d) padded with zeros, without a zero frame inside the length, and the lengths; some
    are full.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, frames + 1, count)
    lengths[0], lengths[-1] = frames, max(1, frames - 1)
    x = rng.normal(size=(count, frames, width)).astype(np.float32)
    place = np.arange(frames)[None, :]
    inside = place >= frames - lengths[:, None] if left else place < lengths[:, None]
    return x * inside[..., None], lengths


def mmsa(aligned: bool = False) -> dict[str, dict[str, Any]]:
    """MMSA's dict: unaligned with lengths and text_bert, or aligned with text_bert's mask alone."""
    data = {}
    for seed, (split, n) in enumerate(COUNTS.items()):
        text, lengths = sequences(n, 6, 4, seed)
        place = np.arange(6)[None, :] < lengths[:, None]
        bert = np.stack([place * 7, place, place * 0], 1).astype(np.float32)
        score = np.linspace(-3, 3, n).round(1)
        score[n // 2] = 0
        part: dict[str, Any] = {
            "id": np.array([f"vid{row // 3}{split}$_${row % 3}" for row in range(n)]),
            "raw_text": np.array(["words"] * n),
            "annotations": np.array(
                [("Negative", "Neutral", "Positive")[int(s) + 1] for s in np.sign(score)]
            ),
            "text": text,
            "text_bert": bert,
            "classification_labels": np.sign(score) + 1,
            "regression_labels": score,
        }
        if aligned:
            rng = np.random.default_rng(seed + 50)
            part["audio"] = rng.normal(size=(n, 6, 3)).astype(np.float32) * place[..., None]
            part["vision"] = rng.normal(size=(n, 6, 2)) * place[..., None]
        else:
            for name, frames, width, offset in (("audio", 9, 3, 100), ("vision", 8, 2, 200)):
                part[name], own = sequences(n, frames, width, seed + offset)
                part[f"{name}_lengths"] = own.tolist()
        data[split] = part
    return data


def mult(left: bool = False, questions: bool = False) -> dict[str, dict[str, Any]]:
    """MulT's dict, aligned, 7 frames."""
    data = {}
    for seed, (split, n) in enumerate(COUNTS.items()):
        text, lengths = sequences(n, 7, 4, seed, left)
        place = np.arange(7)[None, :]
        inside = place >= 7 - lengths[:, None] if left else place < lengths[:, None]
        rng = np.random.default_rng(seed + 70)
        if questions:
            answers = rng.integers(0, 2, (n, 4))
            answers[0], answers[1] = 1, 0
            labels = np.stack([1 - answers, answers], 2).astype(np.float32)
        else:
            labels = np.linspace(-3, 3, n).astype(np.float32)[:, None, None]
        data[split] = {
            "text": text,
            "audio": rng.normal(size=(n, 7, 3)).astype(np.float32) * inside[..., None],
            "vision": rng.normal(size=(n, 7, 2)).astype(np.float32) * inside[..., None],
            "labels": labels,
            "id": np.array(
                [
                    [f"v{row // 3}{split}".encode(), f"{10 - row % 3}.5".encode(), b"99"]
                    for row in range(n)
                ]
            ),
        }
    return data


WORDS = ("good", "bad", "Film", "umm", "sp")


def mag(words: str = "strings") -> dict[str, list[Any]]:
    """MAG's lists. `words`: "strings", "ids" (no words), "misa" (ids and raw words) or
    "vectors".
    """
    data: dict[str, list[Any]] = {}
    for seed, (split, n) in enumerate({"train": 12, "dev": 4, "test": 6}.items()):
        rng = np.random.default_rng(seed)
        part = []
        for row in range(n):
            length = int(rng.integers(1, 6))
            chosen = rng.integers(0, len(WORDS), length)
            language: Any = [WORDS[c] for c in chosen]
            if words in ("ids", "misa"):
                language = chosen
            if words == "vectors":
                language = rng.normal(size=(length, 4))
            visual, acoustic = rng.normal(size=(length, 2)), rng.normal(size=(length, 3))
            inputs: tuple[Any, ...] = (language, visual, acoustic)
            if words == "misa":
                inputs += ([WORDS[c] for c in chosen],)
            part.append(
                (inputs, np.array([[rng.uniform(-3, 3)]]), f"vid{row // 3}{split}[{row % 3}]")
            )
        data[split] = part
    return data


def glove(path: Path) -> Path:
    """Vectors of three of the five words ("Film" in lower case only), and of a token with a
    space.
    """
    path.write_text("good 1 0 0 0.5\nbad 0 1 0 0.5\nfilm 0 0 1 0.5\nat name@domain.com 9 9 9 9\n")
    return path


def csd_file(path: Path, root: str, data: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    with h5py.File(path, "w") as file:
        for key, (features, intervals) in data.items():
            file[f"{root}/data/{key}/features"] = features
            file[f"{root}/data/{key}/intervals"] = intervals
        file[f"{root}/metadata/root name"] = np.array([f'"{root}"'.encode()])


def write_pickle(path: Path, data: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(data, protocol))
    return path
