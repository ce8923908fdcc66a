from __future__ import annotations

import networkx as nx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from corrkd.data.groups import GROUPS, dependent_samples

NAMES = st.sampled_from(["", "a", "b", "c", "d", "e"])


def partition(members: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(members == name).tolist()) for name in np.unique(members)}


@settings(deadline=None)
@given(st.lists(st.fixed_dictionaries(dict.fromkeys(GROUPS, NAMES)), min_size=1, max_size=25))
def test_groups_are_the_connected_components(rows: list[dict[str, str]]) -> None:
    groups = {kind: np.array([row[kind] for row in rows]) for kind in GROUPS}
    members = dependent_samples(np.array([f"s{i}" for i in range(len(rows))]), groups)[1]
    graph = nx.Graph()
    graph.add_nodes_from(range(len(rows)))
    for i, row in enumerate(rows):
        graph.add_edges_from((i, (kind, row[kind])) for kind in GROUPS if row[kind])
    expected = {
        frozenset(node for node in component if isinstance(node, int))
        for component in nx.connected_components(graph)
    }
    assert partition(members) == expected - {frozenset()}


def test_two_speakers_of_a_session_depend_on_each_other() -> None:
    ids = np.array(["s1", "s2", "s3", "s4", "s5"])
    speaker = np.array(["Ses01F", "Ses01M", "Ses01F", "Ses02F", "Ses02M"])
    session = np.array(["Ses01", "Ses01", "Ses01", "Ses02", "Ses02"])
    kind, members = dependent_samples(ids, {"speaker": speaker, "session": session})
    assert kind == "session"
    assert members.tolist() == session.tolist()


def test_a_person_over_two_sessions_with_two_people_each() -> None:
    ids = np.array(["s1", "s2", "s3", "s4", "s5"])
    person = np.array(["ann", "bob", "ann", "cyd", "dan"])
    session = np.array(["one", "one", "two", "two", "three"])
    kind, members = dependent_samples(ids, {"person": person, "session": session})
    assert kind == "person and session"
    assert partition(members) == {frozenset({0, 1, 2, 3}), frozenset({4})}


def test_groups_of_one_kind_keep_their_names_and_samples_without_groups_their_ids() -> None:
    ids = np.array(["s1", "s2", "s3"])
    video = np.array(["v", "v", "w"])
    kind, members = dependent_samples(ids, {"video": video})
    assert (kind, members.tolist()) == ("video", ["v", "v", "w"])
    assert dependent_samples(ids, {})[0] == "sample"
    kind, members = dependent_samples(ids, {"speaker": np.array(["", "", ""])})
    assert (kind, members.tolist()) == ("sample", ids.tolist())
