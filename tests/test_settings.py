from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import pytest
from pydantic import Field

from corrkd.errors import CorrKDError
from corrkd.experiment.choices import MethodChoice, NetworkChoice
from corrkd.experiment.settings import Settings, StudentSettings, TeacherSettings, load_settings
from corrkd.methods.base import Method, Options, WeightedLoss
from corrkd.methods.corrkd import Divergence, Information
from corrkd.presets import preset_names

PRESETS = {
    *("paper-mosi", "paper-mosei", "paper-iemocap", "hazumi", "mosi", "synthetic"),
    *("hrlf-mosi", "hrlf-mosei", "hrlf-iemocap", "mmsa-mosi", "mmsa-mosei", "mmsa-sims"),
}


def test_the_presets_exist_and_are_valid() -> None:
    assert set(preset_names()) >= PRESETS
    for name in preset_names():
        assert load_settings(preset=name) != Settings()


@pytest.mark.parametrize(
    ("name", "lr", "batch", "epochs", "heads", "boundary"),
    [
        ("mosi", 4e-3, 64, 50, 10, 1.2),
        ("mosei", 2e-3, 32, 20, 8, 1.0),
        ("iemocap", 4e-3, 64, 30, 10, 1.4),
    ],
)
def test_the_settings_of_the_paper(
    name: str, lr: float, batch: int, epochs: int, heads: int, boundary: float
) -> None:
    settings = load_settings(preset=f"paper-{name}")
    for stage in (settings.teacher, settings.student):
        assert (stage.lr, stage.batch_size, stage.epochs, stage.optimizer) == (
            lr,
            batch,
            epochs,
            "adam",
        )
        assert stage.network.name == "corrkd"
        network = stage.network.options.model_dump()
        assert (network["width"], network["heads"], network["fill"]) == (40, heads, "zeros")
    assert settings.student.method.name == "corrkd"
    assert settings.student.method.options.model_dump() == {
        "task": {"weight": 1},
        "scd": {
            "form": "contrast",
            "weight": 1,
            "boundary": boundary,
            "normalize": True,
            "reduction": "mean",
        },
        "cpd": {"form": "batch", "weight": 1},
        "rcd": {"form": "information", "weight": 1, "critic_hidden": 64, "renormalize": False},
        "kl": {"weight": 0, "temperature": 1},
    }
    assert settings.data.normalise == "scale"
    assert len(settings.seeds) == 5


@pytest.mark.parametrize(
    ("name", "lr", "batch", "epochs", "heads"),
    [("mosi", 1e-3, 128, 50, 10), ("mosei", 2e-3, 16, 20, 8), ("iemocap", 4e-3, 32, 30, 10)],
)
def test_the_settings_of_hrlf(name: str, lr: float, batch: int, epochs: int, heads: int) -> None:
    settings = load_settings(preset=f"hrlf-{name}")
    for stage in (settings.teacher, settings.student):
        assert (stage.lr, stage.batch_size, stage.epochs, stage.optimizer) == (
            lr,
            batch,
            epochs,
            "adam",
        )
        network = stage.network.model_dump()
        assert (network["name"], network["width"], network["heads"], network["fill"]) == (
            "hrlf",
            40,
            heads,
            "zeros",
        )
    method = settings.student.method.model_dump()
    assert method["name"] == "hrlf"
    assert {term: method[term]["weight"] for term in ("task", "frf", "hmi", "kl")} == dict.fromkeys(
        ("task", "frf", "hmi", "kl"), 1.0
    )
    assert settings.data == load_settings(preset=f"paper-{name}").data
    assert len(settings.seeds) == 5


def test_overrides_precede_the_file_and_the_file_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: paper-mosi\nstudent: {epochs: 7, lr: 1.0e-2}\n")
    loaded = load_settings(path, overrides=["student.lr=1e-3", "teacher.network.classifier=[8, 8]"])
    assert (loaded.student.epochs, loaded.student.lr, loaded.student.batch_size) == (7, 1e-3, 64)
    assert loaded.teacher.network.options.model_dump()["classifier"] == (8, 8)


