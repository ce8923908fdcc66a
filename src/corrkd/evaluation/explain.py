"""Attributions of one prediction to modalities and frames, as numbers. corrkd.report.explanation
draws them.

The explained quantity is the log-odds log p/(1 - p) of a class, or the score itself. A logit would
not do, because all logits can rise together without changing any probability. Nor would a
probability, which hardly moves near 0 and 1.

*Modalities*: each is left out in turn. *Frames*: integrated gradients (Sundararajan, Taly & Yan,
Axiomatic Attribution for Deep Networks, ICML 2017), computed by captum. The attributions of the
frames add up to the change of the prediction from uninformative frames to all visible frames. The
effects of the modalities need not add up to anything, since two modalities may be redundant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.networks.base import AnyNetwork
from corrkd.networks.encoder import Encoder
from corrkd.targets.base import Target

# points of the path per pass: 64 copies of a long sample would fill a small machine's memory
AT_ONCE = 16
ByModality = Mapping[str, Tensor]


@dataclass(frozen=True)
class Effect:
    """Effect of a modality: the prediction minus the prediction with all frames of the modality
    missing.

    Attributes:
        value: difference in log-odds or in the score; 0 if the modality is missing already.
        probability: difference in the probability of the explained class, -1 to 1; None for scores.
    """

    value: float
    probability: float | None


@dataclass(frozen=True)
class Explanation:
    """Attributions of one prediction to modalities and frames.

    Attributes:
        quantity: unit of `value`, `baseline`, the effects' values and the frames' attributions:
            "log-odds" of the class, or "score".
        label: the explained class; None for scores.
        question: the yes/no question that `label` answers; None for other targets.
        value: the prediction.
        probability: of the class, 1/(1 + exp(-value)); None for scores.
        baseline: the prediction with every visible frame replaced by the fill of a missing frame
            (`fill_of`).
        gap: sum of all attributions, minus (value - baseline): 0 except for integration error.
        steps: number of points at which the integral was evaluated.
        modalities: effect of each modality.
        frames: attribution of each frame, (T_m,) by modality; 0 where the frame is not visible.
        exists: True for frames that are not padding, (T_m,) by modality.
        visible: True for frames that the network sees, (T_m,) by modality; never True in padding.
    """

    quantity: Literal["log-odds", "score"]
    label: str | None
    question: str | None
    value: float
    probability: float | None
    baseline: float
    gap: float
    steps: int
    modalities: dict[str, Effect]
    frames: dict[str, tuple[float, ...]]
    exists: dict[str, tuple[bool, ...]]
    visible: dict[str, tuple[bool, ...]]

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as JSON values, without the fields that are None."""
        values = _without_none(asdict(self))
        values["modalities"] = {
            m: _without_none(effect) for m, effect in values["modalities"].items()
        }
        for name in ("frames", "exists", "visible"):
            values[name] = {m: list(row) for m, row in values[name].items()}
        return values


@dataclass(frozen=True)
class ModalityEffects:
    """Effect of each modality on one prediction.

    Attributes:
        quantity, label, question: as in `Explanation`.
        modalities: effect of each modality.
    """

    quantity: Literal["log-odds", "score"]
    label: str | None
    question: str | None
    modalities: dict[str, Effect]


# --------------------------------------------------------------------------------------------------
# numbers


