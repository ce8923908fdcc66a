"""Write a small plan's folder like `corrkd run` or `corrkd compare`, with invented predictions and
their scores.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from safetensors.numpy import save_file

from corrkd.report.run_folder import RunFolder

RUN_ARMS = ("teacher", "student", "control")
COMPARED_ARMS = ("self-mm", "gcnet", "teacher", "no-distillation", "corrkd-without-scd", "corrkd")
KINDS = {
    **dict.fromkeys(("self-mm", "gcnet"), "baseline"),
    **dict.fromkeys(("teacher", "control", "no-distillation", "kl"), "control"),
    "corrkd-without-scd": "ablation",
    **dict.fromkeys(("student", "corrkd"), "method"),
}
TITLES = {
    **{name: name.upper() for name in KINDS},
    "teacher": "Teacher",
    "student": "CorrKD student",
    "control": "No-distillation control",
    "corrkd": "CorrKD",
}
STRENGTH = {"majority": 0.0, "teacher": 0.5, "control": 0.7, "student": 0.72, "bayes": 0.95}
COMPLETE_ARMS = ("self-mm", "teacher")  # trained on complete samples
CLASSES = {
    "classes": ("low", "middle", "high"),
    "questions": ("no", "yes"),
    "score": ("negative", "non-negative"),
}
QUESTIONS = ("happy", "sad")
ID, GROUP = "s{:03d}", "p{}"  # of samples and persons
DATASET = "invented"


def write_fake_run(
    out: Path,
    *,
    datasets: Sequence[str] = (DATASET,),
    arms: Sequence[str] = RUN_ARMS,
    modalities: Sequence[str] = ("language", "audio", "vision"),
    classes: Sequence[str] | None = None,
    questions: Sequence[str] | None = None,
    kind: str = "classes",
    seeds: Sequence[int] = (0, 1, 2),
    samples: int = 60,
    persons: int = 8,
    draws: int = 2,
    bayes: bool = True,
    natural: bool = True,
) -> Path:
    """Write a plan's folder without its report. Everything in it follows from the arguments."""
    out.mkdir(parents=True)
    tree = {"datasets": {dataset: {"settings": {"student": {"lr": 0.001}}} for dataset in datasets}}
    (out / "plan.yaml").write_text(json.dumps(tree, indent=1), encoding="utf-8")
    for salt, dataset in enumerate(datasets):
        card = card_of(
            dataset,
            arms,
            modalities,
            CLASSES[kind] if classes is None else classes,
            () if kind != "questions" else QUESTIONS if questions is None else questions,
            kind,
            seeds,
            samples,
            persons,
            conditions_of(modalities, natural),
        )
        write_dataset(
            out / dataset, card, samples, persons, draws, bayes, np.random.default_rng(salt)
        )
    return out


def write_fake_comparison(out: Path, **options: Any) -> Path:
    """Write the folder of a comparison: `write_fake_run` with its arms, and nothing random in the
    conditions.
    """
    return write_fake_run(
        out, **{"arms": COMPARED_ARMS, "draws": 1, "bayes": False, "natural": False, **options}
    )


def opened(out: Path, dataset: str = DATASET) -> RunFolder:
    """Open a dataset's folder."""
    return RunFolder.open(out / dataset)


def subsets(modalities: Sequence[str]) -> list[str]:
    """Return condition names in the paper's order, independently of the package."""
    names = [
        "+".join(c)
        for size in range(1, len(modalities))
        for c in itertools.combinations(modalities, size)
    ]
    return [*names, "complete"]


