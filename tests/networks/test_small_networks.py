"""The networks without a matching method: MLP, GRU and Perceiver."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import pad

from corrkd.data.inputs import Inputs
from corrkd.networks.base import AnyNetwork
from corrkd.networks.gru import GRUNetwork, GRUSettings
from corrkd.networks.mlp import MLPNetwork, MLPSettings
from corrkd.networks.perceiver import LatentBlock, PerceiverNetwork, PerceiverSettings
from corrkd.networks.recurrent import FrameGRU, FrameLSTM
from corrkd.targets.base import Target
from tests.conftest import CLASSES, QUESTIONS, SCORE, map_tensors, overwrite_invisible

FOUR = {"language": 7, "audio": 3, "vision": 5, "heart.rate": 2}
KINDS = {
    "mlp": (MLPNetwork, MLPSettings(width=6, hidden=(9,), classifier=(5,))),
    "gru-last": (GRUNetwork, GRUSettings(width=6, classifier=(5,))),
    "gru-mean": (GRUNetwork, GRUSettings(width=6, summary="mean", classifier=())),
    "perceiver": (
        PerceiverNetwork,
        PerceiverSettings(width=8, latents=3, heads=2, feedforward=12, layers=1),
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def network(kind: str, target: Target = CLASSES, names: int = 4) -> AnyNetwork:
    torch.manual_seed(0)
    widths = dict(list(FOUR.items())[:names])
    lengths = {m: 4 + index for index, m in enumerate(widths)}
    class_, settings = KINDS[kind]
    return class_(widths, lengths, target=target, settings=settings).eval()


def inputs(model: AnyNetwork, count: int = 5) -> Inputs:
    """Return inputs of unequal lengths with gaps; the first sample's first frames are visible."""
    generator = torch.Generator().manual_seed(1)
    frames, exists, visible = {}, {}, {}
    for index, m in enumerate(model.modalities):
        T = 4 + index
        frames[m] = torch.randn(count, T, FOUR[m], generator=generator)
        exists[m] = torch.arange(T)[None] < torch.randint(1, T + 1, (count, 1), generator=generator)
        visible[m] = exists[m] & (torch.rand(count, T, generator=generator) < 0.7)
        visible[m][0, 0] = True
    return Inputs(frames, exists, visible)


@each_kind
@pytest.mark.parametrize("names", [1, 4])
@pytest.mark.parametrize(("target", "shape"), [(CLASSES, (3,)), (QUESTIONS, (4, 2)), (SCORE, (1,))])
def test_shapes(kind: str, names: int, target: Target, shape: tuple[int, ...]) -> None:
    model = network(kind, target, names)
    output = model(inputs(model))
    assert output.representation.shape == (5, model.representation_width)
    assert output.logits.shape == (5, *shape)
    empty = map_tensors(lambda x: x[:0], inputs(model))
    assert model(empty).logits.shape == (0, *shape)


@each_kind
def test_padding_and_invisible_frames_change_nothing_and_visible_ones_do(kind: str) -> None:
    model = network(kind)
    data = inputs(model)
    before = model(data).logits
    assert torch.equal(before, model(overwrite_invisible(data, torch.nan)).logits)
    longer = map_tensors(lambda x: pad(x, (0, 0, 0, 50) if x.ndim == 3 else (0, 50)), data)
    torch.testing.assert_close(model(longer).logits, before, atol=1e-6, rtol=0)
    for m in model.modalities:
        changed = data._replace(frames={**data.frames, m: data.frames[m] + 1.0})
        assert not torch.allclose(before[0], model(changed).logits[0], atol=1e-5)


