"""Text escaped for terminals, tables and lines of errors."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrkd.csv_files import csv_bytes, read_csv, write_csv
from corrkd.errors import CorrKDError
from corrkd.escape import LONGEST_LINE, csv_original, csv_text, one_line, terminal_text

ANY = st.text(st.characters(exclude_categories=[]))
TRICKY = st.one_of(ANY, st.text("'=+-@\t\r\n,\";1aé[]$", max_size=8))


def is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


@given(ANY)
def test_terminal_text_has_no_control_characters(text: str) -> None:
    escaped = terminal_text(text)
    assert not any(is_control(c) for c in escaped if c != "\n")
    escaped.encode()
    assert terminal_text(escaped) == escaped


@pytest.mark.parametrize(
    "text", ["plain", "é 日本語 ±", "p\u00a0<\u00a00.05", "two\nlines", "", "a\\b"]
)
def test_harmless_text_is_unchanged(text: str) -> None:
    assert terminal_text(text) == text


@given(ANY)
def test_an_error_is_one_line_of_bounded_length(text: str) -> None:
    message = str(CorrKDError(text * 40))
    assert len(message) <= LONGEST_LINE
    assert not any(is_control(c) for c in message)
    assert str(CorrKDError(message)) == message


def test_a_long_error_keeps_its_beginning_and_its_end() -> None:
    message = one_line(f"settings.yaml: {'x' * 10**6}; delete it to go on")
    assert message.startswith("settings.yaml: xxx")
    assert message.endswith("; delete it to go on")


@given(TRICKY)
def test_a_cell_is_no_formula_and_is_read_back(text: str) -> None:
    cell = csv_text(text)
    assert csv_original(cell) == text
    assert not cell.startswith(("=", "@", "\t", "\r"))
    if cell.startswith(("+", "-")):  # nothing that calls, refers to a cell range, or quotes
        assert not set(cell) & set("()=|!:;,'\"&*/ \n\t\r")


@pytest.mark.parametrize(
    "text", ["-3g5yACwYnA[1]", "-2", "+1", "plain", "", "-", "ratio-0.3", "'quoted'", "a=b"]
)
def test_common_ids_and_classes_are_unchanged(text: str) -> None:
    assert csv_text(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "@SUM(A1)",
        "-2+3+cmd|' /C calc'!A0",
        '+HYPERLINK("x")',
        "\t=1",
        "\r=1",
        "- none",
        "'=1",
    ],
)
def test_formulas_get_a_quote(text: str) -> None:
    assert csv_text(text) == f"'{text}"


@given(
    st.lists(
        st.tuples(
            TRICKY.filter(lambda t: "\0" not in t and t.isprintable()), st.floats(allow_nan=False)
        ),
        min_size=1,
    )
)
def test_a_table_is_read_back(rows: list[tuple[str, float]]) -> None:
    table = pd.DataFrame(rows, columns=["id", "=value"])
    data = csv_bytes(table)
    header, *cells = csv.reader(io.StringIO(data.decode()))
    assert header == ["id", "'=value"]
    assert [cell for cell, _ in cells] == [csv_text(text) for text, _ in rows]
    assert [float(number) for _, number in cells] == [
        number for _, number in rows
    ]  # negative ones stay numbers
    back = read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)  # type: ignore[arg-type]
    assert back["id"].tolist() == [text for text, _ in rows]
    assert [float(number) for number in back["=value"]] == [number for _, number in rows]


def test_writing_does_not_change_the_table(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": ["=1", None], "x": np.array([-1.5, 2])})
    before = table.copy()
    write_csv(tmp_path / "t.csv", table)
    pd.testing.assert_frame_equal(table, before)
    assert (tmp_path / "t.csv").read_text() == "id,x\n'=1,-1.5\n,2.0\n"


def test_progress_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    from corrkd.experiment.progress import Reporter

    hostile = "\x1b[2J[red]x[/nothing] \u202e\nerror: a line of its own"
    reporter = Reporter()
    reporter.say(hostile)
    with reporter.busy(hostile), reporter.task(hostile, 1) as task:
        task.step(1, hostile)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() and "[red]x[/nothing]" in line for line in lines)


def test_bars_and_tables_interpret_no_markup(tmp_path: Path) -> None:
    from rich.console import Console

    from corrkd.experiment.job import Job
    from corrkd.experiment.plan import DatasetPlan
    from corrkd.experiment.progress import Reporter
    from corrkd.experiment.runner import state_table
    from corrkd.experiment.settings import ArmSettings, Settings

    dataset_plan = DatasetPlan(settings=Settings(), arms={"b": ArmSettings()})
    job = Job(tmp_path / "a", dataset_plan, "b", 0)
    job.folder.mkdir(parents=True)
    (job.folder / "progress").write_text("x \x1b[2J[/nothing]")
    reporter = Reporter()
    console = Console(
        force_terminal=True, file=io.StringIO(), width=200, color_system=None, markup=True
    )
    reporter._console = console
    with reporter.busy("[/nothing]\x1b[2J"):  # rich before 14.1 has one live display at a time
        pass
    with reporter.task("[/nothing]\x1b[2J", 1) as task:
        task.step(1, "[/nothing]\x1b[2J")
    console.print(state_table([job]))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[2J" not in written
    assert "[/nothing]" in written


def test_errors_of_the_command_line_are_printed_as_text() -> None:
    from tests.command import corrkd

    line = corrkd("data", "inspect", "/no\x1b[2J[red]where\u202e").line
    assert line.isprintable()
    assert "[red]where" in line
