"""Base classes of the networks. A network is built from feature widths and numbers of frames by
modality, and computes a representation and logits of N samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from corrkd.data.batches import Context
from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.memory import free_memory, size_text
from corrkd.networks.encoder import AttentionLayer, Dropout
from corrkd.targets.base import Target

S = TypeVar("S", bound=BaseModel)
ALWAYS_FREE = 1 << 28  # bytes that may be used without checking the free memory


class Output(NamedTuple):
    """Output of a network for N samples.

    Attributes:
        representation: H, (N, D); in CorrKD, D = M x width for M modalities.
        logits: (N, K) for classes, (N, Q, 2) for yes/no questions, (N, 1) for a score.
    """

    representation: Tensor
    logits: Tensor


class Network(nn.Module, Generic[S]):
    """Base class of the networks. The output is a function of parameters and inputs alone. A
    subclass creates its modules in `build` and computes its output in `forward`.

    Args:
        widths: d_m by modality; the order is kept.
        frames: largest number of frames T_m by modality.
        target: what is predicted; determines the width of the last layer and the logits' shape.
        settings: the structure; default: that of `settings_type`.

    Attributes:
        name: name of the entry point, by which a saved model finds its class; a subclass of another
            network needs a new one.
        settings_type: class of `settings`, a subclass of `corrkd.settings.Strict`, which refuses
            unknown keys.
        modality_wise: whether it is a `corrkd.networks.together.ModalityWise`, so that an
            evaluation encodes each modality once for many conditions.
        stackable: whether several can be trained at once (`corrkd.training.stacked`): no size
            depends on values, and random numbers come from `corrkd.networks.encoder.Dropout` alone.
        reads_tokens: whether the frames of a modality must be token ids (`data.tokens`,
            `MultimodalDataset.tokens`), which other networks refuse. Ids have no gradients, so
            predictions cannot be explained.
        reads_conversations: whether samples are read in the context of their conversation: a batch
            contains entire conversations, and `in_context` receives their order and speakers.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[BaseModel]]
    modality_wise: ClassVar[bool] = False
    stackable: ClassVar[bool] = False
    reads_tokens: ClassVar[bool] = False
    reads_conversations: ClassVar[bool] = False
    settings: S

    def __init__(
        self,
        widths: Mapping[str, int],
        frames: Mapping[str, int],
        *,
        target: Target,
        settings: S | None = None,
    ) -> None:
        super().__init__()
        self.modalities = tuple(widths)
        self.target = target
        self.settings = settings if settings is not None else self.settings_type()  # type: ignore[assignment]
        self.build(dict(widths), dict(frames))

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules. All other attributes are already set.

        When a model is loaded, also called on torch's meta device, where tensors have no values.
        """
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> Output:
        """Return the representation and the logits, computed from all modalities at once."""
        raise NotImplementedError

    def in_context(self, inputs: Inputs, context: Context) -> Output:
        """Return the output of `forward` for samples with their context. Only networks that read
        conversations use it.
        """
        out: Output = self(inputs)
        return out

    def check_memory(
        self, frames: Mapping[str, int], samples: int, *, training: bool = False
    ) -> None:
        """Check that the attention maps fit into memory.

        Args:
            frames: largest number of frames by modality.
            samples: number of samples that pass through the network at once.
            training: whether maps are kept for the backward pass.

        Raises:
            CorrKDError: if they do not fit, with the number of frames and the largest that fits.
        """
        heads = [layer.heads for layer in self.modules() if isinstance(layer, AttentionLayer)]
        heads += [
            layer.num_heads for layer in self.modules() if isinstance(layer, nn.MultiheadAttention)
        ]
        if not heads:
            return
        modality, longest = max(frames.items(), key=lambda item: item[1])
        # Bytes per pair of frames. In training: products, softmax and its dropout of a modality's
        # layers; else two maps of one layer.
        unit = (
            4 * samples * (3 * math.ceil(sum(heads) / len(frames)) if training else 2 * max(heads))
        )
        others = sum(count**2 for m, count in frames.items() if m != modality) if training else 0
        needed = unit * (longest**2 + others)
        if needed < ALWAYS_FREE:
            return
        free = free_memory(next(self.parameters()).device)
        if needed > free:
            raise CorrKDError(
                f"modality {modality}: {longest:,} frames in a sample; attention over them needs "
                f"{size_text(needed)} of memory, {size_text(free)} are free; at most "
                f"{math.isqrt(max(0, free // unit - others)):,} frames fit with {samples} samples "
                "at once: cut samples into windows, average frames, or make batches smaller"
            )

    @property
    def representation_width(self) -> int:
        """Width D of the representation, which distillation compares: the sum of `parts`. A network
        without parts overrides it.
        """
        if self.parts is None:
            raise NotImplementedError
        return sum(self.parts.values())

    @property
    def parts(self) -> Mapping[str, int] | None:
        """Width of each modality's part of the representation, in the order of the representation.
        Each part depends on its modality alone.

        None: the representation has no such parts.
        """
        return None

    @property
    def scales(self) -> tuple[int, ...]:
        """Widths of the representations that lie side by side in `representation` and are compared
        separately; by default one.
        """
        return (self.representation_width,)

    def set_fill(self, means: Mapping[str, Sequence[float] | Tensor]) -> None:
        """Set the fill of missing frames to the mean frame of each modality in training, (d_m,). By
        default, do nothing.
        """

    def longest(self, frames: Mapping[str, int]) -> dict[str, int]:
        """Return the largest number of frames, by modality, that a network built for `frames` can
        read. A modality without a bound is left out.
        """
        return {}


class SideBySide(Network[S]):
    """Base class of networks with one vector per modality, computed from that modality alone, and a
    classifier on the vectors side by side, which are the representation.

    A subclass creates its modules in `build`, calls `make_classifier` last, and defines `encode`.
    Its settings have `width`, `classifier` and `dropout`.
    """

    modality_wise = True

    def make_classifier(self) -> None:
        """Create the classifier."""
        settings: Any = self.settings
        self.dropout = Dropout(settings.dropout)
        self.classifier = fully_connected(
            [self.representation_width, *settings.classifier, self.target.num_logits],
            settings.dropout,
        )

    @property
    def parts(self) -> dict[str, int]:
        """Width of each modality's vector, in the order of the representation."""
        settings: Any = self.settings
        return dict.fromkeys(self.modalities, settings.width)

    def forward(self, inputs: Inputs) -> Output:
        """Return the representation, (N, M x width), and the logits."""
        representation = torch.cat([self.encode(m, inputs) for m in self.modalities], 1)
        return Output(representation, self.classify(representation))

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the modality's vector, (N, width). It depends on no other modality, so an
        evaluation computes it once for many subsets.
        """
        raise NotImplementedError

    def classify(self, representation: Tensor) -> Tensor:
        """Return the logits of representations (N, M x width), in the target's shape."""
        return self.target.shape_logits(self.classifier(self.dropout(representation)))


AnyNetwork = Network[Any]


def fully_connected(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Return linear layers between the given widths, with ReLU and dropout between the layers."""
    layers: list[nn.Module] = []
    for index in range(len(widths) - 1):
        if index:
            layers += [nn.ReLU(), Dropout(dropout)]
        layers.append(nn.Linear(widths[index], widths[index + 1]))
    return nn.Sequential(*layers)
