"""Extracting a folder of clips to one dataset file. Each clip is first written to its own file, so
that an interrupted run can continue; then all are joined.

The files of the clips are in a hidden folder beside the output and stay there for the next run.
Their names are hashes of recording, transcript and extractors: a clip whose other labels change is
not extracted again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from corrkd.csv_files import write_csv
from corrkd.data.readers.bounds import most_unpacked
from corrkd.data.readers.containers import unpacked_npz
from corrkd.errors import CorrKDError
from corrkd.files import check_new, exclusive, remove_parts, sha256_of, write_with
from corrkd.media.dataset_file import write_dataset
from corrkd.media.extractors.base import Frames
from corrkd.media.features import (
    ClipFeatures,
    Description,
    FeatureSettings,
    describe,
    extract,
    extract_together,
)
from corrkd.media.labels import ClipList, ClipRow, check_clip
from corrkd.media.transcripts import transcript_file
from corrkd.parsing import CONTENT_ERRORS, parse_json
from corrkd.workers import Backend, Lost, each_done, workers

ENDING = ".h5"
ABOUT = "about"
CLIPS_ON_GPU = 16  # clips per batch
# seconds to wait for a file that another machine wrote: network file systems cache its absence
FILE_WAIT_SECONDS = 90.0
OnClip = Callable[[ClipRow, str | None], None]
"""Called after each clip with its error line, or None."""


@dataclass(frozen=True)
class ClipTask:
    """A clip to extract, in any process or on any machine that can read its files.

    Attributes:
        clip: with an absolute path.
        file: output file for its features.
        settings: which features to extract.
        description: of the extractors on the machine where the command runs.
    """

    clip: ClipRow
    file: Path
    settings: FeatureSettings
    description: Description


@dataclass
class ModalityCounts:
    """Counts of the frames of a modality.

    Attributes:
        frames, present: number of frames, and of those that are present, in all clips together.
        reasons: number of missing frames, by reason.
        clips_without: number of clips without a present frame.
    """

    frames: int = 0
    present: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    clips_without: int = 0


@dataclass
class Extracted:
    """The result of extracting a folder.

    Attributes:
        clips: number of clips in the file.
        seconds: total duration of the recordings, in seconds.
        modalities: counts by modality.
        left_out: modalities without a present frame in any clip; the file does not have them.
        failures: error lines by title of the clip.
        failures_file: file that lists them; None if there are none.
        cached: number of clips that an earlier run had extracted.
    """

    clips: int
    seconds: float
    modalities: dict[str, ModalityCounts]
    left_out: list[str]
    failures: dict[str, str]
    failures_file: Path | None
    cached: int


class FolderExtraction:
    """The extraction of a folder of clips.

    Args:
        folder: folder with the clips.
        clips: its clips, with their labels.
        out: the output file (.h5).
        settings: which features to extract.
    """

    def __init__(self, folder: Path, clips: ClipList, out: Path, settings: FeatureSettings) -> None:
        self.folder, self.clips, self.out, self.settings = folder, clips, out, settings
        self.description = describe(settings)
        self.cache = out.with_name(f".{out.name}.clips")
        self.failures: dict[str, str] = {}

    @cached_property
    def files(self) -> list[Path | None]:
        """The file for each clip's features; None for a clip that cannot be read."""
        return [self._file_of(clip) for clip in self.clips.rows]

    @property
    def waiting(self) -> list[int]:
        """Indices of the clips that are not extracted yet; of clips with equal content, only the
        first.
        """
        first: dict[Path, int] = {}
        for index, file in enumerate(self.files):
            if file is not None and not file.exists():
                first.setdefault(file, index)
        return list(first.values())

    def run(
        self,
        *,
        jobs: int = 1,
        batch: int | None = None,
        backend: Backend = "joblib",
        address: str | None = None,
        on_clip: OnClip | None = None,
    ) -> Extracted:
        """Extract the remaining clips, and write the file.

        Args:
            jobs: number of processes; does not change the results.
            batch: number of clips that pass through the models together, which changes results
                only by rounding; None: 1 on a CPU, 16 on a GPU.
            backend: "joblib": this machine; "ray": a cluster whose machines share the folders of
                the clips and the output.
            address: of the cluster; None: a local Ray on this machine.
            on_clip: called after each clip with its error line, or None.

        Raises:
            CorrKDError: if no clip can be read, a file cannot be written, or the cluster cannot be
                reached.
        """
        with exclusive(
            self.cache,
            f"{self.out}: another process is extracting it; wait for it or choose another file",
        ):
            remove_parts(self.cache)
            waiting = self.waiting
            cached = sum(file is not None for file in self.files) - len(waiting)
            errors: dict[Path | None, str] = {}
            for index, error in self._results(
                waiting, jobs, batch or self._usual_batch, backend, address
            ):
                if error is not None:
                    errors[self.files[index]] = error
                if on_clip is not None:
                    on_clip(self.clips.rows[index], error)
            errors |= self._not_found(
                [self.files[index] for index in waiting if self.files[index] not in errors]
            )
            for clip, file in zip(self.clips.rows, self.files, strict=True):
                if file in errors:  # several clips may have the same content
                    self.failures[clip.title] = errors[file]
            return self._join(cached)

    def _file_of(self, clip: ClipRow) -> Path | None:
        try:
            check_clip(self.folder, clip)
            key = _key(
                clip,
                self.settings,
                json.dumps(self.description.model_dump(mode="json"), sort_keys=True),
            )
        except (CorrKDError, OSError) as error:
            strerror = getattr(error, "strerror", None)
            self.failures[clip.title] = f"{clip.name}: {strerror}" if strerror else str(error)
            return None
        return self.cache / f"{key}.npz"

    @property
    def _usual_batch(self) -> int:
        return 1 if self.settings.device == "cpu" else CLIPS_ON_GPU

    def _results(
        self, waiting: Sequence[int], jobs: int, batch: int, backend: Backend, address: str | None
    ) -> Iterator[tuple[int, str | None]]:
        """Extract clips, and yield (index, error line or None) of each as it ends."""
        batches = [waiting[at : at + batch] for at in range(0, len(waiting), batch)]
        if backend == "joblib" and (jobs == 1 or len(waiting) <= 1):
            for indices in batches:
                yield from zip(indices, _extract(self._tasks(indices)), strict=True)
            return
        work = _extract if backend == "joblib" else _extract_on_cluster
        gpus = 1 if self.settings.device.startswith("cuda") else 0
        with workers(work, jobs, backend=backend, address=address, gpus=gpus) as submit:
            while batches:
                lost: list[int] = []  # clips of lost batches; they are run again, each alone
                tasks = [self._tasks(indices) for indices in batches]
                for number, errors in each_done(tasks, submit, jobs):
                    indices = batches[number]
                    if not isinstance(errors, Lost):
                        yield from zip(indices, errors, strict=True)
                    elif len(indices) > 1:
                        lost += indices
                    else:
                        yield indices[0], f"{self.clips.rows[indices[0]].title}: {errors}"
                batches = [[index] for index in lost]

    def _tasks(self, indices: Sequence[int]) -> list[ClipTask]:
        return [self._task(index) for index in indices]

    def _task(self, index: int) -> ClipTask:
        clip, file = self.clips.rows[index], self.files[index]
        assert file is not None, "a clip that is waiting has a file"
        # A worker may run in another folder.
        path = None if clip.path is None else clip.path.absolute()
        return ClipTask(replace(clip, path=path), file.absolute(), self.settings, self.description)

    def _not_found(self, files: Sequence[Path | None]) -> dict[Path | None, str]:
        """Return an error line for each file that a worker wrote but that cannot be found here."""
        deadline = time.monotonic() + FILE_WAIT_SECONDS
        while (
            absent := [file for file in files if file and not file.exists()]
        ) and time.monotonic() < deadline:
            time.sleep(1)
        clips = {self.files[index]: clip for index, clip in enumerate(self.clips.rows)}
        return {
            file: f"{clips[file].title}: extracted, but its features are not in {self.cache}; "
            f"give an --out that all machines share"
            for file in absent
        }

    def _join(self, cached: int) -> Extracted:
        """Join the files of the clips to the output, and write the list of failures."""
        readable = [
            index for index, file in enumerate(self.files) if file is not None and file.exists()
        ]
        names = [clip.title for clip in self.clips.rows]
        self.failures = {name: self.failures[name] for name in names if name in self.failures}
        failed = _write_failures(self.out, self.failures)
        if not readable:
            where = f"; {failed} lists the errors" if failed else ""
            raise CorrKDError(
                f"{self.folder}: none of {len(self.clips.rows)} clips could be read{where}"
            )
        lengths: dict[str, list[int]] = {m: [] for m in self.settings.extractors}
        counts = {m: ModalityCounts() for m in self.settings.extractors}
        seconds = 0.0
        for index in readable:
            features = self._load(index)
            seconds += features.seconds
            for m, frames in features.frames.items():
                lengths[m].append(len(frames.present))
                _count(counts[m], frames)
        left_out = [m for m, count in counts.items() if not count.present]
        if len(left_out) == len(lengths):
            raise CorrKDError(
                f"{self.folder}: no words, no sound and no face in any clip; there are no features "
                "to write"
            )
        write_dataset(
            self.out,
            [self.clips.rows[index] for index in readable],
            self.clips.columns,
            {m: length for m, length in lengths.items() if m not in left_out},
            lambda number: dict(self._load(readable[number]).frames),
            self.description,
        )
        return Extracted(
            len(readable), seconds, counts, left_out, dict(self.failures), failed, cached
        )

    def _load(self, index: int) -> ClipFeatures:
        file = self.files[index]
        assert file is not None
        return load_clip(file)


