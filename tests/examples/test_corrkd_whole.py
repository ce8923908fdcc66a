from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "corrkd_whole.py"


@pytest.mark.slow
def test_the_student_beats_its_teacher_without_language() -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = re.findall(r"(\w+): accuracy (\S+), without language (\S+)", run.stdout)
    (teacher, student) = ((float(complete), float(missing)) for _, complete, missing in lines)
    assert [name for name, _, _ in lines] == ["teacher", "student"]
    assert min(teacher[0], student[0]) > 0.6  # three classes, equally likely
    assert student[1] > teacher[1] + 0.05


def test_the_script_is_short_and_independent_of_experiments() -> None:
    text = SCRIPT.read_text()
    assert len(text.splitlines()) < 100
    assert "corrkd.experiment" not in text
