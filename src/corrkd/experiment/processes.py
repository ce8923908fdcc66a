"""Processes of a run: the devices of one training, and the end of those whose parent is gone."""

from __future__ import annotations

import os
import time
from threading import Thread

from lightning_fabric import Fabric

from corrkd.experiment.prepare import pick_device
from corrkd.settings import Settings


def make_fabric(settings: Settings) -> Fabric:
    """Device, precision, and the processes that torchrun or SLURM started, where there are several."""
    device = pick_device(settings.device)
    world = world_size()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    fabric = Fabric(
        accelerator=device.type,
        devices=here,
        num_nodes=max(1, world // here),
        strategy="ddp" if world > 1 else "auto",
        precision=settings.precision,
    )
    fabric.launch()
    return fabric


def end_with_parent() -> None:
    """Ends this process soon after the one that started it: a run that was killed writes no more."""
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first_process() -> bool:
    """Whether this one writes and speaks."""
    return int(os.environ.get("RANK", 0)) == 0


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
