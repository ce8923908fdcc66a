"""Errors of restored or translated frames."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_errors(
    made: Tensor, frames: Tensor, counted: Tensor, *, absolute: bool = False
) -> Tensor:
    """Return the errors of each sample, so that processes can sum theirs before dividing.

    Args:
        made, frames: (N, T, d), predicted and true frames. True frames that do not count are
            ignored.
        counted: (N, T) booleans: frames that count.
        absolute: absolute instead of squared errors.

    Returns:
        (N, 2): the sum over the counted frames of the error's mean over features, and the number of
        counted frames.
    """
    differences = made - torch.where(counted[..., None], frames, made.detach())
    errors = (differences.abs() if absolute else differences.square()).mean(-1)
    return torch.stack([(errors * counted).sum(1), counted.sum(1).to(errors.dtype)], 1)


def mean_error(errors: Tensor) -> Tensor:
    """Return the mean error over the counted frames of all samples, from the output (N, 2) of
    `frame_errors`; 0 if no frame counts.
    """
    total, count = errors.sum(0).unbind(0)
    return total / count.clamp(min=1.0)