def explain(
    network: AnyNetwork,
    inputs: Inputs,
    *,
    target: Target,
    lengths: Mapping[str, int],
    output: int | None = None,
    question: int | None = None,
    temperature: float = 1.0,
    steps: int = 64,
) -> Explanation:
    """Explain the prediction of one sample by its modalities and frames.

    The result is deterministic, and the network's mode is restored.

    Args:
        network: in any mode; it is evaluated in eval mode.
        inputs: of one sample.
        target: of the network.
        lengths: canonical number of frames by modality (`Normalisation.lengths`), used for a
            modality that is left out.
        output: index of the class to explain, 0 to K-1 (0 or 1 for questions); default: the
            predicted class. None for scores.
        question: index of the yes/no question to explain, 0 to Q-1; required if the target has
            several, None if it has none.
        temperature: divides the logits: the temperature of the sample's condition. Not used for
            scores.
        steps: points of the Gauss-Legendre quadrature along the path from the baseline to the
            frames, at least 1.

    Raises:
        CorrKDError: if captum is not installed, `inputs` is not exactly one sample with every
            modality, output, question, temperature or steps are out of range, the network reads
            conversations or token ids, or its output is not finite.
    """
    gradients = _integrated_gradients()
    inputs = _one_sample(network, inputs)
    seen = inputs.visible
    if steps < 1:
        raise CorrKDError(f"explain: steps is {steps}; it must be at least 1")
    _check_temperature(temperature)
    score = not target.has_classes
    # cuDNN would refuse the backward pass of an LSTM in eval mode.
    with _in_eval_mode(network), torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        index, question_index = _output_index(network(inputs).logits[0], target, output, question)

        quantity = partial(
            _quantity, index=index, question=question_index, temperature=temperature, score=score
        )

        def output_of(frames: ByModality) -> Tensor:
            """Return the explained quantity (N,) of N copies of `inputs` with these frames
            (N, T_m, d_m).
            """
            count = max(len(x) for x in frames.values())
            parts = (frames, inputs.exists, inputs.visible)
            spread = [
                {m: x.expand(count, *x.shape[1:]) for m, x in values.items()} for values in parts
            ]
            return quantity(network(Inputs(*spread)).logits)

        value = _finite(output_of(inputs.frames))
        without = {
            m: _finite(quantity(x)) for m, x in _logits_without(network, inputs, lengths).items()
        }
        effects = _effects(value, without, network.modalities, score=score)
        blank = {
            m: torch.where(seen[m][..., None], fill_of(network, m, x), 0.0)
            for m, x in inputs.frames.items()
        }
        baseline = _finite(output_of(blank))
        present = [m for m in network.modalities if seen[m].any()]

        def along(*moved: Tensor) -> Tensor:
            # Autograd raises for unused inputs, but a network may ignore a modality.
            nothing = sum(0.0 * x[:, 0, 0] for x in moved)
            return output_of({**inputs.frames, **dict(zip(present, moved, strict=True))}) + nothing

        integrated: tuple[Tensor, ...] = ()
        if present:
            integrated = gradients(along).attribute(
                tuple(inputs.frames[m] for m in present),
                baselines=tuple(blank[m] for m in present),
                n_steps=steps,
                method="gausslegendre",
                internal_batch_size=AT_ONCE,
            )
    attributions = {m: [0.0] * seen[m].shape[1] for m in network.modalities}
    for m, attribution in zip(present, integrated, strict=True):
        attributions[m] = torch.where(seen[m][0], attribution[0].double().sum(-1), 0.0).tolist()
    total = _finite(sum(map(sum, attributions.values())))
    return Explanation(
        quantity="score" if score else "log-odds",
        label=None if score else target.classes[index],
        question=None if question_index is None else target.questions[question_index],
        value=value,
        probability=None if score else _probability(value),
        baseline=baseline,
        gap=total - (value - baseline),
        steps=steps,
        modalities=effects,
        frames={m: tuple(row) for m, row in attributions.items()},
        exists={m: tuple(inputs.exists[m][0].tolist()) for m in network.modalities},
        visible={m: tuple(seen[m][0].tolist()) for m in network.modalities},
    )


@torch.no_grad()
def modality_effects(
    network: AnyNetwork,
    inputs: Inputs,
    *,
    target: Target,
    lengths: Mapping[str, int],
    temperature: float = 1.0,
) -> list[ModalityEffects]:
    """Return the effect of each modality on the prediction of one sample: as `explain`, without
    frames and without captum.

    Args:
        network, inputs, target, lengths, temperature: as for `explain`.

    Returns:
        One entry, or one for each yes/no question.

    Raises:
        CorrKDError: as for `explain`, except that captum is not needed.
    """
    _check_temperature(temperature)
    inputs, score = _one_sample(network, inputs), not target.has_classes
    with _in_eval_mode(network):
        complete = network(inputs).logits
        without = _logits_without(network, inputs, lengths)
    out = []
    for question in range(len(target.questions)) if target.questions else [None]:
        index, question_index = _output_index(complete[0], target, None, question)
        quantity = partial(
            _quantity, index=index, question=question_index, temperature=temperature, score=score
        )
        value = _finite(quantity(complete))
        out.append(
            ModalityEffects(
                quantity="score" if score else "log-odds",
                label=None if score else target.classes[index],
                question=None if question_index is None else target.questions[question_index],
                modalities=_effects(
                    value,
                    {m: _finite(quantity(x)) for m, x in without.items()},
                    network.modalities,
                    score=score,
                ),
            )
        )
    return out


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise CorrKDError(f"explain: temperature is {temperature}; it must be above 0")


def _quantity(
    logits: Tensor, *, index: int, question: int | None, temperature: float, score: bool
) -> Tensor:
    """Return the explained quantity (N,) of logits (N, ...): the score, or a class's log-odds."""
    if score:
        return logits[:, 0]
    return log_odds((logits if question is None else logits[:, question]) / temperature, index)


