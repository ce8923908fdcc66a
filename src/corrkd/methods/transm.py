"""TransModality: joint features from translation by Transformers (Wang et al., WWW 2020)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from corrkd.losses.frames import frame_errors, mean_error
from corrkd.methods.base import Losses, Method, TrainingBatch
from corrkd.networks.transm import TransMNetwork


class TransM(Method[TransMNetwork]):
    """TransModality: the task loss plus the errors of forward and backward translation.

    Components of the original, and where they are:

    - Modality fusion cell: a Transformer encoder and decoder translate one modality of a pair into
      the other; the encoder's output, which has to contain both, is the joint feature of the pair:
      `FusionCell`.
    - Forward translation: error of the translated target; term `forward`.
    - Backward translation: the translation passes through the other translator back to its source;
      term `backward`.
    - A cell for text with each other modality, side by side so that they do not disturb each other:
      `cells`.
    - Classification of the cells' joint features, concatenated: `classifier`; term `task`, trained
      together with the rest.

    A public Keras implementation (hyeonJeongByeon/TransModality) calls itself the paper's source
    code. It has 10 encoder and 5 decoder layers of 5 heads, width 100, feed-forward blocks of 200
    (vision) and 120 (audio), dropout 0.5, and absolute errors with weight 10 each against the
    task's 1; its classifier also reads a stream of each modality. The arm `transm-original` has
    these sizes and weights.

    Adapted: by default the network and the terms' weights are smaller, for sets of a few thousand
    samples, and the classifier reads only the joint features; `unimodal` adds the streams, with an
    encoder each instead of a bidirectional GRU. Errors are absolute. Both directions of a pair
    start from real frames, whereas the original starts only from text. The original translates the
    sequence of a video's utterances, one vector each, of equal length in all modalities. Here a
    sequence is a sample's frames, of different length in each modality, and a joint feature is the
    mean over them. The decoder writes all frames at once from learned queries with positions: if it
    read the target's true frames, as in translating words, it could copy a continuous target from
    the previous frame. The first modality, or the one that is set as the centre, takes the role of
    text. Classes and yes/no questions use cross-entropy, scores L1. Errors are means over visible
    frames and over all directions. A missing frame of a source is zero.
    """

    title: ClassVar[str] = "TransM"
    network = "transm"
    trains_on: ClassVar[Literal["complete", "missing"]] = "complete"

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task, forward and backward."""
        network, inputs = self.student, batch.inputs
        settings = network.settings
        translations = network.translate(inputs)
        logits = network.fuse(translations, inputs).logits

        def error(made: Tensor, m: str) -> Tensor:
            return mean_error(
                self.gather(frame_errors(made, inputs.frames[m], inputs.visible[m], absolute=True))
            )

        return {
            "task": (1.0, self.task_loss(self.gather(logits), self.gather(batch.targets))),
            "forward": (
                settings.forward,
                torch.stack([error(t.translated, t.target) for t in translations]).mean(),
            ),
            "backward": (
                settings.backward,
                torch.stack([error(t.restored, t.source) for t in translations]).mean(),
            ),
        }
