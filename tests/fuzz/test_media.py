"""Damaged recordings: each becomes features or one line, in bounded time, and nothing is left
half-written.
"""

from __future__ import annotations

import random
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from corrkd.media.features import FeatureSettings, describe
from corrkd.media.folder import ClipTask, _extract, load_clip
from corrkd.media.labels import ClipRow
from tests.command import _processes
from tests.media.clips import tone, with_face, write_clip

ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".wav", ".mp3", ".ogg", ".flac")
LONGEST = 120.0  # seconds after which a file counts as hanging
HEADER = 300  # bytes in which most of a container's declarations lie


@cache
def valid_files() -> dict[str, bytes]:
    """Return a small recording of each container, by its ending."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = [with_face(0.45), with_face(0.5), with_face(0.55)]
        files = {}
        for ending in ENDINGS:
            images = pictures if ending in ENDINGS[:4] else ()
            files[ending] = write_clip(
                Path(folder) / f"clip{ending}", images, tone(0.3)
            ).read_bytes()
        return files


def damaged(number: int) -> tuple[str, bytes]:
    """Return (ending, contents) of a damaged recording; the same number gives the same bytes."""
    rng = random.Random(number)
    files = valid_files()
    ending = ENDINGS[number % len(ENDINGS)]
    data = bytearray(files[ending])
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(("flip", "flip header", "cut", "splice header", "repeat"))
        if kind.startswith("flip"):
            for _ in range(rng.choice((1, 8, 64))):
                data[
                    rng.randrange(min(len(data), HEADER if kind == "flip header" else len(data)))
                ] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[rng.randint(1, len(data)) :]
        elif kind == "splice header":
            length = rng.randint(1, HEADER)
            data[:length] = files[rng.choice(ENDINGS)][:length]
        else:
            start = rng.randrange(len(data))
            chunk = data[start : start + rng.randint(1, 4096)]
            data[start:start] = chunk * rng.choice((1, 2, 20))
    return ending, bytes(data)


def extract_damaged(number: int, folder: Path) -> str | None:
    """Extract a damaged recording into a folder; return its error, or None if it has features."""
    ending, data = damaged(number)
    recording, file = folder / "in" / f"{number}{ending}", folder / "out" / f"{number}.npz"
    recording.write_bytes(data)
    settings = FeatureSettings(longest_seconds=60.0)
    tempfile.tempdir = str(folder / "temp")
    clip = ClipRow(str(number), recording.name, recording, "", {})
    (error,) = _extract([ClipTask(clip, file, settings, describe(settings))])
    return error


def check_damaged(numbers: range, folder: Path) -> dict[int, str | None]:
    """Extract damaged recordings one by one in a separate process, and return the error of each."""
    for name in ("in", "out", "temp"):
        (folder / name).mkdir()
    lines: dict[int, str | None] = {}
    with ProcessPoolExecutor(1, mp_context=_processes) as pool:
        for number in numbers:  # a crash is a BrokenProcessPool here
            done = pool.submit(extract_damaged, number, folder)
            try:
                lines[number] = done.result(timeout=LONGEST)
            except TimeoutError:
                for process in pool._processes.values():
                    process.kill()
                pytest.fail(f"damaged recording {number} hangs")
    assert not list((folder / "temp").iterdir())
    with_features = {f"{number}.npz" for number, line in lines.items() if line is None}
    assert {file.name for file in (folder / "out").iterdir()} == with_features
    for number, line in lines.items():
        if line is None:
            for frames in load_clip(folder / "out" / f"{number}.npz").frames.values():
                assert np.isfinite(frames.values).all()
                assert len(frames.present) == len(frames.values) >= 1
        else:
            assert line.startswith(f"{number}."), line
            assert "\n" not in line
            assert line.isprintable(), line
    return lines


def test_undamaged_recordings_have_features(tmp_path: Path) -> None:
    """So errors of the others are due to the damage."""
    for ending, data in valid_files().items():
        recording, file = tmp_path / f"clip{ending}", tmp_path / f"clip{ending}.npz"
        recording.write_bytes(data)
        settings = FeatureSettings()
        clip = ClipRow("clip", recording.name, recording, "", {})
        assert _extract([ClipTask(clip, file, settings, describe(settings))]) == [None]
        frames = load_clip(file).frames
        assert frames["audio"].present.any()
        assert frames["vision"].present.any() == (ending in ENDINGS[:4])


def test_a_few_damaged_recordings(tmp_path: Path) -> None:
    lines = check_damaged(range(24), tmp_path)
    assert 0 < sum(line is None for line in lines.values()) < len(lines)


@pytest.mark.slow
def test_two_hundred_damaged_recordings(tmp_path: Path) -> None:
    lines = check_damaged(range(24, 224), tmp_path)
    assert 0 < sum(line is None for line in lines.values()) < len(lines)
