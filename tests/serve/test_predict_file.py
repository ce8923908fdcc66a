from __future__ import annotations

import csv
import json
import re
import resource
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import corrkd as package
from corrkd.data.convert import convert
from corrkd.data.dataset import MultimodalDataset, Split
from corrkd.errors import CorrKDError
from corrkd.evaluation.judge import samples_of
from corrkd.evaluation.sweep import sweep
from corrkd.files import exclusive
from corrkd.missing.conditions import condition
from corrkd.networks.saved import load_student
from corrkd.serve import prediction_table
from corrkd.serve.predict_file import differences, predict_file
from corrkd.serve.predictor import Predictor
from corrkd.serve.standalone import Prediction
from corrkd.targets.calibration import tempered
from tests.command import Ended, corrkd, ends_at
from tests.conftest import make_split
from tests.experiment.conftest import tiny
from tests.serve.conftest import dataset_for, sample_of, student

FORMATS = (".csv", ".parquet", ".jsonl")
WIDTHS = {"language": 5, "audio": 3, "vision": 4}


def incomplete(split: Split) -> Split:
    """Return the split with some frames and some whole modalities missing."""
    rng = np.random.default_rng(4)
    present = {
        m: p & (rng.random(p.shape) > 0.2) & (rng.random((len(p), 1)) > 0.3)
        for m, p in split.present.items()
    }
    frames = {m: x * present[m][..., None] for m, x in split.frames.items()}
    return replace(split, present=present, frames=frames)


def dataset_of(target: str = "classes") -> MultimodalDataset:
    dataset = dataset_for(target)
    return replace(
        dataset, splits={name: incomplete(split) for name, split in dataset.splits.items()}
    )


def predictions_of(predictor: Predictor, split: Split, **options: Any) -> list[Prediction]:
    """Return the predictions of the split's samples."""
    samples = []
    for row in range(len(split)):
        sample = sample_of(split, row)
        masks = {f"{m}_present": split.present[m][row, : len(x)] for m, x in sample.items()}
        samples.append(sample | masks)
    return predictor.predict(samples, **options)


def rows_of(
    name: str, split: str | None, prediction: Prediction, level: bool
) -> Iterator[dict[str, Any]]:
    """Yield a prediction's rows of the table."""
    reliability = prediction.reliability
    common = {
        "id": name,
        **({} if split is None else {"split": split}),
        **{f"used_{m}": share for m, share in prediction.used.items()},
        "condition": reliability and reliability.condition,
        "weighted_f1": reliability and reliability.measured["weighted_f1"],
        "harder": reliability and reliability.harder,
    }
    if prediction.score is not None:
        low, high = prediction.interval or (None, None)
        yield {
            **common,
            "score": prediction.score,
            "label": prediction.label,
            **({"low": low, "high": high} if level else {}),
        }
        return
    nested = isinstance(prediction.label, dict)
    for question in prediction.label if nested else [None]:
        pick = (
            (lambda values, q=question: values and values[q]) if nested else (lambda values: values)
        )
        row = {
            **common,
            "label": pick(prediction.label),
            **({"question": question} if nested else {}),
        }
        row |= {f"p_{c}": p for c, p in pick(prediction.probabilities).items()}
        labels = pick(prediction.prediction_set)
        yield row | ({"in_set": None if labels is None else "|".join(labels)} if level else {})


