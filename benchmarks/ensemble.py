"""What the cost of the teachers would buy without distillation: an ensemble of as many networks,
each trained on incomplete samples.

    python benchmarks/ensemble.py PLAN DATASET [--members 8] [--seeds 10,11,12]

PLAN is a plan of `corrkd compare` such as benchmarks/ablation.yaml, DATASET one of its datasets
with the arm `no-distillation`. Each member is that arm from another start, with another order and
other masks; probabilities are averaged. Printed is the weighted F1 x 100 by condition of the
ensemble and the mean of its members, over seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric

from corrkd.evaluation.judge import tabulate
from corrkd.evaluation.sweep import Result, sweep
from corrkd.experiment.arm import Arm
from corrkd.experiment.experiment import Experiment, prepare
from corrkd.experiment.plan import arms_of, load_plan
from corrkd.experiment.stages import make_method
from corrkd.missing.conditions import COMPLETE, condition, missing_subsets
from corrkd.training.loop import derived_seed, train

CONTROL = "no-distillation"


def member_results(arm: Arm, experiment: Experiment, seed: int, fabric: Fabric) -> list[Result]:
    """Train one member and return its responses on the tested split, under the missing subsets and
    with everything.
    """
    samples, modalities = experiment.samples("train"), experiment.dataset.modalities
    method = make_method(arm, experiment, seed, samples)
    trained = train(
        method,
        samples,
        settings=arm.training,
        validate=lambda network: 0.0,  # the last epoch is kept
        seed=seed,
        fabric=fabric,
        missing=experiment.settings.missing,
    )
    method.student.load_state_dict(trained.state)
    conditions = [*missing_subsets(modalities), condition(COMPLETE, modalities)]
    return sweep(
        method.student, experiment.samples(experiment.settings.evaluation.split), conditions
    )


def averaged(results: list[list[Result]]) -> list[Result]:
    """The mean response of the members, by condition."""
    return [
        Result(
            alike[0].condition, 0, alike[0].rows, np.mean([result.response for result in alike], 0)
        )
        for alike in zip(*results, strict=True)
    ]


def f1(results: list[Result], experiment: Experiment) -> pd.Series:
    """Weighted F1 x 100 by condition."""
    tested = experiment.samples(experiment.settings.evaluation.split)
    table = tabulate(results, experiment.target, tested.targets.cpu().numpy(), tested.modalities)
    chosen = table[table["metric"] == "weighted_f1"]
    return 100 * chosen.groupby("condition", sort=False)["value"].mean()


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")])
    args = parser.parse_args()
    part = load_plan(args.plan).datasets[args.dataset]
    (arm,) = [arm for arm in arms_of(part) if arm.name == CONTROL]
    if arm.training.keep != "last":
        parser.error(
            f"{args.plan}: student.keep is {arm.training.keep}; the members are not validated, "
            f"set it to last"
        )
    experiment = prepare(part.settings)
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    rows = {"ensemble": [], "members": []}
    for seed in args.seeds or part.settings.seeds:
        of_seed = experiment.at(seed)
        members = [
            member_results(arm, of_seed, derived_seed(seed, "ensemble", index) % 2**31, fabric)
            for index in range(args.members)
        ]
        rows["ensemble"].append(f1(averaged(members), of_seed))
        rows["members"].append(
            pd.concat([f1(member, of_seed) for member in members], axis=1).mean(axis=1)
        )
        print(
            f"seed {seed}: {rows['ensemble'][-1]['average']:.2f}, members "
            f"{rows['members'][-1]['average']:.2f}"
        )
    for name, of_seeds in rows.items():
        table = pd.concat(of_seeds, axis=1)
        print(
            name,
            (
                table.mean(axis=1).round(2).astype(str)
                + " sd "
                + table.std(axis=1).round(2).astype(str)
            ).to_dict(),
        )
        table.to_csv(f"{name}.csv")


if __name__ == "__main__":
    main()
