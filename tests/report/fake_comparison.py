"""Writes a small comparison's folder as `corrkd compare` would, with invented answers and the scores that follow from them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import save_file

from tests.report.fake_run import conditions_of, informative, subsets

MODALITIES: tuple[str, ...] = ("language", "audio", "vision")
QUESTIONS: tuple[str, ...] = ("happy", "sad")
CLASSES: dict[str, list[str]] = {
    "classes": ["low", "middle", "high"],
    "questions": ["no", "yes"],
    "score": ["negative", "non-negative"],
}
ID, GROUP = "s{:03d}", "p{}"  # of samples and persons
KINDS = {
    **dict.fromkeys(("self-mm", "cubemlp", "dmd", "mctn", "transm", "smil", "gcnet"), "baseline"),
    **dict.fromkeys(("late-fusion", "teacher", "no-distillation", "kl", "feature-mse"), "control"),
    **dict.fromkeys(("corrkd-without-scd", "corrkd-without-cpd", "corrkd-without-rcd", "corrkd-kl"), "ablation"),
    "corrkd": "method",
}
TITLES = {name: name.upper() for name in KINDS} | {"corrkd": "CorrKD", "teacher": "Teacher"}
FEW = ("self-mm", "gcnet", "teacher", "no-distillation", "corrkd-without-scd", "corrkd")


def write_fake_comparison(
    out: Path,
    *,
    datasets: Sequence[str] = ("invented",),
    methods: Sequence[str] = FEW,
    seeds: Sequence[int] = (0, 1, 2),
    samples: int = 60,
    persons: int = 8,
    kind: str = "classes",
) -> Path:
    """A comparison's folder. Everything in it follows from the arguments."""
    out.mkdir(parents=True)
    (out / "compare.yaml").write_text(json.dumps({"datasets": {d: {} for d in datasets}}) + "\n", encoding="utf-8")
    for place, dataset in enumerate(datasets):
        write_dataset(out / dataset, methods, seeds, samples, persons, kind, place)
    return out


def write_dataset(
    folder: Path, methods: Sequence[str], seeds: Sequence[int], samples: int, persons: int, kind: str, salt: int
) -> None:
    rng = np.random.default_rng(salt)
    folder.mkdir()
    questions, classes = list(QUESTIONS) if kind == "questions" else [], CLASSES
    card: dict[str, Any] = {
        "corrkd": "0.1.0",
        "torch": "2.13.0",
        "dataset": {
            "name": f"data {folder.name}",
            "modalities": {m: {"width": 5, "frames": 8} for m in MODALITIES},
            "splits": {"train": 300, "test": samples},
        },
        "target": {"name": kind, "kind": kind, "classes": classes[kind], "questions": questions, "cuts": [0.0]},
        "split": "test",
        "projection": MODALITIES[0],
        "conditions": [c for c in conditions_of(MODALITIES, False) if c["kind"] in ("modalities", "ratio")],
        "methods": [
            {
                "name": m,
                "title": TITLES[m],
                "kind": KINDS[m],
                "method": m,
                "selection": "best",
                "trains_on": "complete" if m in ("self-mm", "teacher") else "missing",
            }
            for m in methods
        ],
        "seeds": list(seeds),
        "notes": ["Answers are invented."],
        "groups": {"name": "person", "count": persons},
        "comparison": {"stated": ["Masks: the same for all.", f"Epochs of {folder.name}: 20."]},
    }
    (folder / "run.json").write_text(json.dumps(card), encoding="utf-8")
    (folder / "settings.yaml").write_text("seeds: [0]\n", encoding="utf-8")
    ids = [ID.format(i) for i in range(samples)]
    person = np.arange(samples) % persons
    pd.DataFrame({"id": ids, "group": [GROUP.format(p) for p in person]}).to_csv(folder / "groups.csv", index=False)
    truth = rng.integers(len(classes[kind]), size=(samples, len(questions) or 1))
    rows = reference_rows(card, truth)
    costs = []
    for seed, (place, method) in itertools.product(seeds, enumerate(methods)):
        own = folder / f"seed-{seed}" / method
        own.mkdir(parents=True)
        strength = 0.75 - 0.03 * abs(place - len(methods) + 1)
        rows += write_run(own, card, method, seed, strength, truth, ids, person, rng)
        costs.append((method, seed, 1000 * (place + 1), 10 + seed, 2.0 + seed, 3e8))
    frame = pd.DataFrame(rows, columns=["method", "seed", "condition", "draw", "metric", "value"])
    frame.insert(0, "dataset", folder.name)
    frame.astype({"seed": "Int64"}).to_csv(folder / "results.csv", index=False)
    columns = ["method", "seed", "parameters", "epochs", "train_seconds", "peak_memory_bytes"]
    pd.DataFrame(costs, columns=columns).to_csv(folder / "costs.csv", index=False)


