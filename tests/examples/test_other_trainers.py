"""The examples for Lightning and for Hugging Face's Trainer, where those are installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("script", "needs"), [("lightning_module.py", ["lightning"]), ("hf_trainer.py", ["transformers", "accelerate"])]
)
def test_the_student_does_without_a_modality_better_than_its_teacher(
    script: str, needs: list[str], tmp_path: Path
) -> None:
    for package in needs:
        pytest.importorskip(package)
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / script)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = re.findall(r"^(\w+): accuracy (\d\.\d+), without the first modality (\d\.\d+)$", run.stdout, re.MULTILINE)
    accuracy = {name: (float(complete), float(without)) for name, complete, without in found}
    assert set(accuracy) == {"teacher", "student"}
    assert accuracy["student"][1] > accuracy["teacher"][1]
    assert accuracy["student"][0] > accuracy["teacher"][0] - 0.05
    assert not list(tmp_path.iterdir())
