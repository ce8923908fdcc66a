"""CubeMLP: the task loss of a network that mixes along sequence, modality and channel."""

from __future__ import annotations

from typing import ClassVar, Literal

from corrkd.methods.base import Method
from corrkd.networks.cubemlp import CubeMLPNetwork


class CubeMLP(Method[CubeMLPNetwork]):
    """CubeMLP (Sun et al., ACM MM 2022, "CubeMLP: An MLP-based Model for Multimodal Sentiment
    Analysis and Depression Estimation").

    Components of the original, and where they are:

    - feature extraction to sequences of one length and channels, by LSTMs for audio and vision,
      each with a layer norm, ReLU and dropout: `CubeMLPNetwork.encoders`, `norms`, `cube`;
    - blocks of three units, each two affine maps with an activation between, along the sequence,
      the modalities and the channels: `CubeMLPBlock`, `MixingUnit`;
    - shortcuts around the units and a layer norm ahead of the first map: `MixingUnit.shortcut`,
      `norm`;
    - the mixed cube read flat by a classifier, with a hidden layer of 128 where it is wider than
      that: `CubeMLPNetwork.classifier`;
    - the task loss alone: `Method.losses`.

    Adapted: language has an LSTM too, in place of a BERT trained along, since datasets come as
    features. LSTMs read forth only, where the original adds both directions, so that padding, which
    comes last, changes no state. Any number of modalities. Where a unit changes the size of its
    axis, its shortcut is a linear map, which the original does not have. Cross-entropy for classes
    and answers where the original regresses a score. No norm along an axis of three or fewer, such
    as the modalities: it would leave hardly more than an order. Widths are scaled to short
    sequences. A complete-modality method: it is trained on complete samples.
    """

    title: ClassVar[str] = "CubeMLP"
    stackable: ClassVar[bool] = True
    network = "cubemlp"
    trains_on: ClassVar[Literal["complete", "missing"]] = "complete"
