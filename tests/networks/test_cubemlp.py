from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from corrkd.data.inputs import Inputs
from corrkd.networks.cubemlp import CubeMLPBlock, CubeMLPNetwork, CubeMLPSettings, MixingUnit
from corrkd.networks.recurrent import FrameLSTM
from corrkd.targets.base import Target
from tests.conftest import CLASSES, QUESTIONS, SCORE, map_tensors, overwrite_invisible

AXES = {1: "nlmd,hl->nhmd", 2: "nlmd,hm->nlhd", 3: "nlmd,hd->nlmh"}
FOUR = {"language": 7, "audio": 3, "vision": 5, "heart.rate": 2}


def network(names: int = 4, target: Target = CLASSES) -> CubeMLPNetwork:
    torch.manual_seed(0)
    widths = dict(list(FOUR.items())[:names])
    lengths = {m: 4 + index for index, m in enumerate(widths)}
    options = CubeMLPSettings(
        channels=6, hidden=((5, 2, 8), (3, 2, 4)), shapes=((7, 3, 6), (4, 4, 5))
    )
    return CubeMLPNetwork(widths, lengths, target=target, settings=options).eval()


def inputs(model: CubeMLPNetwork, count: int = 5) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    frames, exists, visible = {}, {}, {}
    for index, m in enumerate(model.modalities):
        T = 4 + index
        frames[m] = torch.randn(count, T, FOUR[m], generator=generator)
        exists[m] = torch.arange(T)[None] < torch.randint(1, T + 1, (count, 1), generator=generator)
        visible[m] = exists[m] & (torch.rand(count, T, generator=generator) < 0.7)
    return Inputs(frames, exists, visible)


def by_einsum(unit: MixingUnit, cube: Tensor) -> Tensor:
    """Compute the unit with einsum instead of layers."""
    spec = AXES[unit.axis]
    shape = [1, 1, 1, 1]
    shape[unit.axis] = -1
    normed = cube
    if cube.shape[unit.axis] > 3:
        mean, variance = cube.mean(unit.axis, True), cube.var(unit.axis, False, True)
        normed = (cube - mean) / (variance + 1e-5).sqrt() * unit.norm.weight.view(
            shape
        ) + unit.norm.bias.view(shape)
    hidden = gelu(torch.einsum(spec, normed, unit.first.weight) + unit.first.bias.view(shape))
    mixed = torch.einsum(spec, hidden, unit.second.weight) + unit.second.bias.view(shape)
    linear = isinstance(unit.shortcut, nn.Linear)
    return mixed + (torch.einsum(spec, cube, unit.shortcut.weight) if linear else cube)


