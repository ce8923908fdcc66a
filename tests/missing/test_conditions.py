from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from corrkd.data.batches import Batch, for_masks, sample_key
from corrkd.errors import CorrKDError
from corrkd.experiment.settings import load_settings
from corrkd.missing.conditions import (
    PROTOCOLS,
    Condition,
    check_settings,
    condition,
    condition_class,
    missing_subsets,
    named_conditions,
    standard_conditions,
    subsets,
)
from corrkd.missing.conditions.absent import Absent
from corrkd.settings import EvaluationSettings
from tests.conftest import Offer, make_dataset, make_samples

NAMES = ("language", "audio", "vision")


def test_subsets_are_the_papers_columns() -> None:
    expected = [
        "language",
        "audio",
        "vision",
        "language+audio",
        "language+vision",
        "audio+vision",
        "complete",
    ]
    assert [c.name for c in subsets(NAMES)] == expected
    assert [c.name for c in missing_subsets(NAMES)] == expected[:-1]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_modalities(count: int) -> None:
    names = [f"m{k}" for k in range(count)]
    assert len(subsets(names)) == 2**count - 1
    assert len(missing_subsets(names)) == max(1, 2**count - 2)


def test_names_are_read_back() -> None:
    for expected in standard_conditions(
        NAMES,
        EvaluationSettings(conditions={"late": [0.5], "noise": [0.25]}),
        incomplete=np.array([True, False]),
    ):
        assert condition(expected.name, NAMES, draws=3) == expected
    assert condition("vision+language", NAMES).name == "language+vision"


@pytest.mark.parametrize(
    "name",
    ["", "speech", "ratio-1.5", "ratio-x", "ratio-nan", "language+speech", "burst", "blur-0.5"],
)
def test_an_unknown_name_lists_the_available_conditions(name: str) -> None:
    with pytest.raises(
        CorrKDError, match=r"unknown condition .*; available: complete, language, audio, vision"
    ):
        condition(name, NAMES)


def test_deterministic_conditions_are_drawn_once() -> None:
    conditions = {
        c.name: c
        for c in standard_conditions(
            NAMES,
            EvaluationSettings(draws=4, conditions={"late": [0.5]}),
            incomplete=np.array([False]),
        )
    }
    assert (
        conditions["ratio-0.0"].draws
        == conditions["ratio-1.0"].draws
        == conditions["complete"].draws
        == conditions["late-0.5"].draws
        == 1
    )
    assert conditions["ratio-0.5"].draws == conditions["burst-0.5"].draws == 4
    assert "natural" not in conditions


@pytest.mark.parametrize(
    ("incomplete", "expected"),
    [([True, False], {"natural", "intact"}), ([True], {"natural"}), ([False], set())],
)
def test_samples_are_divided_only_where_some_are_incomplete(
    incomplete: list[bool], expected: set[str]
) -> None:
    conditions = standard_conditions(NAMES, EvaluationSettings(), incomplete=np.array(incomplete))
    assert {c.name for c in conditions} & {"natural", "intact"} == expected


def test_all_is_dropped_at_one_and_nothing_at_zero() -> None:
    samples = make_samples(make_dataset())
    batch = samples.take(torch.arange(len(samples)))
    for kind in ("ratio", "burst", "late"):
        everything = condition(f"{kind}-1.0", NAMES).dropped(batch, seed=0, draw=0)
        nothing = condition(f"{kind}-0.0", NAMES).dropped(batch, seed=0, draw=0)
        for m in NAMES:
            assert everything[m][batch.exists[m]].all()
            assert not nothing[m][batch.exists[m]].any()


def test_draws_differ_and_ratios_are_nested() -> None:
    samples = make_samples(make_dataset())
    batch = samples.take(torch.arange(len(samples)))
    for kind in ("ratio", "burst"):
        low, high = condition(f"{kind}-0.3", NAMES, 2), condition(f"{kind}-0.6", NAMES, 2)
        for m in NAMES:
            exists = batch.exists[m]
            inner, outer = (
                low.dropped(batch, seed=0, draw=0)[m],
                high.dropped(batch, seed=0, draw=0)[m],
            )
            assert not (inner & ~outer & exists).any()
            assert not torch.equal(outer & exists, high.dropped(batch, seed=0, draw=1)[m] & exists)


@pytest.mark.parametrize(
    "name", ["complete", "average", "ratios", "natural", "ratio-0.3", "noise-x", "a+b", "a,b", ""]
)
def test_a_modality_named_like_a_condition_is_refused(name: str) -> None:
    with pytest.raises(CorrKDError, match="give it another"):
        subsets(["audio", name])


def test_any_ratio_has_a_name_and_noise_is_always_random() -> None:
    conditions = standard_conditions(
        NAMES,
        EvaluationSettings(conditions={"ratio": [0.00001, 0.25, 1], "noise": [1.0]}, draws=2),
        incomplete=np.array([False]),
    )
    names = {c.name: c for c in conditions if c.kind in ("ratio", "noise")}
    assert set(names) == {"ratio-0.00001", "ratio-0.25", "ratio-1.0", "noise-1.0"}
    assert all(condition(name, NAMES, 2) == c for name, c in names.items())
    assert names["noise-1.0"].draws == 2