def scores(card: dict[str, Any], truth: npt.NDArray[Any], answers: npt.NDArray[Any]) -> dict[str, float]:
    """Metrics by name, written out here: another way than the package's."""
    names, classes = card["target"]["questions"] or [""], card["target"]["classes"]
    of_class = {
        (q, k): f1(truth[:, q] == k, answers[:, q] == k) for q in range(len(names)) for k in range(len(classes))
    }
    each = [sum((truth[:, q] == k).mean() * of_class[q, k] for k in range(len(classes))) for q in range(len(names))]
    out = {"weighted_f1": float(np.mean(each)), "accuracy": float((truth == answers).mean())}
    if names != [""]:
        return out | {f"weighted_f1/{q}": float(f) for q, f in zip(names, each, strict=True)}
    return out | {f"f1/{c}": of_class[0, k] for k, c in enumerate(classes)}


def f1(truth: npt.NDArray[np.bool_], answers: npt.NDArray[np.bool_]) -> float:
    return float(2 * (truth & answers).sum() / max(truth.sum() + answers.sum(), 1))


def reference_rows(card: dict[str, Any], truth: npt.NDArray[Any]) -> list[tuple[Any, ...]]:
    found = scores(card, truth, np.zeros_like(truth))
    names = [*(c["name"] for c in card["conditions"]), "average"]
    return [("majority", None, name, 0, metric, value) for name in names for metric, value in found.items()]


def write_run(
    folder: Path,
    card: dict[str, Any],
    method: str,
    seed: int,
    strength: float,
    truth: npt.NDArray[Any],
    ids: list[str],
    person: npt.NDArray[Any],
    rng: np.random.Generator,
) -> list[tuple[Any, ...]]:
    """Files of one method and seed; its rows of results.csv."""
    kind, count = card["target"]["kind"], len(card["target"]["classes"])
    rows: list[tuple[Any, ...]] = []
    frames, stored = [], {}
    centres = np.random.default_rng(1).normal(size=(count, 12))
    for condition in card["conditions"]:
        share = strength * informative(condition, MODALITIES) + np.linspace(-0.1, 0.1, person.max() + 1)[person]
        known = rng.random(truth.shape) < share[:, None]
        answers = np.where(known, truth, rng.integers(count, size=truth.shape))
        rows += [(method, seed, condition["name"], 0, m, v) for m, v in scores(card, truth, answers).items()]
        for place, question in enumerate(card["target"]["questions"] or [""]):
            target: npt.NDArray[Any] = truth[:, place]
            prediction: npt.NDArray[Any] = answers[:, place]
            if kind == "score":
                target, prediction = target - 0.5, prediction - 0.5
            about = {"method": method, "condition": condition["name"], "draw": 0, "id": ids, "question": question}
            frames.append(pd.DataFrame({**about, "target": target, "prediction": prediction}))
        if condition["name"] in ("complete", MODALITIES[0]):
            spread = rng.normal(size=(len(truth), 12))
            stored[f"{method}/{condition['name']}"] = (centres[truth[:, 0]] + spread).astype(np.float16)
    table = pd.DataFrame(rows, columns=["method", "seed", "condition", "draw", "metric", "value"])
    missing = table[table["condition"].isin(subsets(MODALITIES)[:-1])]
    rows += [(method, seed, "average", 0, m, v) for m, v in missing.groupby("metric")["value"].mean().items()]
    ratios = table[table["condition"].str.startswith("ratio-") & (table["metric"] == "weighted_f1")]
    rows.append((method, seed, "ratios", 0, "auc_weighted_f1", ratios["value"].mean()))
    pd.concat(frames).sample(frac=1, random_state=seed).to_parquet(folder / "predictions.parquet", index=False)
    save_file(
        {**stored, "targets": truth if kind == "questions" else truth[:, 0]}, folder / "representations.safetensors"
    )
    return rows
