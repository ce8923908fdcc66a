"""BERT in front of any other network, to read token ids; frozen, or trained with the network
(Devlin et al., NAACL 2019).

Missing words become [UNK], as in LNLN (Zhang et al., NeurIPS 2024) and before it in TFR-Net (Yuan
et al., ACM MM 2021). Unlike theirs, [CLS] and [SEP] may go missing as well, and the inner network
sees which words did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError, field_validator
from torch import Tensor, nn

from corrkd.data.batches import Context
from corrkd.data.dataset import TOKEN_SCALE
from corrkd.data.inputs import Inputs
from corrkd.errors import CorrKDError
from corrkd.hub import quiet, transformers_library
from corrkd.networks.base import AnyNetwork, Network, Output
from corrkd.networks.encoder import Dropout
from corrkd.networks.registry import network_class
from corrkd.settings import Depth, Strict, Width, first_line

INNER = "corrkd"  # default inner network
TokenId = Annotated[int, Field(ge=0, lt=int(TOKEN_SCALE))]


class BertShape(Strict):
    """Shape of a BERT, enough to build it without its files. Taken from the files when it is first
    built, and stored on a saved model's card.
    """

    vocabulary: Annotated[int, Field(ge=1, le=int(TOKEN_SCALE))] = Field(
        description="how many tokens there are"
    )
    width: Width = Field(description="of a token's state")
    layers: Depth = Field(description="how many blocks")
    heads: Width = Field(description="attention heads of a block")
    feedforward: Width = Field(description="width of the feed-forward blocks")
    positions: Annotated[int, Field(ge=1, le=100_000)] = Field(
        description="the most tokens of a sample"
    )
    segments: Annotated[int, Field(ge=1, le=1000)] = Field(
        description="how many segments have an embedding"
    )
    epsilon: Annotated[float, Field(gt=0.0, le=1.0)] = Field(description="of the layer norms")
    activation: Literal["gelu", "gelu_new", "relu"] = Field(
        description="of the feed-forward blocks"
    )
    padding: TokenId = Field(description="id of [PAD]")
    unknown: TokenId = Field(description="id of [UNK]")


class LanguageEncoderSettings(Strict):
    """Settings of the language encoder: which BERT, and whether it is trained."""

    model: str = Field(
        description="a folder in Hugging Face's layout with model and tokenizer, or a name on "
        "its hub"
    )
    trained: bool = Field(
        False, description="train it along, with the learning rate of all; else it is frozen"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="in its embeddings and blocks, where it is trained; none in its attention"
    )
    shape: BertShape | None = Field(None, description="null: as the model's files say")


class BertSettings(Strict):
    """Settings of the language encoder and of the inner network."""

    language_encoder: LanguageEncoderSettings
    modality: str = Field("language", description="whose frames are ids of tokens (`data.tokens`)")
    network: dict[str, Any] = Field(
        default_factory=dict,
        validate_default=True,
        description="the network behind, by name, with its settings",
    )

    @property
    def fill(self) -> str | None:
        """Fill of missing frames in the inner network; None if it has no such setting."""
        return self.network.get("fill")

    @field_validator("network", mode="before")
    @classmethod
    def _complete(cls, tree: Any) -> dict[str, Any]:
        """Return the name and all settings of the inner network."""
        tree = {"name": tree} if isinstance(tree, str) else tree
        if not isinstance(tree, Mapping) or not isinstance(tree.get("name", INNER), str):
            raise ValueError("expected a name, or {name: ..., and settings}")
        name, options = (
            tree.get("name", INNER),
            {key: value for key, value in tree.items() if key != "name"},
        )
        try:
            settings = network_class(name).settings_type.model_validate(options)
        except ValidationError as error:
            raise ValueError(first_line(error)) from None
        except CorrKDError as error:
            raise ValueError(str(error)) from None
        return {"name": name, **settings.model_dump(mode="json")}


class BertNetwork(Network[BertSettings]):
    """BERT, followed by an inner network that reads BERT's states instead of token ids and returns
    the output.

    Frames of the modality are ids divided by TOKEN_SCALE, as `corrkd.data.normalise` leaves them.
    BERT reads [UNK] for a missing word and for a number that is not an id (as under the condition
    noise); it does not attend to padding. The inner network sees the states of visible words.
    """

    name = "bert"
    reads_tokens = True
    settings_type = BertSettings

    def build(self, widths: Mapping[str, int], frames: Mapping[str, int]) -> None:
        """Create the modules.

        Raises:
            CorrKDError: if the modality has no token ids, a sample has more of them than BERT has
                positions, or the model cannot be loaded.
        """
        encoder, modality = self.settings.language_encoder, self.settings.modality
        if widths.get(modality) != 1:
            raise CorrKDError(
                f"network {self.name!r}: modality {modality} has no token ids; read them with "
                "data.tokens (--tokens), or choose another network"
            )
        shape, pretrained = (
            (encoder.shape, None) if encoder.shape is not None else pretrained_bert(encoder.model)
        )
        if frames[modality] > shape.positions:
            raise CorrKDError(
                f"network {self.name!r}: samples of up to {frames[modality]} tokens, but "
                f"{encoder.model} reads {shape.positions}"
            )
        self.shape = shape
        # So that a saved model can be rebuilt without the files.
        resolved = encoder.model_copy(update={"shape": shape})
        self.settings = self.settings.model_copy(update={"language_encoder": resolved})
        # Before BERT, so that its initialisation is the same as without BERT.
        kind = network_class(self.settings.network["name"])
        options = {key: value for key, value in self.settings.network.items() if key != "name"}
        settings = kind.settings_type.model_validate(options)
        self.inner: AnyNetwork = kind(
            {**widths, modality: shape.width}, frames, target=self.target, settings=settings
        )
        self.modality_wise = self.inner.modality_wise  # type: ignore[misc]
        self.reads_conversations = self.inner.reads_conversations  # type: ignore[misc]
        self.bert = make_bert(shape, encoder.dropout)
        if pretrained is not None:
            self.bert.load_state_dict(pretrained)
        self.bert.requires_grad_(encoder.trained)

    @property
    def representation_width(self) -> int:
        """Width D of the inner network's representation."""
        return self.inner.representation_width

    @property
    def parts(self) -> Mapping[str, int] | None:
        """Parts of the inner network's representation."""
        return self.inner.parts

    def train(self, mode: bool = True) -> BertNetwork:
        """Set the mode; a frozen BERT stays in evaluation mode."""
        super().train(mode)
        self.bert.train(mode and self.settings.language_encoder.trained)
        return self

    def forward(self, inputs: Inputs) -> Output:
        """Return the output of the inner network."""
        output: Output = self.inner(self.embed(inputs))
        return output

    def in_context(self, inputs: Inputs, context: Context) -> Output:
        """Return the output of the inner network in context."""
        return self.inner.in_context(self.embed(inputs), context)

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Return the modality's part of the representation (modality-wise inner network only)."""
        encoded: Tensor = self.inner.encode(  # type: ignore[operator]
            modality, self.embed(inputs) if modality == self.settings.modality else inputs
        )
        return encoded

    def classify(self, representation: Tensor) -> Tensor:
        """Return the logits of a representation (modality-wise inner network only)."""
        logits: Tensor = self.inner.classify(representation)  # type: ignore[operator]
        return logits

    def embed(self, inputs: Inputs) -> Inputs:
        """Return the inputs with BERT's states, (N, T, width), as the frames of the modality."""
        modality = self.settings.modality
        frames, exists, visible = inputs.of(modality)
        ids = self.token_ids(frames[..., 0], exists, visible)
        mask = exists.long()
        count = ids.shape[0]
        if (
            count == 0
            # one of several processes may have no samples, which BERT refuses: it reads a sample of
            # padding, which is cut off again
        ):
            ids, mask = (
                ids.new_full((1, ids.shape[1]), self.shape.padding),
                mask.new_zeros(1, mask.shape[1]),
            )
        with torch.set_grad_enabled(
            torch.is_grad_enabled() and self.settings.language_encoder.trained
        ):
            states = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state[:count]
        return inputs._replace(frames={**inputs.frames, modality: states.to(frames.dtype)})

    def token_ids(self, numbers: Tensor, exists: Tensor, visible: Tensor) -> Tensor:
        """Return token ids from numbers (N, T), which are ids divided by TOKEN_SCALE: [UNK] where
        no valid id is visible, [PAD] in the padding.
        """
        numbers = torch.where(visible, numbers, -1.0) * TOKEN_SCALE
        valid = (numbers == numbers.round()) & (numbers >= 0) & (numbers < self.shape.vocabulary)
        ids = torch.where(valid, numbers, float(self.shape.unknown)).long()
        return torch.where(exists, ids, self.shape.padding)

    def set_fill(self, means: Mapping[str, Sequence[float] | Tensor]) -> None:
        """Set the fill of the other modalities to their mean frames. Token ids have no mean, so
        missing states are filled with zeros.
        """
        self.inner.set_fill({**means, self.settings.modality: torch.zeros(self.shape.width)})

    def longest(self, frames: Mapping[str, int]) -> dict[str, int]:
        """Return the inner network's bounds, with BERT's positions as a bound on the tokens."""
        bounds = self.inner.longest(frames)
        modality = self.settings.modality
        return {
            **bounds,
            modality: min(bounds.get(modality, self.shape.positions), self.shape.positions),
        }


