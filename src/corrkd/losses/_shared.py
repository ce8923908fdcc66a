"""Helpers of the losses: checks of shapes and dtypes, full precision, unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

# Shorter vectors have no direction: dividing by their length would blow up the gradient.
SHORTEST = 1e-12


def check_pair(student: Tensor, teacher: Tensor, shapes: str, ndims: Sequence[int]) -> None:
    """Raise ValueError unless both are floating point, of one shape with an allowed number of axes
    and N >= 1.
    """
    if student.shape != teacher.shape or student.ndim not in ndims or student.numel() == 0:
        raise ValueError(
            f"student and teacher must both be {shapes} with N >= 1, but they are "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if not (student.is_floating_point() and teacher.is_floating_point()):
        raise ValueError(
            f"student and teacher must be floating point, but they are {student.dtype} and "
            f"{teacher.dtype}"
        )


def check_rows(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both are floating point, (N, D) and (N, E) with N >= 1. D and E may
    differ.
    """
    if (
        student.ndim != 2
        or teacher.ndim != 2
        or len(student) != len(teacher)
        or not student.numel() * teacher.numel()
    ):
        raise ValueError(
            "student and teacher must be (N, D) and (N, E) with N >= 1, but they are "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    check_pair(student, student.to(teacher.dtype), "(N, D)", [2])


def check_scales(
    student: Sequence[Tensor], teacher: Sequence[Tensor], networks: int, *, same_widths: bool
) -> None:
    """Raise ValueError unless student and teacher have one tensor for each of at least one network.
    Each pair has to pass `check_pair` if `same_widths`, otherwise `check_rows`.
    """
    if not len(student) == len(teacher) == networks > 0:
        raise ValueError(
            "needs as many scales of student and teacher as there are networks, and at least one, "
            f"but there are {len(student)}, {len(teacher)} and {networks}"
        )
    for s, t in zip(student, teacher, strict=True):
        if same_widths:
            check_pair(s, t, "(N, D)", [2])
        else:
            check_rows(s, t)


def check_labels(labels: Tensor, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless the labels are integers of the expected shape. Their range is not
    checked (that would wait for the device).
    """
    if labels.shape != expected or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be integers of shape {expected}, but they are {labels.dtype} of "
            f"{tuple(labels.shape)}"
        )


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in one dtype: float64 if any of them is float64, otherwise float32."""
    wide = any(x.dtype == torch.float64 for x in tensors)
    return tuple(x.to(torch.float64 if wide else torch.float32) for x in tensors)


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast on the tensor's device, so that losses compute in full
    precision.
    """
    return torch.autocast(tensor.device.type, enabled=False)


def safe_sqrt(x: Tensor, smallest: float = 0.0) -> Tensor:
    """Return the square root of x >= 0. For x <= `smallest`, return 0 with zero instead of
    exploding derivatives.
    """
    small = x <= smallest
    return x.masked_fill(small, 1.0).sqrt().masked_fill(small, 0.0)


def unit(x: Tensor) -> Tensor:
    """Return the vectors along the last axis divided by their length. Vectors of length up to
    `SHORTEST` become zero, with zero gradient.
    """
    length = safe_sqrt(x.square().sum(-1, keepdim=True), SHORTEST**2)
    short = length == 0
    return (x / length.masked_fill(short, 1.0)).masked_fill(short, 0.0)
