"""The evaluation of all subsets of three modalities on MOSI's test split: `sweep` against one full
pass per subset.

    python benchmarks/evaluation_sweep.py [--threads 2] [--device cuda] [--rounds 15]

The same network answers on both sides; the answers must agree to 1e-5, or the program fails.
"""

from __future__ import annotations

import argparse
import sys

import torch
from side_by_side import MOSI, Program, measure, mosi_experiment, speeds, times_as_fast
from torch import Tensor

from corrkd.data.batches import Samples
from corrkd.data.inputs import Inputs
from corrkd.evaluation.sweep import sweep
from corrkd.experiment.processes import keep_freed_memory
from corrkd.missing.conditions import Condition, subsets
from corrkd.networks.corrkd import CorrKDNetwork
from corrkd.networks.saved import build_network

BATCH = 256
Question = tuple[CorrKDNetwork, Samples, list[Condition]]


def make_question(device: str) -> Question:
    """An untrained network, the test split and the seven subsets."""
    keep_freed_memory()
    experiment = mosi_experiment(device=device)
    samples = experiment.samples("test")
    torch.manual_seed(0)
    settings = experiment.settings.student.network.options
    network = build_network(experiment.target, samples.widths, experiment.frames, settings)
    return network.to(experiment.device).eval(), samples, subsets(samples.modalities)


@torch.no_grad()
def one_by_one(
    network: CorrKDNetwork, samples: Samples, conditions: list[Condition]
) -> list[Tensor]:
    """A full pass for each condition."""
    answers = []
    for condition in conditions:
        parts = []
        for batch in samples.batches(BATCH):
            visible = {
                m: x if m in condition.available else torch.zeros_like(x)
                for m, x in batch.present.items()
            }
            inputs = Inputs(batch.frames, batch.exists, visible).with_lengths(batch.lengths)
            parts.append(torch.softmax(network(inputs).logits, -1))
        answers.append(torch.cat(parts).cpu())
    return answers


def all_at_once(
    network: CorrKDNetwork, samples: Samples, conditions: list[Condition]
) -> list[Tensor]:
    """One pass for all conditions."""
    return [
        torch.from_numpy(result.response)
        for result in sweep(network, samples, conditions, batch_size=BATCH)
    ]


def make_one_by_one(device: str) -> Program:
    question = make_question(device)
    return lambda: one_by_one(*question)


def make_all_at_once(device: str) -> Program:
    question = make_question(device)
    return lambda: all_at_once(*question)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("evaluation_sweep.py: no CUDA device here; leave --device out")

    torch.set_num_threads(asked.threads)
    question = make_question(asked.device)
    answers = zip(one_by_one(*question), all_at_once(*question), strict=True)
    difference = max((a - b).abs().max().item() for a, b in answers)
    if not difference <= 1e-5:
        sys.exit(f"evaluation_sweep.py: the answers differ by {difference:.1e}")

    makers = {"passes": make_one_by_one, "sweep": make_all_at_once}
    seconds = measure(makers, {"device": asked.device}, threads=asked.threads, rounds=asked.rounds)
    count = MOSI["test"]
    print(f"evaluation of all {len(question[2])} subsets, {asked.device}, {asked.threads} threads")
    print(
        f"samples per second, median of {asked.rounds} evaluations each in turn (lowest to highest)"
    )
    print(f"  a pass each  {speeds(count, seconds['passes'])}")
    print(
        f"  corrkd       {speeds(count, seconds['sweep'])}   "
        f"{times_as_fast(seconds['passes'], seconds['sweep'])}"
    )
    print(f"largest difference between the answers: {difference:.1e}")


if __name__ == "__main__":
    main()
