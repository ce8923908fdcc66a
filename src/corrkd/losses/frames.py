"""How far restored or translated frames are from the true ones."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_errors(
    made: Tensor, frames: Tensor, counted: Tensor, *, absolute: bool = False
) -> Tensor:
    """Errors of each sample, so that processes can add theirs up before dividing.

    Args:
        made, frames: (N, T, d); what stands in `frames` at places that do not count does not
            matter.
        counted: (N, T) booleans.
        absolute: absolute errors, not squared ones.

    Returns:
        (N, 2): the sum over the counted frames of the error's mean over features, and the number of
            counted frames.
    """
    differences = made - torch.where(counted[..., None], frames, made.detach())
    errors = (differences.abs() if absolute else differences.square()).mean(-1)
    return torch.stack([(errors * counted).sum(1), counted.sum(1).to(errors.dtype)], 1)


def mean_error(errors: Tensor) -> Tensor:
    """Mean over the counted frames of all samples, from (N, 2) of `frame_errors`; 0 where none
    counts.
    """
    total, count = errors.sum(0).unbind(0)
    return total / count.clamp(min=1.0)
