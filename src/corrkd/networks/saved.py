"""A network with its card on disk: `student.safetensors` (parameters, normalisation) and `student.json` (everything else, readable).

Neither file can carry code. The card is written last: where it is, the model is whole.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from corrkd._version import __version__
from corrkd.data.dataset import MultimodalDataset, Split
from corrkd.data.normalise import Normalisation
from corrkd.data.targets import Target
from corrkd.errors import CorrKDError
from corrkd.files import write_bytes, write_text
from corrkd.networks.base import AnyNetwork
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.networks.registry import network_class

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SavedNetwork:
    """A trained network with what it needs to be used: raw features in, classes out.

    Attributes:
        network: in eval mode.
        normalisation: of the raw features, from its training split.
        target: what it predicts.
        frames: the most frames T_m by modality in training.
        about: plain facts: role, seed, epoch, selection rule, data's name and SHA-256, versions, history.
    """

    network: AnyNetwork
    normalisation: Normalisation
    target: Target
    frames: Mapping[str, int]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of H."""
        return self.network.modalities

    @property
    def widths(self) -> dict[str, int]:
        """Feature width d_m by modality."""
        return {m: len(self.normalisation.center[m]) for m in self.modalities}

    def fit(self, dataset: MultimodalDataset) -> MultimodalDataset:
        """The dataset with this network's modalities in its order. Raises CorrKDError where one is absent or of another width."""
        fitting = with_modalities(dataset, self.modalities, self.widths)
        for split in fitting.splits.values():
            for m, longest in self.network.longest(self.frames).items():
                if split.frames[m].shape[1] > longest:
                    raise CorrKDError(
                        f"dataset {dataset.name}: modality {m} has {split.frames[m].shape[1]} frames, but the model reads no more "
                        f"than {longest}"
                    )
        return fitting


def with_modalities(
    dataset: MultimodalDataset, modalities: tuple[str, ...], widths: Mapping[str, int] | None = None
) -> MultimodalDataset:
    """The dataset with these modalities only, in this order.

    Raises:
        CorrKDError: where there is none, one is named twice, is unknown, or of another width than `widths` says.
    """
    if not modalities or len(set(modalities)) < len(modalities):
        raise CorrKDError(
            f"dataset {dataset.name}: modalities {', '.join(modalities) or '(none)'}: name at least one, each once"
        )
    for m in modalities:
        if m not in dataset.modalities:
            raise CorrKDError(f"dataset {dataset.name}: has no modality {m!r}; it has {', '.join(dataset.modalities)}")
        if widths is not None and dataset.widths[m] != widths[m]:
            raise CorrKDError(
                f"dataset {dataset.name}: modality {m} is {dataset.widths[m]} wide, but the model was trained on {widths[m]}"
            )
    if modalities == dataset.modalities:
        return dataset

    def chosen(split: Split) -> Split:
        parts = {name: {m: getattr(split, name)[m] for m in modalities} for name in ("frames", "lengths", "present")}
        return Split(**{**split.__dict__, **parts})

    return MultimodalDataset(
        **{**dataset.__dict__, "splits": {name: chosen(split) for name, split in dataset.splits.items()}}
    )


def build_network(
    target: Target,
    widths: Mapping[str, int],
    frames: Mapping[str, int],
    settings: BaseModel,
    kind: type[AnyNetwork] = CorrKDNetwork,
) -> AnyNetwork:
    """An untrained network for a target; its initialisation follows torch's global seed.

    Raises:
        CorrKDError: where the network cannot be made for these modalities.
    """
    return kind(widths, frames, outputs=target.num_outputs, kind=target.kind, settings=settings)