def edit_card(out: Path, folder: str = DATASET, /, **changes: Any) -> None:
    """Replace keys of run.json."""
    path = out / folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def card_of(
    dataset: str,
    arms: Sequence[str],
    modalities: Sequence[str],
    classes: Sequence[str],
    questions: Sequence[str],
    kind: str,
    seeds: Sequence[int],
    samples: int,
    persons: int,
    conditions: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "format": 2,
        "corrkd": "0.2.0",
        "torch": "2.13.0",
        "python": "3.11",
        "dataset": {
            "name": f"data {dataset}" if dataset != DATASET else DATASET,
            "layout": "npz arrays",
            "sha256": "ab" * 32,
            "modalities": {m: {"width": 5 + i, "frames": 8} for i, m in enumerate(modalities)},
            "splits": {"train": 300, "valid": 60, "test": samples},
            "labels": {
                s: {c: 20 + 3 * i for i, c in enumerate(questions or classes)}
                for s in ("train", "valid", "test")
            },
            "missing_frames": {
                modalities[-1]: {
                    "train": {
                        "frames": 2400,
                        "missing": 600,
                        "reasons": {"no <b>face</b> | none": 450, "stream over": 30},
                    },
                    "test": {"frames": 480, "missing": 0},
                }
            },
        },
        "target": {
            "name": "tertiles",
            "kind": kind,
            "classes": list(classes),
            "questions": list(questions),
            "cuts": [0.0] if kind == "score" else [],
        },
        "split": "test",
        "projection": modalities[0],
        "conditions": conditions,
        "methods": [
            {
                "name": arm,
                "title": TITLES[arm],
                "selection": "best",
                "method": arm,
                "kind": KINDS[arm],
                "trains_on": "complete" if arm in COMPLETE_ARMS else "missing",
            }
            for arm in arms
        ],
        "reference": next(arm for arm in ("student", "corrkd") if arm in arms),
        "control": next((arm for arm in ("control", "no-distillation") if arm in arms), None),
        "seeds": list(seeds),
        "notes": ["Features are invented.", "3 samples without a frame left out."],
        "groups": {"name": "person", "count": persons},
        "protocol": ["Masks: the same for all.", f"Epochs of {dataset}: 20."],
    }


def conditions_of(modalities: Sequence[str], natural: bool) -> list[dict[str, Any]]:
    every = list(modalities)

    def available(name: str) -> list[str]:
        return every if name == "complete" else [m for m in every if m in name.split("+")]

    out = [
        {"name": n, "kind": "modalities", "available": available(n), "ratio": None}
        for n in subsets(modalities)
    ]
    ratios = [("ratio", r / 10) for r in range(11)]
    if natural:
        ratios += [("burst", 0.3), ("burst", 0.6), ("late", 0.5), ("noise", 0.5)]
    out += [{"name": f"{k}-{r:.1f}", "kind": k, "available": every, "ratio": r} for k, r in ratios]
    return out + (
        [{"name": "natural", "kind": "natural", "available": every, "ratio": None}]
        if natural
        else []
    )


def informative(condition: Mapping[str, Any], modalities: Sequence[str]) -> float:
    """Return how much information remains, 0 to 1; the first modality carries most."""
    weight = {m: 1 / (i + 1) for i, m in enumerate(modalities)}
    share = sum(weight[m] for m in condition["available"]) / sum(weight.values())
    ratio = condition["ratio"] or 0.0
    return float(share**0.5 * (1 - ratio) ** 0.4)


def write_dataset(
    folder: Path,
    card: dict[str, Any],
    samples: int,
    persons: int,
    draws: int,
    bayes: bool,
    rng: np.random.Generator,
) -> None:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(card), encoding="utf-8")
    (folder / "settings.yaml").write_text("seeds: [0]\n", encoding="utf-8")
    ids, person = [ID.format(i) for i in range(samples)], np.arange(samples) % persons
    pd.DataFrame({"id": ids, "group": [GROUP.format(p) for p in person]}).to_csv(
        folder / "groups.csv", index=False
    )
    truth = rng.integers(
        len(card["target"]["classes"]), size=(samples, len(card["target"]["questions"]) or 1)
    )
    references = ["majority", *(["bayes"] if bayes else [])]
    rows = [row for name in references for row in reference_rows(name, card, truth, rng)]
    costs = []
    arms = [method["name"] for method in card["methods"]]
    for seed, (index, arm) in itertools.product(card["seeds"], enumerate(arms)):
        strength = STRENGTH.get(arm, 0.75 - 0.03 * abs(index - len(arms) + 1))
        arm_folder = folder / f"seed-{seed}" / arm
        arm_folder.mkdir(parents=True)
        rows += write_arm(arm_folder, card, arm, seed, strength, truth, ids, person, draws, rng)
        costs.append((arm, seed, 1000 * (index + 1), 10 + seed, 2.0 + seed, 3e8))
    frame = pd.DataFrame(rows, columns=["method", "seed", "condition", "draw", "metric", "value"])
    frame.insert(0, "dataset", folder.name)
    frame.astype({"seed": "Int64"}).to_csv(folder / "results.csv", index=False)
    columns = ["method", "seed", "parameters", "epochs", "train_seconds", "peak_memory_bytes"]
    pd.DataFrame(costs, columns=columns).to_csv(folder / "costs.csv", index=False)


