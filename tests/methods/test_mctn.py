from __future__ import annotations

import copy

import pytest
import torch

from corrkd.errors import CorrKDError
from corrkd.losses.frames import frame_errors, mean_error
from corrkd.methods.mctn import MCTN, MCTNPerSource
from corrkd.networks.mctn import MCTNNetwork, MCTNPerSourceNetwork, MCTNSettings, SummedLSTM
from corrkd.targets.base import Target
from tests.conftest import (
    CLASSES,
    make_dataset,
    make_samples,
    map_tensors,
    total,
    training_batch,
    values,
    weights,
)
from tests.methods.translating import (
    FOUR,
    KINDS,
    TWO,
    check_finite_when_nothing_is_visible,
    check_only_visible_frames_count,
    fit,
    frames_of,
    make_inputs,
    network_for,
    progress_to_bayes,
)

SMALL = MCTNSettings(width=8)


def network(
    widths: dict[str, int], target: Target = CLASSES, settings: MCTNSettings = SMALL
) -> MCTNNetwork:
    torch.manual_seed(0)
    return MCTNNetwork(widths, frames_of(widths), target=target, settings=settings).eval()


@pytest.mark.parametrize("widths", [{"language": 7}, TWO, FOUR])
@pytest.mark.parametrize(("target", "shape"), KINDS)
def test_shapes(widths: dict[str, int], target: Target, shape: tuple[int, ...]) -> None:
    net, inputs = network(widths, target), make_inputs(widths)
    assert net(inputs).logits.shape == shape
    assert net(inputs).representation.shape == (4, 8)
    out = net.translate(net.join(inputs), inputs.exists)
    first = next(iter(widths))
    assert {m: x.shape for m, x in out.targets.items()} == {
        m: x.shape for m, x in inputs.frames.items() if m != first
    }
    assert (
        (out.back is None) if len(widths) == 1 else (out.back.shape == inputs.frames[first].shape)
    )


@pytest.mark.parametrize("widths", [TWO, FOUR])
def test_padding_and_invisible_frames_change_nothing(widths: dict[str, int]) -> None:
    check_only_visible_frames_count(network(widths), make_inputs(widths))
    check_finite_when_nothing_is_visible(network(widths), make_inputs(widths))


@pytest.mark.parametrize("source", list(FOUR))
def test_only_the_source_is_needed_at_inference(source: str) -> None:
    """Hiding the others changes no bit."""
    net = network(FOUR, settings=MCTNSettings(width=8, source=source))
    inputs = make_inputs(FOUR, share=1.0)
    complete = net(inputs).logits
    alone = {m: v if m == source else torch.zeros_like(v) for m, v in inputs.visible.items()}
    assert torch.equal(net(inputs._replace(visible=alone)).logits, complete)
    others = {m: torch.zeros_like(v) if m == source else v for m, v in inputs.visible.items()}
    assert not torch.equal(net(inputs._replace(visible=others)).logits, complete)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(
        CorrKDError, match="source 'smell' is none of the modalities language, audio"
    ):
        network(TWO, settings=MCTNSettings(source="smell"))


def test_the_hierarchy_goes_through_every_translator() -> None:
    """Each level's encoder affects its embedding, those above it and the prediction."""
    inputs = make_inputs(FOUR)
    before, logits = (net := network(FOUR)).join(inputs), net(inputs).logits
    for level in range(3):
        changed = network(FOUR)
        with torch.no_grad():
            for parameter in changed.encoders[level].parameters():
                parameter.mul_(2.0)
        after = changed.join(inputs)
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [
            n < level for n in range(3)
        ]
        assert not torch.equal(changed(inputs).logits, logits)


def test_the_back_translation_feeds_the_translation_to_the_same_translator() -> None:
    inputs = make_inputs(TWO)
    net = network(TWO)
    first = net.translate(net.join(inputs), inputs.exists)
    with torch.no_grad():
        net.project[1].bias.add_(1.0)  # another translation to audio ...
    second = net.translate(net.join(inputs), inputs.exists)
    assert not torch.allclose(
        first.back, second.back, atol=1e-5
    )  # ... comes back as another language
    assert len(net.encoders) == len(net.decoders) == 1


def test_attention_is_a_weighted_mean_over_existing_frames() -> None:
    net, inputs = network(TWO), make_inputs(TWO)
    levels, exists = net.join(inputs), inputs.exists
    out = net.translate(levels, exists).targets["audio"]
    noisy = [torch.where(exists["language"][..., None], levels[0], torch.full_like(levels[0], 9.0))]
    assert torch.allclose(net.translate(noisy, exists).targets["audio"], out, atol=1e-5)
    with torch.no_grad():
        net.decoders[0].key.weight.zero_()
    assert not torch.allclose(net.translate(levels, exists).targets["audio"], out, atol=1e-6)


def test_the_encoder_is_bidirectional_and_stops_at_the_samples_end() -> None:
    torch.manual_seed(0)
    encoder, exists = SummedLSTM(4), torch.arange(5)[None] < torch.tensor([[5], [3], [0]])
    hidden = torch.randn(3, 5, 4)
    states = encoder(hidden, exists)
    alone, _ = encoder.lstm(hidden[1:2, :3])
    torch.testing.assert_close(states[1, :3], alone[0, :, :4] + alone[0, :, 4:])
    assert not states[~exists].any()


