"""DMD (Li et al., CVPR 2023): decoupled multimodal distillation."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from corrkd.methods.base import Losses, Method, TrainingBatch
from corrkd.networks.dmd import Decoupled, DMDNetwork, Graph
from corrkd.networks.draws import current_draws
from corrkd.networks.encoder import pool


class DMD(Method[DMDNetwork]):
    """DMD, trained on complete samples; its teachers are the modalities themselves.

    Components of the original, and where they are:

    - a convolution per modality to a common width: `Decoupler.embed`;
    - one encoder for the shared parts of all modalities, and one per modality for the private
      parts: `DMDNetwork.shared_encoder`, `Decoupler.private_encoder`;
    - self-regression, L_rec: `Decoupler.decoder`, `reconstruction_loss`; L_cyc, the private part
      recovered from the decoded frames: `cycle_loss`;
    - L_mar, another modality of the same class is closer than another class of the same modality:
      `margin_loss`;
    - L_ort, the cosine of both parts, clamped at 0: `orthogonality_loss`;
    - HomoGD, a GD-Unit over the shared parts: `DMDNetwork.homogeneous`;
    - HeteroGD, crossmodal attention between private parts, then a GD-Unit: `DMDNetwork.crossmodal`,
      `DMDNetwork.heterogeneous`;
    - a GD-Unit's edges g([f(X_i), X_i], [f(X_j), X_j]), softmax over the graph, and |W x E|_1 with
      W the softmax plus a prior, to which the mean of W is also drawn: `GraphDistillation`,
      `distillation_loss`;
    - the heterogeneous graph's loss on representations, weighted ten times the loss on logits: as
      in the released code, it minimises the cosines, clamped at 0, between the reinforced private
      parts at both ends of an edge: `distillation_loss`;
    - fusion of both: `DMDNetwork.fuse`, `DMDNetwork.classify`;
    - total: task + lambda_1 (L_rec + L_cyc + gamma (L_mar + L_ort)) + lambda_2 (HomoGD + HeteroGD):
      `losses`.

    Adapted:

    - Features replace a fine-tuned text encoder. Any number of modalities from two, of different
      lengths: shared parts are compared by their means over visible frames, whereas the original
      compares sequences of equal length.
    - Classes of L_mar: for yes/no questions, samples that agree in all answers; for scores, the
      target's categories. The released code's margin is 0.15 times the distance between two labels;
      classes have no distance, so it is 0.15. The mean over all triples is estimated from one
      positive and one negative per anchor, which costs n^2 instead of n^3.
    - The prior of the edges is uniform. The original's favours language, but here users name the
      modalities.
    - The start of an edge is the teacher and gets no gradient. A discrepancy is the mean absolute
      difference of logits, as for the single logit of a regression.
    - f is one linear layer shared by all vertices of a graph, to keep it small; the original has a
      residual MLP per modality. It learns the task (term "unimodal"). The fused shared part has no
      task loss besides the final one.
    - The shared parts attend to each other across modalities, are gated and averaged, so that a
      missing one drops out. The original runs a Transformer over time per modality, takes the last
      steps, and gates their concatenation.
    - The attention between private parts has no causal mask, because the whole sample is available,
      and one layer of memory.
    - A modality that is not visible has no edges, no attention and no loss.
    """

    title: ClassVar[str] = "DMD"
    stackable: ClassVar[bool] = True
    network = "dmd"
    trains_on: ClassVar[Literal["complete", "missing"]] = "complete"

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return the losses with the paper's weights; the unimodal loss has weight 1."""
        details = self.student.details(batch.inputs)
        targets, seen = self.gather(batch.targets), self.gather(details.seen)
        parts = list(details.parts.values())
        homogeneous, heterogeneous = (
            Graph(*(self.gather(x) for x in graph)) for graph in (details.shared, details.private)
        )
        s = self.student.settings
        weak = s.decoupling * s.gamma
        unimodal = [
            self.unimodal_loss(graph, targets, seen) for graph in (homogeneous, heterogeneous)
        ]
        return {
            "task": (1.0, self.task_loss(self.gather(details.output.logits), targets)),
            "unimodal": (1.0, unimodal[0] + unimodal[1]),
            "reconstruction": (
                s.decoupling,
                self.over_seen([reconstruction_loss(factor) for factor in parts], seen),
            ),
            "cycle": (s.decoupling, self.over_seen([cycle_loss(factor) for factor in parts], seen)),
            "orthogonality": (
                weak,
                self.over_seen([orthogonality_loss(factor) for factor in parts], seen),
            ),
            "margin": (
                weak,
                margin_loss(homogeneous.vectors, self.same_class(targets), seen, s.margin),
            ),
            "distillation": (
                s.distillation,
                distillation_loss(homogeneous, s.prior)
                + distillation_loss(heterogeneous, s.prior, s.representation),
            ),
        }

    def over_seen(self, values: list[Tensor], seen: Tensor) -> Tensor:
        """Return the sum over modalities of the mean over the samples that show the modality, from
        this process's values, (N,) for each modality.
        """
        total = self.gather(torch.stack(values, 1)) * seen
        return (total.sum(0) / seen.sum(0).clamp(min=1)).sum()

    def unimodal_loss(self, graph: Graph, targets: Tensor, seen: Tensor) -> Tensor:
        """Return the sum over modalities of the task loss of f on that modality alone, over the
        samples that show it.
        """
        logits = self.target.shape_logits(graph.logits).unbind(1)
        losses = [
            self.target.masked_task_loss(x, targets, s, self.class_weights)
            for x, s in zip(logits, seen.unbind(1), strict=True)
        ]
        return torch.stack(losses).sum()

    def same_class(self, targets: Tensor) -> Tensor:
        """Return whether each pair of samples has the same class, (N, N) booleans."""
        rows = self.target.category_tensor(targets).reshape(len(targets), -1)
        return (rows[:, None] == rows[None]).all(-1)


