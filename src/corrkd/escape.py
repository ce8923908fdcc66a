"""Text for where it is shown: a terminal, one line of an error, a cell of a CSV file.

HTML is escaped by markupsafe, Markdown and LaTeX by `corrkd.report.tables`.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST_LINE = 500  # characters of an error

_FORMULA = re.compile(r"'*(?:[=@\t\r]|[+-](?![\w.\[\]$-]*\Z))")


def terminal_text(text: str) -> str:
    """Return `text` with what a terminal would obey written as escapes: control, direction and
    format characters, lone surrogates.

    Line feeds stay.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(
        c if c == "\n" or c.isprintable() or unicodedata.category(c) == "Zs" else _escaped(c)
        for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def is_unicode(text: str) -> bool:
    """Return whether text can be written as UTF-8: it holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Return `text` on one line of at most `longest` characters, fit for a terminal. What is too
    long loses its middle.
    """
    if len(text) > 4 * longest:  # before any work on it
        text = _shortened(text, 4 * longest)
    return _shortened(terminal_text(" ".join(text.split())), longest)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    tail = longest // 3
    return f"{text[: longest - tail - 5].rstrip()} ... {text[-tail:].lstrip()}"


def csv_text(text: str) -> str:
    """Return a cell's text such that no spreadsheet reads it as a formula: a single quote goes
    before =, @, tab, carriage return, + and -.

    Text of letters, digits and `_ . [ ] $ -` after a sign stays as it is: such are clips
    ("-3g5yACwYnA[1]") and classes ("-2", "+1"), and no formula. Numbers are not text and stay
    numbers. `csv_original` takes the quote away again.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def csv_original(text: str) -> str:
    """Return what `csv_text` was applied to."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
