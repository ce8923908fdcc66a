"""Vision from an image encoder (CLIP, SigLIP, DINOv2, ViT) on the crop of the face."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from corrkd.data.dataset import FloatArray
from corrkd.errors import CorrKDError
from corrkd.hub import PREPROCESSOR
from corrkd.media.clip import Clip
from corrkd.media.decode import Picture
from corrkd.media.extractors.base import Frames
from corrkd.media.extractors.face_networks import Face, cropped
from corrkd.media.extractors.model import ModelExtractor
from corrkd.media.extractors.steps import WithFaces, face_frames
from corrkd.media.sound_windows import exact
from corrkd.parsing import parse_json, read_text

BATCH = 16  # crops per batch
LARGEST_SIDE = 2048  # pixels of a crop
LARGEST_PREPROCESSOR = 1 << 20  # bytes


class Preparation(NamedTuple):
    """The preprocessing of an image encoder.

    Attributes:
        size: side of its input in pixels.
        mean, deviation: (3, 1, 1) by which colours from 0 to 1 are normalised.
    """

    size: int
    mean: Tensor
    deviation: Tensor


class Image(ModelExtractor):
    """10 frames per second: the output of the encoder on the upright crop of the face, at the size
    that its preprocessor names.
    """

    name: ClassVar[str] = "image"
    version: ClassVar[int] = 2
    modality: ClassVar[str] = "vision"
    part: ClassVar[str] = "vision_config"

    @cached_property
    def _model(self) -> Any:
        model = self.files.load_model("AutoModel")
        lacks_pooler, model = model.lacks_pooler, getattr(model, "vision_model", model)
        model.lacks_pooler = lacks_pooler
        return model.to(self.device)

    @cached_property
    def _preparation(self) -> Preparation:
        path = self.files.folder / PREPROCESSOR
        if not path.is_file():
            raise CorrKDError(
                f"model {self.files.name}: has no {PREPROCESSOR}; choose an image encoder that "
                f"has one"
            )
        return preparation(
            parse_json(read_text(path, LARGEST_PREPROCESSOR), path), f"model {self.files.name}"
        )

    def load(self) -> None:
        """Load the encoder."""
        _ = self._model, self._preparation

    def batch(self, clips: Sequence[Clip]) -> list[Frames]:
        """Return (steps, width) of each clip. Steps without a face or without a picture are
        missing.
        """
        return face_frames(clips, self.width, self._rows)

    def _rows(self, pictures: WithFaces) -> Iterator[FloatArray | None]:
        """Yield the features of the face in each picture, or None. A repeated picture is processed
        once.
        """
        before: tuple[Picture | None, FloatArray | None] = (None, None)
        while batch := list(islice(pictures, BATCH)):
            distinct = {id(p): (p, face) for p, face in batch if p is not None and face is not None}
            distinct.pop(id(before[0]), None)
            rows = dict(zip(distinct, self._read(list(distinct.values())), strict=True))
            for picture, face in batch:
                if picture is not None and picture is not before[0]:
                    before = picture, None if face is None else rows[id(picture)]
                yield None if picture is None else before[1]

    def _read(self, batch: list[tuple[Picture, Face]]) -> list[FloatArray]:
        """Return the features (width,) of each face."""
        if not batch:
            return []
        size, mean, deviation = self._preparation
        crops = torch.stack([cropped(picture, face.square, size) for picture, face in batch])
        with torch.inference_mode(), exact():
            output = self._model(pixel_values=((crops - mean) / deviation).to(self.device))
            pooled = None if self._model.lacks_pooler else getattr(output, "pooler_output", None)
            rows = output.last_hidden_state[:, 0] if pooled is None else pooled
        return list(rows.flatten(1).float().cpu().numpy())


def preparation(tree: Any, where: str) -> Preparation:
    """Return the preprocessing from the contents of a preprocessor's file.

    Raises:
        CorrKDError: if it has no size or not three colours.
    """
    try:
        size = tree.get("crop_size") or tree["size"]
        if isinstance(size, dict):
            size = size.get("height") or size["shortest_edge"]
        colours = [
            torch.tensor([float(value) for value in tree[key]])
            for key in ("image_mean", "image_std")
        ]
        sensible = 1 <= size <= LARGEST_SIDE and all(
            len(c) == 3 and bool(c.isfinite().all()) for c in colours
        )
        if not sensible or not math.isfinite(float((1 / colours[1]).sum())):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CorrKDError(
            f"{where}: its {PREPROCESSOR} has no valid size and colours; choose an image encoder"
        ) from None
    return Preparation(int(size), *(colour[:, None, None] for colour in colours))
