"""External teachers: outputs of any model for the training samples, by sample id, in an `.npz` file
that `teacher.outputs` names.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrkd.data.batches import Samples
from corrkd.data.readers.containers import read_npz
from corrkd.errors import CorrKDError
from corrkd.experiment.experiment import prepare
from corrkd.experiment.settings import Settings
from corrkd.files import write_bytes
from corrkd.methods.base import TeacherOutputs
from corrkd.parsing import quoted, repeated

Array = npt.NDArray[Any]
AskedTeacher = Callable[[Sequence[str]], Any]
"""Function from the ids of N samples to logits (N, *response_shape), or to a pair of
representations (N, D) and logits.
"""

IDS, LOGITS, REPRESENTATION = "ids", "logits", "representation"
MOST_NAMED = 5  # ids in an error message


@dataclass(frozen=True)
class TeacherFile:
    """Outputs of an external teacher, from `read_teacher_file`.

    Attributes:
        path: path of the file.
        ids: (N,) distinct sample ids.
        logits: (N, ...) finite numbers.
        representation: (N, D) finite numbers, D >= 1; None if the file has none.
    """

    path: Path
    ids: npt.NDArray[np.str_]
    logits: Array
    representation: Array | None

    def check_covers(self, ids: Sequence[str]) -> None:
        """Raise CorrKDError if some of these ids have no outputs, with their number and the first
        of them.
        """
        available = set(self.ids.tolist())
        missing = [name for name in map(str, ids) if name not in available]
        if missing:
            first = ", ".join(map(quoted, missing[:MOST_NAMED])) + (
                ", ..." if len(missing) > MOST_NAMED else ""
            )
            raise CorrKDError(
                f"{self.path}: {len(missing)} of {len(ids)} training samples have no outputs: "
                f"{first}"
            )

    def outputs(self, samples: Samples, dtype: torch.dtype) -> TeacherOutputs:
        """Return the outputs for samples, in their order, on their device.

        Raises:
            CorrKDError: if some samples have no outputs, or the shape of the logits does not match
                the target.
        """
        self.check_covers(samples.ids.tolist())
        shape, target = samples.target.response_shape, samples.target
        logits = self.logits[:, None] if shape == (1,) and self.logits.ndim == 1 else self.logits
        if logits.shape[1:] != shape:
            raise CorrKDError(
                f"{self.path}: logits of one sample have the shape {list(logits.shape[1:])}, but "
                f"the target {target.name} has {list(shape)} "
                f"({', '.join(map(str, target.classes))})"[:400]
            )
        row = {name: index for index, name in enumerate(self.ids.tolist())}
        rows = [row[name] for name in samples.ids.tolist()]
        representation = (
            np.empty((len(self.ids), 0)) if self.representation is None else self.representation
        )
        taken = (
            torch.as_tensor(x[rows]).to(samples.device, dtype) for x in (representation, logits)
        )
        return TeacherOutputs(*taken)


def read_teacher_file(path: Path) -> TeacherFile:
    """Return the outputs in an `.npz` file with the arrays `ids`, `logits` and, optionally,
    `representation`.

    Raises:
        CorrKDError: if the file cannot be read or lacks an array, or an array does not have the
            type and shape in `TeacherFile`.
    """
    if not path.is_file():
        raise CorrKDError(f"settings: teacher.outputs: {path}: no such file")
    arrays = read_npz(path, objects=False)
    if not {IDS, LOGITS} <= set(arrays):
        raise CorrKDError(
            f"{path}: holds no arrays `{IDS}` and `{LOGITS}`; it has "
            f"{', '.join(map(quoted, arrays))}"[:400]
        )
    logits, representation = arrays[LOGITS], arrays.get(REPRESENTATION)
    ids = _text(arrays[IDS], path)
    for name, array in ((LOGITS, logits), (REPRESENTATION, representation)):
        if array is not None:
            _check_numbers(array, len(ids), f"{path}: {name}")
    if representation is not None and (representation.ndim != 2 or not representation.shape[1]):
        raise CorrKDError(
            f"{path}: {REPRESENTATION}: expected (N, D), got the shape {list(representation.shape)}"
        )
    return TeacherFile(path, ids, logits, representation)


def write_teacher_file(
    path: Path, ids: Sequence[str], logits: Any, representation: Any = None
) -> None:
    """Write the file that `teacher.outputs` names.

    Args:
        path: path of an `.npz` file.
        ids: distinct ids of N samples.
        logits: array or tensor (N, *response_shape): for classes (N, K), in the order of the
            target; for a score also (N,).
        representation: (N, D), or None.

    Raises:
        CorrKDError: if a length differs from N, an id appears twice, a number is not finite, or the
            file cannot be written.
    """
    arrays: dict[str, Any] = {IDS: _text(np.asarray(ids), path), LOGITS: _array(logits)}
    if representation is not None:
        arrays[REPRESENTATION] = _array(representation)
    for name in arrays.keys() - {IDS}:
        _check_numbers(arrays[name], len(ids), f"{path}: {name}")
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def ask_teacher(teacher: AskedTeacher, settings: Settings, path: str | Path) -> Path:
    """Write the outputs of a model for all training samples to a file for `teacher.outputs`.

    Args:
        teacher: called once, with the ids of all samples on which some seed trains.
        settings: settings of the run.
        path: path of the `.npz` file to write.

    Returns:
        The path.

    Raises:
        CorrKDError: if settings or data are invalid, or as `write_teacher_file`.
    """
    unset = settings.teacher.model_copy(update={"outputs": None})
    ids = prepare(settings.model_copy(update={"teacher": unset})).training_ids()
    outputs = teacher(ids)
    representation, logits = outputs if isinstance(outputs, tuple) else (None, outputs)
    write_teacher_file(Path(path), ids, logits, representation)
    return Path(path)


def _array(values: Any) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _text(ids: Array, path: Path) -> npt.NDArray[np.str_]:
    if ids.ndim != 1 or ids.dtype.kind not in "USiu":
        raise CorrKDError(
            f"{path}: {IDS}: expected one text for each sample, got {ids.dtype} of the shape "
            f"{list(ids.shape)}"
        )
    try:
        text = np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids.astype(np.str_)
    except UnicodeDecodeError:
        raise CorrKDError(f"{path}: {IDS}: not UTF-8 text") from None
    if len(set(text.tolist())) < len(text):
        raise CorrKDError(f"{path}: {IDS}: {quoted(repeated(text.tolist()))} appears twice")
    return text


def _check_numbers(array: Array, count: int, where: str) -> None:
    if array.dtype.kind not in "fiu" or array.ndim < 1 or len(array) != count:
        raise CorrKDError(
            f"{where}: expected numbers of {count} samples, as many as there are ids; got "
            f"{array.dtype} of the shape {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise CorrKDError(f"{where}: holds numbers that are not finite")