@each_kind
def test_a_sample_with_nothing_visible_is_finite_and_so_are_its_gradients(kind: str) -> None:
    model = network(kind).train()
    data = inputs(model)
    empty = Inputs(
        data.frames, data.exists, {m: torch.zeros_like(x) for m, x in data.visible.items()}
    )
    for variant in (empty, empty._replace(exists=empty.visible)):
        logits = model.eval()(variant).logits
        assert logits.isfinite().all()
        torch.testing.assert_close(logits, logits[:1].expand_as(logits), atol=1e-6, rtol=0)
    model.zero_grad()
    model.train()(empty).logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    longer = map_tensors(lambda x: pad(x, (0, 0, 0, 50) if x.ndim == 3 else (0, 50)), empty)
    torch.testing.assert_close(model.eval()(longer).logits, model(empty).logits, atol=1e-6, rtol=0)


@each_kind
def test_all_parameters_are_trained(kind: str) -> None:
    model = network(kind).train()
    model(inputs(model)).logits.square().sum().backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@pytest.mark.parametrize("kind", ["mlp", "gru-last", "gru-mean"])
def test_encode_and_classify_make_up_the_network(kind: str) -> None:
    model = network(kind)
    data = inputs(model)
    output = model(data)
    encoded = [model.encode(m, data) for m in model.modalities]
    assert torch.equal(torch.cat(encoded, 1), output.representation)
    assert torch.equal(model.classify(output.representation), output.logits)
    alone = Inputs(*({"audio": field["audio"]} for field in data))
    assert torch.equal(model.encode("audio", alone), encoded[1])


def test_the_mlps_summary_by_hand() -> None:
    model = network("mlp")
    data = inputs(model)
    for index, modality in enumerate(model.modalities):
        frames, exists, visible = data.of(modality)
        for row in range(len(frames)):
            steps = visible[row].nonzero()[:, 0]
            length = int(exists[row].sum())
            end = frames[row, length - 1] * visible[row, length - 1]
            mean = frames[row, steps].mean(0) if len(steps) else torch.zeros(frames.shape[2])
            flags = torch.tensor([float(visible[row, length - 1]), len(steps) / length]) - 1.0
            vector = torch.relu(model.encoders[index](torch.cat([end, mean, flags])))
            expected = vector if len(steps) else torch.zeros(6)
            torch.testing.assert_close(model.encode(modality, data)[row], expected)


def test_the_mlps_input_dropout_grows_with_the_width() -> None:
    frames = {"language": 3, "vision": 3}
    for widths, expected in (
        ((800, 32), [0.5, 0.1]),
        ((512, 128), [0.5, 0.25]),
        ((128, 8), [0.25, 0.0625]),
    ):
        model = MLPNetwork(dict(zip(frames, widths, strict=True)), frames, target=CLASSES)
        assert [layer.probability for layer in model.input_dropouts] == expected


@pytest.mark.parametrize("summary", [("mean",), ("end",), ("visibility",), ("end", "mean")])
def test_the_mlp_reads_the_configured_summary(summary: tuple[str, ...]) -> None:
    model = MLPNetwork(
        {"a": 3}, {"a": 4}, target=CLASSES, settings=MLPSettings(summary=summary)
    ).eval()
    frames = torch.randn(1, 4, 3)
    exists = torch.ones(1, 4, dtype=torch.bool)

    def logits(frames: Tensor, hidden: int) -> Tensor:
        visible = exists.clone()
        visible[0, hidden] = False
        return model(Inputs({"a": frames}, {"a": exists}, {"a": visible})).logits

    changed = frames.clone()
    changed[0, 0] += 1.0
    assert torch.equal(logits(frames, 1), logits(changed, 1)) == ("mean" not in summary)
    changed = frames.clone()
    changed[0, 3] += 1.0
    assert torch.equal(logits(frames, 1), logits(changed, 1)) == (summary == ("visibility",))
    still = torch.ones(
        1, 4, 3
    )  # so that the mean of the visible frames is the same whichever is hidden
    assert torch.equal(logits(still, 1), logits(still, 3)) == (summary == ("mean",))


