"""Small networks that are trained along with the student: critics F(Q, U) of the Jensen-Shannon
estimator, and discriminators.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

Critic = Callable[[Tensor, Tensor], Tensor]
"""(teacher part (M, a), student part (M, b)) -> scores (M,), higher if both look like parts of the
same sample.
"""


class _Perceptron(nn.Module):
    """A perceptron with one ReLU hidden layer and one output. Its parameters are initialised
    uniformly in +-1/sqrt(inputs), as in `nn.Linear`.
    """

    def __init__(self, inputs: int, hidden: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.hidden_weight = _uniform((hidden, inputs), inputs, generator)
        self.hidden_bias = _uniform((hidden,), inputs, generator)
        self.output_weight = _uniform((1, hidden), hidden, generator)
        self.output_bias = _uniform((1,), hidden, generator)

    def layers(self) -> tuple[Tensor, ...]:
        """Return weight and bias of the hidden layer, then of the output layer."""
        return self.hidden_weight, self.hidden_bias, self.output_weight, self.output_bias

    def score(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """Return the outputs, (M, inputs) -> (M,). If `frozen`, the parameters get no gradient."""
        # Inputs are in full precision, parameters may be in half precision.
        weight, bias, output, offset = (
            (p.detach() if frozen else p).to(x.dtype) for p in self.layers()
        )
        return linear(relu(linear(x, weight, bias)), output, offset).squeeze(-1)


class ConcatCritic(_Perceptron):
    """A critic, a perceptron with one hidden layer on the concatenated parts [open: the papers do
    not give its shape].

    Its parameters are initialised uniformly in +-1/sqrt(inputs), as in `nn.Linear`.

    Args:
        teacher_width: a, width of the teacher's part.
        student_width: b, width of the student's part.
        hidden: number of hidden units.
        generator: draws the initial parameters; None: torch's global one (`torch.manual_seed`).
    """

    def __init__(
        self,
        teacher_width: int,
        student_width: int,
        hidden: int = 64,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(teacher_width + student_width, hidden, generator)

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the scores of M pairs, (M, a) and (M, b) -> (M,)."""
        return self.score(torch.cat([teacher, student], dim=-1))

    def all_pairs(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the score of each teacher row with each student row, (N, a) and (N, b) -> (N, N).

        The hidden layer is linear in both parts, so each part passes through its half of the
        weights once.
        """
        weight, bias, output, offset = (p.to(teacher.dtype) for p in self.layers())
        of_teacher, of_student = weight.split([teacher.shape[-1], student.shape[-1]], 1)
        hidden = linear(teacher, of_teacher, bias)[:, None] + linear(student, of_student)
        return linear(relu(hidden), output, offset).squeeze(-1)


class Discriminator(_Perceptron):
    """A perceptron with one hidden layer that distinguishes the teacher's representations from the
    student's [open: HRLF does not give its shape].

    Its parameters are initialised uniformly in +-1/sqrt(inputs), as in `nn.Linear`.

    Args:
        width: D of the representations.
        hidden: number of hidden units.
        generator: draws the initial parameters; None: torch's global one (`torch.manual_seed`).
    """

    def __init__(
        self, width: int, hidden: int = 64, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(width, hidden, generator)

    def forward(self, representation: Tensor, *, frozen: bool = False) -> Tensor:
        """Return the logit of "from the teacher", (N, D) -> (N,). If `frozen`, the parameters get
        no gradient.
        """
        return self.score(representation, frozen=frozen)


def _uniform(
    shape: tuple[int, ...], inputs: int, generator: torch.Generator | None
) -> nn.Parameter:
    bound = 1.0 / math.sqrt(inputs)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))
