"""Names of classes, questions and modalities, with the limits of model cards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from corrkd.errors import CorrKDError
from corrkd.escape import is_unicode
from corrkd.parsing import quoted, repeated

MOST_CLASSES = 1000  # a larger label is a mistake, not a class
LONGEST_LABEL = 200  # characters
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_LABEL)]
Names = Annotated[tuple[Name, ...], Field(max_length=MOST_CLASSES)]
Cuts = Annotated[tuple[float, ...], Field(max_length=MOST_CLASSES)]


def check_labels(names: Sequence[str], what: str) -> None:
    """Raise CorrKDError if names of classes, questions or modalities are not valid on a model card:
    repeated, empty, too long, not UTF-8 or too many. `what` is the prefix of the message.
    """
    for name in names:
        if not 1 <= len(name) <= LONGEST_LABEL or not is_unicode(name):
            raise CorrKDError(
                f"{what}: {quoted(name)} must have 1 to {LONGEST_LABEL} valid characters; rename it"
            )
    if len(set(names)) < len(names):
        raise CorrKDError(f"{what}: {repeated(names)!r} appears twice; rename one")
    if len(names) > MOST_CLASSES:
        raise CorrKDError(f"{what}: {len(names)} names, more than the {MOST_CLASSES} allowed")
