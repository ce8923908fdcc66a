"""A method, trained from Python next to the student and the control of a run.

python examples/extending/method.py     trains and evaluates it
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch.nn.functional import cosine_similarity

import corrkd
from corrkd.data.convert import convert
from corrkd.evaluation.sweep import mean_missing_f1
from corrkd.experiment.experiment import prepare
from corrkd.experiment.processes import make_fabric
from corrkd.methods.base import Losses, Method, TrainingBatch, WeightedLoss
from corrkd.networks.saved import SavedNetwork, build_network, load_network, save_network
from corrkd.settings import Strict
from corrkd.training.loop import derived_seed, teacher_outputs, train


class DirectionOptions(Strict):
    """The weight of the loss that `Direction` adds."""

    direction: WeightedLoss = WeightedLoss()


class Direction(Method):
    """Task loss, and one minus the cosine between student's and teachers' representations."""

    title = "Direction"
    options_type = DirectionOptions
    needs_teacher = True
    search: ClassVar = {"method.direction.weight": (0.1, 4.0)}

    def build(self) -> None:
        """Refuse networks of different widths before training."""
        self.check_widths("the cosine", "train kl")

    def losses(self, batch: TrainingBatch) -> Losses:
        """Return weight and value of each loss by name."""
        student, teachers = self.student_output(batch), self.teacher_output(batch)
        cosine = cosine_similarity(student.representation, teachers.representation)
        return {
            "task": (1.0, self.task_loss(student.logits, self.gather(batch.targets))),
            "direction": (self.options.direction.weight, 1 - cosine.mean()),
        }


def train_direction(settings: corrkd.Settings, run: corrkd.Run, seed: int = 0) -> SavedNetwork:
    """Train it with the teacher, initial parameters, batches and masks of a run's seed."""
    experiment = prepare(settings)
    samples, valid = experiment.samples("train"), experiment.samples("valid")
    folder = run.folder / "calls" / f"seed-{seed}" / "teacher" / "teacher"
    teacher = load_network(folder).network.to(experiment.device)
    torch.manual_seed(derived_seed(seed, "init", "student"))  # as student and control began
    network = build_network(
        experiment.target, samples.widths, experiment.frames, settings.student.network.options
    )
    trained = train(
        Direction(network, teachers=teacher_outputs(teacher, samples)),
        samples,
        settings=settings.student,
        validate=lambda network: mean_missing_f1(network, valid),
        seed=seed,  # the batches and masks of student and control
        fabric=make_fabric(settings),
        missing=settings.missing,
    )
    network.load_state_dict(trained.state)
    return SavedNetwork(
        network=network.eval(),
        normalisation=experiment.normalisation,
        target=experiment.target,
        frames=experiment.frames,
        about={"role": "direction", "seed": seed, "epoch": trained.epoch},
    )


if __name__ == "__main__":
    from dataset_from_code import make_dataset

    dataset = make_dataset()
    convert(dataset, Path("calls.safetensors"))
    settings = corrkd.load_settings(
        data={"path": "calls.safetensors"},
        teacher={"epochs": 3},
        student={"epochs": 4},
        evaluation={"draws": 1},
    )
    run = corrkd.run(settings, "runs/calls", overwrite=True)  # teacher, student and control
    saved = train_direction(settings, run)
    save_network(Path("direction"), saved)  # for `corrkd evaluate direction.json`
    table = corrkd.evaluate(saved, dataset)
    print(table[(table["condition"] == "average") & (table["metric"] == "weighted_f1")])
