"""File names: which are refused, and which file each other name becomes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrkd.errors import CorrKDError
from corrkd.files import LONGEST_NAME, check_names, file_names, name_fault

VALID = ("mosi", "CMU-MOSI", "hazumi1911", "a.b", "_x", "日本", "é", "2024-01-01", "kl", "ascon")
INVALID = (
    *(
        "",
        ".",
        "..",
        "../x",
        "/x",
        "a/b",
        "a\\b",
        ".hidden",
        "-rf",
        "a b",
        "a\tb",
        "a\nb",
        "a\0b",
        "x.",
        "a:b",
        "a*",
        "\u202ea",
    ),
    *(
        "con",
        "CON",
        "nul.txt",
        "COM1",
        "lpt9.x",
        "e\u0301",
        "²",
        "x" * (LONGEST_NAME + 1),
        "é" * LONGEST_NAME,
        "\ud800",
        "a+b",
    ),
)
# Names that are difficult for a file system, besides any text.
NAMES = st.one_of(
    st.text(max_size=30), st.sampled_from(INVALID), st.text("aAbB./\\-+~ \0", max_size=6)
)


@pytest.mark.parametrize("name", VALID)
def test_valid_names(name: str) -> None:
    assert name_fault(name) is None
    assert file_names([name]) == {name: name}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_names(name: str) -> None:
    assert name_fault(name)
    with pytest.raises(CorrKDError, match=r"^dataset ") as caught:
        check_names([name], "dataset")
    assert str(caught.value).isprintable()


@given(st.lists(NAMES, max_size=8))
def test_names_from_data_never_share_a_file_or_leave_the_folder(names: list[str]) -> None:
    result = file_names(names)
    assert result.keys() == set(names)
    files = list(result.values())
    assert len({unicodedata.normalize("NFC", file).casefold() for file in files}) == len(set(names))
    for file in files:
        path = Path("/folder") / file
        assert path.parent == Path("/folder")
        assert path.name == file
        assert not file.startswith((".", "-"))
        assert len(file.encode()) <= LONGEST_NAME
        assert file_names([file]).get(file) == file or "+" in file


@given(NAMES)
def test_a_name_becomes_the_same_file_every_time(name: str) -> None:
    assert file_names([name]) == file_names([name])


def test_names_that_differ_in_case_alone_become_two_files(tmp_path: Path) -> None:
    files = file_names(["MOSI", "mosi", "x"])
    assert files["x"] == "x"
    assert len({file.casefold() for file in files.values()}) == 3
    for file in files.values():
        (tmp_path / file).write_text("")
