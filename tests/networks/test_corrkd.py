from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from corrkd.data.inputs import Inputs
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.networks.encoder import Dropout, EncoderLayer, TemporalConvolution, pool, sinusoids
from corrkd.settings import NetworkSettings
from corrkd.targets.base import Target
from tests.conftest import CLASSES, QUESTIONS, SCORE, map_tensors, overwrite_invisible

WIDTHS = {"language": 7, "audio": 3, "vision": 5}
FRAMES = {"language": 6, "audio": 9, "vision": 1}


def network(target: Target = CLASSES, **changes: object) -> CorrKDNetwork:
    torch.manual_seed(0)
    options = NetworkSettings(
        **{"width": 8, "heads": 4, "feedforward": 16, "layers": 2, "classifier": (5,), **changes}
    )  # type: ignore[arg-type]
    return CorrKDNetwork(WIDTHS, FRAMES, target=target, settings=options).eval()


def make_inputs(count: int = 4, seed: int = 0, extra: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    frames = {
        m: torch.randn(count, FRAMES[m] + extra, width, generator=generator)
        for m, width in WIDTHS.items()
    }
    exists = {}
    for m in WIDTHS:
        lengths = torch.randint(1, FRAMES[m] + 1, (count, 1), generator=generator)
        exists[m] = torch.arange(FRAMES[m] + extra)[None] < lengths
    visible = {
        m: exists[m] & (torch.rand(exists[m].shape, generator=generator) < 0.6) for m in WIDTHS
    }
    return Inputs(frames, exists, visible)


@pytest.mark.parametrize(
    ("target", "shape"), [(CLASSES, (4, 3)), (QUESTIONS, (4, 4, 2)), (SCORE, (4, 1))]
)
def test_shapes(target: Target, shape: tuple[int, ...]) -> None:
    out = network(target)(make_inputs())
    assert out.logits.shape == shape
    assert out.representation.shape == (4, 24)


@pytest.mark.parametrize("fill", ["zeros", "mean", "learned"])
@pytest.mark.parametrize("exclude", [False, True])
def test_padding_and_invisible_frames_change_nothing(fill: str, exclude: bool) -> None:
    net = network(fill=fill, exclude_missing=exclude)
    if fill != "zeros":
        net.set_fill({m: torch.randn(w) for m, w in WIDTHS.items()})
    inputs = make_inputs()
    first = net(inputs)
    assert torch.equal(net(overwrite_invisible(inputs, 1e6)).logits, first.logits)

    # Two more frames of padding.
    def padded(x: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [x, torch.ones_like(x[:, :1]).repeat_interleave(2, 1) * (x.dtype != torch.bool)], 1
        )

    assert torch.allclose(net(map_tensors(padded, inputs)).logits, first.logits, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    net = network()
    inputs = make_inputs(6)
    expected = net(inputs).logits
    rows = torch.tensor([4, 1])
    subset = net(map_tensors(lambda x: x[rows], inputs)).logits
    assert torch.allclose(subset, expected[rows], atol=1e-5)


def test_missing_differs_from_padding() -> None:
    """A missing frame is read as its fill (the paper's zeros); padding is not read."""
    net = network()
    frames, exists, _ = make_inputs()
    prefix = {m: e.clone() for m, e in exists.items()}
    exists = {m: torch.ones_like(e) for m, e in exists.items()}
    shorter = net(Inputs(frames, prefix, prefix)).logits
    missing = net(Inputs(frames, exists, prefix)).logits
    assert not torch.allclose(shorter, missing, atol=1e-3)


def test_excluded_missing_frames_equal_absent_frames() -> None:
    """Holds at the end of a sample, where a kernel of one frame does not reach."""
    net = network(exclude_missing=True, kernel=1)
    frames, exists, _ = make_inputs()
    everything = {m: torch.ones_like(e) for m, e in exists.items()}
    excluded, absent = (net(Inputs(frames, e, exists)).logits for e in (everything, exists))
    assert torch.allclose(excluded, absent, atol=1e-6)


@pytest.mark.parametrize("exclude", [False, True])
def test_everything_missing_is_finite(exclude: bool) -> None:
    net = network(exclude_missing=exclude)
    frames, exists, _ = make_inputs()
    nothing = {m: torch.zeros_like(e) for m, e in exists.items()}
    out = net(Inputs(frames, exists, nothing))
    out.logits.sum().backward()
    assert torch.isfinite(out.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    if exclude:
        assert out.representation.abs().max() == 0


def test_each_section_of_the_representation_depends_on_one_modality() -> None:
    net = network()
    inputs = make_inputs()
    first = net(inputs).representation
    changed = net(
        inputs._replace(frames={**inputs.frames, "audio": inputs.frames["audio"] + 1})
    ).representation
    assert torch.equal(first[:, :8], changed[:, :8])
    assert torch.equal(first[:, 16:], changed[:, 16:])
    assert not torch.equal(first[:, 8:16], changed[:, 8:16])


@given(st.integers(1, 4), st.integers(1, 7), st.sampled_from([1, 3, 5]))
@settings(deadline=None, max_examples=25)
def test_the_convolution_matches_torch(count: int, frames: int, kernel: int) -> None:
    torch.manual_seed(count)
    ours, theirs = TemporalConvolution(3, 4, kernel), nn.Conv1d(3, 4, kernel, padding=kernel // 2)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight.permute(2, 1, 0))
        theirs.bias.copy_(ours.bias)
    x = torch.randn(count, frames, 3)
    assert torch.allclose(ours(x), theirs(x.transpose(1, 2)).transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_layer_matches_torch(norm: str) -> None:
    torch.manual_seed(0)
    options = NetworkSettings(width=8, heads=4, feedforward=16, norm=norm, dropout=0.0)  # type: ignore[arg-type]
    ours = EncoderLayer(options)
    theirs = nn.TransformerEncoderLayer(8, 4, 16, 0.0, batch_first=True, norm_first=norm == "pre")
    pairs = {
        "self_attn.in_proj_weight": ours.projection.weight,
        "self_attn.in_proj_bias": ours.projection.bias,
        "self_attn.out_proj.weight": ours.output.weight,
        "self_attn.out_proj.bias": ours.output.bias,
        "linear1.weight": ours.expand.weight, "linear1.bias": ours.expand.bias,
        "linear2.weight": ours.contract.weight, "linear2.bias": ours.contract.bias,
    }  # fmt: skip
    theirs.load_state_dict(
        {**theirs.state_dict(), **{name: p.detach() for name, p in pairs.items()}}
    )
    x = torch.randn(3, 5, 8)
    exists = torch.arange(5)[None] < torch.tensor([[5], [3], [1]])
    bias = torch.where(exists, 0.0, -1e4)[:, None, None, :]
    expected = theirs(x, src_key_padding_mask=~exists)
    assert torch.allclose(ours(x, bias)[exists], expected[exists], atol=1e-5)


def test_pooling_is_the_mean_over_counted_frames() -> None:
    x, counts = torch.randn(2, 3, 4), torch.tensor([[True, True, False], [False, False, False]])
    assert torch.allclose(pool(x, counts)[0], x[0, :2].mean(0))
    assert pool(x, counts)[1].abs().max() == 0


def test_positions_are_as_published_and_extend_beyond_training() -> None:
    table = sinusoids(5, 8)
    for position in range(5):
        for k in range(4):
            angle = position / 10_000 ** (2 * k / 8)
            assert math.isclose(table[position, 2 * k], math.sin(angle), abs_tol=1e-6)
            assert math.isclose(table[position, 2 * k + 1], math.cos(angle), abs_tol=1e-6)
    long = make_inputs(extra=5)
    assert network()(long).logits.shape == (4, 3)
    with pytest.raises(ValueError, match="learned positions reach"):
        network(positions="learned")(long)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = Dropout(0.3).train()
    x = torch.ones(500, 401)
    out = layer(x)
    share = (out == 0).double().mean().item()
    assert abs(share - 0.3) < 4 * (0.21 / x.numel()) ** 0.5 + 1e-5
    assert np.allclose(out[out != 0], 1 / 0.7, rtol=1e-4)
    assert torch.equal(layer.eval()(x), x)
    neighbours = (out[:, 1:] == 0) & (out[:, :-1] == 0)
    assert abs(neighbours.double().mean().item() - 0.09) < 0.005


def test_the_network_can_be_traced() -> None:
    """No data-dependent control flow: torch.export accepts it."""
    net, inputs = network(), make_inputs()
    exported = torch.export.export(net, (inputs,), strict=False).module()
    assert torch.allclose(exported(inputs).logits, net(inputs).logits, atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_is_excluded_for_large_inputs(norm: str) -> None:
    net = network(norm=norm, kernel=1)
    frames, exists, visible = make_inputs()
    large = Inputs({m: 1e4 * x for m, x in frames.items()}, exists, visible)
    longer = map_tensors(lambda x: torch.cat([x, torch.zeros_like(x)], 1), large)
    assert torch.allclose(net(large).representation, net(longer).representation, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_everything_excluded_is_finite_in_half_precision(dtype: torch.dtype) -> None:
    net = network(exclude_missing=True)
    frames, exists, _ = make_inputs()
    with torch.autocast("cpu", dtype=dtype):
        out = net(Inputs(frames, exists, {m: torch.zeros_like(e) for m, e in exists.items()}))
    assert torch.isfinite(out.logits).all()
