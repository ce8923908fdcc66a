"""GCNet (Lian et al., TPAMI 2023): joint completion and classification of a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from corrkd.data.batches import Context, Samples
from corrkd.methods.base import Losses, Method, TrainingBatch
from corrkd.networks.encoder import pool
from corrkd.networks.gcnet import GCNetwork


class GCNet(Method[GCNetwork]):
    """GCNet, trained under missing modalities to classify each utterance and to restore its dropped
    features.

    Components of the original, and where they are:

    - utterance features, zero if missing: `GCNetwork.utterances`;
    - bidirectional LSTM over the conversation before both graphs: `GCNetwork.before`;
    - Speaker GNN, edges by the pair of speakers: `GCNetwork.speaker` with `speaker_relations`;
    - Temporal GNN, edges from past, present and future: `GCNetwork.temporal` with
      `temporal_relations`;
    - both graphs within a window, a relational convolution and a graph convolution:
      `Branch.relational`, `Branch.convolution`;
    - bidirectional LSTM over the utterances before and after aggregation: `Branch.after`; the sum
      of the branches: `GCNetwork.complete`;
    - classification: `GCNetwork.classifier`; reconstruction of each modality:
      `GCNetwork.reconstructors`;
    - squared error on missing features alone, divided by the number of utterances, and whole
      conversations in a batch: `restoration_loss`, `GCNet.batches`.

    Adapted:

    - The original's utterance vectors come from pretrained extractors. Here a modality is a
      sequence of features, so this package's encoder computes the vector and is trained with the
      rest. The mean of the modality's frames is restored, because the encoder's output would be a
      moving target that a constant satisfies. It is standardised over the training split, so that
      every feature counts equally.
    - The original drops whole modalities. A modality with only some frames dropped counts by their
      share.
    - Frames that are missing in the data have no true values, so they are not restored.
    - Speakers are numbered by appearance in the conversation, because names would say nothing about
      unseen speakers. Without speakers, all utterances have the same one. Without conversations,
      each sample is one, and the graph has only its "present" edge.
    - A batch is filled with whole conversations up to the batch size in utterances; the original
      takes 32 conversations.
    - LSTMs have one layer instead of two, and neither attention over the conversation nor a further
      layer follows the last one, to keep the network small.
    - Classes, yes/no questions and scores have this package's task loss: the absolute error for a
      score, whereas the original uses the squared one.
    """

    title: ClassVar[str] = "GCNet"
    network = "gcnet"
    trains_on: ClassVar[Literal["complete", "missing"]] = "missing"

    def build(self) -> None:
        """Create the attributes that `start` fills."""
        self._truth: dict[str, Tensor] = {}
        self._present: dict[str, Tensor] = {}

    def start(self, samples: Samples) -> None:
        """Compute the features of every training utterance, the targets of the restoration. They
        follow from the data, so checkpoints do not need them.
        """
        self._present = dict(samples.present)
        parts: dict[str, list[Tensor]] = {m: [] for m in samples.modalities}
        for batch in samples.batches(1024):
            for m, means in utterance_means(batch.frames, batch.present).items():
                parts[m].append(means)
        self._truth = {
            m: standardised(torch.cat(means), samples.present[m].any(1))
            for m, means in parts.items()
        }

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task and reconstruction. The graphs span the rows of all processes, because a
        conversation may be split over them.
        """
        assert self._truth, "start() comes before training"
        network, (inputs, targets, context) = self.student, batch
        utterances = self.gather(network.utterances(inputs))
        rows = context.rows
        dropped = {
            m: self.gather(dropped_share(self._present[m][rows], inputs.visible[m]))
            for m in network.modalities
        }
        truth = {m: self.gather(self._truth[m][rows]) for m in network.modalities}
        representation = network.complete(utterances, Context(*(self.gather(x) for x in context)))
        task = self.task_loss(network.classify(representation), self.gather(targets))
        reconstruction = restoration_loss(network.restore(representation), truth, dropped)
        return {
            "task": (1.0, task),
            "reconstruction": (network.settings.reconstruction, reconstruction),
        }


def utterance_means(
    frames: Mapping[str, Tensor], present: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the features of whole utterances, the mean of their present frames, (N, d_m) by
    modality; zeros if no frame is present.
    """
    return {
        m: pool(x.masked_fill(~present[m][..., None], 0.0), present[m]) for m, x in frames.items()
    }


def standardised(means: Tensor, exists: Tensor) -> Tensor:
    """Return the features (N, d) with mean 0 and deviation 1 over the rows that exist. Constant
    features and all other rows become 0.
    """
    if not bool(exists.any()):
        return torch.zeros_like(means)
    valid = means[exists]
    scaled = (means - valid.mean(0)) / valid.std(0, correction=0).clamp(min=1e-6)
    return scaled * exists[:, None]


def dropped_share(present: Tensor, visible: Tensor) -> Tensor:
    """Return the share of the present frames that were dropped, two (N, T) booleans -> (N,); 0 if
    no frame is present.
    """
    return (present & ~visible).sum(1) / present.sum(1).clamp(min=1)


def restoration_loss(
    restored: Mapping[str, Tensor], truth: Mapping[str, Tensor], dropped: Mapping[str, Tensor]
) -> Tensor:
    """Return the squared error of the dropped features: mean over features, sum over modalities,
    mean over all samples; 0 if nothing was dropped.

    Args:
        restored, truth: (N, d_m) by modality.
        dropped: (N,) by modality, weights from 0 (all visible) to 1 (all dropped).
    """
    errors = torch.stack([(restored[m] - truth[m]).square().mean(1) for m in restored])
    weights = torch.stack([dropped[m] for m in restored]).to(errors.dtype)
    return (weights * errors).sum() / max(errors.shape[1], 1)
