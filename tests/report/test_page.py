from __future__ import annotations

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from corrkd.errors import CorrKDError
from corrkd.report import page, write_report
from corrkd.report.run_folder import RunFolder
from corrkd.report.tables import Cell
from tests.report.conftest import NASTY
from tests.report.fake_run import METHODS, write_fake_run

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Checks that tags balance; keeps attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(folder: Path) -> Reader:
    reader = Reader()
    reader.feed((folder / "report.html").read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def files(folder: Path) -> dict[str, bytes]:
    """What a report wrote."""
    parts = [
        folder / "report.html",
        folder / "report.md",
        *(folder / "tables").iterdir(),
        *(folder / "figures").iterdir(),
    ]
    return {str(p.relative_to(folder)): p.read_bytes() for p in parts}


@pytest.mark.parametrize("name", ["reported", "nasty"])
def test_page_stands_alone(name: str, request: pytest.FixtureRequest) -> None:
    reader = read(request.getfixturevalue(name))
    tags = {tag for tag, _, _ in reader.attributes}
    assert not tags & {"script", "link", "iframe", "img", "object"}
    for tag, attribute, value in reader.attributes:
        if attribute in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith("#"), (tag, attribute, value)
    page_text = (request.getfixturevalue(name) / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\((?!#)|@import", page_text)


def test_page_is_accessible(reported: Path) -> None:
    reader = read(reported)
    text = (reported / "report.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 5 == len([v for t, a, v in reader.attributes if (t, a) == ("svg", "aria-label") and v])
    headings = len(re.findall(r"<th[ >]", text))
    assert headings == len(
        [v for t, a, v in reader.attributes if t == "th" and a == "scope" and v in ("col", "row", "rowgroup")]
    )
    assert text.count("<figure") == text.count("<figcaption")
    ids = [v for _, a, v in reader.attributes if a == "id"]
    assert len(ids) == len(set(ids))
    targets = {v[1:] for _, a, v in reader.attributes if a in ("href", "xlink:href")} | set(
        re.findall(r"url\(#([^)]+)\)", text)
    )
    assert targets <= set(ids)


def test_names_are_escaped_everywhere(nasty: Path) -> None:
    words = "".join(read(nasty).words)
    for name in (*NASTY, "_low", "$mid$", "=1+<i>", "NA"):
        assert name in words
    text = (nasty / "report.html").read_text(encoding="utf-8")
    assert "<b>" not in text.replace("<figcaption><b>", "")
    assert "<i>" not in text
    markdown = (nasty / "report.md").read_text(encoding="utf-8")
    assert "<b>" not in markdown
    tables = [block for block in markdown.split("\n\n") if block.startswith("| Method")]
    assert tables
    for block in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    for file in (nasty / "tables").glob("*.csv"):
        pd.read_csv(file)
    svg = (nasty / "figures" / "confusion.svg").read_text(encoding="utf-8")
    assert "$mid$" in svg
    assert "=1+&lt;i&gt;" in svg
    projection = (nasty / "figures" / "projection.svg").read_text(encoding="utf-8")
    assert "_low" in projection  # a legend drops labels that open with an underscore, unless told


def test_same_folder_same_bytes(reported: Path, tmp_path: Path) -> None:
    before = files(reported)  # made where no report was yet
    again = shutil.copytree(reported, tmp_path / "elsewhere")
    write_report(again)  # beside the old report, in another place
    assert files(again) == before


def test_files_that_come_out(reported: Path) -> None:
    names = set(files(reported))
    assert {
        f"figures/{f}.{e}"
        for f in ("missing-ratios", "training", "confusion", "reliability", "projection")
        for e in ("svg", "png")
    } <= names
    assert {f"tables/inter-modality-weighted-f1.{e}" for e in ("csv", "tex")} <= names
    linked = re.findall(r"\]\((figures/[^)]+)\)", (reported / "report.md").read_text(encoding="utf-8"))
    assert len(linked) == 5
    assert set(linked) <= names
    assert not list(reported.rglob(".*"))  # no temporary file left


@pytest.mark.usefixtures("sketches")
def test_one_seed(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", seeds=(4,), samples=30)
    write_report(folder)
    words = "".join(read(folder).words)
    assert "One seed, hence no interval (—)" in words
    assert "no difference shown (" in words
    assert "one seed has no interval" in words
    assert "±" not in words
    assert "nan" not in words.lower().split()


@pytest.mark.usefixtures("sketches")
@pytest.mark.parametrize("kind", ["score", "questions"])
def test_other_targets(tmp_path: Path, kind: str) -> None:
    names = {
        "score": {"classes": ("negative", "positive")},
        "questions": {"classes": ("no", "yes"), "questions": ("happy", "sad")},
    }
    folder = write_fake_run(
        tmp_path / "run", kind=kind, modalities=("text", "sound"), samples=30, bayes=False, **names[kind]
    )
    write_report(folder)
    words = "".join(read(folder).words)
    assert ("Mean absolute error" in words) == (kind == "score")
    assert (folder / "figures" / "scores.svg").exists() == (kind == "score")
    assert (folder / "figures" / "confusion.svg").exists() == (kind == "questions")
    assert "Bayes ceiling" not in re.sub("The Bayes ceiling, where there is one", "", words)


@pytest.mark.usefixtures("sketches")
def test_one_modality(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", modalities=("text",), samples=30)
    write_report(folder)
    assert "{" not in "".join(
        re.findall(r"<th scope=\"col\">[^<]*", (folder / "report.html").read_text(encoding="utf-8"))
    )


@pytest.mark.usefixtures("sketches")
@pytest.mark.parametrize(
    ("lost", "kept"),
    [
        (["results.csv", "settings.yaml"], "figures/training.svg"),
        (["history.csv", "predictions.parquet"], "tables/inter-modality-weighted-f1.csv"),
        (["representations.safetensors"], "figures/confusion.svg"),
    ],
)
def test_missing_files_leave_a_line(tmp_path: Path, lost: list[str], kept: str) -> None:
    folder = write_fake_run(tmp_path / "run", samples=30, seeds=(0, 1))
    for file in [file for name in lost for file in (*folder.glob(name), *folder.glob(f"seed-*/{name}"))]:
        file.unlink()
    write_report(folder)
    words = "".join(read(folder).words)
    markdown = html.unescape((folder / "report.md").read_text(encoding="utf-8")).replace("\\", "")
    for name in lost:
        assert re.search(f"(The run folder|No seed's folder) holds (no )?{re.escape(name)}.", words)
        assert re.search(f"(The run folder|No seed's folder) holds (no )?{re.escape(name)}.", markdown)
    assert (folder / kept).exists()


def test_only_run_json(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", samples=5, seeds=(0,))
    for path in folder.iterdir():
        if path.name != "run.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_report(folder)
    assert "No finding" in "".join(read(folder).words)


def test_not_a_run_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CorrKDError, match="not a run folder") as caught:
            write_report(folder)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    for content, what in (("{", "not JSON"), ("{}", "corrkd"), ("[]", "the file")):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(CorrKDError, match=what) as caught:
            write_report(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["results.csv", "seed-0/predictions.parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_fake_run(tmp_path / "run", samples=5, seeds=(0,))
    (folder / name).write_bytes(b"\xff\x00 broken")
    with pytest.raises(CorrKDError, match=re.escape(name)) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_damaged_representations_are_named(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", samples=5, seeds=(0,))
    (folder / "seed-0" / "representations.safetensors").write_bytes(b"short")
    with pytest.raises(CorrKDError, match=r"seed-0/representations\.safetensors: cannot be read"):
        RunFolder.open(folder).representations(["targets"])


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ((0.02, 0.021, 0.019), "the student is better (+2.00"),
        ((-0.02, -0.021, -0.019), "the control is better (−2.00"),
        ((0.02, -0.02, 0.001), "no difference shown (+0.03"),
    ],
)
def test_findings_say_only_what_the_interval_shows(tmp_path: Path, gain: tuple[float, ...], said: str) -> None:
    folder = write_fake_run(tmp_path / "run", samples=5)
    results = pd.read_csv(folder / "results.csv")
    at = (results.condition == "average") & (results.metric == "weighted_f1")
    results.loc[at & (results.method == "control"), "value"] = [0.50, 0.58, 0.54]
    results.loc[at & (results.method == "student"), "value"] = [0.50 + gain[0], 0.58 + gain[1], 0.54 + gain[2]]
    results.to_csv(folder / "results.csv", index=False)
    first = page.findings(RunFolder.open(folder))[0]
    assert first.startswith("Averaged over the six missing subsets, the student reaches")
    assert said in first
    assert "paired over 3 seeds" in first


def test_verdict_without_pairs() -> None:
    assert page.verdict(None, 0) == "no seed has both"
    assert page.verdict(Cell(1.0, 1.0), 5).startswith("no difference shown")  # zero at the interval's edge


def test_head_names_every_rule_once(reported: Path) -> None:
    rule = page.head(RunFolder.open(reported))["Epoch kept"]
    assert rule.count("highest mean weighted F1 over the missing subsets") == 1
    assert "(CorrKD student, No-distillation control)" in rule
    assert "(Teacher)" in rule


@pytest.mark.usefixtures("sketches")
def test_card_may_hold_more_methods(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", samples=20, seeds=(0, 1))
    card = json.loads((folder / "run.json").read_text())
    card["methods"].append({"name": "fusion", "title": "Late fusion", "selection": "none"})
    card["later"] = "unknown keys are for later versions"
    (folder / "run.json").write_text(json.dumps(card))
    results = pd.read_csv(folder / "results.csv")
    more = results[results.method == METHODS[0]].assign(method="fusion")
    pd.concat([results, more]).to_csv(folder / "results.csv", index=False)
    write_report(folder)
    text = (folder / "tables" / "inter-modality-weighted-f1.csv").read_text()
    rows = [line.split(",")[1] for line in text.splitlines()[1:]]
    assert rows[1:5] == ["Teacher", "No-distillation control", "Late fusion", "CorrKD student"]