@pytest.mark.parametrize("name", ["audio", "ratio-0.5", "burst-0.5", "late-0.5", "absent-0.5"])
def test_a_raw_split_gets_the_masks_of_its_samples(name: str) -> None:
    """Masks need only ids and lengths."""
    dataset = make_dataset()
    samples = make_samples(dataset, "test")
    selected = condition(name, samples.modalities)
    raw = selected.dropped(for_masks(dataset.split("test")), seed=5, draw=0)
    dropped = selected.dropped(samples.without_frames(), seed=5, draw=0)
    assert any(mask.any() for mask in dropped.values())
    for m, mask in dropped.items():
        assert torch.equal(raw[m], mask)


@pytest.mark.parametrize("name", ["noise", "late", "natural-language", "ratios-of"])
def test_a_modality_may_share_a_word_with_a_condition(name: str) -> None:
    assert condition(name, ["audio", name]).available == (name,)


def test_settings_change_one_kind_and_leave_the_others() -> None:
    defaults = EvaluationSettings().conditions
    changed = load_settings(overrides=["evaluation.conditions.burst=[0.2]"]).evaluation
    assert changed.conditions == {**defaults, "burst": [0.2]}
    assert (
        EvaluationSettings(conditions={"burst": (0.2,)}) == changed
    )  # a tuple is read back as a list
    names = {
        c.name for c in standard_conditions(NAMES, changed, incomplete=np.array([True, False]))
    }
    assert {n for n in names if n.startswith("burst")} == {"burst-0.2"}
    assert {"ratio-0.1", "natural"} <= names


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"ratio": [0.5, 2]},
            r"settings: evaluation\.conditions\.ratio\.1: input should be less than or equal to "
            r"1 \(given: 2\)",
        ),
        (
            {"late": 0.5},
            r"settings: evaluation\.conditions\.late: input should be a valid tuple \(given: "
            r"0\.5\)",
        ),
        (
            {"burst": [0.5] * 1001},
            r"settings: evaluation\.conditions\.burst: tuple should have at most 1000 items",
        ),
        (
            {"natural": "perhaps"},
            r"settings: evaluation\.conditions\.natural: input should be a valid boolean",
        ),
        (
            {"blur": [0.5]},
            "settings: evaluation.conditions: unknown condition 'blur'; available: ratio, "
            "burst, late, noise, natural",
        ),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(CorrKDError, match=message) as caught:
        check_settings(values)
    assert "\n" not in str(caught.value)


class Blur(Condition):
    """Its entry point has another name."""

    kind = "haze"


class HazeBlur(Condition):
    """Its kind cannot be parsed from a condition's name."""

    kind = "haze-blur"


@pytest.mark.parametrize(
    ("name", "class_", "message"),
    [
        ("blur", "Blur", r"Blur\.kind is 'haze'; it must be the name of the entry point"),
        ("haze-blur", "HazeBlur", "'haze-blur': the name of a kind of condition must have no -"),
    ],
)
def test_a_kind_that_cannot_be_parsed_from_a_name_is_refused(
    offer: Offer, name: str, class_: str, message: str
) -> None:
    offer("corrkd.conditions", **{name: f"{__name__}:{class_}"})
    with pytest.raises(CorrKDError, match=message):
        condition_class(name)


def test_noise_replaces_frames_and_hides_none() -> None:
    samples = make_samples(make_dataset())
    batch = samples.take(torch.arange(len(samples)))
    noisy, missing = condition("noise-0.5", NAMES), condition("ratio-0.5", NAMES)
    with_noise = noisy.apply(batch, seed=1, draw=0)
    with_missing = missing.apply(batch, seed=1, draw=0)
    for m in NAMES:
        assert torch.equal(noisy.visible(batch, seed=1, draw=0)[m], batch.present[m])
        assert torch.equal(missing.visible(batch, seed=1, draw=0)[m], with_missing.visible[m])
        assert torch.equal(
            (with_noise.frames[m] != batch.frames[m]).any(2),
            batch.present[m] & ~with_missing.visible[m],
        )


@pytest.mark.parametrize("name", ["ratio-0.5", "noise-0.5"])
def test_masks_can_be_passed_in(name: str) -> None:
    samples = make_samples(make_dataset())
    batch = samples.take(torch.arange(len(samples)))
    selected = condition(name, NAMES, 2)
    replayed = selected.apply(
        batch, seed=1, draw=0, masks={m: torch.zeros_like(x) for m, x in batch.exists.items()}
    )
    for m in NAMES:
        assert torch.equal(replayed.frames[m], batch.frames[m])
        assert torch.equal(replayed.visible[m], batch.present[m])


RATES = st.floats(0, 1, width=32)


def absent_from(rate: float, batch: Batch, seed: int = 0, draw: int = 0) -> torch.Tensor:
    """Return which modalities "absent" drops from which samples, (N, M)."""
    dropped = Absent.at(rate, tuple(batch.exists)).dropped(batch, seed=seed, draw=draw)
    for m, mask in dropped.items():
        assert mask.shape == batch.exists[m].shape
        assert torch.equal(mask.any(1), mask.all(1))
    return torch.stack([mask.all(1) for mask in dropped.values()], 1)


