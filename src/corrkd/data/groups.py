"""Which samples depend on one another: those that share a person, a speaker, a session or a video,
directly or through others.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

GROUPS = ("person", "speaker", "session", "video")
SAMPLE = "sample"  # where nothing groups the samples

Names = npt.NDArray[np.str_]


def dependent_samples(ids: Names, groups: Mapping[str, Names]) -> tuple[str, Names]:
    """Return what groups the samples and the group of each.

    Samples are dependent when they share any group: an IEMOCAP session holds two speakers, a
    speaker has many videos. The groups are the connected components over all of them; an empty name
    belongs to nobody.

    Args:
        ids: (N,) of the samples.
        groups: by kind ("person", "speaker", "session", "video"), (N,) names each; other kinds are
            not looked at.

    Returns:
        The kind, for people: "person" where the components are those of persons, "person and
            session" where both connect samples, "sample"
        where nothing does. And (N,) names: of the kind's groups where one kind explains them, else
            of each component's first group.
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
    """Group names, with the sample's own id where there is none."""
    return (
        np.where(values == "", np.char.add("alone: ", ids), values)
        if (values == "").any()
        else values
    )


def _components(names: list[Names]) -> npt.NDArray[np.int64]:
    """(N,) the connected component of each sample, where equal names connect."""
    count, start, rows, columns = len(names[0]), 0, [], []
    for values in names:
        distinct, group = np.unique(values, return_inverse=True)
        rows.append(np.arange(count))
        columns.append(count + start + group)
        start += len(distinct)
    # SciPy's search before 1.15 takes indices of 32 bits alone.
    edges = np.concatenate(rows).astype(np.int32), np.concatenate(columns).astype(np.int32)
    size = count + start
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(size, size))
    component = connected_components(graph, directed=False)[1][:count]
    return np.unique(component, return_inverse=True)[1].astype(np.int64)


def _connects(values: Names, others: list[Names]) -> bool:
    """Return whether a kind joins samples that the other kinds leave apart."""
    return _components([values, *others]).max() < _components(others).max()
