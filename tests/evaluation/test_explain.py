from __future__ import annotations

import io
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from pydantic import BaseModel
from torch import Tensor, nn

from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.evaluation.explain import (
    Effect,
    Explanation,
    explain,
    fill_of,
    log_odds,
    modality_effects,
)
from corrkd.networks.base import AnyNetwork, Network, Output
from corrkd.networks.registry import BUILT_IN, network_class
from corrkd.networks.saved import build_network
from corrkd.report.explanation import AGAINST, FOR, draw
from corrkd.settings import NetworkSettings
from corrkd.targets.base import Target
from corrkd.targets.classes import ClassesTarget
from corrkd.targets.questions import QuestionsTarget
from corrkd.targets.score import ScoreTarget
from tests.conftest import map_tensors, overwrite_invisible

WIDTHS = {"language": 5, "audio": 3, "vision": 4}
FRAMES = 6
LENGTHS = {"language": 6, "audio": 3, "vision": 5}
TARGETS = {
    "classes": ClassesTarget(name="classes", classes=("negative", "neutral", "positive")),
    "questions": QuestionsTarget(
        name="questions", classes=("no", "yes"), questions=("happy", "sad")
    ),
    "score": ScoreTarget(name="score", classes=("low", "high"), cuts=(0.0,)),
}
TINY = NetworkSettings(width=8, heads=2, feedforward=16, layers=1, classifier=(6,))


def tiny(kind: str = "classes", *, scale: float = 2.0, **changes: Any) -> AnyNetwork:
    """Return CorrKD's network in float64, with large weights and a fill for each modality."""
    torch.manual_seed(3)
    network = build_network(
        TARGETS[kind], WIDTHS, dict.fromkeys(WIDTHS, FRAMES), TINY.model_copy(update=changes)
    )
    network.set_fill({m: torch.linspace(-0.5, 0.5, width) for m, width in WIDTHS.items()})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
        for encoder in network.encoders:
            if isinstance(encoder.fill, nn.Parameter):
                encoder.fill.copy_(torch.randn(encoder.fill.shape))
    return network.double().eval()


def sample(
    seed: int = 0,
    widths: Mapping[str, int] = WIDTHS,
    *,
    gaps: bool = True,
    missing: tuple[str, ...] = (),
) -> Inputs:
    """Return a sample with padding in each modality but the first, and missing frames in each but
    the last.
    """
    random = torch.Generator().manual_seed(seed)
    frames, exists, visible = {}, {}, {}
    for i, (m, width) in enumerate(widths.items()):
        exists[m] = (torch.arange(FRAMES) < FRAMES - i)[None]
        visible[m] = exists[m].clone() if m not in missing else torch.zeros_like(exists[m])
        if gaps and i < len(widths) - 1:
            visible[m][0, 1 + i] = False
        frames[m] = torch.randn(1, FRAMES, width, generator=random, dtype=torch.float64)
    return Inputs(frames, exists, visible)


def explained(network: AnyNetwork, inputs: Inputs, **options: Any) -> Explanation:
    """Call `explain` with the canonical lengths of these tests."""
    return explain(network, inputs, lengths=LENGTHS, **options)


def quantity_of(kind: str, output: int | None, question: int | None) -> Callable[[Tensor], Tensor]:
    """Return the explained quantity as a function of logits (1, K), (1, Q, 2) or (1, 1)."""

    def scalar(logits: Tensor) -> Tensor:
        if kind == "score":
            return logits[0, 0]
        row = logits[0] if question is None else logits[0, question]
        share = torch.softmax(row, -1)[output]
        return torch.log(share / (1 - share))

    return scalar


def plain_gradients(
    network: AnyNetwork,
    inputs: Inputs,
    scalar: Callable[[Tensor], Tensor],
    fills: Mapping[str, Tensor],
    steps: int,
) -> dict[str, list[float]]:
    """Compute integrated gradients by loops over quadrature points and frames."""
    frames, _, visible = inputs
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    total = {m: torch.zeros_like(x) for m, x in frames.items()}
    for node, weight in zip(nodes, weights, strict=True):
        share = (node + 1) / 2
        moved = {m: (fills[m] + share * (x - fills[m])).requires_grad_() for m, x in frames.items()}
        scalar(network(inputs._replace(frames=moved)).logits).backward(inputs=list(moved.values()))
        for m, x in moved.items():
            assert x.grad is not None
            total[m] += weight / 2 * x.grad
    out = {}
    for m, x in frames.items():
        out[m] = []
        for t in range(FRAMES):
            out[m].append(
                float(((x[0, t] - fills[m]) * total[m][0, t]).sum()) if visible[m][0, t] else 0.0
            )
    return out


