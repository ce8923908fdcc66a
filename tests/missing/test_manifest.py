from __future__ import annotations

from pathlib import Path

import pytest
import torch

from corrkd.errors import CorrKDError
from corrkd.missing.conditions import condition
from corrkd.missing.manifest import load_manifest, make_manifest, save_manifest
from tests.conftest import make_dataset, make_samples

NAMES = ("language", "audio", "vision")


def test_masks_are_replayed_for_any_order_of_samples(tmp_path: Path) -> None:
    dataset = make_dataset()
    samples = make_samples(dataset, "test")
    conditions = [
        condition("ratio-0.4", NAMES, 2),
        condition("burst-0.5", NAMES, 2),
        condition("audio", NAMES),
    ]
    save_manifest(tmp_path / "masks.safetensors", make_manifest(samples, conditions, seed=9))
    manifest = load_manifest(tmp_path / "masks.safetensors")
    assert manifest.conditions == tuple(conditions)
    assert manifest.seed == 9
    replay = manifest.replay(samples)
    rows = torch.arange(len(samples)).flip(0)[:11]
    batch = samples.take(rows)
    for selected in conditions[:2]:
        for draw in (0, 1):
            drawn = selected.dropped(batch, seed=9, draw=draw)
            replayed = replay(selected, draw, batch)
            for m in NAMES:
                assert torch.equal(drawn[m], replayed[m])


def test_other_samples_are_refused(tmp_path: Path) -> None:
    dataset = make_dataset()
    manifest = make_manifest(
        make_samples(dataset, "valid"), [condition("ratio-0.4", NAMES)], seed=9
    )
    with pytest.raises(CorrKDError, match="36 samples are not in the manifest"):
        manifest.replay(make_samples(dataset, "test"))


@pytest.mark.parametrize("content", [b"", b"not a manifest", b"\xff" * 64])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "masks.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorrKDError, match="not a manifest of masks"):
        load_manifest(path)
    with pytest.raises(CorrKDError, match="No such file"):
        load_manifest(tmp_path / "absent")
