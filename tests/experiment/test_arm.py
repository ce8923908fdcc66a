from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from corrkd.errors import CorrKDError
from corrkd.experiment.arm import (
    ABLATION,
    BY_COMPLETE,
    BY_MISSING,
    GROUPS,
    Arm,
    arm_names,
    laid_over,
    resolve,
)
from corrkd.experiment.choices import MethodChoice
from corrkd.experiment.plan import DatasetPlan
from corrkd.experiment.progress import Reporter
from corrkd.experiment.run import prepared
from corrkd.experiment.settings import ArmSettings, load_settings
from corrkd.methods.corrkd import Relations
from corrkd.methods.registry import method_names
from corrkd.networks.cubemlp import CubeMLPNetwork, CubeMLPSettings
from corrkd.networks.gcnet import GCNetSettings
from tests.experiment.conftest import tiny, write_npz

RUN = load_settings(
    teacher={"network": {"width": 80, "heads": 8}, "epochs": 3},
    student={"epochs": 7, "lr": 0.004, "method": {"scd": {"weight": 0.5, "boundary": 1.4}}},
)


def options_of(arm: Arm) -> dict[str, Any]:
    return arm.method.options.model_dump()


def test_an_arm_takes_the_runs_settings_where_they_apply() -> None:
    corrkd, gcnet = resolve("corrkd", ArmSettings(), RUN), resolve("gcnet", ArmSettings(), RUN)
    assert corrkd.network == RUN.student.network == RUN.teacher.network
    assert corrkd.method == RUN.student.method
    assert gcnet.network.options == GCNetSettings()
    fusion = resolve("late-fusion", ArmSettings(), RUN)
    assert (fusion.network.name, fusion.network.options) == (
        "late-fusion",
        RUN.student.network.options,
    )
    for arm in (corrkd, gcnet):
        assert (arm.training.epochs, arm.training.lr, arm.selection) == (7, 0.004, BY_MISSING)
    teacher = resolve("teacher", ArmSettings(), RUN)
    assert (teacher.training.epochs, teacher.complete, teacher.selection) == (3, True, BY_COMPLETE)
    assert teacher.start != corrkd.start == gcnet.start


def test_changes_override_single_settings_and_keep_the_others() -> None:
    arm = resolve(
        "mine", ArmSettings(method={"name": "corrkd", "scd": {"weight": 2.0}}, lr=0.1), RUN
    )
    assert options_of(arm)["scd"] == {
        **options_of(resolve("corrkd", ArmSettings(), RUN))["scd"],
        "weight": 2.0,
    }
    assert options_of(arm)["scd"]["boundary"] == 1.4
    assert (arm.training.lr, arm.training.epochs) == (0.1, 7)
    assert (arm.name, arm.method.name, arm.kind) == ("mine", "corrkd", "method")


def test_an_ablation_disables_the_named_loss() -> None:
    options = {name: options_of(resolve(name, ArmSettings(), RUN)) for name in ABLATION}
    active = {
        name: tuple(o[term]["weight"] > 0 for term in ("scd", "cpd", "rcd", "kl"))
        for name, o in options.items()
    }
    assert active == {
        "corrkd-without-scd": (False, True, True, False),
        "corrkd-without-cpd": (True, False, True, False),
        "corrkd-without-rcd": (True, True, False, False),
        "corrkd-kl": (True, True, False, True),
    }
    changed = options_of(resolve("corrkd-kl", ArmSettings(method={"kl": {"weight": 3.0}}), RUN))
    assert (changed["rcd"]["weight"], changed["kl"]["weight"]) == (0.0, 3.0)


def test_an_arm_is_taught_by_the_teacher_or_by_the_arm_that_its_method_names() -> None:
    hrlf = load_settings(student={"method": "hrlf", "epochs": 9}, teacher={"epochs": 3})
    assert [
        resolve(name, ArmSettings(), RUN).taught_by
        for name in ("corrkd", "kl", "hrlf", "gcnet", "teacher")
    ] == ["teacher", "teacher", "hrlf-teacher", None, None]
    # If the run's student is HRLF's, so is the run's teacher, which teaches all others, too.
    assert (
        resolve("hrlf", ArmSettings(), hrlf).taught_by
        == resolve("student", ArmSettings(), hrlf).taught_by
        == "teacher"
    )
    assert resolve("corrkd", ArmSettings(), hrlf).taught_by == "teacher"
    assert resolve("teacher", ArmSettings(), hrlf).method.name == "hrlf-teacher"
    assert resolve("teacher", ArmSettings(), RUN).method.name == "no-distillation"


