"""GCNet's network (Lian et al., TPAMI 2023): two graphs over the utterances of a conversation,
trained jointly to complete features and to classify.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from corrkd.data.batches import Context
from corrkd.data.inputs import Inputs
from corrkd.networks.base import Network, Output, fully_connected
from corrkd.networks.encoder import Dropout, Encoder, shifted
from corrkd.settings import NetworkSettings


class GCNetSettings(BaseModel):
    """Structure and loss weight of GCNet. The original has hidden width 200, windows of 2 in both
    directions, dropout 0.5 and loss weights of 1.

    Width and dropout are smaller here, for features of tens instead of a thousand numbers and
    encoders that are trained as well.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width: int = Field(
        40,
        ge=2,
        le=16_384,
        multiple_of=2,
        description="hidden width of LSTMs and graphs; even: half for each direction",
    )
    heads: int = Field(
        10, ge=1, le=16_384, description="heads of the utterance encoders; divides the width"
    )
    layers: int = Field(1, ge=1, le=256, description="layers of the utterance encoders")
    past: int = Field(
        2,
        ge=0,
        le=1000,
        description="how many utterances before it hear an utterance, as in the released code",
    )
    future: int = Field(
        2, ge=0, le=1000, description="how many utterances after it hear an utterance"
    )
    speakers: int = Field(
        2,
        ge=1,
        le=100,
        description="speakers of a conversation told apart; later ones count as the last",
    )
    dropout: float = Field(0.2, ge=0.0, lt=1.0)
    reconstruction: float = Field(
        1.0, ge=0.0, description="weight of the reconstruction of dropped features"
    )


class Layout(NamedTuple):
    """A batch arranged as C conversations with at most L utterances each.

    Attributes:
        cells: (N,) index of each sample in the flattened (C x L) grid.
        lengths: (C,) number of utterances of each conversation, on the CPU.
        exists: (C, L) booleans: an utterance, not padding.
        speaker: (C, L) index of the speaker by first appearance in the conversation, from 0.
    """

    cells: Tensor
    lengths: Tensor
    exists: Tensor
    speaker: Tensor

    def grid(self, rows: Tensor) -> Tensor:
        """Arrange samples in the grid: (N, d) -> (C, L, d), zeros in the padding."""
        flat = rows.new_zeros(self.exists.numel(), rows.shape[1])
        return flat.index_copy(0, self.cells, rows).view(*self.exists.shape, -1)

    def rows(self, grid: Tensor) -> Tensor:
        """Return the grid's samples in the order of the batch: (C, L, d) -> (N, d)."""
        return grid.flatten(0, 1)[self.cells]


