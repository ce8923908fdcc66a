"""A missing modality's length is missing too: no network can learn it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corrkd.data.dataset import MultimodalDataset, Split
from corrkd.evaluation.sweep import sweep
from corrkd.missing.conditions import Condition, condition, subsets
from corrkd.networks.base import AnyNetwork
from corrkd.networks.registry import BUILT_IN, network_class
from corrkd.networks.saved import build_network
from tests.conftest import make_dataset, make_samples
from tests.networks.test_all_networks import in_conversations

NAMES = list(BUILT_IN)
FRAMES = 6
few = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def with_other_lengths(
    split: Split, modalities: tuple[str, ...], rows: np.ndarray, seed: int
) -> Split:
    """Return the split with other lengths and frames of these modalities in these rows."""
    rng = np.random.default_rng(seed)
    frames, lengths, present = (
        {m: x.copy() for m, x in arrays.items()}
        for arrays in (split.frames, split.lengths, split.present)
    )
    for m in modalities:
        lengths[m][rows] = rng.integers(1, FRAMES + 1, len(rows))
        exists = np.arange(FRAMES) < lengths[m][:, None]
        present[m][rows] = exists[rows] & split.present[m][rows].any(1, keepdims=True)
        frames[m][rows] = rng.normal(size=frames[m][rows].shape) * present[m][rows][..., None]
    return replace(split, frames=frames, lengths=lengths, present=present)


def with_test(dataset: MultimodalDataset, test: Split) -> MultimodalDataset:
    return replace(dataset, splits={**dataset.splits, "test": test})


def fresh(name: str, dataset: MultimodalDataset) -> AnyNetwork:
    samples = make_samples(dataset)
    torch.manual_seed(0)
    kind = network_class(name)
    frames = dict.fromkeys(samples.widths, FRAMES)
    return build_network(samples.target, samples.widths, frames, kind.settings_type(), kind).eval()


def responses(network: AnyNetwork, dataset: MultimodalDataset, tested: Condition) -> np.ndarray:
    return sweep(network, make_samples(dataset, "test"), [tested], batch_size=16)[0].response


@pytest.mark.parametrize("name", NAMES)
@few
@given(seed=st.integers(0, 2**20), index=st.integers(0, 5))
def test_a_modality_hidden_by_a_condition_does_not_reveal_its_length(
    name: str, seed: int, index: int
) -> None:
    dataset = in_conversations(make_dataset())
    tested = subsets(dataset.modalities)[index]
    hidden = tuple(m for m in dataset.modalities if m not in tested.available)
    test = dataset.split("test")
    other = with_test(dataset, with_other_lengths(test, hidden, np.arange(len(test)), seed))
    network = fresh(name, dataset)
    np.testing.assert_array_equal(
        responses(network, other, tested), responses(network, dataset, tested)
    )


@pytest.mark.parametrize("name", NAMES)
@few
@given(seed=st.integers(0, 2**20))
def test_a_modality_absent_from_the_data_does_not_reveal_its_length(name: str, seed: int) -> None:
    dataset = in_conversations(make_dataset())
    test, rows = dataset.split("test"), np.arange(0, 36, 3)
    absent = test.present["audio"].copy()
    absent[rows] = False
    test = replace(test, present={**test.present, "audio": absent})
    original, other = (
        with_test(dataset, test),
        with_test(dataset, with_other_lengths(test, ("audio",), rows, seed)),
    )
    network = fresh(name, dataset)
    for condition_name in ("complete", "audio"):
        tested = condition(condition_name, dataset.modalities)
        np.testing.assert_array_equal(
            responses(network, other, tested), responses(network, original, tested)
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tested", ["ratio-1.0", "burst-1.0", "late-1.0"])
def test_with_everything_missing_all_samples_look_alike(name: str, tested: str) -> None:
    dataset = make_dataset()  # without conversations, whose shape remains
    network = fresh(name, dataset)
    outputs = responses(network, dataset, condition(tested, dataset.modalities))
    assert np.ptp(outputs, axis=0).max() < 1e-6  # rows of a batch are rounded differently


def test_a_dropped_frame_keeps_its_position_where_others_are_visible() -> None:
    """Only a fully missing modality loses its length."""
    samples = make_samples(make_dataset(), "test")
    batch = samples.take(torch.arange(len(samples)))
    dropped = {m: torch.zeros_like(x) for m, x in batch.exists.items()}
    long = batch.exists["audio"].sum(1) > 1
    dropped["audio"][long, 0] = True
    inputs = batch.inputs(dropped)
    assert torch.equal(inputs.exists["audio"], batch.exists["audio"])
    assert not inputs.visible["audio"][long, 0].any()


def test_inputs_are_padded_to_a_longer_canonical_length() -> None:
    samples = make_samples(make_dataset(), "test")
    samples.lengths = {**samples.lengths, "audio": 9}
    batch = samples.take(torch.arange(4))
    dropped = {m: torch.zeros_like(x) for m, x in batch.exists.items()}
    dropped["audio"][1:3] = True
    inputs = batch.inputs(dropped)
    assert (
        inputs.frames["audio"].shape[1]
        == inputs.exists["audio"].shape[1]
        == inputs.visible["audio"].shape[1]
        == 9
    )
    assert inputs.exists["audio"].sum(1).tolist()[1:3] == [9, 9]
    for row in (0, 3):
        assert torch.equal(inputs.exists["audio"][row, :FRAMES], batch.exists["audio"][row])
        assert not inputs.exists["audio"][row, FRAMES:].any()
    assert inputs.frames["vision"].shape == batch.frames["vision"].shape