# --------------------------------------------------------------------------------------------------
# frames


@pytest.mark.parametrize(
    ("kind", "output", "question"),
    [
        ("classes", 0, None),
        ("classes", 2, None),
        ("questions", 1, 0),
        ("questions", 0, 1),
        ("score", None, None),
    ],
)
@pytest.mark.parametrize("fill", ["zeros", "mean", "learned"])
def test_integrated_gradients_by_a_plain_loop(
    kind: str, output: int | None, question: int | None, fill: str
) -> None:
    network, inputs = tiny(kind, fill=fill), sample()
    result = explained(
        network, inputs, target=TARGETS[kind], output=output, question=question, steps=9
    )
    fills = {m: encoder.fill.detach() for m, encoder in zip(WIDTHS, network.encoders, strict=True)}
    assert all(bool(f.any()) is (fill != "zeros") for f in fills.values())
    expected = plain_gradients(network, inputs, quantity_of(kind, output, question), fills, 9)
    assert result.steps == 9
    assert list(result.frames) == list(WIDTHS)
    for m in WIDTHS:
        assert np.abs(expected[m]).max() > 1e-3
        np.testing.assert_allclose(
            result.frames[m], expected[m], rtol=1e-5, atol=1e-7
        )  # captum's weights are float32


@pytest.mark.parametrize("kind", ["classes", "questions", "score"])
@pytest.mark.parametrize(
    "changes", [{"fill": "mean"}, {"fill": "learned"}, {"exclude_missing": True}]
)
def test_attributions_add_up_to_the_difference_from_the_baseline(
    kind: str, changes: dict[str, Any]
) -> None:
    network, target = tiny(kind, scale=1.3, **changes), TARGETS[kind]
    question = 1 if kind == "questions" else None
    missed: dict[int, list[float]] = {2: [], 128: []}
    for seed in range(4):
        inputs = sample(seed)
        for steps, gaps in missed.items():
            result = explained(network, inputs, target=target, question=question, steps=steps)
            total = sum(sum(row) for row in result.frames.values())
            assert result.gap == pytest.approx(total - (result.value - result.baseline), abs=1e-12)
            gaps.append(abs(result.gap))
        if "fill" in changes:  # the baseline is the output with everything missing
            nothing = {m: torch.zeros_like(x) for m, x in inputs.visible.items()}
            output = None if kind == "score" else target.classes.index(str(result.label))
            expected = quantity_of(kind, output, question)(
                network(inputs._replace(visible=nothing)).logits
            )
            assert result.baseline == pytest.approx(expected.item(), abs=1e-9)
            assert result.baseline != result.value
    assert max(missed[128]) < min(0.01, 0.1 * max(missed[2]))


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_invisible_frames_get_no_attribution_whatever_their_values(data: st.DataObject) -> None:
    network, frames = tiny(), sample(data.draw(st.integers(0, 99))).frames
    masks = st.lists(st.booleans(), min_size=FRAMES, max_size=FRAMES).map(
        lambda row: torch.tensor([row])
    )
    exists, visible = ({m: data.draw(masks) for m in WIDTHS} for _ in range(2))
    inputs = Inputs(frames, exists, visible)
    result = explained(network, inputs, target=TARGETS["classes"], steps=3)
    junk = data.draw(st.sampled_from([math.nan, math.inf, -7.0, 1e300]))
    spoilt = {
        m: torch.where((exists[m] & visible[m])[..., None], x, junk) for m, x in frames.items()
    }
    assert (
        explained(network, inputs._replace(frames=spoilt), target=TARGETS["classes"], steps=3)
        == result
    )
    for m in WIDTHS:
        mask = (exists[m] & visible[m])[0].tolist()
        assert (result.exists[m], result.visible[m]) == (tuple(exists[m][0].tolist()), tuple(mask))
        assert [a for a, seen in zip(result.frames[m], mask, strict=True) if not seen] == [
            0.0
        ] * mask.count(False)
        assert any(mask) or result.modalities[m] == Effect(0.0, 0.0)


# --------------------------------------------------------------------------------------------------
# networks that are explained by hand


class NoSettings(BaseModel):
    """No settings."""


