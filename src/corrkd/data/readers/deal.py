"""Assigning splits to data without splits: by whole groups, so that nobody is in two splits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from corrkd.data.dataset import SPLITS, StrArray
from corrkd.data.groups import dependent_samples
from corrkd.data.readers.assemble import groups_from_ids
from corrkd.errors import CorrKDError

SHARES: Mapping[str, float] = dict(zip(SPLITS, (0.7, 0.15, 0.15), strict=True))
VALIDATION = 0.15  # of the training split, if there is no validation split


def members_of(ids: StrArray, groups: Mapping[str, StrArray]) -> tuple[str, StrArray]:
    """Return the kind of the groups ("person", "video", "sample", ...), and the group of each
    sample, (N,).

    Args:
        ids: (N,) ids of the samples; those of the form `video$_$clip` name a video.
        groups: (N,) names by kind; see `dependent_samples`.
    """
    parsed = groups_from_ids(ids.tolist())
    return dependent_samples(ids, {"video": parsed[0], **groups} if parsed else groups)


def dealt_note(by: str) -> str:
    """Return the note on samples assigned to train, valid and test by group."""
    shares = "/".join(f"{100 * share:.0f}" for share in SHARES.values())
    return f"no splits in the data: assigned at random as {shares} % by {by}, seed 0"


def dealt(
    members: npt.ArrayLike, shares: Mapping[str, float] = SHARES, *, seed: int = 0
) -> StrArray:
    """Return the split of each sample, (N,): groups in random order, each assigned to the split
    that is furthest from its share.

    Args:
        members: (N,) group of each sample.
        shares: share of the samples by split.
        seed: seed of the random order, which does not depend on the order of the samples.

    Raises:
        CorrKDError: if there are fewer groups than splits.
    """
    names, group, sizes = np.unique(np.asarray(members), return_inverse=True, return_counts=True)
    if len(names) < len(shares):
        raise CorrKDError(
            f"{len(names)} groups or samples are too few for {len(shares)} splits; name the split "
            f"of each in `split`"
        )
    wanted = np.array([share * len(group) for share in shares.values()])
    counts = np.zeros(len(shares))
    split_of = np.empty(len(names), np.int64)
    for num_dealt, index in enumerate(np.random.default_rng(seed).permutation(len(names))):
        empty = np.flatnonzero(counts == 0)
        candidates = empty if len(names) - num_dealt <= len(empty) else np.arange(len(shares))
        chosen = candidates[(wanted - counts)[candidates].argmax()]
        split_of[index] = chosen
        counts[chosen] += sizes[index]
    return np.array(list(shares), dtype=np.str_)[split_of][group]
