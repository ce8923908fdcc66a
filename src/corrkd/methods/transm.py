"""TransModality: joint features from translation with Transformers (Wang et al., WWW 2020)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from corrkd.losses.frames import frame_errors, mean_error
from corrkd.methods.base import Losses, Method, TrainingBatch
from corrkd.networks.transm import TransMNetwork


class TransM(Method[TransMNetwork]):
    """TransModality: the task loss plus the errors of the translations forth and back.

    Components of the original, and where they are:

    - Modality fusion cell: a Transformer encoder and decoder translate one modality of a pair into
      the other; the encoder's output, made to hold what both say, is the pair's joint feature:
      `FusionCell`.
    - Forward translation: error of the translated target; term `forward`.
    - Backward translation: what was translated goes through the other translator back to its
      source; term `backward`.
    - A cell for text with each other modality, side by side so that they do not disturb each other:
      `cells`.
    - Classification of the cells' joint features, concatenated: `classifier`; term `task`, trained
      together with the rest.

    A Keras implementation is public (hyeonJeongByeon/TransModality), which calls itself the paper's
    source code. It has 10 encoder and 5 decoder layers of 5 heads, width 100, feed-forward blocks
    of 200 (vision) and 120 (audio), dropout 0.5, absolute errors with weight 10 each beside the
    task's 1, and the classifier reads each modality's own stream beside the joint features. The arm
    `transm-original` has those sizes and weights.

    Adapted: by default the network and the terms' weights are smaller, for sets of a few thousand
    samples, and the classifier reads the joint features alone; `unimodal` adds the streams, an
    encoder each in place of a bidirectional GRU. Errors are absolute. Both ways of a pair start
    from real frames, where the original starts at text alone. The original translates the sequence
    of a video's utterances, a vector each, of one length in all modalities. Here a sequence is a
    sample's frames, of a different length in each modality, and a joint feature is the mean over
    them. The decoder writes all frames at once from learned queries with positions, since reading
    the target's true frames, as in translating words, would let a continuous target be copied from
    the frame before it. Text becomes the first modality, or the one that is set as the centre.
    Classes and yes/no questions take cross-entropy, scores L1. The errors are means over frames
    that are there and visible, and over all ways. A missing frame of a source is zero.
    """

    title: ClassVar[str] = "TransM"
    network = "transm"
    trains_on: ClassVar[Literal["complete", "missing"]] = "complete"

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task, forward and backward."""
        network, inputs = self.student, batch.inputs
        settings = network.settings
        ways = network.translate(inputs)
        logits = network.fuse(ways, inputs).logits

        def error(made: Tensor, m: str) -> Tensor:
            return mean_error(
                self.gather(frame_errors(made, inputs.frames[m], inputs.visible[m], absolute=True))
            )

        return {
            "task": (1.0, self.task_loss(self.gather(logits), self.gather(batch.targets))),
            "forward": (
                settings.forward,
                torch.stack([error(way.there, way.target) for way in ways]).mean(),
            ),
            "backward": (
                settings.backward,
                torch.stack([error(way.back, way.source) for way in ways]).mean(),
            ),
        }
