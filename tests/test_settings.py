from __future__ import annotations

from pathlib import Path

import pytest

from corrkd.errors import CorrKDError
from corrkd.experiment.settings import Settings, load_settings, preset_names

PRESETS = {"paper-mosi", "paper-mosei", "paper-iemocap", "hazumi", "mosi", "synthetic"}


def test_the_presets_are_there_and_valid() -> None:
    assert set(preset_names()) >= PRESETS
    for name in preset_names():
        assert load_settings(preset=name) != Settings()


@pytest.mark.parametrize(
    ("name", "lr", "batch", "epochs", "heads", "boundary"),
    [("mosi", 4e-3, 64, 50, 10, 1.2), ("mosei", 2e-3, 32, 20, 8, 1.0), ("iemocap", 4e-3, 64, 30, 10, 1.4)],
)
def test_the_papers_numbers(name: str, lr: float, batch: int, epochs: int, heads: int, boundary: float) -> None:
    chosen = load_settings(preset=f"paper-{name}")
    for stage in (chosen.teacher, chosen.student):
        assert (stage.lr, stage.batch_size, stage.epochs, stage.optimizer) == (lr, batch, epochs, "adam")
    assert (chosen.network.width, chosen.network.heads, chosen.network.fill) == (40, heads, "zeros")
    terms = chosen.student.distillation
    assert (terms.task, terms.scd, terms.cpd, terms.rcd, terms.boundary) == (1, 1, 1, 1, boundary)
    assert (terms.normalize, terms.reduction) == (True, "mean")
    assert chosen.data.normalise == "scale"
    assert len(chosen.seeds) == 5


def test_overrides_lie_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: paper-mosi\nstudent: {epochs: 7, lr: 1.0e-2}\n")
    chosen = load_settings(path, overrides=["student.lr=1e-3", "network.classifier=[8, 8]"])
    assert (chosen.student.epochs, chosen.student.lr, chosen.student.batch_size) == (7, 1e-3, 64)
    assert chosen.network.classifier == (8, 8)


def test_settings_survive_their_file(tmp_path: Path) -> None:
    for name in preset_names():
        chosen = load_settings(preset=name, overrides=["seeds=[3, 4]"])
        (tmp_path / "s.yaml").write_text(chosen.to_yaml())
        assert load_settings(tmp_path / "s.yaml") == chosen


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("student.lrr=1", ["student.lrr", "unknown", "lr, optimizer"]),
        ("studnet.lr=1", ["studnet", "unknown", "student"]),
        ("student.distillation.eta=1", ["student.distillation.eta", "boundary"]),
        ("student.lr=fast", ["student.lr", "number", "fast"]),
        ("student.lr=-1", ["student.lr", "greater than 0", "-1"]),
        ("student.lr=.nan", ["student.lr", "finite"]),
        ("network.heads=7", ["network", "heads = 7", "divide width = 40"]),
        ("network.fill=ones", ["network.fill", "'zeros', 'mean' or 'learned'", "ones"]),
        ("data.target=octiles", ["data.target", "tertiles", "octiles"]),
        ("missing.frames_low=0.9", ["missing", "frames_low"]),
        ("seeds=[1, 1]", ["seeds", "each once"]),
        ("student", ["expected key=value"]),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it_and_what_is_allowed(override: str, parts: list[str]) -> None:
    with pytest.raises(CorrKDError) as caught:
        load_settings(overrides=[override])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    with pytest.raises(CorrKDError, match="No such file"):
        load_settings(tmp_path / "absent.yaml")
    for text in ("- a\n- b\n", "a: [1\n", "\x00"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(CorrKDError, match=r"bad\.yaml"):
            load_settings(tmp_path / "bad.yaml")
    with pytest.raises(CorrKDError, match="preset 'nope' is unknown; there are"):
        load_settings(preset="nope")


def test_a_yaml_file_cannot_run_anything(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("data: !!python/object/apply:os.mkdir [" + str(tmp_path / "canary") + "]\n")
    with pytest.raises(CorrKDError, match="not YAML"):
        load_settings(tmp_path / "evil.yaml")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "override",
    [
        "network.width=1000000000",
        "network.layers=1000000",
        "network.classifier=[1000000]",
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
