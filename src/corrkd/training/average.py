"""A running average of a network's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class RunningAverage:
    """A running average of a network's parameters over the steps; with decay 0, the parameters
    themselves.

    The decay rises from 0 to its final value over the first steps, so that the average forgets the
    initial parameters.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.step = decay, 0
        self.parameters = list(network.parameters()) if decay else []
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after a step."""
        if self.values:
            self.step += 1
            decay = min(self.decay, self.step / (self.step + 9))
            torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Exchange the network's parameters for their average within the context."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"step": self.step, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.step = state["step"]
        for value, saved in zip(self.values, state["values"], strict=True):
            value.copy_(saved)
