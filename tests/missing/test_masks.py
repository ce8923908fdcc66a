from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrkd.data.batches import sample_key
from corrkd.missing import masks
from corrkd.missing.training import RandomMissing
from corrkd.settings import MissingSettings
from tests.conftest import make_dataset, make_samples


def keys_of(count: int, prefix: str = "s") -> torch.Tensor:
    return torch.tensor([sample_key(f"{prefix}{i}") for i in range(count)])


def numbers(keys: torch.Tensor, count: int = 20, **options: object) -> torch.Tensor:
    return masks.uniform(
        keys,
        count,
        **{"seed": 1, "purpose": "frame", "modality": "audio", "epoch": 3, "draw": 0, **options},
    )


def reference(key: int, stream: int, index: int) -> float:
    """Compute SplitMix64 in Python's integers."""
    low_bits = (1 << 64) - 1

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & low_bits
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & low_bits
        return x ^ (x >> 31)

    state = mixed((key ^ stream) & low_bits)
    return (mixed((state + (index + 1) * 0x9E3779B97F4A7C15) & low_bits) >> 40) / 2**24


def test_the_hash_is_splitmix64() -> None:
    keys = keys_of(7)
    stream = masks._stream(1, "frame", "audio", 3, 0)
    actual = numbers(keys)
    for row, key in enumerate(keys.tolist()):
        for index in range(20):
            assert actual[row, index].item() == reference(key, stream, index)


def test_numbers_are_uniform_and_unrelated() -> None:
    sample = numbers(keys_of(500), 200).double()
    flat = sample.flatten().sort().values
    # Kolmogorov-Smirnov distance of 1e5 uniform numbers exceeds 0.0062 once in 1e3.
    assert (flat - (torch.arange(len(flat)) + 0.5) / len(flat)).abs().max() < 0.0062
    neighbours = [
        numbers(keys_of(500), 200, **change).double()
        for change in ({"epoch": 4}, {"draw": 1}, {"modality": "vision"}, {"seed": 2})
    ]
    neighbours += [sample.roll(1, 0), sample.roll(1, 1)]
    for other in neighbours:
        assert abs(np.corrcoef(sample.flatten(), other.flatten())[0, 1]) < 0.02


@given(st.permutations(range(12)), st.integers(1, 12), st.integers(1, 30))
@settings(deadline=None, max_examples=40)
def test_a_mask_depends_on_neither_order_nor_batch_size_nor_length(
    order: list[int], size: int, frames: int
) -> None:
    keys = keys_of(12)
    expected = numbers(keys, 40)
    shuffled = keys[torch.tensor(order)]
    actual = torch.cat([numbers(batch, frames) for batch in shuffled.split(size)])
    assert torch.equal(actual, expected[torch.tensor(order)][:, :frames])


@given(st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_masks_of_growing_ratios_are_nested(first: float, second: float) -> None:
    low, high = sorted((first, second))
    sample = numbers(keys_of(30))
    assert not (masks.drop_frames(sample, low) & ~masks.drop_frames(sample, high)).any()


def test_ratio_is_the_share_dropped() -> None:
    sample = numbers(keys_of(400), 100)
    for ratio in (0.0, 0.1, 0.5, 0.9, 1.0):
        share = masks.drop_frames(sample, ratio).double().mean().item()
        assert abs(share - ratio) <= 4 * (ratio * (1 - ratio) / 40_000) ** 0.5


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.lists(st.integers(1, 17), min_size=1, max_size=8),
    st.integers(0, 10_000),
)
@settings(deadline=None, max_examples=80)
def test_bursts_are_contiguous_nested_and_of_the_right_size(
    first: float, second: float, lengths: list[int], seed: int
) -> None:
    low, high = sorted((first, second))
    length = torch.tensor(lengths)
    position = masks.uniform(keys_of(len(lengths)), 1, seed=seed, purpose="burst")
    small, large = (masks.drop_burst(position, ratio, length, 17) for ratio in (low, high))
    assert not (small & ~large).any()
    for row, count in enumerate(lengths):
        for mask, ratio in ((small, low), (large, high)):
            dropped = torch.nonzero(mask[row]).flatten()
            assert abs(len(dropped) - ratio * count) <= 0.5 + 1e-6
            if len(dropped):
                assert dropped[-1] < count
                assert dropped[-1] - dropped[0] + 1 == len(dropped)


