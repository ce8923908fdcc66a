"""One sample's latency and throughput at full load: corrkd's predictor, its ONNX export, and a
naive predictor; then the service.

    python benchmarks/serving.py [--threads 1] [--rounds 7] [--no-service]

Data of MOSI's shapes (side_by_side.py), a network of the paper's sizes with untrained parameters:
what is predicted takes no part in the time. The naive predictor is what one writes first: a model's
file, one sample at a time, no batches. Latency is of one complete sample alone; throughput is of
512 samples of unequal lengths, a third of their modalities missing, handed over at once. All
programs must agree to 1e-4. The service is a process of its own on loopback, asked by 1 and by 16
clients that each wait for their answer, with and without requests going through the network
together.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from side_by_side import Program, measure, save_untrained, speeds, times_as_fast

from corrkd.data.dataset import Split
from corrkd.data.inputs import Inputs
from corrkd.networks.saved import load_network
from corrkd.serve.export import export
from corrkd.serve.predictor import Predictor
from corrkd.serve.standalone import ExportedStudent

COUNT = 512


def make_model(folder: Path) -> Split:
    """Writes a model and its export; returns samples to predict."""
    experiment = save_untrained(folder / "student")
    export(
        Predictor(load_network(folder / "student")), folder / "exported", dataset=experiment.dataset
    )
    return experiment.dataset.split("test")


def samples(folder: str) -> list[dict[str, Any]]:
    """The samples kept in the folder, as a caller holds them."""
    with np.load(Path(folder) / "samples.npz") as arrays:
        stored = {key: arrays[key] for key in arrays.files}
    out: list[dict[str, Any]] = [{} for _ in range(COUNT)]
    for key, array in stored.items():
        number, _, modality = key.partition("|")
        out[int(number)][modality] = array
    return out


def keep_samples(split: Split, folder: Path) -> None:
    """Each sample's own frames; a modality is missing with probability 1/3, the first is kept where
    none is left.
    """
    rng = np.random.default_rng(0)
    arrays = {}
    for row in range(COUNT):
        kept = [m for m in split.frames if rng.random() > 1 / 3] or [next(iter(split.frames))]
        arrays |= {f"{row}|{m}": split.frames[m][row, : split.lengths[m][row]] for m in kept}
    np.savez(folder / "samples.npz", **arrays)


def of(samples: list[dict[str, Any]], single: bool) -> list[dict[str, Any]]:
    """All, or sixteen times one that is complete."""
    return [max(samples, key=len)] * 16 if single else samples


def naive(folder: str, single: bool) -> Program:
    """Sample by sample through the saved network, by hand."""
    saved, given = load_network(Path(folder) / "student"), of(samples(folder), single)
    norm = saved.normalisation

    def predict() -> list[list[float]]:
        out = []
        for sample in given:
            frames, exists, visible = {}, {}, {}
            for m, width in saved.widths.items():
                x = (
                    torch.tensor(np.array(sample[m]))
                    if m in sample
                    else torch.zeros(norm.lengths[m], width)
                )
                frames[m] = norm.apply(m, x[None])
                exists[m] = torch.ones(1, len(x), dtype=torch.bool)
                visible[m] = exists[m] if m in sample else torch.zeros_like(exists[m])
            logits = saved.network(Inputs(frames, exists, visible)).logits
            out.append(torch.softmax(logits[0], -1).tolist())
        return out

    return predict


def torch_predictor(folder: str, single: bool) -> Program:
    """Corrkd's predictor."""
    predictor, given = (
        Predictor.from_pretrained(Path(folder) / "student"),
        of(samples(folder), single),
    )
    return lambda: answers(predictor, given, single)


def onnx_predictor(folder: str, single: bool) -> Program:
    """The export, with as many threads as PyTorch has."""
    student = ExportedStudent(Path(folder) / "exported", threads=torch.get_num_threads())
    given = of(samples(folder), single)
    return lambda: answers(student, given, single)


def answers(predictor: Any, given: list[dict[str, Any]], single: bool) -> list[list[float]]:
    """Probabilities; one sample after the other where one alone is measured."""
    found = (
        [predictor.predict(sample) for sample in given]
        if single
        else predictor.predict(given, batch_size=64)
    )
    return [list(prediction.probabilities.values()) for prediction in found]


PROGRAMS: Mapping[str, Any] = {"naive": naive, "PyTorch": torch_predictor, "ONNX": onnx_predictor}


def check(folder: str) -> float:
    """Largest difference between any two of the programs."""
    found = {name: np.array(make(folder, False)()) for name, make in PROGRAMS.items()}
    worst = max(float(np.abs(values - found["naive"]).max()) for values in found.values())
    assert worst < 1e-4, f"the programs differ by {worst}"
    return worst


async def asked(url: str, bodies: list[bytes], clients: int) -> tuple[float, list[float]]:
    """Seconds in all, and of each request, when so many clients ask one after the other."""
    todo, seconds = iter(bodies), []
    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(
        limits=httpx.Limits(max_connections=clients), timeout=60
    ) as client:

        async def ask() -> None:
            for body in todo:
                began = time.perf_counter()
                (
                    await client.post(f"{url}/v1/predict", content=body, headers=headers)
                ).raise_for_status()
                seconds.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(clients)))
        return time.perf_counter() - began, seconds


def service(folder: Path, threads: int) -> None:
    """Requests a second and their latency over HTTP."""
    import json

    bodies = [
        json.dumps({"samples": [{m: x.tolist() for m, x in sample.items()}]}).encode()
        for sample in samples(str(folder))
    ]
    print(
        f"\nservice, JSON of {statistics.median(map(len, bodies)) / 1000:.0f} kB at the median, "
        f"{COUNT} requests:"
    )
    for batch in (64, 1):
        words = [
            sys.executable,
            "-m",
            "corrkd",
            "serve",
            str(folder / "student.json"),
            "--port",
            "0",
            "--batch",
            str(batch),
        ]
        process = subprocess.Popen(
            [*words, "--threads", str(threads), "--wait", "4" if batch > 1 else "0"],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        line = next(line for line in process.stderr if "running on" in line)
        url = line.split("running on ")[1].split()[0]
        for clients in (1, 16):
            asyncio.run(asked(url, bodies[:64], clients))  # warm
            whole, each = asyncio.run(asked(url, bodies, clients))
            low, high = np.quantile(each, [0.5, 0.95]) * 1000
            how = "together" if batch > 1 else "one by one"
            print(
                f"  {how:10} {clients:2} clients: {COUNT / whole:7.0f} requests/s, {low:6.1f} ms "
                f"median, {high:6.1f} ms 95th percentile"
            )
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-service", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keep_samples(make_model(folder), folder)
        print(
            f"largest difference between the programs: {check(name):.1e}; {given.threads} threads"
        )
        for single, what in ((True, "one sample at a time"), (False, f"{COUNT} samples at once")):
            seconds = measure(
                PROGRAMS,
                {"folder": name, "single": single},
                threads=given.threads,
                rounds=given.rounds,
            )
            print(f"{what}:")
            for program, rounds in seconds.items():
                count = 16 if single else COUNT
                latency = f", {1000 * statistics.median(rounds) / count:.2f} ms a sample"
                print(
                    f"  {program:8} {speeds(count, rounds)} samples/s{latency}; "
                    f"{times_as_fast(seconds['naive'], rounds)}"
                )
        if not given.no_service:
            service(folder, given.threads)


if __name__ == "__main__":
    main()
