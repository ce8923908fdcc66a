"""A run that is stopped at any time and resumed ends like one that never was."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

import corrkd as package
from corrkd.experiment import folder as run_folder
from corrkd.experiment.plan import plan_of_run
from tests.command import Started, corrkd, ends_at
from tests.experiment.conftest import assert_same, contents, tiny, write_npz

WRITE = ("pathlib:Path", "write_bytes")  # dies with half of the file written
SYNC = ("os", "fsync")  # dies with the temporary file complete
REPLACE = ("os", "replace")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny()))
    return path


@pytest.fixture(scope="module")
def expected(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an uninterrupted run, except for the report, which is a function of them."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert corrkd("run", "--settings", settings, "--out", out, report=False).code == 0
    return contents(out)


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.endswith((".part", ".ckpt"))]


def killed_again_and_again(
    settings: Path, out: Path, owner: str, name: str, calls: int, patience: int
) -> int:
    """Start a run and resume it, each process killed at a call, until all results exist; return the
    number of kills.

    The call is number `calls` at first, and one later after every `patience` processes, as an
    evaluation is never half done.
    """
    kills = 0
    while not (out / "results.csv").exists():
        args = (
            ("resume", out)
            if (out / "plan.yaml").exists()
            else ("run", "--settings", settings, "--out", out)
        )
        ended = corrkd(*args, first=ends_at(owner, name, calls + kills // patience), report=False)
        assert ended.code in (0, -signal.SIGKILL), ended
        kills += ended.code != 0
        assert kills < 60, "no progress"
    return kills


@pytest.mark.parametrize(
    ("hook", "calls", "least"), [(WRITE, 4, 4), pytest.param(REPLACE, 5, 4, marks=pytest.mark.slow)]
)
def test_killed_again_and_again(
    settings: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
    hook: tuple[str, str],
    calls: int,
    least: int,
) -> None:
    out = tmp_path / "run"
    assert killed_again_and_again(settings, out, *hook, calls, patience=1) >= least
    assert corrkd("resume", out, report=False).code == 0
    assert_same(contents(out), expected)
    assert not leftovers(out)


@pytest.mark.slow
@pytest.mark.parametrize("hook", [WRITE, SYNC, REPLACE])
def test_killed_at_every_write(
    settings: Path, expected: dict[str, bytes], tmp_path: Path, hook: tuple[str, str]
) -> None:
    """At the second write each process gets one file further, as the first one is the plan's."""
    out = tmp_path / "run"
    assert killed_again_and_again(settings, out, *hook, 2, patience=6) >= 12
    assert corrkd("resume", out, report=False).code == 0
    assert_same(contents(out), expected)
    assert not leftovers(out)


def test_killed_at_its_very_first_write(settings: Path, tmp_path: Path) -> None:
    """No run exists yet, and the folder does not prevent one."""
    out = tmp_path / "run"
    assert (
        corrkd("train", "--settings", settings, "--out", out, first=ends_at(*WRITE, 1)).code
        == -signal.SIGKILL
    )
    assert "contains no plan.yaml" in corrkd("resume", out).line
    assert corrkd("train", "--settings", settings, "--out", out).code == 0
    assert not leftovers(out)


