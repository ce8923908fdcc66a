"""DMD's network: the graph, the decoupling, the attention across modalities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.networks.dmd import CrossmodalAttention, DMDNetwork, DMDSettings, GraphDistillation
from corrkd.targets.base import Target
from corrkd.targets.questions import QuestionsTarget
from tests.conftest import CLASSES, SCORE, map_tensors, overwrite_invisible

SMALL = DMDSettings(width=8, heads=2, graph=5, dropout=0.0)
THREE = {"language": (5, 6), "audio": (3, 4), "vision": (4, 5)}
TWO = {"a": (3, 2), "b.c": (2, 7)}
FOUR = {**TWO, "d": (4, 1), "e": (1, 3)}


def network(shapes: dict[str, tuple[int, int]] = THREE, target: Target = CLASSES) -> DMDNetwork:
    torch.manual_seed(0)
    widths, frames = {m: w for m, (w, _) in shapes.items()}, {m: t for m, (_, t) in shapes.items()}
    return DMDNetwork(widths, frames, target=target, settings=SMALL).eval()


def batch(shapes: dict[str, tuple[int, int]] = THREE, count: int = 7, seed: int = 1) -> Inputs:
    torch.manual_seed(seed)
    frames = {m: torch.randn(count, t, w) for m, (w, t) in shapes.items()}
    exists = {
        m: torch.arange(t) < torch.randint(1, t + 1, (count, 1)) for m, (_, t) in shapes.items()
    }
    return Inputs(frames, exists, {m: e & (torch.rand(e.shape) < 0.7) for m, e in exists.items()})


@pytest.mark.parametrize("shapes", [TWO, FOUR], ids=["two", "four"])
@pytest.mark.parametrize(
    ("target", "shape"),
    [(CLASSES, (3,)), (QuestionsTarget.with_questions(2), (2, 2)), (SCORE, (1,))],
)
def test_shapes(shapes: dict[str, tuple[int, int]], target: Target, shape: tuple[int, ...]) -> None:
    net = network(shapes, target)
    representation, logits = net(batch(shapes))
    assert representation.shape == (7, net.representation_width)
    assert logits.shape == (7, *shape)


def test_a_single_modality_is_refused() -> None:
    with pytest.raises(CorrKDError, match="only a"):
        network({"a": (3, 2)})


def test_padding_and_invisible_frames_change_nothing() -> None:
    net, inputs = network(), batch()
    other = overwrite_invisible(inputs, 1e3)
    expected = net(inputs)
    assert torch.equal(net(other).logits, expected.logits)

    def padded(x: Tensor) -> Tensor:
        return torch.cat(
            [x, torch.zeros(7, 3, dtype=x.dtype) if x.ndim == 2 else torch.randn(7, 3, x.shape[2])],
            1,
        )

    torch.testing.assert_close(
        net(map_tensors(padded, other)).representation, expected.representation
    )
    nothing = {m: v & False for m, v in inputs.visible.items()}
    assert net(inputs._replace(visible=nothing)).logits.isfinite().all()


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 5), st.integers(0, 999))
def test_the_graphs_weights_sum_to_one_over_edges_between_visible_modalities(
    count: int, seed: int
) -> None:
    torch.manual_seed(seed)
    unit = GraphDistillation(6, 3, SMALL)
    seen = torch.rand(20, count) < 0.7
    edges = unit(10 * torch.randn(20, count, 6), seen).edges
    enough = seen.sum(1) > 1
    torch.testing.assert_close(edges.sum((1, 2)), enough.float())
    possible = seen[:, :, None] & seen[:, None] & ~torch.eye(count, dtype=torch.bool)
    assert torch.equal(edges > 0, possible)


def test_an_edges_weight_is_the_softmax_of_g() -> None:
    torch.manual_seed(0)
    unit, vectors = GraphDistillation(6, 2, SMALL), 5 * torch.randn(1, 3, 6)
    graph = unit(vectors, torch.ones(1, 3, dtype=torch.bool))
    views = [
        torch.cat([unit.view_logits(unit.predict(x)), unit.view_vectors(x)]) for x in vectors[0]
    ]
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    weights = torch.softmax(
        torch.cat([SMALL.scale * unit.energy(torch.cat([views[i], views[j]])) for i, j in pairs]), 0
    )
    torch.testing.assert_close(torch.stack([graph.edges[0, i, j] for i, j in pairs]), weights)
    assert not torch.allclose(graph.edges, graph.edges.transpose(1, 2))


def test_crossmodal_attention_reads_only_visible_keys() -> None:
    torch.manual_seed(0)
    attention = CrossmodalAttention(SMALL).eval()
    hidden, keys = torch.randn(2, 4, 8), torch.randn(2, 5, 8)
    seen = torch.tensor([[True, True, False, True, False], [False] * 5])
    out = attention(hidden, keys, seen)
    shorter = attention(hidden[:1], keys[:1, seen[0]], torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(out[:1], shorter)
    assert torch.equal(out[1], attention(hidden, -keys, seen)[1])
    assert not torch.allclose(out[0], attention(hidden, -keys, seen)[0])


def test_modalities_share_one_encoder_and_have_a_private_one_each() -> None:
    net, inputs = network(), batch()
    before = net.details(inputs).parts
    with torch.no_grad():
        net.decouplers[0].private_encoder.weight.zero_()
    after = net.details(inputs).parts
    assert not torch.allclose(after["language"].private, before["language"].private)
    assert all(torch.equal(after[m].private, before[m].private) for m in ("audio", "vision"))
    assert all(torch.equal(after[m].shared, before[m].shared) for m in THREE)
    with torch.no_grad():
        net.shared_encoder.weight.zero_()
    last = net.details(inputs).parts
    assert not any(torch.allclose(last[m].shared, before[m].shared) for m in THREE)


@pytest.mark.parametrize(
    "name",
    [
        "decouplers.0.embed",
        "decouplers.1.private_encoder",
        "shared_encoder",
        "crossmodal.0",
        "crossmodal.1.memory",
        "crossmodal.2.crossmodal.0",
        "shared_attention",
        "gate",
        "classifier",
    ],
)
def test_no_component_of_the_output_is_idle(name: str) -> None:
    net, inputs = network(), batch()
    before = net(inputs).logits
    with torch.no_grad():
        for parameter in net.get_submodule(name).parameters():
            parameter.zero_()
    assert not torch.allclose(net(inputs).logits, before)


def test_a_process_may_have_no_sample() -> None:
    details = network().details(map_tensors(lambda x: x[:0], batch()))
    assert details.output.logits.shape == (0, 3)
    assert details.private.edges.shape == (0, 3, 3)
