"""A folder from another user: nothing in it leads outside it."""

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

INVALID = (
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


def folder_with_plan(out: Path, dataset: str = "mosi", method: str = "kl") -> Path:
    """Write a plan as a comparison stores it in its folder."""
    out.mkdir()
    dataset_plan = {"settings": tiny(), "arms": {"teacher": {}, method: {"method": "kl"}}}
    (out / "plan.yaml").write_text(
        yaml.safe_dump({"datasets": {dataset: dataset_plan}}, allow_unicode=True)
    )
    return out


def users_plan(tmp_path: Path) -> Path:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan_tree()))
    return tmp_path / "plan.yaml"


def write_victim(folder: Path) -> dict[str, str]:
    (folder / "seed-0").mkdir(parents=True)
    for name in ("results.csv", "settings.yaml", "seed-0/student.json"):
        (folder / name).write_text("precious")
    return {str(p): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_overwriting_deletes_nothing_outside_the_folder(tmp_path: Path) -> None:
    before = write_victim(tmp_path / "victim")
    out = folder_with_plan(tmp_path / "out", "../victim")
    with pytest.raises(CorrKDError, match=r"'\.\./victim': a name of a folder"):
        compare(load_plan(users_plan(tmp_path)), out, overwrite=True)
    assert {path: Path(path).read_text() for path in before} == before


def test_a_link_in_place_of_a_datasets_folder_is_not_followed(tmp_path: Path) -> None:
    before = write_victim(tmp_path / "victim")
    out = folder_with_plan(tmp_path / "out")
    (out / "mosi").symlink_to(tmp_path / "victim")
    for overwrite in (True, False):
        with pytest.raises(
            CorrKDError, match=r"mosi: is a link to another folder|changed since it was written"
        ):
            compare(load_plan(users_plan(tmp_path)), out, overwrite=overwrite)
    assert {path: Path(path).read_text() for path in before} == before
    assert {str(p) for p in (tmp_path / "victim").rglob("*") if p.is_file()} == before.keys()


@pytest.mark.parametrize("name", [".lock", "mosi/seed-0/kl/log.txt", "mosi/seed-0/kl/progress"])
def test_no_file_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    out = folder_with_plan(tmp_path / "out")
    (tmp_path / "precious").write_text("precious")
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).symlink_to(tmp_path / "precious")

    def write() -> None:
        if name == ".lock":
            with locked(out):
                pass
        elif name.endswith("log.txt"):
            dataset_plan = DatasetPlan(settings=load_settings(**tiny()), arms={"kl": ArmSettings()})
            work(Job(out / "mosi", dataset_plan, "kl", 0))
        else:
            with FileReporter(out / name).task("training", 3):
                pass

    with pytest.raises((CorrKDError, OSError)):
        write()
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", INVALID)
def test_names_that_are_paths_are_refused_in_plans_and_stored_plans(
    tmp_path: Path, name: str
) -> None:
    for number, arguments in enumerate(({"dataset": name}, {"method": name})):
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan_tree(**arguments)))
        with pytest.raises(CorrKDError, match=": a name of a folder, which "):
            load_plan(tmp_path / "plan.yaml")
        with pytest.raises(CorrKDError, match=": a name of a folder, which "):
            read_plan(folder_with_plan(tmp_path / str(number), **arguments))


@pytest.mark.parametrize("name", IN_USE)
def test_a_dataset_is_not_named_like_a_file_of_the_comparison(tmp_path: Path, name: str) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan_tree(name)))
    with pytest.raises(CorrKDError, match="has another use for the name"):
        load_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize("name", ["cost", "budget"])
def test_a_method_is_not_named_like_a_file_beside_its_model(tmp_path: Path, name: str) -> None:
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


def test_an_edited_plan_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models in the folder may have been trained with the settings before the edit."""
    plan = load_plan(users_plan(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.yaml").write_text(plan.to_yaml().replace("dropout: 0.1", "dropout: 0.2"))
    monkeypatch.setattr(module, "prepared", lambda *_: None)
    with pytest.raises(
        CorrKDError, match=r"plan\.yaml: changed since it was written: .*; put it back"
    ):
        compare(plan, out)
