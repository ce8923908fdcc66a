"""Reports and model cards with hostile names for everything that a user or the data can name.

No element, attribute, command or formula gets in: the output is parsed and compared with a report
of honest names.
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from markdown_it import MarkdownIt

from corrkd.networks.saved import build_network
from corrkd.report import plain_report, write_report
from corrkd.report.run_folder import RunFolder
from corrkd.serve.model_card import model_card
from corrkd.serve.predictor import card_of
from tests.conftest import make_dataset
from tests.networks.test_saved import SMALL, saved
from tests.report import fake_run
from tests.report.fake_run import DATASET, edit_card, opened

# Breaks out of attributes, elements, rows, headings, code, and of a terminal's text; without the
# characters that no modality's name may contain.
HOSTILE = (
    "=cmd|'x'!A0\\input{{secret}}$`\"'><svg onload=alert(1)><script>evil()</script>"
    "\n# h [a](javascript:evil)\x1b[2J\u202e[red]@SUM {}"
)
NAMES = [HOSTILE.format(k) for k in range(8)]
FOLDER = '=x" onload="evil()" y="<script>\n\x1b[2J'  # what a folder can be called on Linux


class Reader(HTMLParser):
    """Collect the pairs of element and attribute, and the attributes' values."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pairs: set[tuple[str, str]] = set()
        self.values: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pairs |= {(tag, ""), *((tag, name) for name, _ in attrs)}
        self.values += [(name, value or "") for name, value in attrs]


def svg_pairs(path: Path) -> set[tuple[str, str]]:
    out: set[tuple[str, str]] = set()
    for element in ElementTree.parse(path).iter():
        out |= {(element.tag, ""), *((element.tag, name) for name in element.keys())}  # noqa: SIM118
    return out


def markdown_pairs(text: str) -> set[tuple[str, str]]:
    return Reader(MarkdownIt("commonmark", {"html": True}).enable("table").render(text)).pairs


def hostile(name: str) -> str:
    return name.replace("+", "").replace(",", "")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """Return, for "run" or a comparison's kind of target, a folder with honest names and one with
    hostile ones.
    """

    @cache
    def pair(kind: str) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp(kind)
        write = fake_run.write_fake_run if kind == "run" else fake_run.write_fake_comparison
        options: dict[str, Any] = {
            "kind": "classes" if kind == "run" else kind,
            "seeds": (0, 1),
            "samples": 24,
        }
        honest = write(folder / "honest", **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fake_run, "TITLES", {m: HOSTILE.format(m) for m in fake_run.TITLES})
            patch.setattr(fake_run, "ID", "=cmd|s{:03d}<script>\x1b[2J")
            patch.setattr(fake_run, "GROUP", HOSTILE)
            patch.setattr(fake_run, "QUESTIONS", tuple(NAMES[3:5]))
            num_classes = len(fake_run.CLASSES[options["kind"]])
            other = write(
                folder / "hostile",
                datasets=[FOLDER],
                modalities=NAMES[:3],
                classes=NAMES[5 : 5 + num_classes],
                **options,
            )
        make_hostile(other)
        (honest / "failures.csv").write_text("dataset,method,seed,error\nx,a,0,b\n")
        return {"honest": honest, "hostile": other}

    return pair


@pytest.fixture(scope="module")
def reports(folders: Callable[[str], dict[str, Path]]) -> Callable[[str], dict[str, Path]]:
    """Return the same folders with their reports."""

    @cache
    def pair(kind: str) -> dict[str, Path]:
        for path in folders(kind).values():
            write_report(path, draws=50)
        return folders(kind)

    return pair


def make_hostile(out: Path) -> None:
    """Give hostile values to all other names in a folder's files."""
    card = json.loads((out / FOLDER / "run.json").read_text())
    edit_card(
        out,
        FOLDER,
        dataset={**card["dataset"], "name": NAMES[0], "layout": NAMES[1]},
        groups={**card["groups"], "name": NAMES[3]},
        target={**card["target"], "name": NAMES[6]},
        protocol=[NAMES[4], NAMES[5]],
        notes=NAMES[:2],
        corrkd=NAMES[0][:100],
        torch=NAMES[1][:100],
    )
    plan = (out / "plan.yaml").read_text()
    (out / "plan.yaml").write_text(f"{plan}\n# ``` </pre><script>evil()\n")
    (out / "failures.csv").write_text(
        f'dataset,method,seed,error\n"{NAMES[0].replace(chr(34), chr(39))}",a,0,b\n'
    )


