"""Recorded and compiled steps must match plain steps."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from corrkd.errors import CorrKDError
from corrkd.training import captured
from corrkd.training.captured import Captured, Compiled
from corrkd.training.checkpoint import CheckpointWriter, load_checkpoint
from corrkd.training.stacked import train_together
from tests.training.recording import RecordedGraph
from tests.training.test_stacked import FABRIC, assert_equal, make_runs


def test_work_is_recorded_once_for_each_set_of_shapes() -> None:
    total = torch.zeros(())
    calls = []

    def work(arguments: Sequence[Tensor]) -> Mapping[str, Tensor]:
        calls.append(arguments[0].shape)
        total.add_(arguments[0].sum())
        return {"double": 2 * arguments[0]}

    step = Captured(work, RecordedGraph)
    expected = 0.0
    for size in (3, 3, 2, 3, 2, 2):
        x = torch.full((size,), float(len(calls) + size))
        expected += float(x.sum())
        assert torch.equal(step([x])["double"], 2 * x)
        assert total.item() == expected
    assert calls == [(3,), (3,), (2,), (2,)]  # each once plain, once recorded


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x[0].sum().item(),
        lambda x: x[0][x[0] > 0],
        lambda x: x[0] + torch.tensor([1.0, 2.0]),
        lambda x: torch.rand_like(x[0]),
        lambda x: torch.nn.functional.dropout(x[0], 0.5),
    ],
)
def test_recording_refuses_what_a_gpu_cannot_capture(work: object) -> None:
    step = Captured(work, RecordedGraph)  # type: ignore[arg-type]
    step([torch.ones(2)])
    with pytest.raises(AssertionError, match="cannot be captured"):
        step([torch.ones(2)])


@pytest.mark.slow  # compiles for half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_steps_match_plain_steps() -> None:
    together = [
        train_together(make_runs("corrkd"), fabric=FABRIC, compiled=compiled)
        for compiled in (True, False)
    ]
    assert_equal(*together)


def test_other_shapes_than_the_first_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda traced, **_: lambda x: traced(x) + 100.0)
    double = Compiled(lambda x: 2 * x)
    assert double(torch.ones(2)).tolist() == [102.0, 102.0]
    assert double(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert double(torch.full((2,), 3.0)).tolist() == [106.0, 106.0]


def test_without_a_compiler_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise captured.COMPILER_FAILED[0](None, RuntimeError("no g++"), None)

    monkeypatch.setattr(torch, "compile", lambda traced, **_: fails)
    with pytest.raises(CorrKDError, match=r"install a C\+\+ compiler .* or set compile: false"):
        Compiled(lambda x: 2 * x)(torch.ones(2))


def test_checkpoints_of_short_epochs_are_not_all_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing takes 2 s of this clock, so the next follows 40 s later: a twentieth of the time."""
    clock = [100.0]
    monkeypatch.setattr("corrkd.training.checkpoint.time.monotonic", lambda: clock[0])
    path = tmp_path / "a.ckpt"
    writer = CheckpointWriter(path)

    def state(epoch: int) -> dict[str, int]:
        clock[0] += 2.0
        return {"epoch": epoch}

    def stored() -> int:
        content = load_checkpoint(path, torch.device("cpu"))
        assert content is not None
        return int(content["epoch"])

    writer.write(lambda: state(1))
    for passed, epoch, expected in (
        (1.0, 2, 1),
        (38.0, 3, 1),
        (1.5, 4, 4),
        (39.0, 5, 4),
        (1.5, 6, 6),
    ):
        clock[0] += passed
        writer.write(lambda epoch=epoch: state(epoch))  # type: ignore[misc]
        assert stored() == expected
