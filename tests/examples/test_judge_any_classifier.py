from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.examples.script import output_of


@pytest.mark.slow
def test_the_f1_falls_with_missing_modalities(tmp_path: Path) -> None:
    printed = output_of("judge_any_classifier.py", tmp_path)
    f1 = {
        name: float(value)
        for name, value in re.findall(r"^([\w+.-]+) +(\d\.\d+) ", printed, re.MULTILINE)
    }
    assert f1["complete"] == f1["ratio-0.0"] == max(f1.values())
    assert f1["complete"] > f1["language"] > f1["audio"] > f1["vision"] > f1["ratio-1.0"]
    ratios = [f1[f"ratio-{tenth / 10:.1f}"] for tenth in range(11)]
    assert ratios == sorted(ratios, reverse=True)
    missing = [
        f1[name]
        for name in (
            "language",
            "audio",
            "vision",
            "language+audio",
            "language+vision",
            "audio+vision",
        )
    ]
    assert abs(f1["average"] - sum(missing) / 6) < 1e-3
    area = float(re.search(r"missing ratios: (\S+)", printed)[1])  # type: ignore[index]
    assert abs(area - (sum(ratios) - (ratios[0] + ratios[-1]) / 2) / 10) < 1e-3
