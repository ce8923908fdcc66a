"""A folder of clips to one dataset file: clip by clip into files of their own, so that a run which
was stopped goes on, then together.

The files of the clips lie in a hidden folder beside the output, each under a name that recording,
transcript and extractors make: other labels change none of them. They stay, for the next run.
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
CLIPS_ON_GPU = 16  # that pass through models together
# seconds after which a file that another machine wrote is seen here; network file systems remember
# what was absent
SEEN_AFTER = 90.0
OnClip = Callable[[ClipRow, str | None], None]
"""Called after each clip, with the error's line, None where there is none."""


@dataclass(frozen=True)
class ClipTask:
    """A clip to be extracted, by any process or machine that sees its files.

    Attributes:
        clip: with an absolute path.
        file: of its features.
        settings: of its features.
        made: what makes it where the command runs.
    """

    clip: ClipRow
    file: Path
    settings: FeatureSettings
    made: Description


@dataclass
class ModalityCounts:
    """How much of a modality there is.

    Attributes:
        frames, present: in all clips together.
        reasons: how many frames are missing, by reason.
        clips_without: how many clips have no frame of it that is present.
    """

    frames: int = 0
    present: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    clips_without: int = 0


@dataclass
class Extracted:
    """What came of a folder.

    Attributes:
        clips: that are in the file.
        seconds: of recordings in all.
        modalities: by name.
        left_out: modalities of which no clip has a frame, which the file therefore lacks.
        failures: by the clip's name, the error's line.
        failures_file: where they are listed; None where there are none.
        cached: clips that an earlier run had done.
    """

    clips: int
    seconds: float
    modalities: dict[str, ModalityCounts]
    left_out: list[str]
    failures: dict[str, str]
    failures_file: Path | None
    cached: int


