"""MCTN's network: from one source modality to a joint embedding by cyclic translation (Pham et al.,
AAAI 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.networks.base import Network, Output
from corrkd.networks.encoder import Dropout
from corrkd.settings import Width


class MCTNSettings(BaseModel):
    """Hyperparameters of MCTN, with the original's width and loss weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    source: str | None = Field(
        None, description="the only modality that is needed at test; default: the first"
    )
    width: Width = Field(
        32, description="hidden size of the recurrent networks, and of a frame's embedding"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="on embedded frames and before the answer"
    )
    translation: Annotated[float, Field(ge=0.0)] = Field(
        0.1, description="lambda_t, weight of each translation to a target"
    )
    cycle: Annotated[float, Field(ge=0.0)] = Field(
        0.1, description="lambda_c, weight of the translation back to the source"
    )
    l2: Annotated[float, Field(ge=0.0)] = Field(
        0.01, description="weight of the head's squared weights"
    )


class Translations(NamedTuple):
    """Output of the translators for a batch.

    Attributes:
        targets: frames (N, T_m, d_m) of each modality except the source, by name.
        back: the source's frames, translated back from the first target's; None without targets.
    """

    targets: dict[str, Tensor]
    back: Tensor | None


class MCTNNetwork(Network[MCTNSettings]):
    """One level per target: the first is the cyclic translation source <-> target; each further
    level translates the joint embedding of the previous one.

    Targets are in the order of the dataset's modalities. `forward` reads the source alone;
    `translate` is for training.

    Raises:
        CorrKDError: if the source is not one of the modalities.
    """

    name = "mctn"
    settings_type = MCTNSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        settings = self.settings
        self.source = settings.source or self.modalities[0]
        if self.source not in widths:
            raise CorrKDError(
                f"MCTN: source {self.source!r} is none of the modalities {', '.join(widths)}"
            )
        self.targets = tuple(m for m in self.modalities if m != self.source)
        width = settings.width
        self.embed = nn.ModuleList(nn.Linear(widths[m], width) for m in self.modalities)
        self.project = nn.ModuleList(nn.Linear(2 * width, widths[m]) for m in self.modalities)
        self.encoders = nn.ModuleList(SummedLSTM(width) for _ in self.targets or (self.source,))
        self.decoders = nn.ModuleList(AttentiveDecoder(width) for _ in self.targets)
        self.dropout = Dropout(settings.dropout)
        self.predictor = nn.LSTM(width, width, batch_first=True)
        self.attention = nn.Linear(width, 1)
        self.head = nn.Linear(width, self.target.num_logits)

    @property
    def representation_width(self) -> int:
        """Width of the recurrent networks."""
        return self.settings.width

    def forward(self, inputs: Inputs) -> Output:
        """Return the representation, (N, width), and the logits, computed from the source alone."""
        return self.predict(self.join(inputs)[-1], inputs.exists[self.source])

    def predict(self, embedding: Tensor, exists: Tensor) -> Output:
        """Return the output for a joint embedding (N, T, width). The representation is the
        attention-weighted sum of the predictor's states at frames that exist.
        """
        hidden, _ = self.predictor(embedding)
        energies = torch.tanh(self.attention(hidden)[..., 0]).masked_fill(
            ~exists, -1e4
        )  # finite, for a sample without frames
        weights = torch.softmax(energies, 1) * exists
        representation = torch.einsum("nt,ntd->nd", weights, hidden)
        logits: Tensor = self.head(self.dropout(representation))
        return Output(representation, self.target.shape_logits(logits))

    def join(self, inputs: Inputs) -> list[Tensor]:
        """Return the joint embedding of each level, (N, T_source, width). The last has passed
        through all translations.
        """
        frames, seen, visible = inputs.of(self.source)
        hidden = self._embedded(self.source, frames, visible)
        levels = []
        for encoder in self.encoders:
            hidden = encoder(hidden, seen)
            levels.append(hidden)
        return levels

    def translate(self, levels: list[Tensor], exists: Mapping[str, Tensor]) -> Translations:
        """Return the frames of the targets from the joint embeddings of `join`, and the source's
        from the first target's translation.
        """
        seen = exists[self.source]
        made = {
            m: self._decoded(index, levels[index], seen, m, exists[m])
            for index, m in enumerate(self.targets)
        }
        if not self.targets:
            return Translations(made, None)
        first = self.targets[0]
        # The way back uses the same translator, so that source and target share an embedding.
        back = self.encoders[0](self._embedded(first, made[first], exists[first]), exists[first])
        return Translations(made, self._decoded(0, back, exists[first], self.source, seen))

    def _embedded(self, modality: str, frames: Tensor, seen: Tensor) -> Tensor:
        frames = torch.where(seen[..., None], frames, torch.zeros_like(frames))
        out: Tensor = self.dropout(self.embed[self.modalities.index(modality)](frames))
        return out

    def _decoded(
        self, level: int, memory: Tensor, attended: Tensor, modality: str, exists: Tensor
    ) -> Tensor:
        index = self.modalities.index(modality)
        out: Tensor = self.decoders[level](
            memory, attended, exists.shape[1], self.embed[index], self.project[index]
        )
        return out


