from __future__ import annotations

import numpy as np
import torch

from corrkd.data.dataset import Split
from corrkd.data.normalise import fit_normalisation
from tests.conftest import make_dataset, make_samples


def split_of(values: np.ndarray, present: np.ndarray | None = None) -> Split:
    count = len(values)
    return Split(
        frames={"a": values[:, None, :].astype(np.float32)},
        lengths={"a": np.ones(count, np.int64)},
        present={"a": np.ones((count, 1), bool) if present is None else present[:, None]},
        ids=np.array([str(i) for i in range(count)]),
        labels=np.arange(count) % 2,
    )


def test_robust_statistics_withstand_outliers() -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(5.0, 2.0, (4000, 3))
    dirty = clean.copy()
    dirty[:100] = 5e4
    fitted = fit_normalisation(split_of(dirty), "robust")
    assert np.allclose(fitted.center["a"], 5.0, atol=0.2)
    assert np.allclose(fitted.scale["a"], 2.0, atol=0.2)
    assert fitted.apply("a", torch.tensor(dirty[:, None], dtype=torch.float32)).abs().max() <= 5.0


def test_missing_frames_and_other_splits_do_not_count() -> None:
    values = np.array([[1.0], [2.0], [3.0], [1e6]])
    fitted = fit_normalisation(split_of(values, np.array([True, True, True, False])), "standard")
    assert fitted.center["a"] == np.float32(2.0)
    assert np.allclose(fitted.scale["a"], np.std([1.0, 2.0, 3.0]))


def test_scale_keeps_zero_at_zero_and_none_changes_nothing() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, (200, 2))
    zero = torch.zeros(1, 1, 2)
    assert torch.equal(fit_normalisation(split_of(values), "scale", None).apply("a", zero), zero)
    frames = torch.tensor(values[:, None] * 100, dtype=torch.float32)
    assert torch.equal(fit_normalisation(split_of(values), "none", 5.0).apply("a", frames), frames)


def test_constant_and_mostly_zero_features_stay_finite() -> None:
    values = np.zeros((100, 3))
    values[:, 0] = 7.0
    values[:10, 1] = np.arange(10)
    fitted = fit_normalisation(split_of(values), "robust")
    out = fitted.apply("a", torch.tensor(values[:, None], dtype=torch.float32))
    assert torch.isfinite(out).all()
    assert out[:, 0, 0].abs().max() == 0
    assert out[:, 0, 1].std() > 0


def test_padding_stays_zero_after_normalisation() -> None:
    samples = make_samples(make_dataset())
    batch = samples.take(torch.arange(len(samples)))
    for m in samples.modalities:
        assert batch.frames[m][~batch.exists[m]].abs().max() == 0
        assert batch.frames[m][batch.exists[m]].abs().max() > 0


def test_streamed_batches_equal_resident_ones() -> None:
    dataset = make_dataset()
    resident, streamed = make_samples(dataset), make_samples(dataset, resident_bytes=0)
    assert resident.resident
    assert not streamed.resident
    rows = torch.tensor([5, 3, 40, 3])
    for m in resident.modalities:
        assert torch.equal(resident.take(rows).frames[m], streamed.take(rows).frames[m])
