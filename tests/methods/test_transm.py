from __future__ import annotations

import pytest
import torch

from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.experiment.arm import resolve
from corrkd.experiment.settings import ArmSettings, load_settings
from corrkd.losses.frames import frame_errors, mean_error
from corrkd.methods.transm import TransM
from corrkd.networks.transm import TransMNetwork, TransMSettings
from corrkd.settings import NetworkSettings
from corrkd.targets.base import Target
from tests.conftest import (
    CLASSES,
    make_dataset,
    make_samples,
    map_tensors,
    overwrite_invisible,
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

TINY = NetworkSettings(width=8, heads=2, feedforward=16, layers=1, classifier=(6,), dropout=0.0)
SMALL = TransMSettings(network=TINY)


def network(
    widths: dict[str, int], target: Target = CLASSES, settings: TransMSettings = SMALL
) -> TransMNetwork:
    torch.manual_seed(0)
    return TransMNetwork(widths, frames_of(widths), target=target, settings=settings).eval()


@pytest.mark.parametrize("widths", [TWO, FOUR])
@pytest.mark.parametrize(("target", "shape"), KINDS)
def test_shapes(widths: dict[str, int], target: Target, shape: tuple[int, ...]) -> None:
    net, inputs = network(widths, target), make_inputs(widths)
    assert net(inputs).logits.shape == shape
    assert net(inputs).representation.shape == (4, 2 * (len(widths) - 1) * 8)
    translations = net.translate(inputs)
    assert len(translations) == 2 * (len(widths) - 1)
    assert all(t.translated.shape == inputs.frames[t.target].shape for t in translations)
    assert all(t.restored.shape == inputs.frames[t.source].shape for t in translations)


@pytest.mark.parametrize("widths", [TWO, FOUR])
def test_padding_and_invisible_frames_change_nothing(widths: dict[str, int]) -> None:
    net, inputs = network(widths), make_inputs(widths)
    check_only_visible_frames_count(net, inputs)
    check_finite_when_nothing_is_visible(net, inputs)
    other = overwrite_invisible(inputs, 1e6)
    for before, after in zip(net.translate(inputs), net.translate(other), strict=True):
        assert torch.equal(before.translated, after.translated)
        assert torch.equal(before.restored, after.restored)


@pytest.mark.parametrize("centre", list(FOUR))
def test_every_other_modality_is_paired_with_the_centre_in_both_directions(centre: str) -> None:
    net = network(FOUR, settings=TransMSettings(network=TINY, centre=centre))
    directions = [(t.source, t.target) for t in net.translate(make_inputs(FOUR))]
    assert set(directions) == {(centre, m) for m in FOUR if m != centre} | {
        (m, centre) for m in FOUR if m != centre
    }


def test_an_unknown_centre_and_a_single_modality_are_refused() -> None:
    with pytest.raises(
        CorrKDError, match="centre 'smell' is none of the modalities language, audio"
    ):
        network(TWO, settings=TransMSettings(centre="smell"))
    with pytest.raises(
        CorrKDError, match="translates between modalities, but there is only language"
    ):
        network({"language": 7})


def test_a_process_without_a_sample_still_uses_every_parameter() -> None:
    """Otherwise the other processes would wait for its gradients."""
    net, empty = network(TWO), map_tensors(lambda x: x[:0], make_inputs(TWO))
    translations = net.translate(empty)
    assert [t.restored.shape[0] for t in translations] == [0, 0]
    (
        sum(t.restored.sum() for t in translations) + net.fuse(translations, empty).logits.sum()
    ).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_fused_translations_match_the_forward_pass() -> None:
    net, inputs = network(FOUR), make_inputs(FOUR)
    assert torch.equal(net.fuse(net.translate(inputs), inputs).logits, net(inputs).logits)


def test_the_originals_streams_and_depths() -> None:
    """Decoders have the requested depth; the classifier also gets a vector of each modality."""
    net = network(FOUR, settings=TransMSettings(network=TINY, decoder_layers=3, unimodal=True))
    assert [len(decoder.layers.layers) for cell in net.cells for decoder in cell.decoders] == [
        3
    ] * 6
    assert [len(encoder.layers) for cell in net.cells for encoder in cell.encoders] == [1] * 6
    inputs = make_inputs(FOUR)
    assert net(inputs).representation.shape == (4, (2 * 3 + 4) * 8)
    assert torch.equal(net.fuse(net.translate(inputs), inputs).logits, net(inputs).logits)
    streams = net.unimodal(inputs)
    for index, (m, stream) in enumerate(zip(FOUR, streams, strict=True)):
        torch.testing.assert_close(stream, net.streams[index](*inputs.of(m)))
    assert network(FOUR).unimodal(inputs) == []


def test_the_arm_with_the_originals_sizes() -> None:
    arm = resolve("transm-original", ArmSettings(), load_settings())
    assert isinstance(arm.network.options, TransMSettings)
    sizes = arm.network.options
    assert (sizes.network.layers, sizes.decoder_layers, sizes.unimodal) == (10, 5, True)
    method = TransM(network({"language": 5, "audio": 3}, settings=sizes))
    assert weights(method(training_batch(make_samples(make_dataset()), 4))) == {
        "task": 1.0,
        "forward": 10.0,
        "backward": 10.0,
    }  # 10 to 1
    assert arm.kind == "baseline"


def test_the_back_translation_reads_the_translation_not_the_target() -> None:
    net = network(TWO)
    inputs = make_inputs(TWO, share=1.0)
    before = net.translate(inputs)[0]
    other = net.translate(
        inputs._replace(frames={**inputs.frames, "audio": inputs.frames["audio"] + 5.0})
    )[0]
    assert torch.equal(
        before.translated, other.translated
    )  # a translation does not see the true target
    assert torch.equal(before.restored, other.restored)
    with torch.no_grad():
        net.cells[0].decoders[0].project.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
    after = net.translate(inputs)[0]
    assert not torch.allclose(after.restored, before.restored, atol=1e-5)


def test_a_translation_attends_to_its_source_frame_by_frame() -> None:
    """The order of the source's frames matters; the other samples of the batch do not."""
    net = network(TWO)
    frames, exists, _ = make_inputs(TWO)
    everything = {m: torch.ones_like(e) for m, e in exists.items()}
    complete = Inputs(frames, everything, everything)
    translated = net.translate(complete)[0].translated
    flipped = net.translate(
        complete._replace(frames={**frames, "language": frames["language"].flip(1)})
    )[0].translated
    assert not torch.allclose(flipped, translated, atol=1e-6)
    assert not torch.allclose(translated[:, 0], translated[:, 1], atol=1e-6)
    first = net.translate(map_tensors(lambda x: x[:1], complete))[0].translated
    assert torch.allclose(first, translated[:1], atol=1e-5)


@pytest.mark.parametrize("cell", [0, 1, 2])
@pytest.mark.parametrize("direction", [0, 1])
def test_each_direction_affects_the_prediction_and_one_section_of_the_representation(
    cell: int, direction: int
) -> None:
    inputs = make_inputs(FOUR)
    before = network(FOUR)(inputs)
    changed = network(FOUR)
    with torch.no_grad():
        changed.cells[cell].encoders[direction].embed.weight.mul_(2.0)
    after = changed(inputs)
    same = (after.representation == before.representation).view(4, 6, 8).all(2).all(0)
    assert same.tolist() == [index != 2 * cell + direction for index in range(6)]
    assert not torch.equal(after.logits, before.logits)


def test_both_translations_reach_the_joint_features() -> None:
    samples = make_samples(make_dataset())
    method = TransM(network_for(TransMNetwork, samples, SMALL))
    terms = values(method(training_batch(samples, 16)))
    assert list(terms) == ["task", "forward", "backward"]
    for encoder in (e for cell in method.student.cells for e in cell.encoders):
        for term in terms.values():
            (gradient,) = torch.autograd.grad(term, encoder.embed.weight, retain_graph=True)
            assert gradient.abs().max() > 0


def test_the_terms_are_mean_absolute_errors_of_visible_frames() -> None:
    samples = make_samples(make_dataset())
    method = TransM(network_for(TransMNetwork, samples, SMALL)).eval()
    batch = samples.take(torch.arange(16))
    terms = values(method(training_batch(samples, 16)))
    translations = method.student.translate(batch.complete())

    def error(made: torch.Tensor, m: str) -> torch.Tensor:
        return (made - batch.frames[m])[batch.present[m]].abs().mean()

    torch.testing.assert_close(
        terms["forward"],
        sum(error(t.translated, t.target) for t in translations) / len(translations),
    )
    torch.testing.assert_close(
        terms["backward"],
        sum(error(t.restored, t.source) for t in translations) / len(translations),
    )


@pytest.mark.parametrize("target", ["classes", "score"])
def test_after_training_the_cycle_restores_unseen_samples_better_than_a_constant(
    target: str,
) -> None:
    dataset = make_dataset(sizes=(96, 48, 12))
    samples, unseen = make_samples(dataset, target=target), make_samples(dataset, "valid", target)
    settings = TransMSettings(network=TINY, forward=1.0, backward=1.0)
    network = network_for(TransMNetwork, samples, settings)
    history = fit(TransM(network), samples, epochs=12).history
    assert history[-1]["loss/task"] < 0.8 * history[0]["loss/task"]
    network.eval()
    batch = unseen.take(torch.arange(len(unseen)))
    means = samples.mean_frames()
    with torch.no_grad():
        translations = network.translate(batch.complete())
    for t in translations:
        frames, present = batch.frames[t.source], batch.present[t.source]
        constant = mean_error(
            frame_errors(means[t.source].float().expand_as(frames), frames, present)
        )
        assert mean_error(frame_errors(t.restored, frames, present)) < 0.9 * constant


@pytest.mark.slow
def test_reaches_half_way_from_the_floor_to_bayes_accuracy() -> None:
    assert progress_to_bayes(TransMNetwork, TransM, epochs=5) > 0.5
