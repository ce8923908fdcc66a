"""Properties of all losses: finite values and gradients, full precision, no synchronisation with
the device, no import but torch.
"""

from __future__ import annotations

import doctest
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor

from corrkd.losses import (
    CategoryPrototypeDistillation,
    DecoupledDivergence,
    FactorisationReconstruction,
    HierarchicalAdversarial,
    HierarchicalInformation,
    ResponseDisentangledConsistency,
    SampleContrastiveDistillation,
    SampleRelationDistillation,
)

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
WIDTH = {
    "scd": 12,
    "scd-raw": 12,
    "scd-relations": 12,
    "cpd": 12,
    "cpd-centred": 12,
    "cpd-prototypes": 12,
    "rcd": 3,
    "rcd-renormalized": 3,
    "rcd-divergence": 3,
    "frf": 12,
    "frf-detached": 12,
    "hmi": 12,
    "hal": 12,
    "hal-nonsaturating": 12,
}
SCALES = [6, 4, 2]  # of HRLF's representations, side by side


def make(name: str) -> Loss:
    """Return a loss of (student, teacher, labels); K = 3."""
    generator = torch.Generator().manual_seed(0)
    modules: dict[str, torch.nn.Module] = {
        "scd": SampleContrastiveDistillation(),
        "scd-raw": SampleContrastiveDistillation(normalize=False),
        "cpd": CategoryPrototypeDistillation(3),
        "rcd": ResponseDisentangledConsistency(3, generator=generator),
        "scd-relations": SampleRelationDistillation(),
        "cpd-centred": CategoryPrototypeDistillation(3, center=True),
        "cpd-prototypes": CategoryPrototypeDistillation(3),
        "rcd-divergence": DecoupledDivergence(),
        "rcd-renormalized": ResponseDisentangledConsistency(
            3, renormalize=True, generator=generator
        ),
        "frf": FactorisationReconstruction(detach=False),
        "frf-detached": FactorisationReconstruction(),
        "hmi": HierarchicalInformation(SCALES, SCALES, generator=generator),
        "hal": HierarchicalAdversarial(SCALES, generator=generator),
        "hal-nonsaturating": HierarchicalAdversarial(
            SCALES, nonsaturating=True, generator=generator
        ),
    }
    module = modules[name]
    if name.startswith("frf"):
        return lambda s, t, y: factorised(module, s, t)
    if name.startswith("h"):
        return lambda s, t, y: module(s.split(SCALES, -1), t.split(SCALES, -1))
    if name == "cpd-prototypes":
        far = torch.randn(1, 1, 3, 12, generator=generator)
        return lambda s, t, y: module(
            s, t, y, far.expand(len(t), -1, -1, -1), torch.arange(len(t)) < 4
        )
    return (lambda s, t, y: module(s, t)) if name.startswith("scd") else module


