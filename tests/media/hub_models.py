"""Tiny models with random parameters, saved like those of the hub; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
CTC_VOCABULARY = {
    "<pad>": 0,
    "<s>": 1,
    "</s>": 2,
    "<unk>": 3,
    "|": 4,
    **{c: 5 + i for i, c in enumerate(LETTERS)},
}
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "good",
    "film",
    "##s",
    "very",
    "un",
    "##like",
    "##ly",
    ".",
]
SMALL = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 8,
    "intermediate_size": 12,
}
CONVOLUTIONS: dict[str, Any] = {
    **SMALL,
    "conv_dim": (8, 8, 8),
    "conv_stride": (5, 8, 8),
    "conv_kernel": (10, 8, 8),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 3,
}


def wav2vec(
    folder: Path, kind: str = "Wav2Vec2", *, letters: bool = False, large: bool = False
) -> Path:
    """Save a wav2vec 2, HuBERT or WavLM of 50 states a second; with `letters` one for recognition
    and its tokenizer; if `large` normalised by layer, so that it can mask padding.
    """
    torch.manual_seed(0)
    by_layer = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if large else {}
    config = getattr(transformers, f"{kind}Config")(
        **CONVOLUTIONS, vocab_size=len(CTC_VOCABULARY), pad_token_id=0, **by_layer
    )
    getattr(transformers, f"{kind}{'ForCTC' if letters else 'Model'}")(config).save_pretrained(
        folder
    )
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=large).save_pretrained(folder)
    if letters:
        (folder / "vocab.json").write_text(json.dumps(CTC_VOCABULARY), "utf-8")
        transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    return folder


def whisper(folder: Path, seconds: int = 4) -> Path:
    """Save a Whisper that reads windows of this length, 50 states a second."""
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=50,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=12,
        decoder_ffn_dim=12,
        max_source_positions=50 * seconds,
        max_target_positions=8,
        num_mel_bins=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    transformers.WhisperModel(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=seconds).save_pretrained(
        folder
    )
    return folder


def image_encoder(folder: Path, kind: str) -> Path:
    """Save a CLIP, DINOv2 or ViT that reads pictures of 32 pixels a side."""
    torch.manual_seed(0)
    sizes = {**SMALL, "image_size": 32, "patch_size": 8}
    if kind == "clip":
        text = {
            **SMALL,
            "vocab_size": 20,
            "max_position_embeddings": 8,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        config = transformers.CLIPConfig(text_config=text, vision_config=sizes, projection_dim=4)
        transformers.CLIPModel(config).save_pretrained(folder)
    elif kind == "dinov2":
        transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder)
    else:  # without a pooler, like a ViT for classification
        transformers.ViTModel(
            transformers.ViTConfig(**sizes), add_pooling_layer=False
        ).save_pretrained(folder)
    size = {"shortest_edge": 32} if kind == "clip" else {"height": 32, "width": 32}
    preprocessor = {"size": size, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), "utf-8")
    return folder


def text_encoder(folder: Path, kind: str, positions: int = 16) -> Path:
    """Save a BERT, or an XLM-R with the same pieces, whose positions count from the id of padding
    on.
    """
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    if kind == "bert":
        config = transformers.BertConfig(
            **SMALL, vocab_size=len(PIECES), max_position_embeddings=positions
        )
        transformers.BertModel(config).save_pretrained(folder)
    else:
        config = transformers.XLMRobertaConfig(
            **SMALL, vocab_size=len(PIECES), max_position_embeddings=positions, pad_token_id=0
        )
        transformers.XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES), "utf-8")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