class GCNetwork(Network[GCNetSettings]):
    """An utterance encoder per modality, an LSTM, the speaker and the temporal branch. The sum of
    the branches predicts the classes and the features.
    """

    name = "gcnet"
    settings_type = GCNetSettings
    reads_conversations = True

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings = self.settings
        width = settings.width
        # Missing frames are ignored, so that the features of a missing modality are zeros, as in
        # the original.
        encoder = NetworkSettings(
            width=width,
            heads=settings.heads,
            feedforward=2 * width,
            layers=settings.layers,
            dropout=settings.dropout,
            exclude_missing=True,
        )
        self.encoders = nn.ModuleList(
            Encoder(widths[m], frames[m], encoder) for m in self.modalities
        )
        self.before = ConversationLSTM(len(self.modalities) * width, width)
        self.speaker = Branch(settings, relations=settings.speakers**2)
        self.temporal = Branch(settings, relations=3)
        self.dropout = Dropout(settings.dropout)
        self.classifier = fully_connected([width, self.target.num_logits], settings.dropout)
        self.reconstructors = nn.ModuleList(nn.Linear(width, widths[m]) for m in self.modalities)

    @property
    def representation_width(self) -> int:
        """Hidden width of the branches."""
        return self.settings.width

    def forward(self, inputs: Inputs, context: Context | None = None) -> Output:
        """Return the representation, (N, width), and the logits.

        Of a conversation, only the utterances in the batch are seen. Without a context, each sample
        is a conversation by itself.
        """
        representation = self.complete(self.utterances(inputs), context)
        return Output(representation, self.classify(representation))

    def in_context(self, inputs: Inputs, context: Context) -> Output:
        """Return the output of `forward` with the context."""
        return self(inputs, context)

    def utterances(self, inputs: Inputs) -> Tensor:
        """Return the modalities' vectors side by side, (N, M x width); zeros for a missing one."""
        return torch.cat(
            [
                encode(*inputs.of(m))
                for m, encode in zip(self.modalities, self.encoders, strict=True)
            ],
            1,
        )

    def complete(self, utterances: Tensor, context: Context | None = None) -> Tensor:
        """Return the sum of both branches over the conversations: (N, M x width) -> (N, width)."""
        layout = arrange(context or alone(utterances))
        read = self.dropout(self.before(layout.grid(utterances), layout))
        speaker = self.speaker(read, layout, speaker_relations(layout, self.settings))
        temporal = self.temporal(read, layout, temporal_relations(layout, self.settings))
        return layout.rows(speaker + temporal)

    def classify(self, representation: Tensor) -> Tensor:
        """Return the logits of a representation."""
        logits: Tensor = self.classifier(self.dropout(representation))
        return self.target.shape_logits(logits)

    def restore(self, representation: Tensor) -> dict[str, Tensor]:
        """Return restored features of each modality, (N, d_m), standardised over training data."""
        return {
            m: restore(representation)
            for m, restore in zip(self.modalities, self.reconstructors, strict=True)
        }


class Branch(nn.Module):
    """Speaker GNN or Temporal GNN: a graph over the states of the first LSTM, and a second LSTM
    over these states and the graph's output.

    Args:
        settings: settings of the network.
        relations: R, number of kinds of edges.
    """

    def __init__(self, settings: GCNetSettings, *, relations: int) -> None:
        super().__init__()
        width = settings.width
        self.settings = settings
        self.relational = RelationalConvolution(width, relations)
        self.convolution = GraphConvolution(width)
        self.after = ConversationLSTM(2 * width, width)
        self.dropout = Dropout(settings.dropout)

    def forward(self, read: Tensor, layout: Layout, relations: Tensor) -> Tensor:
        """Return the branch's states: (C, L, width) and edges (C, L, W, R) -> (C, L, width)."""
        states = self.relational(read, neighbours(read, self.settings), relations)
        states = self.convolution(states, neighbours(states, self.settings), relations)
        return self.after(torch.cat([read, self.dropout(states)], -1), layout)


class ConversationLSTM(nn.Module):
    """A bidirectional LSTM over the utterances of each conversation; it ignores padding."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width // 2, batch_first=True, bidirectional=True)

    def forward(self, grid: Tensor, layout: Layout) -> Tensor:
        """Return the states: (C, L, inputs) -> (C, L, width)."""
        packed = pack_padded_sequence(grid, layout.lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]


class RelationalConvolution(nn.Module):
    """Mean of the neighbours for each kind of edge, with separate weights, plus the utterance
    itself (Schlichtkrull et al., 2018).
    """

    def __init__(self, width: int, relations: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, width)
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(relations, width, width).uniform_(-bound, bound))

    def forward(self, hidden: Tensor, around: Tensor, relations: Tensor) -> Tensor:
        """Return states: (C, L, d), neighbours (C, L, W, d), edges (C, L, W, R) -> (C, L, d)."""
        edges = relations.to(around.dtype)
        edges = edges / edges.sum(2, keepdim=True).clamp(min=1.0)
        means = torch.einsum("clwr,clwd->clrd", edges, around)
        return self.own(hidden) + torch.einsum("clrd,rde->cle", means, self.weight)


class GraphConvolution(nn.Module):
    """Sum of neighbours over all kinds of edges plus the utterance itself (Morris et al., 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, width)
        self.others = nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, around: Tensor, relations: Tensor) -> Tensor:
        """Return states: (C, L, d), neighbours (C, L, W, d), edges (C, L, W, R) -> (C, L, d)."""
        total = torch.einsum("clw,clwd->cld", relations.any(-1).to(around.dtype), around)
        return self.own(hidden) + self.others(total)


