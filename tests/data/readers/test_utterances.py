"""A label file with a folder of `.npy` files for each feature set."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corrkd.data.groups import dependent_samples
from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError

from .samples import write_pickle

VIDEOS = {
    "train": ["Ses01F_impro01", "Ses01F_impro02", "Ses02F_script01"],
    "test": ["Ses05M_impro01"],
}


def gcnet(path: Path, scores: bool = False) -> tuple[Path, dict[str, Any]]:
    """IEMOCAP's file of four utterances a video, and features of (d,) and of (T, d)."""
    rng = np.random.default_rng(0)
    videos = [video for split in VIDEOS.values() for video in split]
    ids = {v: [f"{v}_{who}00{i}" for i, who in enumerate("FMFM")] for v in videos}
    labels = {v: [float(i) - 1.5 if scores else i % 3 for i in range(4)] for v in videos}
    speakers = {v: ["F", "M", "F", "M"] for v in videos}
    sentences = {v: ["words"] * 4 for v in videos}
    data = [ids, labels, speakers, sentences, set(VIDEOS["train"]), set(VIDEOS["test"])]
    features: dict[str, Any] = {
        "deberta-large-4-UTT": {},
        "wav2vec-large-c-UTT": {},
        "manet_UTT": {},
    }
    for folder, width in zip(features, (4, 3, 2), strict=True):
        (path / "features" / folder).mkdir(parents=True)
        for utterance in (u for names in ids.values() for u in names):
            shape = (width,) if folder != "manet_UTT" else (int(rng.integers(1, 5)), width)
            features[folder][utterance] = rng.normal(size=shape).astype(np.float32)
            np.save(path / "features" / folder / f"{utterance}.npy", features[folder][utterance])
    return write_pickle(path / "IEMOCAP_features_raw_4way.pkl", data), features


def test_gcnet(tmp_path: Path) -> None:
    path, features = gcnet(tmp_path)
    dataset = load_dataset(path)
    assert dataset.widths == {"language": 4, "audio": 3, "vision": 2}
    test = dataset.split("test")
    assert test.ids.tolist() == [f"Ses05M_impro01_{who}00{i}" for i, who in enumerate("FMFM")]
    assert (test.labels.tolist(), test.scores, test.order.tolist()) == (
        [0, 1, 2, 0],
        None,
        [0, 1, 2, 3],
    )
    assert test.groups["speaker"].tolist() == ["Ses05 F", "Ses05 M"] * 2
    for split in dataset.splits.values():
        for row, name in enumerate(split.ids.tolist()):
            vision = features["manet_UTT"][name]
            np.testing.assert_array_equal(split.frames["vision"][row, : len(vision)], vision)
            assert split.lengths["vision"][row] == len(vision)
            np.testing.assert_array_equal(
                split.frames["audio"][row, 0], features["wav2vec-large-c-UTT"][name]
            )
    # Nobody is held out for validation, so one of the two training sessions is, whole.
    train, valid = dataset.split("train"), dataset.split("valid")
    assert not set(train.groups["session"]) & set(valid.groups["session"])
    assert any("no validation split: 1 of 2 groups by session" in note for note in dataset.notes)
    kind, members = dependent_samples(train.ids, train.groups)
    assert (kind, set(members)) == ("session", set(train.groups["session"]))


def test_scores_and_three_sets_of_videos(tmp_path: Path) -> None:
    path, _ = gcnet(tmp_path, scores=True)
    data = pickle.loads(path.read_bytes())
    sets = [{"Ses01F_impro01", "Ses02F_script01"}, {"Ses01F_impro02"}, {"Ses05M_impro01"}]
    dataset = load_dataset(write_pickle(path, [*data[:4], *sets]))
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "train": 8,
        "valid": 4,
        "test": 4,
    }
    assert dataset.split("valid").scores.tolist() == [-1.5, -0.5, 0.5, 1.5]


def test_an_utterance_without_a_file_is_missing(tmp_path: Path) -> None:
    path, _ = gcnet(tmp_path)
    for file in (tmp_path / "features" / "manet_UTT").glob("Ses05M*F00*"):
        file.unlink()
    dataset = load_dataset(path)
    assert dataset.split("test").present["vision"].any(1).tolist() == [False, True, False, True]
    assert "vision: manet_UTT; 2 utterances have no file: missing" in dataset.notes


def test_the_sum_is_of_labels_and_features(tmp_path: Path) -> None:
    path, _ = gcnet(tmp_path)
    before = load_dataset(path).sha256
    file = tmp_path / "features" / "manet_UTT" / "Ses05M_impro01_F000.npy"
    np.save(file, np.load(file) + 1)
    assert load_dataset(path).sha256 != before


