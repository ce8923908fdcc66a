from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from corrkd.data import batches
from corrkd.errors import CorrKDError
from corrkd.experiment import tune as module
from corrkd.experiment.arm import resolve
from corrkd.experiment.compare_settings import load_plan
from corrkd.experiment.tune import Range, nested, space, table_text, tune
from corrkd.report.run_folder import read_csv
from corrkd.settings import ArmSettings, load_settings
from tests.experiment.conftest import tiny

KL = {"kl": ArmSettings(stage={"epochs": 1})}


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
    assert "options.kl=" in table["changes"][1]
    plan = load_plan(searched / "tuned.yaml", data=["synthetic"])
    found = plan.datasets["synthetic"].methods["kl"]
    assert found.stage["epochs"] == 1  # what was fixed stays
    best = table.sort_values("score", ascending=False, kind="stable").iloc[0]
    assert ("lr" in found.stage) == (best["trial"] != 0)
    assert plan.search.startswith("3 trials a method")


def test_it_goes_on_and_comes_to_the_same(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second trial, it ends where the whole search ended."""
    train, calls = module._train, []

    def stopping(*given: Any) -> float:
        calls.append(given)
        if len(calls) == 3:  # the teacher, the first trial, the second
            raise KeyboardInterrupt
        return train(*given)

    monkeypatch.setattr(module, "_train", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune(settings(), KL, tmp_path / "out", trials=3)
    monkeypatch.setattr(module, "_train", train)
    found = tune(settings(), KL, tmp_path / "out", trials=3)
    assert (tmp_path / "out" / "tuned.yaml").read_text() == (searched / "tuned.yaml").read_text()
    pd.testing.assert_frame_equal(found.trials, read_csv(searched / "trials.csv"))
    assert f"{100 * found.trials['score'].max():.2f}" in table_text(found)


def test_the_test_split_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, make = [], batches.Samples.__init__

    def watching(self: batches.Samples, split: Any, *given: Any, **more: Any) -> None:
        seen.append(str(split.ids[0]))
        make(self, split, *given, **more)

    monkeypatch.setattr(batches.Samples, "__init__", watching)
    tune(settings(), {"no-distillation": ArmSettings(stage={"epochs": 1})}, tmp_path / "out", trials=1)
    assert seen
    assert not [name for name in seen if name.startswith("test")]


def test_other_settings_need_another_folder(searched: Path) -> None:
    with pytest.raises(CorrKDError, match="holds a search with other settings"):
        tune(settings(missing={"modality": 0.9}), KL, searched, trials=3)


def test_what_is_searched() -> None:
    run = load_settings(student={"lr": 0.002})
    corrkd = space(resolve("corrkd", ArmSettings(), run))
    assert corrkd["stage.lr"] == Range(0.0005, 0.008, log=True)
    assert {"network.dropout", "options.scd", "options.cpd", "options.rcd"} < set(corrkd)
    assert "network.network.dropout" in space(resolve("smil", ArmSettings(), run))


def test_dotted_keys_become_nested() -> None:
    assert nested({"stage.lr": 0.00123456, "network.network.dropout": 0.25, "network.width": 3.0}) == {
        "stage": {"lr": 0.001235},
        "network": {"network": {"dropout": 0.25}, "width": 3.0},
    }