class Linear(Network[NoSettings]):
    """Logits are linear in the visible frames, with weights for each position."""

    name = "linear"
    settings_type = NoSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        torch.manual_seed(1)
        self.weights = nn.ParameterList(
            torch.randn(frames[m], widths[m], self.target.num_logits) for m in self.modalities
        )
        self.bias = nn.Parameter(torch.randn(self.target.num_logits))

    def forward(self, inputs: Inputs) -> Output:
        frames = [
            torch.where(inputs.visible[m][..., None], inputs.frames[m], 0.0)
            for m in self.modalities
        ]
        terms = [
            torch.einsum("ntd,tdk->nk", x, w) for x, w in zip(frames, self.weights, strict=True)
        ]
        logits = self.bias + torch.stack(terms).sum(0)
        return Output(logits, self.target.shape_logits(self.shifted(logits, frames)))

    def shifted(self, logits: Tensor, frames: list[Tensor]) -> Tensor:
        return logits


class Shifted(Linear):
    """All logits rise together with the audio's frames, which no probability shows."""

    def shifted(self, logits: Tensor, frames: list[Tensor]) -> Tensor:
        return logits + (frames[1] ** 3).sum((1, 2))[:, None]


class Careless(Linear):
    """It reads invisible frames, too."""

    def forward(self, inputs: Inputs) -> Output:
        everything = {m: torch.ones_like(x) for m, x in inputs.exists.items()}
        return super().forward(Inputs(inputs.frames, everything, everything))


def linear(
    target: Target, kind: type[AnyNetwork] = Linear, widths: Mapping[str, int] = WIDTHS
) -> AnyNetwork:
    network = build_network(target, widths, dict.fromkeys(widths, FRAMES), NoSettings(), kind)
    return network.double().eval()


TWO = ClassesTarget(name="binary", classes=("negative", "positive"))


@pytest.mark.parametrize(
    "target", [TWO, TARGETS["questions"], TARGETS["score"]], ids=lambda t: t.name
)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_linear_network_is_explained_exactly(target: Target, steps: int) -> None:
    network, inputs = linear(target), sample()
    question = 1 if target.kind == "questions" else None
    output = None if target.kind == "score" else 1
    result = explained(
        network, inputs, target=target, output=output, question=question, steps=steps
    )
    first = 2 if question else 0

    def slope(x: Tensor) -> Tensor:
        """Return the slope of the second class's log-odds, or of the score."""
        return x[..., 0] if target.kind == "score" else x[..., first + 1] - x[..., first]

    value = slope(network.bias).item()
    assert result.baseline == pytest.approx(value)
    for m, weight in zip(WIDTHS, network.weights, strict=True):
        expected = (slope(weight) * inputs.frames[m][0]).sum(-1) * inputs.visible[m][0]
        np.testing.assert_allclose(
            result.frames[m], expected.detach().numpy(), rtol=1e-5, atol=1e-7
        )
        assert result.modalities[m].value == pytest.approx(expected.sum().item())
        value += expected.sum().item()
    assert result.value == pytest.approx(value)
    assert abs(result.gap) < 1e-5
    assert result.quantity == ("score" if target.kind == "score" else "log-odds")
    assert result.question == ("sad" if question else None)
    assert result.label == (None if output is None else target.classes[1])


def test_a_shift_of_all_logits_supports_no_class() -> None:
    inputs, target = sample(), TARGETS["classes"]
    plain, shifted = (
        explained(linear(target, kind), inputs, target=target) for kind in (Linear, Shifted)
    )
    assert shifted.modalities["audio"].value == pytest.approx(plain.modalities["audio"].value)
    for m in WIDTHS:
        np.testing.assert_allclose(shifted.frames[m], plain.frames[m], atol=1e-5)


def test_no_invisible_frame_reaches_even_a_careless_network() -> None:
    spoilt = overwrite_invisible(sample(missing=("vision",)), math.nan)
    careful, careless = (
        explained(linear(TWO, kind), spoilt, target=TWO) for kind in (Linear, Careless)
    )
    assert careless == careful
    assert careless.frames["vision"] == (0.0,) * FRAMES


def test_the_other_class_has_the_opposite_sign() -> None:
    inputs, network = sample(), linear(TWO)
    first, second = (explained(network, inputs, target=TWO, output=k) for k in (0, 1))
    assert second.value == pytest.approx(-first.value)
    assert first.probability is not None
    assert second.probability is not None
    assert first.probability + second.probability == pytest.approx(1.0)
    for m in WIDTHS:
        np.testing.assert_allclose(second.frames[m], -np.array(first.frames[m]), atol=1e-12)
        assert second.modalities[m].probability == pytest.approx(
            -float(first.modalities[m].probability or 0.0)
        )


