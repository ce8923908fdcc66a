"""Wrapper that turns any torch module into a network of this package, if its `forward(language,
audio, vision)` returns logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from corrkd.data.batches import Batch
from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.networks.base import Network, Output
from corrkd.settings import Strict
from corrkd.targets.base import Target


class WrappedSettings(Strict):
    """No settings: the module already has its structure."""


class WrappedNetwork(Network[WrappedSettings]):
    """A module from outside this package, as teacher or student.

    Its `forward` receives one tensor (N, T_m, d_m) per modality, zero where a frame is missing or
    padding: by name if its parameters are named after the modalities, otherwise in the dataset's
    order. It returns logits (N, K) (for a score also (N,); for Q questions (N, Q, 2) or (N, 2 Q)),
    a pair of representation (N, D) and logits, or an object or mapping with `logits` and optionally
    `representation`.

    Args:
        module: the module; it is trained in place.
        example: samples on which the module is tried once.
        target: what is predicted.

    Raises:
        CorrKDError: if the module fails on the example or returns something else.
    """

    name = "wrapped"
    settings_type = WrappedSettings

    def __init__(self, module: nn.Module, example: Batch, target: Target) -> None:
        nn.Module.__init__(self)
        self.modalities = tuple(example.frames)
        self.target = target
        self.settings = WrappedSettings()
        self.module = module
        self._by_name = set(self.modalities) <= set(inspect.signature(module.forward).parameters)
        self._width = self._try(example)

    @property
    def representation_width(self) -> int:
        """Width D of the module's representation; 0 if it returns logits alone."""
        return self._width

    def forward(self, inputs: Inputs) -> Output:
        """Return the representation, (N, 0) if the module returns none, and the logits."""
        frames = {m: inputs.frames[m] * inputs.visible[m][..., None] for m in self.modalities}
        returned = self.module(**frames) if self._by_name else self.module(*frames.values())
        representation, logits = _parts(returned)
        if representation is None:
            representation = logits.new_zeros(len(logits), 0)
        return Output(representation, self.target.shape_logits(logits.reshape(len(logits), -1)))

    def _try(self, example: Batch) -> int:
        """Try the module on an example and return the width of its representation."""
        what = type(self.module).__name__
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                output: Output = self(example.complete())
        except CorrKDError:
            raise
        except Exception as error:  # a module may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            shapes = ", ".join(f"{m} {tuple(x.shape)}" for m, x in example.frames.items())
            raise CorrKDError(f"{what}: its forward fails on {shapes}: {reason}") from None
        finally:
            self.module.train(training)
        logits = tuple(output.logits.shape[1:])
        if logits != tuple(self.target.response_shape):
            raise CorrKDError(
                f"{what}: returns logits (N, {', '.join(map(str, logits))}); {self.target.name} "
                f"needs {self.target.num_logits} numbers a sample"
            )
        return output.representation.shape[1]


def _parts(returned: Any) -> tuple[Tensor | None, Tensor]:
    """Return the representation, which may be None, and the logits from a module's output."""
    if isinstance(returned, Tensor):
        return None, returned
    if isinstance(returned, Mapping):
        pair: Sequence[Any] = (returned.get("representation"), returned.get("logits"))
    elif hasattr(returned, "logits"):
        pair = (getattr(returned, "representation", None), returned.logits)
    else:
        pair = returned if isinstance(returned, tuple | list) else ()
    if (
        len(pair) == 2
        and isinstance(pair[1], Tensor)
        and (pair[0] is None or isinstance(pair[0], Tensor))
    ):
        representation = None if pair[0] is None else pair[0].flatten(1)
        return representation, pair[1]
    raise CorrKDError(
        f"forward returns a {type(returned).__name__}; expected logits, (representation, "
        f"logits), or an object with `logits`"
    )
