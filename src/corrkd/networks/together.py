"""One network, or several of one structure at once, behind one interface: their outputs have a
first axis of networks, (S, ...).
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
    """A network whose encoders do not see each other's modality (`Network.modality_wise`)."""

    modalities: tuple[str, ...]

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the modality's part of H, (N, width). It depends on no other modality of the
        inputs.
        """

    def classify(self, representation: Tensor) -> Tensor:
        """(N, M x width) -> logits."""


class Answering(Protocol):
    """S networks that are shown the same samples."""

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the modality's part of H, (S, N, width), of networks that are modality-wise."""

    def classify(self, representation: Tensor) -> Tensor:
        """Return the logits of H, (S, N, M x width), of networks that are modality-wise."""

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
    """Several networks in one pass (`torch.vmap`), with the parameters that they have now.

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
        answer = vmap(
            lambda *state: tuple(
                functional_call(self._base, state, ("in_context", inputs, context))
            )
        )
        return Output(*answer(*self._state))


class _Called(nn.Module):
    """A network whose methods `functional_call` reaches by their names."""

    def __init__(self, network: AnyNetwork) -> None:
        super().__init__()
        self.train(network.training)
        self.network = network

    def forward(self, name: str, *arguments: Any) -> Any:
        """What the network's method of that name returns."""
        return getattr(self.network, name)(*arguments)