def save_network(stem: Path, saved: SavedNetwork) -> None:
    """Writes `stem`.safetensors and `stem`.json."""
    tensors = {f"network.{name}": value.contiguous() for name, value in saved.network.state_dict().items()}
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
        "modalities": {m: {"width": saved.widths[m], "frames": saved.frames[m]} for m in saved.modalities},
        "clip": saved.normalisation.clip,
        "target": saved.target.to_json(),
        "about": dict(saved.about),
    }
    tensors_path, card_path = _files(stem)
    write_bytes(tensors_path, data)
    write_text(card_path, json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def load_network(stem: Path) -> SavedNetwork:
    """Reads what `save_network` wrote; `stem` with or without the ending.

    Raises:
        CorrKDError: where a file is missing, damaged, or its tensors have other shapes than the card says.
    """
    path, card_path = _files(stem)
    stem = path.with_suffix("")
    card = _read_card(card_path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorrKDError(f"{path}: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != card["sha256"]:
        raise CorrKDError(
            f"{path}: damaged: its SHA-256 is not the one in {stem.name}.json; restore both files from one training"
        )
    try:
        tensors = load_tensors(data)
        return _assemble(card, tensors)
    except CorrKDError as error:
        raise CorrKDError(f"{stem}.json: {error}") from None
    except ValidationError as error:
        raise CorrKDError(f"{stem}.json: network: {error.errors()[0]['msg']}") from None
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CorrKDError(f"{path}: does not fit its card: {' '.join(lines[-1:]) or type(error).__name__}") from None


def load_student(path: str | Path) -> SavedNetwork:
    """A trained student, from a run folder (its first seed), a seed's folder, or the model's file.

    Raises:
        CorrKDError: where there is none, or it is damaged.
    """
    path = Path(path)
    for candidate in (path, path / "student", *(seed / "student" for seed in seed_folders(path))):
        if _files(candidate)[1].is_file():
            return load_network(candidate)
    raise CorrKDError(
        f"{path}: no trained student there; expected a run folder, or student.json beside student.safetensors"
    )


def _files(stem: Path) -> tuple[Path, Path]:
    """A model's two files; its name may hold dots."""
    name = stem.name.removesuffix(".json").removesuffix(".safetensors")
    return stem.with_name(f"{name}.safetensors"), stem.with_name(f"{name}.json")


def seed_folders(run: Path) -> list[Path]:
    """`seed-N` folders of a run, by number."""
    found = [p for p in run.glob("seed-*") if p.is_dir() and p.name.removeprefix("seed-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("seed-")))


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CorrKDError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise CorrKDError(f"{path}: damaged: not JSON") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise CorrKDError(f"{path}: not a model card of this version (format {FORMAT})")
    missing = {"sha256", "network", "modalities", "clip", "target", "about"} - set(card)
    if missing:
        raise CorrKDError(f"{path}: the card lacks {', '.join(sorted(missing))}")
    if not isinstance(card["about"], dict):
        raise CorrKDError(f"{path}: the card's `about` holds no facts")
    return card


def _assemble(card: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> SavedNetwork:
    target = Target.from_json(card["target"])
    widths = {m: int(size["width"]) for m, size in card["modalities"].items()}
    frames = {m: int(size["frames"]) for m, size in card["modalities"].items()}
    with torch.random.fork_rng(devices=[]):
        kind = network_class(str(card.get("architecture", CorrKDNetwork.name)))
        network = build_network(target, widths, frames, kind.settings_type.model_validate(card["network"]), kind)
    network.load_state_dict({n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")})
    normalisation = Normalisation(
        center={m: _statistic(tensors, f"center.{m}", width) for m, width in widths.items()},
        scale={m: _statistic(tensors, f"scale.{m}", width) for m, width in widths.items()},
        clip=None if card["clip"] is None else float(card["clip"]),
    )
    return SavedNetwork(
        network=network.eval(), normalisation=normalisation, target=target, frames=frames, about=card["about"]
    )


def _statistic(tensors: Mapping[str, torch.Tensor], name: str, width: int) -> npt.NDArray[np.float32]:
    found = tensors[name]
    if found.shape != (width,) or not torch.isfinite(found).all():
        raise ValueError(f"{name} has shape {tuple(found.shape)}, expected {width} finite numbers")
    return found.numpy()
