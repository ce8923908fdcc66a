"""What a file from others may take: the memory of what is built from it, counted before it is
built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from corrkd.errors import CorrKDError
from corrkd.memory import check_memory, size_text

# Deflate packs at most 1032:1 and padding packs well; beyond this the file is a bomb.
EXPANSION = 300
SLACK = 256 << 20
OBJECT = 1 << 10  # bytes that an array or a string takes beside its values, generously
LARGE = 64 << 20  # smaller objects are not checked against free memory


def most_unpacked(path: Path) -> int:
    """Return how many bytes may be built from a file of its size."""
    return EXPANSION * path.stat().st_size + SLACK


def refused(name: str, reason: str) -> CorrKDError:
    """Return the error for a file that asks for what no reader does."""
    return CorrKDError(f"{name}: refused: {reason}")


@dataclass
class Budget:
    """Bytes that may still be built from one file.

    Attributes:
        name: of the file, in messages.
        most: bytes in all.
        spent: bytes taken so far.
    """

    name: str
    most: int
    spent: int = field(default=0)

    @classmethod
    def of(cls, path: Path) -> Budget:
        """Return the budget of a file of its size."""
        return cls(path.name, most_unpacked(path))

    def take(self, what: str, count: int) -> None:
        """Count an object of so many bytes before it is built. Raises CorrKDError where that is
        more than what is left.
        """
        self.spent += count + OBJECT
        if self.spent > self.most:
            raise CorrKDError(
                f"{what}: declares {size_text(self.spent)} of arrays where "
                f"{size_text(self.most)} are allowed; "
                "refused as a decompression bomb"
            )
        if count > LARGE:
            check_memory(what, count)
