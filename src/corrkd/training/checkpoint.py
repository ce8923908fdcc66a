"""Checkpoints: the last state of a training, written completely or not at all, and read as
untrusted data.
"""

from __future__ import annotations

import hashlib
import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from corrkd.errors import CorrKDError
from corrkd.files import write_bytes

DIGEST = hashlib.sha256().digest_size  # bytes at the start of the file: SHA-256 of the rest
# Share of a training's time for its checkpoints, so that short epochs do not wait for the disk.
SHARE = 0.05


class CheckpointWriter:
    """A writer of a training's checkpoints: after each epoch, unless epochs are much shorter than
    writing. `share`: largest share of the time that writing may take.

    An epoch without a checkpoint is trained again after an interruption, with identical results.
    """

    def __init__(self, path: Path, share: float = SHARE) -> None:
        self._path, self._share = path, share
        self._next = 0.0

    def write(self, state: Callable[[], dict[str, Any]]) -> None:
        """Write the state, unless the last checkpoint is too recent."""
        began = time.monotonic()
        if began < self._next:
            return
        save_checkpoint(self._path, state())
        ended = time.monotonic()
        self._next = ended + (ended - began) / self._share


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them, preceded by their SHA-256."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    write_bytes(path, hashlib.sha256(data).digest() + data)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """Return the state in a checkpoint; None if the file does not exist.

    Raises:
        CorrKDError: if the file cannot be read, is damaged, or contains more than tensors and plain
            values.
    """
    if not path.exists():
        return None
    damaged = f"{path}: damaged, or no checkpoint; delete it to train this stage again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorrKDError(f"{path}: {error.strerror or error}") from None
    if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
        raise CorrKDError(damaged)
    try:
        with warnings.catch_warnings(action="ignore"):
            state: dict[str, Any] = torch.load(
                io.BytesIO(content[DIGEST:]), map_location=device, weights_only=True
            )
    except Exception:  # torch raises many types, and advises to execute the file's content
        raise CorrKDError(damaged) from None
    if not isinstance(state, dict):
        raise CorrKDError(damaged)
    return state
