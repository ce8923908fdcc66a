"""Properties of every built-in network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from corrkd.data.batches import Samples
from corrkd.data.dataset import MultimodalDataset
from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.evaluation.sweep import sweep
from corrkd.missing.conditions import standard_conditions
from corrkd.networks.base import AnyNetwork
from corrkd.networks.registry import BUILT_IN, network_class
from corrkd.networks.saved import SavedNetwork, build_network, load_network, save_network
from corrkd.settings import EvaluationSettings
from corrkd.targets.base import Target
from tests.conftest import QUESTIONS, SCORE, make_dataset, make_samples

NAMES = list(BUILT_IN)


def in_conversations(dataset: MultimodalDataset, size: int = 5) -> MultimodalDataset:
    """Group each `size` consecutive samples into a video, in reverse order."""
    splits = {}
    for name, split in dataset.splits.items():
        rows = np.arange(len(split))
        video = np.array([f"{name}-{row // size}" for row in rows])
        splits[name] = replace(split, groups={"video": video}, order=-rows)
    return replace(dataset, splits=splits)


def fresh(name: str, samples: Samples) -> AnyNetwork:
    kind = network_class(name)
    torch.manual_seed(0)
    frames = {m: x.shape[1] for m, x in samples.exists.items()}
    network = build_network(
        samples.target, samples.widths, frames, kind.settings_type(), kind
    ).eval()
    assert network.name == name
    return network


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_equals_separate_evaluations(name: str) -> None:
    samples = make_samples(in_conversations(make_dataset()), "test")
    network = fresh(name, samples)
    conditions = standard_conditions(
        samples.modalities,
        EvaluationSettings(conditions={"ratio": [0.0, 0.4, 1.0], "noise": [0.5]}, draws=2),
        incomplete=np.array([False]),
    )
    everything = samples.take(torch.arange(len(samples)))
    for result in sweep(network, samples, conditions, mask_seed=5, batch_size=7):
        if result.condition.kind == "noise":
            continue
        dropped = result.condition.dropped(everything, seed=5, draw=result.draw)
        visible = {m: everything.present[m] & ~dropped[m] for m in samples.modalities}
        with torch.no_grad():
            context = samples.context(everything.rows)
            inputs = Inputs(everything.frames, everything.exists, visible).with_lengths(
                samples.lengths
            )
            logits = network.in_context(inputs, context).logits
        np.testing.assert_allclose(result.response, torch.softmax(logits, -1).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_hidden_modalities_do_not_leak(name: str) -> None:
    """With language alone, other audio and vision give the same responses."""
    dataset = in_conversations(make_dataset())
    split = dataset.split("test")
    frames = {m: x if m == "language" else x[::-1].copy() for m, x in split.frames.items()}
    samples = make_samples(dataset, "test")
    conditions = standard_conditions(
        samples.modalities,
        EvaluationSettings(conditions={"ratio": []}),
        incomplete=np.array([False]),
    )[:1]
    assert conditions[0].name == "language"
    network = fresh(name, samples)
    response = sweep(network, samples, conditions)[0].response
    # The same lengths everywhere, so that only features differ.
    other = make_samples(
        replace(dataset, splits={**dataset.splits, "test": replace(split, frames=frames)}), "test"
    )
    np.testing.assert_array_equal(sweep(network, other, conditions)[0].response, response)


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load(name: str, tmp_path: Path) -> None:
    dataset = make_dataset()
    samples = make_samples(dataset, "test")
    network = fresh(name, samples)
    frames = {m: x.shape[1] for m, x in samples.exists.items()}
    saved = SavedNetwork(
        network=network, normalisation=samples._normalisation, target=samples.target, frames=frames
    )
    save_network(tmp_path / "one", saved)
    loaded = load_network(tmp_path / "one")
    assert type(loaded.network) is type(network)
    assert loaded.network.settings == network.settings
    batch = samples.take(torch.arange(8))
    with torch.no_grad():
        assert torch.equal(
            loaded.network(batch.complete()).logits, network(batch.complete()).logits
        )


def test_an_unknown_network_is_reported(tmp_path: Path) -> None:
    dataset = make_dataset()
    samples = make_samples(dataset, "test")
    frames = {m: x.shape[1] for m, x in samples.exists.items()}
    saved = SavedNetwork(
        network=fresh("corrkd", samples),
        normalisation=samples._normalisation,
        target=samples.target,
        frames=frames,
    )
    save_network(tmp_path / "one", saved)
    card = json.loads((tmp_path / "one.json").read_text())
    del card["digest"]
    (tmp_path / "one.json").write_text(json.dumps(card | {"architecture": "unheard-of"}))
    with pytest.raises(
        CorrKDError, match=r"one\.json: unknown network 'unheard-of'; available: corrkd, "
    ):
        load_network(tmp_path / "one")


@pytest.mark.parametrize("name", [n for n in NAMES if n != "gcnet"])
def test_a_samples_output_does_not_depend_on_the_batch(name: str) -> None:
    samples = make_samples(make_dataset(), "test")
    network = fresh(name, samples)
    batch = samples.take(torch.arange(len(samples)))
    with torch.no_grad():
        all_logits = network(batch.complete()).logits
        for row in (0, 11):
            single = samples.take(torch.tensor([row]))
            alone = network(single.complete()).logits
            torch.testing.assert_close(alone[0], all_logits[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("target", "shape"), [(QUESTIONS, (3, 4, 2)), (SCORE, (3, 1))])
def test_logits_have_the_targets_shape(name: str, target: Target, shape: tuple[int, ...]) -> None:
    dataset = make_dataset()
    network = network_class(name)(dataset.widths, dict.fromkeys(dataset.widths, 6), target=target)
    batch = make_samples(dataset, "test").take(torch.arange(3))
    assert network.eval()(batch.complete()).logits.shape == shape


@pytest.mark.parametrize("name", NAMES)
def test_the_representation_has_the_declared_width_and_parts_of_one_modality_each(
    name: str,
) -> None:
    samples = make_samples(make_dataset(), "test")
    network = fresh(name, samples)
    inputs = samples.take(torch.arange(4)).complete()
    with torch.no_grad():
        representation = network(inputs).representation
        assert representation.shape == (4, network.representation_width)
        if network.parts is None:
            return
        widths = list(network.parts.values())
        assert sum(widths) == network.representation_width
        for changed in network.parts:
            frames = {m: x + 1.0 if m == changed else x for m, x in inputs.frames.items()}
            other = network(inputs._replace(frames=frames)).representation
            pairs = zip(representation.split(widths, 1), other.split(widths, 1), strict=True)
            same = [torch.equal(a, b) for a, b in pairs]
            assert same == [m != changed for m in network.parts]
