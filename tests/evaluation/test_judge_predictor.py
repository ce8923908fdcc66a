from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from corrkd.data.dataset import MultimodalDataset
from corrkd.data.inputs import Inputs
from corrkd.data.normalise import fit_normalisation
from corrkd.errors import CorrKDError
from corrkd.evaluation.judge import evaluate, judge_predictor
from corrkd.missing.conditions import named_conditions
from corrkd.missing.manifest import load_manifest, make_manifest, save_manifest
from corrkd.networks.saved import SavedNetwork, build_network
from corrkd.settings import NetworkSettings
from corrkd.targets.registry import make_target
from tests.conftest import make_dataset, make_samples

CONDITIONS = [
    "complete",
    "language",
    "audio+vision",
    "ratio-0.5",
    "ratio-1.0",
    "burst-0.3",
    "late-0.5",
    "noise-0.4",
    "natural",
    "intact",
]
SMALL = NetworkSettings(width=8, heads=2, layers=1, feedforward=8)
Arrays = Mapping[str, np.ndarray]


def with_gaps(dataset: MultimodalDataset) -> MultimodalDataset:
    """Return the dataset with every third sample's vision absent in the data itself."""
    splits = {}
    for name, split in dataset.splits.items():
        vision = split.present["vision"] & (np.arange(len(split)) % 3 > 0)[:, None]
        splits[name] = replace(split, present={**split.present, "vision": vision})
    return replace(dataset, splits=splits)


def saved_network(dataset: MultimodalDataset, name: str) -> SavedNetwork:
    torch.manual_seed(3)
    target = make_target(name, dataset)
    frames = {m: x.shape[1] for m, x in dataset.split("train").frames.items()}
    network = build_network(target, dataset.widths, frames, SMALL).eval()
    return SavedNetwork(
        network=network,
        normalisation=fit_normalisation(dataset.split("train")),
        target=target,
        frames=frames,
    )


@pytest.mark.parametrize("target", ["classes", "score"])
def test_a_predictor_gets_the_results_of_evaluate(target: str) -> None:
    dataset = with_gaps(make_dataset())
    saved = saved_network(dataset, target)

    @torch.no_grad()
    def predict(frames: Arrays, exists: Arrays, visible: Arrays) -> np.ndarray:
        inputs = (
            {m: torch.as_tensor(x) for m, x in field.items()} for field in (frames, exists, visible)
        )
        logits = saved.network(Inputs(*inputs)).logits
        return (logits if target == "score" else logits.softmax(-1)).numpy()

    samples = make_samples(dataset, "test", target)
    judged = judge_predictor(predict, samples, conditions=CONDITIONS, draws=2, batch_size=7)
    expected = evaluate(saved, dataset, conditions=CONDITIONS, draws=2)
    pd.testing.assert_frame_equal(judged, expected, atol=1e-5, rtol=1e-5)


def test_invisible_frames_are_zero_and_masks_agree() -> None:
    samples = make_samples(with_gaps(make_dataset()), "test")
    counts = []

    def predict(frames: Arrays, exists: Arrays, visible: Arrays) -> np.ndarray:
        for m, x in frames.items():
            assert not x[~visible[m]].any()
            assert not (visible[m] & ~exists[m]).any()
        counts.append(sum(int(v.sum()) for v in visible.values()))
        return np.full((len(frames["audio"]), 3), 1 / 3)

    judge_predictor(
        predict,
        samples,
        conditions=["complete", "ratio-0.3", "ratio-0.6", "ratio-1.0", "noise-0.6"],
        draws=1,
    )
    complete, some, more, nothing, noisy = counts
    assert complete > some > more > nothing == 0
    assert noisy == complete


def test_a_manifest_is_replayed(tmp_path: Path) -> None:
    samples = make_samples(make_dataset(), "test")
    conditions = named_conditions(["language", "ratio-0.5", "noise-0.5"], samples.modalities, 2)
    save_manifest(tmp_path / "masks.safetensors", make_manifest(samples, conditions, seed=5))
    weights = np.random.default_rng(0).normal(size=(5, 3))

    def predict(frames: Arrays, exists: Arrays, visible: Arrays) -> np.ndarray:
        power = np.exp(frames["language"].mean(1) @ weights)
        return power / power.sum(1, keepdims=True)

    replayed = judge_predictor(
        predict, samples, masks=load_manifest(tmp_path / "masks.safetensors")
    )
    drawn = judge_predictor(
        predict, samples, conditions=["language", "ratio-0.5", "noise-0.5"], draws=2, mask_seed=5
    )
    other = judge_predictor(
        predict, samples, conditions=["language", "ratio-0.5", "noise-0.5"], draws=2, mask_seed=6
    )
    pd.testing.assert_frame_equal(replayed, drawn)
    assert not replayed.equals(other)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.full((36, 2), 0.5), r"shape \(36, 2\), expected \(36, 3\)"),
        (np.full((36, 3), np.nan), "NaN"),
        (np.full((36, 3), 0.5), "probabilities"),
        (np.tile([1.5, -0.5, 0.0], (36, 1)), "probabilities"),
    ],
)
def test_an_invalid_output_is_a_one_line_error(output: np.ndarray, message: str) -> None:
    samples = make_samples(make_dataset(), "test")
    with pytest.raises(CorrKDError, match=message):
        judge_predictor(lambda frames, exists, visible: output, samples, conditions=["complete"])
