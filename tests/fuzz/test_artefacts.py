"""Mutated settings, models and run folders: each is read, or refused in one short line; 50 cases a
target, 2,000 in the slow tests.
"""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from corrkd import zoo
from corrkd.data.convert import convert
from corrkd.data.load import load_dataset
from corrkd.errors import CorrKDError
from corrkd.experiment.budget import Budget, read_budget
from corrkd.experiment.plan import load_plan, read_plan
from corrkd.experiment.settings import load_settings
from corrkd.missing.conditions import standard_conditions
from corrkd.missing.manifest import load_manifest, make_manifest, save_manifest
from corrkd.networks.saved import load_network, save_network
from corrkd.parsing import DIGEST, json_text, with_digest
from corrkd.presets import preset_text
from corrkd.report import plain_report, tables
from corrkd.report.run_folder import AbsentError, RunFolder, open_datasets
from corrkd.report.standings import method_counts
from corrkd.serve.predictor import Predictor
from corrkd.settings import EvaluationSettings
from corrkd.training.checkpoint import load_checkpoint, save_checkpoint
from tests.conftest import make_dataset, make_samples
from tests.experiment.conftest import tiny
from tests.fuzz.mutate import mutate
from tests.networks.test_saved import saved
from tests.report.fake_run import write_fake_comparison
from tests.serve.conftest import student


@dataclass(frozen=True)
class Target:
    """Valid files by name, the function that reads their folder, and one that repairs the checksums
    of mutated files.
    """

    files: dict[str, bytes]
    read: Callable[[Path], object]
    repaired: Callable[[dict[str, bytes]], dict[str, bytes]] = lambda files: files


def folder_files(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def settings_target(tmp: Path) -> Target:
    files = {"preset.yaml": preset_text("corrkd-plus").encode()}
    files["settings.yaml"] = load_settings(**tiny()).to_yaml().encode()
    return Target(files, lambda folder: [load_settings(path) for path in folder.glob("*.yaml")])


def plan_target(tmp: Path) -> Target:
    tree = {
        "datasets": {
            "a": {
                "settings": {"preset": "synthetic", "student": {"lr": 0.1}},
                "arms": {"kl": {"method": {"kl": {"weight": 2.0}}}},
            },
            "b": {"epochs": {"kl": 3}},
        },
        "arms": {"kl": {"epochs": 2}, "gcnet": {"network": {"past": 1}}},
        "seeds": [1, 2],
        "budget": {"gain": 0.5, "doublings": 2},
        "jobs": 2,
    }
    (tmp / "mine.yaml").write_text(json.dumps(tree, indent=1))
    (tmp / "plan.yaml").write_text(load_plan(tmp / "mine.yaml").to_yaml())
    files = folder_files(tmp, "mine.yaml", "plan.yaml")

    def read(folder: Path) -> None:
        load_plan(folder / "mine.yaml")
        read_plan(folder)

    return Target(files, read)


def card_target(tmp: Path) -> Target:
    save_network(tmp / "student", saved())
    card = json.loads((tmp / "student.json").read_text())
    del card[DIGEST]
    (tmp / "student.json").write_text(json_text(card))

    def repaired(files: dict[str, bytes]) -> dict[str, bytes]:
        sums = (
            hashlib.sha256(data).hexdigest().encode()
            for data in (tensors, files["student.safetensors"])
        )
        return {**files, "student.json": files["student.json"].replace(*sums)}

    files = folder_files(tmp, "student.json", "student.safetensors")
    tensors = files["student.safetensors"]
    return Target(files, lambda folder: load_network(folder / "student"), repaired)


def converted_target(tmp: Path) -> Target:
    path = tmp / "x.safetensors"
    convert(make_dataset(), path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    about = header["__metadata__"].pop("corrkd").encode()

    def repaired(files: dict[str, bytes]) -> dict[str, bytes]:
        """Put the metadata into the header, as a text within a text, and its length before it."""
        text = files["header"].replace(
            b'"__metadata__": {}',
            b'"__metadata__": {"corrkd": %s}'
            % json.dumps(files["about"].decode(errors="replace")).encode(),
        )
        return {"x.safetensors": len(text).to_bytes(8, "little") + text + files["tensors"]}

    files = {"about": about, "header": json.dumps(header).encode(), "tensors": content[start:]}
    return Target(
        files, lambda folder: load_dataset(folder / "x.safetensors", targets=False), repaired
    )


def run_target(tmp: Path) -> Target:
    write_fake_comparison(tmp / "out", arms=("corrkd", "kl"), seeds=(0,), samples=12)
    names = [
        str(p.relative_to(tmp / "out")) for p in sorted((tmp / "out").rglob("*")) if p.is_file()
    ]

    def read(folder: Path) -> None:
        plain_report(folder)
        for run in open_datasets(folder).values():
            for reader in (method_counts, RunFolder.costs, RunFolder.history, tables.data):
                try:
                    reader(run)
                except AbsentError as error:
                    str(error)

    return Target(folder_files(tmp / "out", *names), read)


def checkpoint_target(tmp: Path) -> Target:
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}],
    }
    save_checkpoint(tmp / "a.ckpt", {"method": {"w": torch.arange(64.0)}, "optimizer": optimizer})

    def repaired(files: dict[str, bytes]) -> dict[str, bytes]:
        return {"a.ckpt": hashlib.sha256(files["a.ckpt"][32:]).digest() + files["a.ckpt"][32:]}

    return Target(
        folder_files(tmp, "a.ckpt"),
        lambda folder: load_checkpoint(folder / "a.ckpt", torch.device("cpu")),
        repaired,
    )


