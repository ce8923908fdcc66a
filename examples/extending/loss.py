"""A loss, and a method that uses it as a form of RCD: {rcd: {form: distance}}.

python examples/extending/loss.py     computes it
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from corrkd.methods.base import WeightedLoss
from corrkd.methods.corrkd import CorrKD, CorrKDOptions, Divergence, Information


def response_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the probabilities, a scalar, from logits (..., K)."""
    return (student.softmax(-1) - teacher.softmax(-1)).square().sum(-1).mean()


class ResponseDistance(nn.Module):
    """`response_distance` as a module; the labels (N,) are not used."""

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the distance."""
        return response_distance(student, teacher)


class Distance(WeightedLoss):
    """RCD by the distance between the responses."""

    form: Literal["distance"] = "distance"

    def make(self, num_classes: int) -> nn.Module:
        """Return the loss."""
        return ResponseDistance()


class MoreOptions(CorrKDOptions):
    """CorrKD's options, with one more form of RCD."""

    rcd: Annotated[Information | Divergence | Distance, Field(discriminator="form")] = Information()  # type: ignore[assignment]


class MoreCorrKD(CorrKD):
    """CorrKD with that form."""

    title = "CorrKD by distance"
    options_type = MoreOptions


if __name__ == "__main__":
    options = MoreOptions.model_validate({"rcd": {"form": "distance", "weight": 2.0}})
    one, other = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 9.0]])
    print(options.rcd, ResponseDistance()(one, other, torch.tensor([0])))
