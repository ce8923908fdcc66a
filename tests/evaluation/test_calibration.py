from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from corrkd.data.batches import Samples
from corrkd.evaluation.calibration import (
    Calibration,
    coverage_by_group,
    fit_temperatures,
    fit_thresholds,
    group_quantile,
)
from corrkd.evaluation.judge import tabulate
from corrkd.evaluation.sweep import Result, sweep
from corrkd.missing.conditions import named_conditions
from corrkd.networks.saved import build_network
from corrkd.settings import NetworkSettings
from corrkd.targets.calibration import fit_temperature, in_set, tempered
from corrkd.targets.classes import ClassesTarget
from tests.conftest import make_dataset, make_samples


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.2, 8.0))
def test_the_temperature_recovers_the_scale_of_the_logits(seed: int, scale: float) -> None:
    """Labels drawn from softmax(x): logits scale * x need the temperature `scale`."""
    random = torch.Generator().manual_seed(seed)
    true = 2 * torch.randn(4000, 3, generator=random, dtype=torch.float64)
    labels = torch.multinomial(true.softmax(-1), 1, generator=random)[:, 0]
    temperature = fit_temperature(scale * true, labels)
    assert temperature == pytest.approx(scale, rel=0.15)
    best = cross_entropy(scale * true / temperature, labels)
    for other in (0.9 * temperature, 1.1 * temperature):
        assert cross_entropy(scale * true / other, labels) > best


def test_questions_share_a_temperature_within_bounds() -> None:
    logits = torch.tensor([[[5.0, 0.0], [0.0, 5.0]], [[0.0, 5.0], [5.0, 0.0]]])
    right = torch.tensor([[0, 1], [1, 0]])
    assert 0.05 <= fit_temperature(logits, right) < 0.5
    assert fit_temperature(logits, 1 - right) == pytest.approx(20.0, rel=0.1)
    flat = fit_temperature(logits.flatten(0, 1), torch.tensor([0, 1, 0, 0]))
    assert fit_temperature(logits, torch.tensor([[0, 1], [0, 0]])) == pytest.approx(flat)


def plain_group_quantile(values: list[float], groups: list[str], level: float) -> float:
    """Return the smallest value that enough of the weight does not exceed, by a loop."""
    names = sorted(set(groups))
    for value in sorted(values):
        weight = 0.0
        for name in names:
            of_group = [v for v, g in zip(values, groups, strict=True) if g == name]
            weight += sum(v <= value for v in of_group) / len(of_group) / (len(names) + 1)
        if weight >= level - 1e-12:
            return value
    return math.inf


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abcdefgh")), min_size=1, max_size=30),
    st.floats(0.05, 0.95),
)
def test_group_quantile_agrees_with_a_loop(drawn: list[tuple[int, str]], level: float) -> None:
    values, groups = [float(v) for v, _ in drawn], [g for _, g in drawn]
    result = group_quantile(np.array(values), np.array(groups), level)
    assert result == plain_group_quantile(values, groups, level)


def test_a_group_weighs_the_same_whatever_its_size() -> None:
    values = np.array([0.9] * 100 + [0.1, 0.2, 0.3, 0.4])
    groups = np.array(["loud"] * 100 + list("abcd"))
    assert group_quantile(values, groups, 0.6) == 0.4
    assert group_quantile(values, groups, 0.8) == 0.9
    assert group_quantile(values, groups, 0.9) == math.inf  # five groups promise no more than 5/6


def test_sets_contain_the_truth_of_new_people_at_the_requested_rate() -> None:
    """Each person has a bias; coverage is over new people and many repetitions."""
    rng = np.random.default_rng(0)
    target = ClassesTarget(name="classes", classes=("a", "b", "c"))

    def people(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        groups = np.repeat(np.arange(count), rng.integers(1, 12, count))
        bias = rng.normal(size=(count, 3))[groups]
        logits = rng.normal(size=(len(groups), 3)) + bias
        truth = (logits + bias + rng.gumbel(size=logits.shape)).argmax(1)
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), truth, groups

    covered = []
    for _ in range(300):
        response, truth, groups = people(19)
        threshold = group_quantile(target.nonconformity(truth, response), groups, 0.8)
        response, truth, groups = people(20)
        contained = in_set(response, threshold)[np.arange(len(truth)), truth]
        covered.append(np.mean([contained[groups == g].mean() for g in np.unique(groups)]))
    assert 0.8 <= np.mean(covered) + 0.01 <= 0.88


