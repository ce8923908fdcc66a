"""How much RCD as printed tells a student: python benchmarks/rcd_signal.py RUN

RUN is the folder of `corrkd run --preset synthetic`. On its training split, with the run's own
teachers:

- the gradient on the logits of a student before its first step, root mean square over the numbers
  of a batch of 64: of the task loss, and of RCD with fresh critics (each seed);
- RCD with critics trained to the end on responses that stay (the first seed): of a student that
  answers as the teacher does, of one that answers with the teacher's classes in reverse order, and
  of one whose responses are the teacher's for other samples;
- RCD in the student's first and last epoch (each seed).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from corrkd.experiment.experiment import prepare
from corrkd.experiment.folder import settings_of
from corrkd.losses import ResponseDisentangledConsistency
from corrkd.networks.saved import build_network, dataset_folder, load_network
from corrkd.training.loop import teacher_outputs

BATCH = 64


def root_mean_square(loss: Tensor, logits: Tensor) -> float:
    """Of the loss's gradient on the logits."""
    return float(torch.autograd.grad(loss, logits)[0].square().mean().sqrt())


def with_trained_critics(
    student: Tensor, teacher: Tensor, labels: Tensor, *, steps: int = 6000
) -> float:
    """RCD of logits that stay as they are, once its critics have learned what they can; on 512
    samples.
    """
    generator = torch.Generator().manual_seed(0)
    loss = ResponseDisentangledConsistency(student.shape[1], generator=generator)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randperm(len(student), generator=generator)[:BATCH]
        optimizer.zero_grad()
        loss(student[rows], teacher[rows], labels[rows]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(loss(student[:512], teacher[:512], labels[:512]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    run = dataset_folder(parser.parse_args().run)
    assert run is not None, "no run there"
    experiment = prepare(settings_of(run))
    samples, seeds = experiment.samples("train"), experiment.settings.seeds
    chosen = experiment.settings.student.network
    labels = samples.targets
    teachers = {
        seed: teacher_outputs(
            load_network(run / f"seed-{seed}" / "teacher" / "teacher").network, samples
        ).logits
        for seed in seeds
    }
    rows = []
    for seed, teacher in teachers.items():
        torch.manual_seed(seed)
        student = build_network(
            experiment.target, samples.widths, experiment.frames, chosen.options, chosen.class_
        )
        logits = teacher_outputs(student, samples).logits[:BATCH].requires_grad_()
        rcd = ResponseDisentangledConsistency(teacher.shape[1])
        history = pd.read_csv(run / f"seed-{seed}" / "student" / "history.csv")["loss/rcd"]
        rows.append(
            {
                "gradient, task": root_mean_square(cross_entropy(logits, labels[:BATCH]), logits),
                "gradient, RCD": root_mean_square(
                    rcd(logits, teacher[:BATCH], labels[:BATCH]), logits
                ),
                "first epoch": history.iloc[0],
                "last epoch": history.iloc[-1],
            }
        )
    table = pd.DataFrame(rows, index=pd.Index(seeds, name="seed"))
    print(table.to_string(float_format="{:.5f}".format))
    teacher = teachers[seeds[0]]
    print(
        f"\nRCD with trained critics, seed {seeds[0]}; critics that tell nothing: "
        f"{2 * math.log(4):.3f}"
    )
    for name, student in {
        "equal": teacher,
        "classes reversed": teacher.flip(1),
        "of other samples": teacher.roll(1, 0),
    }.items():
        print(f"  {name:<18}{with_trained_critics(student, teacher, labels):.3f}")


if __name__ == "__main__":
    main()
