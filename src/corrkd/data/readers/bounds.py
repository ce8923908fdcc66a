"""Limits on the memory that an untrusted file may take, which is counted before anything is
built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from corrkd.errors import CorrKDError
from corrkd.memory import check_memory, size_text

# Deflate compresses at most 1032:1, and padding compresses well; beyond this the file is a bomb.
EXPANSION = 300
SLACK = 256 << 20
OBJECT = 1 << 10  # bytes of an array or a string besides its values; an upper bound
LARGE = 64 << 20  # smaller objects are not checked against free memory


def most_unpacked(path: Path) -> int:
    """Return the number of bytes that may be built from a file, by its size."""
    return EXPANSION * path.stat().st_size + SLACK


def refused(name: str, reason: str) -> CorrKDError:
    """Return the error for a file that requires what no reader does."""
    return CorrKDError(f"{name}: refused: {reason}")


@dataclass
class Budget:
    """Bytes that may still be built from one file.

    Attributes:
        name: name of the file, in messages.
        most: total number of bytes.
        spent: bytes taken so far.
    """

    name: str
    most: int
    spent: int = field(default=0)

    @classmethod
    def of(cls, path: Path) -> Budget:
        """Return the budget of a file, by its size."""
        return cls(path.name, most_unpacked(path))

    def take(self, what: str, count: int) -> None:
        """Count an object's bytes before it is built. Raises CorrKDError if they exceed the rest of
        the budget.
        """
        self.spent += count + OBJECT
        if self.spent > self.most:
            raise CorrKDError(
                f"{what}: declares {size_text(self.spent)} of arrays, but "
                f"{size_text(self.most)} are allowed; "
                "refused as a decompression bomb"
            )
        if count > LARGE:
            check_memory(what, count)
