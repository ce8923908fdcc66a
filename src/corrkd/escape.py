"""Escaping text for a terminal, a one-line error message or a cell of a CSV file.

HTML is escaped by markupsafe, Markdown and LaTeX by `corrkd.report.tables`.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST_LINE = 500  # characters of an error

_FORMULA = re.compile(r"'*(?:[=@\t\r]|[+-](?![\w.\[\]$-]*\Z))")


def terminal_text(text: str) -> str:
    """Return `text` with everything that could control a terminal written as escapes: control,
    direction and format characters, and lone surrogates. Line feeds stay.
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
    """Return whether text can be written as UTF-8, that is, has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(text: str, longest: int = LONGEST_LINE) -> str:
    """Return `text` on one line of at most `longest` characters, safe for a terminal. The middle of
    a longer text is left out.
    """
    if len(text) > 4 * longest:  # before the slow steps
        text = _shortened(text, 4 * longest)
    return _shortened(terminal_text(" ".join(text.split())), longest)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    tail = longest // 3
    return f"{text[: longest - tail - 5].rstrip()} ... {text[-tail:].lstrip()}"


def csv_text(text: str) -> str:
    """Return the text of a cell, with a single quote before a leading =, @, tab, carriage return, +
    or -, so that no spreadsheet reads it as a formula.

    A sign followed only by letters, digits and `_ . [ ] $ -` is not quoted: ids of clips
    ("-3g5yACwYnA[1]") and classes ("-2", "+1") look like this, formulas do not. `csv_original`
    removes the quote.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def csv_original(text: str) -> str:
    """Return the text without the quote that `csv_text` put before it."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
