"""A missing condition, tested from Python: every second frame is missing.

python examples/extending/condition.py     tests a released student under it
"""

from __future__ import annotations

import torch
from torch import Tensor

import corrkd
from corrkd.data.batches import Batch
from corrkd.data.synthetic import SyntheticSpec, make
from corrkd.evaluation.judge import samples_of, tabulate
from corrkd.evaluation.sweep import sweep
from corrkd.missing.conditions import Condition


class Halved(Condition):
    """Every second frame of every modality is missing, as at half the frame rate."""

    kind = "halved"
    meaning = "every second frame missing (halved)"

    def dropped(self, batch: Batch, *, seed: int, draw: int) -> dict[str, Tensor]:
        """Return True for the frames to drop, (N, T) by modality."""
        return {m: (x.cumsum(1) % 2 == 0) & x for m, x in batch.exists.items()}


if __name__ == "__main__":
    student = corrkd.load_student("zoo:synthetic")
    dataset = student.fit(make(SyntheticSpec()))
    test = samples_of(student, dataset, "test", device=torch.device("cpu"))
    halved = Halved(name="halved", available=dataset.modalities)
    results = sweep(student.network, test, [halved])
    table = tabulate(results, test.target, test.targets.numpy(), test.modalities)
    print(table[table["metric"] == "weighted_f1"])
