"""A folder that somebody else made: what it says leads to nothing outside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from corrkd.errors import CorrKDError
from corrkd.experiment import run as module
from corrkd.experiment.folder import locked
from corrkd.experiment.job import FileReporter, Job
from corrkd.experiment.plan import DatasetPlan, load_plan, read_plan
from corrkd.experiment.run import compare
from corrkd.experiment.runner import work
from corrkd.experiment.settings import ArmSettings, load_settings
from tests.experiment.conftest import tiny

UNFIT = (
    "../victim",
    "/tmp/victim",
    "..",
    ".",
    "",
    ".hidden",
    "-rf",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "CON",
    "x" * 101,
    "é" * 51,
)
IN_USE = (
    "tables",
    "figures",
    "report.html",
    "plan.yaml",
    "reported.csv",
    "results.csv",
    "failures.csv",
)


def plan_tree(dataset: str = "mosi", method: str = "kl") -> dict[str, object]:
    methods = {method: {"method": "kl"}}
    return {"datasets": {dataset: {"settings": tiny(), "arms": methods}}, "budget": "fixed"}


def received(out: Path, dataset: str = "mosi", method: str = "kl") -> Path:
    """A plan as a comparison's folder keeps it."""
    out.mkdir()
    part = {"settings": tiny(), "arms": {"teacher": {}, method: {"method": "kl"}}}
    (out / "plan.yaml").write_text(
        yaml.safe_dump({"datasets": {dataset: part}}, allow_unicode=True)
    )
    return out


def own_plan(tmp_path: Path) -> Path:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan_tree()))
    return tmp_path / "plan.yaml"


def somebody_elses_run(folder: Path) -> dict[str, str]:
    (folder / "seed-0").mkdir(parents=True)
    for name in ("results.csv", "settings.yaml", "seed-0/student.json"):
        (folder / name).write_text("precious")
    return {str(p): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_starting_anew_deletes_nothing_outside_the_folder(tmp_path: Path) -> None:
    before = somebody_elses_run(tmp_path / "victim")
    out = received(tmp_path / "out", "../victim")
    with pytest.raises(CorrKDError, match=r"'\.\./victim': a name of a folder"):
        compare(load_plan(own_plan(tmp_path)), out, overwrite=True)
    assert {path: Path(path).read_text() for path in before} == before


def test_a_link_in_place_of_a_dataset_s_folder_is_not_followed(tmp_path: Path) -> None:
    before = somebody_elses_run(tmp_path / "victim")
    out = received(tmp_path / "out")
    (out / "mosi").symlink_to(tmp_path / "victim")
    for overwrite in (True, False):
        with pytest.raises(
            CorrKDError, match=r"mosi: is a link to another folder|changed since it was written"
        ):
            compare(load_plan(own_plan(tmp_path)), out, overwrite=overwrite)
    assert {path: Path(path).read_text() for path in before} == before
    assert {str(p) for p in (tmp_path / "victim").rglob("*") if p.is_file()} == before.keys()


@pytest.mark.parametrize("name", [".lock", "mosi/seed-0/kl/log.txt", "mosi/seed-0/kl/progress"])
def test_no_file_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    out = received(tmp_path / "out")
    (tmp_path / "precious").write_text("precious")
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).symlink_to(tmp_path / "precious")

    def write() -> None:
        if name == ".lock":
            with locked(out):
                pass
        elif name.endswith("log.txt"):
            part = DatasetPlan(settings=load_settings(**tiny()), arms={"kl": ArmSettings()})
            work(Job(out / "mosi", part, "kl", 0))
        else:
            with FileReporter(out / name).task("training", 3):
                pass

    with pytest.raises((CorrKDError, OSError)):
        write()
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", UNFIT)
def test_names_that_are_paths_are_refused_in_plans_and_received_ones(
    tmp_path: Path, name: str
) -> None:
    for number, arguments in enumerate(({"dataset": name}, {"method": name})):
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan_tree(**arguments)))
        with pytest.raises(CorrKDError, match=": a name of a folder, which "):
            load_plan(tmp_path / "plan.yaml")
        with pytest.raises(CorrKDError, match=": a name of a folder, which "):
            read_plan(received(tmp_path / str(number), **arguments))


@pytest.mark.parametrize("name", IN_USE)
def test_a_dataset_is_not_called_as_what_the_comparison_writes(tmp_path: Path, name: str) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan_tree(name)))
    with pytest.raises(CorrKDError, match="has another use for the name"):
        load_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize("name", ["cost", "budget"])
def test_a_method_is_not_called_as_a_file_beside_its_model(tmp_path: Path, name: str) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan_tree(method=name)))
    with pytest.raises(CorrKDError, match="lies beside the model"):
        load_plan(tmp_path / "plan.yaml")


def test_names_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    tree = plan_tree()
    tree["datasets"] = {name: {"settings": tiny(), "arms": {"kl": {}}} for name in ("mosi", "MOSI")}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(
        CorrKDError, match="'MOSI' and 'mosi' are the same folder on systems that ignore case"
    ):
        load_plan(tmp_path / "plan.yaml")


def test_an_edited_plan_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the same edit is asked for: what is trained already was trained with the other
    settings.
    """
    plan = load_plan(own_plan(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.yaml").write_text(plan.to_yaml().replace("dropout: 0.1", "dropout: 0.2"))
    monkeypatch.setattr(module, "prepared", lambda *_: None)
    with pytest.raises(
        CorrKDError, match=r"plan\.yaml: changed since it was written: .*; put it back"
    ):
        compare(plan, out)
