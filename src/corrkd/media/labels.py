"""Listing clips and their labels: from a labels file, MMSA-FET's layout, or the recordings of a
folder.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from corrkd.data.groups import GROUPS
from corrkd.data.readers.names import SPLIT_NAMES
from corrkd.errors import CorrKDError
from corrkd.media.decode import AUDIO_ENDINGS, VIDEO_ENDINGS
from corrkd.media.transcripts import PLAIN
from corrkd.parsing import read_text

LARGEST = 256 << 20  # bytes of a labels file
LONGEST_CELL = 1 << 20  # characters
RECORDINGS = (*VIDEO_ENDINGS, *AUDIO_ENDINGS)
NAMES = ("labels.csv", "label.csv")  # default labels files
# columns of numbers; MMSA-FET has labels of single modalities
NUMBERS = ("score", "label_T", "label_A", "label_V")
COLUMNS = ("file", "text", "label", "split", "order", *NUMBERS, *GROUPS)
RAW, CLIP = "Raw", "$_$"  # MMSA-FET's folder; between video and clip in an id


@dataclass(frozen=True)
class ClipRow:
    """A clip of a folder.

    Attributes:
        id: unique in the folder.
        name: the file as the labels name it; "" for a sample with text only.
        path: of the file; None for a sample with text only.
        text: its transcript; "" if the labels have none.
        facts: other values of the labels that are not empty, by column.
    """

    id: str
    name: str
    path: Path | None
    text: str
    facts: Mapping[str, str]

    @property
    def title(self) -> str:
        """Name of the clip in messages."""
        return self.name or self.id


@dataclass(frozen=True)
class ClipList:
    """The clips of a folder.

    Attributes:
        rows: in the order of the labels.
        columns: columns of `facts` with at least one value.
        notes: what was left out or assumed.
    """

    rows: tuple[ClipRow, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()


def list_clips(folder: Path, labels: Path | None = None) -> ClipList:
    """Return the clips of a folder.

    Args:
        folder: folder with recordings.
        labels: a CSV file with one row per clip: `file` and any of text, score, label, split,
            person, speaker, session, video, order; or MMSA-FET's (video_id, clip_id, text, label,
            ...), with the clips at Raw/<video>/<clip>. Default: labels.csv or label.csv in the
            folder if there is one; else every recording of the folder, without labels.

    Raises:
        CorrKDError: if the folder or the labels file does not exist, there is no clip, or the
            labels are damaged or invalid.
    """
    if not folder.is_dir():
        raise CorrKDError(f"{folder}: no such folder; give a folder of recordings")
    if labels is None:
        labels = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if labels is None:
        clips = _unlabelled(folder)
        if not clips.rows:
            raise CorrKDError(
                f"{folder}: no recordings in it (they end in {', '.join(RECORDINGS)})"
            )
        return clips
    if not labels.is_file():
        raise CorrKDError(f"{labels}: no such labels file; give a CSV file with one row per clip")
    header, rows = _table(labels)
    if not rows:
        raise CorrKDError(f"{labels}: no rows; write one for each clip")
    if {"video_id", "clip_id"} <= set(header):
        header, rows = _from_mmsa(folder, header, rows)
    return _listed(folder, labels.name, header, rows)


def _unlabelled(folder: Path) -> ClipList:
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in (*RECORDINGS, PLAIN) and path.is_file()
    )
    recorded = {path.with_suffix("") for path in paths if path.suffix.lower() in RECORDINGS}
    paths = [
        path
        for path in paths
        if path.suffix.lower() != PLAIN or path.with_suffix("") not in recorded
    ]
    names = [path.relative_to(folder).as_posix() for path in paths if not path.name.startswith(".")]
    return _listed(folder, folder.name, ["file"], [{"file": name} for name in names])


def _table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the header and the rows of a CSV file. The separator is the most frequent one in its
    header.
    """
    text = read_text(path, LARGEST).removeprefix("\ufeff")
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        header = [name.strip() for name in next(reader, [])]
        cells = [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise CorrKDError(f"{path}: not readable CSV ({error})") from None
    finally:
        csv.field_size_limit(before)
    if "file" not in header and not {"video_id", "clip_id"} <= set(header):
        raise CorrKDError(
            f"{path}: has columns {', '.join(header)[:200]}; a column `file` is needed, with "
            f"each clip's name"
        )
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise CorrKDError(f"{path}: column {twice[0]!r} appears twice")
    for number, row in enumerate(cells, start=2):
        if len(row) != len(header):
            raise CorrKDError(
                f"{path}: row {number} has {len(row)} cells, the header {len(header)}; quote "
                f"text that holds commas"
            )
    return header, [dict(zip(header, (cell.strip() for cell in row), strict=True)) for row in cells]


def _from_mmsa(
    folder: Path, header: list[str], rows: list[dict[str, str]]
) -> tuple[list[str], list[dict[str, str]]]:
    """Return MMSA-FET's header and rows with the column names used here: its `label` is a score,
    its `annotation` the class.
    """
    root = folder / RAW if (folder / RAW).is_dir() else folder
    renamed = {"label": "score", "annotation": "label", "mode": "split", "video_id": "video"}
    out = []
    for row in rows:
        video, clip = row["video_id"], row["clip_id"]
        values = {renamed.get(key, key): value for key, value in row.items() if key != "clip_id"}
        out.append(
            values | {"file": _mmsa_file(folder, root, video, clip), "id": f"{video}{CLIP}{clip}"}
        )
    return ["file", *(renamed.get(name, name) for name in header if name != "clip_id")], out


def _mmsa_file(folder: Path, root: Path, video: str, clip: str) -> str:
    for ending in RECORDINGS:
        path = root / video / f"{clip}{ending}"
        if path.is_file():
            return path.relative_to(folder).as_posix()
    return (root / video / f"{clip}.mp4").relative_to(folder).as_posix()  # reported as absent


def _listed(
    folder: Path, where: str, header: Sequence[str], rows: Sequence[Mapping[str, str]]
) -> ClipList:
    used = [name for name in COLUMNS if name in header and any(row.get(name) for row in rows)]
    facts = tuple(name for name in used if name not in ("file", "text"))
    ids = _ids(rows)
    clips = []
    for number, (row, clip_id) in enumerate(zip(rows, ids, strict=True), start=2):
        name, text = row.get("file", ""), row.get("text", "")
        if not name and not text:
            raise CorrKDError(f"{where}: row {number} has neither a file nor a text")
        values = {column: row[column] for column in facts if row.get(column)}
        _check_facts(f"{where}, row {number}", values)
        clips.append(ClipRow(clip_id, name, folder / name if name else None, text, values))
    for column in facts:
        empty = next((i for i, clip in enumerate(clips, start=2) if column not in clip.facts), None)
        if empty is not None and column not in GROUPS:
            raise CorrKDError(
                f"{where}: row {empty} has no {column}, other rows have one; fill it in, or "
                f"leave the column out"
            )
    left_out = [name for name in header if name not in COLUMNS]
    notes = (f"{where}: columns left out: {', '.join(left_out)}",) if left_out else ()
    return ClipList(tuple(clips), facts, notes)


def _ids(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return an id for each row: its `id`; else the stem of its file, or the path if two stems are
    equal; else the row's number.
    """
    stems = Counter(Path(row["file"]).stem for row in rows if row.get("file"))
    names = []
    for number, row in enumerate(rows):
        file = row.get("file")
        name = (
            f"row-{number}"
            if not file
            else Path(file).stem
            if stems[Path(file).stem] == 1
            else file
        )
        names.append(row.get("id") or name)
    return names


def _check_facts(where: str, facts: Mapping[str, str]) -> None:
    for column in (*NUMBERS, "order"):
        if column in facts and not _is_number(facts[column]):
            raise CorrKDError(f"{where}: {column} {facts[column][:40]!r} is not a number")
    if "split" in facts and facts["split"].lower() not in SPLIT_NAMES:
        raise CorrKDError(
            f"{where}: split {facts['split'][:40]!r}; write train, valid (dev, val) or test"
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def check_clip(folder: Path, clip: ClipRow) -> None:
    """Raise CorrKDError if a clip's file does not exist, or its name leads out of the folder."""
    if clip.path is not None and not clip.path.is_file():
        raise CorrKDError(
            f"{clip.name}: no such file in {folder}; copy it there, or remove its row"
        )
    if clip.path is not None and not clip.path.resolve().is_relative_to(folder.resolve()):
        raise CorrKDError(f"{clip.name}: leads out of the folder {folder}; copy or move it there")