@given(st.lists(st.floats(-300, 300), min_size=2, max_size=5), st.data())
def test_log_odds(logits: list[float], data: st.DataObject) -> None:
    """They agree with logarithms of sums, and stay finite where a probability rounds to 1."""
    i = data.draw(st.integers(0, len(logits) - 1))
    others = [x for k, x in enumerate(logits) if k != i]
    highest = max(others)
    expected = logits[i] - highest - math.log(sum(math.exp(x - highest) for x in others))
    result = log_odds(torch.tensor([logits], dtype=torch.float64), i)
    assert result.shape == (1,)
    assert result.item() == pytest.approx(expected, abs=1e-9)


# --------------------------------------------------------------------------------------------------
# modalities


@pytest.mark.parametrize("kind", ["classes", "questions", "score"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_effects_of_modalities_by_hand(kind: str, temperature: float) -> None:
    network, inputs = tiny(kind), sample()
    question = 0 if kind == "questions" else None
    result = explained(
        network, inputs, target=TARGETS[kind], question=question, temperature=temperature, steps=1
    )

    def value_and_share(visible: Mapping[str, Tensor]) -> tuple[float, float | None]:
        logits = network(inputs._replace(visible=visible).with_lengths(LENGTHS)).logits.detach()
        if kind == "score":
            return logits.item(), None
        row = torch.softmax(
            (logits[0] if question is None else logits[0, question]) / temperature, -1
        )
        share = row[TARGETS[kind].classes.index(str(result.label))].item()
        return math.log(share / (1 - share)), share

    value, share = value_and_share(inputs.visible)
    assert result.value == pytest.approx(value)
    assert result.probability == (None if share is None else pytest.approx(share))
    for m in WIDTHS:
        less, smaller = value_and_share({**inputs.visible, m: torch.zeros_like(inputs.visible[m])})
        effect = result.modalities[m]
        assert effect.value == pytest.approx(value - less)
        assert abs(effect.value) > 1e-3
        if share is None or smaller is None:
            assert effect.probability is None
        else:
            assert effect.probability == pytest.approx(share - smaller)


def test_the_predicted_class_is_explained_unless_another_is_requested() -> None:
    network = tiny()
    labels = set()
    for seed in range(12):
        inputs = sample(seed)
        logits = network(inputs).logits[0]
        result = explained(network, inputs, target=TARGETS["classes"], steps=1)
        assert result.label == TARGETS["classes"].classes[int(logits.argmax())]
        labels.add(result.label)
        shares = torch.softmax(logits, -1).tolist()
        for k, name in enumerate(TARGETS["classes"].classes):
            requested = explained(network, inputs, target=TARGETS["classes"], output=k, steps=1)
            assert (requested.label, requested.probability) == (name, pytest.approx(shares[k]))
    assert len(labels) > 1


def test_questions_are_explained_one_by_one() -> None:
    network, inputs, target = tiny("questions"), sample(), TARGETS["questions"]
    shares = torch.softmax(network(inputs).logits[0], -1)
    for i, name in enumerate(target.questions):
        result = explained(network, inputs, target=target, question=i, steps=1)
        assert (result.question, result.label) == (name, target.classes[int(shares[i].argmax())])
        assert result.probability == pytest.approx(shares[i].max().item())
    only = replace(target, questions=("happy",))
    assert explained(linear(only), inputs, target=only, steps=1).question == "happy"


def test_a_missing_modality_has_no_effect() -> None:
    network, inputs = tiny(), sample(missing=("audio", "vision")).with_lengths(LENGTHS)
    result = explained(network, inputs, target=TARGETS["classes"])
    for m in ("audio", "vision"):
        assert result.modalities[m] == Effect(0.0, 0.0)
        assert result.frames[m] == (0.0,) * FRAMES
    # Without its only modality the sample is the baseline, as missing frames take part.
    assert result.modalities["language"].value == pytest.approx(result.value - result.baseline)
    assert result.modalities["language"].value != 0.0


def test_without_visible_frames_every_effect_is_zero() -> None:
    result = explained(tiny("score"), sample(missing=tuple(WIDTHS)), target=TARGETS["score"])
    assert result.value == result.baseline
    assert result.gap == 0.0
    assert set(result.modalities.values()) == {Effect(0.0, None)}
    assert all(row == (0.0,) * FRAMES for row in result.frames.values())


def test_the_temperature_divides_log_odds() -> None:
    inputs, network = sample(), linear(TWO)
    full, half = (explained(network, inputs, target=TWO, temperature=t) for t in (1.0, 2.0))
    assert half.label == full.label
    assert half.value == pytest.approx(full.value / 2)
    for m in WIDTHS:
        np.testing.assert_allclose(half.frames[m], np.array(full.frames[m]) / 2, atol=1e-7)


# --------------------------------------------------------------------------------------------------
# every network


@pytest.mark.parametrize("name", [n for n in BUILT_IN if n != "gcnet"])
def test_every_network_can_be_explained(name: str) -> None:
    """In float32, in training mode, with a modality missing and gaps in another."""
    kind = network_class(name)
    torch.manual_seed(0)
    frames = dict.fromkeys(WIDTHS, FRAMES)
    network = build_network(TARGETS["classes"], WIDTHS, frames, kind.settings_type(), kind).train()
    inputs = sample(missing=("vision",))
    inputs = inputs._replace(frames={m: x.float() for m, x in inputs.frames.items()})
    result = explained(network, inputs, target=TARGETS["classes"], steps=128)
    assert abs(result.gap) < 0.02
    assert result.value != result.baseline
    for m in WIDTHS:
        for attribution, visible in zip(result.frames[m], result.visible[m], strict=True):
            assert visible or attribution == 0.0
    with torch.no_grad():
        logits = network.eval()(inputs).logits[0]
    assert result.probability == pytest.approx(torch.softmax(logits, -1).max().item(), abs=1e-5)
    if name == "mctn":  # it reads its source alone
        assert result.modalities["audio"].value == 0.0
        assert result.frames["audio"] == (0.0,) * FRAMES
    elif name != "self-mm":
        assert any(result.frames["audio"])


def test_few_points_of_the_path_are_in_memory_at_once() -> None:
    network, counts = tiny(), []
    network.register_forward_pre_hook(
        lambda _, args: counts.append({len(x) for tensors in args[0] for x in tensors.values()})
    )
    explained(network, sample(), target=TARGETS["classes"], steps=64)
    assert (
        sum(count for (count,) in counts) == 1 + 1 + len(WIDTHS) + 1 + 64
    )  # class, value, without each, baseline, path
    assert max(count for (count,) in counts) <= 16


def test_the_fill_is_the_encoders_or_zeros() -> None:
    x = torch.zeros(1, FRAMES, 3)
    learned = tiny(fill="learned")
    assert torch.equal(fill_of(learned, "audio", x), learned.encoders[1].fill.detach().float())
    assert not fill_of(learned, "audio", x).requires_grad
    assert torch.equal(fill_of(linear(TWO), "audio", x), torch.zeros(3))


def test_conversations_are_not_explained_sample_by_sample() -> None:
    kind = network_class("gcnet")
    network = build_network(
        TARGETS["classes"], WIDTHS, dict.fromkeys(WIDTHS, FRAMES), kind.settings_type(), kind
    )
    with pytest.raises(
        CorrKDError, match="'gcnet' understands a sample among the others of its conversation"
    ):
        explained(network, sample(), target=TARGETS["classes"])


# --------------------------------------------------------------------------------------------------
# nothing is changed


def test_network_inputs_and_random_states_are_left_unchanged() -> None:
    network, inputs = tiny(fill="learned"), sample()
    network.train()
    network.encoders[1].eval()
    first, *others = network.parameters()
    first.requires_grad_(False)
    others[0].grad = torch.full_like(others[0], 3.0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    frames = {m: x.clone() for m, x in inputs.frames.items()}
    cudnn = (
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )
    torch.manual_seed(11)
    random = torch.random.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    result = explained(network, inputs, target=TARGETS["classes"])
    assert torch.equal(torch.random.get_rng_state(), random)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()] == [False] + [True] * len(others)
    assert torch.equal(others[0].grad, torch.full_like(others[0], 3.0))
    assert all(p.grad is None for p in (first, *others[1:]))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(x, frames[m]) and not x.requires_grad for m, x in inputs.frames.items())
    assert torch.is_grad_enabled()
    after = (
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )
    assert after == cudnn
    torch.manual_seed(99)
    with torch.no_grad():
        assert explained(network, inputs, target=TARGETS["classes"]) == result
    watched = {m: x.clone().requires_grad_() for m, x in inputs.frames.items()}
    assert (
        explained(network.eval(), inputs._replace(frames=watched), target=TARGETS["classes"])
        == result
    )
    assert all(x.grad is None for x in watched.values())


def test_modes_are_restored_after_an_error() -> None:
    network, inputs = tiny().train(), sample()
    inputs.frames["audio"][0, 0, 0] = math.nan
    with pytest.raises(CorrKDError, match="the network answered with NaN or infinite values"):
        explained(network, inputs, target=TARGETS["classes"])
    assert all(module.training for module in network.modules())


# --------------------------------------------------------------------------------------------------
# errors


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("classes", {"output": 3}, "class 3; name one of 0 negative, 1 neutral, 2 positive"),
        ("classes", {"output": -1}, "class -1"),
        ("classes", {"question": 0}, "question 0, but the model answers no questions"),
        ("questions", {}, "question None; name one of 0 happy, 1 sad"),
        ("questions", {"question": 2}, "question 2; name one of 0 happy, 1 sad"),
        ("questions", {"question": 0, "output": 2}, "class 2; name one of 0 no, 1 yes"),
        ("score", {"output": 0}, "class 0, but the model answers with a score"),
        ("score", {"question": 0}, "question 0, but the model answers no questions"),
        ("classes", {"steps": 0}, "steps is 0; it must be at least 1"),
        ("classes", {"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ("classes", {"temperature": math.nan}, "temperature is nan"),
    ],
)
def test_invalid_options_are_one_line_errors(
    kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CorrKDError, match=message) as caught:
        explained(tiny(kind), sample(), target=TARGETS[kind], **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_effects_alone_are_those_of_an_explanation(kind: str) -> None:
    network, target = tiny(kind), TARGETS[kind]
    every = modality_effects(network, sample(), target=target, lengths=LENGTHS, temperature=1.7)
    questions: list[Any] = list(range(len(target.questions))) or [None]
    for effects, question in zip(every, questions, strict=True):
        result = explained(network, sample(), target=target, question=question, temperature=1.7)
        assert (effects.quantity, effects.label) == (result.quantity, result.label)
        assert effects.modalities == result.modalities


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_effects_refuse_an_invalid_temperature(temperature: float) -> None:
    with pytest.raises(CorrKDError, match=f"temperature is {temperature}; it must be above 0"):
        modality_effects(
            tiny(), sample(), target=TARGETS["classes"], lengths=LENGTHS, temperature=temperature
        )


def test_inputs_must_be_one_sample_with_every_modality() -> None:
    inputs = sample()
    twice = map_tensors(lambda x: torch.cat([x, x]), inputs)
    with pytest.raises(
        CorrKDError, match=r"explain, language: frames \(2, 6, 5\) .*; expected one sample"
    ):
        explained(tiny(), twice, target=TARGETS["classes"])
    exists, visible = ({**masks, "audio": masks["audio"][:, 1:]} for masks in inputs[1:])
    with pytest.raises(CorrKDError, match=r"explain, audio: .* and visible \(1, 5\)"):
        explained(tiny(), Inputs(inputs.frames, exists, visible), target=TARGETS["classes"])
    without = {m: mask for m, mask in inputs.visible.items() if m != "vision"}
    with pytest.raises(
        CorrKDError, match="explain: no vision; give frames, exists and visible of every modality"
    ):
        explained(tiny(), inputs._replace(visible=without), target=TARGETS["classes"])


def test_without_captum_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(
        CorrKDError, match=r"explaining needs captum: pip install 'corrkd\[explain\]'"
    ):
        explained(tiny(), sample(), target=TARGETS["classes"])


def test_captum_and_matplotlib_are_loaded_only_when_needed(tmp_path: Path) -> None:
    """Pyplot, which keeps figures and opens windows, is never loaded."""
    code = """
import sys
from corrkd.evaluation.explain import Effect, Explanation
assert not {"captum", "matplotlib.figure"} & set(sys.modules)
from corrkd.report.explanation import draw
row = {"a": (True,)}
effects, frames = {"a": Effect(1.0, None)}, {"a": (1.0,)}
result = Explanation("score", None, None, 1.0, None, 0.0, 0.0, 8, effects, frames, row, row)
draw(result).savefig(sys.argv[1])
assert "matplotlib.figure" in sys.modules
assert not {"captum", "matplotlib.pyplot"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True)


@pytest.mark.parametrize("kind", ["classes", "questions", "score"])
def test_as_json(kind: str) -> None:
    question = 1 if kind == "questions" else None
    result = explained(tiny(kind), sample(), target=TARGETS[kind], question=question, steps=2)
    again = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert again == result.to_json()
    assert again["frames"] == {m: list(row) for m, row in result.frames.items()}
    assert again["visible"]["language"] == [True, False, True, True, True, True]
    assert again["exists"]["vision"] == [True, True, True, True, False, False]
    assert again["modalities"]["audio"]["value"] == result.modalities["audio"].value
    assert again["gap"] == result.gap
    assert (
        ("probability" in again["modalities"]["audio"])
        is ("probability" in again)
        is (kind != "score")
    )
    assert ("question" in again) is (kind == "questions")
    assert ("label" in again) is (kind != "score")


# --------------------------------------------------------------------------------------------------
# figure


def make_example(
    lengths: Mapping[str, int], *, missing: tuple[str, ...] = (), **changes: Any
) -> Explanation:
    """Return one with every fifth frame missing and, of more than two, the last as padding."""
    frames, exists, visible, effects = {}, {}, {}, {}
    for i, (m, length) in enumerate(lengths.items()):
        exists[m] = tuple(t < length - 1 or length < 3 for t in range(length))
        visible[m] = tuple(e and t % 5 != 2 and m not in missing for t, e in enumerate(exists[m]))
        frames[m] = tuple(
            math.sin(t + i) if is_visible else 0.0 for t, is_visible in enumerate(visible[m])
        )
        value = sum(frames[m])
        effects[m] = Effect(value, math.tanh(value) / 2)
    standard: dict[str, Any] = {
        "quantity": "log-odds",
        "label": "positive",
        "question": None,
        "value": 0.7,
        "probability": 0.668,
        "baseline": -0.4,
        "gap": 0.0,
        "steps": 64,
        "modalities": effects,
        "frames": frames,
        "exists": exists,
        "visible": visible,
    }
    return Explanation(**standard | changes)


def bars(axes: Axes, *, hatched: bool = False) -> list[Any]:
    return [p for p in axes.patches if bool(p.get_hatch()) is hatched]


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(mpl.text.Text)]


def test_bars_show_the_numbers() -> None:
    example = make_example({"language": 7, "audio": 12, "vision": 5}, missing=("vision",))
    figure = draw(example)
    summary, *rows = figure.axes
    assert len(rows) == 3
    for i, (bar, effect) in enumerate(zip(bars(summary), example.modalities.values(), strict=True)):
        assert bar.get_width() == pytest.approx(effect.value)
        assert bar.get_y() + bar.get_height() / 2 == pytest.approx(i)
    assert summary.yaxis_inverted()  # the first on top
    assert [label.get_text() for label in summary.get_yticklabels()] == list(example.modalities)
    for axes, (m, attributions) in zip(rows, example.frames.items(), strict=True):
        existing = [t for t, real in enumerate(example.exists[m]) if real]
        missing = [t for t in existing if not example.visible[m][t]]
        assert [bar.get_height() for bar in bars(axes)] == pytest.approx(
            [attributions[t] for t in existing]
        )
        assert [bar.get_x() + bar.get_width() / 2 for bar in bars(axes)] == pytest.approx(existing)
        assert [bar.get_x() + 0.5 for bar in bars(axes, hatched=True)] == pytest.approx(missing)
        assert axes.get_xlim() == (-0.5, existing[-1] + 0.5)
        assert axes.get_title("left").startswith(m)
    assert rows[1].get_title("left") == "audio, 2 of 11 frames missing"
    assert ["missing" in [t.get_text() for t in axes.texts] for axes in rows] == [
        False,
        False,
        True,
    ]


def test_all_rows_share_a_symmetric_scale() -> None:
    example = make_example({"a": 9, "b": 3})
    rows = draw(example).axes[1:]
    assert len({axes.get_ylim() for axes in rows}) == 1
    low, high = rows[0].get_ylim()
    assert low == -high
    assert high > max(abs(x) for row in example.frames.values() for x in row)
    for axes in rows:
        below, middle, above = axes.get_yticks()
        assert (middle, below) == (0.0, -above)
        assert 0 < above <= high


def test_colours_show_the_sign() -> None:
    for i, axes in enumerate(draw(make_example({"a": 9, "b": 6, "c": 4})).axes):
        for bar in bars(axes):
            size = bar.get_height() if i else bar.get_width()
            assert to_hex(bar.get_facecolor()).upper() == (AGAINST if size < 0 else FOR)
    dark, light = (
        np.dot(mpl.colors.to_rgb(colour), (0.3, 0.59, 0.11)) for colour in (FOR, AGAINST)
    )
    assert light - dark > 0.25  # in grey, too


@pytest.mark.parametrize(
    ("changes", "title", "legend"),
    [
        ({}, "positive, probability 66.8 %", "speaks for it"),
        (
            {"label": "yes", "question": "happy"},
            "happy: yes, probability 66.8 %",
            "speaks against it",
        ),
        ({"probability": 0.99999}, "positive, probability above 99.9 %", "missing"),
        ({"probability": 1e-9}, "positive, probability below 0.1 %", "missing"),
        ({"label": "$x^2", "value": -0.7}, "$x^2, probability 66.8 %", "missing"),
        (
            {"quantity": "score", "label": None, "probability": None, "value": -1.25},
            "Score −1.25",
            "raises it",
        ),
    ],
)
def test_the_title_says_what_is_explained(changes: dict[str, Any], title: str, legend: str) -> None:
    figure = draw(make_example({"a": 4, "b": 3}, **changes))
    lines = texts(figure)
    assert title in lines
    assert legend in lines
    assert any(t.endswith("from −0.40 where every frame is blank") for t in lines)
    assert not any("use more steps" in t for t in lines)


def test_a_deviating_sum_is_reported() -> None:
    lines = texts(draw(make_example({"a": 4}, gap=-0.2)))
    assert any(t.endswith("the sum over frames deviates by −0.20: use more steps") for t in lines)


def test_the_users_style_is_left_unchanged() -> None:
    def parameters() -> dict[str, Any]:
        return {key: mpl.rcParams[key] for key in mpl.rcParams if not key.startswith("backend")}

    with mpl.rc_context({"axes.facecolor": "black", "font.size": 30, "axes.grid": False}):
        before = parameters()
        figure = draw(make_example({"a": 4}))
        assert parameters() == before
    assert to_hex(figure.axes[0].get_facecolor()) == "#ffffff"
    assert max(text.get_fontsize() for text in figure.findobj(mpl.text.Text)) <= 11


def test_numbers_are_written_beside_the_bars() -> None:
    effects = {"a": Effect(1.234, 0.2567), "b": Effect(-0.5, -0.031)}
    lines = texts(draw(make_example({"a": 4, "b": 4}, modalities=effects)))
    assert {"+1.23\n+25.7 points", "−0.50\n−3.1 points"} <= set(lines)
    score = {m: replace(e, probability=None) for m, e in effects.items()}
    changes = {"quantity": "score", "label": None, "probability": None}
    assert {"+1.23", "−0.50"} <= set(
        texts(draw(make_example({"a": 4, "b": 4}, modalities=score, **changes)))
    )


@pytest.mark.parametrize(
    "example",
    [
        make_example({"a": 1}),
        make_example({"a": 200, "b": 1}),
        make_example({"a": 2, "b": 2}, missing=("a", "b")),
        make_example(
            {"a_very_long_name_of_a_modality_that_goes_on_for_a_line_or_more" * 2: 50, "b" * 90: 9},
            label="x" * 300,
        ),
        make_example({m: 30 + i for i, m in enumerate("vwxyz")}, missing=("w",)),
    ],
    ids=["one frame", "200 frames", "nothing", "long names", "five"],
)
def test_everything_lies_within_the_figure(example: Explanation) -> None:
    figure = draw(example)
    width, height = figure.bbox.size
    panels = [axes.get_tightbbox() for axes in figure.axes]
    lines = [text.get_window_extent() for f in (figure, *figure.subfigs) for text in f.texts]
    for box in (*panels, *lines, figure.legends[0].get_window_extent()):
        assert box is not None
        assert -1 <= box.x0 < box.x1 <= width + 1
        assert -1 <= box.y0 < box.y1 <= height + 1
    for first, second in itertools.combinations(panels, 2):
        assert not first.overlaps(second)
    summary, *rows = figure.axes
    for axes in rows:
        assert axes.get_window_extent().width > 0.4 * width
        assert axes.get_window_extent().height > 30
    assert summary.get_window_extent().width > 0.1 * width
    for ending, start in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        file = io.BytesIO()
        figure.savefig(file, format=ending)
        assert file.getvalue().startswith(start)
