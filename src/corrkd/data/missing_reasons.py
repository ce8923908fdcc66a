"""Why frames of a sample are missing, as one text for each sample: "no face 12, video stream over
3".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

LARGEST_COUNT = 15  # digits


def reasons_text(counts: Mapping[str, int]) -> str:
    """Return the text of a sample.

    Args:
        counts: how many frames are missing, by reason; a reason of another package may hold
            anything.
    """
    return ", ".join(
        f"{' '.join(reason.replace(',', ' ').split())} {n}" for reason, n in counts.items() if n
    )


def counted_reasons(texts: Iterable[str]) -> Counter[str]:
    """Return how many frames are missing in several samples, by reason; what is no count is passed
    over.
    """
    total: Counter[str] = Counter()
    for text in texts:
        for entry in text.split(","):
            reason, _, count = entry.strip().rpartition(" ")
            if reason and count.isascii() and count.isdecimal() and len(count) <= LARGEST_COUNT:
                total[reason] += int(count)
    return total