def manifest_target(tmp: Path) -> Target:
    samples = make_samples(make_dataset(), "test")
    conditions = standard_conditions(
        ("language", "audio", "vision"), EvaluationSettings(), incomplete=np.array([False])
    )
    save_manifest(tmp / "m.safetensors", make_manifest(samples, conditions, seed=1))
    return Target(
        folder_files(tmp, "m.safetensors"), lambda folder: load_manifest(folder / "m.safetensors")
    )


def budget_target(tmp: Path) -> Target:
    budget = Budget(epochs=8, scores={4: 0.5, 8: 0.625}, seed=1).model_dump(mode="json")

    def repaired(files: dict[str, bytes]) -> dict[str, bytes]:
        try:
            tree = json.loads(files["budget.json"])
            return {"budget.json": json.dumps(with_digest(tree)).encode()}
        except (ValueError, AttributeError, RecursionError):
            return files

    return Target({"budget.json": json_text(budget).encode()}, read_budget, repaired)


def zoo_target(tmp: Path) -> Target:
    Predictor(student()).save_pretrained(tmp / "moods")
    zoo.add(tmp / "moods", description="A student.", data_licence="CC0", hub="owner/name")
    return Target(folder_files(tmp, "manifest.json"), zoo.students)


TARGETS = {
    function.__name__.removesuffix("_target"): function
    for function in (
        *(settings_target, plan_target, card_target, converted_target),
        *(run_target, checkpoint_target, manifest_target, budget_target),
        zoo_target,
    )
}


@pytest.mark.parametrize("cases", [50, pytest.param(2_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TARGETS)
def test_a_mutated_file_is_read_or_refused_in_one_line(
    name: str, cases: int, tmp_path: Path
) -> None:
    (tmp_path / "valid").mkdir()
    (tmp_path / "mutated").mkdir()
    target = TARGETS[name](tmp_path / "valid")
    write(tmp_path / "mutated", target.repaired(target.files))
    target.read(tmp_path / "mutated")
    outcomes = {"read": 0, "refused": 0}
    for case in range(cases):
        rng = random.Random(f"{name} {case}")
        changed = rng.choice(sorted(target.files))
        mutated = mutate(target.files[changed], rng, list(target.files.values()))
        write(tmp_path / "mutated", target.repaired({**target.files, changed: mutated}))
        try:
            with warnings.catch_warnings(action="ignore"):
                target.read(tmp_path / "mutated")
            outcomes["read"] += 1
        except CorrKDError as error:
            message = str(error)
            assert message.isprintable(), (case, changed, message)
            assert 10 < len(message) <= 500, (case, changed, message)
            outcomes["refused"] += 1
        except Exception as error:
            raise AssertionError(
                f"case {case}, {changed}: {type(error).__name__}: {error}"
            ) from error
    assert min(outcomes.values()) > 0, outcomes


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