@pytest.mark.parametrize(
    "kind",
    ["classes", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("run", "questions"))],
)
class TestReports:
    def test_no_element_and_no_attribute_is_added_to_the_page(
        self, kind: str, reports: Any
    ) -> None:
        pages = {k: (p / "report.html").read_text("utf-8") for k, p in reports(kind).items()}
        honest, other = Reader(pages["honest"]), Reader(pages["hostile"])
        assert other.pairs <= honest.pairs
        assert "evil()" in pages["hostile"]  # the names appear, as text
        for name, value in other.values:
            if name in ("id", "href", "xlink:href"):
                assert re.fullmatch(r"#?[\w.+-]+", value), (name, value)
        ids = [value for name, value in other.values if name == "id"]
        assert len(set(ids)) == len(ids)

    def test_figures_are_xml_with_the_same_elements(self, kind: str, reports: Any) -> None:
        files = {
            name: list((path / "figures").glob("*.svg")) for name, path in reports(kind).items()
        }
        allowed = set().union(*map(svg_pairs, files["honest"]))
        figures = files["hostile"]
        assert len(figures) == len(files["honest"]) > 1
        for path in figures:
            assert svg_pairs(path) <= allowed

    def test_markdown_renders_to_the_same_elements(self, kind: str, reports: Any) -> None:
        texts = {k: (p / "report.md").read_text("utf-8") for k, p in reports(kind).items()}
        assert markdown_pairs(texts["hostile"]) <= markdown_pairs(texts["honest"])
        rows = {
            k: MarkdownIt("commonmark").enable("table").render(text).count("<tr>")
            for k, text in texts.items()
        }
        assert rows["hostile"] == rows["honest"]

    def test_no_cell_of_a_table_is_a_formula(self, kind: str, reports: Any) -> None:
        files = list((reports(kind)["hostile"] / "tables").glob("*.csv"))
        assert len(files) > 5
        for path in files:
            with path.open(newline="", encoding="utf-8") as text:
                for cell in (cell for row in csv.reader(text) for cell in row):
                    assert not cell.startswith(("=", "@", "\t", "\r")), (path.name, cell)
                    if cell.startswith(("+", "-")):
                        float(cell)

    def test_names_add_no_latex_command(self, kind: str, reports: Any) -> None:
        for path in (reports(kind)["hostile"] / "tables").glob("*.tex"):
            text = path.read_text("utf-8")
            assert "\\input" not in text
            assert "\x1b" not in text
            lines = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0].splitlines()
            assert len({line.count(" & ") for line in lines if " & " in line}) == 1
            assert re.search(r"\\label\{tab:[\w.+-]+\}", text)

    def test_files_are_written_to_their_folders(self, kind: str, reports: Any) -> None:
        folder = reports(kind)["hostile"]
        for path in (*(folder / "tables").rglob("*"), *(folder / "figures").rglob("*")):
            assert re.fullmatch(r"[\w.+-]+", path.name), path
            assert path.parent.parent == folder


@pytest.mark.parametrize("kind", ["run", "classes"])
def test_plain_tables_are_printed_without_control_sequences(
    kind: str, folders: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from corrkd import cli

    cli.print(plain_report(folders(kind)["hostile"]))
    output = capsys.readouterr().out
    assert "\\x1b[2J" in output
    assert all(c == "\n" or c == "\xa0" or c.isprintable() for c in output)


def card_text(names: list[str], run: RunFolder | None) -> str:
    """Return the model card of a network with these names of modalities, classes and so on."""
    dataset = make_dataset({names[0]: 5, names[1]: 3})
    before = saved()
    target = replace(before.target, name=names[2], classes=tuple(names[3:6]))
    torch.manual_seed(0)
    frames = dict.fromkeys(dataset.modalities, 6)
    model = replace(
        before,
        network=build_network(target, dataset.widths, frames, SMALL).eval(),
        normalisation=replace(
            before.normalisation,
            center={m: np.zeros(w, np.float32) for m, w in dataset.widths.items()},
            scale={m: np.ones(w, np.float32) for m, w in dataset.widths.items()},
            lengths=frames,
        ),
        target=target,
        frames=frames,
        about={
            "role": names[6],
            "data": {"name": names[7]},
            "selection": names[0],
            "versions": {names[1]: names[2]},
            "epoch": 3,
        },
    )
    return model_card(model, card_of(model), run)


def test_a_model_card_renders_to_the_same_elements_and_its_code_to_the_same_calls(
    folders: Any,
) -> None:
    honest = card_text(
        ["language", "audio", "classes", "a", "b", "c", "student", "mosi"],
        opened(folders("run")["honest"]),
    )
    other = card_text(NAMES, opened(folders("run")["hostile"], FOLDER))
    assert markdown_pairs(other) <= markdown_pairs(honest)
    blocks = [
        re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for text in (honest, other)
    ]
    assert [len(block) for block in blocks] == [1, 1]
    kinds = [[type(node) for node in ast.walk(ast.parse(block[0]))] for block in blocks]
    assert kinds[0] == kinds[1]


def test_groups_and_ids_survive_the_quoting_of_csv_files(tmp_path: Path) -> None:
    """A comparison joins predictions (Parquet) with groups.csv by id."""
    from corrkd.csv_files import write_csv

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_run, "ID", "=s{:03d}")
        out = fake_run.write_fake_comparison(tmp_path / "out", seeds=(0, 1), samples=24)
    path = out / DATASET / "groups.csv"
    groups = pd.read_csv(path, dtype=str)
    before = opened(out).groups
    write_csv(path, groups)
    assert path.read_text().splitlines()[1].startswith("'=s000,")
    pd.testing.assert_series_equal(opened(out).groups, before)
