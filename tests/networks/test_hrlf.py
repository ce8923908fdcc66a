"""HRLF's network: the last frame, the factors, the refinement and its scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from corrkd.data.inputs import Inputs
from corrkd.networks.encoder import last
from corrkd.networks.hrlf import HRLFNetwork, HRLFSettings
from corrkd.targets.base import Target
from corrkd.targets.questions import QuestionsTarget
from tests.conftest import CLASSES, SCORE, map_tensors, overwrite_invisible

SMALL = {
    "width": 8,
    "heads": 2,
    "feedforward": 16,
    "layers": 1,
    "classifier": (6,),
    "factor_hidden": 7,
    "dropout": 0.0,
}
THREE = {"language": (5, 6), "audio": (3, 4), "vision": (4, 5)}
ONE = {"b.c": (3, 2)}
FOUR = {"a": (3, 2), "b.c": (2, 7), "d": (4, 1), "e": (1, 3)}
LAYERS = [
    "encoders.0",
    "encoders.2",
    "relevant_encoders.1",
    "specific_encoders.0",
    "refinement.0",
    "refinement.3",
]


def network(
    shapes: dict[str, tuple[int, int]] = THREE, target: Target = CLASSES, **options: Any
) -> HRLFNetwork:
    torch.manual_seed(0)
    widths, frames = {m: w for m, (w, _) in shapes.items()}, {m: t for m, (_, t) in shapes.items()}
    return HRLFNetwork(
        widths, frames, target=target, settings=HRLFSettings(**{**SMALL, **options})
    ).eval()


def batch(shapes: dict[str, tuple[int, int]] = THREE, count: int = 7, seed: int = 1) -> Inputs:
    torch.manual_seed(seed)
    frames = {m: torch.randn(count, t, w) for m, (w, t) in shapes.items()}
    exists = {
        m: torch.arange(t) < torch.randint(1, t + 1, (count, 1)) for m, (_, t) in shapes.items()
    }
    return Inputs(frames, exists, {m: e & (torch.rand(e.shape) < 0.7) for m, e in exists.items()})


@pytest.mark.parametrize("shapes", [ONE, THREE, FOUR], ids=["one", "three", "four"])
@pytest.mark.parametrize(
    ("target", "shape"),
    [(CLASSES, (3,)), (QuestionsTarget.with_questions(2), (2, 2)), (SCORE, (1,))],
)
def test_shapes(shapes: dict[str, tuple[int, int]], target: Target, shape: tuple[int, ...]) -> None:
    net, n = network(shapes, target), len(shapes)
    details = net.details(batch(shapes))
    assert details.output.representation.shape == (7, net.representation_width)
    assert details.output.logits.shape == (7, *shape)
    assert details.encoded.shape == (7, n, 8)
    assert [x.shape for x in net.factorise(details.encoded)] == [(7, n, 4)] * 2
    assert [x.shape for x in net.factors(details.encoded)] == [
        (7, n, 8),
        (7, n, n, 8),
        (7, n, 4),
        (7, n, n, 4),
    ]


def test_sizes_are_the_papers() -> None:
    """With three modalities 3d, 2d, d, 2d, 3d; E_1 and E_2 contain two of each."""
    net = network()
    assert [layer.out_features for layer in net.refinement] == [16, 8, 16, 24]
    assert net.scales == (48, 32, 8)
    assert network(scales="summed").scales == (24, 16, 8)
    assert HRLFSettings().width == 40


def test_scales_join_features_of_equal_width() -> None:
    joined, summed, inputs = network(), network(scales="summed"), batch()
    details = joined.details(inputs)
    relevant, specific = joined.factorise(details.encoded)
    joint = torch.cat(
        [x for pair in zip(relevant.unbind(1), specific.unbind(1), strict=True) for x in pair], 1
    )
    first, second, third, refined = joined.refine(joint)
    expected = torch.cat([joint, refined, first, third, second], 1)
    assert torch.equal(details.output.representation, expected)
    expected = torch.cat([joint + refined, first + third, second], 1)
    assert torch.equal(summed(inputs).representation, expected)
    assert torch.equal(joined.classify(refined), details.output.logits)


def test_the_factors_are_decoded_in_all_pairs() -> None:
    """Z_ab from the sentiment-relevant factor of a and the specific one of b; Q_ba by the encoder
    of a.
    """
    for sharing in ("modality", "shared"):
        net = network(sentiment_encoder=sharing)
        encoded = net.details(batch()).encoded
        factors = net.factors(encoded)
        relevant, specific = net.factorise(encoded)
        for a in range(3):
            for b in range(3):
                z = net.decoder(torch.cat([relevant[:, a], specific[:, b]], 1))
                torch.testing.assert_close(factors.decoded[:, a, b], z)
                q = net.relevant_encoders[b if sharing == "modality" else 0](z)
                torch.testing.assert_close(factors.recovered[:, a, b], q)
        assert torch.equal(factors.encoded, encoded)
        assert torch.equal(factors.relevant, relevant)


def test_last_is_the_last_attended_frame() -> None:
    hidden = torch.randn(4, 5, 3)
    attended = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 0, 1], [0, 1, 1, 1, 0], [0] * 5]).bool()
    expected = torch.stack([hidden[0, 1], hidden[1, 4], hidden[2, 3], torch.zeros(3)])
    assert torch.equal(last(hidden, attended), expected)
    assert torch.equal(vmap(last)(hidden[:, None], attended[:, None])[:, 0], expected)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("exclude_missing", [False, True])
def test_padding_and_invisible_frames_change_nothing(pooling: str, exclude_missing: bool) -> None:
    net, inputs = network(pooling=pooling, exclude_missing=exclude_missing), batch()
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


def test_a_missing_modality_is_read_as_zeros_of_its_canonical_length() -> None:
    net, inputs = network(), batch()
    lengths = {"language": 4, "audio": 2, "vision": 3}
    missing = inputs.without("audio").with_lengths(lengths)
    zeros = net.encoders[1].encode(
        torch.zeros(1, 2, 3), *(torch.ones(1, 2, dtype=torch.bool),) * 2
    )[0][:, -1]
    torch.testing.assert_close(net.details(missing).encoded[:, 1], zeros.expand(7, -1))
    assert torch.equal(
        net.details(missing).encoded[:, 0], net.details(inputs.with_lengths(lengths)).encoded[:, 0]
    )


def test_pooling_covers_existing_frames() -> None:
    inputs = batch()
    for pooling in ("last", "mean"):
        net = network(pooling=pooling)
        encoded = net.details(inputs).encoded
        for index, m in enumerate(THREE):
            frames, exists, visible = inputs.of(m)
            for row in range(7):
                length = int(exists[row].sum())
                hidden, _ = net.encoders[index].encode(
                    *(x[row : row + 1, :length] for x in (frames, exists, visible))
                )
                expected = hidden[0, -1] if pooling == "last" else hidden[0].mean(0)
                torch.testing.assert_close(encoded[row, index], expected)


@pytest.mark.parametrize("name", [*LAYERS, "classifier"])
def test_no_component_of_the_output_is_idle(name: str) -> None:
    net, inputs = network(), batch()
    before = net(inputs)
    with torch.no_grad():
        for parameter in net.get_submodule(name).parameters():
            parameter.zero_()
    assert not torch.allclose(net(inputs).logits, before.logits)


def test_every_parameter_gets_a_gradient() -> None:
    net = network()
    details = net.details(batch())
    loss = details.output.logits.square().sum() + sum(
        x.square().sum() for x in net.factors(details.encoded)
    )
    loss.backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_stacked_networks_match_separate_ones() -> None:
    nets, inputs = [network() for _ in range(2)], batch()
    for parameter in nets[1].parameters():
        parameter.data.mul_(1.5)
    parameters, buffers = stack_module_state(nets)

    def represent(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return functional_call(nets[0], {**parameters, **buffers}, (inputs,)).representation

    together = vmap(represent)(parameters, buffers)
    torch.testing.assert_close(together, torch.stack([net(inputs).representation for net in nets]))


def test_a_process_may_have_no_sample() -> None:
    details = network().details(map_tensors(lambda x: x[:0], batch()))
    assert details.output.logits.shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 5, "heads": 5}, "width = 5 must be even"),
        ({"heads": 3}, "heads = 3 must divide width = 8"),
    ],
)
def test_incompatible_widths_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HRLFSettings(**{**SMALL, **options})


def test_fill_and_learned_positions() -> None:
    net = network(fill="mean", positions="learned")
    net.set_fill({m: [0.5] * w for m, (w, _) in THREE.items()})
    assert all(bool((encoder.fill == 0.5).all()) for encoder in net.encoders)
    assert net.longest({"audio": 4}) == {"audio": 4}
    assert network().longest({"audio": 4}) == {}
