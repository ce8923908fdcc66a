"""The readers on real files, built by the script beside the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corrkd.data.convert import convert
from corrkd.data.inspect import inspect
from corrkd.data.load import load_dataset

from ...conftest import build_real

pytestmark = pytest.mark.realdata


def test_hazumi(hazumi_pickle: Path, real_data: Path, tmp_path: Path) -> None:
    dataset = load_dataset(hazumi_pickle)
    source = np.load(real_data / "hazumi.npz")
    silent = ~source["language"][:, 17:].any(1)
    session, order = source["session"], source["order"]
    assert dataset.modalities == ("language", "audio", "vision")
    assert dataset.extra["lengths"]["language"] == "lengths of audio and vision (aligned)"
    for split, part in dataset.splits.items():
        chosen = np.flatnonzero(source["split"] == split)
        lengths, missing, last_silent = [], 0, 0
        for row in chosen:
            window = [r for r in range(row - 7, row + 1) if r >= 0 and session[r] == session[row]]
            lengths.append(len(window))
            missing += int(silent[window].sum())
            last_silent += int(silent[row])
        assert part.lengths["language"].tolist() == lengths
        assert (part.exists("language") & ~part.present["language"]).sum() == missing
        found = inspect(dataset).splits[split].modalities["language"].missing_frames
        assert found == pytest.approx(missing / sum(lengths))
        rows = np.arange(len(part))
        assert (~part.present["language"][rows, part.lengths["language"] - 1]).sum() == last_silent
        assert part.groups["person"].tolist() == source["person"][chosen].astype(str).tolist()
        assert part.groups["video"].tolist() == session[chosen].astype(str).tolist()
        assert part.order.tolist() == order[chosen].tolist()
        np.testing.assert_array_equal(part.scores, source["sentiment"][chosen])
    assert (
        ~dataset.split("test").present["language"][np.arange(1476), dataset.split("test").lengths["language"] - 1]
    ).sum() == 191
    assert not any(names for pairs in inspect(dataset).shared_groups.values() for names in pairs.values())
    convert(dataset, tmp_path / "hazumi.safetensors")
    again = load_dataset(tmp_path / "hazumi.safetensors")
    np.testing.assert_array_equal(again.split("test").frames["vision"], dataset.split("test").frames["vision"])


def test_mosi(mosi_pickle: Path) -> None:
    dataset = load_dataset(mosi_pickle)
    assert {split: len(part) for split, part in dataset.splits.items()} == {"train": 1284, "valid": 229, "test": 686}
    assert dataset.class_names == ("negative", "neutral", "positive")
    assert dataset.score_range == (-3.0, 3.0)
    assert dataset.widths == {"language": 384, "audio": 73}
    videos = {split: set(part.groups["video"]) for split, part in dataset.splits.items()}
    assert {split: len(names) for split, names in videos.items()} == {"train": 52, "valid": 10, "test": 31}


def test_the_standard_folds_are_those_of_mosi(mosi_pickle: Path) -> None:
    from corrkd.data.readers import csd

    dataset = load_dataset(mosi_pickle)
    where = {video: split for split, part in dataset.splits.items() for video in part.groups["video"].tolist()}
    assert csd._folds("mosi", sorted(where), None) == where


@pytest.mark.parametrize("source", ["mmmo", "youtube"])
def test_words(real_data: Path, tmp_path_factory: pytest.TempPathFactory, source: str) -> None:
    dataset = load_dataset(build_real(real_data, tmp_path_factory, "words", "--source", source))
    raw = np.load(real_data / "word_level.npz")
    assert dataset.layout == "MulT"
    assert dataset.widths == {"language": 300, "audio": 74, "vision": 36}
    for part in dataset.splits.values():
        rows = [int(name.removeprefix(source)) for name in part.groups["video"]]
        for m in dataset.modalities:
            kept = raw[f"{source}_{m}"][rows].any(2).sum(1)
            assert part.present[m].sum(1).tolist() == kept.tolist()  # no frame is lost, none is invented
        # Padding is what is empty in all modalities at once: the first and last frame of a sample are in one of them.
        first = np.any([part.present[m][:, 0] for m in dataset.modalities], axis=0)
        nothing = ~np.any([raw[f"{source}_{m}"][rows].any((1, 2)) for m in dataset.modalities], axis=0)
        assert first.tolist() == (~nothing).tolist()
