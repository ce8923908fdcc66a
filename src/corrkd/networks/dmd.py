"""DMD's network (Li et al., CVPR 2023): each modality split into a part that all share and a
private part, and a distillation graph over each kind of part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.networks.base import Network, Output, fully_connected
from corrkd.networks.draws import current_draws
from corrkd.networks.encoder import (
    AttentionLayer,
    Dropout,
    EncoderLayer,
    TemporalConvolution,
    pool,
    sinusoids_like,
)
from corrkd.settings import NetworkSettings

OUT_OF_REACH = -1e4  # finite, so that the softmax is finite if all keys are masked


class DMDSettings(BaseModel):
    """Structure and loss weights of DMD.

    The original's on MOSI: width 50 with 10 heads, 4 attention levels, kernel 5, graph width 64
    over the shared parts and 32 over the private ones, lambda_1 = 0.1, lambda_2 = 0.05, gamma =
    0.1, energies scaled by 1/8, heterogeneous representations 10. Width and levels are smaller
    here, for datasets of a few thousand samples, and both graphs have the same width.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width: int = Field(40, ge=1, le=16_384, description="of each part of a modality")
    heads: int = Field(10, ge=1, le=16_384, description="attention heads; divides the width")
    levels: int = Field(1, ge=1, le=256, description="layers of each crossmodal attention")
    kernel: int = Field(5, ge=1, le=999, description="of the first convolution")
    graph: int = Field(
        32,
        ge=1,
        le=16_384,
        description="width of the graph's view of a modality's logits and representation",
    )
    scale: float = Field(0.125, gt=0.0, description="of the edges' energies ahead of the softmax")
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    decoupling: float = Field(
        0.1, ge=0.0, description="lambda_1: weight of reconstruction and cycle"
    )
    distillation: float = Field(
        0.05, ge=0.0, description="lambda_2: weight of the graphs' distillation"
    )
    gamma: float = Field(
        0.1, ge=0.0, description="weight of margin and orthogonality within the decoupling"
    )
    margin: float = Field(
        0.15,
        ge=0.0,
        description="alpha: by how much the same class is to be closer than the same modality",
    )
    representation: float = Field(
        10.0,
        ge=0.0,
        description="weight of the cosines between the representations at an edge's ends, within "
        "the heterogeneous graph's distillation",
    )
    prior: float = Field(
        10.0,
        ge=0.0,
        description="how strongly a graph's mean weights are held to even ones, within its "
        "distillation",
    )


class Decoupled(NamedTuple):
    """Decoupled frames of a modality, (N, T, width) each, and which of them are visible, (N, T).

    Attributes:
        embedded: after the first convolution.
        shared: modality-irrelevant part.
        private: modality-exclusive part.
        decoded: reconstruction of `embedded` from both parts.
        recovered: the private part of `decoded`.
        seen: booleans: which frames are visible.
    """

    embedded: Tensor
    shared: Tensor
    private: Tensor
    decoded: Tensor
    recovered: Tensor
    seen: Tensor


class Graph(NamedTuple):
    """A distillation graph over the modalities.

    Attributes:
        vectors: (N, M, D) representations.
        logits: (N, M, O), predicted from each representation.
        edges: (N, M, M) weights: [:, a, b] of the edge from modality a to b; 0 on the diagonal.
    """

    vectors: Tensor
    logits: Tensor
    edges: Tensor


class Details(NamedTuple):
    """All inputs of the loss terms.

    Attributes:
        output: representation and logits.
        parts: decoupled frames by modality.
        shared, private: the homogeneous and the heterogeneous graph.
        seen: (N, M) booleans: a frame of the modality is visible.
    """

    output: Output
    parts: dict[str, Decoupled]
    shared: Graph
    private: Graph
    seen: Tensor


