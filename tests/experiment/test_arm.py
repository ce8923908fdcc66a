from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corrkd.errors import CorrKDError
from corrkd.experiment.arm import ABLATION, BY_COMPLETE, BY_MISSING, GROUPS, arm_names, laid_over, resolve
from corrkd.experiment.plan import DatasetPlan
from corrkd.experiment.progress import Reporter
from corrkd.experiment.run import prepared
from corrkd.experiment.settings import ArmSettings, load_settings
from corrkd.methods.registry import method_names
from corrkd.networks.gcnet import GCNetSettings
from tests.experiment.conftest import tiny, write_npz

RUN = load_settings(
    network={"width": 80, "heads": 8},
    teacher={"epochs": 3},
    student={"epochs": 7, "lr": 0.004, "distillation": {"scd": 0.5, "boundary": 1.4}},
)


def test_an_arm_takes_the_runs_settings_where_they_are_its_own() -> None:
    corrkd, gcnet = resolve("corrkd", ArmSettings(), RUN), resolve("gcnet", ArmSettings(), RUN)
    assert corrkd.network == RUN.network
    assert corrkd.options == RUN.student.distillation
    assert gcnet.network == GCNetSettings()
    for arm in (corrkd, gcnet):
        assert (arm.training.epochs, arm.training.lr, arm.selection) == (7, 0.004, BY_MISSING)
    teacher = resolve("teacher", ArmSettings(), RUN)
    assert (teacher.stage.epochs, teacher.complete, teacher.selection) == (3, True, BY_COMPLETE)
    assert teacher.start != corrkd.start == gcnet.start


def test_changes_lie_over_and_leave_the_rest() -> None:
    arm = resolve("mine", ArmSettings(method="corrkd", options={"scd": 2.0}, stage={"lr": 0.1}), RUN)
    assert (arm.options.scd, arm.options.boundary) == (2.0, 1.4)  # type: ignore[attr-defined]
    assert (arm.training.lr, arm.training.epochs) == (0.1, 7)
    assert (arm.name, arm.base, arm.kind) == ("mine", "corrkd", "method")


def test_the_ablation_leaves_out_what_it_names() -> None:
    weights = {name: resolve(name, ArmSettings(), RUN).options for name in ABLATION}
    seen = {name: (o.scd > 0, o.cpd > 0, o.rcd > 0, o.kl > 0) for name, o in weights.items()}  # type: ignore[attr-defined]
    assert seen == {
        "corrkd-without-scd": (False, True, True, False),
        "corrkd-without-cpd": (True, False, True, False),
        "corrkd-without-rcd": (True, True, False, False),
        "corrkd-kl": (True, True, False, True),
    }
    changed = resolve("corrkd-kl", ArmSettings(options={"kl": 3.0}), RUN).options
    assert (changed.rcd, changed.kl) == (0.0, 3.0)  # type: ignore[attr-defined]


def test_what_papers_train_on_complete_samples_can_be_trained_on_incomplete_ones() -> None:
    """And each is chosen by what it is trained on."""
    for name, settings, complete in (
        ("cubemlp", ArmSettings(), True),
        ("cubemlp", ArmSettings(trains_on="missing"), False),
        ("gcnet", ArmSettings(trains_on="complete"), True),
    ):
        arm = resolve(name, settings, RUN)
        assert (arm.complete, arm.selection) == (complete, BY_COMPLETE if complete else BY_MISSING)


def test_every_name_there_is_resolves() -> None:
    for name in arm_names():
        assert resolve(name, ArmSettings(), RUN).title
    assert set(GROUPS["all"]) <= set(arm_names())
    assert set(method_names()) - set(GROUPS["all"]) == set()


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("unheard-of", {}, "method 'unheard-of' is unknown; there are self-mm, "),
        (
            "kl",
            {"options": {"weight": 1}},
            r"settings: methods\.kl\.options\.weight is unknown; allowed there: kl, temp",
        ),
        ("gcnet", {"network": {"past": -1}}, r"settings: methods\.gcnet\.network\.past: .*\(given: -1\)"),
        ("smil", {"stage": {"epochs": 0}}, r"methods\.smil\.stage\.epochs"),
    ],
)
def test_what_cannot_be_is_one_line(name: str, changes: dict[str, object], line: str) -> None:
    with pytest.raises(CorrKDError, match=line) as error:
        resolve(name, ArmSettings.model_validate(changes), RUN)
    assert "\n" not in str(error.value)


def test_laid_over_joins_nested_changes() -> None:
    below = ArmSettings(title="below", network={"network": {"width": 20, "layers": 2}})
    above = ArmSettings(network={"network": {"layers": 1}}, stage={"lr": 1.0})
    both = laid_over(below, above)
    assert both.title == "below"
    assert both.network == {"network": {"width": 20, "layers": 1}}
    assert both.stage == {"lr": 1.0}


def test_a_width_that_a_loss_cannot_compare_is_refused_before_any_training(tmp_path: Path) -> None:
    narrow = {"network": {"width": 4, "heads": 2}}
    data = write_npz(tmp_path / "d.npz", {"language": 5, "audio": 3}, 60)
    settings = load_settings(**tiny(data={"path": str(data)}))

    def prepare(**arm: Any) -> None:
        prepared("d", DatasetPlan(settings=settings, arms={"mine": ArmSettings(**arm, **narrow)}), Reporter(quiet=True))

    prepare(method="kl")
    prepare(method="corrkd", options={"scd": 0.0})
    line = r"dataset d, arm mine: CorrKD: SCD .* the student's is 8 and the teachers' is 16; make network\.width of both equal"
    with pytest.raises(CorrKDError, match=line) as error:
        prepare(method="corrkd")
    assert "\n" not in str(error.value)
