"""CubeMLP: the task loss of a network that mixes along sequence, modality and channel."""

from __future__ import annotations

from typing import ClassVar, Literal

from corrkd.methods.base import Method
from corrkd.networks.cubemlp import CubeMLPNetwork


class CubeMLP(Method[CubeMLPNetwork]):
    """CubeMLP (Sun et al., ACM MM 2022, "CubeMLP: An MLP-based Model for Multimodal Sentiment
    Analysis and Depression Estimation").

    Components of the original, and where they are:

    - feature extraction to sequences with equal length and channels, by LSTMs for audio and vision,
      each with a layer norm, ReLU and dropout: `CubeMLPNetwork.encoders`, `norms`, `cube`;
    - blocks of three units along the sequence, the modalities and the channels, each with two
      affine maps and an activation between them: `CubeMLPBlock`, `MixingUnit`;
    - shortcuts around the units, and a layer norm before the first map: `MixingUnit.shortcut`,
      `norm`;
    - a classifier on the flattened cube, with a hidden layer of 128 if the cube is wider than that:
      `CubeMLPNetwork.classifier`;
    - the task loss alone: `Method.losses`.

    Adapted: language has an LSTM too, instead of a fine-tuned BERT, because datasets come as
    features. LSTMs are unidirectional, whereas the original adds both directions, so that padding,
    which comes last, changes no state. Any number of modalities. If a unit changes the size of its
    axis, its shortcut is a linear map, which the original does not have. Cross-entropy for classes
    and answers, whereas the original regresses a score. No norm along an axis of three or fewer,
    such as the modalities, because it would leave little more than their order. Widths are scaled
    down to short sequences. A complete-modality method: it is trained on complete samples.
    """

    title: ClassVar[str] = "CubeMLP"
    stackable: ClassVar[bool] = True
    network = "cubemlp"
    trains_on: ClassVar[Literal["complete", "missing"]] = "complete"