class FolderExtraction:
    """The work on a folder of clips.

    Args:
        folder: that holds the clips.
        clips: with their labels and facts.
        out: the .h5 file.
        settings: of their features.
    """

    def __init__(self, folder: Path, clips: ClipList, out: Path, settings: FeatureSettings) -> None:
        self.folder, self.clips, self.out, self.settings = folder, clips, out, settings
        self.made = describe(settings)
        self.cache = out.with_name(f".{out.name}.clips")
        self.failures: dict[str, str] = {}

    @cached_property
    def files(self) -> list[Path | None]:
        """The file of each clip's features; None of a clip that cannot be read."""
        return [self._file_of(clip) for clip in self.clips.rows]

    @property
    def waiting(self) -> list[int]:
        """Indices of the clips that are still to do; those of one content once."""
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
            jobs: processes; changes no result.
            batch: clips that pass through models together, which changes results by rounding
                alone; None: 1 on a CPU, 16 on a GPU.
            backend: "joblib": on this machine; "ray": on a cluster, whose machines share the clips
                and the output's folder.
            address: of the cluster; None: a Ray of this machine's own.
            on_clip: called as clips are done.

        Raises:
            CorrKDError: no clip can be read, a file cannot be written, or there is no cluster.
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
            errors |= self._unseen(
                [self.files[index] for index in waiting if self.files[index] not in errors]
            )
            for clip, file in zip(
                self.clips.rows, self.files, strict=True
            ):  # several clips may have one content
                if file in errors:
                    self.failures[clip.title] = errors[file]
            return self._written(cached)

    def _file_of(self, clip: ClipRow) -> Path | None:
        try:
            check_clip(self.folder, clip)
            key = _key(
                clip, self.settings, json.dumps(self.made.model_dump(mode="json"), sort_keys=True)
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
        """Yield the index of each clip that was to do with its error's line, None where there is
        none, as they are done.
        """
        batches = [waiting[at : at + batch] for at in range(0, len(waiting), batch)]
        if backend == "joblib" and (jobs == 1 or len(waiting) <= 1):
            for indices in batches:
                yield from zip(indices, _extract(self._tasks(indices)), strict=True)
            return
        work = _extract if backend == "joblib" else _extract_on_cluster
        gpus = 1 if self.settings.device.startswith("cuda") else 0
        with workers(work, jobs, backend=backend, address=address, gpus=gpus) as submit:
            while batches:
                lost: list[
                    int
                ] = []  # clips of a batch that was lost: one of them did it, so each goes alone
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
        path = (
            None if clip.path is None else clip.path.absolute()
        )  # a worker may run in another folder
        return ClipTask(replace(clip, path=path), file.absolute(), self.settings, self.made)

    def _unseen(self, files: Sequence[Path | None]) -> dict[Path | None, str]:
        """Return an error's line for each file that a worker wrote and that does not appear
        here.
        """
        deadline = time.monotonic() + SEEN_AFTER
        while (
            unseen := [file for file in files if file and not file.exists()]
        ) and time.monotonic() < deadline:
            time.sleep(1)
        clips = {self.files[index]: clip for index, clip in enumerate(self.clips.rows)}
        return {
            file: f"{clips[file].title}: extracted, but its features are not in {self.cache}; "
            f"give an --out that all machines share"
            for file in unseen
        }

    def _written(self, cached: int) -> Extracted:
        """Write the file from those of the clips, and the list of failures."""
        kept = [
            index for index, file in enumerate(self.files) if file is not None and file.exists()
        ]
        names = [clip.title for clip in self.clips.rows]
        self.failures = {name: self.failures[name] for name in names if name in self.failures}
        failed = _write_failures(self.out, self.failures)
        if not kept:
            where = f"; {failed} lists the errors" if failed else ""
            raise CorrKDError(
                f"{self.folder}: none of {len(self.clips.rows)} clips could be read{where}"
            )
        lengths: dict[str, list[int]] = {m: [] for m in self.settings.extractors}
        counts = {m: ModalityCounts() for m in self.settings.extractors}
        seconds = 0.0
        for index in kept:
            features = self._load(index)
            seconds += features.seconds
            for m, frames in features.frames.items():
                lengths[m].append(len(frames.present))
                _count(counts[m], frames)
        left_out = [m for m, count in counts.items() if not count.present]
        if len(left_out) == len(lengths):
            raise CorrKDError(
                f"{self.folder}: no words, no sound and no face in any clip; there is nothing to "
                "learn from"
            )
        write_dataset(
            self.out,
            [self.clips.rows[index] for index in kept],
            self.clips.columns,
            {m: length for m, length in lengths.items() if m not in left_out},
            lambda number: dict(self._load(kept[number]).frames),
            self.made,
        )
        return Extracted(len(kept), seconds, counts, left_out, dict(self.failures), failed, cached)

    def _load(self, index: int) -> ClipFeatures:
        file = self.files[index]
        assert file is not None
        return load_clip(file)


def check_output(out: Path, *, overwrite: bool) -> None:
    """Raise CorrKDError where the output's name is no .h5 file's, or it is there and is not to be
    replaced.
    """
    if out.suffix != ENDING:
        raise CorrKDError(f"{out}: the output's name must end in {ENDING}")
    check_new(out, overwrite=overwrite)


def _key(clip: ClipRow, settings: FeatureSettings, made: str) -> str:
    """Return a name that whatever decides a clip's features makes: the recording, the transcript,
    the settings, and what extracts them.
    """
    digest = hashlib.sha256(f"{made}\0{settings.limits}\0{clip.text}\0".encode())
    transcript = None if clip.text.strip() else transcript_file(clip.path)
    for path in (clip.path, transcript):
        if path is not None:
            digest.update(f"{path.suffix.lower()} {sha256_of(path)}\0".encode())
    return digest.hexdigest()[:40]


def _extract_on_cluster(tasks: Sequence[ClipTask]) -> list[str | None]:
    """Extract clips on a machine that may have other versions than the one where the command runs.
    Returns as `_extract`.
    """
    try:
        made = describe(tasks[0].settings)
    except CorrKDError as error:
        problem = f": {error}"
    else:
        if made == tasks[0].made:
            return _extract(tasks)
        here, expected = made.libraries, tasks[0].made.libraries
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
    """Extract clips into their files. Returns an error's line for each, None where there is
    none.
    """
    if len(tasks) > 1:
        clips = [(task.clip.path, task.clip.text) for task in tasks]
        # Where a clip of several cannot be read, each is read alone, and that one is named.
        with suppress(CorrKDError, *CONTENT_ERRORS):
            for task, features in zip(
                tasks, extract_together(clips, tasks[0].settings), strict=True
            ):
                save_clip(task.file, features)
            return [None] * len(tasks)
    return [_extract_alone(task) for task in tasks]


def _extract_alone(task: ClipTask) -> str | None:
    clip = task.clip
    try:
        features = extract(clip.path, task.settings, clip.text)
    except CorrKDError as error:
        return str(error)
    except CONTENT_ERRORS as error:  # of a library, on unforeseen contents
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


def summary(done: Extracted, made: Description) -> str:
    """Return in lines what there is of each modality, how much is missing and why, and what was
    left out.
    """
    lines = [
        f"{done.clips} clips, {done.seconds:,.0f} s of recordings"
        + (f", {done.cached} clips done before" if done.cached else "")
    ]
    for m, counts in done.modalities.items():
        extractor = made.modalities[m]
        missing = counts.frames - counts.present
        parts = [
            f"  {m}: {extractor['name']} {extractor['version']}, {len(extractor['columns'])} wide",
            f"{counts.frames:,} frames",
            f"{100 * missing / max(1, counts.frames):.1f} % missing{_why(counts.reasons)}",
        ]
        if counts.clips_without:
            parts.append(f"nothing of it in {counts.clips_without} clips")
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
    """Write a clip's features, whole or not at all."""
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
        with temporary.open("wb") as file:  # given a path, NumPy would add an ending
            np.savez_compressed(file, **arrays)

    write_with(path, write)


def load_clip(path: Path) -> ClipFeatures:
    """Return what `save_clip` wrote. Raises CorrKDError where the file is damaged."""
    advice = f"{path}: damaged; delete it, and its clip is extracted again"
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
