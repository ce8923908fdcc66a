from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import corrkd
import corrkd.memory
import corrkd.networks.base
from corrkd.errors import CorrKDError
from corrkd.memory import available_memory, size_text
from tests.experiment.conftest import finished, no_report, tiny, write_npz  # noqa: F401  (fixtures)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (28_800_000_000, "29 GB"),
        (1e19, "10000 PB"),
    ],
)
def test_sizes_are_readable(count: float, text: str) -> None:
    assert size_text(count) == text


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SimpleNamespace(available=1_024_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(corrkd.memory, "CGROUP", tmp_path)
    assert available_memory() == 1_024_000
    (tmp_path / "memory.max").write_text("900000\n")
    (tmp_path / "memory.current").write_text("500000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\ninactive_file 100000\nactive_file 50000\n")
    assert available_memory() == 550_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == 1_024_000


@pytest.mark.usefixtures("no_report")
def test_samples_too_long_for_attention_are_refused(
    finished: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In training, evaluation and prediction, before memory of that size is allocated."""
    data = write_npz(tmp_path / "short.npz", {"language": 8, "audio": 8, "vision": 8})
    long = {**np.load(data)}
    long["audio"] = np.random.default_rng(0).normal(size=(60, 5000, 8)).astype(np.float32)
    np.savez(tmp_path / "long.npz", **long)
    monkeypatch.setattr(corrkd.networks.base, "free_memory", lambda device: 300 << 20)
    line = (
        r"modality audio: 5,000 frames in a sample; attention over them needs .* of memory, 315 "
        r"MB are free; at most .* frames fit"
    )
    with pytest.raises(CorrKDError, match=line):
        corrkd.run(
            corrkd.load_settings(
                **tiny(data={"path": str(tmp_path / "long.npz"), "synthetic": {}})
            ),
            out=tmp_path / "run",
        )
    with pytest.raises(CorrKDError, match=line):
        corrkd.evaluate(corrkd.load_student(finished), corrkd.load_dataset(tmp_path / "long.npz"))
    predictor = corrkd.Predictor.from_pretrained(finished)
    with pytest.raises(CorrKDError, match=line):
        predictor.predict({"audio": long["audio"][0]})
    assert predictor.predict({"audio": long["audio"][0, :100]}).label


def test_lists_that_do_not_fit_are_refused_before_they_are_padded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from corrkd.data.readers.pad import pad

    monkeypatch.setattr(corrkd.memory, "available_memory", lambda: 1000)
    with pytest.raises(
        CorrKDError, match=r"2 samples of up to 200 frames: needs 1.6 kB of memory, 1.0 kB are free"
    ):
        pad("set, train", [np.zeros((200, 1)), np.zeros((1, 1))])
