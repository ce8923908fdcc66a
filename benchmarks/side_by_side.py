"""Measuring two programs side by side: a process each, turns taken, so that a busy machine slows
both alike.
"""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from corrkd.experiment.experiment import Experiment, prepare
from corrkd.experiment.settings import load_settings
from corrkd.networks.saved import SavedNetwork, build_network, save_network

Program = Callable[[], Any]

# CMU-MOSI's splits, frames and widths, filled with the built-in dataset's samples.
MOSI = {
    "train": 1284,
    "valid": 229,
    "test": 686,
    "frames": 50,
    "shortest": 5,
    "widths": {"language": 300, "audio": 74, "vision": 35},
    "classes": 2,
}


def mosi_experiment(
    *, dropout: float = 0.1, device: str = "cpu", precision: str = "32-true"
) -> Experiment:
    """Data of MOSI's shapes and the network of the paper's sizes."""
    network = {"width": 40, "heads": 10, "layers": 2, "feedforward": 160, "dropout": dropout}
    data = {"synthetic": MOSI, "target": "classes"}
    return prepare(
        load_settings(data=data, teacher={"network": network}, device=device, precision=precision)
    )


def epoch_by_epoch(train: Callable[[Callable[[Any], None]], Any]) -> Program:
    """A program that does the next epoch of one long training, so that what is made once (graphs,
    compiled code) is made once.

    Args:
        train: the training; it calls what it is given after each epoch, and does not end while it
            is measured.
    """
    go, done = threading.Semaphore(0), threading.Semaphore(0)

    def wait(_: Any) -> None:
        done.release()
        go.acquire()

    threading.Thread(target=train, args=(wait,), daemon=True).start()
    done.acquire()  # the first epoch, which makes them

    def epoch() -> None:
        go.release()
        done.acquire()

    return epoch


def _serve(
    make: Callable[..., Program],
    options: Mapping[str, Any],
    threads: int,
    clock: Callable[[], float],
    line: Connection,
) -> None:
    torch.set_num_threads(threads)
    program = make(**options)
    program()  # whatever happens once only
    line.send("ready")
    while line.recv():
        began = clock()
        program()
        line.send(clock() - began)


def measure(
    makers: Mapping[str, Callable[..., Program]],
    options: Mapping[str, Any],
    *,
    threads: int,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each program in each round.

    Args:
        makers: by name, what makes a program in its own process: a function of a module, called
            with `options`. A program is complete when it returns: on a GPU it waits for the device.
        options: what the makers are called with.
        threads: CPU threads of each process; the other waits meanwhile.
        rounds: turns each takes.
        clock: seconds by which a turn is measured; `time.process_time` counts those of the program
            alone.
    """
    spawn = multiprocessing.get_context("spawn")
    lines, processes = {}, []
    for name, make in makers.items():
        lines[name], end = spawn.Pipe()
        processes.append(
            spawn.Process(target=_serve, args=(make, options, threads, clock, end), daemon=True)
        )
        processes[-1].start()
        end.close()  # so that a process that died is an EOFError here and no endless wait
        lines[name].recv()
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, line in lines.items():
            line.send(True)
            seconds[name].append(line.recv())
    for line in lines.values():
        line.send(False)
    for process in processes:
        process.join()
    return seconds


def speeds(samples: int, seconds: list[float]) -> str:
    """Samples per second: median (lowest to highest)."""
    rates = sorted(samples / s for s in seconds)
    return f"{statistics.median(rates):8,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})"


def times_as_fast(slow: list[float], fast: list[float]) -> str:
    """How many times as fast: median (lowest to highest) over the rounds, each round's two times
    compared with one another.
    """
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def save_untrained(stem: Path) -> Experiment:
    """Write an untrained network of MOSI's shapes; return the experiment that it is of."""
    experiment = mosi_experiment()
    torch.manual_seed(0)
    chosen = experiment.settings.student.network
    network = build_network(
        experiment.target,
        experiment.dataset.widths,
        experiment.frames,
        chosen.options,
        chosen.class_,
    )
    saved = SavedNetwork(
        network=network.eval(),
        normalisation=experiment.normalisation,
        target=experiment.target,
        frames=experiment.frames,
    )
    save_network(stem, saved)
    return experiment
