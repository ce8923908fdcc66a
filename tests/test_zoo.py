"""Released students: those of the package, a user's zoo, and refusals."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import corrkd as package
from corrkd import zoo
from corrkd.errors import CorrKDError
from corrkd.experiment import run as run_module
from corrkd.networks.saved import load_student
from corrkd.serve.predictor import Predictor
from tests.command import corrkd
from tests.experiment.conftest import contents
from tests.serve.conftest import student

ROOT = Path(__file__).parents[1]
TEXTS = {"description": "A student to test with.", "data_licence": "CC0"}
# Settings with which a run of the preset takes a second.
TINY = (
    "data.synthetic={train: 60, valid: 30, test: 30, frames: 4, widths: 8}",
    *("teacher.epochs=1", "teacher.folds=2", "teacher.repeats=1", "teacher.others=[]"),
    *("student.epochs=1", "evaluation.conditions={ratio: [0.5], burst: []}"),
)


@pytest.fixture(autouse=True)
def _no_zoo_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(zoo.VARIABLE, raising=False)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A zoo with the student `moods`."""
    Predictor(student()).save_pretrained(tmp_path / "lab" / "moods")
    zoo.add(tmp_path / "lab" / "moods", **TEXTS)
    return tmp_path / "lab"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/make_zoo.py."""
    spec = spec_from_file_location("make_zoo", ROOT / "scripts" / "make_zoo.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def change_manifest(folder: Path, name: str, **changes: Any) -> None:
    tree = json.loads((folder / "manifest.json").read_text())
    tree["students"][name] |= changes
    (folder / "manifest.json").write_text(json.dumps(tree))


# --------------------------------------------------------------------------------------------------
# students of the package


def test_the_shipped_manifest_matches_the_shipped_files(script: ModuleType) -> None:
    listed = zoo.students(zoo.SHIPPED)
    folders = {path.name for path in zoo.SHIPPED.iterdir() if (path / "config.json").exists()}
    assert set(listed) == folders == set(script.STUDENTS)
    for name, entry in listed.items():
        folder = zoo.resolve(f"zoo:{name}")
        assert folder == zoo.SHIPPED / name
        assert {path.name for path in folder.iterdir()} == set(entry.files)
        saved = load_student(folder)
        assert saved.widths == {m: features.width for m, features in entry.modalities.items()}
        assert entry.classes == saved.target.classes
        assert (entry.seed, entry.data) == (saved.about["seed"], "synthetic")
        assert entry.data_licence.startswith("Apache-2.0")
        assert sum(file.size for file in entry.files.values()) < 300_000


@pytest.mark.parametrize("name", ["synthetic", "synthetic-language-audio"])
def test_a_shipped_student_is_as_good_as_its_card_says(name: str) -> None:
    saved = package.load_student(f"zoo:{name}")
    assert saved.evaluated is not None
    expected = {c.name: c.measured for c in saved.evaluated.conditions if c.kind == "modalities"}
    table = package.evaluate(
        saved, package.load_dataset("synthetic"), conditions=[*expected, "ratio-0.5"]
    )
    values = table.groupby(["condition", "metric"])["value"].mean()
    close = partial(
        pytest.approx, abs=0.005
    )  # another processor rounds otherwise: 4 samples of 800
    for condition, measured in expected.items():
        for metric in ("weighted_f1", "accuracy"):
            assert values[condition, metric] == close(measured[metric])
    for metric, entry in zoo.students()[name].metrics.items():
        assert entry.complete == expected["complete"][metric]
        missing = [m[metric] for condition, m in expected.items() if condition != "complete"]
        assert entry.average == pytest.approx(np.mean(missing))
    # With missing modalities it is worse, but better than chance.
    f1 = zoo.students()[name].metrics["weighted_f1"]
    assert f1.complete > f1.average > 0.4


def test_the_page_lists_the_shipped_students() -> None:
    text = (ROOT / "docs" / "zoo.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| (\d+) kB \|$", text, re.MULTILINE)
    sizes = {
        name: sum(file.size for file in entry.files.values())
        for name, entry in zoo.students().items()
    }
    assert {name: int(size) for name, size in rows} == {
        name: round(size / 1000) for name, size in sizes.items()
    }


def test_the_script_writes_a_zoo_and_the_same_bytes_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "write_report", lambda folder: folder)
    run_jobs = run_module.run_jobs
    monkeypatch.setattr(
        run_module, "run_jobs", lambda *args, **options: run_jobs(*args, **options | {"at_once": 1})
    )
    name = "synthetic-language-audio"
    monkeypatch.setattr(script, "STUDENTS", {name: script.STUDENTS[name]})
    for folder in ("one", "two"):
        script.make_zoo(tmp_path / folder, tmp_path / "runs" / folder, TINY)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert set(contents(tmp_path / "one")) == {
        "manifest.json",
        *(f"{name}/{file}" for file in zoo.FILES),
    }
    predictor = Predictor.from_pretrained(f"zoo:{tmp_path}/one/{name}")
    assert predictor.saved.modalities == ("language", "audio")
    entry = zoo.students(tmp_path / "one")[name]
    results = package.resume(tmp_path / "runs" / "one" / name).results
    rows = results[(results["method"] == "student") & (results["metric"] == "weighted_f1")]
    means = rows.groupby("condition")["value"].mean()
    assert entry.metrics["weighted_f1"].complete == pytest.approx(means["complete"])
    assert entry.metrics["weighted_f1"].average == pytest.approx(means["average"])


# --------------------------------------------------------------------------------------------------
# a user's zoo


def test_facts_come_from_the_card(lab: Path) -> None:
    entry = zoo.students(lab)["moods"]
    assert (entry.description, entry.data_licence) == (TEXTS["description"], "CC0")
    assert (entry.data, entry.seed, entry.target) == ("tiny", 3, "classes")
    assert entry.corrkd == package.__version__
    assert {m: features.width for m, features in entry.modalities.items()} == student().widths
    f1 = entry.metrics["weighted_f1"]
    assert f1.complete == pytest.approx(0.56)  # the seventh of the subsets
    assert f1.average == pytest.approx(np.mean([0.50, 0.51, 0.52, 0.53, 0.54, 0.55]))


def test_extractors_and_questions_are_listed(tmp_path: Path) -> None:
    saved = student("questions")
    saved.about["extractors"] = {"modalities": {"audio": {"name": "prosody", "version": 1}}}  # type: ignore[index]
    Predictor(saved).save_pretrained(tmp_path / "lab" / "moods")
    entry = zoo.add(tmp_path / "lab" / "moods", **TEXTS)
    assert (entry.modalities["audio"].extractor, entry.modalities["language"].extractor) == (
        "prosody",
        "",
    )
    assert entry.classes == saved.target.questions != ()


def test_entries_are_added_and_replaced(lab: Path) -> None:
    Predictor(student()).save_pretrained(lab / "calls")
    zoo.add(lab / "calls", **TEXTS)
    zoo.add(lab / "moods", description="Another.", data_licence="CC0", preset="corrkd-plus")
    listed = zoo.students(lab)
    assert list(listed) == ["calls", "moods"]
    assert (listed["moods"].description, listed["moods"].preset) == ("Another.", "corrkd-plus")


def test_where_a_name_is_looked_up(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zoo.resolve(f"zoo:{lab}/moods") == lab / "moods"
    assert zoo.resolve("runs/mine") == Path("runs/mine")
    shipped = set(zoo.students())
    (lab / "moods").rename(lab / "synthetic")
    zoo.add(lab / "synthetic", **TEXTS)
    monkeypatch.setenv(zoo.VARIABLE, str(lab))
    assert set(zoo.students()) == shipped | {"moods"}
    assert zoo.students()["synthetic"].data == "tiny"
    assert zoo.resolve("zoo:synthetic") == lab / "synthetic"
    assert zoo.resolve("zoo:synthetic-language-audio").parent == zoo.SHIPPED
    assert package.load_student("zoo:synthetic").about["data"]["name"] == "tiny"


def test_files_from_the_hub(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[str, str | None, list[str]]] = []
    snapshot = lab / "snapshot"

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        requests.append((name, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    zoo.add(lab / "moods", **TEXTS, hub="owner/moods@v1")
    assert zoo.resolve(f"zoo:{lab}/moods") == lab / "moods"
    assert not requests
    (lab / "moods").rename(snapshot)
    assert Predictor.from_pretrained(f"zoo:{lab}/moods").card["about"]["seed"] == 3
    assert requests == [("owner/moods", "v1", list(zoo.FILES))]
    readme = snapshot / "README.md"
    readme.write_bytes(b"x" + readme.read_bytes()[1:])
    with pytest.raises(CorrKDError, match=r"README\.md: SHA-256 is "):
        zoo.resolve(f"zoo:{lab}/moods")


# --------------------------------------------------------------------------------------------------
# refusals


def test_an_unknown_name_lists_the_names(lab: Path) -> None:
    for load in (Predictor.from_pretrained, load_student):
        with pytest.raises(CorrKDError, match=r"'mods'; available: moods \(in .*lab\)$"):
            load(f"zoo:{lab}/mods")
        with pytest.raises(
            CorrKDError, match=r"''; available: synthetic, synthetic-language-audio"
        ):
            load("zoo:")
    with pytest.raises(CorrKDError, match=r"nowhere: not a zoo: it has no manifest\.json"):
        zoo.resolve("zoo:nowhere/moods")


@pytest.mark.parametrize("name", zoo.FILES)
def test_a_wrong_file_is_never_read(lab: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package.networks.saved, "read_network", pytest.fail)
    path = lab / "moods" / name
    data = path.read_bytes()
    wrong = {
        "SHA-256 is ": bytes([data[0] ^ 1]) + data[1:],
        f"{len(data) + 1} bytes, expected {len(data)}": data + b" ",
    }
    for fault, content in wrong.items():
        path.write_bytes(content)
        with pytest.raises(CorrKDError, match=f"{re.escape(str(path))}: {fault}"):
            load_student(f"zoo:{lab}/moods")
    path.unlink()
    with pytest.raises(CorrKDError, match=f"{re.escape(str(path))}: No such file"):
        load_student(f"zoo:{lab}/moods")


def test_a_file_with_the_right_checksum_that_is_no_model_is_refused(lab: Path) -> None:
    card = lab / "moods" / "config.json"
    card.write_bytes(b"[]")
    sums = {"sha256": hashlib.sha256(b"[]").hexdigest(), "size": 2}
    files = json.loads((lab / "manifest.json").read_text())["students"]["moods"]["files"]
    change_manifest(lab, "moods", files={**files, "config.json": sums})
    with pytest.raises(CorrKDError, match=r"config\.json: not a model card"):
        load_student(f"zoo:{lab}/moods")


@pytest.mark.parametrize(
    "changes",
    [
        {"data_licence": " "},
        {"description": "two\nlines"},
        {"hub": "https://example.org/x"},
        {"hub": "../../etc"},
        {"files": {}},
        {"files": {"../evil": {"sha256": "0" * 64, "size": 1}}},
        {"metrics": {}},
        {"metrics": {"accuracy": {"complete": "high", "average": 0.5}}},
        {"unheard": 1},
    ],
)
def test_an_invalid_manifest(lab: Path, changes: dict[str, Any]) -> None:
    change_manifest(lab, "moods", **changes)
    with pytest.raises(CorrKDError, match=r"manifest\.json: not a manifest of this version \(stu"):
        zoo.students(lab)


def test_a_name_in_a_manifest_leads_nowhere_else(lab: Path) -> None:
    tree = json.loads((lab / "manifest.json").read_text())
    tree["students"] = {"..": tree["students"]["moods"]}
    (lab / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(CorrKDError, match=r"student '\.\.': not the name"):
        zoo.students(lab)


def test_invalid_students_are_not_added(lab: Path) -> None:
    before = (lab / "manifest.json").read_bytes()
    for changes, fault in (
        ({"data_licence": ""}, r"student moods: data_licence: expected one line of text"),
        ({"description": "a\nb"}, r"student moods: description: "),
        ({"hub": "owner"}, r"student moods: hub: "),
    ):
        with pytest.raises(CorrKDError, match=fault):
            zoo.add(lab / "moods", **{**TEXTS, **changes})
    with pytest.raises(CorrKDError, match=r"no/config\.json: No such file"):
        zoo.add(lab / "no", **TEXTS)
    shutil.copytree(lab / "moods", lab / "a b")
    with pytest.raises(CorrKDError, match=r"zoo: student 'a b': a name of a folder, which must be"):
        zoo.add(lab / "a b", **TEXTS)
    (lab / "moods" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CorrKDError, match=r"model\.safetensors: does not belong to config\.json"):
        zoo.add(lab / "moods", **TEXTS)
    assert (lab / "manifest.json").read_bytes() == before


def test_a_student_without_an_evaluation_is_not_added(tmp_path: Path) -> None:
    saved = student()
    object.__setattr__(saved, "evaluated", None)
    Predictor(saved).save_pretrained(tmp_path / "moods")
    with pytest.raises(CorrKDError, match=r"moods: the student was not evaluated; finish its run"):
        zoo.add(tmp_path / "moods", **TEXTS)
    assert not (tmp_path / "manifest.json").exists()


# --------------------------------------------------------------------------------------------------
# the command line


def test_the_command_lists_and_shows(lab: Path) -> None:
    listed = corrkd("zoo")
    assert listed.code == 0, listed.err
    heading, *lines = listed.out.splitlines()
    assert heading.split()[:2] == ["name", "data"]
    assert [line.split()[0] for line in lines] == list(zoo.students())
    for line, entry in zip(lines, zoo.students().values(), strict=True):
        assert f"{100 * entry.metrics['weighted_f1'].complete:.2f}" in line
        assert line.endswith(entry.data_licence)
    (line,) = corrkd("zoo", "--folder", lab).out.splitlines()[1:]
    assert line.split()[:2] == ["moods", "tiny"]
    student_page = corrkd("zoo", "moods", "--folder", lab)
    assert student_page.code == 0, student_page.err
    assert "data_licence: CC0" in student_page.out
    assert "## Inputs and outputs" in student_page.out
    assert "library_name" not in student_page.out
    assert "no student named 'moods'; available: synthetic" in corrkd("zoo", "moods").line


def test_commands_take_a_released_student(tmp_path: Path) -> None:
    options = ("--data", "synthetic", "--conditions", "complete")
    done = corrkd("evaluate", "zoo:synthetic", *options)
    assert done.code == 0, done.err
    printed = float(done.out.splitlines()[-1].split()[done.out.split().index("weighted_f1") + 1])
    f1 = zoo.students()["synthetic"].metrics["weighted_f1"].complete
    assert printed == pytest.approx(100 * f1, abs=0.5)
    out = tmp_path / "p.csv"
    done = corrkd(
        "predict", "zoo:synthetic", "--data", "synthetic", "--split", "test", "--out", out
    )
    assert done.code == 0, done.err
    assert len(out.read_text().splitlines()) == 801
    assert "available: synthetic, synthetic-language-audio" in corrkd("serve", "zoo:nope").line