class DMDNetwork(Network[DMDSettings]):
    """Decoupling, the two graphs, and a classifier of both parts.

    Raises:
        CorrKDError: if there is only one modality.
    """

    name = "dmd"
    stackable = True
    settings_type = DMDSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings = self.settings
        if len(self.modalities) < 2:
            raise CorrKDError(
                f"DMD: distils between modalities, but there is only {self.modalities[0]}"
            )
        width, count = settings.width, len(self.modalities)
        self.decouplers = nn.ModuleList(
            Decoupler(d, width, settings.kernel) for d in widths.values()
        )
        self.shared_encoder = TemporalConvolution(width, width, 1)
        self.crossmodal = nn.ModuleList(Reinforcement(count - 1, settings) for _ in self.modalities)
        self.homogeneous = GraphDistillation(width, self.target.num_logits, settings)
        self.heterogeneous = GraphDistillation(
            (count - 1) * width, self.target.num_logits, settings
        )
        self.shared_attention = EncoderLayer(_layer(width, settings))
        self.gate = nn.Linear(width, width)
        self.dropout = Dropout(settings.dropout)
        self.classifier = fully_connected(
            [self.representation_width, self.representation_width, self.target.num_logits],
            settings.dropout,
        )

    @property
    def representation_width(self) -> int:
        """Width of the fused shared parts and of each modality's reinforced private part."""
        count = len(self.modalities)
        return self.settings.width * (1 + count * (count - 1))

    def forward(self, inputs: Inputs) -> Output:
        """Return the representation, (N, `representation_width`), and the logits."""
        return self.details(inputs).output

    def details(self, inputs: Inputs) -> Details:
        """Return the output together with all other inputs of the loss terms."""
        parts = {
            m: decouple(inputs.frames[m], inputs.visible[m], self.shared_encoder)
            for m, decouple in zip(self.modalities, self.decouplers, strict=True)
        }
        seen = inputs.shown(self.modalities)
        shared = torch.stack([pool(factor.shared, factor.seen) for factor in parts.values()], 1)
        reinforced = [
            reinforce(parts[m], [parts[other] for other in self.modalities if other != m])
            for m, reinforce in zip(self.modalities, self.crossmodal, strict=True)
        ]
        private = torch.stack(reinforced, 1)
        representation = torch.cat([self.fuse(shared, seen), private.flatten(1)], 1)
        return Details(
            Output(representation, self.classify(representation)),
            parts,
            self.homogeneous(shared, seen),
            self.heterogeneous(private, seen),
            seen,
        )

    def fuse(self, shared: Tensor, seen: Tensor) -> Tensor:
        """Fuse the shared parts of the visible modalities by self-attention, a gate and the mean:
        (N, M, D) and (N, M) -> (N, D).
        """
        mixed = self.shared_attention(shared, reach(seen))
        return pool(torch.sigmoid(self.gate(mixed)) * mixed, seen)

    def classify(self, representation: Tensor) -> Tensor:
        """Return the logits of a representation."""
        return self.target.shape_logits(self.classifier(self.dropout(representation)))


class Decoupler(nn.Module):
    """Layers of one modality: its first convolution, its private encoder and its decoder."""

    def __init__(self, inputs: int, width: int, kernel: int) -> None:
        super().__init__()
        self.embed = TemporalConvolution(inputs, width, kernel)
        self.private_encoder = TemporalConvolution(width, width, 1)
        self.decoder = TemporalConvolution(2 * width, width, 1)

    def forward(self, frames: Tensor, seen: Tensor, shared_encoder: nn.Module) -> Decoupled:
        """Decouple frames (N, T, d_m), visible where `seen`, by the shared and private encoders."""
        embedded = self.embed(frames.masked_fill(~seen[..., None], 0.0))
        shared, private = shared_encoder(embedded), self.private_encoder(embedded)
        decoded = self.decoder(torch.cat([shared, private], -1))
        return Decoupled(embedded, shared, private, decoded, self.private_encoder(decoded), seen)


class Reinforcement(nn.Module):
    """Attention of a modality's private part to that of each other modality; the results are put
    side by side and pooled (Tsai et al., 2019).
    """

    def __init__(self, others: int, settings: DMDSettings) -> None:
        super().__init__()
        self.settings = settings
        self.crossmodal = nn.ModuleList(CrossmodalTransformer(settings) for _ in range(others))
        self.memory = EncoderLayer(_layer(others * settings.width, settings))

    def forward(self, target: Decoupled, others: list[Decoupled]) -> Tensor:
        """Return the reinforced part, (N, others x width); zeros if the modality is not visible."""
        queries = placed(target.private)
        attended = [
            look(queries, placed(other.private), other.seen)
            for look, other in zip(self.crossmodal, others, strict=True)
        ]
        return pool(self.memory(torch.cat(attended, -1), reach(target.seen)), target.seen)


