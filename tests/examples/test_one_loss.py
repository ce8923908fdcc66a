from __future__ import annotations

import re

import pytest

from tests.examples.script import output_of


@pytest.mark.slow
def test_prints_a_falling_loss() -> None:
    printed = output_of("one_loss.py")
    losses = [float(value) for value in re.findall(r"epoch \d+  distillation loss (\S+)", printed)]
    assert len(losses) == 8
    assert losses[-1] < 0.6 * losses[0]
