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
    check_nothing_visible_is_finite,
    check_only_the_visible_counts,
    fit,
    frames_of,
    inputs,
    network_for,
    share_of_the_way,
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
    net, given = network(widths, target), inputs(widths)
    assert net(given).logits.shape == shape
    assert net(given).representation.shape == (4, 2 * (len(widths) - 1) * 8)
    ways = net.translate(given)
    assert len(ways) == 2 * (len(widths) - 1)
    assert all(way.there.shape == given.frames[way.target].shape for way in ways)
    assert all(way.back.shape == given.frames[way.source].shape for way in ways)


@pytest.mark.parametrize("widths", [TWO, FOUR])
def test_padding_and_what_is_invisible_change_nothing(widths: dict[str, int]) -> None:
    net, given = network(widths), inputs(widths)
    check_only_the_visible_counts(net, given)
    check_nothing_visible_is_finite(net, given)
    other = overwrite_invisible(given, 1e6)
    for before, after in zip(net.translate(given), net.translate(other), strict=True):
        assert torch.equal(before.there, after.there)
        assert torch.equal(before.back, after.back)


@pytest.mark.parametrize("centre", list(FOUR))
def test_every_other_modality_is_paired_with_the_centre_both_ways(centre: str) -> None:
    net = network(FOUR, settings=TransMSettings(network=TINY, centre=centre))
    ways = [(way.source, way.target) for way in net.translate(inputs(FOUR))]
    assert set(ways) == {(centre, m) for m in FOUR if m != centre} | {
        (m, centre) for m in FOUR if m != centre
    }


def test_an_unknown_centre_and_a_single_modality_are_one_clear_line() -> None:
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
    net, nobody = network(TWO), map_tensors(lambda x: x[:0], inputs(TWO))
    ways = net.translate(nobody)
    assert [way.back.shape[0] for way in ways] == [0, 0]
    (sum(way.back.sum() for way in ways) + net.fuse(ways, nobody).logits.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_what_training_fuses_is_what_the_network_answers() -> None:
    net, given = network(FOUR), inputs(FOUR)
    assert torch.equal(net.fuse(net.translate(given), given).logits, net(given).logits)


def test_the_originals_streams_and_depths() -> None:
    """Decoders as deep as asked for, and a vector of each modality by itself for the classifier, in
    training and at test.
    """
    net = network(FOUR, settings=TransMSettings(network=TINY, decoder_layers=3, unimodal=True))
    assert [len(decoder.layers.layers) for cell in net.cells for decoder in cell.decoders] == [
        3
    ] * 6
    assert [len(encoder.layers) for cell in net.cells for encoder in cell.encoders] == [1] * 6
    given = inputs(FOUR)
    assert net(given).representation.shape == (4, (2 * 3 + 4) * 8)
    assert torch.equal(net.fuse(net.translate(given), given).logits, net(given).logits)
    streams = net.unimodal(given)
    for number, (m, stream) in enumerate(zip(FOUR, streams, strict=True)):
        torch.testing.assert_close(stream, net.streams[number](*given.of(m)))
    assert network(FOUR).unimodal(given) == []


def test_the_arm_of_the_originals_sizes() -> None:
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


def test_the_way_back_reads_what_was_translated_not_the_target() -> None:
    net = network(TWO)
    given = inputs(TWO, share=1.0)
    before = net.translate(given)[0]
    other = net.translate(
        given._replace(frames={**given.frames, "audio": given.frames["audio"] + 5.0})
    )[0]
    assert torch.equal(before.there, other.there)  # a translation does not see the true target
    assert torch.equal(before.back, other.back)
    with torch.no_grad():
        net.cells[0].decoders[0].project.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
    after = net.translate(given)[0]
    assert not torch.allclose(after.back, before.back, atol=1e-5)


def test_a_translation_attends_to_its_source_frame_by_frame() -> None:
    """Another order of the source's frames gives another translation; another sample of the batch
    gives the same.
    """
    net = network(TWO)
    frames, exists, _ = inputs(TWO)
    everything = {m: torch.ones_like(e) for m, e in exists.items()}
    whole = Inputs(frames, everything, everything)
    there = net.translate(whole)[0].there
    turned = net.translate(
        whole._replace(frames={**frames, "language": frames["language"].flip(1)})
    )[0].there
    assert not torch.allclose(turned, there, atol=1e-6)
    assert not torch.allclose(there[:, 0], there[:, 1], atol=1e-6)
    first = net.translate(map_tensors(lambda x: x[:1], whole))[0].there
    assert torch.allclose(first, there[:1], atol=1e-5)


@pytest.mark.parametrize("cell", [0, 1, 2])
@pytest.mark.parametrize("way", [0, 1])
def test_every_cell_and_way_feeds_the_prediction_and_a_part_of_the_representation_alone(
    cell: int, way: int
) -> None:
    given = inputs(FOUR)
    before = network(FOUR)(given)
    changed = network(FOUR)
    with torch.no_grad():
        changed.cells[cell].encoders[way].embed.weight.mul_(2.0)
    after = changed(given)
    same = (after.representation == before.representation).view(4, 6, 8).all(2).all(0)
    assert same.tolist() == [place != 2 * cell + way for place in range(6)]
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


def test_the_terms_are_mean_absolute_errors_of_what_is_visible() -> None:
    samples = make_samples(make_dataset())
    method = TransM(network_for(TransMNetwork, samples, SMALL)).eval()
    batch = samples.take(torch.arange(16))
    terms = values(method(training_batch(samples, 16)))
    ways = method.student.translate(batch.complete())

    def error(made: torch.Tensor, m: str) -> torch.Tensor:
        return (made - batch.frames[m])[batch.present[m]].abs().mean()

    torch.testing.assert_close(
        terms["forward"], sum(error(way.there, way.target) for way in ways) / len(ways)
    )
    torch.testing.assert_close(
        terms["backward"], sum(error(way.back, way.source) for way in ways) / len(ways)
    )


@pytest.mark.parametrize("target", ["classes", "score"])
def test_trained_it_predicts_and_its_cycle_restores_unseen_samples_better_than_a_constant(
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
        ways = network.translate(batch.complete())
    for way in ways:
        true, there = batch.frames[way.source], batch.present[way.source]
        constant = mean_error(frame_errors(means[way.source].float().expand_as(true), true, there))
        assert mean_error(frame_errors(way.back, true, there)) < 0.9 * constant


@pytest.mark.slow
def test_on_the_built_in_dataset_it_gets_at_least_half_of_the_way_to_the_bayes_rule() -> None:
    assert share_of_the_way(TransMNetwork, TransM, epochs=5) > 0.5
