from __future__ import annotations

import re

import pytest

from tests.examples.script import EXAMPLES, output_of


@pytest.mark.slow
def test_the_student_beats_its_teacher_without_language() -> None:
    printed = output_of("corrkd_whole.py")
    lines = re.findall(r"(\w+): accuracy (\S+), without language (\S+)", printed)
    (teacher, student) = ((float(complete), float(missing)) for _, complete, missing in lines)
    assert [name for name, _, _ in lines] == ["teacher", "student"]
    assert min(teacher[0], student[0]) > 0.6  # three classes, equally likely
    assert student[1] > teacher[1] + 0.05


def test_the_script_is_short_and_independent_of_experiments() -> None:
    text = (EXAMPLES / "corrkd_whole.py").read_text()
    assert len(text.splitlines()) < 100
    assert "corrkd.experiment" not in text
