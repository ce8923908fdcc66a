"""Writes a small run folder as a run would, with invented numbers, for the report to read."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

METHODS = ("student", "teacher", "control")
TITLES = {"student": "CorrKD student", "teacher": "Teacher", "control": "No-distillation control"}
STRENGTH = {"majority": 0.0, "teacher": 0.55, "control": 0.78, "student": 0.8, "bayes": 1.0}


def subsets(modalities: Sequence[str]) -> list[str]:
    """Condition names in the paper's order, written out for the tests' own use."""
    names = ["+".join(c) for size in range(1, len(modalities)) for c in itertools.combinations(modalities, size)]
    return [*names, "complete"]


def available(name: str, modalities: Sequence[str]) -> list[str]:
    return list(modalities) if name == "complete" else [m for m in modalities if m in name.split("+")]


def write_fake_run(
    folder: Path,
    *,
    modalities: Sequence[str] = ("language", "audio", "vision"),
    classes: Sequence[str] = ("low", "middle", "high"),
    questions: Sequence[str] = (),
    kind: str = "classes",
    seeds: Sequence[int] = (0, 1, 2),
    draws: int = 2,
    bayes: bool = True,
    samples: int = 90,
    natural: bool = True,
) -> Path:
    """A complete run folder. Everything in it follows from the arguments."""
    rng = np.random.default_rng(7)
    conditions = conditions_of(modalities, natural)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(
        "preset: synthetic\nseeds: [0, 1, 2]\nstudent:\n  lr: 0.001\n", encoding="utf-8"
    )
    labels = questions or classes
    card = {
        "corrkd": "0.1.0",
        "torch": "2.13.0",
        "dataset": {
            "name": "invented",
            "layout": "npz arrays",
            "sha256": "ab" * 32,
            "modalities": {m: {"width": 5 + i, "frames": 8} for i, m in enumerate(modalities)},
            "splits": {"train": 300, "valid": 60, "test": samples},
            "labels": {s: {c: 20 + 3 * i for i, c in enumerate(labels)} for s in ("train", "valid", "test")},
        },
        "target": {
            "name": "tertiles",
            "kind": kind,
            "classes": list(classes),
            "questions": list(questions),
            "cuts": [float(k) for k in range(len(classes) - 1)],
        },
        "split": "test",
        "conditions": conditions,
        "methods": [{"name": m, "title": TITLES[m], "selection": selection(m)} for m in METHODS],
        "seeds": list(seeds),
        "notes": ["Features are invented.", "3 samples without a frame left out."],
    }
    (folder / "run.json").write_text(json.dumps(card, indent=2), encoding="utf-8")
    results(rng, card, seeds, draws, bayes).to_csv(folder / "results.csv", index=False)
    for seed in seeds:
        write_seed(folder / f"seed-{seed}", rng, card, samples)
    return folder


def selection(method: str) -> str:
    if method == "teacher":
        return "highest weighted F1 on the complete validation split, earliest on ties"
    return "highest mean weighted F1 over the missing subsets of the validation split, earliest on ties"


def conditions_of(modalities: Sequence[str], natural: bool) -> list[dict[str, Any]]:
    every = list(modalities)
    out = [
        {"name": n, "kind": "modalities", "available": available(n, modalities), "ratio": None}
        for n in subsets(modalities)
    ]
    ratios = [("ratio", r / 10) for r in range(11)] + [("burst", 0.3), ("burst", 0.6), ("late", 0.5), ("noise", 0.5)]
    out += [{"name": f"{k}-{r:.1f}", "kind": k, "available": every, "ratio": r} for k, r in ratios]
    return out + ([{"name": "natural", "kind": "natural", "available": every, "ratio": None}] if natural else [])


def results(
    rng: np.random.Generator, card: dict[str, Any], seeds: Sequence[int], draws: int, bayes: bool
) -> pd.DataFrame:
    modalities, target = list(card["dataset"]["modalities"]), card["target"]
    metrics = [
        "weighted_f1",
        "accuracy",
        "ece",
        *(f"f1/{c}" for c in target["classes"] if target["kind"] != "questions"),
    ]
    metrics += [f"weighted_f1/{q}" for q in target["questions"]]
    metrics += ["mae", "corr"] if target["kind"] == "score" else []
    runs = [(m, s) for m in METHODS for s in seeds] + [("majority", None)] + ([("bayes", None)] if bayes else [])
    rows = []
    for method, seed in runs:
        own = metrics if method != "bayes" else ["weighted_f1", "accuracy"]
        kept: dict[tuple[str, str], float] = {}
        for condition in card["conditions"]:
            information = informative(condition, modalities)
            random = condition["kind"] in ("ratio", "burst", "noise") and condition["ratio"] not in (0.0, 1.0)
            for draw, metric in itertools.product(range(draws if random else 1), own):
                value = invented(rng, metric, method, information)
                if metric == "corr" and method == "majority":
                    value = math.nan
                kept[condition["name"], metric] = value
                rows.append((method, seed, condition["name"], draw, metric, value))
        missing = subsets(modalities)[:-1] or ["complete"]
        rows += [(method, seed, "average", 0, m, float(np.mean([kept[c, m] for c in missing]))) for m in own]
        if method != "bayes":
            area = np.mean([kept[c["name"], "weighted_f1"] for c in card["conditions"] if c["kind"] == "ratio"])
            rows.append((method, seed, "ratios", 0, "auc_weighted_f1", float(area)))
    frame = pd.DataFrame(rows, columns=["method", "seed", "condition", "draw", "metric", "value"])
    frame.insert(0, "dataset", card["dataset"]["name"])
    return frame.astype({"seed": "Int64"})


def informative(condition: dict[str, Any], modalities: Sequence[str]) -> float:
    """How much of the truth is left, 0 to 1: the first modality tells most."""
    weight = {m: 1 / (i + 1) for i, m in enumerate(modalities)}
    share = sum(weight[m] for m in condition["available"]) / sum(weight.values())
    lost = condition["ratio"] or 0.0
    return share**0.5 * (1 - lost) ** 0.4


def invented(rng: np.random.Generator, metric: str, method: str, information: float) -> float:
    noise = 0.0 if method in ("majority", "bayes") else rng.normal(0, 0.008)
    if metric == "ece":
        return abs(0.05 + 0.1 * (1 - information) + noise)
    if metric == "mae":
        return 1.4 - 0.6 * STRENGTH[method] * information + noise
    if metric == "corr":
        return STRENGTH[method] * information * 0.8 + noise
    return 0.24 + 0.55 * STRENGTH[method] * information + noise + (0.12 if metric == "accuracy" else 0.0)


def write_seed(folder: Path, rng: np.random.Generator, card: dict[str, Any], samples: int) -> None:
    folder.mkdir()
    history(rng).to_csv(folder / "history.csv", index=False)
    modalities, target = list(card["dataset"]["modalities"]), card["target"]
    asked = target["questions"] or [""]
    count = 2 if target["questions"] else len(target["classes"])
    truth = rng.integers(count, size=(samples, len(asked)))
    scores = rng.normal(size=(samples, 1))
    predictions, stored = [], {}
    centres = rng.normal(size=(count, 12))
    for method, condition in itertools.product(METHODS, [c for c in card["conditions"] if c["kind"] == "modalities"]):
        strength = STRENGTH[method] * informative(condition, modalities)
        for column, question in enumerate(asked):
            block: dict[str, Any] = {"method": method, "condition": condition["name"], "draw": 0}
            block |= {"id": [f"s{i}" for i in range(samples)], "question": question}
            if target["kind"] == "score":
                block |= {"target": scores[:, 0], "prediction": scores[:, 0] * strength + rng.normal(0, 0.5, samples)}
            else:
                logits = rng.normal(size=(samples, count)) + 4 * strength * np.eye(count)[truth[:, column]]
                odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
                block |= {"target": truth[:, column], "prediction": odds.argmax(1)}
                block |= {f"p_{k}": odds[:, k].astype(np.float32) for k in range(count)}
            predictions.append(pd.DataFrame(block))
        spread = rng.normal(size=(samples, 12)) / (0.3 + 2 * strength)
        stored[f"{method}/{condition['name']}"] = (centres[truth[:, 0]] + spread).astype(np.float16)
    pd.concat(predictions).to_parquet(folder / "predictions.parquet", index=False)
    stored["targets"] = {"questions": truth, "score": scores[:, 0], "classes": truth[:, 0]}[target["kind"]]
    save_file(stored, folder / "representations.safetensors")
    (folder / "timings.csv").write_text("stage,seconds\nteacher,1.0\n", encoding="utf-8")


def history(rng: np.random.Generator) -> pd.DataFrame:
    frames = []
    for method, epochs in zip(METHODS, (20, 12, 20), strict=True):
        epoch = np.arange(epochs)
        fall = np.exp(-epoch / 6)
        task = 0.75 + 0.4 * fall + rng.normal(0, 0.01, epochs)
        own = {"loss/task": task}
        if method == "student":
            own |= {"loss/scd": 0.6 + 0.6 * fall, "loss/cpd": 0.02 + 0.1 * fall, "loss/rcd": 2.3 + 0.4 * fall}
        score = 0.6 - 0.3 * fall + rng.normal(0, 0.01, epochs)
        own = {"method": method, "epoch": epoch, "loss/total": sum(own.values()), **own}
        frames.append(pd.DataFrame({**own, "valid/weighted_f1": score, "lr": 1e-3}))
    return pd.concat(frames)