def _logits_without(
    network: AnyNetwork, inputs: Inputs, lengths: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return the logits (1, ...) with each visible modality left out in turn."""
    return {
        m: network(inputs.without(m).with_lengths(lengths)).logits
        for m in network.modalities
        if inputs.visible[m].any()
    }


def _effects(
    value: float, without: Mapping[str, float], modalities: Sequence[str], *, score: bool
) -> dict[str, Effect]:
    """Return the effect of each modality, 0 if it is missing already."""
    return {
        m: Effect(
            value - without.get(m, value),
            None if score else _probability(value) - _probability(without.get(m, value)),
        )
        for m in modalities
    }


def log_odds(logits: Tensor, index: int) -> Tensor:
    """Return the log-odds log p/(1 - p) (...) of the class at `index` from logits (..., K), K at
    least 2. They are exact even for p near 0 and 1.
    """
    others = torch.cat([logits[..., :index], logits[..., index + 1 :]], -1)
    return logits[..., index] - others.logsumexp(-1)


def fill_of(network: AnyNetwork, modality: str, frames: Tensor) -> Tensor:
    """Return the frame (d_m,) that replaces a missing frame of a modality: the fill of its
    `Encoder`, or zeros (a typical frame) in networks without such encoders.
    """
    encoders = getattr(network, "encoders", None)
    if isinstance(encoders, nn.ModuleList) and len(encoders) == len(network.modalities):
        encoder = encoders[network.modalities.index(modality)]
        if isinstance(encoder, Encoder):
            return encoder.fill.detach().to(frames)
    return frames.new_zeros(frames.shape[-1])


def _one_sample(network: AnyNetwork, inputs: Inputs) -> Inputs:
    """Return the checked inputs of one sample, with zeros in place of invisible frames."""
    if network.reads_conversations:
        raise CorrKDError(
            f"network {network.name!r} understands a sample among the others of its "
            f"conversation; one alone cannot be explained"
        )
    if network.reads_tokens:
        raise CorrKDError(
            f"network {network.name!r} reads ids of tokens, along which there are no gradients; "
            f"its predictions cannot be explained"
        )
    frames = {}
    for m in network.modalities:
        if not all(m in attribution for attribution in inputs):
            raise CorrKDError(
                f"explain: no {m}; give frames, exists and visible of every modality, a missing "
                f"one invisible"
            )
        x, exists, visible = inputs.of(m)
        shape = tuple(x.shape)
        if (
            len(shape) != 3
            or shape[0] != 1
            or any(tuple(mask.shape) != shape[:2] for mask in (exists, visible))
        ):
            raise CorrKDError(
                f"explain, {m}: frames {shape} with exists {tuple(exists.shape)} and visible "
                f"{tuple(visible.shape)}; "
                "expected one sample: (1, T, width), (1, T) and (1, T)"
            )
        frames[m] = torch.where(visible[..., None], x, 0.0)
    return inputs._replace(frames=frames)


def _output_index(
    logits: Tensor, target: Target, output: int | None, question: int | None
) -> tuple[int, int | None]:
    """Return the indices of the explained class and question, for logits (K,), (Q, 2) or (1,)."""
    if not target.questions and question is not None:
        raise CorrKDError(
            f"explain: question {question}, but the model answers no questions; leave it out"
        )
    if not target.has_classes:
        if output is not None:
            raise CorrKDError(
                f"explain: class {output}, but the model answers with a score; leave it out"
            )
        return 0, None
    if target.questions:
        question = 0 if question is None and len(target.questions) == 1 else question
        if question is None or not 0 <= question < len(target.questions):
            names = ", ".join(f"{index} {name}" for index, name in enumerate(target.questions))
            raise CorrKDError(f"explain: question {question}; name one of {names}")
        logits = logits[question]
    if output is None:
        return int(logits.argmax()), question
    if not 0 <= output < len(target.classes):
        names = ", ".join(f"{index} {name}" for index, name in enumerate(target.classes))
        raise CorrKDError(f"explain: class {output}; name one of {names}")
    return output, question


def _finite(value: Tensor | float) -> float:
    value = float(value)
    if not math.isfinite(value):
        raise CorrKDError(
            "explain: the network answered with NaN or infinite values; are the features of the "
            "usual size?"
        )
    return value


def _probability(odds: float) -> float:
    small = math.exp(-abs(odds))  # never overflows
    return (1.0 if odds >= 0 else small) / (1.0 + small)


@contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Set every module to eval mode and restore each module's mode on exit."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _integrated_gradients() -> Any:
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise CorrKDError("explaining needs captum: pip install 'corrkd[explain]'") from None
    return IntegratedGradients


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
