from __future__ import annotations

import pytest
import torch

from corrkd.data.batches import for_masks
from corrkd.errors import CorrKDError
from corrkd.experiment.settings import load_settings
from corrkd.missing.conditions import (
    Condition,
    check_settings,
    condition,
    condition_class,
    missing_subsets,
    standard_conditions,
    subsets,
)
from corrkd.settings import EvaluationSettings
from tests.conftest import Offer, make_dataset, make_samples

NAMES = ("language", "audio", "vision")


def test_subsets_are_the_papers_columns() -> None:
    expected = ["language", "audio", "vision", "language+audio", "language+vision", "audio+vision", "complete"]
    assert [c.name for c in subsets(NAMES)] == expected
    assert [c.name for c in missing_subsets(NAMES)] == expected[:-1]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_modalities(count: int) -> None:
    names = [f"m{k}" for k in range(count)]
    assert len(subsets(names)) == 2**count - 1
    assert len(missing_subsets(names)) == max(1, 2**count - 2)


def test_names_are_read_back() -> None:
    for known in standard_conditions(
        NAMES, EvaluationSettings(conditions={"late": [0.5], "noise": [0.25]}), naturally_incomplete=True
    ):
        assert condition(known.name, NAMES, draws=3) == known
    assert condition("vision+language", NAMES).name == "language+vision"


@pytest.mark.parametrize(
    "name", ["", "speech", "ratio-1.5", "ratio-x", "ratio-nan", "language+speech", "burst", "blur-0.5"]
)
def test_an_unknown_name_says_what_is_allowed(name: str) -> None:
    with pytest.raises(CorrKDError, match="unknown; there are complete, language, audio, vision"):
        condition(name, NAMES)


def test_nothing_random_is_drawn_once() -> None:
    chosen = {
        c.name: c
        for c in standard_conditions(
            NAMES, EvaluationSettings(draws=4, conditions={"late": [0.5]}), naturally_incomplete=False
        )
    }
    assert (
        chosen["ratio-0.0"].draws
        == chosen["ratio-1.0"].draws
        == chosen["complete"].draws
        == chosen["late-0.5"].draws
        == 1
    )
    assert chosen["ratio-0.5"].draws == chosen["burst-0.5"].draws == 4
    assert "natural" not in chosen


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
            inner, outer = low.dropped(batch, seed=0, draw=0)[m], high.dropped(batch, seed=0, draw=0)[m]
            assert not (inner & ~outer & exists).any()
            assert not torch.equal(outer & exists, high.dropped(batch, seed=0, draw=1)[m] & exists)


@pytest.mark.parametrize("name", ["complete", "average", "ratios", "natural", "ratio-0.3", "noise-x", "a+b", "a,b", ""])
def test_a_modality_cannot_be_called_like_a_condition(name: str) -> None:
    with pytest.raises(CorrKDError, match="give it another"):
        subsets(["audio", name])


def test_any_ratio_has_a_name_and_noise_is_always_random() -> None:
    chosen = standard_conditions(
        NAMES,
        EvaluationSettings(conditions={"ratio": [0.00001, 0.25, 1], "noise": [1.0]}, draws=2),
        naturally_incomplete=False,
    )
    names = {c.name: c for c in chosen if c.kind in ("ratio", "noise")}
    assert set(names) == {"ratio-0.00001", "ratio-0.25", "ratio-1.0", "noise-1.0"}
    assert all(condition(name, NAMES, 2) == c for name, c in names.items())
    assert names["noise-1.0"].draws == 2


@pytest.mark.parametrize("name", ["audio", "ratio-0.5", "burst-0.5", "late-0.5"])
def test_a_raw_split_loses_what_its_samples_lose(name: str) -> None:
    """Masks need no network's samples, only ids and lengths."""
    dataset = make_dataset()
    samples = make_samples(dataset, "test")
    chosen = condition(name, samples.modalities)
    raw = chosen.dropped(for_masks(dataset.split("test")), seed=5, draw=0)
    dropped = chosen.dropped(samples.without_frames(), seed=5, draw=0)
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
    assert EvaluationSettings(conditions={"burst": (0.2,)}) == changed  # a tuple is a list once it is read again
    names = {c.name for c in standard_conditions(NAMES, changed, naturally_incomplete=True)}
    assert {n for n in names if n.startswith("burst")} == {"burst-0.2"}
    assert {"ratio-0.1", "natural"} <= names


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"ratio": [0.5, 2]},
            r"settings: evaluation\.conditions\.ratio\.1: input should be less than or equal to 1 \(given: 2\)",
        ),
        ({"late": 0.5}, r"settings: evaluation\.conditions\.late: input should be a valid tuple \(given: 0\.5\)"),
        ({"burst": [0.5] * 1001}, r"settings: evaluation\.conditions\.burst: tuple should have at most 1000 items"),
        ({"natural": "perhaps"}, r"settings: evaluation\.conditions\.natural: input should be a valid boolean"),
        (
            {"blur": [0.5]},
            "settings: evaluation.conditions: condition 'blur' is unknown; there are ratio, burst, late, noise, natural",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(values: dict[str, object], line: str) -> None:
    with pytest.raises(CorrKDError, match=line) as caught:
        check_settings(values)
    assert "\n" not in str(caught.value)


class Blur(Condition):
    """Of a kind that its own package calls otherwise."""

    kind = "haze"


@pytest.mark.parametrize("name", ["blur", "haze-blur"])
def test_a_kind_that_no_name_leads_back_to_is_refused(offer: Offer, name: str) -> None:
    offer("corrkd.conditions", **{name: f"{__name__}:Blur"})
    with pytest.raises(CorrKDError, match=rf"condition '{name}': Blur\.kind and its entry point must be one same word"):
        condition_class(name)


def test_what_a_network_sees_under_noise_is_other_than_what_is_left() -> None:
    samples = make_samples(make_dataset())
    batch = samples.take(torch.arange(len(samples)))
    noisy, missing = condition("noise-0.5", NAMES), condition("ratio-0.5", NAMES)
    heard, lost = noisy.apply(batch, seed=1, draw=0), missing.apply(batch, seed=1, draw=0)
    for m in NAMES:
        assert torch.equal(noisy.visible(batch, seed=1, draw=0)[m], batch.present[m])
        assert torch.equal(missing.visible(batch, seed=1, draw=0)[m], lost.visible[m])
        assert torch.equal((heard.frames[m] != batch.frames[m]).any(2), batch.present[m] & ~lost.visible[m])


@pytest.mark.parametrize("name", ["ratio-0.5", "noise-0.5"])
def test_masks_can_be_given_in_place_of_its_own(name: str) -> None:
    samples = make_samples(make_dataset())
    batch = samples.take(torch.arange(len(samples)))
    chosen = condition(name, NAMES, 2)
    replayed = chosen.apply(batch, seed=1, draw=0, masks={m: torch.zeros_like(x) for m, x in batch.exists.items()})
    for m in NAMES:
        assert torch.equal(replayed.frames[m], batch.frames[m])
        assert torch.equal(replayed.visible[m], batch.present[m])
