from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError

from .samples import sequences


def arrays(count: int = 20) -> dict[str, np.ndarray]:
    """Four modalities of any name: two sequences with lengths, one without, one vector."""
    speech, speech_lengths = sequences(count, 6, 3, 0)
    gaze, gaze_lengths = sequences(count, 4, 2, 1)
    pulse, _ = sequences(count, 5, 2, 2)
    rng = np.random.default_rng(3)
    return {
        "speech": speech,
        "speech_lengths": speech_lengths,
        "gaze": gaze.astype(np.float64),
        "gaze_lengths": gaze_lengths,
        "pulse": pulse,
        "personality": rng.normal(size=(count, 5)),
        "labels": np.arange(count) % 3,
        "scores": np.linspace(-1, 1, count),
        "split": np.array([0] * (count - 10) + [1] * 4 + [2] * 6),
        "person": np.arange(count) // 2,
        "order": np.arange(count) % 2,
    }


def write(path: Path, data: dict[str, np.ndarray]) -> Path:
    if path.suffix == ".npz":
        np.savez_compressed(path, **data)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for key, x in data.items():
                file[key] = x.astype(object) if x.dtype.kind == "U" else x
    else:
        save_file(
            {key: np.ascontiguousarray(x) for key, x in data.items() if x.dtype.kind != "U"}, path
        )
    return path


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".safetensors"])
def test_named_arrays(tmp_path: Path, suffix: str) -> None:
    data = arrays()
    dataset = load_dataset(write(tmp_path / f"mine{suffix}", data))
    assert dataset.layout == f"{suffix[1:]} arrays"
    assert set(dataset.modalities) == {"speech", "gaze", "pulse", "personality"}
    train = dataset.split("train")
    assert {s: len(p) for s, p in dataset.splits.items()} == {"train": 10, "valid": 4, "test": 6}
    np.testing.assert_array_equal(train.frames["speech"], data["speech"][:10])
    np.testing.assert_array_equal(train.lengths["gaze"], data["gaze_lengths"][:10])
    assert train.frames["personality"].shape == (10, 1, 5)
    assert train.groups["person"].tolist() == [str(row // 2) for row in range(10)]
    assert train.order.tolist() == [0, 1] * 5
    assert train.labels.tolist() == (np.arange(10) % 3).tolist()
    np.testing.assert_array_equal(train.scores, data["scores"][:10])
    np.testing.assert_array_equal(dataset.split("test").frames["speech"], data["speech"][14:])


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_strings(tmp_path: Path, suffix: str) -> None:
    data = arrays()
    data["ids"] = np.array([f"é{row // 4}$_${row % 4}" for row in range(20)])
    data["split"] = np.array(["train"] * 10 + ["dev"] * 4 + ["test"] * 6)
    data["class_names"] = np.array(["low", "middle", "high"])
    dataset = load_dataset(write(tmp_path / f"mine{suffix}", data))
    assert dataset.class_names == ("low", "middle", "high")
    assert dataset.split("valid").ids.tolist() == ["é2$_$2", "é2$_$3", "é3$_$0", "é3$_$1"]
    assert dataset.split("valid").groups["video"].tolist() == ["é2", "é2", "é3", "é3"]


def test_a_mask_of_its_own_decides(tmp_path: Path) -> None:
    data = arrays()
    mask = np.ones((20, 6), bool)
    mask[0, 2] = False
    data["speech_present"] = mask
    data["speech"][1, 0] = 0  # zeros that the mask calls present
    data["speech_lengths"][:2] = 6
    data["personality_present"] = np.arange(20) > 0
    dataset = load_dataset(write(tmp_path / "mine.npz", data))
    train = dataset.split("train")
    assert dataset.missing_rule["speech"] == "array speech_present"
    assert dataset.missing_rule["gaze"] == "all-zero frames inside the length"
    assert train.present["speech"][:2].tolist() == [
        [True, True, False, True, True, True],
        [True] * 6,
    ]
    assert train.present["personality"].ravel().tolist() == [False] + [True] * 9
    assert not train.frames["speech"][0, 2].any()


def test_questions(tmp_path: Path) -> None:
    data = arrays()
    data["labels"] = np.stack([np.arange(20) % 2, np.ones(20, int)], 1)
    data["question_names"] = np.array(["happy", "calm"])
    dataset = load_dataset(write(tmp_path / "mine.npz", data))
    assert dataset.question_names == ("happy", "calm")
    assert dataset.split("train").labels.shape == (10, 2)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("suffix", [".npz", ".h5", ".safetensors"])
def test_sequences_of_integers_are_a_modality(tmp_path: Path, kind: type, suffix: str) -> None:
    data = arrays()
    data["pixels"] = np.random.default_rng(5).integers(1, 100, (20, 4, 3)).astype(kind)
    data["codes"] = np.arange(40).reshape(20, 2).astype(kind)
    dataset = load_dataset(write(tmp_path / f"mine{suffix}", data))
    assert set(dataset.modalities) == {"speech", "gaze", "pulse", "personality", "pixels"}
    np.testing.assert_array_equal(
        dataset.split("train").frames["pixels"], data["pixels"][:10].astype(np.float32)
    )
    assert "left out: codes" in dataset.notes


def test_one_hot_labels_are_noted(tmp_path: Path) -> None:
    data = arrays()
    data["labels"] = np.eye(3, dtype=int)[np.arange(20) % 3]
    noted = load_dataset(write(tmp_path / "mine.npz", data))
    assert noted.split("train").labels.shape == (10, 3)
    assert [note for note in noted.notes if "yes/no answers" in note and "labels.argmax(1)" in note]
    data["labels"][0] = 1  # real questions: two answers of one sample are yes
    assert not any(
        "argmax" in note for note in load_dataset(write(tmp_path / "mine.npz", data)).notes
    )
    data["labels"] = np.eye(2, dtype=int)[np.arange(20) % 2]
    assert not any(
        "argmax" in note for note in load_dataset(write(tmp_path / "mine.npz", data)).notes
    )


def test_without_a_split_groups_stay_together(tmp_path: Path) -> None:
    data = arrays(60)
    del data["split"]
    dataset = load_dataset(write(tmp_path / "mine.npz", data))
    assert any("by person, seed 0" in note for note in dataset.notes)
    people = {split: set(part.groups["person"]) for split, part in dataset.splits.items()}
    assert sum(map(len, people.values())) == 30
    for split, share in (("train", 0.7), ("valid", 0.15), ("test", 0.15)):
        assert abs(len(dataset.split(split)) - 60 * share) <= 2  # a person's samples
    assert (
        not people["train"] & people["valid"]
        | people["train"] & people["test"]
        | people["valid"] & people["test"]
    )


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".safetensors"])
def test_without_targets(tmp_path: Path, suffix: str) -> None:
    """All samples are together where there is no `split` either; what there is besides is read as
    ever.
    """
    data = arrays()
    for key in ("labels", "scores", "split"):
        del data[key]
    with pytest.raises(CorrKDError, match="an array `scores` or `labels` is required"):
        load_dataset(write(tmp_path / f"mine{suffix}", data))
    dataset = load_dataset(tmp_path / f"mine{suffix}", targets=False)
    (whole,) = (dataset.split("all"),)
    assert list(dataset.splits) == ["all"]
    assert (whole.scores, whole.labels, len(whole)) == (None, None, 20)
    np.testing.assert_array_equal(whole.frames["speech"], data["speech"])
    np.testing.assert_array_equal(whole.lengths["gaze"], data["gaze_lengths"])
    assert whole.groups["person"].tolist() == [str(row // 2) for row in range(20)]
    assert not any("dealt" in note for note in dataset.notes)
    data["split"] = np.repeat([0, 2], [8, 12])
    parts = load_dataset(write(tmp_path / f"mine{suffix}", data), targets=False).splits
    assert {name: len(part) for name, part in parts.items()} == {"train": 8, "test": 12}


def test_targets_that_are_not_needed_are_read_all_the_same(tmp_path: Path) -> None:
    data = arrays()
    path = write(tmp_path / "mine.npz", data)
    one, other = load_dataset(path), load_dataset(path, targets=False)
    assert list(one.splits) == list(other.splits)
    np.testing.assert_array_equal(one.split("test").labels, other.split("test").labels)
    data["labels"] = np.full(20, np.nan)
    with pytest.raises(CorrKDError, match="NaN"):
        load_dataset(write(path, data), targets=False)


def test_the_number_of_samples_where_no_target_tells(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    speech, face = np.ones((5, 3, 2)), np.ones((4, 2))
    for data, words in (
        (
            {"speech": speech, "face": face},
            r"\(speech 5, face 4\); add an array `ids`, one for each sample",
        ),
        (
            {"ids": np.arange(5), "speech": speech, "lengths": np.ones(4)},
            r"array lengths has shape \(4,\), expected 5",
        ),
        ({"ids": np.arange(3), "speech": speech}, "array speech has 5 rows for 3 samples"),
        ({"codes": np.arange(4)}, "no modality: no "),
        ({"labels": np.int64(3), "speech": speech}, "array labels is a single value"),
    ):
        with pytest.raises(CorrKDError, match=words):
            load_dataset(write(path, data), targets=False)
    table = {"ids": np.arange(50), "speech": np.ones((50, 3, 2)), "colours": np.ones((4, 2))}
    read = load_dataset(write(path, table), targets=False)
    assert (read.modalities, read.notes) == (("speech",), ("left out: colours",))


def test_clips_of_a_video_are_dealt_to_one_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    video = np.repeat(np.arange(20), 5)
    ids = np.array([f"talk{v}$_${clip}" for clip, v in enumerate(video)])
    arrays = {"speech": rng.normal(size=(100, 3, 2)), "labels": np.arange(100) % 3, "ids": ids}
    dataset = load_dataset(write(tmp_path / "data.npz", arrays))
    videos = [set(split.groups["video"].tolist()) for split in dataset.splits.values()]
    assert sum(map(len, videos)) == len(set.union(*videos)) == 20
    assert (
        "no splits in the data: assigned at random as 70/15/15 % by video, seed 0" in dataset.notes
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: [d.pop("labels"), d.pop("scores")], "an array `scores` or `labels` is required"),
        (lambda d: [d.pop(k) for k in ("speech", "gaze", "pulse", "personality")], "no modality"),
        (
            lambda d: d.update(split=np.array(["train"] * 19 + ["later"])),
            "array split holds 'later'",
        ),
        (lambda d: d.update(person=np.arange(5)), r"array person has shape \(5,\)"),
        (
            lambda d: d.update(video=np.ones((20, 4, 2))),
            r"array video has shape \(20, 4, 2\), but `video` has one value",
        ),
        (
            lambda d: [d.pop("scores"), d.update(labels=np.full((20, 2), 2))],
            "several label columns; choose with --label: labels",
        ),
        (lambda d: d.update(scores=np.full(20, np.nan)), "NaN"),
        (lambda d: d.update(class_names=np.array(["low", "high"])), "label 2 is out of range"),
        (
            lambda d: d.update(speech_lengths=np.full(20, 7)),
            "lengths run from 7 to 7, but the array holds 6",
        ),
        (lambda d: d.update(speech_present=np.ones((20, 3))), "speech_present has shape"),
        (lambda d: d.update(personality=np.ones((20, 5))), "constant"),
        (lambda d: d.update(personality=np.full((20, 5), np.nan)), "no frame is present"),
        (lambda d: d.update(personality=np.zeros((20, 0))), "zero width"),
        (
            lambda d: d.update(
                split=np.array([0] * 20), ids=np.array(["a"] * 20), labels=np.array(-np.ones(20))
            ),
            "labels must be",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, change, words: str) -> None:
    data = arrays()
    change(data)
    with pytest.raises(CorrKDError, match=words) as caught:
        load_dataset(write(tmp_path / "mine.npz", data))
    assert "\n" not in str(caught.value)


def test_a_few_samples_with_labels_that_are_to_be_predicted(tmp_path: Path) -> None:
    """Nothing can be dealt, and nothing has to be."""
    frames = np.random.default_rng(0).normal(size=(6, 4, 3))
    np.savez(tmp_path / "mine.npz", audio=frames, labels=np.arange(6) % 2, person=np.zeros(6))
    assert list(load_dataset(tmp_path / "mine.npz", targets=False).splits) == ["all"]
    with pytest.raises(CorrKDError, match="1 groups or samples are too few for 3 splits"):
        load_dataset(tmp_path / "mine.npz")


def test_no_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", audio=np.zeros((0, 4, 3)))
    with pytest.raises(CorrKDError, match="mine: no samples"):
        load_dataset(tmp_path / "mine.npz", targets=False)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".safetensors"])
def test_truncated_files_are_one_line(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"mine{suffix}", arrays())
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.95):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CorrKDError) as caught:
            load_dataset(path)
        assert "\n" not in str(caught.value)


def npy(shape: tuple[int, ...], kind: str, data: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + data


def test_an_npz_never_unpickles_and_never_explodes(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, scores=np.array([{}], object))
    with pytest.raises(CorrKDError, match="no modality"):
        load_dataset(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("scores.npy", npy((10**12,), "<f8", b""))
    with pytest.raises(CorrKDError, match=r"damaged \.npz"):
        load_dataset(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scores.npy", npy((2**29,), "|u1", bytes(2**29)))
    with pytest.raises(CorrKDError, match="decompression bomb"):
        load_dataset(path)


def test_an_h5_never_explodes(tmp_path: Path) -> None:
    path = tmp_path / "mine.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("scores", (10**12,), "f8", chunks=(1024,))
    with pytest.raises(CorrKDError, match="decompression bomb"):
        load_dataset(path)
