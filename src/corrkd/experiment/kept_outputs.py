"""Teacher outputs stored on disk, to be shared by all students of a seed.

A file is used only if the digest of its tensors and of everything that they depend on is the
expected one. Otherwise it is written again, which costs only time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from corrkd.experiment.processes import is_first_process
from corrkd.files import write_bytes
from corrkd.methods.base import TeacherOutputs
from corrkd.parsing import CONTENT_ERRORS, DIGEST

FILE = "outputs.safetensors"


def kept_outputs(
    path: Path,
    depends_on: Mapping[str, Any],
    device: torch.device,
    compute: Callable[[], TeacherOutputs],
) -> TeacherOutputs:
    """Return the outputs in a file, or compute them and write the file.

    Args:
        path: the file; it need not exist.
        depends_on: everything that determines the outputs, as JSON.
        device: device of the returned outputs.
        compute: computes the outputs if the file is absent, damaged or for other outputs.

    Raises:
        CorrKDError: if the file cannot be written.
    """
    outputs = _read(path, depends_on)
    if outputs is None:
        outputs = compute()
        if is_first_process():
            _write(path, depends_on, outputs)
    return outputs.apply(lambda x: x.to(device))


def _read(path: Path, depends_on: Mapping[str, Any]) -> TeacherOutputs | None:
    """Return the outputs in a file; None if it is absent, damaged or for other outputs."""
    try:
        data = path.read_bytes()
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        digest = json.loads(data[8 : 8 + length])["__metadata__"][DIGEST]
        return TeacherOutputs(**tensors) if digest == _digest(tensors, depends_on) else None
    except (SafetensorError, OSError, *CONTENT_ERRORS):
        return None


def _write(path: Path, depends_on: Mapping[str, Any], outputs: TeacherOutputs) -> None:
    tensors = {name: x.cpu().contiguous() for name, x in outputs._asdict().items() if x is not None}
    write_bytes(path, save_tensors(tensors, metadata={DIGEST: _digest(tensors, depends_on)}))


def _digest(tensors: Mapping[str, Tensor], depends_on: Mapping[str, Any]) -> str:
    facts = json.dumps(depends_on, sort_keys=True).encode()
    return hashlib.sha256(
        b"%d\n%s%s" % (len(facts), facts, save_tensors(dict(tensors)))
    ).hexdigest()
