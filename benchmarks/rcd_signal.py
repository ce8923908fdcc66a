"""How much RCD as printed tells a student: python benchmarks/rcd_signal.py RUN

RUN is the folder of a run of `corrkd run` on the built-in dataset. On its training split, with the run's own teachers and students:

- the gradient on the student's logits, root mean square over the numbers of a batch, of the task loss of a student before its first step
  and of RCD with fresh critics;
- RCD at the critics' optimum (two thousand steps of Adam, on batches drawn anew) of a student that answers as the teacher does, of one
  that answers with the teacher's classes reversed, and of one whose answers are the teacher's for other samples;
- RCD's value in the student's first and last epoch.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from corrkd.experiment.prepare import prepare
from corrkd.experiment.run_folder import settings_of
from corrkd.losses import ResponseDisentangledConsistency
from corrkd.networks.saved import build_network, load_network
from corrkd.training.loop import teacher_outputs

NOTHING = 2 * math.log(4)  # of critics that tell nothing


def root_mean_square(loss: Tensor, logits: Tensor) -> float:
    """Of the loss's gradient on the logits."""
    return float(torch.autograd.grad(loss, logits)[0].square().mean().sqrt())


def at_optimum(student: Tensor, teacher: Tensor, labels: Tensor, *, steps: int = 2000, batch: int = 64) -> float:
    """RCD of fixed responses, its critics trained to the end; on 512 samples."""
    generator = torch.Generator().manual_seed(0)
    loss = ResponseDisentangledConsistency(student.shape[1], generator=generator)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randperm(len(student), generator=generator)[:batch]
        optimizer.zero_grad()
        loss(student[rows], teacher[rows], labels[rows]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(loss(student[:512], teacher[:512], labels[:512]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    experiment = prepare(settings_of(run))
    samples = experiment.samples("train")
    rows = []
    for seed in experiment.settings.seeds:
        teacher = teacher_outputs(load_network(run / f"seed-{seed}" / "teacher").network, samples).logits
        torch.manual_seed(seed)
        fresh = build_network(experiment.target, samples.widths, experiment.frames, experiment.settings.network)
        logits = teacher_outputs(fresh, samples).logits[:64].requires_grad_()
        labels = samples.targets
        rcd = ResponseDisentangledConsistency(teacher.shape[1])
        history = pd.read_csv(run / f"seed-{seed}" / "history.csv").query("method == 'student'")["loss/rcd"]
        rows.append(
            {
                "gradient, task": root_mean_square(cross_entropy(logits, labels[:64]), logits),
                "gradient, RCD": root_mean_square(rcd(logits, teacher[:64], labels[:64]), logits),
                "equal": at_optimum(teacher, teacher, labels),
                "reversed": at_optimum(teacher.flip(1), teacher, labels),
                "of other samples": at_optimum(teacher.roll(1, 0), teacher, labels),
                "first epoch": history.iloc[0],
                "last epoch": history.iloc[-1],
            }
        )
    table = pd.DataFrame(rows, index=pd.Index(experiment.settings.seeds, name="seed"))
    print(table.to_string(float_format="{:.5f}".format))
    print(f"\nmean\n{table.mean().to_string(float_format='{:.5f}'.format)}\n\ncritics that tell nothing: {NOTHING:.5f}")


if __name__ == "__main__":
    main()
