"""Third-party models, on the Hugging Face hub or in a folder, read without running their code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from corrkd.errors import CorrKDError
from corrkd.files import sha256_of

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# None of these files can carry code: weights are read from safetensors only.
MODEL_FILES = (
    *(
        CONFIG,
        PREPROCESSOR,
        "model.safetensors",
        "model.safetensors.index.json",
        "model-*-of-*.safetensors",
    ),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *(
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "normalizer.json",
        "sentencepiece.bpe.model",
        "spiece.model",
    ),
)
# Parameters that checkpoints may lack: of outputs that are not read, or used only in training.
UNUSED = ("pooler", "masked_spec_embed", "position_ids")

Download = Callable[[str, str | None], str]
"""(name, revision) -> path of a folder with the files, named after the commit."""


class ModelName(NamedTuple):
    """Name and revision of a model.

    Attributes:
        model: a folder, or a name on the hub such as "owner/name".
        revision: branch, tag or commit on the hub; "" for the newest.
    """

    model: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}" if self.revision else self.model


def parse_model(text: str) -> ModelName:
    """Return the model named "MODEL" or "MODEL@REVISION"."""
    model, at, revision = text.rpartition("@")
    return ModelName(text) if not at or Path(text).is_dir() else ModelName(model, revision)


class ModelFiles:
    """The files of a model, in a folder or downloaded from the hub.

    Args:
        name: name and revision of the model.
        patterns: patterns of the names of files to read.
        download: function that downloads a model from the hub; default: download these patterns.

    Attributes:
        folder: folder with the files.
        commit: commit on the hub; "" for a folder.

    Raises:
        CorrKDError: if the folder does not exist and the model cannot be downloaded.
    """

    def __init__(
        self,
        name: ModelName,
        patterns: tuple[str, ...] = MODEL_FILES,
        download: Download | None = None,
    ) -> None:
        self.name, self._patterns = name, patterns
        self.folder, self.commit = Path(name.model).expanduser(), ""
        if not self.folder.is_dir():
            self.folder = self._fetched(download or self._snapshot)
            self.commit = self.folder.name

    def _snapshot(self, model: str, revision: str | None) -> str:
        from huggingface_hub import snapshot_download

        return snapshot_download(model, revision=revision, allow_patterns=list(self._patterns))

    def _fetched(self, download: Download) -> Path:
        try:
            return Path(download(self.name.model, self.name.revision or None))
        except Exception as error:  # from huggingface_hub or from its HTTP library
            raise CorrKDError(
                f"model {self.name}: no such folder, and could not be downloaded from the hub "
                f"({first_line_of(error)})"
            ) from None

    @cached_property
    def sums(self) -> dict[str, str]:
        """SHA-256 sums of all files that are read, by name."""
        paths = {
            path
            for pattern in self._patterns
            for path in self.folder.glob(pattern)
            if path.is_file()
        }
        return {path.name: sha256_of(path) for path in sorted(paths)}

    def describe(self) -> dict[str, Any]:
        """Return the name, commit and SHA-256 sums of the model, as JSON values."""
        commit = {"revision": self.commit} if self.commit else {}
        return {"model": self.name.model, **commit, "weights": self.sums}

    @cached_property
    def config(self) -> Any:
        """Configuration of the model. Raises CorrKDError if it cannot be read or its model needs
        custom code.
        """
        return self.load("AutoConfig")

    def load(self, kind: str, **options: Any) -> Any:
        """Return the object that an Auto class of transformers loads from the files.

        Args:
            kind: name of the class, such as "AutoTokenizer".
            options: options of its `from_pretrained`.

        Raises:
            CorrKDError: if transformers is not installed, or the files cannot be read.
        """
        library = transformers_library()
        with quiet(library):
            try:
                return getattr(library, kind).from_pretrained(
                    str(self.folder), local_files_only=True, trust_remote_code=False, **options
                )
            except (
                Exception
            ) as error:  # from transformers, tokenizers or safetensors, on unexpected files
                raise CorrKDError(
                    f"model {self.name}: cannot be read: {first_line_of(error)}"
                ) from None

    def load_model(self, kind: str) -> Any:
        """Return the model from safetensors, in eval mode and float32, without gradients.

        Raises:
            CorrKDError: like `load`, or if parameters are missing, which would be random.
        """
        import torch

        model, info = self.load(
            kind,
            config=self.config,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        missing = sorted(
            key for key in info["missing_keys"] if not any(component in key for component in UNUSED)
        )
        if missing:
            raise CorrKDError(
                f"model {self.name}: its weights lack {len(missing)} parameters of "
                f"{type(model).__name__}, as {missing[0]}; "
                "choose a model of that kind"
            )
        # A pooler without weights is random: its output must not be read.
        model.lacks_pooler = any("pooler" in key for key in info["missing_keys"])
        return model.eval().requires_grad_(False)


def transformers_library() -> Any:
    """Return the module transformers. Raises CorrKDError if it is not installed."""
    try:
        return import_module("transformers")
    except ImportError:
        raise CorrKDError("transformers is not installed; pip install 'corrkd[hub]'") from None


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Turn off progress bars and loading reports of transformers within the block."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line_of(error: Exception) -> str:
    """Return the first non-empty line of an error message, or the error's type if it is empty."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:300]


def spec(described: Mapping[str, Any]) -> str:
    """Return "MODEL@REVISION" for a description from `ModelFiles.describe`."""
    return str(ModelName(str(described["model"]), str(described.get("revision", ""))))
