"""Random numbers of a training step, from a hash of (seed, epoch, step, rank, site): the same bits
on every device, whether a run is trained alone or together with others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

# "lowbias32" (C. Wellons, Prospecting for Hash Functions, 2018) of a Weyl sequence, as signed
# numbers, since products wrap.
_FIRST, _SECOND, _WEYL = 0x7FEB352D, 0x846CA68B - (1 << 32), 0x9E3779B9 - (1 << 32)
SITES = 256  # keys of a step; further sites reuse them, modified


def step_keys(seed: int, epoch: int, step: int, rank: int = 0) -> Tensor:
    """Return the keys from which the draws of a step follow, (SITES,) int32 on the CPU."""
    text = f"{seed}|draws|{epoch}|{step}|{rank}".encode()
    return torch.from_numpy(
        np.frombuffer(hashlib.shake_128(text).digest(4 * SITES), np.int32).copy()
    )


class Draws:
    """Random numbers of one step. Each call is a site: the same calls in the same order draw the
    same numbers.

    Args:
        keys: from `step_keys`, on the device; for several runs at once, those of each run
            (`torch.vmap`).
        stacked: whether several runs take the step at once.
    """

    def __init__(self, keys: Tensor, *, stacked: bool = False) -> None:
        self.keys, self.stacked, self.site = keys, stacked, 0

    def bits(self, count: int) -> Tensor:
        """Return `count` uniform 16-bit integers, (count,) int16."""
        return self._words((count + 1) // 2).view(torch.int16)[:count]

    def uniform(self, shape: torch.Size) -> Tensor:
        """Return uniform numbers in [0, 1) of the given shape, float32."""
        words = self._words(shape.numel())
        return (
            ((words >> 8) & 0xFFFFFF).float().mul_(2.0**-24).view(shape)
        )  # 24 bits fill a float32 exactly

    def _words(self, count: int) -> Tensor:
        around, position = divmod(self.site, SITES)
        self.site += 1
        weyl = (_weyl if self.stacked else _remembered_weyl)(count, self.keys.device)
        x = weyl ^ (self.keys[position] + around * _WEYL)
        # Shifts are arithmetic: masks make them logical.
        x = x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(_FIRST)
        x = x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(_SECOND)
        return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _weyl(count: int, device: torch.device) -> Tensor:
    return torch.arange(1, count + 1, dtype=torch.int32, device=device) * _WEYL


# Not for captured steps: a graph would keep reading memory that the cache has freed.
_remembered_weyl = lru_cache(maxsize=64)(_weyl)


_current: ContextVar[Draws | None] = ContextVar("draws", default=None)


def current_draws() -> Draws | None:
    """Return the draws of the current training step; None: use torch's global generator."""
    return _current.get()


@contextmanager
def drawing_from(draws: Draws) -> Iterator[None]:
    """Let networks and losses draw from `draws` within the context."""
    token = _current.set(draws)
    try:
        yield
    finally:
        _current.reset(token)
