"""Random batches for the losses' tests: (N, D) representations, (N, K) logits, labels, and their
yes/no forms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

few = settings(deadline=None, max_examples=25)


@dataclass(frozen=True)
class Batch:
    student: Tensor
    teacher: Tensor
    labels: Tensor
    num_classes: int


@st.composite
def batches(
    draw: st.DrawFn, *, min_size: int = 1, min_width: int = 1, questions: bool = False
) -> Batch:
    """Draw representations (N, D) and labels, (N,) or (N, Q); float64. Classes may be absent."""
    n, width = draw(st.integers(min_size, 7)), draw(st.integers(min_width, 6))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 30.0]))
    num_classes = 2 if questions else draw(st.integers(2, 5))
    shape = (n, draw(st.integers(1, 3))) if questions else (n,)
    return Batch(
        scale * torch.randn(n, width, generator=random, dtype=torch.float64),
        scale * torch.randn(n, width, generator=random, dtype=torch.float64),
        torch.randint(num_classes, shape, generator=random),
        num_classes,
    )


@st.composite
def responses(draw: st.DrawFn, *, min_size: int = 1, questions: bool = False) -> Batch:
    """Draw logits (N, K) and labels (N,), or (N, Q, 2) and (N, Q); float64."""
    n = draw(st.integers(min_size, 6))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    num_classes = 2 if questions else draw(st.integers(2, 5))
    shape = (n, draw(st.integers(1, 3))) if questions else (n,)
    return Batch(
        3 * torch.randn(*shape, num_classes, generator=random, dtype=torch.float64),
        3 * torch.randn(*shape, num_classes, generator=random, dtype=torch.float64),
        torch.randint(num_classes, shape, generator=random),
        num_classes,
    )
