from __future__ import annotations

from pathlib import Path

import pytest

from corrkd.report import figures, write_report
from tests.report.fake_run import write_fake_comparison, write_fake_run

NASTY = ('<b>"x"</b>', "a&b|c", "50% $_{^~}\\")


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A usual run's folder with its report: three modalities, three classes, three seeds. Not to be changed."""
    out = write_fake_run(tmp_path_factory.mktemp("runs") / "usual")
    write_report(out, draws=100)
    return out


@pytest.fixture(scope="session")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reported run whose modality and class names hold what HTML, Markdown, LaTeX, CSV and matplotlib would trip over."""
    out = write_fake_run(
        tmp_path_factory.mktemp("runs") / "nasty", modalities=NASTY, classes=("_low", "$mid$", "=1+<i>", "NA")
    )
    write_report(out, draws=100)
    return out


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison's folder without its report: two baselines, two controls, one ablation. Not to be changed."""
    return write_fake_comparison(tmp_path_factory.mktemp("comparisons") / "usual")


@pytest.fixture
def sketches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn, which takes longer than all else of a report."""
    monkeypatch.setattr(
        figures, "picture", lambda name, caption, alt, figure: figures.Picture(name, caption, alt, b"<svg/>", b"")
    )
