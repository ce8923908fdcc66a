"""Statistics networks F(Q, U) for the Jensen-Shannon estimator."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

Critic = Callable[[Tensor, Tensor], Tensor]
"""(teacher part (M, a), student part (M, b)) -> scores (M,), higher where the two look like the same sample's."""


class ConcatCritic(nn.Module):
    """A perceptron with one hidden layer on the two parts side by side [open: the paper leaves its shape out].

    Its parameters start uniform in +-1/sqrt(inputs), as those of `nn.Linear`.

    Args:
        teacher_width: a, width of the teacher's part.
        student_width: b, width of the student's part.
        hidden: units of the hidden layer.
        generator: where the starting values come from; None: torch's global generator, so seed that
            (`torch.manual_seed`).
    """

    def __init__(
        self, teacher_width: int, student_width: int, hidden: int = 64, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        inputs = teacher_width + student_width
        self.hidden_weight = _uniform((hidden, inputs), inputs, generator)
        self.hidden_bias = _uniform((hidden,), inputs, generator)
        self.output_weight = _uniform((1, hidden), hidden, generator)
        self.output_bias = _uniform((1,), hidden, generator)

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """(M, a) and (M, b) -> (M,)."""
        x = torch.cat([teacher, student], dim=-1)
        # The losses hand over full precision; a network kept in half, or float64 probabilities, must meet on one dtype.
        x = relu(linear(x, self.hidden_weight.to(x.dtype), self.hidden_bias.to(x.dtype)))
        return linear(x, self.output_weight.to(x.dtype), self.output_bias.to(x.dtype)).squeeze(-1)


def _uniform(shape: tuple[int, ...], inputs: int, generator: torch.Generator | None) -> nn.Parameter:
    bound = 1.0 / math.sqrt(inputs)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))