def reconstruction_loss(factor: Decoupled) -> Tensor:
    """Return L_rec, the squared error of the decoded frames, (N,)."""
    return pool((factor.decoded - factor.embedded).square(), factor.seen).mean(1)


def cycle_loss(factor: Decoupled) -> Tensor:
    """Return L_cyc, the squared error of the private part recovered from decoded frames, (N,)."""
    return pool((factor.recovered - factor.private).square(), factor.seen).mean(1)


def orthogonality_loss(factor: Decoupled) -> Tensor:
    """Return L_ort, the cosine of a frame's shared and private part, clamped at 0, (N,)."""
    cosine = cosine_similarity(factor.shared, factor.private, dim=-1).clamp(min=0.0)
    return pool(cosine[..., None], factor.seen)[:, 0]


def margin_loss(shared: Tensor, same_class: Tensor, seen: Tensor, margin: float) -> Tensor:
    """Return L_mar: another modality of the same class should be closer than another class of the
    same modality, by the margin.

    For each anchor that has both, `one_of` draws one of each, in each process separately. The loss
    is 0 if there is no such anchor.

    Args:
        shared: (N, M, D).
        same_class: (N, N) booleans.
        seen: (N, M) booleans: visible.
        margin: alpha, a difference of cosines.
    """
    count = shared.shape[1]
    vectors = normalize(shared, dim=-1).flatten(0, 1)
    cosines = vectors @ vectors.T
    modality = torch.arange(count, device=shared.device).repeat(len(shared))
    same_modality = modality[:, None] == modality
    alike = same_class.repeat_interleave(count, 0).repeat_interleave(count, 1)
    both_seen = seen.flatten()[:, None] & seen.flatten()
    positive = alike & ~same_modality & both_seen
    negative = ~alike & same_modality & both_seen
    hinge = torch.relu(margin - one_of(cosines, positive) + one_of(cosines, negative))
    anchors = positive.any(1) & negative.any(1)
    return (hinge * anchors).sum() / anchors.sum().clamp(min=1)


def one_of(values: Tensor, choice: Tensor) -> Tensor:
    """Return one value per row, drawn uniformly where `choice` is true: two (n, n') -> (n,)."""
    draws = current_draws()
    numbers = (
        torch.rand(values.shape, device=values.device)
        if draws is None
        else draws.uniform(values.shape)
    )
    drawn = numbers.masked_fill(~choice, -1.0).argmax(1)
    return values.gather(1, drawn[:, None])[:, 0]


def distillation_loss(graph: Graph, prior: float, representation: float = 0.0) -> Tensor:
    """Return the sum of the discrepancies along the edges, weighted by the graph plus a uniform
    prior, and a penalty on uneven mean weights.

    The start of an edge is the teacher and gets no gradient.

    Args:
        graph: graph of N samples.
        prior: weight of the penalty, the squared distance of the mean weights from uniform ones.
        representation: weight of the cosines, clamped at 0, between the representations at both
            ends of an edge, which are added to the discrepancy of the logits.
    """
    logits, vectors = graph.logits, normalize(graph.vectors, dim=-1)
    discrepancy = (logits.detach()[:, :, None] - logits[:, None]).abs().mean(-1)
    if representation:
        cosine = torch.einsum("nid,njd->nij", vectors.detach(), vectors)
        discrepancy = discrepancy + representation * cosine.clamp(min=0.0)
    count = logits.shape[1]
    others = ~torch.eye(count, dtype=torch.bool, device=logits.device)
    even = 1.0 / (count * (count - 1))
    uneven = ((graph.edges.mean(0) - even) * others).square().sum()
    weights = graph.edges + even * (graph.edges > 0)
    return (weights * discrepancy).sum((1, 2)).mean() + prior * uneven
