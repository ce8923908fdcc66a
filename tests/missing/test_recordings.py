"""Numbered frames are dropped by recording: overlapping windows lose the same frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import corrkd
from corrkd.data.convert import convert
from corrkd.data.dataset import MultimodalDataset, Split, check_split
from corrkd.data.modalities import with_modalities
from corrkd.data.resample import resampled
from corrkd.errors import CorrKDError
from corrkd.experiment.card import protocol
from corrkd.experiment.experiment import prepare
from corrkd.experiment.plan import arms_of, load_plan
from corrkd.missing.conditions import condition
from corrkd.missing.manifest import make_manifest
from corrkd.missing.training import RandomMissing
from corrkd.settings import MissingSettings, ResampleSettings
from tests.conftest import make_samples
from tests.data.readers.samples import write_pickle

WINDOW, RECORDINGS, LENGTH = 4, 5, 9


def windows(name: str, seed: int, *, numbered: bool = True) -> Split:
    """Return windows of four frames, shifted by one, of recordings of nine frames; the first ones
    are padded on the right.
    """
    rng = np.random.default_rng(seed)
    recordings = rng.normal(size=(RECORDINGS, LENGTH, 3)).astype(np.float32)
    frames, ids, lengths, videos = [], [], [], []
    for recording in range(RECORDINGS):
        for end in range(LENGTH):
            first = max(0, end - WINDOW + 1)
            count = end - first + 1
            row = np.zeros((WINDOW, 3), np.float32)
            row[:count] = recordings[recording, first : end + 1]
            numbers = np.full(WINDOW, -1)
            numbers[:count] = np.arange(first, end + 1)
            (
                frames.append(row),
                ids.append(numbers),
                lengths.append(count),
                videos.append(f"{name}{recording}"),
            )
    exists = np.arange(WINDOW) < np.array(lengths)[:, None]
    return Split(
        frames=dict.fromkeys(("a", "b"), np.stack(frames)),
        lengths=dict.fromkeys(("a", "b"), np.array(lengths)),
        present=dict.fromkeys(("a", "b"), exists),
        ids=np.array([f"{name}-{row}" for row in range(len(frames))]),
        labels=np.arange(len(frames)) % 2,
        groups={"video": np.array(videos)},
        order=np.tile(np.arange(LENGTH), RECORDINGS),
        frame_ids=dict.fromkeys(("a", "b"), np.stack(ids)) if numbered else {},
    )


def dataset(**options: bool) -> MultimodalDataset:
    splits = {
        name: windows(name, seed, **options) for seed, name in enumerate(("train", "valid", "test"))
    }
    return MultimodalDataset(name="windows", splits=splits, sha256="0" * 64)


def states(split: Split, dropped: np.ndarray, modality: str) -> dict[tuple[str, int], set[bool]]:
    """Return for each frame of a recording whether it is dropped in the windows that contain it."""
    out: dict[tuple[str, int], set[bool]] = {}
    for row, column in zip(*np.nonzero(split.exists(modality)), strict=True):
        key = (str(split.groups["video"][row]), int(split.frame_ids[modality][row, column]))
        out.setdefault(key, set()).add(bool(dropped[row, column]))
    return out


@pytest.mark.parametrize("name", ["ratio-0.4", "noise-0.4"])
def test_a_frame_is_dropped_in_every_window_that_contains_it(name: str) -> None:
    data = dataset()
    samples = make_samples(data, "test")
    manifest = make_manifest(samples, [condition(name, data.modalities, draws=2)], seed=3)
    by_draw = {}
    for (_, draw, m), mask in manifest.masks.items():
        by_draw[draw, m] = states(data.split("test"), mask, m)
        assert all(len(values) == 1 for values in by_draw[draw, m].values())
        assert 0.2 < np.mean([True in values for values in by_draw[draw, m].values()]) < 0.6
    assert by_draw[0, "a"] != by_draw[0, "b"]
    assert by_draw[0, "a"] != by_draw[1, "a"]


def test_without_numbers_windows_are_masked_independently() -> None:
    data = dataset(numbered=False)
    samples = make_samples(data, "test")
    mask = (
        condition("ratio-0.4", data.modalities)
        .dropped(samples.without_frames(), seed=3, draw=0)["a"]
        .numpy()
    )
    assert any(len(values) > 1 for values in states(windows("test", 2), mask, "a").values())


def test_training_also_masks_by_frame_number() -> None:
    """With one ratio for all samples, overlapping windows lose the same frames."""
    samples, split = make_samples(dataset()), windows("train", 0)
    even = MissingSettings(modality=0.0, frames_low=0.3, frames_high=0.3, complete=0.0)
    random_missing = RandomMissing(even, seed=1)
    dropped = random_missing.epoch(samples, 2).dropped
    assert dropped is not None
    for m in ("a", "b"):
        # Windows without a visible frame are excluded: they keep one.
        eligible = (samples.present["a"] & ~dropped["a"]).sum(1) + (
            samples.present["b"] & ~dropped["b"]
        ).sum(1) > 1
        rows = eligible.numpy()
        stripped = replace(split, groups={"video": split.groups["video"]})
        by_frame = states(stripped.take(rows), dropped[m].numpy()[rows], m)
        assert all(len(values) == 1 for values in by_frame.values())
    other = random_missing.dropped(samples.keys, samples.present, epoch=2)
    assert not torch.equal(other["a"], dropped["a"])


def test_order_and_batches_change_nothing() -> None:
    data = dataset()
    samples, selected = make_samples(data, "test"), condition("ratio-0.5", data.modalities)
    expected = selected.dropped(samples.without_frames(), seed=0, draw=0)["a"]
    rows = torch.tensor([7, 3, 30])
    for subset in (
        selected.dropped(samples.take(rows), seed=0, draw=0),
        selected.dropped(samples.subset(rows).without_frames(), seed=0, draw=0),
    ):
        assert torch.equal(subset["a"], expected[rows])


def arrays(data: MultimodalDataset, *, left_padded: bool = False) -> dict[str, Any]:
    """Return the dataset as named arrays, padded on the left if `left_padded`."""
    splits = [data.split(name) for name in ("train", "valid", "test")]

    def joined(pick: Any) -> np.ndarray:
        return np.concatenate([pick(split) for split in splits])

    lengths = joined(lambda split: split.lengths["a"])
    out = {
        "a": joined(lambda split: split.frames["a"]),
        "frame_ids": joined(lambda split: split.frame_ids["a"]),
        "labels": joined(lambda split: split.labels),
        "ids": joined(lambda split: split.ids),
        "video": joined(lambda split: split.groups["video"]),
        "split": np.repeat(["train", "valid", "test"], [len(split) for split in splits]),
    }
    if left_padded:
        for key in ("a", "frame_ids"):
            out[key] = np.stack(
                [np.roll(row, WINDOW - n, axis=0) for row, n in zip(out[key], lengths, strict=True)]
            )
    return {**out, "b": out["a"]}


@pytest.mark.parametrize("left_padded", [False, True])
def test_numbers_are_read_from_arrays_and_kept_by_conversion(
    tmp_path: Path, left_padded: bool
) -> None:
    np.savez(tmp_path / "windows.npz", **arrays(dataset(), left_padded=left_padded))
    read = corrkd.load_dataset(tmp_path / "windows.npz")
    convert(read, tmp_path / "windows.safetensors")
    converted = corrkd.load_dataset(tmp_path / "windows.safetensors")
    for data in (read, converted, with_modalities(read, ("b", "a"))):
        assert data.modalities in (("a", "b"), ("b", "a"))
        for name in ("train", "valid", "test"):
            for m in ("a", "b"):
                np.testing.assert_array_equal(
                    data.split(name).frame_ids[m], dataset().split(name).frame_ids["a"]
                )


def test_numbers_are_read_from_mmsa_pickles(tmp_path: Path) -> None:
    splits = {}
    for name, split in dataset().splits.items():
        splits[name] = {
            "id": split.ids,
            "text": split.frames["a"],
            "audio": split.frames["b"],
            "audio_frame_ids": split.frame_ids["b"],
            "classification_labels": split.labels,
            "regression_labels": split.labels * 2.0 - 1,
            "audio_lengths": split.lengths["b"].tolist(),
            "text_lengths": split.lengths["a"].tolist(),
        }
    write_pickle(tmp_path / "mosi.pkl", splits)
    read = corrkd.load_dataset(tmp_path / "mosi.pkl").split("test")
    assert set(read.frame_ids) == {"audio"}
    np.testing.assert_array_equal(read.frame_ids["audio"], windows("test", 2).frame_ids["b"])


def test_resampling_keeps_frame_numbers() -> None:
    originals = [windows(name, seed) for seed, name in enumerate(("train", "valid"))]
    numbers = {
        i: row
        for original in originals
        for i, row in zip(original.ids, original.frame_ids["a"], strict=True)
    }
    drawn = resampled(dataset(), ResampleSettings(folds=3, train=20), seed=1)
    for name in ("train", "valid"):
        split = drawn.split(name)
        np.testing.assert_array_equal(split.frame_ids["a"], [numbers[i] for i in split.ids])


def test_numbers_of_another_shape_are_refused(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "windows.npz", **{**arrays(dataset()), "frame_ids": np.zeros((135, 3), int)}
    )
    with pytest.raises(
        CorrKDError, match=r"frame_ids of a have shape \(45, 3\), expected \(45, 4\)"
    ):
        corrkd.load_dataset(tmp_path / "windows.npz")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "dropped by recording"),
        ({"frame_ids": None}, "it can see a frame that is missing in one sample"),
        ({"frame_ids": None, "video": None}, "there are no neighbours"),
    ],
)
def test_the_protocol_describes_what_a_conversation_network_sees(
    tmp_path: Path, change: dict[str, None], expected: str
) -> None:
    columns = {key: x for key, x in arrays(dataset()).items() if key not in change}
    np.savez(tmp_path / "windows.npz", **columns)
    plan = load_plan(data=[str(tmp_path / "windows.npz")], arms=["gcnet"])
    planned = plan.datasets["windows"]
    lines = protocol(prepare(planned.settings), planned, arms_of(planned), plan.search)
    assert expected in lines[-1]
    assert lines[-1].startswith("GCNet reads a sample among the others of its conversation")


def test_numbers_must_be_integers() -> None:
    split = windows("train", 0)
    split = replace(split, frame_ids={m: x.astype(np.float64) for m, x in split.frame_ids.items()})
    with pytest.raises(
        CorrKDError, match=r"frame_ids are float64 of shape \(45, 4\), expected integers"
    ):
        check_split("here", split)
