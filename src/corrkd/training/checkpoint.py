"""The last state of a training, to resume from: written whole or not at all, read without trusting it."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch

from corrkd.errors import CorrKDError
from corrkd.files import write_bytes


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors, numbers, strings and containers of them."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The state, or None where there is no file.

    Raises:
        CorrKDError: where the file is damaged, or holds more than tensors and plain values.
    """
    if not path.exists():
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception:  # torch raises many kinds for a damaged file, and advises to run what is in it
        raise CorrKDError(f"{path}: damaged, or no checkpoint; delete it to train this stage again") from None
    return state
