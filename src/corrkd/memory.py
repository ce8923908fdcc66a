"""Free memory, and an error if something would not fit into it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from corrkd.errors import CorrKDError

if TYPE_CHECKING:  # slow to import, and readers of datasets do not need it
    import torch

CGROUP, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # of Linux
UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def size_text(count: float) -> str:
    """Return a number of bytes as text, such as "512 bytes" or "1.5 GB"."""
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return (
        f"{count:.0f} {UNITS[unit]}" if unit == 0 or count >= 10 else f"{count:.1f} {UNITS[unit]}"
    )


def available_memory() -> int:
    """Return the number of bytes of memory that are free for this process."""
    free = psutil.virtual_memory().available
    for group in _control_groups():  # a container, or one around it, may have less
        try:
            limit, used, facts = (
                (group / f"memory.{what}").read_text() for what in ("max", "current", "stat")
            )
            cached = _number(r"^active_file (\d+)", facts) + _number(r"^inactive_file (\d+)", facts)
            # The file cache is given up when memory is needed.
            free = max(0, min(free, int(limit) - int(used) + cached))
        except (OSError, ValueError):  # no container, or no limit
            continue
    return int(free)


def _control_groups() -> list[Path]:
    """Return the folders of this process's control group and of the groups around it."""
    try:
        group = CGROUP / _line(r"^0::/(.*)$", OWN_CGROUP.read_text())
    except (OSError, ValueError):
        return [CGROUP]
    return [group, *(parent for parent in group.parents if parent.is_relative_to(CGROUP))]


def _number(pattern: str, text: str) -> int:
    return int(_line(pattern, text))


def _line(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise ValueError(pattern)
    return match[1]


def free_memory(device: torch.device) -> int:
    """Return the number of bytes of memory that are free on a device."""
    if device.type != "cuda":
        return available_memory()
    import torch

    # reserved by torch, but free for new tensors
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def check_memory(what: str, count: int) -> None:
    """Raise CorrKDError if `count` bytes do not fit into memory. `what` is the prefix of the
    message.
    """
    free = available_memory()
    if count > free:
        raise CorrKDError(
            f"{what}: needs {size_text(count)} of memory, {size_text(free)} are free; "
            f"shorten or split it"
        )
