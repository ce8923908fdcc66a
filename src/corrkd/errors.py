"""The one error that a user is meant to read: a line that says what is wrong, where, and what to do."""

from __future__ import annotations


class CorrKDError(Exception):
    """Bad input from outside: a file, a setting, an array. The message is one clear line; the command line prints it bare."""
