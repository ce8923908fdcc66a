"""The one error that a user is meant to read: a line that says what is wrong, where, and what to
do.
"""

from __future__ import annotations

from corrkd.escape import one_line


class CorrKDError(Exception):
    """CONTENT_ERRORS input from outside: a file, a setting, an array. The message is one clear
    line; the command line prints it bare.

    Whatever a message quotes, it is a single line of at most 500 characters without anything that a
    terminal would obey.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))
