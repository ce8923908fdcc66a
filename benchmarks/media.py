"""What features of a recording cost, stream by stream, each in one process on one thread; the face
networks beside MediaPipe's own runtime.

    npm pack @mediapipe/face_mesh@0.4.1657299874
    pip install ai-edge-litert
    python benchmarks/media.py [--clip clip.mp4] [--package mediapipe-face_mesh-0.4.1657299874.tgz]
    [--rounds 7]

Times are a process's own (CPU time), so that other programs of the machine count little. Without
--package, or without LiteRT, the streams alone are measured; without --clip, a face that moves for
20 seconds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import Program, measure, times_as_fast

from corrkd.media.clip import Clip
from corrkd.media.decode import Recording
from corrkd.media.extractors.face_mesh import FaceMesh
from corrkd.media.extractors.face_networks import BATCH, DETECTOR_SIZE, MESH_SIZE, networks
from corrkd.media.extractors.hash_words import HashWords
from corrkd.media.extractors.prosody import Prosody

TEXT = "I really loved this film and would see it again " * 10
ASSETS, LOADER = (
    "package/face_mesh_solution_packed_assets.data",
    "package/face_mesh_solution_packed_assets_loader.js",
)
DETECTOR, MESH = "face_detection_short_range.tflite", "face_landmark.tflite"
FACES = 32  # that pass through the networks in a turn


def decode(clip: str) -> None:
    recording = Recording(Path(clip))
    for _ in recording.pictures():
        pass
    for _ in recording.sound():
        pass


def hash_words(clip: str) -> None:
    HashWords().frames(Clip(Path(clip), TEXT))


def prosody(clip: str) -> None:
    Prosody().frames(Clip(Path(clip), TEXT))


def facemesh(clip: str) -> None:
    FaceMesh().frames(Clip(Path(clip), TEXT))


STREAMS: dict[str, Callable[[str], None]] = {
    "decode": decode,
    "hash-words": hash_words,
    "prosody": prosody,
    "facemesh": facemesh,
}


def peak_memory() -> int:
    """Return the most bytes that this process has held; `getrusage` would count those of the one
    that started it.
    """
    line = next(
        line
        for line in Path("/proc/self/status").read_text("utf-8").splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) << 10


def stream_in_process(name: str, clip: str, rounds: int, line: Connection) -> None:
    """Send (peak memory in bytes before, at the end, CPU seconds of each round)."""
    torch.set_num_threads(1)
    before = peak_memory()
    seconds = []
    for _ in range(rounds + 1):
        began = time.process_time()
        STREAMS[name](clip)
        seconds.append(time.process_time() - began)
    line.send((before, peak_memory(), seconds[1:]))


def measure_stream(name: str, clip: str, rounds: int) -> tuple[int, int, list[float]]:
    spawn = multiprocessing.get_context("spawn")
    line, end = spawn.Pipe()
    process = spawn.Process(target=stream_in_process, args=(name, clip, rounds, end))
    process.start()
    end.close()
    result = line.recv()
    process.join()
    return result


@cache
def network_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    pictures = torch.rand(FACES, 3, DETECTOR_SIZE, DETECTOR_SIZE, generator=random) * 2 - 1
    return pictures, torch.rand(FACES, 3, MESH_SIZE, MESH_SIZE, generator=random)


def torch_points(package: str) -> Iterator[np.ndarray[Any, Any]]:
    pictures, crops = network_inputs()
    for at in range(0, FACES, BATCH):
        networks().detector(pictures[at : at + BATCH])
        yield networks().mesh(crops[at : at + BATCH])[0].reshape(-1, 1404).numpy()


def lite_points(package: str) -> Callable[[], Iterator[np.ndarray[Any, Any]]]:
    from ai_edge_litert.interpreter import Interpreter

    with tarfile.open(package) as archive:
        data, loader = (archive.extractfile(name).read() for name in (ASSETS, LOADER))  # type: ignore[union-attr]
    places = re.findall(r'"filename": "([^"]+)", "start": (\d+), "end": (\d+)', loader.decode())
    files = {name.rpartition("/")[2]: data[int(start) : int(end)] for name, start, end in places}
    interpreters = [
        Interpreter(model_content=files[name], num_threads=1) for name in (DETECTOR, MESH)
    ]
    for interpreter in interpreters:
        interpreter.allocate_tensors()

    both = [x.permute(0, 2, 3, 1).contiguous().numpy() for x in network_inputs()]

    def points() -> Iterator[np.ndarray[Any, Any]]:
        for rows in zip(*both, strict=True):
            for interpreter, row in zip(interpreters, rows, strict=True):
                interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row[None])
                interpreter.invoke()
            yield (
                interpreters[1]
                .get_tensor(interpreters[1].get_output_details()[0]["index"])
                .reshape(1, -1)
            )

    return points


def make_torch(package: str) -> Program:
    return lambda: list(torch_points(package))


def make_lite(package: str) -> Program:
    points = lite_points(package)
    return lambda: list(points())


def made_clip(folder: Path) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.media.clips import tone, with_face, write_clip

    pictures = [with_face(0.5 + 0.1 * np.sin(i / 20)) for i in range(500)]
    return write_clip(folder / "clip.mp4", pictures, tone(20.0), rate=25)


def report_streams(clip: Path, rounds: int) -> None:
    recording = Recording(clip)
    print(
        f"{clip.name}: {recording.seconds:.1f} s, {recording.num_steps} frames of 0.1 s; one "
        f"thread, median of {rounds}"
    )
    for name in STREAMS:
        before, peak, seconds = measure_stream(name, str(clip), rounds)
        median = statistics.median(seconds)
        print(
            f"  {name:10}  {median:7.3f} s, {recording.seconds / median:8.1f} times real time, "
            f"{recording.num_steps / median:9.0f} frames/s, peak {peak >> 20} MiB "
            f"({(peak - before) >> 20} beyond the imports)"
        )


def report_networks(package: Path, rounds: int) -> None:
    largest = np.abs(
        np.concatenate(list(torch_points(""))) - np.concatenate(list(lite_points(str(package))()))
    ).max()
    makers = {"torch": make_torch, "LiteRT": make_lite}
    seconds = measure(
        makers, {"package": str(package)}, threads=1, rounds=rounds, clock=time.process_time
    )
    print(
        f"both face networks, {FACES} faces a turn, {rounds} turns; points differ by "
        f"{largest:.0e} pixels at most"
    )
    for name, values in seconds.items():
        print(
            f"  {name:10}  {FACES / statistics.median(values):7.0f} faces/s "
            f"({1e3 * statistics.median(values) / FACES:.2f} ms each)"
        )
    print(f"  LiteRT is {times_as_fast(seconds['torch'], seconds['LiteRT'])}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--package", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report_streams(options.clip or made_clip(Path(folder)), options.rounds)
    if options.package is None or find_spec("ai_edge_litert") is None:
        print(
            "not beside LiteRT: pip install ai-edge-litert, npm pack "
            "@mediapipe/face_mesh@0.4.1657299874, then --package"
        )
        return
    report_networks(options.package, options.rounds)


if __name__ == "__main__":
    main()
