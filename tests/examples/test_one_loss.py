from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "one_loss.py"


@pytest.mark.slow
def test_prints_a_falling_loss() -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    losses = [
        float(value) for value in re.findall(r"epoch \d+  distillation loss (\S+)", run.stdout)
    ]
    assert len(losses) == 8
    assert losses[-1] < 0.6 * losses[0]