def offsets(settings: GCNetSettings) -> range:
    """Return the W offsets from an utterance to its neighbours, itself included.

    As in the released code, the windows are those of the edges that leave an utterance, so the
    edges that arrive come from up to `future` utterances before it.
    """
    return range(-settings.future, settings.past + 1)


def neighbours(grid: Tensor, settings: GCNetSettings) -> Tensor:
    """Return the utterances at each offset, zeros beyond the ends: (C, L, d) -> (C, L, W, d)."""
    return torch.stack(
        [shifted(grid, offset) if offset else grid for offset in offsets(settings)], 2
    )


def edges(layout: Layout, settings: GCNetSettings) -> Tensor:
    """Return which edges join two utterances of the conversation, (C, L, W) booleans."""
    exists = layout.exists[..., None]
    return neighbours(exists.float(), settings)[..., 0].bool() & exists


def temporal_relations(layout: Layout, settings: GCNetSettings) -> Tensor:
    """Return the edges by time, (C, L, W, 3) booleans: from the past, the present, the future."""
    sign = torch.tensor(
        [1 + (offset > 0) - (offset < 0) for offset in offsets(settings)],
        device=layout.exists.device,
    )
    return edges(layout, settings)[..., None] & (
        sign[:, None] == torch.arange(3, device=sign.device)
    )


def speaker_relations(layout: Layout, settings: GCNetSettings) -> Tensor:
    """Return the edges by the pair of speakers at their two ends, (C, L, W, S x S) booleans."""
    speaker = layout.speaker.clamp(max=settings.speakers - 1)
    source = neighbours(speaker[..., None].float(), settings)[..., 0].long()
    pair = source * settings.speakers + speaker[..., None]
    kinds = torch.arange(settings.speakers**2, device=pair.device)
    return edges(layout, settings)[..., None] & (pair[..., None] == kinds)


def alone(rows: Tensor) -> Context:
    """Return the context of samples without metadata: each is a conversation with one speaker."""
    number = torch.arange(len(rows), device=rows.device)
    zero = torch.zeros_like(number)
    return Context(rows=number, conversation=number, position=zero, speaker=zero)


def arrange(context: Context) -> Layout:
    """Return the batch's conversations side by side, each in the order of its positions, or of its
    rows if these are unknown.

    Sizes of conversations are read back from the device, since tensor shapes depend on them.
    """
    order = context.rows.argsort(stable=True)
    order = order[context.position[order].argsort(stable=True)]
    order = order[context.conversation[order].argsort(stable=True)]
    _, number, counts = torch.unique_consecutive(
        context.conversation[order], return_inverse=True, return_counts=True
    )
    lengths = counts.cpu()
    longest = int(lengths.max())
    within = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[number]
    index = torch.empty_like(order).index_copy(0, order, number * longest + within)
    exists = torch.arange(longest, device=order.device) < counts[:, None]
    speaker = torch.full((exists.numel(),), -1, device=order.device).index_copy(
        0, index, context.speaker
    )
    return Layout(index, lengths, exists, by_appearance(speaker.view_as(exists), exists))


def by_appearance(speaker: Tensor, exists: Tensor) -> Tensor:
    """Return the indices of the speakers of each conversation by first appearance, so that they
    mean the same in unseen conversations.

    (C, L) any numbers -> (C, L) from 0; 0 in the padding.
    """
    same = (speaker[:, :, None] == speaker[:, None, :]) & exists[:, :, None] & exists[:, None, :]
    first = same.int().argmax(-1)  # position of the first utterance of each utterance's speaker
    opens = (first == torch.arange(speaker.shape[1], device=speaker.device)) & exists
    number = opens.cumsum(-1) - 1
    return torch.where(exists, number.gather(1, first), 0)