def scores(
    card: Mapping[str, Any], truth: npt.NDArray[Any], predicted: npt.NDArray[Any]
) -> dict[str, float]:
    """Compute metrics by name, independently of the package."""
    names, classes = card["target"]["questions"] or [""], card["target"]["classes"]
    of_class = {
        (q, k): f1(truth[:, q] == k, predicted[:, q] == k)
        for q in range(len(names))
        for k in range(len(classes))
    }
    each = [
        sum((truth[:, q] == k).mean() * of_class[q, k] for k in range(len(classes)))
        for q in range(len(names))
    ]
    out = {"weighted_f1": float(np.mean(each)), "accuracy": float((truth == predicted).mean())}
    if names != [""]:
        return out | {f"weighted_f1/{q}": float(f) for q, f in zip(names, each, strict=True)}
    return out | {f"f1/{c}": of_class[0, k] for k, c in enumerate(classes)}


def f1(truth: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]) -> float:
    return float(2 * (truth & predicted).sum() / max(truth.sum() + predicted.sum(), 1))


def random_scores(kind: str, strength: float, rng: np.random.Generator) -> dict[str, float]:
    """Draw metrics that are not computed from predictions."""
    noise = rng.normal(0, 0.008)
    if kind == "score":
        return {"mae": 1.4 - 0.6 * strength + noise, "corr": 0.8 * strength + noise}
    return {"ece": abs(0.15 - 0.1 * strength + noise)}


def reference_rows(
    name: str, card: Mapping[str, Any], truth: npt.NDArray[Any], rng: np.random.Generator
) -> list[tuple[Any, ...]]:
    """Return the rows of a floor or ceiling, which have no seed."""
    rows: list[tuple[Any, ...]] = []
    for condition in card["conditions"]:
        share = STRENGTH[name] * informative(condition, list(card["dataset"]["modalities"]))
        predicted = np.where(rng.random(truth.shape) < share, truth, 0)
        metrics = scores(card, truth, predicted)
        if name == "bayes":
            metrics = {metric: metrics[metric] for metric in ("weighted_f1", "accuracy")}
        elif card["target"]["kind"] == "score":
            metrics |= {"mae": 1.4, "corr": math.nan}
        rows += [
            (name, None, condition["name"], 0, metric, value) for metric, value in metrics.items()
        ]
    return rows + averages(rows, card, with_area=name != "bayes")


def averages(
    rows: list[tuple[Any, ...]], card: Mapping[str, Any], *, with_area: bool = True
) -> list[tuple[Any, ...]]:
    """Return the rows of means over the missing subsets, and of the area under the ratios."""
    method, seed = rows[0][:2]
    table = pd.DataFrame(rows, columns=["method", "seed", "condition", "draw", "metric", "value"])
    missing = subsets(list(card["dataset"]["modalities"]))[:-1] or ["complete"]
    means = table[table["condition"].isin(missing)].groupby("metric", sort=False)["value"].mean()
    out = [(method, seed, "average", 0, metric, value) for metric, value in means.items()]
    if with_area:
        area = table[
            table["condition"].str.startswith("ratio-") & (table["metric"] == "weighted_f1")
        ]["value"].mean()
        out.append((method, seed, "ratios", 0, "auc_weighted_f1", area))
    return out