def test_tempered_is_the_softmax_of_divided_logits() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]], dtype=torch.float64)
    response = logits.softmax(-1).numpy()
    np.testing.assert_allclose(
        tempered(response, 2.5), (logits / 2.5).softmax(-1).numpy(), rtol=1e-12
    )
    assert np.isfinite(tempered(np.array([[1.0, 0.0]], np.float32), 0.05)).all()


def make_results(target: str) -> tuple[Samples, list[Result]]:
    samples = make_samples(make_dataset(), "valid", target)
    frames = dict.fromkeys(samples.modalities, 6)
    torch.manual_seed(0)
    network = build_network(
        samples.target, samples.widths, frames, NetworkSettings(width=8, heads=2, layers=1)
    )
    conditions = named_conditions(["complete", "audio", "ratio-0.5"], samples.modalities, 2)
    return samples, sweep(network, samples, conditions)


def test_each_condition_has_a_temperature_fitted_to_all_its_draws() -> None:
    samples, results = make_results("classes")
    truth = samples.targets.numpy()
    temperatures = fit_temperatures(results, samples.target, truth)
    assert list(temperatures) == ["complete", "audio", "ratio-0.5"]
    draws = [r for r in results if r.condition.name == "ratio-0.5"]
    assert len(draws) == 2
    logits = torch.tensor(np.concatenate([r.response for r in draws])).double().log()
    assert temperatures["ratio-0.5"] == pytest.approx(
        fit_temperature(logits, torch.tensor(np.concatenate([truth, truth])))
    )
    score_samples, score_results = make_results("score")
    assert (
        fit_temperatures(score_results, score_samples.target, score_samples.targets.numpy()) == {}
    )


@pytest.mark.parametrize("target", ["classes", "score"])
def test_coverage_by_group_agrees_with_the_table(target: str) -> None:
    samples, results = make_results(target)
    truth, groups = samples.targets.numpy(), np.arange(len(samples)) % 4
    temperatures = fit_temperatures(results, samples.target, truth)
    thresholds = fit_thresholds(results, samples.target, truth, groups, 0.7, temperatures)
    fitted = {n: Calibration(temperatures.get(n, 1.0), t) for n, t in thresholds.items()}
    table = tabulate(results, samples.target, truth, samples.modalities, fitted)
    by_group = coverage_by_group(results, samples.target, truth, groups, fitted)
    for name in ("complete", "audio", "ratio-0.5"):
        group_rows = by_group[by_group["condition"] == name]
        assert group_rows["samples"].sum() == len(samples)
        for metric in ("coverage", "set_size"):
            rows = table[(table["condition"] == name) & (table["metric"] == metric)]
            expected = np.average(group_rows[metric], weights=group_rows["samples"])
            assert rows["value"].mean() == pytest.approx(expected)
        # Four groups have 4/5 of the weight, which must contain 0.7 of the full weight.
        assert (group_rows["coverage"].mean()) >= 0.7 * 5 / 4 - 1e-9
    assert ("ece_calibrated" in set(table["metric"])) == (target == "classes")


def test_without_thresholds_no_coverage_is_reported() -> None:
    samples, results = make_results("classes")
    fitted = {"complete": Calibration(2.0)}
    table = tabulate(results, samples.target, samples.targets.numpy(), samples.modalities, fitted)
    rows = table[table["metric"] == "ece_calibrated"]
    assert set(rows["condition"]) == {"complete"}
    assert "coverage" not in set(table["metric"])
    groups = np.zeros(len(samples), int)
    assert coverage_by_group(results, samples.target, samples.targets.numpy(), groups, fitted).empty
