"""Classes of a score by thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from corrkd.errors import CorrKDError


def digitize(
    scores: npt.ArrayLike, cuts: Sequence[float], *, upward: bool
) -> npt.NDArray[np.int64]:
    """Return the class of each score, from 0 to the number of cuts. If `upward`, a score equal to a
    cut belongs to the class above it.
    """
    # in float64, so that a threshold is the same for targets and float32 predictions
    return np.digitize(np.asarray(scores, np.float64), cuts, right=not upward).astype(np.int64)


def tertiles(scores: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """Return the two cuts that divide the scores into thirds; they are equal if many scores are."""
    return tuple(float(cut) for cut in np.quantile(scores, [1 / 3, 2 / 3]))


def distinct_tertiles(scores: npt.NDArray[np.float64], where: str) -> tuple[float, ...]:
    """Return the distinct tertiles above the lowest score, or the second lowest score if no tertile
    is above it.

    Raises:
        CorrKDError: if all scores are equal. `where` is the prefix of the message.
    """
    values = np.unique(scores)
    if len(values) == 1:
        raise CorrKDError(
            f"{where}: all scores are {values[0]:g}; nothing can be learned from them"
        )
    cuts = tuple(cut for cut in sorted(set(tertiles(scores))) if cut > values[0])
    return cuts or (float(values[1]),)