class MCTNPerSourceNetwork(Network[MCTNSettings]):
    """One MCTN for each modality as its source. The output is the mean response of the models with
    a visible source, or of all models if no source is visible.

    Raises:
        CorrKDError: if the settings name a source.
    """

    name = "mctn-per-source"
    settings_type = MCTNSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules."""
        if self.settings.source is not None:
            raise CorrKDError(
                f"MCTN per source: every modality is one; leave out network.source = "
                f"{self.settings.source}"
            )
        self.models = nn.ModuleList(
            MCTNNetwork(
                widths,
                frames,
                target=self.target,
                settings=self.settings.model_copy(update={"source": m}),
            )
            for m in self.modalities
        )

    @property
    def parts(self) -> dict[str, int]:
        """Width of the representation of each source's model."""
        return dict.fromkeys(self.modalities, self.settings.width)

    def forward(self, inputs: Inputs) -> Output:
        """Return representations side by side, (N, M x width), and the mean response as logits."""
        outputs: list[Output] = [model(inputs) for model in self.models]
        logits = self.target.mean_response(
            [output.logits for output in outputs], inputs.shown(self.modalities)
        )
        return Output(torch.cat([output.representation for output in outputs], 1), logits)


class SummedLSTM(nn.Module):
    """A bidirectional LSTM with summed directions; it ignores padding, which comes last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)

    def forward(self, hidden: Tensor, exists: Tensor) -> Tensor:
        """Return states, zero in the padding: (N, T, width), (N, T) booleans -> (N, T, width)."""
        count, lengths = len(hidden), exists.sum(1).clamp(min=1).cpu()
        if not count:  # one of several processes may have no samples, which cannot be packed
            hidden, lengths = (
                hidden.new_zeros(1, *hidden.shape[1:]),
                torch.ones(1, dtype=torch.int64),
            )
        packed = pack_padded_sequence(hidden, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=exists.shape[1]
        )
        return states[:count].unflatten(-1, (2, -1)).sum(2) * exists[..., None]


class AttentiveDecoder(nn.Module):
    """LSTM that writes frame after frame, each from the previous one and from what it attends to
    (Luong et al., 2015).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(width, width)
        self.key = nn.Linear(width, width, bias=False)

    def forward(
        self, memory: Tensor, attended: Tensor, frames: int, embed: nn.Module, project: nn.Module
    ) -> Tensor:
        """Return the frames: (N, T, width) and (N, T) booleans -> (N, frames, d). `project` maps
        state and context to a frame, `embed` maps the frame to the next input.
        """
        bias = torch.where(attended, 0.0, -1e4).to(memory.dtype)
        keys = self.key(memory)
        state = (last(memory, attended), torch.zeros_like(memory[:, 0]))
        step, out = torch.zeros_like(memory[:, 0]), []
        for _ in range(frames):
            state = self.cell(step, state)
            weights = torch.softmax(torch.einsum("ntd,nd->nt", keys, state[0]) + bias, 1)
            context = torch.einsum("nt,ntd->nd", weights, memory)
            out.append(project(torch.cat([state[0], context], 1)))
            step = embed(out[-1])
        return torch.stack(out, 1)


def last(hidden: Tensor, exists: Tensor) -> Tensor:
    """Return the state at the last frame that is not padding: (N, T, d) and (N, T) -> (N, d)."""
    index = (exists.sum(1) - 1).clamp(min=0)
    return hidden.gather(1, index[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]
