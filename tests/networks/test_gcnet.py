"""GCNet's graphs, compared with small conversations by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corrkd.data.batches import Context, whole_conversations
from corrkd.data.inputs import Inputs
from corrkd.networks.gcnet import (
    GCNetSettings,
    GCNetwork,
    RelationalConvolution,
    arrange,
    neighbours,
    speaker_relations,
    temporal_relations,
)
from corrkd.targets.base import Target
from corrkd.targets.questions import QuestionsTarget
from tests.conftest import CLASSES, SCORE, map_tensors, overwrite_invisible

SMALL = GCNetSettings(width=8, heads=2, dropout=0.0)
THREE = {"language": (5, 6), "audio": (3, 4), "vision": (4, 5)}
TWO = {"a": (3, 2), "b.c": (2, 7)}
FOUR = {**TWO, "d": (4, 1), "e": (1, 3)}


def network(shapes: dict[str, tuple[int, int]] = THREE, target: Target = CLASSES) -> GCNetwork:
    torch.manual_seed(0)
    widths, frames = {m: w for m, (w, _) in shapes.items()}, {m: t for m, (_, t) in shapes.items()}
    return GCNetwork(widths, frames, target=target, settings=SMALL).eval()


def batch(shapes: dict[str, tuple[int, int]] = THREE, count: int = 7, seed: int = 1) -> Inputs:
    torch.manual_seed(seed)
    frames = {m: torch.randn(count, t, w) for m, (w, t) in shapes.items()}
    exists = {
        m: torch.arange(t) < torch.randint(1, t + 1, (count, 1)) for m, (_, t) in shapes.items()
    }
    return Inputs(frames, exists, {m: e & (torch.rand(e.shape) < 0.7) for m, e in exists.items()})


def context(
    conversation: list[int], position: list[int] | None = None, speaker: list[int] | None = None
) -> Context:
    count = len(conversation)
    return Context(
        torch.arange(count),
        torch.tensor(conversation),
        torch.tensor(position or [0] * count),
        torch.tensor(speaker or [0] * count),
    )


TALK = context([4, 9, 4, 4, 9, 4, 2], [3, 1, 0, 1, 0, 2, 5], [7, 7, 7, 3, 7, 3, 1])


@pytest.mark.parametrize("shapes", [TWO, FOUR], ids=["two", "four"])
@pytest.mark.parametrize(
    ("target", "shape"),
    [(CLASSES, (3,)), (QuestionsTarget.with_questions(2), (2, 2)), (SCORE, (1,))],
)
def test_shapes(shapes: dict[str, tuple[int, int]], target: Target, shape: tuple[int, ...]) -> None:
    net = network(shapes, target)
    representation, logits = net(batch(shapes), TALK)
    assert representation.shape == (7, 8)
    assert logits.shape == (7, *shape)
    assert {m: tuple(x.shape) for m, x in net.restore(representation).items()} == {
        m: (7, w) for m, (w, _) in shapes.items()
    }


def test_padding_and_invisible_frames_change_nothing() -> None:
    net, inputs = network(), batch()
    other = overwrite_invisible(inputs, 1e3)
    expected = net(inputs, TALK).logits
    assert torch.equal(net(other, TALK).logits, expected)

    def padded(x: Tensor) -> Tensor:
        return torch.cat(
            [x, torch.zeros(7, 3, dtype=x.dtype) if x.ndim == 2 else torch.randn(7, 3, x.shape[2])],
            1,
        )

    torch.testing.assert_close(net(map_tensors(padded, other), TALK).logits, expected)


def test_everything_invisible_is_finite() -> None:
    inputs = batch()
    nothing = {m: v & False for m, v in inputs.visible.items()}
    assert network()(inputs._replace(visible=nothing), TALK).logits.isfinite().all()


def test_without_context_every_sample_is_a_separate_conversation() -> None:
    net, inputs = network(), batch()
    expected = net(inputs).logits
    torch.testing.assert_close(expected, net(inputs, context(list(range(7)))).logits)
    for i in range(7):
        single = map_tensors(lambda x, i=i: x[i : i + 1], inputs)
        torch.testing.assert_close(net(single).logits, expected[i : i + 1])


def test_utterances_depend_only_on_their_conversation() -> None:
    net, inputs = network(), batch()
    full = inputs._replace(visible=inputs.exists)
    changed = {m: x.index_fill(0, torch.tensor([3]), 2.0) for m, x in full.frames.items()}
    differs = (net(full._replace(frames=changed), TALK).logits - net(full, TALK).logits).abs()
    same = torch.tensor(TALK.conversation.tolist()) == 4
    assert (differs.sum(1)[same] > 1e-6).all()
    assert (differs.sum(1)[~same] == 0).all()


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(7)))
def test_the_order_of_the_batch_does_not_matter(order: list[int]) -> None:
    net, inputs, rows = network(), batch(), torch.tensor(order)
    moved = map_tensors(lambda x: x[rows], inputs)
    shuffled = net(moved, Context(*(x[rows] for x in TALK))).logits
    torch.testing.assert_close(shuffled, net(inputs, TALK).logits[rows], atol=1e-6, rtol=1e-5)


def test_layout_sorts_by_position_and_numbers_speakers_by_appearance() -> None:
    layout = arrange(TALK)
    assert layout.lengths.tolist() == [1, 4, 2]
    grid = layout.grid(torch.arange(7.0)[:, None])
    assert grid[1, :, 0].tolist() == [
        2,
        3,
        5,
        0,
    ]  # rows of conversation 4 in the order of their positions
    assert grid[2, :2, 0].tolist() == [4, 1]
    assert layout.speaker[1].tolist() == [0, 1, 1, 0]  # 7, 3, 3, 7
    assert layout.rows(grid)[:, 0].tolist() == list(range(7))


def test_edges_are_within_the_window_and_of_the_right_kind() -> None:
    """With past = 1 and future = 2, edges come from two utterances before and from one after."""
    options = GCNetSettings(past=1, future=2, width=8, heads=2)
    layout = arrange(context([0] * 4 + [1], [0, 1, 2, 3, 0], [5, 6, 6, 5, 5]))
    temporal = temporal_relations(layout, options)
    speaker = speaker_relations(layout, options)
    speakers = [0, 1, 1, 0]
    for i in range(4):
        for column, offset in enumerate(range(-2, 2)):
            exists = 0 <= i + offset < 4
            kind = 0 if offset < 0 else 1 if offset == 0 else 2
            assert temporal[0, i, column].tolist() == [exists and k == kind for k in range(3)]
            pair = speakers[i + offset] * 2 + speakers[i] if exists else -1
            assert speaker[0, i, column].tolist() == [k == pair for k in range(4)]
    assert temporal[1, 0].sum() == 1  # alone in its conversation
    assert not temporal[1, 1:].any()


def test_relational_convolution_is_its_sum_by_hand() -> None:
    torch.manual_seed(3)
    layout, hidden = arrange(context([0] * 5, list(range(5)))), torch.randn(1, 5, 8)
    relations = temporal_relations(layout, SMALL)
    convolution = RelationalConvolution(8, 3)
    out = convolution(hidden, neighbours(hidden, SMALL), relations)
    for i in range(5):
        expected = convolution.own(hidden[0, i])
        for kind, where in enumerate([range(max(0, i - 2), i), [i], range(i + 1, min(5, i + 3))]):
            if len(where):
                expected = expected + hidden[0, list(where)].mean(0) @ convolution.weight[kind]
        torch.testing.assert_close(out[0, i], expected)


@pytest.mark.parametrize(
    "name",
    [
        f"{branch}.{layer}"
        for branch in ("speaker", "temporal")
        for layer in ("relational", "convolution", "after")
    ]
    + ["encoders.0", "encoders.2", "before", "speaker", "temporal", "classifier"],
)
def test_no_component_is_idle(name: str) -> None:
    net, inputs = network(), batch()
    before = net(inputs, TALK).logits
    with torch.no_grad():
        for parameter in net.get_submodule(name).parameters():
            parameter.zero_()
    assert not torch.allclose(net(inputs, TALK).logits, before)


def test_no_activation_between_and_after_the_convolutions() -> None:
    """The last LSTM's input is affine in the graph's."""
    net, layout, recorded = network(), arrange(TALK), []
    net.temporal.after.register_forward_pre_hook(lambda _, args: recorded.append(args[0][..., 8:]))
    hidden, edges = torch.randn(*layout.exists.shape, 8), temporal_relations(layout, SMALL)
    for factor in (0.0, 1.0, -1.0):
        net.temporal(factor * hidden, layout, edges)
    torch.testing.assert_close(recorded[1] - recorded[0], recorded[0] - recorded[2])
    assert not torch.allclose(recorded[1], recorded[0])


def test_speakers_and_positions_matter() -> None:
    net, inputs = network(), batch()
    before = net(inputs, TALK).logits
    assert not torch.allclose(
        net(inputs, TALK._replace(speaker=torch.zeros(7, dtype=torch.int64))).logits, before
    )
    assert not torch.allclose(net(inputs, TALK._replace(position=-TALK.position)).logits, before)
    renamed = torch.where(TALK.speaker == 7, 70, TALK.speaker)
    assert torch.equal(net(inputs, TALK._replace(speaker=renamed)).logits, before)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 12), st.integers(0, 99))
def test_batches_contain_complete_conversations(numbers: list[int], size: int, seed: int) -> None:
    conversation = torch.tensor(numbers)
    batches = whole_conversations(conversation, size, torch.Generator().manual_seed(seed))
    assert torch.cat(list(batches)).sort().values.tolist() == list(range(len(numbers)))
    groups = [set(conversation[rows].tolist()) for rows in batches]
    assert sum(map(len, groups)) == len(set(numbers))
    longest = int(torch.bincount(conversation).max())
    assert all(len(rows) < size + longest for rows in batches)
    assert len(batches) <= math.ceil(len(numbers) / size)


def test_single_samples_are_batches_of_the_size() -> None:
    assert [len(rows) for rows in whole_conversations(torch.arange(10), 4)] == [4, 4, 2]


def test_every_parameter_learns() -> None:
    net, inputs = network().train(), batch()
    output = net(inputs, TALK)
    total = output.logits.square().sum() + sum(
        x.square().sum() for x in net.restore(output.representation).values()
    )
    total.backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert [name for name in idle if not name.endswith("projection.bias")] == []
