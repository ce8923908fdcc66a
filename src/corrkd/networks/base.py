"""What every network is: built from widths and lengths by modality, it makes of N samples a
representation and logits.
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
ALWAYS_FREE = 1 << 28  # bytes for which nobody asks how much is free


class Output(NamedTuple):
    """What a network says of N samples.

    Attributes:
        representation: H, (N, D); for CorrKD D = M x width with M modalities.
        logits: (N, K) for classes, (N, Q, 2) for yes/no questions, (N, 1) for a score.
    """

    representation: Tensor
    logits: Tensor


class Network(nn.Module, Generic[S]):
    """A pure function of parameters and inputs. A subclass makes its modules in `build` and answers
    in `forward`.

    Args:
        widths: d_m by modality; their order is kept.
        frames: the most frames T_m by modality.
        target: what is predicted; it says how wide the last layer is, and which shape its outputs
            have.
        settings: the structure; default: that of `settings_type`.

    Attributes:
        name: that of the entry point, by which a saved model finds its class; a subclass of another
            network needs a new one.
        settings_type: of `settings`, a subclass of `corrkd.settings.Strict`, which refuses unknown
            keys.
        modality_wise: `encode` and `classify` are as `corrkd.networks.together.ModalityWise` says,
            so that an evaluation encodes each modality once for many conditions.
        stackable: a pure function of parameters and inputs, without sizes that follow from values
            and without random numbers except from `corrkd.networks.encoder.Dropout`, so that
            several can be trained at once (`corrkd.training.stacked`).
        reads_tokens: the frames of a modality have to be ids of tokens (`data.tokens`,
            `MultimodalDataset.tokens`), which other networks refuse. They have no gradients, so
            that predictions cannot be explained.
        reads_conversations: a sample is read in the context of its conversation: a batch holds
            entire conversations, and `in_context` gets their order and speakers.
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
        """Makes the modules; everything else is set.

        Called on torch's meta device as well, where tensors have no values, when a model is loaded.
        """
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> Output:
        """All modalities at once."""
        raise NotImplementedError

    def in_context(self, inputs: Inputs, context: Context) -> Output:
        """`forward` of samples with their position in the data; only a network that reads
        conversations uses it.
        """
        out: Output = self(inputs)
        return out

    def check_memory(
        self, frames: Mapping[str, int], samples: int, *, training: bool = False
    ) -> None:
        """Refuse frames whose attention maps do not fit into memory.

        Args:
            frames: the most by modality.
            samples: that go through the network at once.
            training: whether maps are kept for the backward pass.

        Raises:
            CorrKDError: a line with the number of frames and the largest that fits.
        """
        heads = [layer.heads for layer in self.modules() if isinstance(layer, AttentionLayer)]
        heads += [
            layer.num_heads for layer in self.modules() if isinstance(layer, nn.MultiheadAttention)
        ]
        if not heads:
            return
        modality, longest = max(frames.items(), key=lambda item: item[1])
        # Bytes for each pair of frames: products, softmax and its dropout of a modality's layers;
        # or two maps of one layer.
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
        """Width D of the representation, which distillation compares: that of its parts together; a
        network without parts defines it.
        """
        if self.parts is None:
            raise NotImplementedError
        return sum(self.parts.values())

    @property
    def parts(self) -> Mapping[str, int] | None:
        """Width of each modality's part of the representation, in the order in which it holds them,
        each of its own modality alone.

        None: the representation has no such parts.
        """
        return None

    @property
    def scales(self) -> tuple[int, ...]:
        """Widths of the representations that lie side by side in `representation`, each to be
        compared by itself; by default one.
        """
        return (self.representation_width,)

    def set_fill(self, means: Mapping[str, Sequence[float] | Tensor]) -> None:
        """Takes the mean frame of each modality in training, (d_m,). Here: nothing is filled with
        it.
        """

    def longest(self, frames: Mapping[str, int]) -> dict[str, int]:
        """Most frames that can be read, by modality, of a network built for `frames`; a modality
        without a bound is left out.
        """
        return {}


class SideBySide(Network[S]):
    """A network whose representation is one vector per modality side by side, each of its modality
    alone, with layers on top.

    A subclass makes its modules in `build`, `make_classifier` last, and defines `encode`. Its
    settings have `width`, `classifier` and `dropout`.
    """

    modality_wise = True

    def make_classifier(self) -> None:
        """Make the layers on top."""
        settings: Any = self.settings
        self.dropout = Dropout(settings.dropout)
        self.classifier = fully_connected(
            [self.representation_width, *settings.classifier, self.target.num_logits],
            settings.dropout,
        )

    @property
    def parts(self) -> dict[str, int]:
        """The representation is the modalities' vectors side by side."""
        settings: Any = self.settings
        return dict.fromkeys(self.modalities, settings.width)

    def forward(self, inputs: Inputs) -> Output:
        """All modalities at once: the representation is (N, M x width)."""
        representation = torch.cat([self.encode(m, inputs) for m in self.modalities], 1)
        return Output(representation, self.classify(representation))

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the modality's vector, (N, width). It depends on no other, so an evaluation
        computes it once for many subsets.
        """
        raise NotImplementedError

    def classify(self, representation: Tensor) -> Tensor:
        """(N, M x width) -> logits in the target's shape."""
        return self.target.shape_logits(self.classifier(self.dropout(representation)))


AnyNetwork = Network[Any]


def fully_connected(widths: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers of those widths, with ReLU and dropout between."""
    layers: list[nn.Module] = []
    for index in range(len(widths) - 1):
        if index:
            layers += [nn.ReLU(), Dropout(dropout)]
        layers.append(nn.Linear(widths[index], widths[index + 1]))
    return nn.Sequential(*layers)
