"""A recording as a stream: its pictures and sound at each time, for any kind of file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from corrkd.errors import CorrKDError
from corrkd.media.decode import RATE, Limits, Recording
from tests.media.clips import plain, rotated, tone, with_face, write_clip


def levels(recording: Recording) -> list[int | None]:
    """Return the mean grey of each step's picture, in tens; None where nothing is shown."""
    return [None if p is None else round(float(p.mean()) / 10) * 10 for p in recording.pictures()]


def sound(recording: Recording, block: int = 16_000) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(recording.sound(block))
    return np.concatenate([b.samples for b in blocks]), np.concatenate([b.exists for b in blocks])


@pytest.mark.parametrize("ending", [".mkv", ".mp4"])
def test_a_picture_is_shown_until_the_next_one(tmp_path: Path, ending: str) -> None:
    path = write_clip(
        tmp_path / f"clip{ending}", [plain(20), plain(120), plain(220)], times=[0, 0.24, 0.9]
    )
    recording = Recording(path)
    assert recording.seconds == pytest.approx(1.0, abs=0.01)
    assert levels(recording) == [20, 20, *[120] * 7, 220]
    assert levels(recording) == levels(recording)


def test_a_late_or_short_stream_shows_nothing_before_and_after(tmp_path: Path) -> None:
    pictures = [plain(50)] * 5
    recording = Recording(write_clip(tmp_path / "short.mkv", pictures, tone(1.0)))
    assert levels(recording) == [*[50] * 5, *[None] * 5]
    late = Recording(write_clip(tmp_path / "late.mkv", [plain(50)] * 10, tone(0.5), sound_from=0.3))
    samples, exists = sound(late)
    assert late.seconds == pytest.approx(1.0, abs=0.01)
    assert np.flatnonzero(exists)[[0, -1]] == pytest.approx([0.3 * RATE, 0.8 * RATE], abs=40)
    assert (samples[~exists] == 0).all()


def test_sound_is_the_same_in_blocks_of_any_size(tmp_path: Path) -> None:
    wave = tone(1.25)
    recording = Recording(write_clip(tmp_path / "tone.wav", sound=wave))
    assert not recording.has_video
    assert list(recording.pictures()) == [None] * 13
    for block in (700, 16_000, 160_000):
        samples, exists = sound(recording, block)
        assert exists.all()
        np.testing.assert_allclose(samples, wave, atol=1e-4)
        assert max(len(b.samples) for b in recording.sound(block)) <= block


