"""The last state of a training, to resume from: written whole or not at all, read without trusting
it.
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

DIGEST = hashlib.sha256().digest_size  # bytes at the file's start: the SHA-256 of all that follows
# of a training's time may go into its checkpoints, so that short epochs do not wait for the disk
SHARE = 0.05


class CheckpointWriter:
    """Writes the checkpoints of a training: after each epoch, but for epochs that are much shorter
    than the writing.

    `share`: of the time that the writing may take.

    An epoch that is not written is trained again after a stop, and comes to the same numbers.
    """

    def __init__(self, path: Path, share: float = SHARE) -> None:
        self._path, self._share = path, share
        self._next = 0.0

    def write(self, state: Callable[[], dict[str, Any]]) -> None:
        """Write the state, unless the last writing is too short a while ago."""
        began = time.monotonic()
        if began < self._next:
            return
        save_checkpoint(self._path, state())
        ended = time.monotonic()
        self._next = ended + (ended - began) / self._share


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors, numbers, strings and containers of them, below their SHA-256."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    write_bytes(path, hashlib.sha256(data).digest() + data)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The state, or None where there is no file.

    Raises:
        CorrKDError: where the file is damaged, or holds more than tensors and plain values.
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
    except (
        Exception
    ):  # torch raises many kinds for a damaged file, and advises to run what is in it
        raise CorrKDError(damaged) from None
    if not isinstance(state, dict):
        raise CorrKDError(damaged)
    return state
