from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.examples.script import output_of


@pytest.mark.slow
def test_trains_on_modalities_of_any_name_and_tests_the_student(tmp_path: Path) -> None:
    printed = output_of("arrays.py", tmp_path)
    average = {
        name: float(value)
        for name, value in re.findall(r"^(\w+) +(\d\.\d+)$", printed, re.MULTILINE)
    }
    assert set(average) == {"student", "teacher", "control", "majority"}
    assert average["student"] > average["majority"] + 0.1
    conditions = {
        name: float(value)
        for name, value in re.findall(r"^([\w+.-]+) +(\d\.\d+) ", printed, re.MULTILINE)
    }
    assert set(conditions) == {"complete", "gaze+form", "ratio-0.5"}
    assert min(conditions.values()) > average["majority"]
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"mine.npz", "runs"}
