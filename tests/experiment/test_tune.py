from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from corrkd.data import batches
from corrkd.errors import CorrKDError
from corrkd.experiment import tune as module
from corrkd.experiment.arm import resolve
from corrkd.experiment.plan import load_plan, read_plan
from corrkd.experiment.progress import Reporter
from corrkd.experiment.runner import Failure
from corrkd.experiment.settings import ArmSettings, load_settings
from corrkd.experiment.tune import Range, carry_on, nested, space, table_text, tune
from corrkd.methods.corrkd import CorrKD
from corrkd.report.run_folder import read_csv
from tests.experiment.conftest import tiny

KL = {"kl": ArmSettings(epochs=1)}


def settings(**changes: Any) -> Any:
    return load_settings(**tiny(seeds=[0], **changes))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tune") / "out"
    tune(settings(), KL, out, trials=3)
    return out


def test_the_first_trial_is_the_defaults_and_the_best_is_kept(searched: Path) -> None:
    table = pd.read_csv(searched / "trials.csv")
    assert list(table["trial"]) == [0, 1, 2]
    assert table["changes"][0] == "defaults"
    assert "method.kl.weight=" in table["changes"][1]
    plan = load_plan(searched / "tuned.yaml", data=["synthetic"])
    arm = plan.datasets["synthetic"].arms["kl"]
    assert arm.epochs == 1  # fixed, not searched
    best = table.sort_values("score", ascending=False, kind="stable").iloc[0]
    assert ("lr" in arm.model_fields_set) == (best["trial"] != 0)
    assert plan.search.startswith("3 trials an arm")


def test_a_stopped_search_continues_to_the_same_result(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second trial, it ends like the complete search."""
    run_jobs, calls = module.run_jobs, []

    def stopping(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:  # the teacher, the first trial, the second
            raise KeyboardInterrupt
        return run_jobs(*arguments, **more)

    monkeypatch.setattr(module, "run_jobs", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune(settings(), KL, tmp_path / "out", trials=3)
    monkeypatch.setattr(module, "run_jobs", run_jobs)
    result = carry_on(read_plan(tmp_path / "out"), tmp_path / "out", Reporter(quiet=True))
    assert (tmp_path / "out" / "tuned.yaml").read_text() == (searched / "tuned.yaml").read_text()
    pd.testing.assert_frame_equal(result.trials, read_csv(searched / "trials.csv"))
    assert f"{100 * result.trials['score'].max():.2f}" in table_text(result)


def test_the_test_split_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_ids, make = [], batches.Samples.__init__

    def recorded(self: batches.Samples, split: Any, *arguments: Any, **options: Any) -> None:
        first_ids.append(str(split.ids[0]))
        make(self, split, *arguments, **options)

    monkeypatch.setattr(batches.Samples, "__init__", recorded)
    tune(settings(), {"no-distillation": ArmSettings(epochs=1)}, tmp_path / "out", trials=1)
    assert first_ids
    assert not [name for name in first_ids if name.startswith("test")]


def test_other_settings_need_another_folder(searched: Path) -> None:
    with pytest.raises(CorrKDError, match="contains a search with other settings"):
        tune(settings(missing={"modality": 0.9}), KL, searched, trials=3)
    with pytest.raises(CorrKDError, match="contains a search with other settings"):
        tune(settings(), {"kl": ArmSettings(epochs=1, lr=ArmSettings().lr)}, searched, trials=3)


def test_the_search_space() -> None:
    run = load_settings(student={"lr": 0.002})
    corrkd = space(resolve("corrkd", ArmSettings(), run))
    assert corrkd["lr"] == Range(0.0005, 0.008, log=True)
    assert {"network.dropout", "method.scd.weight", "method.cpd.weight", "method.rcd.weight"} < set(
        corrkd
    )
    assert "network.network.dropout" in space(resolve("smil", ArmSettings(), run))


def test_a_loss_that_an_arm_leaves_out_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_settings()
    keys = set(space(resolve("corrkd-without-scd", ArmSettings(), run)))
    assert {"method.cpd.weight", "method.rcd.weight"} < keys
    assert "method.scd.weight" not in keys
    monkeypatch.setattr(CorrKD, "search", {"options.scd": (0.1, 4.0)})
    with pytest.raises(
        CorrKDError,
        match=r"arm corrkd: method corrkd has no options\.scd, which its `search` names",
    ):
        space(resolve("corrkd", ArmSettings(), run))


def test_dotted_keys_become_nested() -> None:
    assert nested({"lr": 0.00123456, "network.network.dropout": 0.25, "network.width": 3.0}) == {
        "lr": 0.001235,
        "network": {"network": {"dropout": 0.25}, "width": 3.0},
    }


def test_a_trial_that_fails_has_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "space", lambda arm: {"lr": Range(1e29, 1e30, log=True)})
    arms = {"no-distillation": ArmSettings(epochs=1, clip_norm=None)}
    result = tune(settings(), arms, tmp_path / "out", trials=2)
    assert result.trials["score"].isna().tolist() == [False, True]
    assert result.best == {"no-distillation": {}}
    monkeypatch.setattr(
        module, "run_jobs", lambda jobs, *_, **__: [Failure(job, "no") for job in jobs]
    )
    with pytest.raises(CorrKDError, match="no-distillation: every trial has failed"):
        tune(settings(), arms, tmp_path / "other", trials=1)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CorrKDError, match="contains other files and no run"):
        tune(settings(), KL, tmp_path, trials=1)
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == ["thesis.txt"]