@given(st.tuples(*[st.integers(1, 6)] * 9), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_mixing_matches_an_einsum_along_each_axis(sizes: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    block = CubeMLPBlock(sizes[:3], sizes[3:6], sizes[6:], dropout=0.0).double()
    cube = torch.randn(2, *sizes[:3], dtype=torch.float64)
    expected = cube
    for unit in (block.sequence, block.modality, block.channel):
        for parameter in unit.parameters():
            nn.init.normal_(parameter)
        expected = by_einsum(unit, expected)
    # Norms of nearly equal numbers magnify rounding.
    assert torch.allclose(block(cube), expected, rtol=1e-5, atol=1e-6)
    assert block(cube).shape == (2, *sizes[6:])


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_unit_mixes_only_its_axis(axis: int) -> None:
    torch.manual_seed(0)
    unit = MixingUnit(axis, 4, 5, 4, 0.0)
    cube = torch.randn(2, 4, 4, 4)
    other = cube.clone()
    other[0, 1, 2, 3] += 1.0
    changed = (unit(cube) != unit(other)).nonzero()
    lines = {1: (2, 3), 2: (1, 3), 3: (1, 2)}[axis]
    at = (0, 1, 2, 3)
    assert len(changed) == 4
    assert all(row[0] == 0 and all(row[a] == at[a] for a in lines) for row in changed)


@pytest.mark.parametrize("unit", ["sequence", "modality", "channel"])
@pytest.mark.parametrize("layer", ["first", "second"])
def test_every_unit_affects_the_output(unit: str, layer: str) -> None:
    model = network()
    data = inputs(model)
    before = model(data).logits
    for parameter in getattr(getattr(model.blocks[0], unit), layer).parameters():
        nn.init.zeros_(parameter)
    assert not torch.allclose(before, model(data).logits, atol=1e-4)


@pytest.mark.parametrize("layer", ["shortcut", "norm"])
def test_shortcuts_and_norms_affect_the_output(layer: str) -> None:
    model = network()
    data = inputs(model)
    before = model(data).logits

    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (
                x
                if layer == "norm"
                else torch.zeros(*x.shape[:-1], model.blocks[1].sequence.second.out_features)
            )

    setattr(model.blocks[1].sequence, layer, Zero())
    assert not torch.allclose(before, model(data).logits, atol=1e-4)


def test_frames_are_normed_and_rectified_and_padding_is_zero() -> None:
    model = network()
    data = inputs(model)
    cube = model.cube(data)
    for index, m in enumerate(model.modalities):
        states = model.encoders[index](*data.of(m))
        expected = (states - states.mean(-1, True)) / (states.var(-1, False, True) + 1e-5).sqrt()
        expected = expected.clamp(min=0) * data.exists[m][..., None]
        assert torch.allclose(cube[:, : states.shape[1], index], expected, atol=1e-5)
        assert not cube[:, states.shape[1] :, index].any()


def test_a_wide_cube_is_read_through_a_hidden_layer() -> None:
    wide = CubeMLPNetwork({"a": 3, "b": 2}, {"a": 4, "b": 4}, target=CLASSES)
    assert [x.weight.shape for x in wide.classifier if isinstance(x, nn.Linear)] == [
        (128, 6 * 3 * 16),
        (3, 128),
    ]
    assert [x.weight.shape for x in network().classifier if isinstance(x, nn.Linear)] == [
        (3, 4 * 4 * 5)
    ]


@pytest.mark.parametrize("names", [2, 4])
@pytest.mark.parametrize(("target", "shape"), [(CLASSES, (3,)), (QUESTIONS, (4, 2)), (SCORE, (1,))])
def test_shapes(names: int, target: Target, shape: tuple[int, ...]) -> None:
    model = network(names, target)
    output = model(inputs(model))
    assert output.representation.shape == (5, 4 * 4 * 5)
    assert output.logits.shape == (5, *shape)
    assert output.logits.isfinite().all()
    empty = map_tensors(lambda x: x[:0], inputs(model))
    assert model(empty).logits.shape == (0, *shape)


def test_padding_and_invisible_frames_change_nothing_and_visible_ones_do() -> None:
    model = network()
    data = inputs(model)
    before = model(data).logits
    assert torch.equal(before, model(overwrite_invisible(data, torch.nan)).logits)
    longer = map_tensors(lambda x: pad(x, (0, 0, 0, 5) if x.ndim == 3 else (0, 5)), data)
    assert torch.allclose(before, model(longer).logits, atol=1e-6)
    for m in model.modalities:
        changed = data._replace(frames={**data.frames, m: data.frames[m] + 1.0})
        assert not torch.allclose(before, model(changed).logits, atol=1e-5)


def test_the_last_state_is_that_of_each_samples_last_frame() -> None:
    torch.manual_seed(0)
    lstm = FrameLSTM(3, 4)
    frames, exists = torch.randn(3, 5, 3), torch.arange(5)[None] < torch.tensor([[5], [2], [0]])
    last = lstm.last(frames, exists, exists)
    assert torch.allclose(last[1], lstm.lstm(frames[1:2, :2])[0][0, -1], atol=1e-6)
    assert torch.allclose(last[0], lstm.lstm(frames[:1])[0][0, -1], atol=1e-6)
    assert not last[2].any()
