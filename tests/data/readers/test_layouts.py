"""Relatives of the usual layouts, and files without labels in each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError

from .samples import COUNTS, csd_file, glove, mag, mmsa, mult, write_pickle


def test_what_mmsa_fet_extracts(tmp_path: Path) -> None:
    data: dict[str, Any] = mmsa()
    for part in data.values():
        part["audio"] = part["audio"].astype(np.float64)
        del part["classification_labels"]
    data["config"] = {"audio": {"tool": "librosa", "args": {"mfcc": {"n_mfcc": 20}}}}
    dataset = load_dataset(write_pickle(tmp_path / "feature.pkl", data))
    assert {split: len(part) for split, part in dataset.splits.items()} == COUNTS
    assert any("left out: config" in note for note in dataset.notes)


def clip() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "audio": rng.normal(size=(30, 3)),
        "vision": rng.normal(size=(20, 2)),
        "text": rng.normal(size=(7, 4)),
        "text_bert": np.ones((3, 7)),
        "config": {"vision": {"tool": "openface"}},
    }


def test_a_single_clip_is_one_sample_to_be_predicted(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "clip_7.pkl", clip())
    sample = load_dataset(path, targets=False).split("all")
    assert sample.ids.tolist() == ["clip_7"]
    assert {m: int(n[0]) for m, n in sample.lengths.items()} == {
        "language": 7,
        "audio": 30,
        "vision": 20,
    }
    np.testing.assert_array_equal(sample.frames["audio"][0], clip()["audio"].astype(np.float32))
    with pytest.raises(CorrKDError, match="a single clip without labels"):
        load_dataset(path)
    mute = clip() | {"audio": np.zeros((0, 3))}
    dataset = load_dataset(write_pickle(path, mute), targets=False)
    assert dataset.modalities == ("language", "vision")
    assert "audio is empty: missing" in dataset.notes


def test_the_semi_supervised_split_of_sims_v2(tmp_path: Path) -> None:
    data: dict[str, Any] = mmsa()
    mixed = dict(data["train"])
    data["train_mix"] = mixed | {"mask": np.arange(12) % 3 == 0}
    path = write_pickle(tmp_path / "sims.pkl", data)
    dataset = load_dataset(path)
    assert len(dataset.split("train")) == 12
    assert any("left out: train_mix" in note for note in dataset.notes)
    del data["train"]
    dataset = load_dataset(write_pickle(path, data))
    assert dataset.split("train").ids.tolist() == mixed["id"][::3].tolist()
    np.testing.assert_array_equal(dataset.split("train").frames["audio"], mixed["audio"][::3])
    assert any("4 labelled samples of train_mix" in note for note in dataset.notes)


def test_low_rank_fusion(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = {
        split.encode(): {
            b"covarep": rng.normal(size=(n, 5)),
            b"facet": rng.normal(size=(n, 4)),
            b"glove": rng.normal(size=(n, 6, 3)),
            b"label": rng.uniform(-3, 3, (n, 1)),
        }
        for split, n in COUNTS.items()
    }
    dataset = load_dataset(write_pickle(tmp_path / "mosi.pkl", data, 2))
    assert dataset.widths == {"language": 3, "audio": 5, "vision": 4}
    np.testing.assert_array_equal(dataset.split("test").scores, data[b"test"][b"label"][:, 0])


def test_low_rank_fusion_by_emotion(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def of_emotion() -> dict[str, Any]:
        answers = rng.integers(0, 2, 12)
        part = {"covarep": rng.normal(size=(12, 5)), "label": np.stack([1 - answers, answers], 1)}
        return dict.fromkeys(COUNTS, part)

    data = {"happy": of_emotion(), "sad": of_emotion()}
    path = write_pickle(tmp_path / "iemocap.pkl", data)
    with pytest.raises(
        CorrKDError, match="a dataset for each of happy, sad; choose one with --label"
    ):
        load_dataset(path)
    dataset = load_dataset(path, label="sad")
    assert dataset.split("test").labels.tolist() == data["sad"]["test"]["label"][:, 1].tolist()


@pytest.mark.parametrize("extra", [False, True])
def test_a_folder_of_three_list_files(tmp_path: Path, extra: bool) -> None:
    folder = tmp_path / "MOSI"
    folder.mkdir()
    data = mag("misa")
    for split, part in data.items():
        samples = [((*x, len(x[1]), len(x[2])), y, s) for x, y, s in part] if extra else part
        write_pickle(folder / f"{split}.pkl", samples)
    dataset = load_dataset(folder, glove=glove(tmp_path / "glove.txt"))
    expected = load_dataset(write_pickle(tmp_path / "mosi.pkl", data), glove=tmp_path / "glove.txt")
    for split in COUNTS:
        assert dataset.split(split).ids.tolist() == expected.split(split).ids.tolist()
        for m in ("language", "audio", "vision"):
            np.testing.assert_array_equal(
                dataset.split(split).frames[m], expected.split(split).frames[m]
            )
    assert len(dataset.sha256) == 64
    write_pickle(folder / "valid.pkl", data["dev"])
    with pytest.raises(CorrKDError, match=r"dev\.pkl and valid\.pkl are both for split valid"):
        load_dataset(folder)


def test_a_folder_of_named_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, n in {"train": 12, "val": 5, "test": 6}.items():
        arrays = {
            "acoustic": rng.normal(size=(n, 3)),
            "labels": rng.normal(size=n).astype(np.float32),
        }
        write_pickle(tmp_path / f"mosei_{split}.pkl", arrays)
    dataset = load_dataset(tmp_path)
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "train": 12,
        "valid": 5,
        "test": 6,
    }
    assert dataset.modalities == ("audio",)
    np.testing.assert_array_equal(dataset.split("test").scores, arrays["labels"])


def test_named_arrays_in_a_pickle(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lists = [rng.normal(size=(int(n), 3)) for n in rng.integers(1, 6, 20)]
    data = {
        "acoustic": lists,
        "visual": rng.normal(size=(20, 4)),
        "scores": np.arange(20.0),
        "note": "made in May",
    }
    dataset = load_dataset(write_pickle(tmp_path / "mine.pkl", data))
    assert dataset.layout == "pickled arrays"
    assert dataset.modalities == ("audio", "vision")
    assert "left out: note" in dataset.notes
    for part in dataset.splits.values():
        for name, frames, length in zip(
            part.ids, part.frames["audio"], part.lengths["audio"], strict=True
        ):
            np.testing.assert_array_equal(
                frames[:length], lists[int(name.removeprefix("sample-"))].astype(np.float32)
            )


def test_words_in_csd_are_looked_up(tmp_path: Path) -> None:
    folder, vectors = tmp_path / "mosi", glove(tmp_path / "glove.txt")
    folder.mkdir()
    rng = np.random.default_rng(0)
    spans = np.arange(4.0)[:, None] + [0.0, 1.0]
    text = np.array([[b"good"], [b"sp"], [b"Film"], [b"bad"]])
    csd_file(folder / "ModifiedTimestampedWords.csd", "words", dict.fromkeys("abc", (text, spans)))
    csd_file(
        folder / "COVAREP.csd", "COVAREP", {v: (rng.normal(size=(4, 3)), spans) for v in "abc"}
    )
    labels = {v: (np.array([[1.0], [-2.0]]), np.array([[0.0, 2.0], [2.0, 4.0]])) for v in "abc"}
    csd_file(folder / "Opinion_Labels.csd", "Opinion Segment Labels", labels)
    folds = tmp_path / "folds.json"
    folds.write_text('{"train": ["a"], "valid": ["b"], "test": ["c"]}')
    without = load_dataset(folder, folds=folds)
    assert without.modalities == ("audio",)
    assert any("pass --glove FILE to use them as language" in note for note in without.notes)
    train = load_dataset(folder, folds=folds, glove=vectors).split("train")
    assert train.frames["language"][0].tolist() == [[1, 0, 0, 0.5], [0, 0, 0, 0]]
    assert train.frames["language"][1].tolist() == [[0, 0, 1, 0.5], [0, 1, 0, 0.5]]
    assert train.present["language"].tolist() == [[True, False], [True, True]]


def test_phones_are_no_words(tmp_path: Path) -> None:
    vectors = glove(tmp_path / "glove.txt")
    folder = tmp_path / "mosei"
    folder.mkdir()
    spans = np.arange(2.0)[:, None] + [0.0, 1.0]
    for name, texts in (
        ("TimestampedPhones", [b"AH", b"SP"]),
        ("TimestampedWords", [b"good", b"bad"]),
    ):
        csd_file(folder / f"{name}.csd", name, {"a": (np.array(texts)[:, None], spans)})
    part = load_dataset(folder, glove=vectors, targets=False).split("all")
    assert part.frames["language"][0].tolist() == [[1, 0, 0, 0.5], [0, 1, 0, 0.5]]


def test_a_modality_that_a_fold_of_a_csd_folder_lacks(tmp_path: Path) -> None:
    folder = tmp_path / "mosi"
    folder.mkdir()
    spans = np.arange(2.0)[:, None] + [0.0, 1.0]
    rng = np.random.default_rng(0)
    csd_file(
        folder / "COVAREP.csd", "COVAREP", {v: (rng.normal(size=(2, 3)), spans) for v in "abc"}
    )
    csd_file(folder / "FACET.csd", "FACET", {v: (rng.normal(size=(2, 4)), spans) for v in "ab"})
    csd_file(
        folder / "Labels.csd", "Labels", {v: (np.array([[1.0], [-2.0]]), spans) for v in "abc"}
    )
    folds = tmp_path / "folds.json"
    folds.write_text('{"train": ["a"], "valid": ["b"], "test": ["c"]}')
    dataset = load_dataset(folder, folds=folds)
    assert dataset.widths == {"audio": 3, "vision": 4}
    assert not dataset.split("test").present["vision"].any()


def test_files_without_labels_are_read_for_predictions(tmp_path: Path) -> None:
    """Every layout: the same frames as with labels, and one line where labels are needed."""
    unlabelled: dict[str, Any] = {"mmsa": mmsa(), "mult": mult(), "mag": mag("vectors")}
    for part in unlabelled["mmsa"].values():
        del part["regression_labels"], part["classification_labels"], part["annotations"]
    for part in unlabelled["mult"].values():
        del part["labels"]
    unlabelled["mag"] = {
        split: [(x, None, s) for x, _, s in part] for split, part in unlabelled["mag"].items()
    }
    labelled = {"mmsa": mmsa(), "mult": mult(), "mag": mag("vectors")}
    for name, data in unlabelled.items():
        path = write_pickle(tmp_path / f"{name}.pkl", data)
        dataset = load_dataset(path, targets=False)
        expected = load_dataset(write_pickle(tmp_path / f"{name}-labelled.pkl", labelled[name]))
        for split, part in dataset.splits.items():
            assert (part.scores, part.labels) == (None, None)
            for m, frames in expected.split(split).frames.items():
                np.testing.assert_array_equal(part.frames[m], frames)
        with pytest.raises(CorrKDError, match="neither scores nor labels"):
            load_dataset(path)


def test_a_csd_folder_without_labels(tmp_path: Path) -> None:
    spans = np.arange(6.0)[:, None] / 2 + [0.0, 0.5]
    rng = np.random.default_rng(0)
    audio = {v: (rng.normal(size=(6, 3)), spans) for v in ("one", "two")}
    csd_file(tmp_path / "COVAREP.csd", "COVAREP", audio)
    dataset = load_dataset(tmp_path, targets=False)
    part = dataset.split("all")
    assert part.ids.tolist() == ["one$_$0", "two$_$0"]
    np.testing.assert_array_equal(part.frames["audio"][1], audio["two"][0].astype(np.float32))
    with pytest.raises(CorrKDError, match="no label sequence"):
        load_dataset(tmp_path)


def test_token_ids_without_states_do_not_vanish(tmp_path: Path) -> None:
    data = mmsa()
    for part in data.values():
        del part["text"]
    with pytest.raises(CorrKDError, match="has text_bert, the token ids of BERT, but no `text`"):
        load_dataset(write_pickle(tmp_path / "set.pkl", data))


@pytest.mark.parametrize("name", ["audio", "gaze"])
def test_a_modality_with_a_row_too_few_is_an_error(tmp_path: Path, name: str) -> None:
    scores = np.arange(20.0)
    np.savez(
        tmp_path / "set.npz", speech=np.ones((20, 3)), scores=scores, **{name: np.ones((19, 2))}
    )
    with pytest.raises(CorrKDError, match=f"array {name} has 19 rows for 20 samples"):
        load_dataset(tmp_path / "set.npz")
    for data in (mmsa(), mult()):
        data["train"][name] = np.ones((11, 4, 2))
        with pytest.raises(CorrKDError, match=f"train: array {name} has 11 rows for 12 samples"):
            load_dataset(write_pickle(tmp_path / "set.pkl", data))


def test_presence_of_whole_sequences(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    there = np.arange(20) % 4 != 0
    np.savez(
        tmp_path / "set.npz",
        speech=rng.normal(size=(20, 5, 3)),
        speech_lengths=np.full(20, 4),
        speech_present=there,
        face=rng.normal(size=(20, 2)),
        scores=np.arange(20.0),
        ids=np.arange(20),
    )
    for part in load_dataset(tmp_path / "set.npz").splits.values():
        expected = there[part.ids.astype(int)]
        np.testing.assert_array_equal(
            part.present["speech"], np.repeat(expected[:, None], 5, 1) & part.exists("speech")
        )
        assert not part.frames["speech"][~expected].any()
    np.savez(
        tmp_path / "set.npz",
        speech=np.ones((20, 5, 3)),
        speech_present=np.full(20, 0.5),
        scores=np.arange(20.0),
    )
    with pytest.raises(CorrKDError, match="speech_present has values that are not true or false"):
        load_dataset(tmp_path / "set.npz")


@pytest.mark.parametrize("left_out", ["key", "zeros", "nan"])
def test_a_modality_that_a_split_lacks_is_missing_there(tmp_path: Path, left_out: str) -> None:
    data = mmsa(aligned=True)
    if left_out == "key":
        del data["test"]["audio"]
    else:
        data["test"]["audio"] = np.full_like(
            data["test"]["audio"], 0 if left_out == "zeros" else np.nan
        )
    full = load_dataset(write_pickle(tmp_path / "full.pkl", mmsa(aligned=True)))
    dataset = load_dataset(write_pickle(tmp_path / "set.pkl", data))
    test = dataset.split("test")
    assert not test.present["audio"].any()
    np.testing.assert_array_equal(test.lengths["language"], full.split("test").lengths["language"])
    np.testing.assert_array_equal(test.frames["vision"], full.split("test").frames["vision"])
    data["train"].pop("audio")
    with pytest.raises(CorrKDError, match="train: has no audio"):
        load_dataset(write_pickle(tmp_path / "set.pkl", data))


def test_a_split_without_any_modality(tmp_path: Path) -> None:
    data = mult()
    for key in ("text", "audio", "vision"):
        del data["test"][key]
    with pytest.raises(CorrKDError, match="test: no modality found"):
        load_dataset(write_pickle(tmp_path / "set.pkl", data))