def make_batch(count: int = 20_000, modalities: int = 3) -> Batch:
    """Return samples with one frame of each modality, without the frames' values."""
    exists = {f"m{k}": torch.ones(count, 1, dtype=torch.bool) for k in range(modalities)}
    keys = torch.tensor([sample_key(f"sample {i}") for i in range(count)])
    return Batch(
        frames={},
        exists=exists,
        present=exists,
        targets=torch.zeros(count),
        keys=keys,
        rows=torch.arange(count),
        frame_keys={},
        lengths={},
    )


@pytest.mark.parametrize("modalities", [2, 3, 5])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
def test_absent_reaches_its_mean_rate_and_leaves_one_modality(rate: float, modalities: int) -> None:
    batch = make_batch(modalities=modalities)
    dropped = absent_from(rate, batch)
    assert not dropped.all(1).any()
    reachable = min(rate, 1 - 1 / modalities)
    deviation = 3 / len(batch) ** 0.5
    assert dropped.float().mean().item() == pytest.approx(reachable, abs=deviation)
    assert dropped.float().mean(0).tolist() == pytest.approx(
        [reachable] * modalities, abs=deviation
    )
    if rate > 1 - 1 / modalities:
        assert (dropped.sum(1) == modalities - 1).all()


@given(RATES, RATES, st.integers(0, 99), st.integers(1, 4), st.permutations(range(12)))
@settings(deadline=None, max_examples=50)
def test_absent_is_nested_and_depends_only_on_seed_and_sample(
    first: float, second: float, seed: int, modalities: int, order: list[int]
) -> None:
    batch = make_batch(12, modalities)
    low, high = sorted((first, second))
    inner, outer = absent_from(low, batch, seed), absent_from(high, batch, seed)
    assert not (inner & ~outer).any()
    assert not outer.all(1).any()
    rows = torch.tensor(order)
    shuffled = replace(
        batch,
        keys=batch.keys[rows],
        exists={m: x[rows] for m, x in reversed(batch.exists.items())},
        present=batch.present,
    )
    assert torch.equal(absent_from(high, shuffled, seed).flip(1), outer[rows])
    assert torch.equal(absent_from(high, batch, seed), outer)


def test_absent_draws_and_seeds_differ() -> None:
    batch = make_batch(200)
    dropped = absent_from(0.4, batch)
    assert not torch.equal(dropped, absent_from(0.4, batch, draw=1))
    assert not torch.equal(dropped, absent_from(0.4, batch, seed=1))


def test_absent_leaves_a_modality_that_the_sample_has() -> None:
    """Where the data lack a modality, the rate applies to the others."""
    batch = make_batch()
    batch = replace(batch, present={**batch.present, "m1": torch.zeros_like(batch.exists["m1"])})
    for rate in (0.3, 1.0):
        dropped = absent_from(rate, batch)[:, [0, 2]]
        assert not dropped.all(1).any()
        assert dropped.float().mean().item() == pytest.approx(min(rate, 0.5), abs=0.02)


def test_a_single_modality_is_never_absent() -> None:
    assert not absent_from(1.0, make_batch(50, 1)).any()


def test_absent_is_one_subset_only_at_zero() -> None:
    assert condition("absent-0.0", NAMES, 3).draws == 1
    assert condition("absent-0.0", NAMES).complete_modalities == NAMES
    assert condition("absent-1.0", NAMES, 3).draws == 3
    assert condition("absent-1.0", NAMES).complete_modalities is None


def test_the_settings_list_all_protocols() -> None:
    every = EvaluationSettings(protocols=tuple(PROTOCOLS), conditions={"ratio": [0.5], "burst": []})  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="'lnln' or 'gcnet'"):
        EvaluationSettings(protocols=("none",))  # type: ignore[arg-type]
    names = [c.name for c in standard_conditions(NAMES, every, incomplete=np.array([False]))]
    assert len(set(names)) == len(names)
    assert set(names) - {c.name for c in subsets(NAMES)} == {
        *(f"ratio-0.{k}" for k in range(10)),
        *(f"absent-0.{k}" for k in range(8)),
    }


@pytest.mark.parametrize(("modalities", "highest"), [(1, 0.0), (2, 0.5), (3, 0.7), (4, 0.7)])
def test_gcnet_ends_where_a_single_modality_remains(modalities: int, highest: float) -> None:
    rates = [c.ratio for c in PROTOCOLS["gcnet"].conditions([f"m{k}" for k in range(modalities)])]
    assert rates == [k / 10 for k in range(round(10 * highest) + 1)]


def test_a_protocols_mean_expands_to_its_conditions() -> None:
    names = [c.name for c in named_conditions(["audio", "mean-lnln", "ratio-0.3"], NAMES, 2)]
    assert names == ["audio", *(f"ratio-0.{k}" for k in range(10))]
    with pytest.raises(CorrKDError, match="give it another"):
        subsets(["audio", "mean-gcnet"])