def read(path: Path) -> list[dict[str, Any]]:
    """Read a table's rows, with None for empty cells."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {column: value_of(column, text) for column, text in row.items()}
            for row in csv.DictReader(file)
        ]


def value_of(column: str, text: str) -> Any:
    if text == "" or column in ("id", "split", "question", "label", "condition", "in_set"):
        return text or None
    return {"True": True, "False": False}[text] if column == "harder" else float(text)


# --------------------------------------------------------------------------------------------------
# contents of the table


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("level", [None, 0.9])
@pytest.mark.parametrize("target", ["classes", "questions", "score"])
def test_matches_predict(target: str, level: float | None, suffix: str, tmp_path: Path) -> None:
    saved, dataset, out = student(target, level=level), dataset_of(target), tmp_path / f"p{suffix}"
    assert saved.evaluated is not None
    tested = tuple(c for c in saved.evaluated.conditions if c.name != "audio")
    predictor = Predictor(
        replace(saved, evaluated=saved.evaluated.model_copy(update={"conditions": tested}))
    )
    assert predict_file(predictor, dataset, out) == 114
    actual, expected = read(out), []
    for name, split in dataset.splits.items():
        for sample, prediction in zip(
            split.ids.tolist(), predictions_of(predictor, split), strict=True
        ):
            rows = list(rows_of(sample, name, prediction, level is not None))
            record = {"id": sample, "split": name, **json.loads(json.dumps(prediction.to_json()))}
            expected += [record] if suffix == ".jsonl" else rows
    if suffix == ".csv":  # an empty set and no set look alike
        expected = [{c: None if v == "" else v for c, v in row.items()} for row in expected]
    assert actual == expected
    if suffix != ".jsonl":
        order = ["id", "split", "question", "score", "label", "p_0", "p_1", "p_2", "p_no", "p_yes"]
        order += [
            *(f"used_{m}" for m in WIDTHS),
            "condition",
            "weighted_f1",
            "harder",
            "in_set",
            "low",
            "high",
        ]
        assert list(actual[0]) == [c for c in order if c in expected[0]]
        assert {row["harder"] for row in actual} == {True, False, None}
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_samples_excluded_by_the_target_are_predicted(tmp_path: Path) -> None:
    dataset = dataset_for("binary-nonzero")
    scores = dataset.split("test").scores
    assert scores is not None
    scores[:9] = 0.0
    assert (
        predict_file(
            Predictor(student("binary-nonzero")), dataset, tmp_path / "p.csv", split="test"
        )
        == 36
    )
    assert pd.read_csv(tmp_path / "p.csv")["id"].tolist() == dataset.split("test").ids.tolist()


def test_unusual_ids(tmp_path: Path) -> None:
    split = dataset_for("classes").split("test")
    names = [
        'a "quoted", one',
        "two\nlines",
        "three\u2028separated\x85",
        "é",
        *split.ids[4:].tolist(),
    ]
    dataset = MultimodalDataset(name="x", splits={"test": replace(split, ids=np.array(names))})
    for suffix in FORMATS:
        predict_file(Predictor(student()), dataset, tmp_path / f"p{suffix}")
    assert pd.read_csv(tmp_path / "p.csv")["id"].tolist() == names
    assert pd.read_parquet(tmp_path / "p.parquet")["id"].tolist() == names
    assert [
        json.loads(x)["id"] for x in (tmp_path / "p.jsonl").open(encoding="utf-8", newline="\n")
    ] == names


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_batch_size_changes_only_rounding(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_table, "GROUP", 50)
    predictor, dataset, tables = Predictor(student(level=0.9)), dataset_of(), []
    for size in (1, 17, 256):
        out = tmp_path / f"{size}{suffix}"
        predict_file(predictor, dataset, out, batch_size=size)
        tables.append(read(out))
        if suffix == ".parquet":
            about = pq.read_metadata(out)
            assert [about.row_group(n).num_rows for n in range(about.num_row_groups)] == [
                50,
                50,
                14,
            ]
    for table in tables[:-1]:
        for row, other in zip(table, tables[-1], strict=True):
            assert row.keys() == other.keys()
            for key, value in row.items():
                numbers = isinstance(value, float) or key in ("probabilities", "used")
                assert value == (pytest.approx(other[key], abs=1e-5) if numbers else other[key]), (
                    key
                )


# --------------------------------------------------------------------------------------------------
# other data


def unlabelled(folder: Path, **changes: Any) -> Path:
    """Write samples without targets."""
    split = make_split(20, WIDTHS, seed=8)
    arrays: dict[str, Any] = {
        **split.frames,
        **{f"{m}_lengths": x for m, x in split.lengths.items()},
        **changes,
    }
    path = folder / "new.npz"
    np.savez(path, **{key: x for key, x in arrays.items() if x is not None})
    return path


def test_data_without_targets(tmp_path: Path) -> None:
    predictor, out = Predictor(student()), tmp_path / "p.csv"
    expected = predictions_of(predictor, make_split(20, WIDTHS, seed=8))

    def table_of(path: Path, **options: Any) -> pd.DataFrame:
        predict_file(
            predictor, package.load_dataset(path, targets=False), out, overwrite=True, **options
        )
        return pd.read_csv(out)

    for ids, names in (
        (None, [f"sample-{n}" for n in range(20)]),
        (np.arange(20) + 5, list(range(5, 25))),
    ):
        table = table_of(unlabelled(tmp_path, ids=ids))
        assert "split" not in table
        assert table["id"].tolist() == names
        assert table["label"].astype(str).tolist() == [prediction.label for prediction in expected]
    convert(package.load_dataset(tmp_path / "new.npz", targets=False), tmp_path / "new.safetensors")
    pd.testing.assert_frame_equal(table_of(tmp_path / "new.safetensors"), table)
    with pytest.raises(CorrKDError, match="dataset new: has no split 'test'; it has all"):
        table_of(tmp_path / "new.npz", split="test")
    named = unlabelled(tmp_path, split=np.repeat(["test", "train"], [5, 15]))
    assert table_of(named)["split"].tolist() == ["train"] * 15 + ["test"] * 5
    subset = table_of(named, split="test")
    assert subset["split"].tolist() == ["test"] * 5
    assert subset["label"].astype(str).tolist() == [prediction.label for prediction in expected[:5]]


def test_other_modalities(tmp_path: Path) -> None:
    predictor, out = Predictor(student()), tmp_path / "p.jsonl"
    split = make_split(20, WIDTHS, seed=8)
    path = unlabelled(tmp_path, vision=None, vision_lengths=None, gaze=np.ones((20, 3, 7)) * 0.5)
    dataset = package.load_dataset(path, targets=False)
    assert differences(predictor.saved, dataset) == [
        "the data has no vision: it is missing in every sample",
        "the model does not use gaze: ignored",
    ]
    predict_file(predictor, dataset, out)
    samples = [
        {m: x for m, x in sample_of(split, row).items() if m != "vision"} for row in range(20)
    ]
    lines = [
        json.loads(json.dumps(prediction.to_json())) for prediction in predictor.predict(samples)
    ]
    assert read(out) == [{"id": f"sample-{n}", **line} for n, line in enumerate(lines)]
    assert {line["reliability"]["condition"] for line in lines} == {"language+audio"}
    assert {line["used"]["vision"] for line in lines} == {0.0}

    for changes, message in (
        (
            {"audio": np.ones((20, 6, 2))},
            "modality audio is 2 wide, but the model was trained on 3",
        ),
        (
            dict.fromkeys((*WIDTHS, *(f"{m}_lengths" for m in WIDTHS)))
            | {"gaze": np.ones((20, 3, 7))},
            "has none of the model's modalities language, audio, vision; it has gaze",
        ),
    ):
        with pytest.raises(CorrKDError, match=message):
            predict_file(
                predictor,
                package.load_dataset(unlabelled(tmp_path, **changes), targets=False),
                tmp_path / "q.csv",
            )
    assert {p.name for p in tmp_path.iterdir()} == {"p.jsonl", "new.npz"}


@pytest.mark.parametrize("target", ["classes", "questions", "score"])
@pytest.mark.parametrize(
    "name", ["language+audio", "vision", "ratio-0.5", "burst-0.5", "late-0.5", "ratio-1.0"]
)
def test_conditions_match_the_evaluation(name: str, target: str, tmp_path: Path) -> None:
    saved, dataset = student(target), dataset_of(target)
    predict_file(
        Predictor(saved), dataset, tmp_path / "p.jsonl", split="test", condition=name, batch_size=7
    )
    samples = samples_of(saved, dataset, "test", device=torch.device("cpu"))
    wanted = condition(name, dataset.modalities)
    result = sweep(saved.network, samples, [wanted])[0]
    assert saved.evaluated is not None
    temperatures = {c.name: c.temperature for c in saved.evaluated.conditions}
    dropped = wanted.dropped(samples.without_frames(), seed=2024, draw=0)
    for row, line in enumerate(read(tmp_path / "p.jsonl")):
        reliability, expected = line["reliability"], result.response[row]
        if target == "score":
            np.testing.assert_allclose([line["score"]], expected, atol=2e-6)
        else:
            values = line["probabilities"].values()
            shares = np.array([list(v.values()) if isinstance(v, dict) else v for v in values])
            expected = tempered(
                expected, temperatures[reliability["condition"]] if reliability else 1.0
            )
            np.testing.assert_allclose(shares, expected, atol=2e-6)
        for m, share in line["used"].items():
            visible = samples.present[m][row] & ~dropped[m][row]
            assert share == pytest.approx(float(visible.sum() / samples.exists[m][row].sum()))


def test_conditions_that_remove_nothing_or_everything_are_refused(tmp_path: Path) -> None:
    predictor, out = Predictor(student()), tmp_path / "p.csv"
    dataset = package.load_dataset(
        unlabelled(tmp_path, vision=None, vision_lengths=None), targets=False
    )
    for name, message in (
        ("natural", "condition 'natural' removes no frames; name the modalities to keep"),
        ("noise-0.5", "condition 'noise-0.5' removes no frames"),
        (
            "vision",
            "condition 'vision' keeps no modality of dataset new, which has language, audio",
        ),
        ("smell", "unknown condition 'smell'; available: complete, language"),
    ):
        with pytest.raises(CorrKDError, match=message):
            predict_file(predictor, dataset, out, condition=name)
    predict_file(predictor, dataset, out, condition="audio+vision")
    assert set(pd.read_csv(out)["condition"]) == {"audio"}


# --------------------------------------------------------------------------------------------------
# batch by batch


class TrackedFrames:
    """Frames that must be read a batch at a time, each after the last one is freed."""

    def __init__(self, frames: np.ndarray, batch_size: int) -> None:
        self.frames, self.batch_size = frames, batch_size
        self.shape, self.ndim = frames.shape, frames.ndim
        self.alive = 0
        self.taken: list[int] = []

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, rows: Any) -> np.ndarray:
        import weakref

        assert self.alive == 0, "the batch before is still held"
        out = self.frames[rows].view(TrackedArray)
        assert len(out) <= self.batch_size
        self.taken += np.arange(len(self.frames))[rows].tolist()
        self.alive += 1
        weakref.finalize(out, self.freed)
        return out

    def freed(self) -> None:
        self.alive -= 1


class TrackedArray(np.ndarray):
    """An array whose lifetime can be tracked."""


def test_frames_are_read_a_batch_at_a_time(tmp_path: Path) -> None:
    split = dataset_of().split("test")
    watched = {m: TrackedFrames(x, 5) for m, x in split.frames.items()}
    dataset = MultimodalDataset(name="x", splits={"test": replace(split, frames=watched)})  # type: ignore[arg-type]
    done: list[int] = []
    predict_file(
        Predictor(student()), dataset, tmp_path / "p.csv", batch_size=5, on_batch=done.append
    )
    assert done == [5] * 7 + [1]
    glimpsed = list(range(0, 36, 3))  # read one by one to fingerprint the data
    assert all(w.taken == glimpsed + list(range(36)) for w in watched.values())
    predict_file(
        Predictor(student()),
        replace(dataset, splits={"test": split}),
        tmp_path / "q.csv",
        batch_size=5,
    )
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "q.csv").read_bytes()


def test_rows_are_read_lazily(tmp_path: Path) -> None:
    """One file at a time, and no further than requested."""
    line = {"id": "a", "label": "b", "used": {}, "reliability": None}
    files = [tmp_path / f"{n}.jsonl" for n in range(2)]
    files[0].write_text(f"{json.dumps(line)}\n" * 3)
    rows = prediction_table.rows(files)
    assert [next(rows)["id"] for _ in range(3)] == ["a"] * 3
    files[1].write_text("{\n")  # not read before
    with pytest.raises(
        CorrKDError, match=r"1.jsonl: damaged; delete it, so that its samples are predicted again"
    ):
        next(rows)


# --------------------------------------------------------------------------------------------------
# interrupted and resumed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    Predictor(student("questions", level=0.9)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "set.safetensors"
    convert(dataset_of("questions"), path)
    return path


def command(model: Path, data: Path, out: Path, *arguments: object, **options: Any) -> Ended:
    return corrkd(
        "predict", model, "--data", data, "--out", out, "--batch-size", 16, *arguments, **options
    )


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def stopped_after(count: int) -> Any:
    done = 0

    def step(_: int) -> None:
        nonlocal done
        done += 1
        if done == count:
            raise KeyboardInterrupt

    return step


@pytest.fixture(scope="module")
def uninterrupted(
    model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, bytes]:
    """Return the outputs of uninterrupted runs by suffix."""
    folder = tmp_path_factory.mktemp("whole")
    for suffix in FORMATS:
        done = command(model, data, folder / f"p{suffix}")
        assert done.code == 0, done.err
        assert done.out == f"{folder / f'p{suffix}'}: 114 samples\n"
        assert "prediction: 114/114" in done.err
    assert files_in(folder) == ["p.csv", "p.jsonl", "p.parquet"]
    return {p.suffix: p.read_bytes() for p in folder.iterdir()}


HOOKS = [("pathlib:Path", "write_bytes"), ("os", "fsync"), ("os", "replace")]


@pytest.mark.parametrize(
    ("hook", "suffix"),
    [
        pytest.param(hook, suffix, marks=() if i == j else pytest.mark.slow)
        for i, hook in enumerate(HOOKS)
        for j, suffix in enumerate(FORMATS)
    ],
)
def test_killed_repeatedly(
    hook: tuple[str, str],
    suffix: str,
    model: Path,
    data: Path,
    uninterrupted: Mapping[str, bytes],
    tmp_path: Path,
) -> None:
    """Every process is killed at its third write."""
    out, parts_folder, times = tmp_path / f"p{suffix}", tmp_path / f".p{suffix}.parts", 0
    while (ended := command(model, data, out, first=ends_at(*hook, 3))).code != 0:
        assert ended.code == -signal.SIGKILL, ended
        assert not out.exists()
        times += 1
        # The first process writes the note, too.
        assert len(list(parts_folder.glob("part-*"))) == 2 * times - 1
        assert len(list(parts_folder.glob(".*.part"))) <= 1  # earlier ones are deleted
    assert times >= 3
    assert out.read_bytes() == uninterrupted[suffix]
    assert files_in(tmp_path) == [out.name]


def test_finished_batches_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, dataset, out = Predictor(student()), dataset_of(), tmp_path / "p.csv"
    predict_file(predictor, dataset, tmp_path / "whole.csv", batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        predict_file(predictor, dataset, out, batch_size=16, on_batch=stopped_after(3))
    assert len(list((tmp_path / ".p.csv.parts").glob("part-*"))) == 3
    calls, done, logits = [], [], predictor.logits
    monkeypatch.setattr(predictor, "logits", lambda arrays: calls.append(1) or logits(arrays))
    predict_file(predictor, dataset, out, batch_size=16, on_batch=done.append)
    assert (len(calls), sum(done)) == (5, 114)  # 3, 2 and 3 batches
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_batch_that_was_changed_is_predicted_again(tmp_path: Path) -> None:
    predictor, dataset, out = Predictor(student()), dataset_of(), tmp_path / "p.csv"
    predict_file(predictor, dataset, tmp_path / "whole.csv", batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        predict_file(predictor, dataset, out, batch_size=16, on_batch=stopped_after(3))
    first = tmp_path / ".p.csv.parts" / "part-00000000.jsonl"
    content = bytearray(first.read_bytes())
    digit = re.search(rb'"score": .*?(\d)|: 0\.(\d)', bytes(content[100:]))
    content[100 + digit.end() - 1] ^= 1  # another digit, and still JSON
    first.write_bytes(content)
    predict_file(predictor, dataset, out, batch_size=16)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_control_c(
    model: Path, data: Path, uninterrupted: Mapping[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    ended = command(model, data, out, first=ends_at("os", "fsync", 4, signal.SIGINT))
    assert ended.code == 130
    assert ended.err.splitlines()[-1].startswith("interrupted; ")
    assert "predict continue when started again" in ended.err
    assert "Traceback" not in ended.err
    assert files_in(tmp_path / ".p.csv.parts") == [
        ".lock",
        "about.json",
        "part-00000000.jsonl",
        "part-00000001.jsonl",
    ]
    assert command(model, data, out).code == 0
    assert out.read_bytes() == uninterrupted[".csv"]
    assert files_in(tmp_path) == ["p.csv"]


@pytest.mark.parametrize("hook", [("os", "fsync"), ("os", "replace")])
@pytest.mark.parametrize("suffix", FORMATS)
def test_killed_at_the_output(
    suffix: str,
    hook: tuple[str, str],
    model: Path,
    data: Path,
    uninterrupted: Mapping[str, bytes],
    tmp_path: Path,
) -> None:
    """After the note and eight batches; the hidden folder has the remains and is deleted."""
    out = tmp_path / f"p{suffix}"
    assert command(model, data, out, first=ends_at(*hook, 10)).code == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == [f".p{suffix}.parts"]
    assert list(tmp_path.rglob("*.part"))
    assert command(model, data, out).code == 0
    assert out.read_bytes() == uninterrupted[suffix]
    assert files_in(tmp_path) == [out.name]


def test_killed_after_writing_the_output(
    model: Path, data: Path, uninterrupted: Mapping[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    first = ends_at("shutil", "rmtree", 1)
    assert command(model, data, out, first=first).code == -signal.SIGKILL
    assert out.read_bytes() == uninterrupted[".csv"]
    assert "already exists" in command(model, data, out).line
    assert command(model, data, out, "--overwrite").code == 0
    assert out.read_bytes() == uninterrupted[".csv"]
    assert files_in(tmp_path) == ["p.csv"]


def test_resuming_with_other_arguments_is_refused(tmp_path: Path) -> None:
    predictor, dataset, out = Predictor(student()), dataset_of(), tmp_path / "p.csv"
    with pytest.raises(KeyboardInterrupt):
        predict_file(predictor, dataset, out, batch_size=16, on_batch=stopped_after(2))
    before = files_in(tmp_path)
    hotter = student()
    assert hotter.evaluated is not None
    changed = tuple(c.model_copy(update={"temperature": 3.0}) for c in hotter.evaluated.conditions)
    hotter = replace(hotter, evaluated=hotter.evaluated.model_copy(update={"conditions": changed}))
    fewer = replace(dataset, splits={"test": dataset.split("test")})
    frames = {m: x + np.float32(1) for m, x in dataset.split("test").frames.items()}
    moved = replace(
        dataset, splits={**dataset.splits, "test": replace(dataset.split("test"), frames=frames)}
    )
    for other, difference in (
        ({"batch_size": 17}, "samples at a time"),
        ({"batch_size": 16, "split": "test"}, "data, split"),
        ({"batch_size": 16, "condition": "audio"}, "condition"),
        ({"batch_size": 16, "predictor": Predictor(student(fill="mean"))}, "model"),
        ({"batch_size": 16, "predictor": Predictor(hotter)}, "model"),
        ({"batch_size": 16, "dataset": replace(dataset, sha256="1" * 64)}, "data"),
        ({"batch_size": 16, "dataset": fewer}, "data"),
        ({"batch_size": 16, "dataset": moved}, "data"),
    ):
        with pytest.raises(CorrKDError) as caught:
            predict_file(**{"predictor": predictor, "dataset": dataset, "out": out, **other})  # type: ignore[arg-type]
        assert str(caught.value) == (
            f"{out}: half done, but with a different {difference}; continue with the same one, or "
            f"start again with --overwrite"
        )
        assert files_in(tmp_path) == before
    # The same arguments continue, with `overwrite` or without; others start again.
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        predict_file(
            predictor, dataset, out, batch_size=16, overwrite=True, on_batch=stopped_after(4)
        )
    assert len(list((tmp_path / ".p.csv.parts").glob("part-*"))) == 4
    predict_file(
        predictor,
        dataset,
        out,
        batch_size=17,
        condition="audio",
        overwrite=True,
        on_batch=done.append,
    )
    predict_file(predictor, dataset, tmp_path / "q.csv", batch_size=17, condition="audio")
    assert out.read_bytes() == (tmp_path / "q.csv").read_bytes()
    assert files_in(tmp_path) == ["p.csv", "q.csv"]


def test_an_existing_output(tmp_path: Path) -> None:
    predictor, dataset, out = Predictor(student()), dataset_of(), tmp_path / "p.csv"
    out.write_text("mine")
    with pytest.raises(
        CorrKDError, match=r"p.csv: already exists; choose another file, or replace it with --over"
    ):
        predict_file(predictor, dataset, out)
    with pytest.raises(KeyboardInterrupt):
        predict_file(
            predictor, dataset, out, batch_size=16, overwrite=True, on_batch=stopped_after(2)
        )
    assert out.read_text() == "mine"
    predict_file(predictor, dataset, out, batch_size=16, overwrite=True)
    assert len(pd.read_csv(out)) == 114
    assert files_in(tmp_path) == ["p.csv"]


def test_one_process_at_a_time(model: Path, data: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "p.csv", tmp_path / ".p.csv.parts"
    with exclusive(folder, "busy"):
        (folder / "part-00000000.jsonl").write_text("theirs")
        assert (
            f"{out}: another process is writing it; wait for it or choose another file"
            in command(model, data, out, "--overwrite").line
        )
        assert (folder / "part-00000000.jsonl").read_text() == "theirs"
    assert not out.exists()


def limit_file_size(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("size", [1500, 5000])
def test_a_full_disk(size: int, suffix: str, model: Path, data: Path, tmp_path: Path) -> None:
    """At a batch, and at the table."""
    out, options = tmp_path / f"p{suffix}", ("--batch-size", 4)
    line = command(model, data, out, *options, first=partial(limit_file_size, size)).line
    assert "cannot be written: " in line
    assert "File too large" in line
    assert not out.exists()
    assert not list(tmp_path.rglob("*.part"))
    part_files = list((tmp_path / f".p{suffix}.parts").glob("part-*"))
    assert len(part_files) == (0 if size == 1500 else 29)
    assert command(model, data, out, *options).code == 0
    assert len(read(out)) == (114 if suffix == ".jsonl" else 228)
    assert files_in(tmp_path) == [out.name]


def test_a_network_that_returns_nan(tmp_path: Path) -> None:
    saved = student()
    with torch.no_grad():
        next(saved.network.parameters()).fill_(torch.nan)
    with pytest.raises(CorrKDError, match=r"samples train-0 to train-15: the network returned NaN"):
        predict_file(Predictor(saved), dataset_of(), tmp_path / "p.csv", batch_size=16)
    assert files_in(tmp_path) == []


# --------------------------------------------------------------------------------------------------
# on the command line


def test_errors_are_one_line(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for out, message in (
        ("p.txt", "p.txt: the output's name must end in .csv, .parquet or .jsonl"),
        ("p", "p: the output's name must end in"),
        ("folder.csv", "folder.csv: is a folder; name a file"),
    ):
        assert message in command(model, "nowhere", tmp_path / out).line  # before the data is read
    assert "nowhere: no such file" in command(model, "nowhere", tmp_path / "p.csv").line
    assert (
        "has no split 'later'; it has train, valid, test"
        in command(model, data, tmp_path / "p.csv", "--split", "later").line
    )
    assert (
        "nowhere: no such file or folder"
        in command(tmp_path / "nowhere", data, tmp_path / "p.csv").line
    )
    assert (
        "unknown condition 'smell'"
        in command(model, data, tmp_path / "p.csv", "--condition", "smell").line
    )
    assert (
        "device 'gpu' is not available; use "
        in command(model, data, tmp_path / "p.csv", "--device", "gpu").line
    )
    assert "--batch-size" in command(model, data, tmp_path / "p.csv", "--batch-size", 0).line
    assert files_in(tmp_path) == ["folder.csv"]


def test_new_samples(model: Path, served: Path, tmp_path: Path) -> None:
    gaze = np.ones((20, 3, 7))
    gaze[4, 1, 2] = np.nan
    path = unlabelled(tmp_path, vision=None, vision_lengths=None, gaze=gaze)
    done = command(
        model, path, tmp_path / "new" / "p.csv", "--split", "all", "--condition", "audio+language"
    )
    assert done.code == 0, done.err
    assert "note: gaze: 1 nan values set to 0\n" in done.err
    assert "note: the data has no vision: it is missing in every sample\n" in done.err
    assert "note: the model does not use gaze: ignored\n" in done.err
    assert pd.read_csv(tmp_path / "new" / "p.csv").groupby("id").size().tolist() == [2] * 20
    shutil.rmtree(tmp_path / "new")
    # They can be converted, but not used for training.
    assert corrkd("data", "convert", path, tmp_path / "new.safetensors").code == 0
    assert command(model, tmp_path / "new.safetensors", tmp_path / "p.parquet").code == 0
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny()))
    train = ("train", "--settings", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--data")
    assert "an array `scores` or `labels` is required" in corrkd(*train, path).line
    assert "neither scores nor labels" in corrkd(*train, tmp_path / "new.safetensors").line
    assert (
        "an array `scores` or `labels` is required"
        in corrkd("evaluate", served, "--data", path).line
    )
    assert not (tmp_path / "run").exists()


def test_a_run_on_its_data(served: Path, tmp_path: Path) -> None:
    """Predictions for the run's dataset match those of the run."""
    arguments = (
        "predict",
        served,
        "--data",
        "synthetic",
        "--split",
        "test",
        "--condition",
        "language+audio",
    )
    done = corrkd(*arguments, "--out", tmp_path / "p.parquet")
    assert done.code == 0, done.err
    stored = pd.read_parquet(served / "synthetic" / "seed-0" / "student" / "predictions.parquet")
    stored = stored[stored["condition"] == "language+audio"]
    saved, table = load_student(served), pd.read_parquet(tmp_path / "p.parquet")
    assert saved.evaluated is not None
    names = saved.target.classes
    assert table["id"].tolist() == stored["id"].tolist()
    assert table["label"].tolist() == [names[k] for k in stored["prediction"]]
    temperature = next(
        c.temperature for c in saved.evaluated.conditions if c.name == "language+audio"
    )
    expected = tempered(stored[[f"p_{k}" for k in range(3)]].to_numpy(), temperature)
    np.testing.assert_allclose(table[[f"p_{name}" for name in names]], expected, atol=1e-5)