def test_the_teacher_of_a_method_is_trained_like_that_of_the_run() -> None:
    settings = load_settings(student={"epochs": 9}, teacher={"epochs": 3})
    plain, of_hrlf = (
        resolve(name, ArmSettings(), settings) for name in ("teacher", "hrlf-teacher")
    )
    for arm in (plain, of_hrlf):
        assert (arm.training.epochs, arm.complete, arm.selection, arm.is_teacher) == (
            3,
            True,
            BY_COMPLETE,
            True,
        )
    assert of_hrlf.network.name == resolve("hrlf", ArmSettings(), settings).network.name == "hrlf"
    assert of_hrlf.network.options == resolve("hrlf", ArmSettings(), settings).network.options
    assert (of_hrlf.kind, resolve("hrlf", ArmSettings(), settings).kind) == ("control", "baseline")
    with pytest.raises(CorrKDError, match=r"arms\.hrlf-teacher: a teacher has no teacher"):
        resolve("hrlf-teacher", ArmSettings(trains_on="missing"), settings)


def test_methods_for_complete_samples_can_be_trained_on_incomplete_ones() -> None:
    """The epoch is selected on the same kind of samples."""
    for name, settings, complete in (
        ("cubemlp", ArmSettings(), True),
        ("cubemlp", ArmSettings(trains_on="missing"), False),
        ("gcnet", ArmSettings(trains_on="complete"), True),
    ):
        arm = resolve(name, settings, RUN)
        assert (arm.complete, arm.selection) == (complete, BY_COMPLETE if complete else BY_MISSING)


def test_every_arm_name_resolves() -> None:
    for name in arm_names():
        assert resolve(name, ArmSettings(), RUN).title
    assert set(GROUPS["all"]) <= set(arm_names())
    assert set(method_names()) - set(GROUPS["all"]) == set()


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("unheard-of", {}, "unknown method 'unheard-of'; available: self-mm, "),
        (
            "kl",
            {"method": {"weight": 1}},
            r"settings: arms\.kl\.method\.weight: unknown key; allowed: name, kl",
        ),
        (
            "gcnet",
            {"network": {"past": -1}},
            r"settings: arms\.gcnet\.network\.past: .*\(given: -1\)",
        ),
        (
            "smil",
            {"network": "gcnet"},
            r"arms\.smil\.network: method smil trains network smil alone, not gcnet",
        ),
        (
            "kl",
            {"network": {"name": "unheard-of"}},
            r"settings: arms\.kl\.network: unknown network 'unheard-of'",
        ),
    ],
)
def test_invalid_arms_are_one_line_errors(name: str, changes: dict[str, object], line: str) -> None:
    with pytest.raises(CorrKDError, match=line) as error:
        resolve(name, ArmSettings.model_validate(changes), RUN)
    assert "\n" not in str(error.value)


def test_settings_of_training_are_keys_of_the_arm() -> None:
    with pytest.raises(ValidationError, match="epochs"):
        ArmSettings(epochs=0)
    last = load_settings(student={"keep": "last"})
    with pytest.raises(
        CorrKDError, match=r"settings: arms\.smil: patience stops by the validation score"
    ):
        resolve("smil", ArmSettings(patience=3), last)


def test_a_method_that_requires_no_network_takes_any() -> None:
    arm = resolve("kl", ArmSettings(network={"name": "cubemlp", "dropout": 0.3}), RUN)
    assert arm.network.class_ is CubeMLPNetwork
    assert arm.network.options == CubeMLPSettings(dropout=0.3)
    run = load_settings(
        student={"network": "cubemlp", "method": {"name": "kl", "kl": {"weight": 2.0}}}
    )
    assert resolve("kl", ArmSettings(), run).network.name == "cubemlp"
    assert (
        resolve("student", ArmSettings(), run).method
        == run.student.method
        == resolve("kl", ArmSettings(), run).method
    )
    assert resolve("student", ArmSettings(), run).title == "Plain KL distillation student"
    assert resolve("teacher", ArmSettings(), run).network.name == "corrkd"


