"""GCNet (Lian et al., TPAMI 2023): completion and classification of a conversation, together."""

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
    """Trained under missing modalities to classify each utterance and to restore what was dropped
    of it.

    Components of the original, and where they are:

    - utterance features, missing ones zero: `GCNetwork.utterances`;
    - bidirectional LSTM over the conversation ahead of both graphs: `GCNetwork.before`;
    - Speaker GNN, edges by the pair of speakers: `GCNetwork.speaker` with `speaker_relations`;
    - Temporal GNN, edges from past, present and future: `GCNetwork.temporal` with
      `temporal_relations`;
    - both graphs within a window, a relational convolution and a graph convolution:
      `Branch.relational`, `Branch.convolution`;
    - bidirectional LSTM over read and aggregated utterances: `Branch.after`; the branches' sum:
      `GCNetwork.complete`;
    - classification: `GCNetwork.classifier`; reconstruction of each modality:
      `GCNetwork.reconstructors`;
    - squared error on missing features alone, by the number of utterances, and whole conversations
      in a batch: `restoration_loss`, `GCNet.batches`.

    Adapted:

    - The original's utterance vectors come from pretrained extractors. Here a modality is a
      sequence of features, so this package's encoder makes the vector, trained with the rest; what
      is restored is the mean of the modality's frames, since the encoder's own vector would be a
      moving target that a constant satisfies. It is standardised over training, so that every
      feature counts alike.
    - The original drops whole modalities. A modality of which only some frames are dropped counts
      by their share.
    - Frames that the data itself lacks have no truth, and are not asked for.
    - Speakers are numbered by appearance in the conversation: their names would say nothing of
      unseen ones. Where they are unknown, there is one; where no conversation is known, each sample
      is one, and the graph has its "present" edge alone.
    - A batch is filled with whole conversations up to the batch size in utterances; the original
      takes 32 conversations.
    - LSTMs have one layer instead of two, and after the last no attention over the conversation and
      no further layer, to keep it small.
    - Classes, yes/no questions and scores have this package's task loss: a score's is the absolute
      error, the original's the squared one.
    """

    title: ClassVar[str] = "GCNet"
    network = "gcnet"
    trains_on: ClassVar[Literal["complete", "missing"]] = "missing"

    def build(self) -> None:
        """What `start` fills."""
        self._truth: dict[str, Tensor] = {}
        self._present: dict[str, Tensor] = {}

    def start(self, samples: Samples) -> None:
        """Takes every training utterance's features, to be restored. They follow from the data, so
        a checkpoint has no need of them.
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
        """Return task and reconstruction. The graphs span the rows of all processes, over which a
        conversation may be distributed.
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
    """Features of whole utterances: the mean of their present frames, (N, d_m) by modality; zeros
    where there is none.
    """
    return {
        m: pool(x.masked_fill(~present[m][..., None], 0.0), present[m]) for m, x in frames.items()
    }


def standardised(means: Tensor, exists: Tensor) -> Tensor:
    """(N, d) with mean 0 and deviation 1 over the rows that are there; a feature that never varies
    is 0, as are the other rows.
    """
    if not bool(exists.any()):
        return torch.zeros_like(means)
    valid = means[exists]
    scaled = (means - valid.mean(0)) / valid.std(0, correction=0).clamp(min=1e-6)
    return scaled * exists[:, None]


def dropped_share(present: Tensor, visible: Tensor) -> Tensor:
    """Share of the present frames that were dropped, (N,); 0 where none was present. Two (N, T)
    booleans.
    """
    return (present & ~visible).sum(1) / present.sum(1).clamp(min=1)


def restoration_loss(
    restored: Mapping[str, Tensor], truth: Mapping[str, Tensor], dropped: Mapping[str, Tensor]
) -> Tensor:
    """Squared error of the dropped features, summed over modalities, mean over all samples; 0 where
    nothing was dropped.

    Args:
        restored: (N, d_m) by modality.
        truth: (N, d_m) by modality.
        dropped: (N,) by modality, weights from 0 (all seen) to 1 (absent).
    """
    errors = torch.stack([(restored[m] - truth[m]).square().mean(1) for m in restored])
    weights = torch.stack([dropped[m] for m in restored]).to(errors.dtype)
    return (weights * errors).sum() / max(errors.shape[1], 1)