def check_output(out: Path, *, overwrite: bool) -> None:
    """Raise CorrKDError if the output's name does not end in .h5, or if it exists and must not be
    overwritten.
    """
    if out.suffix != ENDING:
        raise CorrKDError(f"{out}: the output's name must end in {ENDING}")
    check_new(out, overwrite=overwrite)


def _key(clip: ClipRow, settings: FeatureSettings, description: str) -> str:
    """Return a hash of all that decides a clip's features: the recording, the transcript, the
    settings and the description of the extractors.
    """
    digest = hashlib.sha256(f"{description}\0{settings.limits}\0{clip.text}\0".encode())
    transcript = None if clip.text.strip() else transcript_file(clip.path)
    for path in (clip.path, transcript):
        if path is not None:
            digest.update(f"{path.suffix.lower()} {sha256_of(path)}\0".encode())
    return digest.hexdigest()[:40]


def _extract_on_cluster(tasks: Sequence[ClipTask]) -> list[str | None]:
    """Extract clips on a machine of a cluster. Returns error lines if its versions differ from
    those of the machine where the command runs.
    """
    try:
        description = describe(tasks[0].settings)
    except CorrKDError as error:
        problem = f": {error}"
    else:
        if description == tasks[0].description:
            return _extract(tasks)
        here, expected = description.libraries, tasks[0].description.libraries
        different = [
            f"{name} {here.get(name)}, not {expected[name]}"
            for name in expected
            if here.get(name) != expected[name]
        ]
        problem = f" has {', '.join(different) or 'other extractors'}; install the same everywhere"
    return [
        f"{task.clip.title}: the machine {platform.node()} of the cluster{problem}"
        for task in tasks
    ]


