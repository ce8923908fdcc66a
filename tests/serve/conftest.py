"""A small student with evaluation results, and a run to serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import corrkd
from corrkd.data.dataset import MultimodalDataset, Split
from corrkd.data.modalities import usual_missing
from corrkd.data.normalise import fit_normalisation
from corrkd.missing.conditions import condition, subsets
from corrkd.networks.evaluated import Evaluated, EvaluatedCondition
from corrkd.networks.registry import network_class
from corrkd.networks.saved import SavedNetwork, build_network
from corrkd.settings import NetworkSettings
from corrkd.targets.registry import make_target
from tests.command import corrkd as corrkd_command
from tests.conftest import made_once, make_dataset
from tests.experiment.conftest import tiny
from tests.media.clips import tone, with_face, write_clip

RATIOS = ("ratio-0.0", "ratio-0.5", "ratio-1.0")


def with_questions(dataset: MultimodalDataset) -> MultimodalDataset:
    def relabelled(split: Split) -> Split:
        assert split.labels is not None
        return replace(
            split, labels=np.stack([split.labels > 0, split.labels > 1], 1).astype(np.int64)
        )

    splits = {name: relabelled(split) for name, split in dataset.splits.items()}
    return replace(dataset, splits=splits, question_names=("happy", "sad"))


def dataset_for(target: str) -> MultimodalDataset:
    dataset = make_dataset()
    return with_questions(dataset) if target == "questions" else dataset


def student(target: str = "classes", *, level: float | None = None, **changes: Any) -> SavedNetwork:
    """Return an untrained student whose temperatures and thresholds differ by condition."""
    dataset = dataset_for(target)
    fitted = make_target(target, dataset)
    frames = {"language": 6, "audio": 6, "vision": 6}
    settings = NetworkSettings(
        **{"width": 8, "heads": 2, "feedforward": 16, "layers": 1, "classifier": (6,)} | changes
    )
    torch.manual_seed(3)
    network = build_network(fitted, dataset.widths, frames, settings)
    with torch.no_grad():
        for parameter in network.parameters():  # far from indifferent
            parameter.mul_(2.0)
    tested = [
        *subsets(dataset.modalities),
        *(condition(name, dataset.modalities) for name in RATIOS),
    ]
    conditions = tuple(
        EvaluatedCondition.of(
            c,
            temperature=0.5 + 0.25 * i,
            threshold=None if level is None else 0.3 + 0.05 * i,
            measured={"weighted_f1": 0.5 + i / 100, "accuracy": 0.6},
        )
        for i, c in enumerate(tested)
    )
    return SavedNetwork(
        network=network.eval(),
        normalisation=fit_normalisation(dataset.split("train")),
        target=fitted,
        frames=frames,
        missing=usual_missing(dataset.split("train")),
        about={"role": "student", "seed": 3, "data": {"name": "tiny", "sha256": "0" * 64}},
        evaluated=Evaluated(
            split="test", samples=36, data="tiny", level=level, conditions=conditions
        ),
    )


def baseline(name: str) -> SavedNetwork:
    """Return the student with an untrained, untested network of any kind."""
    saved, kind = student(), network_class(name)
    torch.manual_seed(0)
    network = build_network(saved.target, saved.widths, saved.frames, kind.settings_type(), kind)
    return replace(saved, network=network.eval(), evaluated=None)


def sample_of(split: Split, row: int) -> dict[str, Any]:
    """Return a sample's raw frames, without padding."""
    return {m: np.array(x[row, : split.lengths[m][row]]) for m, x in split.frames.items()}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with prediction sets. Tests must not change it."""
    settings = tiny(data={"calibration": 0.3}, seeds=[0])
    return made_once(tmp_path_factory, "served", lambda folder: corrkd.run(settings, folder))


@pytest.fixture(scope="session")
def recordings_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run on features of recordings. Tests must not change it."""
    return made_once(tmp_path_factory, "recordings", _run_on_recordings)


def _run_on_recordings(folder: Path) -> None:
    clips = folder.with_name("clips")
    clips.mkdir()
    rows = ["file,text,label,split"]
    for split in ("train", "train", "valid", "test"):
        for label, text, hertz in (
            ("positive", "I love this", 250),
            ("negative", "it was bad", 120),
        ):
            name = f"{len(rows)}.mkv"
            write_clip(clips / name, [with_face(), with_face(0.45)], tone(0.2, hertz))
            rows.append(f"{name},{text},{label},{split}")
    (clips / "labels.csv").write_text("\n".join(rows), "utf-8")
    data = folder.with_name("own.h5")
    assert corrkd_command("features", clips, "--out", data).code == 0
    settings = tiny(seeds=[0])
    settings["data"] = {"path": str(data), "target": "classes"}
    corrkd.run(settings, folder)
