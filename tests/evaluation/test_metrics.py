from __future__ import annotations

import pytest

from corrkd.evaluation.metrics import area_under_ratios


def test_area_under_ratios() -> None:
    assert area_under_ratios([0.0, 0.5, 1.0], [1.0, 0.5, 0.0]) == pytest.approx(0.5)
    assert area_under_ratios([1.0, 0.2], [0.7, 0.7]) == pytest.approx(0.7)