@pytest.mark.parametrize("ending", [".flac", ".m4a"])
def test_compressed_sound_is_cut_to_the_container(tmp_path: Path, ending: str) -> None:
    recording = Recording(write_clip(tmp_path / f"tone{ending}", sound=tone(1.05)))
    samples, exists = sound(recording)
    assert len(samples) == round(recording.seconds * RATE) == 16_800
    assert exists.mean() > 0.99
    assert np.sqrt((samples[exists] ** 2).mean()) == pytest.approx(
        np.sqrt((tone(1.05) ** 2).mean()), rel=0.05
    )


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_pictures_are_rotated_as_in_players(tmp_path: Path, degrees: int) -> None:
    path = write_clip(tmp_path / "upright.mp4", [with_face()] * 2)
    upright = next(Recording(path).pictures())
    picture = next(Recording(rotated(path, tmp_path / "turned.mp4", degrees)).pictures())
    assert upright is not None
    assert picture is not None
    assert np.array_equal(picture, np.rot90(upright, -degrees // 90))


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    picture = next(
        Recording(
            write_clip(tmp_path / "wide.mp4", [np.full((480, 1280, 3), 80, np.uint8)])
        ).pictures()
    )
    assert picture is not None
    assert picture.shape == (240, 640, 3)


def test_a_small_second_stream_is_not_taken(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "two.mkv", [plain(200)] * 5, more_pictures=[plain(20)[::4, ::4]] * 5
    )
    assert levels(Recording(path)) == [200] * 5


def test_limits(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", [plain(20)] * 10)
    with pytest.raises(
        CorrKDError,
        match=r"clip.mp4: pictures of 320 x 240 pixels, and 70,000 are allowed; scale it",
    ):
        Recording(path, Limits(pixels=70_000))
    with pytest.raises(CorrKDError, match=r"clip.mp4: lasts 1 s, and 0 s are allowed; cut it"):
        Recording(path, Limits(seconds=0.4))


def test_a_file_without_a_duration_is_measured(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", [plain(20)] * 10)
    data = path.read_bytes()
    offset = data.index(b"\x44\x89")  # Matroska's duration becomes an element that readers skip
    path.write_bytes(data[:offset] + b"\x44\x88" + data[offset + 2 :])
    assert Recording(path).seconds == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("noise.mp4", bytes(range(256)) * 40),
        ("empty.wav", b""),
        ("text.mp4", b"not a video at all\n" * 20),
        ("list.mp4", b"#EXTM3U\n#EXTINF:10,\nsecret.ts\n#EXT-X-ENDLIST\n"),
        ("script.mkv", b"ffconcat version 1.0\nfile secret.mp4\n"),
        ("picture.mp4", b"\x89PNG\r\n\x1a\n" + bytes(100)),
    ],
)
def test_files_that_are_no_recordings_are_refused(
    tmp_path: Path, name: str, content: bytes
) -> None:
    write_clip(tmp_path / "secret.mp4", [plain(9)])
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CorrKDError, match=f"{name}: cannot be decoded .*download it again"):
        Recording(path)


def test_a_truncated_recording_is_refused_or_ends_early(tmp_path: Path) -> None:
    intact = write_clip(
        tmp_path / "whole.mp4", [with_face(0.3 + 0.02 * i) for i in range(20)], tone(2.0)
    )
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(intact.read_bytes()[:-2000])  # its index is at the end
    with pytest.raises(CorrKDError, match=r"cut.mp4: cannot be decoded"):
        Recording(cut)
    matroska = write_clip(tmp_path / "whole.mkv", [with_face(0.3 + 0.02 * i) for i in range(20)])
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(matroska.read_bytes()[: matroska.stat().st_size // 2])
    visible = [picture is not None for picture in Recording(cut).pictures()]
    assert visible[0]
    assert not visible[-1]


def test_damaged_packets_are_counted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.flac", sound=tone(3.0))
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    damage = rng.integers(9000, len(data), 4000)
    for offset in damage:
        data[offset] = rng.integers(256)
    path.write_bytes(data)
    with pytest.raises(CorrKDError, match=r"clip.flac: .*damaged"):
        list(Recording(path).sound())


@pytest.mark.parametrize("seed", range(20))
def test_damage_anywhere_gives_frames_or_an_error(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = write_clip(
        tmp_path / f"clip.{'mp4' if seed % 2 else 'mkv'}", [with_face()] * 6, tone(0.6)
    )
    data = bytearray(path.read_bytes())
    for offset in rng.integers(0, len(data), 1 + 5 * seed):
        data[offset] = rng.integers(256)
    path.write_bytes(data)
    with suppress(CorrKDError):  # and nothing else
        recording = Recording(path, Limits(seconds=60))
        assert len(list(recording.pictures())) == recording.num_steps
        assert np.isfinite(sound(recording)[0]).all()


def test_a_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        cover = container.add_stream("png", rate=1)
        cover.height, cover.width, cover.pix_fmt = 24, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic.value
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for packet in cover.encode(
            av.VideoFrame.from_ndarray(np.zeros((24, 32, 3), np.uint8), format="rgb24")
        ):
            container.mux(packet)
        frame = av.AudioFrame.from_ndarray(tone(0.5)[None, :8000], format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    recording = Recording(path)
    assert (recording.has_video, recording.has_audio) == (False, True)
