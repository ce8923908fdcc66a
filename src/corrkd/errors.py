"""The error for users: one line that states what is wrong, where, and what to do about it."""

from __future__ import annotations

from corrkd.escape import one_line


class CorrKDError(Exception):
    """Invalid input: a file, a setting, an array. The command line prints the message alone.

    The message is a single line of at most 500 characters without terminal control characters,
    whatever it quotes.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))
