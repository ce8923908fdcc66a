from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "arrays.py"


@pytest.mark.slow
def test_trains_on_modalities_of_any_name_and_tests_the_student(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    average = {
        name: float(value)
        for name, value in re.findall(r"^(\w+) +(\d\.\d+)$", run.stdout, re.MULTILINE)
    }
    assert set(average) == {"student", "teacher", "control", "majority"}
    assert average["student"] > average["majority"] + 0.1
    conditions = {
        name: float(value)
        for name, value in re.findall(r"^([\w+.-]+) +(\d\.\d+) ", run.stdout, re.MULTILINE)
    }
    assert set(conditions) == {"complete", "gaze+form", "ratio-0.5"}
    assert min(conditions.values()) > average["majority"]
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"mine.npz", "runs"}
