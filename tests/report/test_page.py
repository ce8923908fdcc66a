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
from corrkd.report import write_report
from corrkd.report.findings import findings, verdict
from corrkd.report.report import head, seed_warnings
from corrkd.report.run_folder import RunFolder
from corrkd.report.standings import analyse
from corrkd.report.tables import Cell
from tests.report.conftest import NASTY
from tests.report.fake_run import DATASET, edit_card, opened, write_fake_run

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Check that tags balance; collect attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []

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
        self.texts.append(data)


def read(folder: Path) -> Reader:
    reader = Reader()
    reader.feed((folder / "report.html").read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def files(folder: Path) -> dict[str, bytes]:
    """Return the files that a report wrote."""
    paths = [
        folder / "report.html",
        folder / "report.md",
        *(folder / "tables").iterdir(),
        *(folder / "figures").iterdir(),
    ]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


@pytest.mark.parametrize("name", ["reported", "nasty"])
def test_page_is_self_contained(name: str, request: pytest.FixtureRequest) -> None:
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
    assert (
        text.count("<svg")
        == 5
        == len([v for t, a, v in reader.attributes if (t, a) == ("svg", "aria-label") and v])
    )
    headings = len(re.findall(r"<th[ >]", text))
    assert headings == len(
        [
            v
            for t, a, v in reader.attributes
            if t == "th" and a == "scope" and v in ("col", "row", "rowgroup")
        ]
    )
    assert text.count("<figure") == text.count("<figcaption")
    ids = [v for _, a, v in reader.attributes if a == "id"]
    assert len(ids) == len(set(ids))
    targets = {v[1:] for _, a, v in reader.attributes if a in ("href", "xlink:href")} | set(
        re.findall(r"url\(#([^)]+)\)", text)
    )
    assert targets <= set(ids)


def test_names_are_escaped_everywhere(nasty: Path) -> None:
    visible = "".join(read(nasty).texts)
    for name in (*NASTY, "_low", "$mid$", "=1+<i>", "NA"):
        assert name in visible
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
    assert "_low" in projection  # by default a legend drops labels that start with an underscore


def test_same_folder_same_bytes(reported: Path, tmp_path: Path) -> None:
    before = files(reported)  # written without an older report
    copy = shutil.copytree(reported, tmp_path / "elsewhere")
    write_report(copy, draws=100)  # over an older report, in another folder
    assert files(copy) == before


def test_written_files(reported: Path) -> None:
    names = set(files(reported))
    assert {
        f"figures/{f}.{e}"
        for f in ("missing-ratios", "training", "confusion", "reliability", "projection")
        for e in ("svg", "png")
    } <= names
    assert {f"tables/inter-modality-weighted-f1.{e}" for e in ("csv", "tex")} <= names
    linked = re.findall(
        r"\]\((figures/[^)]+)\)", (reported / "report.md").read_text(encoding="utf-8")
    )
    assert len(linked) == 5
    assert set(linked) <= names
    assert not list(reported.rglob(".*"))  # no temporary file remains


@pytest.mark.usefixtures("sketches")
def test_one_seed(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", seeds=(4,), samples=30)
    write_report(folder, draws=100)
    text = "".join(read(folder).texts)
    assert "One seed, hence no interval (—)" in text
    assert "no significant difference (" in text
    assert "a single seed gives no interval" in text
    assert text.count("Warning. Too few seeds (1 seed)") == 1
    assert (folder / "report.md").read_text(encoding="utf-8").count("Too few seeds") == 1
    assert "±" not in text.replace(
        "mean ± half-width of the Student-t 95 % interval over seeds", ""
    )  # how to read it
    assert "nan" not in text.lower().split()


@pytest.mark.usefixtures("sketches")
@pytest.mark.parametrize("kind", ["score", "questions"])
def test_other_targets(tmp_path: Path, kind: str) -> None:
    folder = write_fake_run(
        tmp_path / "run", kind=kind, modalities=("text", "sound"), samples=30, bayes=False
    )
    write_report(folder, draws=100)
    text = "".join(read(folder).texts)
    assert ("Mean absolute error" in text) == (kind == "score")
    assert (folder / "figures" / "scores.svg").exists() == (kind == "score")
    assert (folder / "figures" / "confusion.svg").exists() == (kind == "questions")
    assert "Bayes ceiling" not in re.sub("The Bayes ceiling, available for", "", text)


@pytest.mark.usefixtures("sketches")
def test_one_modality(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", modalities=("text",), samples=30)
    write_report(folder, draws=100)
    assert "{" not in "".join(
        re.findall(r"<th scope=\"col\">[^<]*", (folder / "report.html").read_text(encoding="utf-8"))
    )


@pytest.mark.usefixtures("sketches")
@pytest.mark.parametrize(
    ("removed", "remaining"),
    [
        (["results.csv", "costs.csv"], "figures/training.svg"),
        (["history.csv", "predictions.parquet"], "tables/inter-modality-weighted-f1.csv"),
        (["representations.safetensors"], "figures/confusion.svg"),
    ],
)
def test_missing_files_leave_a_line(tmp_path: Path, removed: list[str], remaining: str) -> None:
    folder = write_fake_run(tmp_path / "run", samples=30, seeds=(0, 1))
    for name in removed:
        for file in (*folder.glob(f"{DATASET}/{name}"), *folder.glob(f"{DATASET}/seed-*/*/{name}")):
            file.unlink()
    write_report(folder, draws=100)
    text = "".join(read(folder).texts)
    markdown = html.unescape((folder / "report.md").read_text(encoding="utf-8")).replace("\\", "")
    for name in removed:
        assert re.search(
            f"(The run folder|No seed's folder) contains (no )?{re.escape(name)}.", text
        )
        assert re.search(
            f"(The run folder|No seed's folder) contains (no )?{re.escape(name)}.", markdown
        )
    assert (folder / remaining).exists()


def test_only_run_json(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", samples=5, seeds=(0,))
    for path in (folder / DATASET).iterdir():
        if path.name != "run.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_report(folder)
    assert "No findings" in "".join(read(folder).texts)


def test_not_a_plans_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CorrKDError, match=r"contains no plan\.yaml") as caught:
            write_report(folder)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "plan.yaml").write_text("datasets: {a: {}}\n")
    with pytest.raises(CorrKDError, match="no dataset yet"):
        write_report(tmp_path)
    (tmp_path / "a").mkdir()
    for content, message in (
        ("{", "invalid JSON"),
        ("{}", "does not read"),
        ('{"format": 2}', "corrkd"),
        ("[]", "the file"),
    ):
        (tmp_path / "a" / "run.json").write_text(content)
        with pytest.raises(CorrKDError, match=message) as caught:
            write_report(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["run.json", "compare.yaml"])
def test_a_folder_of_version_01_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CorrKDError, match="not the folder of a run of this version"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"later": 1}, "later: Extra inputs are not permitted"),
        ({"reference": "kl"}, "'kl' is not one of the methods"),
        ({"control": "kl"}, "'kl' is not one of the methods"),
        ({"seeds": [0, 0]}, "seeds: 0 appears twice"),
        ({"seeds": list(range(10_001))}, "seeds: List should have at most 10000 items"),
        ({"notes": ["x" * 100_001]}, "notes.0: String should have at most 100000 characters"),
        ({"split": "../train"}, "split: Input should be"),
        ({"torch": "9" * 101}, "torch: String should have at most 100 characters"),
        (
            {"target": {"name": "a", "kind": "classes", "classes": ["x" * 201]}},
            "target.classes.0: String should have",
        ),
        (
            {"target": {"name": "a", "kind": "classes", "classes": ["x", "x"]}},
            "classes: 'x' appears twice",
        ),
        (
            {"sets": {"level": 1.5, "groups": 3}},
            "sets.level: Input should be less than or equal to 1",
        ),
        (
            {
                "methods": [
                    {
                        "name": "../up",
                        "title": "",
                        "method": "kl",
                        "kind": "method",
                        "trains_on": "complete",
                    }
                ]
            },
            "methods.0.name: a name of a folder, which",
        ),
    ],
)
def test_a_card_is_bounded(tmp_path: Path, changes: dict[str, object], fault: str) -> None:
    out = write_fake_run(tmp_path / "run", samples=5, seeds=(0,))
    edit_card(out, **changes)
    with pytest.raises(CorrKDError, match=re.escape(fault)):
        opened(out)


