"""Networks on disk with their cards: `student.safetensors` (parameters, normalisation) and
`student.json` (everything else, readable).

Neither file can contain code. The card is written last: if it exists, the model is complete.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from corrkd import zoo
from corrkd._version import __version__
from corrkd.data.dataset import MultimodalDataset
from corrkd.data.modalities import UsualMissing, with_classes, with_modalities
from corrkd.data.normalise import Normalisation
from corrkd.errors import CorrKDError
from corrkd.files import CARD, RUN, WEIGHTS, leads_elsewhere, write_bytes, write_text
from corrkd.networks.base import AnyNetwork
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.networks.evaluated import Evaluated, Share
from corrkd.networks.registry import network_class
from corrkd.parsing import (
    CONTENT_ERRORS,
    check_digest,
    first_fault,
    json_text,
    read_json,
    refusing,
    with_digest,
)
from corrkd.settings import Positive
from corrkd.targets.base import Target
from corrkd.targets.labels import Name
from corrkd.targets.registry import target_from_json

FORMAT = 1
LARGEST = 100_000  # width or number of frames of a modality
LARGEST_TABLES = 2**27  # numbers in a network's buffers, such as tables of positions
Size = Annotated[int, Field(ge=1, le=LARGEST)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _ModalityCard(_Strict):
    width: Size
    frames: Size
    usual: Size | None = None
    missing: Share | None = None


class _Card(_Strict):
    """Content of a model's card; `network`, `target` and `evaluated` have further types."""

    format: Literal[1]
    corrkd: str = ""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    architecture: Name = CorrKDNetwork.name
    network: dict[str, Any]
    modalities: Annotated[dict[Name, _ModalityCard], Field(min_length=1)]
    clip: Positive | None
    target: dict[str, Any]
    about: dict[str, Any]
    missing: Share | None = None
    evaluated: dict[str, Any] | None = None
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class SavedNetwork:
    """A trained network with what is needed to use it: raw features in, classes out.

    Attributes:
        network: in evaluation mode.
        normalisation: of the raw features, from the training split.
        target: what the network predicts.
        frames: largest number of frames T_m in the data, by modality.
        missing: usual shares of missing frames in training samples (95th percentiles), by modality
            and over the modalities of a sample; None: not recorded.
        about: plain facts: role, seed, epoch, selection rule, data's name and SHA-256, versions,
            history.
        evaluated: the evaluation results; None before the evaluation.
    """

    network: AnyNetwork
    normalisation: Normalisation
    target: Target
    frames: Mapping[str, int]
    missing: UsualMissing | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    evaluated: Evaluated | None = None

    def __repr__(self) -> str:
        sizes = ", ".join(f"{m} {self.frames[m]} × {d}" for m, d in self.widths.items())
        parameters = sum(p.numel() for p in self.network.parameters())
        facts = ", ".join(f"{k} {self.about[k]}" for k in ("role", "seed") if k in self.about)
        return (
            f"SavedNetwork({self.network.name}, {parameters:,} parameters; {sizes}; "
            f"{', '.join(self.target.output_names)}{facts and '; ' + facts})"
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of H."""
        return self.network.modalities

    @property
    def widths(self) -> dict[str, int]:
        """Feature width d_m by modality."""
        return {m: len(self.normalisation.center[m]) for m in self.modalities}

    def fit(self, dataset: MultimodalDataset, *, partly: bool = False) -> MultimodalDataset:
        """Return the dataset with this network's modalities and classes, in its order; if `partly`,
        the dataset may lack some of the modalities.

        Raises:
            CorrKDError: if a modality is absent (if `partly`: all are), has another width, or is
                longer than the network reads.
        """
        names = (
            tuple(m for m in self.modalities if m in dataset.modalities)
            if partly
            else self.modalities
        )
        if not names:
            raise CorrKDError(
                f"dataset {dataset.name}: has none of the model's modalities "
                f"{', '.join(self.modalities)}; it has {', '.join(dataset.modalities)}"
            )
        fitting = with_modalities(dataset, names, self.widths)
        for split in fitting.splits.values():
            for m, longest in self.network.longest(self.frames).items():
                if m in names and split.frames[m].shape[1] > longest:
                    raise CorrKDError(
                        f"dataset {dataset.name}: modality {m} has {split.frames[m].shape[1]} "
                        f"frames, but the model reads no more than {longest}"
                    )
        return (
            with_classes(fitting, self.target.classes) if self.target.kind == "classes" else fitting
        )


def build_network(
    target: Target,
    widths: Mapping[str, int],
    frames: Mapping[str, int],
    settings: BaseModel,
    network_type: type[AnyNetwork] = CorrKDNetwork,
) -> AnyNetwork:
    """Return an untrained network for a target. Its initialisation follows torch's global seed.

    Raises:
        CorrKDError: if the network cannot be built for these modalities.
    """
    return network_type(widths, frames, target=target, settings=settings)


def save_network(stem: Path, saved: SavedNetwork) -> None:
    """Write `stem`.safetensors and `stem`.json."""
    tensors_path, card_path = _files(stem)
    data, card = packed(saved)
    write_bytes(tensors_path, data)
    write_card(card_path, card)


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Write a card as readable JSON, with its digest."""
    write_text(path, json_text(with_digest(card)))


def add_evaluated(stem: Path, evaluated: Evaluated) -> None:
    """Add the evaluation results to a model's card."""
    card_path = _files(stem)[1]
    write_card(card_path, {**read_card(card_path), "evaluated": evaluated.model_dump(mode="json")})


def recorded(stem: Path, fact: str) -> Any:
    """Return a fact that training recorded on a model's card. Raises CorrKDError if the card is
    damaged or lacks the fact.
    """
    path = _files(stem)[1]
    about = read_card(path)["about"]
    if fact not in about:
        raise CorrKDError(
            f"{path}: the card does not record {fact!r}; delete it to train this stage again"
        )
    return about[fact]


def packed(saved: SavedNetwork) -> tuple[bytes, dict[str, Any]]:
    """Return the contents of a model's two files: tensors as safetensors, and the card."""
    tensors = {
        f"network.{name}": value.contiguous() for name, value in saved.network.state_dict().items()
    }
    for m in saved.modalities:
        tensors[f"center.{m}"] = torch.as_tensor(np.asarray(saved.normalisation.center[m]))
        tensors[f"scale.{m}"] = torch.as_tensor(np.asarray(saved.normalisation.scale[m]))
    data = save_tensors(tensors)
    card = {
        "format": FORMAT,
        "corrkd": __version__,
        "sha256": hashlib.sha256(data).hexdigest(),
        "architecture": saved.network.name,
        "network": saved.network.settings.model_dump(mode="json"),
        "modalities": {m: _modality_card(saved, m) for m in saved.modalities},
        "clip": saved.normalisation.clip,
        "target": saved.target.to_json(),
        "about": dict(saved.about),
    }
    if saved.missing is not None:
        card["missing"] = saved.missing.together
    if saved.evaluated is not None:
        card["evaluated"] = saved.evaluated.model_dump(mode="json")
    return data, card


def _modality_card(saved: SavedNetwork, modality: str) -> dict[str, float]:
    card: dict[str, float] = {
        "width": saved.widths[modality],
        "frames": saved.frames[modality],
        "usual": saved.normalisation.lengths[modality],
    }
    if saved.missing is not None:
        card["missing"] = saved.missing.by_modality[modality]
    return card


def load_network(stem: Path) -> SavedNetwork:
    """Return the model that `save_network` wrote; `stem` with or without suffix.

    Raises:
        CorrKDError: if a file is missing or damaged, or a tensor's shape differs from the card.
    """
    return read_network(*_files(stem))


def read_network(path: Path, card_path: Path) -> SavedNetwork:
    """Return the model in two files. Raises CorrKDError as `load_network`."""
    card = read_card(card_path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorrKDError(f"{path}: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != card["sha256"]:
        raise CorrKDError(
            f"{path}: damaged: its SHA-256 is not the one in {card_path.name}; restore both "
            f"files from one training"
        )
    try:
        tensors = load_tensors(data)
        return _assemble(card, tensors)
    except CorrKDError as error:
        raise CorrKDError(f"{card_path}: {error}") from None
    except ValidationError as error:
        where = "evaluated" if error.title == Evaluated.__name__ else "network"
        raise CorrKDError(f"{card_path}: {where}.{first_fault(error)}") from None
    except (*CONTENT_ERRORS, SafetensorError, struct.error) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CorrKDError(
            f"{path}: does not fit its card: {' '.join(lines[-1:])[:200] or type(error).__name__}"
        ) from None


def load_student(path: str | Path) -> SavedNetwork:
    """Return a trained student.

    Args:
        path: a run's folder or its dataset's (the first seed's reference arm), a seed's folder, an
            arm's folder, the model's file, a folder of `save_pretrained`, or a released student as
            "zoo:NAME" (`corrkd.zoo`).

    Raises:
        CorrKDError: if there is no student at the path, or it is damaged.
    """
    path = zoo.resolve(path).absolute()  # "." has no name
    if (folder := folder_alone(path)) is not None:
        return read_network(folder / WEIGHTS, folder / CARD)
    for stem in _stems(path):
        if _files(stem)[1].is_file():
            return load_network(stem)
    raise CorrKDError(
        f"{path}: no trained student there; expected a run's folder, a model's two files, or a "
        f"folder with {WEIGHTS} and {CARD}"
    )


def _stems(path: Path) -> Iterator[Path]:
    """Yield the stems at which a path may have a student: itself, in an arm's folder, or the
    reference arm of a seed's, a dataset's or a run's folder.
    """
    yield path
    inside = [
        file.with_suffix("")
        for file in path.glob("*.safetensors")
        if file.with_suffix(".json").is_file()
    ]
    yield from (stem for stem in inside if stem.name == path.name or len(inside) == 1)
    dataset = dataset_folder(path)
    if dataset is not None:
        reference = reference_arm(dataset)
        seeds = [path] if path.parent == dataset else seed_folders(dataset)
        yield from (seed / reference / reference for seed in seeds)


def dataset_folder(path: Path) -> Path | None:
    """Return the dataset's folder that contains a path, or the only one in a run's folder;
    otherwise None.

    Raises:
        CorrKDError: if the run has several datasets.
    """
    for folder in (path, *path.parents[:3]):
        if (folder / RUN).is_file():
            return folder
    inside = sorted(file.parent for file in path.glob(f"*/{RUN}")) if path.is_dir() else []
    if len(inside) > 1:
        raise CorrKDError(
            f"{path}: has several datasets; give the folder of one: "
            f"{', '.join(f.name for f in inside)}"
        )
    return inside[0] if inside else None


def reference_arm(dataset: Path) -> str:
    """Return the arm of a dataset's folder with which the others are compared. Raises CorrKDError
    if run.json does not name it.
    """
    tree = read_json(dataset / RUN)
    name = tree.get("reference") if isinstance(tree, dict) else None
    if not isinstance(name, str) or leads_elsewhere(name):
        raise CorrKDError(f"{dataset / RUN}: names no reference arm; give the model's file")
    return name


def folder_alone(path: Path) -> Path | None:
    """Return the folder of a model outside a run, if a path is this folder or one of its files;
    otherwise None.
    """
    folder = path if path.is_dir() else path.parent
    is_model = (folder / CARD).is_file() and not (folder / RUN).exists()
    return folder if is_model and path in (folder, folder / CARD, folder / WEIGHTS) else None


def _files(stem: Path) -> tuple[Path, Path]:
    """Return the paths of a model's two files; its name may contain dots."""
    name = stem.name.removesuffix(".json").removesuffix(".safetensors")
    return stem.with_name(f"{name}.safetensors"), stem.with_name(f"{name}.json")


def seed_folders(run: Path) -> list[Path]:
    """Return the `seed-N` folders of a run, in the order of their numbers."""
    folders = [
        p
        for p in run.glob("seed-*")
        if p.is_dir() and re.fullmatch("0|[1-9][0-9]{0,19}", p.name.removeprefix("seed-"))
    ]
    return sorted(folders, key=lambda p: int(p.name.removeprefix("seed-")))


def read_card(path: Path) -> dict[str, Any]:
    """Return a model's card. Raises CorrKDError if the file is not a card, lacks something, or was
    changed after it was written.
    """
    card = read_json(path)
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise CorrKDError(f"{path}: not a model card of this version (format {FORMAT})")
    missing = {"sha256", "network", "modalities", "clip", "target", "about"} - set(card)
    if missing:
        raise CorrKDError(f"{path}: the card lacks {', '.join(sorted(missing))}")
    with refusing(path, "not a model card of this version"):
        _Card.model_validate(card)
    check_digest(card, path, "restore both of the model's files from one training", needed=False)
    return card


def _assemble(card: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> SavedNetwork:
    target = target_from_json(card["target"])
    widths = {m: size["width"] for m, size in card["modalities"].items()}
    frames = {m: size["frames"] for m, size in card["modalities"].items()}
    lengths = {m: size.get("usual") or size["frames"] for m, size in card["modalities"].items()}
    missing = None
    if card.get("missing") is not None:
        missing = UsualMissing(
            {m: size["missing"] for m, size in card["modalities"].items()}, card["missing"]
        )
    evaluated = card.get("evaluated")
    kind = network_class(str(card.get("architecture", CorrKDNetwork.name)))
    settings = kind.settings_type.model_validate(card["network"])
    state = {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")}
    with torch.device("meta"):  # takes no memory, whatever the card says
        plan = build_network(target, widths, frames, settings, kind)
    if sum(table.numel() for table in plan.buffers()) > LARGEST_TABLES:
        raise ValueError("so many frames of so many features would need a table beyond all bounds")
    planned = plan.state_dict()
    if {n: t.shape for n, t in planned.items()} != {n: t.shape for n, t in state.items()}:
        raise ValueError("the tensors are not those of the network that it describes")
    with torch.random.fork_rng(devices=[]):
        network = build_network(target, widths, frames, settings, kind)
    network.load_state_dict(state)
    normalisation = Normalisation(
        center={m: _statistic(tensors, f"center.{m}", width) for m, width in widths.items()},
        scale={m: _statistic(tensors, f"scale.{m}", width) for m, width in widths.items()},
        # At most the longest in the data, where learned positions end.
        lengths={m: min(length, frames[m]) for m, length in lengths.items()},
        clip=None if card["clip"] is None else float(card["clip"]),
    )
    return SavedNetwork(
        network=network.eval(),
        normalisation=normalisation,
        target=target,
        frames=frames,
        missing=missing,
        about=card["about"],
        evaluated=None if evaluated is None else Evaluated.model_validate(evaluated),
    )


def _statistic(
    tensors: Mapping[str, torch.Tensor], name: str, width: int
) -> npt.NDArray[np.float32]:
    value = tensors[name]
    if (
        value.shape != (width,)
        or not torch.isfinite(value).all()
        or (name.startswith("scale.") and not (value > 0).all())
    ):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, expected {width} finite numbers, a scale "
            f"above 0"
        )
    return value.numpy()
