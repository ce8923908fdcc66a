from __future__ import annotations

import numpy as np
import pytest
import torch

from corrkd.data.batches import Samples
from corrkd.data.inputs import Inputs
from corrkd.evaluation.sweep import mean_missing_f1, sweep
from corrkd.missing.conditions import Condition, condition, standard_conditions, subsets
from corrkd.missing.masks import noise
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.networks.saved import build_network
from corrkd.settings import EvaluationSettings, NetworkSettings
from tests.conftest import make_dataset, make_samples

SMALL = NetworkSettings(width=8, heads=2, feedforward=16, layers=1, classifier=(6,))


def fresh(samples: Samples, **changes: object) -> CorrKDNetwork:
    torch.manual_seed(0)
    frames = {m: x.shape[1] for m, x in samples.exists.items()}
    return build_network(samples.target, samples.widths, frames, SMALL.model_copy(update=changes))


def single_pass(
    network: CorrKDNetwork, samples: Samples, single: Condition, draw: int, seed: int
) -> np.ndarray:
    """Evaluate a single condition: mask the full split and run the full network."""
    network.eval()
    batch = samples.take(torch.arange(len(samples)))
    dropped = single.dropped(batch, seed=seed, draw=draw)
    frames, visible = dict(batch.frames), {m: batch.present[m] & ~dropped[m] for m in batch.frames}
    if single.kind == "noise":
        visible = dict(batch.present)
        for m, x in frames.items():
            noisy = noise(batch.keys, *x.shape[1:], seed=seed, modality=m, draw=draw)
            frames[m] = torch.where((dropped[m] & batch.present[m])[..., None], noisy, x)
    inputs = Inputs(frames, batch.exists, visible).with_lengths(samples.lengths)
    with torch.no_grad():
        return torch.softmax(network(inputs).logits, -1).numpy()


@pytest.mark.parametrize("changes", [{}, {"fill": "learned"}, {"exclude_missing": True}])
@pytest.mark.parametrize(
    "names", [("language", "audio", "vision"), ("a", "b"), ("a", "b", "c", "d")]
)
def test_a_sweep_agrees_with_one_condition_at_a_time(
    names: tuple[str, ...], changes: dict[str, object]
) -> None:
    samples = make_samples(make_dataset(dict(zip(names, (5, 3, 4, 2), strict=False))), "test")
    network = fresh(samples, **changes)
    conditions = standard_conditions(
        names,
        EvaluationSettings(
            conditions={"ratio": [0.0, 0.4, 1.0], "late": [0.5], "noise": [0.5]}, draws=2
        ),
        incomplete=np.array([False]),
    )
    results = sweep(network, samples, conditions, mask_seed=5, batch_size=7)
    assert len(results) == sum(c.draws for c in conditions)
    for result in results:
        expected = single_pass(network, samples, result.condition, result.draw, 5)
        np.testing.assert_allclose(result.response, expected, atol=1e-5)


def test_encoders_run_once_for_present_and_once_for_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples(make_dataset(), "test")
    network = fresh(samples)
    calls: list[str] = []
    encode = network.encode
    monkeypatch.setattr(
        network, "encode", lambda m, inputs: (calls.append(m), encode(m, inputs))[1]
    )
    sweep(network, samples, subsets(samples.modalities), batch_size=1000)
    assert sorted(calls) == ["audio"] * 2 + ["language"] * 2 + ["vision"] * 2


def test_a_missing_modality_is_encoded_once_for_all_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = make_samples(make_dataset(), "test")
    network = fresh(samples)
    shapes: dict[str, list[tuple[int, ...]]] = {m: [] for m in samples.modalities}
    encode = network.encode

    def counted(m: str, inputs: Inputs) -> torch.Tensor:
        if not inputs.visible[m].any():
            assert inputs.exists[m].all()
            shapes[m].append(tuple(inputs.exists[m].shape))
        return encode(m, inputs)

    monkeypatch.setattr(network, "encode", counted)
    sweep(network, samples, subsets(samples.modalities), batch_size=7)
    assert shapes == {m: [(1, samples.lengths[m])] for m in samples.modalities}


def test_batch_size_changes_only_rounding_and_mode_is_kept() -> None:
    samples = make_samples(make_dataset(), "test")
    network = fresh(samples).train()
    tested = [condition("ratio-0.5", samples.modalities), condition("audio", samples.modalities)]
    for first, second in zip(
        sweep(network, samples, tested, batch_size=3),
        sweep(network, samples, tested, batch_size=36),
        strict=True,
    ):
        np.testing.assert_allclose(first.response, second.response, atol=1e-6)
    assert network.training


def test_natural_and_intact_divide_the_samples_by_what_the_data_lacks() -> None:
    dataset = make_dataset()
    present = dataset.splits["test"].present["audio"]
    present[[3, 8], 0] = False
    samples = make_samples(dataset, "test")
    network = fresh(samples)
    natural, intact, complete = sweep(
        network,
        samples,
        [condition(name, samples.modalities) for name in ("natural", "intact", "complete")],
    )
    assert natural.rows.tolist() == [3, 8]
    assert intact.rows.tolist() == [row for row in range(len(samples)) if row not in (3, 8)]
    np.testing.assert_array_equal(intact.response, complete.response[intact.rows])
    np.testing.assert_array_equal(natural.response, complete.response[[3, 8]])


def test_representations_are_kept_on_request() -> None:
    samples = make_samples(make_dataset(), "test")
    results = sweep(
        fresh(samples), samples, subsets(samples.modalities), keep_representations=["audio"]
    )
    kept = {r.condition.name: r.representation for r in results if r.representation is not None}
    assert list(kept) == ["audio"]
    assert kept["audio"].shape == (36, 24)


def test_the_selection_score_is_the_mean_over_the_missing_subsets() -> None:
    from corrkd.evaluation.judge import tabulate

    samples = make_samples(make_dataset(), "valid")
    network = fresh(samples)
    table = tabulate(
        sweep(network, samples, subsets(samples.modalities)),
        samples.target,
        samples.targets.numpy(),
        samples.modalities,
    )
    f1 = table[table.metric == "weighted_f1"].set_index("condition")["value"]
    assert mean_missing_f1(network, samples) == pytest.approx(
        f1.drop(["complete", "average"]).mean()
    )
    assert f1["average"] == pytest.approx(f1.drop(["complete", "average"]).mean())