def test_laid_over_joins_nested_changes() -> None:
    below = ArmSettings(title="below", network={"network": {"width": 20, "layers": 2}})
    above = ArmSettings(network={"network": {"layers": 1}}, lr=1.0)
    merged = laid_over("smil", below, above)
    assert merged.title == "below"
    assert merged.network == {"network": {"width": 20, "layers": 1}}
    assert merged.model_fields_set == {"title", "network", "lr"}
    assert merged.lr == 1.0


@pytest.mark.parametrize(
    ("name", "below", "above", "expected"),
    [
        (
            "corrkd",
            {"scd": {"weight": 3}},
            {"scd": {"form": "contrast", "boundary": 1.4}},
            {"scd": {"weight": 3, "boundary": 1.4}},
        ),
        (
            "kl",
            {"kl": {"weight": 0.5}},
            {"name": "kl", "kl": {"temperature": 2}},
            {"kl": {"weight": 0.5, "temperature": 2}},
        ),
        (
            "corrkd-without-scd",
            {},
            {"scd": {"form": "relations"}},
            {"scd": {"weight": 0, "form": "relations"}},
        ),
        (
            "mine",
            {"name": "corrkd", "scd": {"weight": 3}},
            {"name": "kl"},
            {"kl": {"weight": 1, "temperature": 1}},
        ),
        (
            "corrkd",
            {"rcd": {"form": "divergence", "weight": 3}},
            {"rcd": {"form": "information"}},
            {"rcd": {"weight": 1}},
        ),
    ],
)
def test_an_arm_of_a_dataset_overrides_that_of_the_plan(
    name: str, below: dict[str, Any], above: dict[str, Any], expected: dict[str, dict[str, Any]]
) -> None:
    merged = laid_over(name, ArmSettings(method=below), ArmSettings(method=above))
    options = options_of(resolve(name, merged, load_settings()))
    assert {
        term: {key: options[term][key] for key in values} for term, values in expected.items()
    } == expected


def test_a_named_network_keeps_the_settings_below_if_it_is_the_same() -> None:
    merged = laid_over(
        "gcnet",
        ArmSettings(network={"past": 4}),
        ArmSettings(network={"name": "gcnet", "future": 3}),
    )
    assert resolve("gcnet", merged, RUN).network.options == GCNetSettings(past=4, future=3)
    original = resolve(
        "transm-original", ArmSettings(network={"name": "transm", "decoder_layers": 3}), RUN
    ).network
    assert (
        original.model_dump()["network"]["layers"],
        original.model_dump()["decoder_layers"],
    ) == (10, 3)


def test_an_arm_accepts_models_instead_of_mappings() -> None:
    term = ArmSettings(method={"name": "corrkd", "scd": Relations(weight=0.5)})
    assert options_of(resolve("mine", term, RUN))["scd"] == {
        "form": "relations",
        "weight": 0.5,
        "center": True,
    }
    choice = MethodChoice.model_validate({"name": "kl", "kl": {"weight": 2}})
    assert resolve("mine", ArmSettings.model_validate({"method": choice}), RUN).method == choice


@pytest.mark.parametrize("changes", [{"trains_on": "missing"}, {"method": {"name": "kl"}}])
def test_a_teacher_has_no_teacher_and_no_missing_samples(changes: dict[str, Any]) -> None:
    with pytest.raises(CorrKDError, match=r"settings: arms\.teacher: a teacher has no teacher"):
        resolve("teacher", ArmSettings(**changes), RUN)


def test_a_width_that_a_loss_cannot_compare_is_refused_before_any_training(tmp_path: Path) -> None:
    narrow = {"network": {"width": 4, "heads": 2}}
    data = write_npz(tmp_path / "d.npz", {"language": 5, "audio": 3}, 60)
    settings = load_settings(**tiny(data={"path": str(data)}))

    def prepare(**arm: Any) -> None:
        arms = {
            "mine": ArmSettings(**arm, **narrow),
            "hrlf-teacher": ArmSettings(network={"width": 8, "heads": 2}),
        }
        prepared("d", DatasetPlan(settings=settings, arms=arms), Reporter(quiet=True))

    prepare(method={"name": "kl"})
    prepare(method={"name": "corrkd"})  # with a projection
    line = r"dataset d, arm mine: HRLF: HMI, .* make the width of both networks equal"
    with pytest.raises(CorrKDError, match=line) as error:
        prepare(method={"name": "hrlf"})
    assert "\n" not in str(error.value)