@pytest.mark.parametrize("layer", [FrameLSTM, FrameGRU])
def test_the_loop_over_time_matches_torch(layer: type[FrameLSTM | FrameGRU]) -> None:
    torch.manual_seed(0)
    recurrence = layer(3, 4).double()
    frames = torch.randn(5, 7, 3, dtype=torch.float64, requires_grad=True)
    expected = recurrence.kernel(frames)[0]
    states = recurrence.states(frames)
    torch.testing.assert_close(states, expected)
    parameters = [frames, *recurrence.parameters()]
    actual_gradients, expected_gradients = (
        torch.autograd.grad(x.square().sum(), parameters) for x in (states, expected)
    )
    for mine, theirs in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_gru_returns_the_last_visible_state_or_the_mean_of_visible_states() -> None:
    last, mean = network("gru-last"), network("gru-mean")
    data = inputs(last)
    frames, _, visible = data.of("language")
    for row in range(5):
        steps = visible[row].nonzero()[:, 0]
        masked = frames[row : row + 1] * visible[row, :, None]
        states = last.encoders[0].gru(masked)[0][0]
        expected = states[steps[-1]] if len(steps) else torch.zeros(6)
        torch.testing.assert_close(last.encode("language", data)[row], expected)
        states = mean.encoders[0].gru(masked)[0][0]
        expected = states[steps].mean(0) if len(steps) else torch.zeros(6)
        torch.testing.assert_close(mean.encode("language", data)[row], expected)


def test_a_latent_block_matches_torchs_attention() -> None:
    torch.manual_seed(0)
    block = LatentBlock(PerceiverSettings(width=8, heads=2, feedforward=12, dropout=0.0))
    reference = nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([block.query.weight, block.key_value.weight]))
        reference.in_proj_bias.copy_(torch.cat([block.query.bias, block.key_value.bias]))
        reference.out_proj.weight.copy_(block.output.weight)
        reference.out_proj.bias.copy_(block.output.bias)
    latents, frames = torch.randn(3, 4, 8), torch.randn(3, 6, 8)
    visible = torch.tensor([[1, 0, 1, 1, 0, 0], [1] * 6, [0, 0, 0, 0, 0, 1]]).bool()
    expected, _ = reference(latents, frames, frames, key_padding_mask=~visible, need_weights=False)
    torch.testing.assert_close(block.attend(latents, frames, visible), expected)
    torch.testing.assert_close(
        block.attend(latents, latents, None), reference(latents, latents, latents)[0]
    )


def test_a_perceiver_distinguishes_times_and_modalities() -> None:
    torch.manual_seed(0)
    model = PerceiverNetwork(
        {"a": 4, "b": 4}, {"a": 5, "b": 5}, target=CLASSES, settings=KINDS["perceiver"][1]
    ).eval()
    model.projections[1].load_state_dict(model.projections[0].state_dict())
    first, second = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    everything = {m: torch.ones(2, 5, dtype=torch.bool) for m in "ab"}
    before = model(Inputs({"a": first, "b": second}, everything, everything)).logits
    for frames in ({"a": second, "b": first}, {"a": first.flip(1), "b": second}):
        assert not torch.allclose(
            model(Inputs(frames, everything, everything)).logits, before, atol=1e-5
        )


def test_a_perceivers_memory_is_not_quadratic_in_the_frames() -> None:
    network("perceiver").check_memory({"language": 10_000_000}, 1000, training=True)


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (MLPSettings, {"width": 0}, "width"),
        (MLPSettings, {"dropout": 1.0}, "dropout"),
        (MLPSettings, {"depth": 3}, "depth"),
        (GRUSettings, {"summary": "first"}, "summary"),
        (PerceiverSettings, {"width": 10, "heads": 4}, "heads = 4 must divide width = 10"),
        (PerceiverSettings, {"latents": 0}, "latents"),
    ],
)
def test_wrong_settings_are_refused(
    settings: type, values: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**values)
