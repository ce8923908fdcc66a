"""Reasons for missing frames, as one text per sample: "no face 12, video stream over 3"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

LARGEST_COUNT = 15  # digits


def reasons_text(counts: Mapping[str, int]) -> str:
    """Return the text of a sample.

    Args:
        counts: number of missing frames by reason; reasons of other packages may contain anything.
    """
    return ", ".join(
        f"{' '.join(reason.replace(',', ' ').split())} {n}" for reason, n in counts.items() if n
    )


def counted_reasons(texts: Iterable[str]) -> Counter[str]:
    """Return the number of missing frames in several samples, by reason. Invalid entries are
    skipped.
    """
    total: Counter[str] = Counter()
    for text in texts:
        for entry in text.split(","):
            reason, _, count = entry.strip().rpartition(" ")
            if reason and count.isascii() and count.isdecimal() and len(count) <= LARGEST_COUNT:
                total[reason] += int(count)
    return total
