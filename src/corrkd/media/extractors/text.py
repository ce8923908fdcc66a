"""Language from a text encoder: XLM-R, BERT, E5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from corrkd.data.dataset import BoolArray, FloatArray
from corrkd.errors import CorrKDError
from corrkd.media.clip import Clip
from corrkd.media.extractors.base import Frames, absent
from corrkd.media.extractors.model import ModelExtractor

LONGEST = 512  # tokens in a window
BATCH = 8  # windows per batch
SMALL_ID = 16  # positions are offset by the id of padding only below it


class Text(ModelExtractor):
    """One frame per word: the mean of the last hidden states of its tokens. Long texts are
    processed in windows.
    """

    name: ClassVar[str] = "text"
    version: ClassVar[int] = 1
    modality: ClassVar[str] = "language"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "tokenizers", "torch", "transformers")
    part: ClassVar[str] = "text_config"

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = self.files.load("AutoTokenizer", use_fast=True)
        if not tokenizer.is_fast:
            raise CorrKDError(
                f"model {self.files.name}: its tokenizer does not map tokens to words; choose a "
                f"model with one that does"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        model = self.files.load_model("AutoModel")
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        return getattr(model, "text_model", model).to(self.device)

    @cached_property
    def _longest(self) -> int:
        """Tokens of a window, without the special tokens at its ends."""
        config = getattr(self.files.config, self.part, None) or self.files.config
        positions = getattr(config, "max_position_embeddings", None) or LONGEST
        padding = getattr(config, "pad_token_id", None) or 0
        # RoBERTa counts positions from the id of padding.
        if padding < SMALL_ID and positions > padding + 2:
            positions -= padding + 1
        longest = min(LONGEST, positions, self._tokenizer.model_max_length)
        return max(1, longest - self._tokenizer.num_special_tokens_to_add())

    def load(self) -> None:
        """Load the encoder."""
        _ = self._model, self._tokenizer

    def batch(self, clips: Sequence[Clip]) -> list[Frames]:
        """Return (words, width) of each clip; a single missing frame if it has no words."""
        words = [word.text for clip in clips for word in clip.words]
        sums, number = np.zeros((len(words), self.width)), np.zeros(len(words))
        spans, first = [], 0
        for clip in clips:
            texts = [word.text for word in clip.words]
            spans += [(first + a, first + b) for a, b in self._spans(texts)]
            first += len(texts)
        for at in range(0, len(spans), BATCH):
            self._add(words, spans[at : at + BATCH], sums, number)
        values = (sums / np.maximum(number, 1)[:, None]).astype(np.float32)
        ends = np.cumsum([len(clip.words) for clip in clips])[:-1]
        each = zip(clips, np.split(values, ends), np.split(number > 0, ends), strict=True)
        return [self._frames_of(clip, rows, present) for clip, rows, present in each]

    def _frames_of(self, clip: Clip, values: FloatArray, present: BoolArray) -> Frames:
        words = clip.words
        if not words:
            return absent(self.width, "no words")
        times = np.array([(word.start + word.end) / 2 for word in words])
        lost = int((~present).sum())
        return Frames(values, present, times, {"no token of the word": lost} if lost else {})

    def _spans(self, words: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of the words of each window."""
        if not words:
            return
        start = pieces = 0
        each = self._tokenizer(
            [[word] for word in words], is_split_into_words=True, add_special_tokens=False
        )
        for index, ids in enumerate(each["input_ids"]):
            count = min(len(ids), self._longest)
            if index > start and pieces + count > self._longest:
                yield start, index
                start, pieces = index, 0
            pieces += count
        yield start, len(words)

    def _add(
        self, words: Sequence[str], spans: Sequence[tuple[int, int]], sums: Any, number: Any
    ) -> None:
        """Add the states of several windows to the sums (words, width) and the token counts
        (words,).
        """
        import torch

        inputs = self._tokenizer(
            [list(words[start:end]) for start, end in spans],
            is_split_into_words=True,
            padding=True,
            truncation=True,
            max_length=self._longest + self._tokenizer.num_special_tokens_to_add(),
            return_tensors="pt",
        )
        arguments = {key: inputs[key].to(self.device) for key in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            states = self._model(**arguments).last_hidden_state.float().cpu().numpy()
        for row, (start, _) in enumerate(spans):
            for state, word in zip(states[row], inputs.word_ids(row), strict=True):
                if word is not None:
                    sums[start + word] += state
                    number[start + word] += 1
