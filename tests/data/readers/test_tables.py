"""Tables and arrays in memory: every form gives the same dataset, and every refusal says what to
write instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corrkd.data.dataset import MultimodalDataset
from corrkd.data.load import load_dataset
from corrkd.data.readers.deal import dealt
from corrkd.errors import CorrKDError

NUM_SAMPLES = 24


def records(seed: int = 0, *, count: int = NUM_SAMPLES) -> dict[str, Any]:
    """A dict of arrays with ragged frames, vectors, and every kind of missing value."""
    rng = np.random.default_rng(seed)
    speech: list[Any] = [
        rng.normal(size=(rng.integers(1, 5), 3)).astype(np.float32) for _ in range(count)
    ]
    speech[1] = None
    speech[2][0] = np.nan
    form = rng.normal(size=(count, 2)).astype(np.float32)
    form[3] = np.nan
    return {
        "id": [f"{row:03d}" for row in range(count)],
        "person": [f"p{row % 8}" for row in range(count)],
        "label": [("sad", "happy", "calm")[row % 3] for row in range(count)],
        "speech": speech,
        "form": form,
    }


def frame_of(data: dict[str, Any]) -> pd.DataFrame:
    columns = {key: values for key, values in data.items() if key not in ("speech", "form")}
    speech = [None if x is None else x.tolist() for x in data["speech"]]
    form = {f"form_{index}": data["form"][:, index] for index in range(2)}
    return pd.DataFrame({**columns, "speech": speech, **form})


def assert_same(a: MultimodalDataset, b: MultimodalDataset) -> None:
    assert (a.modalities, a.class_names, list(a.splits)) == (
        b.modalities,
        b.class_names,
        list(b.splits),
    )
    for split, expected in a.splits.items():
        other = b.splits[split]
        assert expected.ids.tolist() == other.ids.tolist()
        assert np.array_equal(expected.labels, other.labels)
        assert {g: x.tolist() for g, x in expected.groups.items()} == {
            g: x.tolist() for g, x in other.groups.items()
        }
        for m in a.modalities:
            assert np.allclose(expected.frames[m], other.frames[m])
            assert np.array_equal(expected.lengths[m], other.lengths[m])
            assert np.array_equal(expected.present[m], other.present[m])


def test_a_dict_of_arrays_marks_what_is_missing() -> None:
    dataset = load_dataset(records())
    assert (dataset.layout, dataset.name) == ("arrays in memory", "in-memory")
    assert dataset.class_names == ("calm", "happy", "sad")
    assert dataset.widths == {"speech": 3, "form": 2}
    where = {
        name: (split, row)
        for split, part in dataset.splits.items()
        for row, name in enumerate(part.ids)
    }
    split, row = where["001"]
    assert not dataset.splits[split].present["speech"][row].any()
    split, row = where["002"]
    assert not dataset.splits[split].present["speech"][row, 0]
    assert dataset.splits[split].exists("speech")[row, 0]
    split, row = where["003"]
    assert not dataset.splits[split].present["form"][row].any()
    assert any(
        note == "no splits in the data: assigned at random as 70/15/15 % by person, seed 0"
        for note in dataset.notes
    )
    people = [set(part.groups["person"].tolist()) for part in dataset.splits.values()]
    assert not people[0] & people[1] | people[0] & people[2] | people[1] & people[2]


@settings(
    deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_form_holds_the_same_dataset(seed: int, tmp_path: Path) -> None:
    data = records(seed)
    expected, frame = load_dataset(data), frame_of(data)
    frame.to_csv(tmp_path / "data.csv", index=False)
    frame.to_csv(tmp_path / "data.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "data.parquet")
    frame.reset_index(drop=True).to_feather(tmp_path / "data.arrow")
    read_again = pd.read_parquet(tmp_path / "data.parquet")  # its frames are arrays of arrays
    for source in (frame, read_again, pa.Table.from_pandas(frame), frame.to_dict("records")):
        assert_same(load_dataset(source), expected)
    for ending in ("csv", "tsv", "parquet", "arrow"):
        assert_same(load_dataset(tmp_path / f"data.{ending}"), expected)


def test_a_hugging_face_dataset_from_memory_and_from_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    data = records()
    rows = datasets.Dataset.from_pandas(frame_of(data))
    assert_same(load_dataset(rows), load_dataset(data))
    rows.save_to_disk(tmp_path / "saved")
    assert_same(load_dataset(tmp_path / "saved"), load_dataset(data))
    splits = rows.train_test_split(0.25, seed=0)
    splits.save_to_disk(tmp_path / "splits")
    saved = load_dataset(tmp_path / "splits")
    assert_same(saved, load_dataset(splits))
    assert len(saved.sha256) == 64
    assert "no validation split: 15 % of train held out by person, seed 0" in saved.notes
    assert len(saved.splits["test"]) == 6


def test_what_datasets_says_of_its_classes_and_arrays(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "face": datasets.Array2D((2, 3), "float32"),
            "audio": datasets.List(datasets.List(datasets.Value("float32"), length=2)),
            "label": datasets.ClassLabel(names=["positive", "negative"]),
        }
    )
    rng = np.random.default_rng(0)
    rows = {
        "face": [rng.normal(size=(2, 3)) for _ in range(9)],
        "audio": [None, *(rng.normal(size=(1 + row % 3, 2)).tolist() for row in range(8))],
        "label": [row % 2 for row in range(9)],
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(tmp_path / "saved")
    for source in (made, tmp_path / "saved"):
        dataset = load_dataset(source)
        assert dataset.class_names == ("positive", "negative")
        assert dataset.widths == {"audio": 2, "face": 3}
        assert (
            sum(int((~part.present["audio"]).all(1).sum()) for part in dataset.splits.values()) == 1
        )
    chosen = made.select(range(8, -1, -1))  # an index over the rows
    assert len(load_dataset(chosen).splits) == 3


def test_a_saved_dataset_is_read_without_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.Table.from_pandas(frame_of(records()), preserve_index=False)
    with (
        pa.OSFile(str(tmp_path / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    (tmp_path / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    )
    assert_same(load_dataset(tmp_path), load_dataset(records()))
    (tmp_path / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "../elsewhere.arrow"}]})
    )
    with pytest.raises(CorrKDError, match="is not the name of a file in its folder"):
        load_dataset(tmp_path)


def test_a_table_for_each_split_and_shards_as_on_the_hub(tmp_path: Path) -> None:
    frame = frame_of(records())
    parts = {"train": frame[:16], "dev": frame[16:20], "test": frame[20:]}
    for split, part in parts.items():
        part.to_csv(tmp_path / f"{split}.csv", index=False)
    dataset = load_dataset(tmp_path)
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "train": 16,
        "valid": 4,
        "test": 4,
    }
    assert_same(dataset, load_dataset(parts))
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    frame[:9].to_parquet(hub / "train-00000-of-00002.parquet")
    frame[9:16].to_parquet(hub / "train-00001-of-00002.parquet")
    frame[16:20].to_parquet(hub / "validation-00000-of-00001.parquet")
    frame[20:].to_parquet(hub / "test-00000-of-00001.parquet")
    assert_same(load_dataset(tmp_path / "hub"), dataset)


def test_a_sample_whose_frames_are_all_empty_lacks_the_modality() -> None:
    speech = [[[1.0, float(row)]] for row in range(12)]
    speech[0], speech[1] = [[], []], []  # type: ignore[list-item]
    dataset = load_dataset({"speech": speech, "label": Y})
    assert sum(int((~part.present["speech"]).all(1).sum()) for part in dataset.splits.values()) == 2


def test_a_modality_that_a_split_lacks_is_missing_there() -> None:
    frame = frame_of(records())
    dataset = load_dataset(
        {"train": frame[:14], "valid": frame[14:18], "test": frame[18:].drop(columns="speech")}
    )
    assert not dataset.splits["test"].present["speech"].any()
    assert dataset.splits["train"].present["speech"].any()


@pytest.mark.parametrize(
    ("columns", "modalities"),
    [
        (["audio_0", "audio_1", "text_0", "text_1"], {"language": 2, "audio": 2}),
        (["audio_pitch", "audio_mfcc_1", "AU01", "AU02"], {"audio": 2, "AU": 2}),
        (
            ["hubert_large_0", "hubert_large_1", "openface.AU01", "openface.AU02"],
            {"hubert_large": 2, "openface": 2},
        ),
        (["vision_gaze_x", "vision_gaze_y", "age", "Unnamed: 0"], {"vision": 2}),
        (["video_0", "video_1", "video_10", "video_2"], {"vision": 4}),
        (["egemaps[0]", "egemaps[1]", "feat12", "feat3"], {"egemaps": 2, "feat": 2}),
    ],
)
def test_a_prefix_is_a_modality(columns: list[str], modalities: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {name: rng.normal(size=12) for name in columns} | {"label": np.arange(12) % 2}
    )
    assert load_dataset(frame).widths == modalities


def test_numbered_columns_are_in_the_order_of_their_numbers() -> None:
    frame = pd.DataFrame(
        {f"audio_{index}": np.full(12, float(index)) + np.arange(12) for index in (10, 9, 0, 1)}
    )
    frame["y"] = np.arange(12) % 2
    dataset = load_dataset(frame)
    first = dataset.splits["train"].frames["audio"][0, 0]
    assert (np.diff(first) > 0).all()


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        ([0, 1, 2], (), {0, 1, 2}),
        ([-1, 0, 1], ("-1", "0", "1"), {0, 1, 2}),
        ([1, 2, 10], ("1", "2", "10"), {0, 1, 2}),
        (["b", "c", "a"], ("a", "b", "c"), {0, 1, 2}),
        ([True, False, True], (), {0, 1}),
        (["1", "2", "3"], ("1", "2", "3"), {0, 1, 2}),
        (["None", "NA", "null"], ("NA", "None", "null"), {0, 1, 2}),
    ],
)
@pytest.mark.parametrize("column", ["label", "labels", "Y", "target", "Class"])
def test_labels_by_any_name_and_number(
    labels: list[Any], names: tuple[str, ...], classes: set[int], column: str, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(size=(12, 2))
    frame = pd.DataFrame({"audio_0": x[:, 0], "audio_1": x[:, 1], column: labels * 4})
    frame.to_csv(tmp_path / "data.csv", index=False)
    sources: list[Any] = [frame, {"audio": x, column: labels * 4}]
    if labels != [True, False, True]:  # text in a CSV file
        sources.append(tmp_path / "data.csv")
    for source in sources:
        dataset = load_dataset(source)
        assert dataset.class_names == names
        found = np.concatenate(
            [part.labels for part in dataset.splits.values() if part.labels is not None]
        )
        assert set(found.tolist()) == classes


def test_scores_questions_and_columns_to_choose() -> None:
    x = np.random.default_rng(0).normal(size=(12, 2))
    scores = np.linspace(-3, 3, 12)
    assert load_dataset({"audio": x, "score": scores}).splits["train"].scores is not None
    assert load_dataset({"audio": x, "y": scores}).splits["train"].scores is not None
    answers = np.stack([np.arange(12) % 2, np.arange(12) // 6], 1)
    frame = pd.DataFrame(x, columns=["audio_0", "audio_1"]).assign(
        label_happy=answers[:, 0], label_sad=answers[:, 1]
    )
    dataset = load_dataset(frame)
    assert dataset.question_names == ("happy", "sad")
    assert dataset.splits["train"].labels is not None
    assert dataset.splits["train"].labels.shape[1] == 2
    assert load_dataset({"audio": x, "labels": answers}).splits["train"].labels is not None
    words = pd.DataFrame(x, columns=["audio_0", "audio_1"]).assign(
        emotion=["a", "b"] * 6, annotation=["c", "d", "e"] * 4
    )
    assert load_dataset(words, label="annotation").class_names == ("c", "d", "e")
    assert load_dataset(words.drop(columns="annotation")).class_names == ("a", "b")
    with pytest.raises(CorrKDError, match="may be the label; choose one with label"):
        load_dataset(words)


def test_tensors_series_and_video_as_features() -> None:
    rng = np.random.default_rng(0)
    dataset = load_dataset(
        {
            "video": torch.from_numpy(rng.normal(size=(12, 4, 2))),
            "text": [torch.from_numpy(rng.normal(size=(1 + row % 3, 5))) for row in range(12)],
            "counts": rng.integers(0, 9, (12, 3)),
            "label": pd.Series(["a", "b"] * 6),
        }
    )
    assert dataset.widths == {"language": 5, "vision": 2, "counts": 3}


def test_what_is_to_be_predicted_needs_no_labels_and_stays_together() -> None:
    data = {key: values for key, values in records().items() if key in ("speech", "form")}
    assert list(load_dataset(data, targets=False).splits) == ["all"]
    frame = frame_of(records()).assign(label=None)
    assert list(load_dataset(frame, targets=False).splits) == ["all"]
    assert list(load_dataset(frame_of(records())[:2], targets=False).splits) == ["all"]


def test_labelled_samples_fall_into_the_splits_of_a_training_in_any_case() -> None:
    assert_same(load_dataset(records(), targets=False), load_dataset(records()))


def test_mmsa_fets_label_file_names_its_clips(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "video_id": [f"v{row // 4}" for row in range(16)],
            "clip_id": [row % 4 for row in range(16)],
            "text": "words",
            "label": np.linspace(-1, 1, 16),
            "mode": ["train"] * 8 + ["valid"] * 4 + ["test"] * 4,
            "audio_0": np.linspace(0, 1, 16),
            "audio_1": np.linspace(0, 2, 16),
        }
    )
    frame.to_csv(tmp_path / "label.csv", index=False)
    dataset = load_dataset(tmp_path / "label.csv")
    assert dataset.splits["train"].ids[0] == "v0$_$0"
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "train": 8,
        "valid": 4,
        "test": 4,
    }


def test_a_spreadsheet_of_another_country(tmp_path: Path) -> None:
    lines = ["\ufeffaudio_0;audio_1;label"] + [
        f"{row},5;{-row},25;{'ab'[row % 2]}" for row in range(12)
    ]
    (tmp_path / "data.csv").write_text("\n".join(lines), encoding="utf-8")
    dataset = load_dataset(tmp_path / "data.csv")
    assert dataset.widths == {"audio": 2}
    assert dataset.class_names == ("a", "b")


X = np.random.default_rng(0).normal(size=(12, 2))
Y = np.arange(12) % 2


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (42, "a int is not a dataset; give a path, a MultimodalDataset, a data frame"),
        ({}, "a table without columns; write columns such as"),
        ({"audio": X}, "an array `scores` or `labels` is required"),
        ({"audio": X, "label": Y[:5]}, "differ in their number of samples: audio 12, label 5"),
        ({"label": Y, "age": X[:, 0]}, "name columns of numbers by modality, as audio_0, audio_1"),
        ({"audio": X, "label": [None, *Y[1:].tolist()]}, r"1 of 12 rows have no label; .*dropna"),
        ({"audio": [[1.0, 2.0]] * 6 + [[[1.0, 2.0]]] * 6, "label": Y}, "make all lists of frames"),
        (
            {"audio": [[[1.0, 2.0]]] * 6 + [[[1.0, 2.0, 3.0]]] * 6, "label": Y},
            "frames are 2, 3 wide",
        ),
        ({"audio": ["a.wav"] * 12, "label": Y}, "no modality in audio, label"),
        (
            {"audio": X[:2], "label": Y[:2]},
            "2 groups or samples are too few for 3 splits; name the split",
        ),
        ({"audio": X, "label": Y, "split": ["train", "holdout"] * 6}, "allowed are train, valid"),
        ({"audio": 3.0, "label": Y}, "not one value for each sample"),
        (
            {"audio": X[:, :, None, None], "label": Y},
            r"give numbers of shape \(samples, frames, width\)",
        ),
        (
            {"train": {"audio": X, "label": Y}, "dev": {"audio": X[:, :1], "label": Y}},
            "1 or 2 wide",
        ),
    ],
)
def test_a_refusal_says_what_to_write(source: Any, words: str) -> None:
    with pytest.raises(CorrKDError, match=words) as error:
        load_dataset(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.5,1.5,1\n0.25,2.5,0\n", "the first line holds numbers, not names; write a heading"),
        ("audio_0,audio_0,label\n1,2,a\n", "column 'audio_0' appears twice"),
        ("audio_0,label\n1,2,a\n", "the heading has 2 columns and the first row 3"),
        ("audio_0,label\n", "a single line, not a table"),
        (
            "audio,label\n[0.1 0.2],a\n[0.1 0.2],b\n",
            r"is not a list of numbers; write \[0.1, 0.2\]",
        ),
        ("audio_0,label\n1,a\n2,b,3,4\n", "not a table: .*; write a heading"),
        (b"audio_0,label\n1,\xe4\n", "not UTF-8 text; save it as `CSV UTF-8`"),
    ],
)
def test_a_csv_that_is_none(text: str | bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(CorrKDError, match=words):
        load_dataset(tmp_path / "data.csv")


def test_a_parquet_file_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    zeros = pa.array(np.zeros(40_000_000))
    pq.write_table(
        pa.table({"audio_0": zeros, "audio_1": zeros, "label": zeros}), tmp_path / "bomb.parquet"
    )
    with pytest.raises(CorrKDError, match="refused as a decompression bomb"):
        load_dataset(tmp_path / "bomb.parquet")


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=3, max_size=40), seed=st.integers(0, 99))
def test_dealing_keeps_groups_together_and_leaves_no_split_empty(
    sizes: list[int], seed: int
) -> None:
    members = np.repeat([f"g{index}" for index in range(len(sizes))], sizes)
    split = dealt(members, seed=seed)
    assert set(split) == {"train", "valid", "test"}
    assert all(len(set(split[members == name])) == 1 for name in set(members))
    order = np.random.default_rng(seed).permutation(len(members))
    assert (dealt(members[order], seed=seed) == split[order]).all()
