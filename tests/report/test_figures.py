from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrkd.report import figures
from corrkd.report.run_folder import AbsentError, RunFolder


def test_bytes_carry_no_date_and_no_version(reported: Path) -> None:
    for file in (reported / "figures").iterdir():
        content = file.read_bytes()
        assert b"atplotlib v" not in content
        assert b"dc:date" not in content
        if file.suffix == ".png":
            width, height = struct.unpack(">II", content[16:24])
            assert min(width, height) > 400
            assert b"tEXt" not in content


@given(st.lists(st.sampled_from([0.1, 0.5, 0.5001, math.nan]), min_size=1, max_size=8), st.randoms())
@settings(deadline=None, max_examples=50)
def test_chosen_epoch_is_the_first_highest(scores: list[float], random: object) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]
    rows = [{"method": "student", "seed": 0, "epoch": e, "valid/weighted_f1": scores[e]} for e in order]
    chosen = figures.chosen_epochs(pd.DataFrame(rows), ["student"])["student"]
    known = [s for s in scores if not math.isnan(s)]
    assert chosen == ([scores.index(max(known))] if known else [])


def test_embedding_repeats_and_separates() -> None:
    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(0, 0.1, (40, 8)), rng.normal(5, 0.1, (40, 8))]).astype(np.float16)
    places = figures.embedded(two)
    assert places.shape == (80, 2)
    assert np.array_equal(places, figures.embedded(two))
    near = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(near, np.inf)
    assert (near[:40].argmin(1) < 40).all()
    assert (near[40:].argmin(1) >= 40).all()


@pytest.mark.parametrize("shape", [(1, 4), (3, 4), (30, 1), (30, 4)])
def test_embedding_of_little_is_finite(shape: tuple[int, int]) -> None:
    assert np.isfinite(figures.embedded(np.zeros(shape, np.float16))).all()
    varied = np.random.default_rng(1).normal(size=shape)
    assert figures.embedded(varied).shape == (shape[0], 2)
    assert np.isfinite(figures.embedded(varied)).all()


def test_projection_takes_the_condition_asked_for(reported: Path) -> None:
    run = RunFolder.open(reported)
    default, asked = figures.projection(run), figures.projection(run, "audio+vision")
    assert "student/language," in default.alt
    assert "student/audio+vision," in asked.alt
    assert default.svg != asked.svg
    with pytest.raises(AbsentError, match="smell"):
        figures.projection(run, "smell")


def test_alt_text_tells_the_ends_of_the_curves(reported: Path) -> None:
    results = pd.read_csv(reported / "results.csv")
    rows = results[(results.method == "student") & (results.metric == "weighted_f1")]
    first, last = (rows[rows.condition == f"ratio-{r}"].value.mean() * 100 for r in ("0.0", "1.0"))
    assert f"CorrKD student from {first:.1f} to {last:.1f}" in figures.ratio_curves(RunFolder.open(reported)).alt
