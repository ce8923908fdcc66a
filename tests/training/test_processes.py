"""Several processes must train the models of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file

from tests.command import corrkd
from tests.experiment.conftest import tiny, write_npz

ROLES = ("teacher", "student", "control")


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    return subprocess.run(
        [*command, "-m", "corrkd", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["classes", "score"])
def test_two_processes_give_the_models_of_one(tmp_path: Path, target: str) -> None:
    """31 samples in batches of 6: the last batch has one, so that one process has none."""
    labels = np.arange(62) % 3
    split = np.repeat(["train", "valid", "test"], [31, 16, 15])
    data = write_npz(
        tmp_path / "d.npz", {"language": 5, "audio": 3}, 62, labels=labels, split=split
    )
    path = tmp_path / "s.yaml"
    changes = {
        "data": {"path": str(data), "target": target},
        "precision": "64-true",
        "seeds": [0, 1],
    }
    settings = tiny(**changes)
    settings["teacher"]["network"]["dropout"] = 0.0
    path.write_text(yaml.safe_dump(settings))
    alone, together = tmp_path / "one", tmp_path / "two"
    assert corrkd("run", "--settings", path, "--out", alone).code == 0
    done = torchrun("run", "--settings", path, "--out", together)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert done.stderr.count("seed 1  student: 3/3") == 1
    for seed in ("seed-0", "seed-1"):
        for role in ROLES:
            model = Path("d", seed, role, f"{role}.safetensors")
            expected, actual = (load_file(folder / model) for folder in (alone, together))
            assert expected.keys() == actual.keys()
            for name, value in expected.items():
                np.testing.assert_allclose(
                    actual[name], value, rtol=1e-4, atol=1e-5, err_msg=f"{role} {name}"
                )
            history = Path("d", seed, role, "history.csv")
            histories = [
                pd.read_csv(folder / history).drop(columns="method") for folder in (alone, together)
            ]
            pd.testing.assert_frame_equal(*histories, rtol=1e-5)
    results = [pd.read_csv(folder / "results.csv") for folder in (alone, together)]
    pd.testing.assert_frame_equal(*results, check_exact=False, rtol=1e-4)
    assert {p.relative_to(alone) for p in alone.rglob("*.csv")} == {
        p.relative_to(together) for p in together.rglob("*.csv")
    }


@pytest.mark.slow
def test_an_error_in_several_processes_ends_them_all(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    done = torchrun(
        "run", "--preset=synthetic", "--set=device=cpu", "--set=jobs=1", "--out", tmp_path / "run"
    )
    assert done.returncode != 0
    assert "contains other files and no run" in done.stderr
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]
