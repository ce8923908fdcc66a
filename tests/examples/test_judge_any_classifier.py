from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "judge_any_classifier.py"


@pytest.mark.slow
def test_the_f1_falls_with_missing_modalities(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    f1 = {
        name: float(value)
        for name, value in re.findall(r"^([\w+.-]+) +(\d\.\d+) ", run.stdout, re.MULTILINE)
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
    area = float(re.search(r"missing ratios: (\S+)", run.stdout)[1])  # type: ignore[index]
    assert abs(area - (sum(ratios) - (ratios[0] + ratios[-1]) / 2) / 10) < 1e-3
