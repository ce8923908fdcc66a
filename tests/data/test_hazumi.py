"""The Hazumi dataset from a small copy of its repositories: windows, splits and persons."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from corrkd.data.hazumi.build import (
    PEOPLE,
    WIDTHS,
    check_ending,
    dataset_of,
    read_sessions,
    windows,
    write_dataset,
)
from corrkd.data.hazumi.sources import COMMITS, SourceFile, download, read_source, source_files
from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError

# One person of each split, and a second session of the person in train.
SIZES = {"2012F2006": 10, "2010F2004": 3, "2012F2001": 4, "2105F2001": 2}
SILENT = 2  # an exchange of the first session in which nobody speaks


def dump(num_exchanges: int, seed: int) -> str:
    """Return a session's file, whose headings contain line breaks like the published ones."""
    rng = np.random.default_rng(seed)
    about = [
        "ID",
        "start",
        "end(system)",
        "end",
        "act",
        *(f"UI_F{i}" for i in range(5)),
        *(f"TC_F{i}" for i in range(5)),
    ]
    columns = [*about, "UI_Aver", "TC_Aver", *(f'"f{i}\n"' for i in range(sum(WIDTHS.values())))]
    lines = [",".join(columns)]
    for row in range(num_exchanges):
        features = rng.normal(size=sum(WIDTHS.values())).round(3)
        if row == SILENT:
            features[450 + 17 :] = 0
        annotators = [1 + (row + i) % 7 for i in range(5)]
        lines.append(
            ",".join(
                map(str, [row, 0, 0, 0, "op", *annotators, *[4] * 5, 99, 4, *features.tolist()])
            )
        )
    return "\n".join(lines) + "\n"


@pytest.fixture
def clones(tmp_path: Path) -> tuple[Path, list[SourceFile]]:
    """A small copy of the repositories, and its files with their checksums."""
    texts = {"Hazumi2105/correspondence.csv": "\ufeff2105F2001,2012F2006\n"}
    for seed, (session, size) in enumerate(SIZES.items()):
        texts[f"Hazumi{session[:4]}/dumpfiles/{session}.csv"] = dump(size, seed)
    files = []
    for name, text in texts.items():
        path = tmp_path / "clones" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        files.append(SourceFile(name, hashlib.sha256(text.encode()).hexdigest()))
    return tmp_path / "clones", files


def test_the_published_files_cover_every_person() -> None:
    files = source_files()
    assert len(files) == 98
    assert len({file.sha256 for file in files}) == 98
    sessions = {Path(file.name).stem for file in files if file.name.endswith(".csv")}
    people = {
        c + name
        for corpora in PEOPLE.values()
        for c, names in corpora.items()
        for name in names.split()
    }
    assert len(people) == 76
    assert people < sessions
    address = files[0].address
    assert address.startswith("https://raw.githubusercontent.com/ouktlab/Hazumi2105/")
    assert COMMITS["Hazumi2105"] in address


def test_windows_end_at_their_row() -> None:
    result = windows(np.arange(1.0, 11.0, dtype=np.float32)[:, None])
    assert result[0, :, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert result[7, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert result[9, :, 0].tolist() == [3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("ending", [".pkl", ".h5"])
def test_a_small_copy_becomes_a_dataset(
    clones: tuple[Path, list[SourceFile]], tmp_path: Path, ending: str
) -> None:
    folder, files = clones
    steps: list[int] = []
    sessions = read_sessions(folder, files=files, on_file=lambda: steps.append(1))
    assert len(steps) == len(files)
    write_dataset(tmp_path / f"set{ending}", dataset_of(sessions))
    dataset = load_dataset(tmp_path / f"set{ending}")
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 12,
        "valid": 3,
        "test": 4,
    }
    train = dataset.split("train")
    assert dataset.widths == {"language": 785, "audio": 384, "vision": 66}
    assert train.lengths["audio"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 1, 2]
    assert set(train.groups["person"].tolist()) == {"2012F2006"}  # in both sessions
    assert train.scores is not None
    assert train.scores[0] == np.float32(
        np.mean([1, 2, 3, 4, 5])
    )  # the average's column is not an annotator's
    assert train.ids[-1] == "2105F2001$_$1"
    silent = train.ids.tolist().index(f"2012F2006$_${SILENT}")
    assert train.present["language"][silent].tolist() == [True, True, False, *[False] * 5]
    assert train.present["audio"][silent, :3].all()
    assert train.labels is not None
    assert set(train.labels.tolist()) == {0, 1, 2}


def test_downloads_are_resumed_and_verified(
    clones: tuple[Path, list[SourceFile]], tmp_path: Path
) -> None:
    folder, files = clones
    requests: list[str] = []

    def fetch(address: str, most_bytes: int) -> bytes:
        requests.append(address)
        return (folder / files[0].name).read_bytes()

    cache = tmp_path / "cache"
    assert download(files[0], cache, fetch=fetch)
    assert not download(files[0], cache, fetch=fetch)
    assert len(requests) == 1
    (cache / files[0].name).write_text("half")  # fetched again
    assert download(files[0], cache, fetch=fetch)
    with pytest.raises(CorrKDError, match="SHA-256 is"):
        download(files[1], cache, fetch=fetch)
    assert not (cache / files[1].name).exists()


def test_a_wrong_or_absent_file_is_refused(
    clones: tuple[Path, list[SourceFile]], tmp_path: Path
) -> None:
    folder, files = clones
    (folder / files[1].name).write_text("another version")
    with pytest.raises(CorrKDError, match="use commit"):
        read_source(files[1], folder)
    with pytest.raises(CorrKDError, match="the folder needs clones of Hazumi2010"):
        read_sessions(tmp_path / "nowhere", files=files)
    with pytest.raises(CorrKDError, match=r"must end in \.pkl or \.h5"):
        check_ending(tmp_path / "set.csv")
