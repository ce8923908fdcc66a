"""Masks as a file: what was missing in a test, exported once and replayable with this or other
code.

One safetensors file. It has a tensor `condition/draw/modality` for each condition that stores
masks, each draw and each modality, of (N, ceil(T / 8)) bytes: a bit is set if a frame is dropped,
the first frame in the highest bit (numpy.packbits). The metadata has a JSON text with ids, frames
per modality, conditions and seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from corrkd.data.batches import Batch, Samples
from corrkd.errors import CorrKDError
from corrkd.files import write_bytes
from corrkd.missing.conditions import Condition, condition
from corrkd.parsing import CONTENT_ERRORS, parse_json


@dataclass(frozen=True)
class Manifest:
    """Masks of samples under several conditions.

    Attributes:
        ids: (N,) ids of the samples, in the order of the masks.
        frames: T_m of all modalities, in the order of the samples' modalities.
        conditions: what is missing, including conditions that store no masks.
        masks: (condition's name, draw, modality) -> (N, T_m) booleans, True if a frame is dropped.
        seed: seed of the masks.
    """

    ids: tuple[str, ...]
    frames: Mapping[str, int]
    conditions: tuple[Condition, ...]
    masks: Mapping[tuple[str, int, str], np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]
    seed: int

    def replay(
        self, samples: Samples
    ) -> Callable[[Condition, int, Batch], dict[str, Tensor] | None]:
        """Return a source of masks for a sweep over `samples`. Raises CorrKDError if the manifest
        lacks a sample, or modalities or frames differ.
        """
        rows = {name: index for index, name in enumerate(self.ids)}
        absent = [str(i) for i in samples.ids if str(i) not in rows]
        if absent:
            raise CorrKDError(
                f"masks: {len(absent)} samples are not in the manifest, as {absent[0]!r}; it was "
                f"made for other samples"
            )
        order = np.array([rows[str(i)] for i in samples.ids])
        masks = {}
        for (name, draw, m), mask in self.masks.items():
            if m not in samples.exists or mask.shape[1] != samples.exists[m].shape[1]:
                raise CorrKDError(
                    f"masks: modality {m} has {mask.shape[1]} frames in the manifest, but not in "
                    f"the data"
                )
            masks[name, draw, m] = torch.as_tensor(mask[order]).to(samples.device)

        def source(chosen: Condition, draw: int, batch: Batch) -> dict[str, Tensor] | None:
            if chosen.complete_modalities is not None:
                return None  # they follow from the name
            try:
                return {m: masks[chosen.name, draw, m][batch.rows] for m in batch.exists}
            except KeyError:
                raise CorrKDError(
                    f"masks: the manifest has no condition {chosen.name!r}, draw {draw}"
                ) from None

        return source


def make_manifest(samples: Samples, conditions: Sequence[Condition], *, seed: int) -> Manifest:
    """Return the masks that a sweep with this seed applies to these samples."""
    everything = samples.without_frames()
    masks = {
        (c.name, draw, m): mask.cpu().numpy()
        for c in conditions
        if c.stores_masks
        for draw in range(c.draws)
        for m, mask in c.dropped(everything, seed=seed, draw=draw).items()
    }
    frames = {m: exists.shape[1] for m, exists in samples.exists.items()}
    return Manifest(tuple(map(str, samples.ids)), frames, tuple(conditions), masks, seed)


def save_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest completely or not at all."""
    about = {
        "corrkd_masks": 1,
        "ids": manifest.ids,
        "modalities": dict(manifest.frames),
        "conditions": [{"name": c.name, "draws": c.draws} for c in manifest.conditions],
        "seed": manifest.seed,
    }
    tensors = {
        f"{name}/{draw}/{m}": np.packbits(mask, axis=1)
        for (name, draw, m), mask in manifest.masks.items()
    }
    write_bytes(path, save(tensors, {"masks": json.dumps(about)}))


def load_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises CorrKDError if it is missing, damaged or not a manifest."""
    try:
        with safe_open(path, "numpy") as file:
            about = parse_json((file.metadata() or {})["masks"], path)
            modalities: dict[str, int] = about["modalities"]
            if not all(isinstance(i, str) for i in about["ids"]) or len(set(about["ids"])) < len(
                about["ids"]
            ):
                raise ValueError("ids")
            conditions = tuple(
                condition(c["name"], tuple(modalities), c["draws"]) for c in about["conditions"]
            )
            masks = {}
            for key in file.keys():  # noqa: SIM118  (the file is not a mapping)
                name, draw, m = key.split("/", 2)
                packed = file.get_tensor(key)
                if packed.shape != (len(about["ids"]), (modalities[m] + 7) // 8):
                    raise ValueError(key)
                bits = np.unpackbits(packed, axis=1, count=modalities[m])
                masks[name, int(draw), m] = bits.astype(bool)
            return Manifest(tuple(about["ids"]), modalities, conditions, masks, int(about["seed"]))
    except OSError as error:
        raise CorrKDError(f"{path}: {error.strerror or error}") from None
    except (SafetensorError, *CONTENT_ERRORS):
        raise CorrKDError(f"{path}: not a manifest of masks, or damaged") from None