def _extract(tasks: Sequence[ClipTask]) -> list[str | None]:
    """Extract clips to their files. Returns an error line or None for each."""
    if len(tasks) > 1:
        clips = [(task.clip.path, task.clip.text) for task in tasks]
        # If one of the clips cannot be read, each is read alone, which finds the one.
        with suppress(CorrKDError, *CONTENT_ERRORS):
            for task, features in zip(
                tasks, extract_together(clips, tasks[0].settings), strict=True
            ):
                save_clip(task.file, features)
            return [None] * len(tasks)
    return [_extract_alone(task) for task in tasks]


def _extract_alone(task: ClipTask) -> str | None:
    """Extract a clip to its file. Returns an error line, or None."""
    clip = task.clip
    try:
        features = extract(clip.path, task.settings, clip.text)
    except CorrKDError as error:
        return str(error)
    except CONTENT_ERRORS as error:  # from a library, on unexpected contents
        reason = (str(error).splitlines() or [""])[0][:120]
        return str(
            CorrKDError(
                f"{clip.title}: cannot be read ({type(error).__name__}: {reason}); leave it out"
            )
        )
    save_clip(task.file, features)
    return None


def _write_failures(out: Path, failures: Mapping[str, str]) -> Path | None:
    path = out.with_name(f"{out.name}.failures.csv")
    if not failures:
        with suppress(FileNotFoundError):
            path.unlink()
        return None
    write_csv(path, pd.DataFrame({"file": list(failures), "error": list(failures.values())}))
    return path


