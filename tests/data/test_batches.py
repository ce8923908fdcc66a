from __future__ import annotations

import gc
import weakref

import torch

from tests.conftest import make_dataset, make_samples


def test_a_split_is_freed_with_its_last_use() -> None:
    """With `data.resample` every seed has other splits, which must not wait for the collector."""
    samples = make_samples(make_dataset())
    subset = samples.subset(torch.tensor([2, 0]))
    references = [weakref.ref(samples), weakref.ref(subset)]
    gc.disable()
    try:
        del samples
        assert references[0]() is not None, "the subset needs the frames"
        del subset
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


def test_a_subset_of_a_subset_reads_from_the_original_samples() -> None:
    samples = make_samples(make_dataset())
    subset = samples.subset(torch.tensor([4, 2, 0])).subset(torch.tensor([1, 2]))
    assert subset.base is samples
    batch = subset.take(torch.tensor([0, 1]))
    for modality, frames in samples.take(torch.tensor([2, 0])).frames.items():
        assert torch.equal(batch.frames[modality], frames)