def test_the_students_network_is_the_teachers_with_changes() -> None:
    settings = load_settings(
        preset="synthetic",
        teacher={"network": {"width": 20}},
        student={"network": {"dropout": 0.3}},
    )
    teacher, student = (
        stage.network.options.model_dump() for stage in (settings.teacher, settings.student)
    )
    assert (teacher["width"], teacher["dropout"], teacher["layers"]) == (20, 0.1, 1)
    assert student == {**teacher, "dropout": 0.3}
    other = load_settings(preset="synthetic", overrides=["student.network=cubemlp"])
    assert other.student.network == NetworkChoice.model_validate("cubemlp")
    assert other.teacher.network == load_settings(preset="synthetic").teacher.network
    network = load_settings(
        overrides=["teacher.network.name=cubemlp", "student.network.dropout=0.3"]
    ).student.network
    assert network == NetworkChoice.model_validate({"name": "cubemlp", "dropout": 0.3})


def test_the_students_network_follows_the_teachers_in_every_form() -> None:
    network = {"name": "corrkd", "width": 80}
    choice = NetworkChoice.model_validate(network)
    for teacher in ({"network": network}, {"network": choice}, TeacherSettings(network=choice)):
        for student in ({"epochs": 3}, StudentSettings(epochs=3)):
            settings = Settings.model_validate({"teacher": teacher, "student": student})
            assert settings.student.network == settings.teacher.network == choice
            assert settings.student.epochs == 3
        cubemlp = StudentSettings(network=NetworkChoice.model_validate("cubemlp"))
        assert (
            Settings.model_validate({"teacher": teacher, "student": cubemlp}).student.network.name
            == "cubemlp"
        )
    assert NetworkChoice(name="corrkd", options=choice.options) == choice


def test_the_students_network_is_the_one_that_its_method_requires() -> None:
    """It is stored, so that the control has it, too."""
    assert load_settings(overrides=["student.method=gcnet"]).student.network.name == "gcnet"
    gcnet = load_settings(
        overrides=["student.method=gcnet", "student.network.past=4"]
    ).student.network
    assert gcnet == NetworkChoice.model_validate({"name": "gcnet", "past": 4})
    fusion = load_settings(
        overrides=["student.method=late-fusion", "teacher.network.width=80"]
    ).student.network
    assert (fusion.name, fusion.options.model_dump()["width"]) == ("late-fusion", 80)
    with pytest.raises(
        CorrKDError, match="student: network: method gcnet trains network gcnet alone, not cubemlp"
    ):
        load_settings(overrides=["student.method=gcnet", "student.network=cubemlp"])


def test_the_order_of_overrides_does_not_matter() -> None:
    for lines, key, value in (
        (
            ["student.method.rcd.nontarget=2", "student.method.rcd.form=divergence"],
            "rcd.nontarget",
            2,
        ),
        (["student.method.kl.weight=0.5", "student.method=kl"], "kl.weight", 0.5),
        (["student.method.kl.weight=0.5", "student.method.name=kl"], "kl.weight", 0.5),
    ):
        for order in (lines, lines[::-1]):
            tree = load_settings(overrides=order).student.method.model_dump()
            term, name = key.split(".")
            assert tree[term][name] == value


def test_keys_of_options_may_have_the_names_of_choices() -> None:
    class Inner(Options):
        method: str = "a"
        form: str = "round"

    with mock.patch.object(MethodChoice, "find", classmethod(lambda cls, name: (Method, Inner))):
        method = load_settings(
            overrides=["student.method.method=b", "student.method.form=square"]
        ).student.method
        assert method.options == Inner(method="b", form="square")

    class Named(Options):
        name: str = "inner"

    patched = mock.patch.object(
        MethodChoice, "find", classmethod(lambda cls, name: (Method, Named))
    )
    with (
        patched,
        pytest.raises(
            CorrKDError, match=r"student\.method: the key `name` chooses, so Named cannot have one"
        ),
    ):
        load_settings(overrides=["student.method=mine"])


class Sharp(WeightedLoss):
    sharp: float = 1.0


class TermOptions(Options):
    term: Sharp = Sharp(weight=0.1)
    rcd: Annotated[Information | Divergence, Field(discriminator="form")] = Divergence(weight=0.5)


def test_unset_options_of_a_term_have_their_default() -> None:
    options = TermOptions.model_validate({"term": {"sharp": 2}, "rcd": {"nontarget": 2}})
    assert options.term == Sharp(weight=0.1, sharp=2)
    assert options.rcd == Divergence(weight=0.5, nontarget=2)
    assert TermOptions.model_validate({"rcd": {"form": "information"}}).rcd == Information()


