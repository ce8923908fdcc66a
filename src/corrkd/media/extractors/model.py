"""Base class of extractors that use a model of transformers, given by its name or folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from corrkd.errors import CorrKDError
from corrkd.hub import ModelFiles, parse_model
from corrkd.media.clip import Clip
from corrkd.media.extractors.base import Extractor, Frames


class ModelExtractor(Extractor):
    """An extractor with a model, as "speech:openai/whisper-base" or "speech:FOLDER".

    Args:
        model: "MODEL" or "MODEL@REVISION".
        device: device of the model, as "cpu" or "cuda".

    Raises:
        CorrKDError: if the model cannot be read.

    Attributes:
        part: section of the configuration that is used, for a model with two encoders.
    """

    libraries: ClassVar[tuple[str, ...]] = ("av", "numpy", "torch", "transformers")
    part: ClassVar[str] = ""

    def __init__(self, model: str, device: str = "cpu") -> None:
        self.files, self.device = ModelFiles(parse_model(model)), device
        self.columns = tuple(f"{self.name}_{i}" for i in range(self._hidden_width()))

    def _hidden_width(self) -> int:
        config = getattr(self.files.config, self.part, None) or self.files.config
        width = (
            getattr(config, "hidden_size", None)
            or (getattr(config, "hidden_sizes", None) or [None])[-1]
        )
        if not isinstance(width, int) or width < 1:
            raise CorrKDError(
                f"model {self.files.name}: a model of type {self.files.config.model_type} has no "
                f"hidden states of one width; "
                f"choose another for {self.name}"
            )
        return width

    def describe(self) -> dict[str, Any]:
        """Return what identifies the extractor and its model."""
        return super().describe() | self.files.describe()

    def frames(self, clip: Clip) -> Frames:
        """Return the features of a clip. Raises as `batch`."""
        return self.batch([clip])[0]

    @abstractmethod
    def batch(self, clips: Sequence[Clip]) -> list[Frames]:
        """Return the features of several clips, which pass through the model together.

        Raises:
            CorrKDError: a clip cannot be read.
        """

    @abstractmethod
    def load(self) -> None:
        """Load the model, so that errors appear before the first clip. Raises CorrKDError if it
        cannot be read.
        """