def test_a_process_may_have_no_sample() -> None:
    net, empty = network(TWO), map_tensors(lambda x: x[:0], make_inputs(TWO))
    out = net.translate(net.join(empty), empty.exists)
    (net(empty).logits.sum() + out.targets["audio"].sum() + out.back.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_the_prediction_is_a_convex_sum_of_existing_states() -> None:
    net, inputs = network(TWO), make_inputs(TWO)
    embedding, exists = net.join(inputs)[-1], inputs.exists["language"].clone()
    exists[0] = False
    with torch.no_grad():
        net.attention.weight.zero_()
    states, _ = net.predictor(embedding)
    representation = net.predict(embedding, exists).representation
    assert not representation[0].any()
    for i in range(1, 4):  # even energies: the mean
        torch.testing.assert_close(representation[i], states[i, exists[i]].mean(0))
    with torch.no_grad():
        net.attention.weight.copy_(50 * states[1, :1])
        net.attention.bias.zero_()
    after = net.predict(embedding, exists).representation[1]
    energies = torch.tanh(
        50 * states[1, exists[1]] @ states[1, 0]
    )  # bounded, as in the released code
    torch.testing.assert_close(after, torch.softmax(energies, 0) @ states[1, exists[1]])


def test_every_term_reaches_the_joint_embedding() -> None:
    samples = make_samples(make_dataset())
    method = MCTN(network_for(MCTNNetwork, samples, SMALL))
    losses = method(training_batch(samples, 16))
    terms = values(losses)
    assert list(terms) == ["task", "l2", "translation", "cycle"]
    weight = method.student.encoders[0].lstm.weight_ih_l0_reverse
    for name in ("task", "translation", "cycle"):
        (gradient,) = torch.autograd.grad(terms[name], weight, retain_graph=True)
        assert gradient.abs().max() > 0
    # The released code's regularizer: 0.01 times the squared weights of the last layer, without its
    # bias.
    assert weights(losses)["l2"] == 0.01
    torch.testing.assert_close(terms["l2"], method.student.head.weight.square().sum())


def per_source(widths: dict[str, int], target: Target = CLASSES) -> MCTNPerSourceNetwork:
    torch.manual_seed(0)
    return MCTNPerSourceNetwork(widths, frames_of(widths), target=target, settings=SMALL).eval()


@pytest.mark.parametrize("widths", [{"language": 7}, TWO, FOUR])
@pytest.mark.parametrize(("target", "shape"), KINDS)
def test_per_source_the_visible_sources_are_averaged(
    widths: dict[str, int], target: Target, shape: tuple[int, ...]
) -> None:
    net, inputs = per_source(widths, target), make_inputs(widths, share=1.0)
    assert [model.source for model in net.models] == list(widths)
    assert net(inputs).logits.shape == shape
    assert net(inputs).representation.shape == (4, 8 * len(widths))
    for index, source in enumerate(widths):
        alone = inputs
        for other in widths:
            alone = alone if other == source else alone.without(other)
        single = net.models[index](inputs).logits
        if target.has_classes:
            single = single.log_softmax(-1)
        torch.testing.assert_close(net(alone).logits, single)
    if target.has_classes:
        mean = torch.stack([model(inputs).logits.softmax(-1) for model in net.models]).mean(0)
        torch.testing.assert_close(net(inputs).logits.softmax(-1), mean)


def test_per_source_models_learn_as_if_alone() -> None:
    samples = make_samples(make_dataset())
    method = MCTNPerSource(
        network_for(MCTNPerSourceNetwork, samples, MCTNSettings(width=8, dropout=0.0))
    )
    batch = training_batch(samples, 16)
    losses = method(batch)
    assert list(losses) == ["task", "l2", "translation", "cycle"]
    total(losses).backward()
    for model in method.student.models:
        alone = MCTN(copy.deepcopy(model))
        alone.zero_grad()
        total(alone(batch)).backward()
        for mine, theirs in zip(model.parameters(), alone.student.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)


def test_per_source_refuses_a_configured_source() -> None:
    with pytest.raises(
        CorrKDError, match=r"every modality is one; leave out network.source = audio"
    ):
        MCTNPerSourceNetwork(
            TWO, frames_of(TWO), target=CLASSES, settings=MCTNSettings(source="audio")
        )


def test_the_error_is_the_mean_over_counted_frames() -> None:
    torch.manual_seed(0)
    made, frames = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    counted = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
    expected = (made - frames)[counted].square().mean()
    frames[~counted] = torch.nan
    assert torch.allclose(mean_error(frame_errors(made, frames, counted)), expected)
    assert mean_error(frame_errors(made, frames, torch.zeros_like(counted))) == 0


@pytest.mark.parametrize("target", ["classes", "score"])
def test_learns_to_predict_and_to_translate(target: str) -> None:
    samples = make_samples(make_dataset(), target=target)
    history = fit(MCTN(network_for(MCTNNetwork, samples, SMALL)), samples).history
    assert history[-1]["loss/task"] < 0.8 * history[0]["loss/task"]
    assert history[-1]["loss/translation"] < 0.9 * history[0]["loss/translation"]
    assert history[-1]["loss/cycle"] < 0.9 * history[0]["loss/cycle"]


@pytest.mark.slow
def test_reaches_half_way_from_the_floor_to_bayes_accuracy() -> None:
    assert progress_to_bayes(MCTNNetwork, MCTN, epochs=6) > 0.5
