"""The examples for Lightning and for Hugging Face's Trainer, where those are installed."""

from __future__ import annotations

import re
import runpy
from functools import partial
from pathlib import Path

import pytest

from tests.command import corrkd

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("script", "needs"),
    [("lightning_module.py", ["lightning"]), ("hf_trainer.py", ["transformers", "accelerate"])],
)
def test_the_student_beats_its_teacher_without_a_modality(
    script: str, needs: list[str], tmp_path: Path
) -> None:
    for package in needs:
        pytest.importorskip(package)
    # In a process that has torch already.
    run = corrkd(
        "--version",
        first=partial(runpy.run_path, str(EXAMPLES / script), run_name="__main__"),
        cwd=tmp_path,
    )
    assert run.code == 0, run.err
    lines = re.findall(
        r"^(\w+): accuracy (\d\.\d+), without the first modality (\d\.\d+)$", run.out, re.MULTILINE
    )
    accuracy = {name: (float(complete), float(without)) for name, complete, without in lines}
    assert set(accuracy) == {"teacher", "student"}
    assert accuracy["student"][1] > accuracy["teacher"][1]
    assert accuracy["student"][0] > accuracy["teacher"][0] - 0.05
    assert not list(tmp_path.iterdir())