def test_another_form_or_method_keeps_no_settings_of_the_one_below(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("student: {method: {scd: {weight: 0.5, boundary: 1.4}, cpd: {weight: 0.5}}}")

    def method(*overrides: str) -> dict[str, Any]:
        return load_settings(path, overrides=overrides).student.method.model_dump()

    contrast = {
        "form": "contrast",
        "weight": 0.5,
        "boundary": 1.4,
        "normalize": True,
        "reduction": "mean",
    }
    assert method()["scd"] == method("student.method.scd.form=contrast")["scd"] == contrast
    assert method("student.method.scd.reduction=sum")["scd"] == {**contrast, "reduction": "sum"}
    other = method("student.method.scd.form=relations")
    assert other["scd"] == {"form": "relations", "weight": 1, "center": True}
    assert other["cpd"] == {"form": "batch", "weight": 0.5}
    assert method("student.method=kl") == {"name": "kl", "kl": {"weight": 1, "temperature": 1}}
    plus = load_settings(
        preset="corrkd-plus", overrides=["student.method.rcd.weight=0.5"]
    ).student.method.model_dump()
    assert plus["rcd"] == {"form": "divergence", "weight": 0.5, "nontarget": 1}


def test_settings_survive_their_file(tmp_path: Path) -> None:
    for name in preset_names():
        settings = load_settings(preset=name, overrides=["seeds=[3, 4]"])
        (tmp_path / "s.yaml").write_text(settings.to_yaml())
        assert load_settings(tmp_path / "s.yaml") == settings


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("student.lrr=1", ["student.lrr", "unknown", "lr, optimizer"]),
        ("studnet.lr=1", ["studnet", "unknown", "student"]),
        ("student.method.scd.eta=1", ["settings: student.method.scd.eta: unknown key", "boundary"]),
        ("student.method.scd.weight=-1", ["settings: student.method.scd.weight: "]),
        (
            "student.method.scd.form=square",
            ["student.method.scd: unknown form 'square'; available: contrast, relations"],
        ),
        ("student.method.name=null", ["student.method: name: expected text"]),
        (".student=3", ["expected key=value"]),
        ("student.lr=fast", ["student.lr", "number", "fast"]),
        ("student.lr=-1", ["student.lr", "greater than 0", "-1"]),
        ("student.lr=.nan", ["student.lr", "finite"]),
        ("teacher.network.heads=7", ["teacher.network", "heads = 7", "divide width = 40"]),
        (
            "teacher.network.fill=ones",
            ["teacher.network.fill", "'zeros', 'mean' or 'learned'", "ones"],
        ),
        ("data.target=octiles", ["data.target", "tertiles", "octiles"]),
        ("missing.frames_low=0.9", ["missing", "frames_low"]),
        ("seeds=[1, 1]", ["seeds", "each once"]),
        ("student", ["expected key=value"]),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it_and_what_is_allowed(
    override: str, expected: list[str]
) -> None:
    with pytest.raises(CorrKDError) as caught:
        load_settings(overrides=[override])
    message = str(caught.value)
    assert "\n" not in message
    for text in expected:
        assert text in message


def test_invalid_settings_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorrKDError, match="No such file"):
        load_settings(tmp_path / "absent.yaml")
    for text in ("- a\n- b\n", "a: [1\n", "\x00"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(CorrKDError, match=r"bad\.yaml"):
            load_settings(tmp_path / "bad.yaml")
    with pytest.raises(CorrKDError, match="unknown preset 'nope'; available:"):
        load_settings(preset="nope")


def test_a_yaml_file_cannot_run_anything(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text(
        "data: !!python/object/apply:os.mkdir [" + str(tmp_path / "canary") + "]\n"
    )
    with pytest.raises(CorrKDError, match="invalid YAML"):
        load_settings(tmp_path / "evil.yaml")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "override",
    [
        "teacher.network.width=1000000000",
        "student.network.layers=1000000",
        "teacher.network.classifier=[1000000]",
        "student.epochs=100000000",
        "student.batch_size=-1",
        "teacher.repeats=100000",
        "evaluation.draws=1000000",
        "seeds=[-1]",
        f"seeds=[{2**64 - 1}]",
        "jobs=100000",
        "data.clip=0",
        "data.clip=.inf",
        "missing.modality=.nan",
        'data.path="\\ud800"',
        "data.path=\ud800",
        "a" * 10_000 + "=1",
        "student.lr=" + "[" * 100_000,
        "student.lr=" + "9" * 5_000,
    ],
)
def test_settings_out_of_all_bounds_are_one_short_line(override: str) -> None:
    with pytest.raises(CorrKDError) as caught:
        load_settings(overrides=[override])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 500
