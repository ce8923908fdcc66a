"""What a file from others may take: the memory of what is built from it, counted before it is built."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from corrkd.errors import CorrKDError

# Deflate packs at most 1032:1 and padding packs well; beyond this the file is a bomb.
EXPANSION = 300
SLACK = 256 << 20
OBJECT = 1 << 10  # bytes that an array or a string takes beside its values, generously
UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def size_text(count: float) -> str:
    """Return a number of bytes as people write it: "512 bytes", "1.5 GB"."""
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {UNITS[unit]}" if unit == 0 or count >= 10 else f"{count:.1f} {UNITS[unit]}"


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
        """Count an object of so many bytes before it is built. Raises CorrKDError where that is more than what is left."""
        self.spent += count + OBJECT
        if self.spent > self.most:
            raise CorrKDError(
                f"{what}: declares {size_text(self.spent)} of arrays where {size_text(self.most)} are allowed; "
                "refused as a decompression bomb"
            )


MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Return how many bytes of memory are free for this process, or None where the system does not say."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
        free = int(found[1]) * 1024 if found else None
    except OSError:
        return None
    try:  # a container may have less
        limit, used = ((CGROUP / f"memory.{what}").read_text().strip() for what in ("max", "current"))
        return free if limit == "max" or free is None else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free


def check_memory(what: str, count: int) -> None:
    """Raise CorrKDError where so many bytes would not fit into memory. `what` says for what, and opens the line."""
    free = available_memory()
    if free is not None and count > free:
        raise CorrKDError(
            f"{what}: needs {size_text(count)} of memory, {size_text(max(free, 0))} are free; shorten or split it"
        )
