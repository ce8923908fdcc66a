"""One decision about file names: what is refused, and what other names become."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrkd.errors import CorrKDError
from corrkd.files import LONGEST_NAME, check_names, file_names, name_fault

FIT = ("mosi", "CMU-MOSI", "hazumi1911", "a.b", "_x", "日本", "é", "2024-01-01", "kl", "ascon")
UNFIT = (
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
# Names that are hard on a file system, beside any text.
NAMES = st.one_of(
    st.text(max_size=30), st.sampled_from(UNFIT), st.text("aAbB./\\-+~ \0", max_size=6)
)


@pytest.mark.parametrize("name", FIT)
def test_fit_names(name: str) -> None:
    assert name_fault(name) is None
    assert file_names([name]) == {name: name}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_names(name: str) -> None:
    assert name_fault(name)
    with pytest.raises(CorrKDError, match=r"^dataset ") as caught:
        check_names([name], "dataset")
    assert str(caught.value).isprintable()


@given(st.lists(NAMES, max_size=8))
def test_names_that_data_bring_never_share_a_file_and_never_leave_the_folder(
    names: list[str],
) -> None:
    found = file_names(names)
    assert found.keys() == set(names)
    files = list(found.values())
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
    found = file_names(["MOSI", "mosi", "x"])
    assert found["x"] == "x"
    assert len({file.casefold() for file in found.values()}) == 3
    for file in found.values():
        (tmp_path / file).write_text("")
