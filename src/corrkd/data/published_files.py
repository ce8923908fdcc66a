"""Public files that are recognised by their published SHA-256 digest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedFile:
    """The name and labels of a public file."""

    name: str
    file: str
    score_range: tuple[float, float]
    class_names: tuple[str, ...] = ("negative", "neutral", "positive")


# Published with MMSA (github.com/thuiar/MMSA).
PUBLISHED_FILES = {
    "78e0f8b5ef8ff71558e7307848fc1fa929ecb078203f565ab22b9daab2e02524": PublishedFile(
        "MOSI", "unaligned_50.pkl", (-3.0, 3.0)
    ),
    "d3994fd25681f9c7ad6e9c6596a6fe9b4beb85ff7d478ba978b124139002e5f9": PublishedFile(
        "MOSI", "aligned_50.pkl", (-3.0, 3.0)
    ),
    "ad8b23d50557045e7d47959ce6c5b955d8d983f2979c7d9b7b9226f6dd6fec1f": PublishedFile(
        "MOSEI", "unaligned_50.pkl", (-3.0, 3.0)
    ),
    "45eccfb748a87c80ecab9bfac29582e7b1466bf6605ff29d3b338a75120bf791": PublishedFile(
        "MOSEI", "aligned_50.pkl", (-3.0, 3.0)
    ),
    "c9e20c13ec0454d98bb9c1e520e490c75146bfa2dfeeea78d84de047dbdd442f": PublishedFile(
        "CH-SIMS", "unaligned_39.pkl", (-1.0, 1.0)
    ),
}
