from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

from corrkd.data.inputs import Inputs
from corrkd.networks.self_mm import SelfMMNetwork, SelfMMSettings
from corrkd.targets.base import Target
from tests.conftest import CLASSES, QUESTIONS, SCORE, map_tensors, overwrite_invisible

FOUR = {"language": 7, "audio": 3, "vision": 5, "heart.rate": 2}
KINDS = [(CLASSES, (3,)), (QUESTIONS, (4, 2)), (SCORE, (1,))]


def network(names: int = 4, target: Target = CLASSES) -> SelfMMNetwork:
    torch.manual_seed(0)
    widths = dict(list(FOUR.items())[:names])
    lengths = {m: 4 + index for index, m in enumerate(widths)}
    settings = SelfMMSettings(width=6, unimodal=5, fusion=8)
    return SelfMMNetwork(widths, lengths, target=target, settings=settings).eval()


def inputs(model: SelfMMNetwork, count: int = 5) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    frames, exists, visible = {}, {}, {}
    for index, m in enumerate(model.modalities):
        T = 4 + index
        frames[m] = torch.randn(count, T, FOUR[m], generator=generator)
        exists[m] = torch.arange(T)[None] < torch.randint(1, T + 1, (count, 1), generator=generator)
        visible[m] = exists[m] & (torch.rand(count, T, generator=generator) < 0.7)
    return Inputs(frames, exists, visible)


@pytest.mark.parametrize("names", [2, 4])
@pytest.mark.parametrize(("target", "shape"), KINDS)
def test_shapes(names: int, target: Target, shape: tuple[int, ...]) -> None:
    model = network(names, target)
    fused, unimodal = model.tasks(inputs(model))
    assert fused.representation.shape == (5, 8)
    assert len(unimodal) == names
    assert all(
        output.representation.shape == (5, 5) and output.logits.shape == (5, *shape)
        for output in unimodal
    )
    assert fused.logits.shape == (5, *shape)
    assert torch.equal(fused.logits, model(inputs(model)).logits)
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


def test_a_unimodal_task_depends_only_on_its_modality() -> None:
    model = network()
    data = inputs(model)
    _, before = model.tasks(data)
    _, after = model.tasks(
        data._replace(frames={**data.frames, "audio": data.frames["audio"] + 1.0})
    )
    same = [torch.equal(a.logits, b.logits) for a, b in zip(before, after, strict=True)]
    assert same == [True, False, True, True]


@pytest.mark.parametrize("component", ["fuse", "head", "encoders", "projections", "unimodal_heads"])
def test_each_component_changes_the_output(component: str) -> None:
    model = network()
    data = inputs(model)
    fused, outputs = model.tasks(data)
    for parameter in getattr(model, component).parameters():
        nn.init.zeros_(parameter)
    fused_after, outputs_after = model.tasks(data)
    multimodal = not torch.allclose(fused.logits, fused_after.logits, atol=1e-4)
    unimodal = not all(
        torch.allclose(a.logits, b.logits, atol=1e-4)
        for a, b in zip(outputs, outputs_after, strict=True)
    )
    assert multimodal == (component in ("fuse", "head", "encoders"))
    assert unimodal == (component in ("projections", "unimodal_heads", "encoders"))
