"""Reading a file of arrays by name (`.npz`, HDF5 or `.safetensors`), with memory bounded by its
size.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO

import h5py
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from corrkd.data import safe_pickle
from corrkd.data.readers import hdf5
from corrkd.data.readers.bounds import Budget, most_unpacked, refused
from corrkd.errors import CorrKDError
from corrkd.memory import size_text
from corrkd.parsing import quoted

Array = npt.NDArray[Any]

LONGEST_DIRECTORY = 2 << 20  # bytes, of a zip file: some 30,000 members
END, END64 = b"PK\x05\x06", b"PK\x06\x06"  # records at the end of a zip file
END_SIZE, END64_SIZE, LONGEST_COMMENT = 22, 76, 65_535
# of .safetensors
NUMPY_DTYPES = {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
IN_END64 = 0xFFFFFFFF  # a size that is given in the longer record


def read_npz(path: Path, *, objects: bool = True) -> dict[str, Array]:
    """Return the arrays of an `.npz`.

    Args:
        path: the file.
        objects: whether to read arrays of objects, with the pickle reader that runs no code.

    Raises:
        CorrKDError: if the file is damaged, or unpacks to far more than its size.
    """
    return unpacked_npz(path, path.name, most=most_unpacked(path), objects=objects)


def unpacked_npz(
    file: Path | BinaryIO, name: str, *, most: int, objects: bool = False
) -> dict[str, Array]:
    """Return the arrays of an `.npz` file, or of its bytes.

    Args:
        file: a path, or an open file.
        name: begins error messages.
        most: largest number of bytes of the arrays.
        objects: whether to read arrays of objects, with the pickle reader that runs no code.

    Raises:
        CorrKDError: if the file is damaged, has objects although `objects` is False, or declares
            more bytes.
    """
    budget, arrays = Budget(name, most), {}
    try:
        check_directory(file, name)
        with zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if not members and any(
                info.filename.endswith("data.pkl") for info in archive.infolist()
            ):
                raise CorrKDError(
                    f"{name}: a file of torch.save, not arrays; load it where it was made and "
                    f"save its arrays with numpy.savez"
                )
            for info in members:
                budget.take(name, info.file_size)
            for info in members:
                arrays[info.filename.removesuffix(".npy")] = _member(
                    archive, info, name, objects=objects
                )
    except CorrKDError:
        raise
    except Exception as error:  # anything that zipfile and NumPy raise on an untrusted file
        raise CorrKDError(
            f"{name}: a damaged .npz file ({str(error)[:120] or type(error).__name__}); download "
            f"or write it again"
        ) from None
    return arrays


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, *, objects: bool) -> Array:
    """Return one array. Its shape is checked against its size before NumPy allocates it."""
    with archive.open(info) as member:
        shape, fortran, dtype = read_npy_header(member)
        if dtype.hasobject and (not objects or dtype.kind != "O"):
            raise CorrKDError(
                f"{name}: array {info.filename} holds pickled objects; save plain numbers or "
                f"strings"
            )
        data = member.read(info.file_size)
    if dtype.hasobject:
        values = safe_pickle.loads(data, f"{name}, {info.filename}")
        if not isinstance(values, np.ndarray):
            raise CorrKDError(
                f"{name}: array {info.filename} holds a {type(values).__name__}, not an array; "
                f"save plain arrays"
            )
        return values
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return (shape, whether in Fortran order, dtype) from the start of an `.npy`. Raises
    ValueError if it is not one.
    """
    try:
        if np.lib.format.read_magic(file) == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        return np.lib.format.read_array_header_2_0(file)
    except Exception as error:  # NumPy tokenizes the header as Python, which may raise anything
        raise ValueError(
            f"no header of an array: {str(error).splitlines()[0][:80] if str(error) else 'damaged'}"
        ) from None


def check_directory(file: Path | BinaryIO, name: str) -> None:
    """Raise CorrKDError if a zip file has too many members: each becomes an object before any of
    them is read.
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            check_directory(opened, name)
        return
    size = file.seek(0, 2)
    file.seek(max(0, size - LONGEST_COMMENT - END_SIZE - END64_SIZE))
    tail = file.read()
    file.seek(0)
    sizes = [
        int.from_bytes(tail[at + first : at + last], "little")
        for at, first, last in ((tail.rfind(END), 12, 16), (tail.rfind(END64), 40, 48))
        if at >= 0
    ]
    directory = max([number for number in sizes if number != IN_END64], default=0)
    if min(directory, size) > LONGEST_DIRECTORY:
        raise refused(name, f"its list of members takes {size_text(directory)}")


def read_h5(path: Path) -> dict[str, Array]:
    """Return the arrays at the root of an HDF5 file.

    Raises:
        CorrKDError: if the file is damaged, refers to other files, or unpacks to far more than its
            size.
    """
    budget, arrays = Budget.of(path), {}
    with hdf5.open_file(path) as file:
        try:
            for key, item in hdf5.members(path.name, file):
                if isinstance(item, h5py.Dataset):
                    arrays[key] = hdf5.array(f"{path.name}, {key}", item, budget)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise CorrKDError(
                f"{path.name}: a damaged HDF5 file ({str(error)[:120]}); download or write it again"
            ) from None
    if not arrays:
        raise CorrKDError(
            f"{path.name}: no arrays at its root; for .csd files, give the folder that contains "
            f"them all"
        )
    return arrays


def read_safetensors(path: Path) -> dict[str, Array]:
    """Return the tensors of a `.safetensors` file. Raises CorrKDError if it is damaged."""
    arrays = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118  (not a dict)
                dtype = file.get_slice(key).get_dtype()
                if dtype not in NUMPY_DTYPES:
                    raise CorrKDError(
                        f"{path.name}: tensor {quoted(key)} is {dtype}; save it as float32"
                    )
                arrays[key] = file.get_tensor(key)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorrKDError(
            f"{path.name}: a damaged .safetensors file ({str(error)[:120]}); download or "
            f"write it again"
        ) from None
    return arrays
