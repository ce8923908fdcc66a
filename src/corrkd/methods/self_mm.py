"""Self-MM: one task per modality besides the multimodal one, with labels generated in training
(Yu et al., AAAI 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, one_hot

from corrkd.data.batches import Samples
from corrkd.methods.base import Losses, Method, TrainingBatch
from corrkd.networks.self_mm import SelfMMNetwork
from corrkd.targets.base import Target

EPSILON = 1e-6


class SelfMM(Method[SelfMMNetwork]):
    """Self-MM (Yu et al., AAAI 2021, "Learning Modality-Specific Representations with
    Self-Supervised Multi-Task Learning ...").

    Components of the original, and where they are:

    - sLSTM encoders shared by all tasks, a multimodal task on their concatenation, and a task per
      modality: `SelfMMNetwork`;
    - the unimodal label generation module, `LabelGeneration`: a memory of every training sample's
      representations, the centres of positive and negative samples in it (`centres`), relative
      distances alpha to them (`relative_distance`), and from those, by ratio and difference, the
      offset of a unimodal label from the multimodal one (`shifted_labels`);
    - the momentum update of the labels, with weights (i - 1)/(i + 1) and 2/(i + 1) in epoch i:
      `LabelGeneration.update`;
    - the weights tanh|y_s - y_m| of the unimodal losses: `unimodal_loss`.

    Adapted, and why:

    - Language has an LSTM too, instead of a fine-tuned BERT, because datasets come as features.
    - F_s is an LSTM's last state, with no linear layer after it, and each head has one hidden layer
      less, to keep the network small.
    - The original needs a signed score. A class is written as signed labels, +1 for the class and
      -1 for all others; a yes/no answer as +1 or -1. A generated signed label y is read as the
      probability (y + 1)/2, for classes divided by the sum: unimodal labels are soft distributions,
      learned by cross-entropy. The negative centre of a class is the nearest centre of another;
      with two classes it is the original's.
    - Alpha is (D_n - D_p)/(D_n + D_p), a monotone function of the original's (D_n - D_p)/D_p that
      stays in [-1, 1]. The original's has no upper bound: if the fused classes are far apart, even
      samples close to a modality's class are labelled as outside it (on the built-in dataset,
      generated labels of scores then run against the scores).
    - If fused representation and label are on opposite sides, the ratio would reverse the offset,
      so only the difference is used.
    - Scores are measured from a neutral point: 0 if the training scores have both signs, otherwise
      their mean. Differences of alpha are scaled by the mean size of the scores, so that their unit
      does not matter. Labels stay in the scores' range.
    - A modality without visible frames keeps its memory and labels and has no unimodal loss; epochs
      are counted by sample and modality. A complete-modality method: it is trained on complete
      samples.
    """

    title: ClassVar[str] = "Self-MM"
    stackable: ClassVar[bool] = True
    network = "self-mm"
    trains_on: ClassVar[Literal["complete", "missing"]] = "complete"

    def build(self) -> None:
        """Create the label generation."""
        self.labels = LabelGeneration(self.target)

    def start(self, samples: Samples) -> None:
        """Create the memory. All unimodal labels start as the sample's label."""
        settings = self.student.settings
        # Half precision is too coarse for means over labels and memories.
        parameters = next(self.student.parameters()).dtype
        self.labels.start(
            samples.targets,
            [settings.unimodal] * len(self.student.modalities),
            settings.fusion,
            dtype=torch.promote_types(parameters, torch.float32),
        )

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return task, and unimodal, the sum over modalities. In training, update memory and labels
        of these samples.
        """
        inputs, targets, context = batch
        fused, parts = self.student.tasks(inputs)
        rows = self.gather(context.rows)
        visible = [
            self.gather(inputs.visible[m].any(1).to(targets.dtype)) > 0
            for m in self.student.modalities
        ]
        representation = self.gather(fused.representation)
        representations = [self.gather(output.representation) for output in parts]
        unimodal = sum(
            (
                self.unimodal_loss(index, self.gather(output.logits), rows, visible[index])
                for index, output in enumerate(parts)
            ),
            torch.zeros((), device=rows.device),
        )
        if self.training:
            self.labels.update(rows, representation, representations, visible)
        return {
            "task": (1.0, self.task_loss(self.gather(fused.logits), self.gather(targets))),
            "unimodal": (1.0, unimodal),
        }

    def unimodal_loss(self, index: int, logits: Tensor, rows: Tensor, visible: Tensor) -> Tensor:
        """Return the distance from the generated labels, weighted by tanh|y_s - y_m|: the mean over
        samples, counting 0 for those that do not show the modality.
        """
        labels, truth = self.labels.of(index, rows), self.labels.truth[rows]
        weight = torch.tanh((labels - truth).abs())
        logits = logits.to(labels.dtype)
        if not self.target.has_classes:
            loss = weight[:, 0] * (logits[:, 0] - self.labels.neutral - labels[:, 0]).abs()
        elif self.target.questions:
            loss = -(
                weight * (self.labels.distribution(labels) * log_softmax(logits, -1)).sum(2)
            ).mean(1)
        else:
            loss = -weight.amax(1) * (
                self.labels.distribution(labels) * log_softmax(logits, -1)
            ).sum(1)
        return (loss * visible).sum() / max(len(rows), 1)


class LabelGeneration(nn.Module):
    """The unimodal label generation module (ULGM), with its memory of the training split. All
    labels are signed, (N, C).

    C is K for classes, Q for questions, 1 for a score.

    Attributes:
        truth: (N, C) multimodal labels y_m.
        unimodal: (M, N, C) generated labels y_s.
        seen: (M, N) how often each sample showed each modality.
        neutral, bound, unit: for scores, the neutral point and the largest and mean distance from
            it; otherwise 0, 1, 1.
        fused: (N, fusion) memory of the fused representations.
    """

    truth: Tensor
    unimodal: Tensor
    seen: Tensor
    neutral: Tensor
    bound: Tensor
    unit: Tensor
    fused: Tensor

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        self.classes = len(target.classes)

    def start(
        self,
        targets: Tensor,
        widths: Sequence[int],
        fusion: int,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Create an empty memory for N samples with representations of these widths, as buffers, so
        that checkpoints include it.
        """
        neutral = torch.zeros((), dtype=dtype, device=targets.device)
        if self.target.questions:
            truth = 2.0 * targets.to(dtype) - 1.0
        elif self.target.has_classes:
            truth = 2.0 * one_hot(targets, self.classes).to(dtype) - 1.0
        else:
            truth = targets.to(dtype)[:, None]
            both = (truth.amin() < 0) & (truth.amax() > 0)
            neutral = torch.where(both, neutral, truth.mean())
            truth = truth - neutral
        count, modalities = len(targets), len(widths)
        self.register_buffer("neutral", neutral)
        self.register_buffer("bound", truth.abs().amax())
        self.register_buffer("unit", truth.abs().mean())
        self.register_buffer("truth", truth)
        self.register_buffer("unimodal", truth.expand(modalities, -1, -1).clone())
        self.register_buffer(
            "seen", torch.zeros(modalities, count, dtype=torch.int64, device=targets.device)
        )
        self.register_buffer(
            "fused", torch.zeros(count, fusion, dtype=dtype, device=targets.device)
        )
        for index, width in enumerate(widths):
            self.register_buffer(
                f"memory_{index}", torch.zeros(count, width, dtype=dtype, device=targets.device)
            )

    def of(self, index: int, rows: Tensor) -> Tensor:
        """Return the generated signed labels of the modality at `index`, (n, C)."""
        return self.unimodal[index, rows]

    def distribution(self, labels: Tensor) -> Tensor:
        """Return signed labels as probabilities: (n, K) for classes, (n, Q, 2) for no and yes."""
        yes = (labels + 1.0) / 2.0
        if self.target.questions:
            return torch.stack([1.0 - yes, yes], -1)
        yes = yes.clamp(min=EPSILON)
        return yes / yes.sum(1, keepdim=True)

    @torch.no_grad()
    def update(
        self,
        rows: Tensor,
        fused: Tensor,
        representations: Sequence[Tensor],
        visible: Sequence[Tensor],
    ) -> None:
        """Update the labels of the samples at `rows` by momentum, from the second time on that they
        show a modality; then update their memory.
        """
        truth = self.truth[rows]
        everyone = (self.seen > 0).any(0)
        multimodal = self.alpha(fused.to(self.fused.dtype), self.fused, self.truth, everyone)
        for index, features in enumerate(representations):
            memory = self.get_buffer(f"memory_{index}")
            seen = self.seen[index]
            alpha = self.alpha(
                features.to(self.fused.dtype), memory, self.unimodal[index], seen > 0
            )
            new = shifted_labels(alpha, multimodal, truth, self.bound, self.unit)
            old = self.unimodal[index, rows]
            epoch = (seen[rows] + 1)[:, None].to(old.dtype)
            moved = (epoch - 1) / (epoch + 1) * old + 2 / (epoch + 1) * new
            is_visible = visible[index][:, None]
            self.unimodal[index, rows] = torch.where(is_visible & (epoch > 1), moved, old)
            memory[rows] = torch.where(is_visible, features.to(self.fused.dtype), memory[rows])
            seen[rows] += visible[index].to(seen.dtype)
        self.fused[rows] = fused.to(self.fused.dtype)

    def alpha(self, features: Tensor, memory: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
        """Return relative distances (n, C) of features (n, d) to the positive and negative centres
        in a memory; see `relative_distance`.
        """
        positive = distances(features, centres(memory, (labels > 0) & counted[:, None]))
        if self.target.has_classes and not self.target.questions:
            others = positive[:, None, :].expand(-1, self.classes, -1)
            itself = torch.eye(self.classes, dtype=torch.bool, device=features.device)
            negative = others.masked_fill(itself, torch.inf).amin(2)
        else:
            negative = distances(features, centres(memory, (labels < 0) & counted[:, None]))
        return relative_distance(positive, negative)


def centres(memory: Tensor, members: Tensor) -> Tensor:
    """Return the means of the representations (N, d) over the members (N, C) of each column,
    (C, d); infinite for a column without members.
    """
    weight = members.to(memory.dtype)
    count = weight.sum(0)[:, None]
    return torch.where(count > 0, weight.T @ memory / count.clamp(min=1.0), torch.inf)


def distances(features: Tensor, centre: Tensor) -> Tensor:
    """Return D = |F - C|^2 / sqrt(d): (n, d) and (C, d) -> (n, C)."""
    return (features[:, None] - centre).square().sum(2) / features.shape[1] ** 0.5


def relative_distance(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the relative distance alpha = (D_n - D_p) / (D_n + D_p), in [-1, 1]; not finite if a
    centre is missing.
    """
    return (negative - positive) / (positive + negative + EPSILON)


def shifted_labels(
    unimodal: Tensor, fused: Tensor, truth: Tensor, bound: Tensor, unit: Tensor
) -> Tensor:
    """Return y_s from alpha_s, alpha_m and y_m (n, C): the mean of y_m alpha_s / alpha_m and y_m +
    alpha_s - alpha_m, within the bound.

    It increases with alpha_s, and is y_m if alpha_s = alpha_m or one of them is missing. The
    difference is multiplied by `unit`; it is used alone if y_m and alpha_m differ in sign.
    """
    difference = truth + unit * (unimodal - fused)
    agree = truth * fused > 0
    ratio = truth * unimodal / torch.where(agree, fused, 1.0)
    labels = torch.where(agree, (ratio + difference) / 2.0, difference)
    labels = torch.maximum(torch.minimum(labels, bound), -bound)
    return torch.where(unimodal.isfinite() & fused.isfinite(), labels, truth)