def make_bert(shape: BertShape, dropout: float) -> nn.Module:
    """Return an untrained BERT of the given shape, without pooler, with this package's dropout.

    Raises:
        CorrKDError: if transformers is not installed, or `heads` does not divide `width`.
    """
    transformers = transformers_library()
    if shape.width % shape.heads:
        raise CorrKDError(
            f"language encoder: heads = {shape.heads} must divide width = {shape.width}"
        )
    config = transformers.BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feedforward,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.segments,
        layer_norm_eps=shape.epsilon,
        hidden_act=shape.activation,
        pad_token_id=shape.padding,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,  # it would draw from torch's generator
        attn_implementation="eager",  # finite if nothing can be attended to
    )
    bert: nn.Module = transformers.BertModel(config, add_pooling_layer=False)
    for module in list(bert.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout) and child.p > 0.0:
                setattr(module, name, Dropout(child.p))
    return bert


def pretrained_bert(model: str) -> tuple[BertShape, dict[str, Tensor]]:
    """Return the shape and parameters of a BERT in a folder or on Hugging Face's hub. No code of
    the model is run.

    Raises:
        CorrKDError: if transformers is not installed, the model cannot be read or is not a BERT, or
            its tokenizer has no unknown token.
    """
    transformers = transformers_library()
    where = f"language encoder {model}"
    with quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(model)
            if config.model_type != "bert":
                raise CorrKDError(
                    f"{where}: a model of type {config.model_type}; only BERT is read"
                )
            bert = transformers.BertModel.from_pretrained(
                model, add_pooling_layer=False, use_safetensors=True
            )
            unknown = transformers.AutoTokenizer.from_pretrained(model).unk_token_id
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            first = next(
                (line for line in str(error).splitlines() if line.strip()), type(error).__name__
            )
            raise CorrKDError(f"{where}: cannot be read: {first.strip()[:300]}") from None
    if unknown is None:
        raise CorrKDError(f"{where}: its tokenizer has no token for unknown words")
    try:
        shape = BertShape(
            vocabulary=config.vocab_size,
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            feedforward=config.intermediate_size,
            positions=config.max_position_embeddings,
            segments=config.type_vocab_size,
            epsilon=config.layer_norm_eps,
            activation=config.hidden_act,
            padding=config.pad_token_id,
            unknown=unknown,
        )
    except ValidationError as error:
        raise CorrKDError(first_line(error, where)) from None
    return shape, {name: tensor.float() for name, tensor in bert.state_dict().items()}