def change(features: Path, name: str, content: Any) -> None:
    np.save(features / "manet_UTT" / name, content, allow_pickle=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            np.zeros((2, 3)),
            r"manet_UTT: files of different widths, or none with frames: .*\.npy 3, .*\.npy 2",
        ),
        (np.zeros((2, 3, 4)), r"Ses01F_impro01_F000\.npy: shape \(2, 3, 4\)"),
        (np.array([{}], object), r"Ses01F_impro01_F000\.npy: shape \(1,\) of object"),
        (np.array(["x"]), "shape .* of <U1"),
    ],
)
def test_a_bad_feature_file_is_one_line(tmp_path: Path, content: Any, words: str) -> None:
    path, _ = gcnet(tmp_path)
    change(tmp_path / "features", "Ses01F_impro01_F000.npy", content)
    with pytest.raises(CorrKDError, match=words):
        load_dataset(path)


def test_an_utterance_is_no_path(tmp_path: Path) -> None:
    path, _ = gcnet(tmp_path / "set")
    data = pickle.loads(path.read_bytes())
    np.save(tmp_path / "secret.npy", np.ones(2, np.float32))
    data[0]["Ses05M_impro01"][0] = "../../../secret"
    with pytest.raises(
        CorrKDError, match=r"utterance '\.\./\.\./\.\./secret' cannot be the name of a file"
    ):
        load_dataset(write_pickle(path, data))


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    path, _ = gcnet(tmp_path)
    data = pickle.loads(path.read_bytes())
    data[1]["Ses05M_impro01"].pop()
    with pytest.raises(
        CorrKDError, match="video Ses05M_impro01 has 4 utterances and another number of labels"
    ):
        load_dataset(write_pickle(path, data))
    (tmp_path / "alone").mkdir()
    with pytest.raises(
        CorrKDError, match="labels of 16 utterances, but no features: expected folders beside it"
    ):
        load_dataset(gcnet(tmp_path / "other")[0].rename(tmp_path / "alone" / "labels.pkl"))


def merbench(path: Path) -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(0)
    corpora: dict[str, dict[str, Any]] = {}
    for split, n in (("train", 12), ("val", 4), ("test", 5)):
        corpora[f"{split}_corpus"] = {
            f"{split}_dia{i // 3}_utt{i % 3}": {"emo": int(rng.integers(0, 3)), "val": -10}
            for i in range(n)
        }
    np.savez_compressed(
        path / "label-6way.npz", **{k: np.array(v, object) for k, v in corpora.items()}
    )  # type: ignore[arg-type]
    for folder, width in (("chinese-hubert-large-UTT", 3), ("clip-vit-large-patch14-UTT", 2)):
        (path / "features" / folder).mkdir(parents=True)
        for name in (name for corpus in corpora.values() for name in corpus):
            np.save(path / "features" / folder / f"{name}.npy", rng.normal(size=width))
    return corpora


def test_ids_that_name_no_video(tmp_path: Path) -> None:
    """As in MER2023: sample_00000001, and test1 in place of test."""
    rng = np.random.default_rng(0)
    corpora = {
        f"{split}_corpus": {
            f"sample{split}_{i:08d}": {"emo": i % 3, "val": float(i)} for i in range(n)
        }
        for split, n in (("train", 30), ("test1", 6))
    }
    np.savez(tmp_path / "label-6way.npz", **{k: np.array(v, object) for k, v in corpora.items()})  # type: ignore[arg-type]
    for folder in ("chinese-hubert-large-UTT", "emotion_labels"):
        (tmp_path / folder).mkdir()
        for name in (name for corpus in corpora.values() for name in corpus):
            np.save(tmp_path / folder / f"{name}.npy", rng.normal(size=3))
    dataset = load_dataset(tmp_path / "label-6way.npz")
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "train": 27,
        "valid": 3,
        "test": 6,
    }
    assert dataset.modalities == ("audio",)


def test_merbench(tmp_path: Path) -> None:
    corpora = merbench(tmp_path)
    dataset = load_dataset(tmp_path / "label-6way.npz")
    assert dataset.widths == {"audio": 3, "vision": 2}
    test = dataset.split("test")
    assert test.labels.tolist() == [row["emo"] for row in corpora["test_corpus"].values()]
    assert test.scores is None  # -10 throughout
    assert test.groups["video"].tolist() == ["test_dia0"] * 3 + ["test_dia1"] * 2
    assert test.order.tolist() == [0, 1, 2, 0, 1]
