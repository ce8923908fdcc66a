"""A short run of the load benchmark, with its checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_docs import ROOT


@pytest.mark.slow
def test_under_load_beside_a_hostile_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import serving_load

    figures = serving_load.measure(tmp_path, seconds=20.0, clients=256, warm=3.0)
    serving_load.check(figures)
