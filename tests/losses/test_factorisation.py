from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corrkd.losses import FactorisationReconstruction, factorisation_reconstruction
from tests.losses.strategies import few


@st.composite
def factors(draw: st.DrawFn, sizes: tuple[int, int, int, int] = (5, 4, 5, 3)) -> tuple[Tensor, ...]:
    """Draw encoded (N, n, D), decoded (N, n, n, D), relevant (N, n, E), recovered (N, n, n, E), of
    at most these sizes; float64.
    """
    samples, count, width, relevant = (draw(st.integers(1, size)) for size in sizes)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    shapes = ((samples, count, width), (samples, count, count, width), (samples, count, relevant))
    return tuple(
        draw(st.sampled_from([0.1, 1.0, 30.0]))
        * torch.randn(*shape, generator=random, dtype=torch.float64)
        for shape in (*shapes, (samples, count, count, relevant))
    )


def by_loops(tensors: Sequence[Tensor], reduction: str) -> float:
    """Compute the formula in plain Python."""
    encoded, decoded, relevant, recovered = (x.tolist() for x in tensors)
    samples, count = len(encoded), len(encoded[0])

    def error(reconstruction: list[float], original: list[float]) -> float:
        squared = sum((x - y) ** 2 for x, y in zip(reconstruction, original, strict=True))
        return squared / len(original) if reduction == "mean" else squared

    within = cross = recon = 0.0
    for i in range(samples):
        for a in range(count):
            within += error(decoded[i][a][a], encoded[i][a]) / count
            for b in range(count):
                recon += error(recovered[i][b][a], relevant[i][a]) / count**2
                if b != a:
                    cross += error(decoded[i][a][b], encoded[i][b]) / (count**2 - count)
    return (within + cross + recon) / samples


@few
@given(factors(), st.sampled_from(["mean", "sum"]))
def test_is_the_sum_of_three_errors(tensors: tuple[Tensor, ...], reduction: str) -> None:
    loss = factorisation_reconstruction(*tensors, reduction=reduction)
    assert loss.item() == pytest.approx(by_loops(tensors, reduction), rel=1e-10)
    assert torch.equal(FactorisationReconstruction(reduction)(*tensors), loss)


@few
@given(factors((2, 3, 3, 2)), st.sampled_from(["mean", "sum"]))
def test_gradients(tensors: tuple[Tensor, ...], reduction: str) -> None:
    leaves = tuple(x.requires_grad_() for x in tensors)
    loss = FactorisationReconstruction(reduction, detach=False)
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


@few
@given(factors())
def test_originals_get_no_gradient_unless_attached(tensors: tuple[Tensor, ...]) -> None:
    gradients = []
    for detach in (True, False):
        leaves = [x.detach().requires_grad_() for x in tensors]
        loss = FactorisationReconstruction(detach=detach)(*leaves)
        gradients.append(torch.autograd.grad(loss, leaves, allow_unused=True))
    detached, attached = gradients
    assert (detached[0], detached[2]) == (None, None)
    assert torch.equal(detached[1], attached[1])
    assert torch.equal(detached[3], attached[3])
    # Each vector is compared with its reconstructions from all modalities: the gradients cancel.
    torch.testing.assert_close(attached[0], -attached[1].sum(1))
    torch.testing.assert_close(attached[2], -attached[3].sum(1))


def test_is_zero_for_a_perfect_reconstruction() -> None:
    torch.manual_seed(0)
    encoded, relevant = torch.randn(4, 3, 6), torch.randn(4, 3, 2)
    decoded, recovered = (x[:, None].expand(-1, 3, -1, -1) for x in (encoded, relevant))
    assert factorisation_reconstruction(encoded, decoded, relevant, recovered).item() == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoded": torch.ones(2, 6)}, r"with N, n >= 1, but they are \(2, 6\) and \(2, 3, 4\)"),
        ({"relevant": torch.ones(5, 3, 4)}, r"\(2, 3, 6\) and \(5, 3, 4\)"),
        ({"encoded": torch.ones(0, 3, 6), "relevant": torch.ones(0, 3, 4)}, "N, n >= 1"),
        (
            {"decoded": torch.ones(2, 3, 6)},
            r"decoded must be \(2, 3, 3, 6\), but it is \(2, 3, 6\)",
        ),
        ({"recovered": torch.ones(2, 3, 3, 6)}, r"recovered must be \(2, 3, 3, 4\)"),
        ({"encoded": torch.ones(2, 3, 6, dtype=torch.int64)}, "floating point"),
        ({"reduction": "none"}, "mean, sum, not 'none'"),
    ],
)
def test_bad_inputs_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {
        "encoded": torch.ones(2, 3, 6),
        "decoded": torch.ones(2, 3, 3, 6),
        "relevant": torch.ones(2, 3, 4),
        "recovered": torch.ones(2, 3, 3, 4),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        factorisation_reconstruction(**arguments)


def test_the_module_refuses_what_the_function_refuses() -> None:
    with pytest.raises(ValueError, match="reduction"):
        FactorisationReconstruction("none")