def write_arm(
    folder: Path,
    card: Mapping[str, Any],
    arm: str,
    seed: int,
    strength: float,
    truth: npt.NDArray[Any],
    ids: list[str],
    person: npt.NDArray[Any],
    draws: int,
    rng: np.random.Generator,
) -> list[tuple[Any, ...]]:
    """Write the files of one arm and seed; return its rows of results.csv."""
    modalities, target = list(card["dataset"]["modalities"]), card["target"]
    num_classes = len(target["classes"])
    rows: list[tuple[Any, ...]] = []
    frames, stored = [], {}
    centres = np.random.default_rng(1).normal(size=(num_classes, 12))
    for condition in card["conditions"]:
        is_random = condition["kind"] in ("ratio", "burst", "noise") and condition["ratio"] not in (
            0.0,
            1.0,
        )
        share = strength * informative(condition, modalities)
        for draw in range(draws if is_random else 1):
            by_person = share + np.linspace(-0.1, 0.1, person.max() + 1)[person]
            correct = rng.random(truth.shape) < by_person[:, None]
            predicted = np.where(correct, truth, rng.integers(num_classes, size=truth.shape))
            metrics = scores(card, truth, predicted) | random_scores(target["kind"], share, rng)
            rows += [
                (arm, seed, condition["name"], draw, metric, value)
                for metric, value in metrics.items()
            ]
            about = {"method": arm, "condition": condition["name"], "draw": draw, "id": ids}
            frames += prediction_frames(about, target, truth, predicted, rng)
        if condition["name"] in ("complete", *subsets(modalities)):
            spread = rng.normal(size=(len(truth), 12)) / (0.3 + 2 * share)
            stored[f"{arm}/{condition['name']}"] = (centres[truth[:, 0]] + spread).astype(
                np.float16
            )
    pd.concat(frames).sample(frac=1, random_state=seed).to_parquet(
        folder / "predictions.parquet", index=False
    )
    stored["targets"] = {"questions": truth, "score": truth[:, 0] - 0.5, "classes": truth[:, 0]}[
        target["kind"]
    ]
    save_file(stored, folder / "representations.safetensors")
    history(arm, rng).to_csv(folder / "history.csv", index=False)
    (folder / "timings.csv").write_text("stage,seconds\ntraining,1.0\n", encoding="utf-8")
    return rows + averages(rows, card)


def prediction_frames(
    about: Mapping[str, Any],
    target: Mapping[str, Any],
    truth: npt.NDArray[Any],
    predicted: npt.NDArray[Any],
    rng: np.random.Generator,
) -> Iterable[pd.DataFrame]:
    """Yield rows of predictions.parquet, by question."""
    for index, question in enumerate(target["questions"] or [""]):
        expected, prediction = truth[:, index], predicted[:, index]
        if target["kind"] == "score":
            yield pd.DataFrame(
                {
                    **about,
                    "question": question,
                    "target": expected - 0.5,
                    "prediction": prediction - 0.5,
                }
            )
            continue
        odds = np.exp(rng.normal(size=(len(truth), len(target["classes"]))))
        odds[np.arange(len(truth)), prediction] += odds.max(1)  # the prediction is the likeliest
        shares = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
        columns = {f"p_{k}": shares[:, k] for k in range(shares.shape[1])}
        yield pd.DataFrame(
            {**about, "question": question, "target": expected, "prediction": prediction, **columns}
        )


def history(arm: str, rng: np.random.Generator) -> pd.DataFrame:
    """Return losses and validation scores by epoch; the last epoch is kept, best or not."""
    epoch = np.arange(1, 13 if arm == "student" else 21)
    fall = np.exp(-epoch / 6)
    losses = {"loss/task": 0.75 + 0.4 * fall + rng.normal(0, 0.01, len(epoch))}
    if KINDS[arm] in ("method", "ablation"):
        losses |= {
            "loss/scd": 0.6 + 0.6 * fall,
            "loss/cpd": 0.02 + 0.1 * fall,
            "loss/rcd": 2.3 + 0.4 * fall,
        }
    if KINDS[arm] == "baseline":
        losses |= {"loss/reconstruction": 1.0 + fall}
    score = 0.6 - 0.3 * fall + rng.normal(0, 0.01, len(epoch))
    kept = (epoch == epoch.max()).astype(int)
    columns = {
        "method": arm,
        "epoch": epoch,
        "kept": kept,
        "loss/total": sum(losses.values()),
        **losses,
    }
    return pd.DataFrame({**columns, "valid/weighted_f1": score, "lr": 1e-3})