@pytest.mark.parametrize("name", ["results.csv", "seed-0/student/predictions.parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_fake_run(tmp_path / "run", samples=5, seeds=(0,))
    (folder / DATASET / name).write_bytes(b"\xff\x00 broken")
    with pytest.raises(CorrKDError, match=re.escape(name)) as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "report.html").exists()


def test_damaged_representations_are_named(tmp_path: Path) -> None:
    folder = write_fake_run(tmp_path / "run", samples=5, seeds=(0,))
    (folder / DATASET / "seed-0" / "student" / "representations.safetensors").write_bytes(b"short")
    with pytest.raises(
        CorrKDError, match=r"seed-0/student/representations\.safetensors: cannot be read"
    ):
        opened(folder).representations(["student/complete", "targets"])


@pytest.mark.parametrize(
    ("gain", "message"),
    [
        ((0.02, 0.021, 0.019), "CorrKD student is better (+2.00"),
        ((-0.02, -0.021, -0.019), "No-distillation control is better (−2.00"),
        ((0.02, -0.02, 0.001), "no significant difference (+0.03"),
    ],
)
def test_findings_follow_the_interval(
    tmp_path: Path, gain: tuple[float, ...], message: str
) -> None:
    folder = write_fake_run(tmp_path / "run", samples=5)
    results = pd.read_csv(folder / DATASET / "results.csv")
    averages = (results.condition == "average") & (results.metric == "weighted_f1")
    results.loc[averages & (results.method == "control"), "value"] = [0.50, 0.58, 0.54]
    results.loc[averages & (results.method == "student"), "value"] = [
        0.50 + gain[0],
        0.58 + gain[1],
        0.54 + gain[2],
    ]
    results.to_csv(folder / DATASET / "results.csv", index=False)
    first = findings(analyse(DATASET, opened(folder), 20))[0]
    assert first.startswith("Averaged over the six missing subsets, CorrKD student reaches")
    assert message in first
    assert "paired over 3 seeds" in first


def test_verdict_without_pairs() -> None:
    assert verdict(None, 0, "a", "b") == "no seed has results of both"
    assert verdict(Cell(1.0, 1.0), 5, "a", "b").startswith(
        "no significant difference"
    )  # zero at the interval's edge


def test_head_lists_the_methods_by_kind(reported: Path) -> None:
    terms = head({DATASET: opened(reported)})
    assert terms["Controls"] == "Teacher, No-distillation control"
    assert terms["Methods"] == "CorrKD student"
    assert terms["Data SHA-256"] == "ab" * 32


def test_contents_link_to_every_section(reported: Path) -> None:
    text = (reported / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="#([\w-]+)">(.*?)</a>', text)
    assert [title for _, title in links] == re.findall(r"<h2>(.*?)</h2>", text)
    for target, title in links:
        assert re.search(rf'<section id="{target}">\s*<h2>{re.escape(title)}</h2>', text)
    markdown = (reported / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"- \[(.*?)\]\(#([\w-]+)\)", markdown)
    assert len(linked) == len(links)
    for title, target in linked:
        assert re.search(rf'<a id="{target}"></a>\n\n## {re.escape(title)}\n', markdown)


def test_hardware_versions_and_time_are_only_in_the_footer(reported: Path, tmp_path: Path) -> None:
    """Everything else follows from data, settings and seeds."""
    copy = Path(shutil.copytree(reported, tmp_path / "again"))
    costs = pd.read_csv(copy / DATASET / "costs.csv")
    costs.assign(train_seconds=1e5, peak_memory_bytes=1e11, device="ENIAC").to_csv(
        copy / DATASET / "costs.csv", index=False
    )
    edit_card(copy, torch="9.9.9", corrkd="7.7.7", python="5.5")
    write_report(copy, draws=100)
    for name, end in (("report.html", "<footer>"), ("report.md", "\n---\n")):
        before, after = (
            (folder / name).read_text(encoding="utf-8").split(end) for folder in (reported, copy)
        )
        assert before[0] == after[0]
        for fact in ("torch 9.9.9", "corrkd 7.7.7", "Python 5.5", "100,000", "ENIAC"):
            assert fact in after[1]


def test_no_warning_with_three_seeds(reported: Path) -> None:
    assert "Too few seeds" not in (reported / "report.md").read_text(encoding="utf-8")
    run = opened(reported)
    few = {
        n: RunFolder(run.path, run.card.model_copy(update={"seeds": s}))
        for n, s in {"a": [0, 1, 2], "b": [4, 5]}.items()
    }
    (warning,) = seed_warnings(few)
    assert warning.startswith("Too few seeds (2 seeds)")


def test_only_files_in_the_folder_are_listed(reported: Path) -> None:
    text = (reported / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert "DATASET/seed-N/ARM/predictions.parquet" in text
    assert "coverage.csv" not in text
    assert "failures.csv" not in text


@pytest.mark.usefixtures("sketches")
def test_a_fourth_method_has_its_row(tmp_path: Path) -> None:
    out = write_fake_run(
        tmp_path / "run", arms=("kl", "teacher", "student", "control"), samples=20, seeds=(0, 1)
    )
    methods = json.loads((out / DATASET / "run.json").read_text())["methods"]
    edit_card(out, methods=[{**methods[0], "title": "Late fusion", "kind": "method"}, *methods[1:]])
    write_report(out, draws=20)
    text = (out / "tables" / "inter-modality-weighted-f1.csv").read_text()
    rows = [line.split(",")[1] for line in text.splitlines()[1:]]
    assert rows[1:5] == ["Teacher", "No-distillation control", "Late fusion", "CorrKD student"]


def test_missing_frames_are_shown_with_their_reasons(reported: Path, tmp_path: Path) -> None:
    table = pd.read_csv(
        reported / "tables" / "missing-frames.csv", dtype=str, keep_default_na=False
    )
    assert table["Modality, split"].tolist() == ["vision, train", "vision, test"]
    assert table["Frames"].tolist() == ["2400", "480"]
    reasons = table["Reasons, % of all frames"].tolist()
    assert reasons == ["no <b>face</b> | none 18.8, stream over 1.2, other 5.0", ""]
    html, markdown = (
        (reported / f"report.{ending}").read_text("utf-8") for ending in ("html", "md")
    )
    assert "no &lt;b&gt;face&lt;/b&gt; | none 18.8" in html
    assert "<b>face" not in html
    assert "none 18.8" in markdown
    folder = write_fake_run(tmp_path / "run", samples=5, seeds=(0,))
    card = json.loads((folder / DATASET / "run.json").read_text())["dataset"]
    edit_card(folder, dataset={**card, "missing_frames": {}})
    assert not opened(folder).card.dataset.missing_frames
