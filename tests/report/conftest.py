from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corrkd.report import figures, write_report
from tests.command import sketch
from tests.conftest import made_once
from tests.report.fake_run import write_fake_comparison, write_fake_run

NASTY = ('<b>"x"</b>', "a&b|c", "50% $_{^~}\\")


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a typical run's folder with its report: three modalities, three classes, three seeds.
    Tests must not change it.
    """
    return made_once(
        tmp_path_factory, "reported", lambda out: write_report(write_fake_run(out), draws=100)
    )


@pytest.fixture(scope="session")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a reported run whose modality and class names contain special characters of HTML,
    Markdown, LaTeX, CSV and matplotlib.
    """
    names: dict[str, Any] = {"modalities": NASTY, "classes": ("_low", "$mid$", "=1+<i>", "NA")}
    return made_once(
        tmp_path_factory, "nasty", lambda out: write_report(write_fake_run(out, **names), draws=100)
    )


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a comparison's folder without its report: two baselines, two controls, one ablation.
    Tests must not change it.
    """
    return write_fake_comparison(tmp_path_factory.mktemp("comparisons") / "usual")


@pytest.fixture
def sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make figures without drawing them."""
    monkeypatch.setattr(figures, "picture", sketch)
