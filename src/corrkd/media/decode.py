"""Reading a recording as a stream: pictures at equal time steps and mono sound at 16 kHz. Memory
does not grow with its length.

Recordings are untrusted: only common containers are opened, references in them are not followed,
sizes and durations are bounded, and errors of FFmpeg become one line. FFmpeg comes with PyAV (extra
`[media]`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import BoolArray, FloatArray
from corrkd.errors import CorrKDError
from corrkd.memory import size_text

if TYPE_CHECKING:
    from av.container import InputContainer

Picture = npt.NDArray[np.uint8]
"""(height, width, 3) RGB."""

RATE = 16_000  # samples of sound per second
STEP = 0.1  # seconds of a frame of audio or vision
STEP_SAMPLES = round(STEP * RATE)
BLOCK = 100 * STEP_SAMPLES  # samples of sound in a block
LONGEST_SIDE = 640  # pixels; larger pictures are scaled down
LARGEST_FILE = 64 << 30  # bytes
SLOWEST_RATE, FASTEST_RATE = 1_000, 1_000_000  # samples per second that a file may declare
LARGEST_SAMPLE = 8.0  # of float samples; full scale is 1
JUMP = 0.1  # seconds: larger gaps are not rounding errors of timestamps
TOLERATED = 0.05  # fraction of packets that may be damaged

VIDEO_ENDINGS = (
    ".mp4",
    ".mov",
    ".m4v",
    ".mkv",
    ".webm",
    ".avi",
    ".flv",
    ".wmv",
    ".mpg",
    ".mpeg",
    ".ts",
    ".3gp",
)
AUDIO_ENDINGS = (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aiff", ".amr")
# Containers that hold their own data; not the playlists and scripts of FFmpeg, which refer to other
# files or hosts.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegts,mpegvideo,h264,hevc,"
    "wav,w64,mp3,flac,ogg,aac,aiff,au,amr,caf"
)


@dataclass(frozen=True)
class Limits:
    """How large a recording may be.

    Attributes:
        pixels: width x height of a picture; the default allows 8K.
        seconds: duration.
    """

    pixels: int = 8192 * 4608
    seconds: float = 4 * 3600.0


class Sound(NamedTuple):
    """A block of sound.

    Attributes:
        samples: (n,) float32 at 16 kHz, -1 to 1 at full scale; 0 where the stream has no sound.
        exists: (n,) whether the stream has sound at each sample.
    """

    samples: FloatArray
    exists: BoolArray


class Recording:
    """A file with video, audio or both. Each iteration reads it again.

    Args:
        path: the file.
        limits: how large it may be.

    Raises:
        CorrKDError: if the file is not a recording, is damaged, or exceeds a limit.

    Attributes:
        seconds: duration of the container, in seconds.
        has_video: whether there is a video stream; a cover picture does not count.
        has_audio: whether there is an audio stream.
    """

    def __init__(self, path: Path, limits: Limits | None = None) -> None:
        self.path, self.limits = path, limits or Limits()
        self._check_file()
        with self._opened() as container:
            video, audio = _video_stream(container), _best(container, "audio")
            self.has_video, self.has_audio = video is not None, audio is not None
            if video is None and audio is None:
                raise CorrKDError(f"{path.name}: has neither video nor audio; give a recording")
            if video is not None:
                self._check_size(video.codec_context.width, video.codec_context.height)
            if (
                audio is not None
                and not SLOWEST_RATE <= audio.codec_context.sample_rate <= FASTEST_RATE
            ):
                raise CorrKDError(
                    f"{path.name}: its audio declares {audio.codec_context.sample_rate} samples "
                    f"a second; convert it"
                )
            self._origin = (container.start_time or 0) / 1e6
            self.seconds = (
                container.duration / 1e6 if container.duration else self._measured(container)
            )
        if not 0 < self.seconds <= self.limits.seconds:
            raise CorrKDError(
                f"{path.name}: lasts {self.seconds:,.0f} s, and {self.limits.seconds:,.0f} s are "
                f"allowed; cut it into clips"
                if self.seconds > 0
                else f"{path.name}: has no duration: empty or damaged; record or download it again"
            )

    @property
    def num_steps(self) -> int:
        """Number of frames of `STEP` seconds that cover the recording."""
        return max(1, math.ceil(self.seconds / STEP - 1e-6))

    def pictures(self) -> Iterator[Picture | None]:
        """Yield the picture shown at the middle of each step, upright and at most `LONGEST_SIDE`
        wide or high.

        A picture that is shown for several steps is the same object. None before the stream begins
        and after it ends.

        Raises:
            CorrKDError: if the stream is damaged or a picture exceeds the limit.
        """
        displayed: _Shown | None = None
        index = 0
        with self._opened() as container:
            stream = _video_stream(container)
            if stream is not None:
                stream.codec_context.options = {"max_pixels": str(self.limits.pixels)}
                usual = 1 / float(stream.average_rate) if stream.average_rate else STEP
                aspect = float(stream.sample_aspect_ratio or 1)
                for frame in self._frames(container, stream):
                    self._check_size(frame.width, frame.height)
                    before = 0.0 if displayed is None else displayed.start
                    start = (
                        before + usual
                        if frame.time is None
                        else max(before, frame.time - self._origin)
                    )
                    while index < self.num_steps and self._middle(index) < start:
                        yield None if displayed is None else displayed.picture()
                        index += 1
                    if index == self.num_steps:
                        return
                    seconds = float(frame.duration * frame.time_base) if frame.duration else usual
                    displayed = _Shown(frame, start, start + seconds, aspect)
        for step in range(index, self.num_steps):
            yield (
                displayed.picture()
                if displayed is not None and self._middle(step) < displayed.end
                else None
            )

    def sound(self, block: int = BLOCK) -> Iterator[Sound]:
        """Yield the sound of the whole recording, mixed to one channel, `block` samples at a time.

        Raises:
            CorrKDError: if the stream is damaged.
        """
        total, start = round(self.seconds * RATE), 0
        sound = _silence(min(block, total))
        for position, samples in self._pieces():
            samples = samples[max(0, start - position) :]  # overlapping sound is used once
            position = max(position, start)
            while len(samples) and position < total:
                if position >= start + len(sound.samples):
                    yield sound
                    start += len(sound.samples)
                    sound = _silence(min(block, total - start))
                    continue
                inside = position - start
                count = min(len(samples), len(sound.samples) - inside)
                sound.samples[inside : inside + count] = samples[:count]
                sound.exists[inside : inside + count] = True
                samples, position = samples[count:], position + count
            if position >= total:
                break
        while start < total:
            yield sound
            start += len(sound.samples)
            sound = _silence(min(block, total - start))

    def _middle(self, index: int) -> float:
        """Return the centre of a step in seconds. The last step may be shorter."""
        return (index * STEP + min((index + 1) * STEP, self.seconds)) / 2

    def _pieces(self) -> Iterator[tuple[int, FloatArray]]:
        """Yield (position of the first sample at 16 kHz, samples)."""
        import av

        resampler: Any = None
        position = expected = 0
        setup: tuple[Any, ...] = ()
        with self._opened() as container:
            stream = _best(container, "audio")
            if stream is None:
                return
            for frame in self._frames(container, stream):
                start = (
                    expected if frame.time is None else round((frame.time - self._origin) * RATE)
                )
                kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                if resampler is None or kind != setup or abs(start - expected) > JUMP * RATE:
                    if resampler is not None:
                        yield position, _samples(resampler.resample(None))
                    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
                    position, setup = start, kind
                samples = _samples(resampler.resample(frame))
                if position + len(samples) > 0:
                    yield max(position, 0), samples[max(0, -position) :]
                position += len(samples)
                expected = start + round(frame.samples * RATE / frame.sample_rate)
            if resampler is not None:
                yield max(position, 0), _samples(resampler.resample(None))

    def _frames(self, container: InputContainer, stream: Any) -> Iterator[Any]:
        """Yield the decoded frames of a stream. A few damaged packets are skipped."""
        import av

        kind, packets, damaged = stream.type, 0, 0
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            packets += packet.size > 0
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                damaged += 1
                continue
            yield from (frame for frame in frames if not frame.is_corrupt)
        if damaged > max(1, TOLERATED * packets) or (packets and damaged == packets):
            raise CorrKDError(
                f"{self.path.name}: {damaged} of {packets} packets of its {kind} are damaged; "
                f"record or download it again"
            )

    @contextmanager
    def _opened(self) -> Iterator[InputContainer]:
        try:
            import av
        except ImportError:
            raise CorrKDError("recordings need PyAV: pip install 'corrkd[media]'") from None

        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        try:
            # Without "file:" a name such as "concat:a|b" would be a protocol.
            with av.open(
                f"file:{self.path}", options=options, metadata_errors="replace"
            ) as container:
                yield container
        except (av.FFmpegError, OSError, ValueError, OverflowError) as error:
            reason = (
                getattr(error, "strerror", None) or str(error) or type(error).__name__
            ).splitlines()[0][:80]
            raise CorrKDError(
                f"{self.path.name}: cannot be decoded ({reason}): damaged, or no recording; "
                f"record or download it again"
            ) from None

    def _check_file(self) -> None:
        if not self.path.exists():
            raise CorrKDError(f"{self.path.name}: no such file")
        if not self.path.is_file():
            raise CorrKDError(f"{self.path.name}: not a file; give a recording")
        if (size := self.path.stat().st_size) > LARGEST_FILE:
            raise CorrKDError(
                f"{self.path.name}: {size_text(size)}; at most {size_text(LARGEST_FILE)} are "
                f"read; cut it"
            )

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.limits.pixels:
            raise CorrKDError(
                f"{self.path.name}: pictures of {width} x {height} pixels, and "
                f"{self.limits.pixels:,} are allowed; scale it down"
            )

    def _measured(self, container: InputContainer) -> float:
        """Return the end of the last packet in seconds, for containers without a duration."""
        end = 0.0
        for packet in container.demux():
            at = packet.pts if packet.pts is not None else packet.dts
            if at is not None and packet.time_base is not None:
                end = max(
                    end, float((at + (packet.duration or 0)) * packet.time_base) - self._origin
                )
            if end > self.limits.seconds:
                break
        return end


class _Shown:
    """A decoded frame with its start and end; converted to a picture on first use."""

    def __init__(self, frame: Any, start: float, end: float, aspect: float) -> None:
        self.start, self.end = start, end
        self._frame, self._aspect = frame, aspect
        self._picture: Picture | None = None

    def picture(self) -> Picture:
        if self._picture is None:
            width, height = self._frame.width * self._aspect, float(self._frame.height)
            scale = min(1.0, LONGEST_SIDE / max(width, height))
            size = max(2, round(width * scale)), max(2, round(height * scale))
            # counterclockwise, as the display matrix has it
            turns = round((self._frame.rotation or 0) / 90)
            pixels = self._frame.reformat(*size, format="rgb24").to_ndarray()
            self._picture = np.ascontiguousarray(np.rot90(pixels, turns))
            self._frame = None
        return self._picture


def _video_stream(container: InputContainer) -> Any:
    """Return the best video stream that is not a cover picture, or None."""
    import av

    best = _best(container, "video")
    streams = [best, *container.streams.video] if best is not None else []
    cover = av.stream.Disposition.attached_pic
    return next((stream for stream in streams if not stream.disposition & cover), None)


def _best(container: InputContainer, kind: Any) -> Any:
    """Return FFmpeg's best stream of a kind among those that can be decoded, or None."""
    stream = container.streams.best(kind)
    return stream if stream is not None and stream.codec_context is not None else None


def _silence(count: int) -> Sound:
    return Sound(np.zeros(count, np.float32), np.zeros(count, bool))


def _samples(frames: list[Any]) -> FloatArray:
    """Return (n,) finite samples of resampled frames."""
    arrays = [frame.to_ndarray().reshape(-1) for frame in frames]
    samples = np.concatenate(arrays) if arrays else np.zeros(0, np.float32)
    return np.clip(np.nan_to_num(samples), -LARGEST_SAMPLE, LARGEST_SAMPLE)