class CrossmodalTransformer(nn.Module):
    """`levels` layers of crossmodal attention, all to the same keys."""

    def __init__(self, settings: DMDSettings) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CrossmodalAttention(settings) for _ in range(settings.levels))

    def forward(self, hidden: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
        """Return the new states: (N, T, d), keys (N, T', d), visible keys (N, T') -> (N, T, d)."""
        for layer in self.layers:
            hidden = layer(hidden, keys, seen)
        return hidden


class CrossmodalAttention(AttentionLayer):
    """Attention with queries of one modality, keys and values of another; then a feed-forward
    block. Pre-norm, with residuals.
    """

    def __init__(self, settings: DMDSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.norm_query = nn.LayerNorm(width)
        self.norm_key = nn.LayerNorm(width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.dropout = Dropout(settings.dropout)

    def forward(self, hidden: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
        """Return the new states: (N, T, d), keys (N, T', d), visible keys (N, T') -> (N, T, d).
        Without visible keys, the attention adds nothing.
        """
        attended = self.attend(self.norm_query(hidden), self.norm_key(keys), seen)
        hidden = hidden + self.dropout(attended) * seen.any(1)[:, None, None]
        wide = torch.relu(self.expand(self.norm_feedforward(hidden)))
        return hidden + self.dropout(self.contract(self.dropout(wide)))

    def attend(self, hidden: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
        """Return the result of multi-head attention. Shapes as for `forward`."""
        query = self.query(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(keys).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = reach(seen).to(query.dtype)
        draws = current_draws()
        if (
            draws is not None and draws.stacked
        ):  # the fused kernel has no batching rule on a CPU, and would run once for each network
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias
            attended = torch.softmax(scores, -1) @ value
        else:
            attended = scaled_dot_product_attention(query, key, value, bias)
        return self.output(attended.transpose(1, 2).flatten(2))


class GraphDistillation(nn.Module):
    """GD-Unit: modalities are vertices; an edge's weight is how much its end learns from its start.

    Args:
        width: D, width of the representations.
        outputs: O, number of logits.
        settings: settings of the network.
    """

    def __init__(self, width: int, outputs: int, settings: DMDSettings) -> None:
        super().__init__()
        self.scale = settings.scale
        self.predict = nn.Linear(width, outputs)  # the paper's f
        self.view_logits = nn.Linear(outputs, settings.graph)
        self.view_vectors = nn.Linear(width, settings.graph)
        self.energy = nn.Linear(4 * settings.graph, 1)  # the paper's g

    def forward(self, vectors: Tensor, seen: Tensor) -> Graph:
        """Return the graph of representations (N, M, D) and visible modalities (N, M). Its weights
        sum to 1 over the edges between visible modalities; without such edges, all are 0.
        """
        logits = self.predict(vectors)
        view = torch.cat([self.view_logits(logits), self.view_vectors(vectors)], -1)
        count = view.shape[1]
        ends = torch.cat(
            [view[:, :, None].expand(-1, -1, count, -1), view[:, None].expand(-1, count, -1, -1)],
            -1,
        )
        energies = self.scale * self.energy(ends)[..., 0]
        open_edges = (
            seen[:, :, None]
            & seen[:, None, :]
            & ~torch.eye(count, dtype=torch.bool, device=seen.device)
        )
        energies = torch.where(open_edges, energies, OUT_OF_REACH).flatten(1)
        edges = torch.softmax(energies, 1).view_as(open_edges) * open_edges
        return Graph(vectors, logits, edges)


def placed(hidden: Tensor) -> Tensor:
    """Return frames (N, T, d) with sinusoidal positions added."""
    return hidden + sinusoids_like(hidden, hidden.shape[1])


def reach(seen: Tensor) -> Tensor:
    """Return an additive bias on the keys, (N, 1, 1, T), from booleans (N, T)."""
    return torch.where(seen, 0.0, OUT_OF_REACH)[:, None, None, :]


def _layer(width: int, settings: DMDSettings) -> NetworkSettings:
    return NetworkSettings(
        width=width, heads=settings.heads, feedforward=4 * width, dropout=settings.dropout
    )
