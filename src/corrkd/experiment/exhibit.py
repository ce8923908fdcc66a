"""Loading the models and samples for the page of the service: the student of a run, its teacher,
its control and the tested samples.
"""

from __future__ import annotations

from pathlib import Path

import torch

from corrkd.data.dataset import Split
from corrkd.data.resample import resampled
from corrkd.errors import CorrKDError
from corrkd.experiment.arm import TEACHER
from corrkd.experiment.experiment import read
from corrkd.experiment.folder import settings_of
from corrkd.networks.saved import load_network, seed_folders
from corrkd.parsing import refusing
from corrkd.report.run_folder import RunFolder
from corrkd.serve.explore import Exhibit
from corrkd.serve.predictor import Predictor
from corrkd.targets.base import Target


def exhibit_of(
    model: str | Path, *, samples: bool = True, device: torch.device | str = "cpu"
) -> tuple[Exhibit, list[str]]:
    """Return the networks and samples that the page can show for a model, and notes on what is not
    available.

    Args:
        model: as in `Predictor.from_pretrained`. Only a run has teacher, control and samples.
        samples: whether to show the samples of the tested split.
        device: device of the networks, such as "cpu" or "cuda".

    Raises:
        CorrKDError: if the model is missing or damaged.
    """
    student = Predictor.from_pretrained(model, device=device)
    predictors = {"student": student}
    if student.run is None:
        return Exhibit(predictors), [
            "without a run folder, the page has no teacher, control or samples to show"
        ]
    folder = _seed_folder(Path(model).absolute(), student.run)
    control = RunFolder.open(student.run).card.control
    for role, arm in (("teacher", TEACHER), ("control", control)):
        if arm is not None and (folder / arm / f"{arm}.json").is_file():
            predictors[role] = Predictor(
                load_network(folder / arm / arm), run=student.run, device=device
            )
    if not samples:
        return Exhibit(predictors), []
    try:
        settings = settings_of(student.run)
        with refusing(folder, "its card records no seed"):
            seed = int(student.saved.about["seed"])  # splits may differ by seed
        dataset = resampled(read(settings.data), settings.data.resample, seed)
        split = student.saved.fit(dataset).split(settings.evaluation.split)
    except CorrKDError as error:
        return Exhibit(predictors), [f"no samples to choose from: {error}"]
    return Exhibit(
        predictors, split, settings.evaluation.split, truths(split, student.saved.target)
    ), []


def _seed_folder(model: Path, run: Path) -> Path:
    seeds = seed_folders(run)
    return next((p for p in (model, *model.parents[:2]) if p in seeds), seeds[0])


def truths(split: Split, target: Target) -> list[str]:
    """Return the label of each sample as text; "" if the target does not count it."""
    values, counts = target.of(split, "split")
    return [
        target.text(value) if counted else "" for value, counted in zip(values, counts, strict=True)
    ]
