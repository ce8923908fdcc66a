"""Writes small recordings: a moving face (matplotlib's sample picture), tones, and odd files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import av
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image

Picture = npt.NDArray[np.uint8]

RATE = 16_000
AUDIO_CODECS = {
    **dict.fromkeys((".wav", ".mkv", ".avi"), "pcm_s16le"),
    **{".flac": "flac", ".mp3": "libmp3lame", ".ogg": "libopus", ".webm": "libopus"},
}
SIZE = (240, 320)  # height and width of pictures


@cache
def portrait() -> Picture:
    """Return a real face, the middle of the picture's upper half, (300, 300, 3)."""
    path = Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").crop((90, 20, 420, 350)).resize((300, 300)))


def with_face(x: float = 0.5, y: float = 0.5, *, side: int = 200, angle: float = 0.0) -> Picture:
    """Return a grey picture with the face in it, its middle at (x, y) as shares of the picture;
    `angle` in degrees, counterclockwise.
    """
    canvas = Image.new("RGB", SIZE[::-1], (110, 120, 130))
    face = Image.fromarray(portrait()).resize((side, side)).rotate(angle, fillcolor=(110, 120, 130))
    canvas.paste(face, (round(x * SIZE[1] - side / 2), round(y * SIZE[0] - side / 2)))
    return np.array(canvas)


def plain(level: int) -> Picture:
    """Return a picture of one grey."""
    return np.full((*SIZE, 3), level, np.uint8)


def tone(seconds: float, hertz: float = 220.0, level: float = 0.3) -> npt.NDArray[np.float32]:
    """Return a tone with harmonics, as a voice has, at 16 kHz."""
    t = np.arange(round(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * hertz * k * t) / k for k in (1, 2, 3, 4))
    return (level * wave / 2).astype(np.float32)


def write_clip(
    path: Path,
    pictures: Sequence[Picture] = (),
    sound: npt.NDArray[np.float32] | None = None,
    *,
    times: Sequence[float] | None = None,
    rate: int = 10,
    sound_from: float = 0.0,
    more_pictures: Sequence[Picture] = (),
) -> Path:
    """Write a recording.

    Args:
        path: its ending selects the container.
        pictures: of the video; none: there is no video.
        sound: (n,) at 16 kHz; None: there is no audio.
        times: of each picture, in seconds; default: `rate` a second.
        rate: pictures a second.
        sound_from: second at which the sound begins.
        more_pictures: of a second stream of video.
    """
    audio_codec = AUDIO_CODECS.get(path.suffix, "aac")
    with av.open(str(path), "w") as container:
        streams = []
        for track in (pictures, more_pictures):
            if len(track):
                stream = container.add_stream(
                    "libvpx" if path.suffix == ".webm" else "mpeg4", rate=rate
                )
                stream.height, stream.width = track[0].shape[:2]
                stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
                if times is not None:
                    from fractions import Fraction

                    stream.codec_context.time_base = Fraction(1, 1000)
                streams.append((stream, track))
        audio = (
            None if sound is None else container.add_stream(audio_codec, rate=RATE, layout="mono")
        )
        for stream, track in streams:
            for index, picture in enumerate(track):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = (
                        round(times[index] * 1000),
                        stream.codec_context.time_base,
                    )
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if audio is not None and sound is not None:
            _write_sound(container, audio, sound, round(sound_from * RATE))
    return path


def _write_sound(
    container: object, stream: object, sound: npt.NDArray[np.float32], start: int
) -> None:
    from fractions import Fraction

    for offset in range(0, len(sound), 1024):
        chunk = np.clip(sound[offset : offset + 1024], -1, 1)
        samples = np.round(chunk * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, start + offset, Fraction(1, RATE)
        container.mux(stream.encode(frame))  # type: ignore[attr-defined]
    container.mux(stream.encode(None))  # type: ignore[attr-defined]


def rotated(path: Path, out: Path, degrees: int) -> Path:
    """Write an .mp4 that players rotate clockwise, by the matrix in its track's header."""
    data = bytearray(path.read_bytes())
    offset = data.index(b"tkhd") + 4 + 40  # version, flags, times, ids, layer, volume; of version 0
    cos, sin = round(np.cos(np.radians(degrees))), round(np.sin(np.radians(degrees)))
    matrix = np.array([cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30], ">i4")
    data[offset : offset + 36] = matrix.tobytes()
    out.write_bytes(data)
    return out
