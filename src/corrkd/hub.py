"""Models of others, on Hugging Face's hub or in a folder: which files they have, and reading them
without running any code of theirs.
"""

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
# Weights as safetensors alone, and what tokenizers and preprocessors are made of: nothing in these
# files can carry code.
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
# Parameters that checkpoints rightly lack: outputs that are not read, and a vector that training
# alone uses.
UNUSED = ("pooler", "masked_spec_embed", "position_ids")

Download = Callable[[str, str | None], str]
"""Name and revision -> a folder with the files, named after the commit."""


class ModelName(NamedTuple):
    """Which model.

    Attributes:
        model: a folder, or a name on the hub, as "owner/name".
        revision: a branch, tag or commit there; "": the newest.
    """

    model: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}" if self.revision else self.model


def parse_model(text: str) -> ModelName:
    """Return the model of "MODEL" or "MODEL@REVISION"."""
    model, at, revision = text.rpartition("@")
    return ModelName(text) if not at or Path(text).is_dir() else ModelName(model, revision)


class ModelFiles:
    """The files of a model, fetched from the hub where the name is no folder.

    Args:
        name: which model.
        patterns: names of the files that are read.
        download: how a model of the hub is fetched; default: the files of these patterns.

    Raises:
        CorrKDError: there is no such folder, and the hub has no such model or cannot be reached.

    Attributes:
        folder: where the files are.
        commit: of the hub; "" of a folder.
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
        except (
            Exception
        ) as error:  # of huggingface_hub's own kinds, and of what it sends requests with
            raise CorrKDError(
                f"model {self.name}: no such folder, and could not be downloaded from the hub "
                f"({first_line_of(error)})"
            ) from None

    @cached_property
    def sums(self) -> dict[str, str]:
        """SHA-256 sums of all files that are read, by their names."""
        paths = {
            path
            for pattern in self._patterns
            for path in self.folder.glob(pattern)
            if path.is_file()
        }
        return {path.name: sha256_of(path) for path in sorted(paths)}

    def describe(self) -> dict[str, Any]:
        """Return what identifies the model, as plain values."""
        commit = {"revision": self.commit} if self.commit else {}
        return {"model": self.name.model, **commit, "weights": self.sums}

    @cached_property
    def config(self) -> Any:
        """The configuration. Raises CorrKDError where it cannot be read, or its model would need
        code of its own.
        """
        return self.load("AutoConfig")

    def load(self, kind: str, **options: Any) -> Any:
        """Return what an Auto class of transformers makes of the files.

        Args:
            kind: name of the class, as "AutoTokenizer".
            options: of its `from_pretrained`.

        Raises:
            CorrKDError: transformers is not installed, or the files cannot be read.
        """
        library = transformers_library()
        with quiet(library):
            try:
                return getattr(library, kind).from_pretrained(
                    str(self.folder), local_files_only=True, trust_remote_code=False, **options
                )
            except (
                Exception
            ) as error:  # of transformers, tokenizers and safetensors, on files that nobody foresaw
                raise CorrKDError(
                    f"model {self.name}: cannot be read: {first_line_of(error)}"
                ) from None

    def load_model(self, kind: str) -> Any:
        """Return the model in eval mode, in 32-bit floats, from safetensors.

        Raises:
            CorrKDError: as `load`, and where parameters are missing, which would be random.
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
    """Return the module transformers. Raises CorrKDError where it is not installed."""
    try:
        return import_module("transformers")
    except ImportError:
        raise CorrKDError("transformers is not installed; pip install 'corrkd[hub]'") from None


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Show no progress bars and no reports of what was loaded."""
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
    """Return the first line of an error's text that is not empty; its type where there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)[:300]


def spec(described: Mapping[str, Any]) -> str:
    """Return "MODEL@REVISION" of what `ModelFiles.describe` returned."""
    return str(ModelName(str(described["model"]), str(described.get("revision", ""))))
