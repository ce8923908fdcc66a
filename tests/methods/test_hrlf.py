"""HRLF in training: its terms, its ablations and the gradients of each term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from corrkd.data.batches import Samples
from corrkd.errors import CorrKDError
from corrkd.losses import (
    factorisation_reconstruction,
    hierarchical_adversarial,
    hierarchical_information,
)
from corrkd.methods.base import TeacherOutputs
from corrkd.methods.hrlf import HRLF, HRLFOptions, HRLFTeacher, HRLFTeacherOptions
from corrkd.networks.hrlf import HRLFNetwork, HRLFSettings
from corrkd.settings import MissingSettings, TrainingSettings
from corrkd.training.fabric import Fabric
from corrkd.training.loop import teacher_outputs, train
from tests.conftest import make_dataset, make_samples, total, training_batch, values, weights

SMALL = {
    "width": 8,
    "heads": 2,
    "feedforward": 16,
    "layers": 1,
    "classifier": (6,),
    "factor_hidden": 8,
    "dropout": 0.0,
}
TERMS = ["task", "frf", "hmi", "hal", "kl"]


def fresh_network(samples: Samples, seed: int = 0, **options: Any) -> HRLFNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        frames = {m: x.shape[1] for m, x in samples.exists.items()}
        settings = HRLFSettings(**{**SMALL, **options})
        return HRLFNetwork(samples.widths, frames, target=samples.target, settings=settings)


def fresh(samples: Samples, network: dict[str, Any] | None = None, **options: Any) -> HRLF:
    """Return a student of an untrained teacher."""
    outputs = teacher_outputs(fresh_network(samples, 1, **(network or {})), samples)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = fresh_network(samples, 0, **(network or {}))
        return HRLF(student, HRLFOptions.model_validate(options), teachers=outputs)


def fit(
    method: Any, samples: Samples, *, missing: bool, epochs: int = 12
) -> list[dict[str, float]]:
    stage = TrainingSettings(epochs=epochs, batch_size=16, lr=1e-2)
    fabric = Fabric(accelerator="cpu", devices=1)
    return train(
        method,
        samples,
        settings=stage,
        validate=lambda _: 0.0,
        seed=1,
        fabric=fabric,
        missing=MissingSettings() if missing else None,
    ).history


def test_the_terms_match_the_loss_functions() -> None:
    samples = make_samples(make_dataset())
    method = fresh(samples).eval()
    batch, rows = training_batch(samples, 9), torch.arange(9)
    losses = method(batch)
    assert weights(losses) == {**dict.fromkeys(TERMS, 1.0), "hal": 0.01}
    details = method.student.details(batch.inputs)
    assert method.teachers is not None
    selected = method.teachers.apply(lambda x: x[rows])
    widths = [48, 32, 8]
    student, teacher = (
        details.output.representation.split(widths, 1),
        selected.representation.split(widths, 1),
    )
    log_student, log_teacher = (
        log_softmax(x, -1) for x in (details.output.logits, selected.logits)
    )
    expected = {
        "task": cross_entropy(details.output.logits, batch.targets),
        "frf": factorisation_reconstruction(*method.student.factors(details.encoded)),
        "hmi": hierarchical_information(student, teacher, list(method.hmi.critics)),  # type: ignore[union-attr, arg-type]
        "hal": hierarchical_adversarial(student, teacher, list(method.hal.discriminators)),  # type: ignore[union-attr, arg-type]
        "kl": kl_div(log_student, log_teacher, log_target=True, reduction="batchmean"),
    }
    for name, value in values(losses).items():
        torch.testing.assert_close(value, expected[name], msg=name)


@pytest.mark.parametrize("left_out", ["frf", "hmi", "hal", "kl"])
def test_a_term_of_weight_zero_is_not_computed(left_out: str) -> None:
    samples = make_samples(make_dataset())
    losses = fresh(samples, **{left_out: {"weight": 0}})(training_batch(samples, 9))
    assert list(losses) == [term for term in TERMS if term != left_out]


def test_options_reach_the_losses() -> None:
    samples = make_samples(make_dataset())
    batch = training_batch(samples, 9)
    plain = values(fresh(samples)(batch))
    summed = values(fresh(samples, frf={"reduction": "sum"})(batch))
    assert summed["frf"] > 4 * plain["frf"]
    method = fresh(
        samples, hmi={"critic_hidden": 5}, hal={"discriminator_hidden": 3, "nonsaturating": True}
    )
    assert method.hmi is not None
    assert method.hal is not None
    assert method.hmi.critics[0].hidden_bias.shape == (5,)
    assert method.hal.discriminators[0].hidden_bias.shape == (3,)
    assert method.hal.nonsaturating


def test_the_teacher_learns_the_task_and_the_reconstruction() -> None:
    samples = make_samples(make_dataset())
    teacher = HRLFTeacher(fresh_network(samples))
    assert list(teacher(training_batch(samples, 9))) == ["task", "frf"]
    history = fit(teacher, samples, missing=False)
    assert history[-1]["loss/task"] < 0.8 * history[0]["loss/task"]
    assert history[-1]["loss/frf"] < 0.8 * history[0]["loss/frf"]
    alone = HRLFTeacher(
        fresh_network(samples), HRLFTeacherOptions.model_validate({"frf": {"weight": 0}})
    )
    assert list(alone(training_batch(samples, 9))) == ["task"]


@pytest.mark.parametrize("target", ["classes", "score"])
def test_the_student_learns(target: str) -> None:
    """From a trained teacher of the same structure: every term but HAL falls."""
    samples = make_samples(make_dataset(), target=target)
    teacher = HRLFTeacher(fresh_network(samples, 1))
    fit(teacher, samples, missing=False)
    student = HRLF(fresh_network(samples), teachers=teacher_outputs(teacher.student, samples))
    shapes = [
        {name: p.shape for name, p in m.student.named_parameters()} for m in (teacher, student)
    ]
    assert shapes[0] == shapes[1]
    history = fit(student, samples, missing=True, epochs=20)
    first, final = history[0], history[-1]
    assert final["loss/total"] < first["loss/total"]
    for term in ("task", "frf", "hmi", "kl"):
        assert final[f"loss/{term}"] < first[f"loss/{term}"], term


@pytest.mark.parametrize("target", ["classes", "score", "binary-nonzero"])
@pytest.mark.parametrize(
    "structure", [{}, {"scales": "summed", "sentiment_encoder": "shared", "pooling": "mean"}]
)
def test_every_parameter_learns(target: str, structure: dict[str, Any]) -> None:
    samples = make_samples(make_dataset(), target=target)
    method = fresh(samples, structure)
    total(method(training_batch(samples))).backward()
    idle = [
        name for name, p in method.named_parameters() if p.grad is None or not bool(p.grad.any())
    ]
    assert idle == []


@pytest.mark.parametrize(
    ("reach", "reached"),
    [("factors", (False, False)), ("encoders", (True, False)), ("targets", (True, True))],
)
def test_how_far_the_gradient_of_the_reconstruction_reaches(
    reach: str, reached: tuple[bool, bool]
) -> None:
    samples = make_samples(make_dataset())
    method = HRLFTeacher(
        fresh_network(samples), HRLFTeacherOptions.model_validate({"frf": {"reach": reach}})
    )
    assert method.frf.detach == (not reached[1])
    values(method(training_batch(samples)))["frf"].backward()
    gradients = {name: p.grad for name, p in method.student.named_parameters()}
    assert (
        any(
            x is not None and bool(x.any())
            for n, x in gradients.items()
            if n.startswith("encoders.")
        )
        == reached[0]
    )
    for prefix in ("relevant_encoders", "specific_encoders", "decoder"):
        assert all(
            x is not None and bool(x.any()) for n, x in gradients.items() if n.startswith(prefix)
        )


def test_modalities_are_decoded_from_their_factors() -> None:
    """With FRF alone, decoding works from the modality's factors and from another's sentiment."""
    samples = make_samples(make_dataset())
    method = HRLFTeacher(
        fresh_network(samples), HRLFTeacherOptions.model_validate({"task": {"weight": 0.0}})
    )

    def errors() -> Tensor:
        with torch.no_grad():
            details = method.eval().student.details(training_batch(samples).inputs)
            factors = method.student.factors(details.encoded)
            of_pair = (factors.decoded - factors.encoded[:, None]).square().mean((0, 3))
            return of_pair / factors.encoded.var(0).mean(1)

    before = errors()
    fit(method, samples, missing=False, epochs=30)
    assert (errors() < 0.6 * before).all()


def test_teachers_of_another_width_are_refused_unless_only_responses_are_compared() -> None:
    samples = make_samples(make_dataset())
    outputs = TeacherOutputs(torch.zeros(len(samples), 24), torch.zeros(len(samples), 3))
    line = (
        "HRLF: HMI, like HAL, compares representations .* the student's is 88 and the teachers' "
        "is 24"
    )
    with pytest.raises(CorrKDError, match=line):
        HRLF(fresh_network(samples), teachers=outputs)
    options = HRLFOptions.model_validate({"hmi": {"weight": 0}, "hal": {"weight": 0}})
    losses = HRLF(fresh_network(samples), options, teachers=outputs)(training_batch(samples, 9))
    assert list(losses) == ["task", "frf", "kl"]


def test_a_student_needs_a_teacher() -> None:
    with pytest.raises(CorrKDError, match="HRLF: needs the outputs of teachers"):
        HRLF(fresh_network(make_samples(make_dataset())))
