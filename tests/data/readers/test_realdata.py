"""The readers on real files, built by the script beside the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from corrkd.data import safe_pickle
from corrkd.data.convert import convert
from corrkd.data.inspect import inspect
from corrkd.data.load import load_dataset
from corrkd.data.readers.containers import read_npz
from corrkd.data.readers.csd import read_sequence
from corrkd.errors import CorrKDError
from corrkd.targets.registry import make_target

from ...conftest import build_real
from .samples import csd_file, glove

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
        ~dataset.split("test").present["language"][
            np.arange(1476), dataset.split("test").lengths["language"] - 1
        ]
    ).sum() == 191
    assert not any(
        names for pairs in inspect(dataset).shared_groups.values() for names in pairs.values()
    )
    convert(dataset, tmp_path / "hazumi.safetensors")
    again = load_dataset(tmp_path / "hazumi.safetensors")
    np.testing.assert_array_equal(
        again.split("test").frames["vision"], dataset.split("test").frames["vision"]
    )


def test_mosi(mosi_pickle: Path) -> None:
    dataset = load_dataset(mosi_pickle)
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "train": 1284,
        "valid": 229,
        "test": 686,
    }
    assert dataset.class_names == ("negative", "neutral", "positive")
    assert dataset.score_range == (-3.0, 3.0)
    assert dataset.widths == {"language": 384, "audio": 73}
    videos = {split: set(part.groups["video"]) for split, part in dataset.splits.items()}
    assert {split: len(names) for split, names in videos.items()} == {
        "train": 52,
        "valid": 10,
        "test": 31,
    }


def test_the_standard_folds_are_those_of_mosi(mosi_pickle: Path) -> None:
    from corrkd.data.readers import csd

    dataset = load_dataset(mosi_pickle)
    where = {
        video: split
        for split, part in dataset.splits.items()
        for video in part.groups["video"].tolist()
    }
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
            assert (
                part.present[m].sum(1).tolist() == kept.tolist()
            )  # no frame is lost, none is invented
        # Padding is what is empty in all modalities at once: the first and last frame of a sample
        # are in one of them.
        first = np.any([part.present[m][:, 0] for m in dataset.modalities], axis=0)
        nothing = ~np.any(
            [raw[f"{source}_{m}"][rows].any((1, 2)) for m in dataset.modalities], axis=0
        )
        assert first.tolist() == (~nothing).tolist()


def real(real_data: Path, name: str) -> Path:
    path = real_data / "real" / name
    if not path.exists():
        pytest.skip(f"needs {name}")
    return path


def test_clips_of_csd_labels_are_numbered_in_the_order_of_the_file(
    real_data: Path, tmp_path: Path
) -> None:
    """As in GCNet's file, which numbers from 1: same labels at all 2,199 ids, 98 of them in videos
    whose rows are not sorted by time.
    """
    labels = real(real_data, "CMU_MOSI_Opinion_Labels.csd")
    ids, scores = safe_pickle.load(real(real_data, "gcnet_CMUMOSI_features_raw_2way.pkl"))[:2]
    expected = {
        name: value for video in ids for name, value in zip(ids[video], scores[video], strict=True)
    }
    folder = tmp_path / "mosi"
    folder.mkdir()
    (folder / labels.name).symlink_to(labels)
    sequence = read_sequence(labels)
    spans = {video: spans for video, (_, spans) in sequence.data.items()}
    csd_file(
        folder / "COVAREP.csd",
        "COVAREP",
        {v: (np.arange(2.0 * len(s)).reshape(-1, 2), s) for v, s in spans.items()},
    )
    with_words = {
        video: (np.array([[b"good"], [b"bad"]])[np.arange(len(s)) % 2], s)
        for video, s in spans.items()
    }
    csd_file(folder / "Words.csd", "words", with_words)
    dataset = load_dataset(folder, glove=glove(tmp_path / "glove.txt"), targets=False)
    read = {}
    for part in dataset.splits.values():
        for name, score in zip(part.ids.tolist(), part.scores.tolist(), strict=True):
            video, clip = name.split("$_$")
            read[f"{video}_{int(clip) + 1}"] = score
    assert read.keys() == expected.keys()
    np.testing.assert_allclose([read[k] for k in expected], list(expected.values()), atol=1e-6)
    train = dataset.split("train")
    video = (
        train.groups["video"] == "VbQk4H8hgr0"
    )  # its rows are not in the order of time, its samples' order is
    starts = spans["VbQk4H8hgr0"][[int(name.split("$_$")[1]) for name in train.ids[video]], 0]
    assert (np.diff(starts[np.argsort(train.order[video])]) >= 0).all()
    assert (np.diff(starts) < 0).any()


def test_words_with_times(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mosi"
    folder.mkdir()
    for name in ("CMU_MOSI_Opinion_Labels.csd", "CMU_MOSI_ModifiedTimestampedWords.csd"):
        (folder / name).symlink_to(real(real_data, name))
    vectors = tmp_path / "glove.txt"
    vectors.write_text("movie 1 0 0\nthe 0 1 0\n")
    dataset = load_dataset(folder, glove=vectors)
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "train": 1284,
        "valid": 229,
        "test": 686,
    }
    frames = np.concatenate(
        [part.frames["language"][part.present["language"]] for part in dataset.splits.values()]
    )
    assert {tuple(frame) for frame in frames.tolist()} == {(1, 0, 0), (0, 1, 0)}
    with pytest.raises(CorrKDError, match="no modality"):
        load_dataset(folder)


def test_named_arrays_of_mosei(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mosei"
    folder.mkdir()
    for split in ("val", "test"):
        source = real(real_data, f"mosei_named_arrays_{split}.pkl")
        (folder / source.name).symlink_to(source)
    dataset = load_dataset(folder)
    assert dataset.widths == {"language": 768, "audio": 40, "vision": 35}
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "valid": 264,
        "test": 658,
    }
    assert dataset.extra["nonfinite"]["audio"]["inf"] == 653
    raw = safe_pickle.load(real(real_data, "mosei_named_arrays_test.pkl"))
    np.testing.assert_array_equal(dataset.split("test").scores, raw["labels"])
    np.testing.assert_array_equal(dataset.split("test").frames["language"][:, 0], raw["language"])


def test_pom(real_data: Path) -> None:
    path = real(real_data, "pom.npz")
    with pytest.raises(CorrKDError, match="several label columns"):
        load_dataset(path)
    dataset = load_dataset(path, label="0")
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "train": 600,
        "valid": 100,
        "test": 203,
    }
    found = inspect(dataset).splits["train"]
    assert found.modalities["vision"].missing_samples == pytest.approx(0.54, abs=0.005)
    assert make_target("auto", dataset).kind == "classes"
    assert make_target("auto", load_dataset(path, label="questions:scores@3")).response_shape == (
        17,
        2,
    )


@pytest.mark.parametrize(
    ("name", "train", "test", "target"),
    [
        ("gcnet_CMUMOSI_features_raw_2way.pkl", 1284, 686, "tertiles"),
        ("gcnet_IEMOCAP_features_raw_4way.pkl", None, 1241, "classes"),
        pytest.param(
            "merbench_cmumosei_label.npz", 16326, 4659, "tertiles", marks=pytest.mark.slow
        ),
        pytest.param("merbench_meld_label.npz", 9989, 2610, "classes", marks=pytest.mark.slow),
    ],
)
def test_label_files_with_a_file_an_utterance(
    real_data: Path, tmp_path: Path, name: str, train: int | None, test: int, target: str
) -> None:
    source = real(real_data, name)
    (tmp_path / name).symlink_to(source)
    folder = tmp_path / "features" / "wav2vec-large-c-UTT"
    folder.mkdir(parents=True)
    if source.suffix == ".npz":
        corpora = read_npz(source)
        ids = [key for corpus in corpora.values() for key in corpus.item()]
    else:
        ids = [key for names in safe_pickle.load(source)[0].values() for key in names]
    np.save(tmp_path / "first.npy", np.ones(3, np.float32))
    np.save(tmp_path / "other.npy", np.zeros(3, np.float32) + 2)
    for i, key in enumerate(ids):  # links: thousands of files are slow to write
        (folder / f"{key}.npy").symlink_to(tmp_path / ("first.npy" if i % 2 else "other.npy"))
    dataset = load_dataset(tmp_path / name)
    assert len(dataset.split("test")) == test
    assert train is None or len(dataset.split("train")) == train
    assert sum(len(part) for part in dataset.splits.values()) == len(ids)
    assert make_target("auto", dataset).name == target


@pytest.mark.parametrize("name", ["clip_101_movies.mp4", "README.md"])
def test_what_is_no_dataset(real_data: Path, name: str) -> None:
    with pytest.raises(CorrKDError, match=r"a video \(MP4\); extract features|text, not a dataset"):
        load_dataset(real(real_data, name))
