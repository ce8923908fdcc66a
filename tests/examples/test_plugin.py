"""The example plug-in, installed as its README says and used from another process, as a
comparison's runs do.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"

# Trains, saves, loads and tests; then runs the network on samples with a modality, or everything,
# hidden.
USE = """
import json, sys
from pathlib import Path

import pandas as pd
import torch

from corrkd.data.inputs import Inputs
from corrkd.experiment.plan import load_plan
from corrkd.experiment.run import compare
from corrkd.experiment import run
from corrkd.methods.registry import method_names
from corrkd.networks.saved import load_network

run.write_report = lambda out: out  # takes longer than these runs
results = {"names": method_names()}
for target in ("classes", "score"):
    overrides = [
        "data.synthetic={train: 120, valid: 60, test: 60, frames: 4, noise: 0.3}",
        f"data.target={target}", "device=cpu",
        "student.epochs=6", "student.batch_size=12", "student.lr=0.02",
        "evaluation.draws=1", "evaluation.conditions={ratio: [0.0, 1.0], burst: []}",
    ]
    out = Path(target) / "synthetic"
    plan = load_plan(arms=["gated-fusion"], overrides=overrides, seeds=[0], budget="fixed")
    assert not compare(plan, Path(target)).failures
    saved = load_network(out / "seed-0" / "gated-fusion" / "gated-fusion")
    table = pd.read_csv(out / "seed-0" / "gated-fusion" / "results.csv")
    f1 = table[table["metric"] == "weighted_f1"].groupby("condition")["value"].mean()
    results[target] = {"history": saved.about["history"], "f1": f1.to_dict()}

folder = Path("classes") / "synthetic" / "seed-0" / "gated-fusion"
network = load_network(folder / "gated-fusion").network
torch.manual_seed(0)
frames = {m: torch.randn(5, 4, saved.widths[m]) for m in network.modalities}
exists = {m: torch.ones(5, 4, dtype=torch.bool) for m in network.modalities}
hidden = {m: torch.zeros_like(x) for m, x in exists.items()}
complete, first = Inputs(frames, exists, exists), network.modalities[0]
results["class"] = type(network).__module__
results["of_hidden"] = network.gated(complete.without(first))[1][:, 0].tolist()
other = {**frames, first: frames[first] + 1.0}
for key, inputs in {"moved_by_hidden": complete.without(first), "moved_by_shown": complete}.items():
    moved = network(inputs._replace(frames=other)).logits - network(inputs).logits
    results[key] = moved.abs().max().item()
results["of_nothing"] = network.gated(complete._replace(visible=hidden))[1].tolist()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what `USE` prints where the plug-in is installed."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(
        PLUGIN, folder / "source"
    )  # a build leaves files beside what it builds
    flags = [
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--quiet",
    ]
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *flags,
        "--target",
        str(folder / "site"),
        str(source),
    ]
    subprocess.run(install, check=True)
    paths = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", USE]
    run = subprocess.run(
        command, check=True, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    output: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return output


def test_is_listed_with_the_built_in_methods(results: dict[str, Any]) -> None:
    assert {"gated-fusion", "corrkd", "no-distillation"} <= set(results["names"])


@pytest.mark.parametrize("target", ["classes", "score"])
def test_learns_and_gets_worse_with_missing_frames(results: dict[str, Any], target: str) -> None:
    f1 = results[target]["f1"]
    assert f1["complete"] == f1["ratio-0.0"] > f1["ratio-1.0"] + 0.1
    first, *_, last = results[target]["history"]
    assert last["loss/task"] < 0.9 * first["loss/task"]


def test_its_term_is_in_the_objective(results: dict[str, Any]) -> None:
    for record in results["classes"]["history"]:
        assert 1 / 3 <= record["loss/concentration"] <= 1
        assert record["loss/total"] == pytest.approx(
            record["loss/task"] + 0.1 * record["loss/concentration"], rel=1e-4
        )


def test_a_saved_model_is_loaded_as_the_plug_ins_class(results: dict[str, Any]) -> None:
    assert results["class"] == "corrkd_gated_fusion"


def test_the_gate_shares_the_weight_among_visible_modalities(results: dict[str, Any]) -> None:
    assert results["of_hidden"] == [0.0] * 5
    assert results["moved_by_hidden"] == 0.0 < results["moved_by_shown"]
    assert all(row == pytest.approx([1 / 3] * 3) for row in results["of_nothing"])