def _count(counts: ModalityCounts, frames: Frames) -> None:
    counts.frames += len(frames.present)
    counts.present += int(frames.present.sum())
    counts.reasons.update(frames.missing)
    counts.clips_without += not frames.present.any()


def summary(done: Extracted, description: Description) -> str:
    """Return a summary of several lines: extractor, missing frames and reasons of each modality,
    and the clips that were left out.
    """
    lines = [
        f"{done.clips} clips, {done.seconds:,.0f} s of recordings"
        + (f", {done.cached} clips done before" if done.cached else "")
    ]
    for m, counts in done.modalities.items():
        extractor = description.modalities[m]
        missing = counts.frames - counts.present
        parts = [
            f"  {m}: {extractor['name']} {extractor['version']}, {len(extractor['columns'])} wide",
            f"{counts.frames:,} frames",
            f"{100 * missing / max(1, counts.frames):.1f} % missing{_why(counts.reasons)}",
        ]
        if counts.clips_without:
            parts.append(f"missing entirely in {counts.clips_without} clips")
        if m in done.left_out:
            parts.append("so it is left out of the file")
        lines.append(", ".join(parts))
    if done.failures_file is not None:
        lines.append(f"clips left out: {len(done.failures)}, listed in {done.failures_file}")
    return "\n".join(lines)


def _why(reasons: Counter[str]) -> str:
    counted = [f"{reason} {count:,}" for reason, count in reasons.most_common() if count]
    return f" ({', '.join(counted)})" if counted else ""


# --------------------------------------------------------------------------------------------------
# a clip's file


def save_clip(path: Path, features: ClipFeatures) -> None:
    """Write a clip's features atomically."""
    about = {
        "seconds": features.seconds,
        "transcript": features.transcript,
        "missing": {m: dict(frames.missing) for m, frames in features.frames.items()},
    }
    arrays: dict[str, Any] = {ABOUT: np.array(json.dumps(about))}
    for m, frames in features.frames.items():
        arrays |= {
            f"{m}.values": frames.values,
            f"{m}.present": frames.present,
            f"{m}.times": frames.times,
        }

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, NumPy would add a suffix
            np.savez_compressed(file, **arrays)

    write_with(path, write)


def load_clip(path: Path) -> ClipFeatures:
    """Return the features that `save_clip` wrote. Raises CorrKDError if the file is damaged."""
    advice = f"{path}: damaged; delete it, so that its clip is extracted again"
    try:
        arrays = unpacked_npz(path, path.name, most=most_unpacked(path))
        about = parse_json(str(arrays[ABOUT][()]), path)
        frames = {
            m: Frames(arrays[f"{m}.values"], arrays[f"{m}.present"], arrays[f"{m}.times"], missing)
            for m, missing in about["missing"].items()
        }
        return ClipFeatures(about["seconds"], about["transcript"], frames)
    except (CorrKDError, *CONTENT_ERRORS):
        raise CorrKDError(advice) from None
