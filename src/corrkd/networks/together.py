"""One interface to a single network and to several of the same structure: outputs have a first axis
of networks, (S, ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from corrkd.data.batches import Context
from corrkd.data.inputs import Inputs
from corrkd.networks.base import AnyNetwork, Output


class ModalityWise(Protocol):
    """A network that encodes each modality without the others (`Network.modality_wise`)."""

    modalities: tuple[str, ...]

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the modality's part of H, (N, width). It depends on no other modality."""

    def classify(self, representation: Tensor) -> Tensor:
        """Return the logits of H, (N, M x width)."""


class Evaluator(Protocol):
    """S networks that read the same samples."""

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the modality's part of H, (S, N, width); the networks must be modality-wise."""

    def classify(self, representation: Tensor) -> Tensor:
        """Return the logits of H, (S, N, M x width); the networks must be modality-wise."""

    def in_context(self, inputs: Inputs, context: Context) -> Output:
        """Return representations and logits, each (S, N, ...)."""


class Alone:
    """A single network, S = 1."""

    def __init__(self, network: AnyNetwork) -> None:
        self._network = network
        self._parted = cast(ModalityWise, network)

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the modality's part of H, (1, N, width)."""
        return self._parted.encode(modality, inputs)[None]

    def classify(self, representation: Tensor) -> Tensor:
        """Return the logits of H, (1, N, ...)."""
        return self._parted.classify(representation[0])[None]

    def in_context(self, inputs: Inputs, context: Context) -> Output:
        """Return representation and logits, each (1, N, ...)."""
        return Output(*(x[None] for x in self._network.in_context(inputs, context)))


class Stacked:
    """Several networks in one pass (`torch.vmap`), with their parameters at the time of creation.

    Args:
        networks: of one structure, in evaluation mode, stackable.
    """

    def __init__(self, networks: Sequence[AnyNetwork]) -> None:
        self._state = stack_module_state([_Called(network) for network in networks])
        self._base = _Called(networks[0])

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the modality's part of H, (S, N, width)."""
        out: Tensor = vmap(
            lambda *state: functional_call(self._base, state, ("encode", modality, inputs))
        )(*self._state)
        return out

    def classify(self, representation: Tensor) -> Tensor:
        """Return the logits of H, (S, N, ...)."""
        out: Tensor = vmap(lambda h, *state: functional_call(self._base, state, ("classify", h)))(
            representation, *self._state
        )
        return out

    def in_context(self, inputs: Inputs, context: Context) -> Output:
        """Return representations and logits, each (S, N, ...)."""
        forward = vmap(
            lambda *state: tuple(
                functional_call(self._base, state, ("in_context", inputs, context))
            )
        )
        return Output(*forward(*self._state))


class _Called(nn.Module):
    """A network with its methods callable by name, for `functional_call`."""

    def __init__(self, network: AnyNetwork) -> None:
        super().__init__()
        self.train(network.training)
        self.network = network

    def forward(self, name: str, *arguments: Any) -> Any:
        """Return the result of the network's method with this name."""
        return getattr(self.network, name)(*arguments)