def test_bursts_start_uniformly() -> None:
    position = masks.uniform(keys_of(3000), 1, seed=0, purpose="burst")
    first = masks.drop_burst(position, 0.5, torch.full((3000,), 10), 10).int().argmax(1)
    counts = torch.bincount(first, minlength=6)
    assert len(counts) == 6
    assert (counts - 500).abs().max() < 5 * (3000 * (1 / 6) * (5 / 6)) ** 0.5


def test_late_start_drops_the_first_frames() -> None:
    mask = masks.drop_start(0.5, torch.tensor([4, 6, 1]), 6)
    assert mask.tolist() == [
        [True, True, False, False, False, False],
        [True, True, True, False, False, False],
        [True] + [False] * 5,
    ]
    assert masks.drop_start(1.0, torch.tensor([4]), 6)[0, :4].all()


def test_noise_has_mean_zero_and_variance_one() -> None:
    sample = masks.noise(keys_of(200), 10, 5, seed=0, modality="audio").double()
    assert sample.shape == (200, 10, 5)
    assert abs(sample.mean()) < 4 / 100
    assert abs(sample.var() - 1) < 4 * (0.8 / 10_000) ** 0.5


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(0, 100), st.integers(1, 50))
@settings(deadline=None, max_examples=60)
def test_training_masks_leave_something_visible(
    modality: float, low: float, high: float, seed: int, epoch: int
) -> None:
    samples = make_samples(make_dataset())
    missing = MissingSettings(
        modality=modality, frames_low=min(low, high), frames_high=max(low, high), complete=0.0
    )
    dropped = RandomMissing(missing, seed).dropped(samples.keys, samples.present, epoch=epoch)
    visible = torch.cat([samples.present[m] & ~dropped[m] for m in samples.modalities], 1)
    assert visible.any(1).all()


def test_training_masks_change_with_the_epoch_and_not_with_the_batch() -> None:
    samples = make_samples(make_dataset())
    missing = MissingSettings()

    def drawn(rows: torch.Tensor, epoch: int) -> dict[str, torch.Tensor]:
        present = {m: x[rows] for m, x in samples.present.items()}
        return RandomMissing(missing, 0).dropped(samples.keys[rows], present, epoch=epoch)

    everything = torch.arange(len(samples))
    first_epoch, second_epoch = drawn(everything, 1), drawn(everything, 2)
    subset = drawn(everything[10:20].flip(0), 1)
    for m in samples.modalities:
        assert torch.equal(subset[m], first_epoch[m][10:20].flip(0))
        assert not torch.equal(first_epoch[m], second_epoch[m])


def test_training_masks_follow_their_distribution() -> None:
    count = 20_000
    present = {m: torch.ones(count, 10, dtype=torch.bool) for m in ("a", "b", "c")}
    missing = MissingSettings(modality=0.3, frames_low=0.2, frames_high=0.6, complete=0.25)
    dropped = RandomMissing(missing, 0).dropped(keys_of(count), present, epoch=1)
    absent = torch.stack([d.all(1) for d in dropped.values()], 1)
    complete = ~torch.cat(list(dropped.values()), 1).any(1)
    assert abs(complete.double().mean() - 0.25) < 0.02
    # All three are drawn 2.7 % of the time, and then one is kept: 0.3 - 0.027 / 3.
    assert (absent[~complete].double().mean(0) - 0.291).abs().max() < 0.02
    frame_masks = dropped["a"][~complete & ~absent[:, 0]]
    assert abs(frame_masks.double().mean() - 0.4) < 0.02


def test_a_naturally_absent_modality_is_not_the_one_that_is_kept() -> None:
    present = {"a": torch.zeros(50, 4, dtype=torch.bool), "b": torch.ones(50, 4, dtype=torch.bool)}
    lose_all = MissingSettings(modality=1.0, frames_low=0.5, frames_high=0.5, complete=0.0)
    dropped = RandomMissing(lose_all, 0).dropped(keys_of(50), present, epoch=1)
    assert (~dropped["b"]).any(1).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masks_are_the_same_on_a_gpu() -> None:
    assert torch.equal(numbers(keys_of(50).cuda()).cpu(), numbers(keys_of(50)))