def test_killed_between_the_last_model_and_the_history(
    settings: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = ends_at("corrkd.experiment.stages", "_write_history", 3)
    assert (
        corrkd("train", "--settings", settings, "--out", out, first=first).code == -signal.SIGKILL
    )
    assert (out / "synthetic" / "seed-0" / "control" / "control.json").exists()
    assert not (out / "synthetic" / "seed-0" / "control" / "history.csv").exists()
    assert corrkd("resume", out, report=False).code == 0
    assert_same(contents(out), expected)
    assert not leftovers(out)


def test_killed_from_outside(settings: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    """While the student is in training."""
    out = tmp_path / "run"
    run = Started("run", "--settings", settings, "--out", out)
    try:
        wait_for(out / "synthetic" / "seed-0" / "student" / "student.ckpt")
    finally:
        run.process.kill()
    assert run.end().code == -signal.SIGKILL
    assert not (out / "results.csv").exists()
    assert corrkd("resume", out, report=False).code == 0
    assert_same(contents(out), expected)
    assert not leftovers(out)


@pytest.mark.parametrize(
    ("hook", "calls"), [(SYNC, 7), (("corrkd.experiment.stages", "sweep_splits"), 2)]
)
def test_control_c(
    settings: Path, expected: dict[str, bytes], tmp_path: Path, hook: tuple[str, str], calls: int
) -> None:
    """In training, in the middle of a write; and in the evaluation."""
    out = tmp_path / "run"
    ended = corrkd(
        "run", "--settings", settings, "--out", out, first=ends_at(*hook, calls, signal.SIGINT)
    )
    assert ended.code == 130
    lines = ended.err.splitlines()
    assert lines[-1].startswith("interrupted; `corrkd resume")
    assert not any("Traceback" in line or "interrupted" in line for line in lines[:-1])
    assert not [p for p in leftovers(out) if p.suffix == ".part"]
    assert corrkd("resume", out, report=False).code == 0
    assert_same(contents(out), expected)


def test_resuming_a_finished_run_changes_nothing(
    finished: Path, tmp_path: Path, no_report: None
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = contents(out)
    results = package.resume(out).results
    assert_same(contents(out), before)
    assert set(results["seed"]) == {"0", "1", ""}


def test_data_that_changed_are_refused(tmp_path: Path) -> None:
    data, out = write_npz(tmp_path / "d.npz", {"language": 5, "audio": 3}), tmp_path / "run"
    package.run(tiny(data={"path": str(data)}), out, evaluate=False)
    before = contents(out)
    write_npz(data, {"language": 5, "audio": 3}, seed=1)
    assert "the data has changed since the run began" in corrkd("resume", out).line
    assert contents(out) == before
    data.unlink()
    assert "no such file" in corrkd("resume", out).line


def test_another_version_does_not_continue_a_run(tmp_path: Path) -> None:
    """Its models would be mixed with those of this version."""
    out = tmp_path / "run"
    package.run(tiny(), out, evaluate=False)
    facts = json.loads((out / "synthetic" / "run.json").read_text())
    (out / "synthetic" / "run.json").write_text(json.dumps({**facts, "corrkd": "0.1.0"}))
    before = contents(out)
    assert (
        f"was begun with corrkd 0.1.0, and this is {facts['corrkd']}" in corrkd("resume", out).line
    )
    assert contents(out) == before


def test_one_process_at_a_time(settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with run_folder.locked(out):
        assert (
            "another process is writing this run"
            in corrkd("train", "--settings", settings, "--out", out).line
        )
        assert not (out / "plan.yaml").exists()
    (out / "plan.yaml").write_text(plan_of_run(package.load_settings(settings)).to_yaml())
    with run_folder.locked(out):
        assert "another process is writing this run" in corrkd("resume", out).line


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_several_seeds_at_once_are_stopped_together(tmp_path: Path, number: int) -> None:
    path, out, straight = tmp_path / "s.yaml", tmp_path / "run", tmp_path / "straight"
    path.write_text(yaml.safe_dump(tiny(seeds=[0, 1], student={"epochs": 60})))
    corrkd("run", "--settings", path, "--out", straight)
    # Not by fork: processes of multiprocessing leave joblib's workers behind.
    command = [sys.executable, "-m", "corrkd"]
    args = [*command, "run", "--settings", path, "--jobs", "2", "--out", out]
    # A shell's background jobs ignore SIGINT, and so do their children.
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(args, stderr=subprocess.PIPE, text=True, preexec_fn=restore) as process:
        try:
            wait_for(out / "synthetic" / "seed-1" / "student" / "student.ckpt")
            process.send_signal(number)
            stderr = process.communicate(timeout=120)[1]
        finally:
            process.kill()
    assert process.returncode == (-number if number == signal.SIGKILL else 130), stderr
    assert "Traceback" not in stderr
    time.sleep(1)  # longer than a worker without its parent may live
    state = contents(out)
    time.sleep(2)
    assert contents(out) == state
    subprocess.run([*command, "resume", out], check=True, capture_output=True)
    resumed, unstopped = contents(out), contents(straight)
    for name in ("plan.yaml", "synthetic/settings.yaml", "report.html", "report.md"):  # jobs
        assert resumed.pop(name) != unstopped.pop(name)
    assert_same(resumed, unstopped)
    assert not leftovers(out)


def wait_for(path: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.005)
