"""Groups of dependent samples: those that share a person, a speaker, a session or a video, directly
or through others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

GROUPS = ("person", "speaker", "session", "video")
SAMPLE = "sample"  # if nothing groups the samples

Names = npt.NDArray[np.str_]


def dependent_samples(ids: Names, groups: Mapping[str, Names]) -> tuple[str, Names]:
    """Return the kind of the groups and the group of each sample.

    Samples are dependent when they share any group: an IEMOCAP session has two speakers, and a
    speaker has many videos. The groups are the connected components over all kinds; an empty name
    belongs to no group.

    Args:
        ids: (N,) ids of the samples.
        groups: by kind ("person", "speaker", "session", "video"), (N,) names each; other kinds are
            ignored.

    Returns:
        The kind as text: "person" if the components are those of persons, "person and session" if
        both connect samples, "sample" if nothing does. And (N,) names: of the kind's groups if one
        kind explains them, else of each component's first group.
    """
    kinds = [kind for kind in GROUPS if kind in groups and (groups[kind] != "").any()]
    if not kinds or not len(ids):
        return SAMPLE, ids
    names = {kind: _named(groups[kind], ids) for kind in kinds}
    component = _components([names[kind] for kind in kinds])
    for kind in kinds:
        if len(np.unique(names[kind])) == component.max() + 1:
            return kind, names[kind]
    _, first = np.unique(component, return_index=True)
    label = " and ".join(
        kind for kind in kinds if _connects(names[kind], [names[k] for k in kinds if k != kind])
    )
    return label or " and ".join(kinds), names[kinds[0]][first][component]


def _named(values: Names, ids: Names) -> Names:
    """Return the group names, with the sample's id for empty names."""
    return (
        np.where(values == "", np.char.add("alone: ", ids), values)
        if (values == "").any()
        else values
    )


def _components(names: list[Names]) -> npt.NDArray[np.int64]:
    """Return the connected component of each sample, (N,); equal names connect samples."""
    count, start, rows, columns = len(names[0]), 0, [], []
    for values in names:
        distinct, group = np.unique(values, return_inverse=True)
        rows.append(np.arange(count))
        columns.append(count + start + group)
        start += len(distinct)
    # SciPy's search before 1.15 takes only 32-bit indices.
    edges = np.concatenate(rows).astype(np.int32), np.concatenate(columns).astype(np.int32)
    size = count + start
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(size, size))
    component = connected_components(graph, directed=False)[1][:count]
    return np.unique(component, return_inverse=True)[1].astype(np.int64)


def _connects(values: Names, others: list[Names]) -> bool:
    """Return whether a kind joins samples that the other kinds leave apart."""
    return _components([values, *others]).max() < _components(others).max()
