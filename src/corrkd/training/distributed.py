"""Tensors across processes: a loss over pairs or classes sees the whole batch, however it is
distributed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather(tensor: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks, differentiably. In a single
    process, return the tensor itself.

    Every process must call it equally often, and then computes the *same full loss* on the result.
    The backward pass sums the gradient over the processes and returns this process's rows. So each
    process's gradient of a network's parameters is the number of processes times its true
    contribution, and DistributedDataParallel's average over processes is exact. Parameters that are
    used after gathering (RCD's critics) get the full gradient in each process, which the average
    leaves unchanged.

    Args:
        tensor: (n, ...) of any dtype, integers included; n may differ between processes and may be
            0, the other sizes must agree.

    Returns:
        (sum of all n, ...), on the tensor's device.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        counts = _counts(tensor)
        start = sum(counts[: dist.get_rank()])
        ctx.own = slice(start, start + len(tensor))
        # Processes can exchange equal shapes only: pad to the largest shard, cut afterwards.
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        if not padded.numel():  # nothing to exchange: no rows, or no columns
            return tensor.new_zeros(sum(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        shards = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(shards, padded)
        return torch.cat([shard[:count] for shard, count in zip(shards, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.own]


def _counts(tensor: Tensor) -> list[int]:
    """Return the number of rows of each process."""
    count = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    return torch.cat(counts).tolist()
