"""Processes of a run: their devices and memory."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from corrkd.experiment.experiment import pick_device
from corrkd.experiment.settings import Settings
from corrkd.training.fabric import Fabric

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**25  # glibc's maximum of the mmap threshold


def make_fabric(settings: Settings) -> Fabric:
    """Return the fabric for a device, a precision and all processes started by torchrun or
    SLURM.
    """
    tf32 = settings.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    return _fabric(pick_device(settings.device), "32-true" if tf32 else settings.precision)


@cache
def _fabric(device: torch.device, precision: Any) -> Fabric:
    world = world_size()
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    fabric = Fabric(
        accelerator=device.type,
        devices=local_size,
        num_nodes=max(1, world // local_size),
        strategy="ddp_find_unused_parameters_true" if world > 1 else "auto",
        precision=precision,
    )
    fabric.launch()
    return fabric


def wait_for_all(settings: Settings) -> None:
    """Wait until every process of the training has reached this point. With a single process,
    return at once.
    """
    if world_size() > 1:
        make_fabric(settings).barrier()


def world_size() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first_process() -> bool:
    """Return whether this is the process that writes files and reports progress."""
    return int(os.environ.get("RANK", 0)) == 0


def keep_freed_memory() -> None:
    """Make glibc's allocator reuse blocks of up to 32 MiB, which it otherwise returns to the kernel
    after each step.

    Other platforms are not affected. Results do not change.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory if the system supports it, since a process runs several jobs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # a container may forbid it; the peak then covers all jobs so far
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes since `reset_peak_memory`: allocated on the GPU, or resident
    in this process; None if the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        # Not getrusage, which includes memory of the process that started this one.
        status = Path("/proc/self/status").read_text("utf-8")
        return next(
            (
                1024 * int(line.split()[1])
                for line in status.splitlines()
                if line.startswith("VmHWM")
            ),
            None,
        )
    if sys.platform == "darwin":
        import resource  # not on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return getattr(psutil.Process().memory_info(), "peak_wset", None)  # on Windows