def factorised(module: torch.nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """Return FRF of three modalities, with sums of both sides' vectors as reconstructions."""
    encoded, others = (x.unflatten(-1, (3, 4)) for x in (student, teacher))
    pairs = 0.5 * encoded[:, :, None] + others[:, None]
    loss: Tensor = module(encoded, pairs, encoded[..., :2], pairs[..., 2:])
    return loss


def inputs(width: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return student, teacher and labels, of a kind that a loss may fail on."""
    random = torch.Generator().manual_seed(4)
    n = 1 if kind == "one sample" else 6
    student, teacher = (torch.randn(n, width, generator=random) for _ in range(2))
    labels = torch.arange(n) % 3
    if kind == "large":
        student, teacher = 1e4 * student.sign(), 1e4 * teacher.sign()
    elif kind == "large and small":
        student = student * torch.tensor([1e4, 1e-4, 1.0, 1e4, 1e-4, 1.0])[:, None]
        teacher = teacher * torch.tensor([1e4, 1e4, 1e4, 1e-4, 1e-4, 1.0])[:, None]
    elif kind == "tiny":
        student, teacher = 1e-30 * student, 1e-12 * teacher
    elif kind == "zero":
        student, teacher = torch.zeros_like(student), torch.zeros_like(teacher)
    elif kind == "zero student":
        student = torch.zeros_like(student)
    elif kind == "identical samples":
        student = teacher = student[:1].expand(n, -1).clone()
    elif kind == "student is teacher":
        student = teacher.clone()
    elif kind == "one class":
        labels = torch.ones_like(labels)
    elif kind == "absent class":
        labels = labels.clamp(max=1)
    return student, teacher, labels


KINDS = [
    "plain",
    "one sample",
    "large",
    "large and small",
    "tiny",
    "zero",
    "zero student",
    "identical samples",
    "student is teacher",
    "one class",
    "absent class",
]


@pytest.mark.parametrize("name", WIDTH)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("half_inputs", [False, True])
def test_values_and_gradients_are_finite(
    name: str, kind: str, autocast: torch.dtype | None, half_inputs: bool
) -> None:
    student, teacher, labels = inputs(WIDTH[name], kind)
    if half_inputs:
        half = autocast or torch.bfloat16
        student, teacher = student.to(half), teacher.to(half)
    student.requires_grad_()
    teacher.requires_grad_()
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        loss = make(name)(student, teacher, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    for side in (student, teacher):
        assert side.grad is not None
        assert side.grad.isfinite().all()
    # No gradient explodes from a division by almost zero.
    if kind.startswith("zero") and student.grad is not None:
        assert student.grad.abs().max() < 10


@pytest.mark.parametrize("name", WIDTH)
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(name: str, autocast: torch.dtype) -> None:
    student, teacher, labels = inputs(WIDTH[name], "plain")
    expected = make(name)(student, teacher, labels)
    with torch.autocast("cpu", dtype=autocast):
        assert torch.equal(make(name)(student, teacher, labels), expected)


@pytest.mark.parametrize("name", WIDTH)
def test_float64_is_kept_and_agrees_with_float32(name: str) -> None:
    student, teacher, labels = inputs(WIDTH[name], "plain")
    wide = make(name)(student.double(), teacher.double(), labels)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(make(name)(student, teacher, labels), wide.float())
    # A teacher in another precision is converted to the student's.
    assert make(name)(student.double(), teacher, labels).dtype == torch.float64


@pytest.mark.parametrize("name", WIDTH)
def test_batches_under_vmap(name: str) -> None:
    # vmap refuses whatever reads values back, so this also shows that no step waits for the device.
    loss = make(name)
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 5, WIDTH[name], generator=random) for _ in range(2))
    labels = torch.randint(3, (3, 5), generator=random)
    each = torch.stack([loss(*batch) for batch in zip(student, teacher, labels, strict=True)])
    torch.testing.assert_close(torch.vmap(loss)(student, teacher, labels), each)


def test_the_losses_import_only_torch() -> None:
    # Modules that torch itself imports do not count.
    code = """if True:
        import sys, torch
        before = set(sys.modules)
        import corrkd.losses
        for name in sorted({name.split(".")[0] for name in set(sys.modules) - before}):
            print(name)
        for name in sorted(name for name in sys.modules if name.startswith("corrkd.")):
            print(name)
    """
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    for module in (
        "corrkd.data",
        "corrkd.settings",
        "lightning_fabric",
        "pandas",
        "pydantic",
        "scipy",
        "sklearn",
    ):
        assert module not in loaded
    submodules = [name for name in loaded if name.startswith("corrkd.")]
    assert "corrkd.losses.critics" in submodules
    assert all(name.startswith(("corrkd.losses", "corrkd._version")) for name in submodules)


@pytest.mark.parametrize(
    "name",
    [
        "sample_contrastive",
        "sample_relations",
        "category_prototype",
        "response_disentangled",
        "decoupled_divergence",
        "factorisation",
        "hierarchical_information",
        "hierarchical_adversarial",
    ],
)
def test_examples_in_the_docstrings(name: str) -> None:
    failed, tried = doctest.testmod(import_module(f"corrkd.losses.{name}"))
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("name", WIDTH)
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_finite(name: str, kind: str) -> None:
    student, teacher, labels = inputs(WIDTH[name], kind)
    student.requires_grad_()
    (first,) = torch.autograd.grad(make(name)(student, teacher, labels), student, create_graph=True)
    (second,) = torch.autograd.grad(first.sum() + 0.0 * student.sum(), student)
    assert second.isfinite().all()
