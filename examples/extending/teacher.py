"""An external teacher: any model whose logits for the training samples can be had.

python examples/extending/teacher.py     trains a student from a function's logits
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import corrkd
from corrkd.data.convert import convert


def judge(ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return logits (N, 3) in the order of the classes, here random; a pair of representations
    (N, D) and logits is possible too.
    """
    return np.random.default_rng(0).normal(size=(len(ids), 3))


if __name__ == "__main__":
    from dataset_from_code import make_dataset

    convert(make_dataset(), Path("calls.safetensors"))
    common = {
        "data": {"path": "calls.safetensors"},
        "student": {"epochs": 2, "method": "kl"},
        "evaluation": {"draws": 1},
    }
    path = corrkd.ask_teacher(judge, corrkd.load_settings(**common), "judge.npz")
    settings = corrkd.load_settings(teacher={"outputs": path, "temperature": 2.0}, **common)
    run = corrkd.run(settings, "runs/judged", overwrite=True)  # no teacher is trained
    print(sorted(run.results["method"].unique()))
