"""A dataset's folder in that of a plan, read and nothing else: run.json, results.csv and, for each seed and arm, history, predictions, ...

`Card` is what run.json holds: the experiment writes it, the report reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator
from safetensors import SafetensorError, safe_open

from corrkd.csv_files import read_csv
from corrkd.errors import CorrKDError
from corrkd.files import PLAN, RUN, leads_elsewhere
from corrkd.missing.conditions import Condition, condition, subsets
from corrkd.networks.saved import seed_folders
from corrkd.parsing import CONTENT_ERRORS, LARGEST_YAML, read_json, read_text, read_yaml_file, refusing
from corrkd.targets.base import Target
from corrkd.targets.registry import target_from_json

T = TypeVar("T")


class AbsentError(Exception):
    """What a part of the report needs is not in the folder. The message is the line that stands in its place."""


MOST_PANELS = 4
FORMAT = 2  # of run.json; corrkd 0.1 wrote none


class _Bounded(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ModalityCard(_Bounded):
    """Feature width and the most frames of one modality."""

    width: int
    frames: int


class DatasetCard(_Bounded):
    """What the run was trained and tested on. `labels`: per split, samples by class (or "yes" answers by question)."""

    name: str
    layout: str = ""
    sha256: str = ""
    modalities: dict[str, ModalityCard]
    splits: dict[str, int]
    labels: dict[str, dict[str, int]] = Field(default_factory=dict)
    missing_rule: dict[str, str] = Field(default_factory=dict)


def _target(values: Any) -> Target:
    try:
        return target_from_json(values)
    except CorrKDError as error:
        raise ValueError(str(error)) from None


class ConditionCard(_Bounded):
    """One test condition. Its name says all of it; the rest is for other readers of the file."""

    name: str
    kind: str = ""
    available: list[str] = Field(default_factory=list, max_length=100)
    ratio: float | None = None
    draws: int = 1


class MethodCard(_Bounded):
    """One trained method: its name in the files, its title in the report, the rule that chose its epoch.

    `kind` is "baseline", "control", "ablation" or "method"; `trains_on` "complete" or "missing".
    """

    name: str
    title: str
    selection: str = ""
    method: str = ""
    kind: str = "method"
    trains_on: str = ""


class GroupCard(_Bounded):
    """Which samples are not independent of each other: those of one `name` ("person"; "sample": each stands for itself)."""

    name: str = "sample"
    count: int = 0


class SetsCard(_Bounded):
    """What prediction sets were asked for: the share that is to hold the truth, and from how many groups they are made."""

    level: float
    groups: int


class Card(_Bounded):
    """run.json. `reference` is the arm that others are compared with, `control` the one without distillation; `protocol` says what was the
    same for every method, a line each.
    """

    format: Literal[2]
    corrkd: str
    torch: str
    python: str = ""
    dataset: DatasetCard
    target: Annotated[Target, PlainValidator(_target), PlainSerializer(lambda target: target.to_json())]
    split: str
    conditions: list[ConditionCard]
    methods: list[MethodCard]
    seeds: list[int]
    notes: list[str] = Field(default_factory=list)
    projection: str = ""
    groups: GroupCard = Field(default_factory=GroupCard)
    sets: SetsCard | None = None
    reference: str
    control: str | None = None
    protocol: list[str] = Field(default_factory=list)
    digest: str = ""


def open_datasets(out: Path) -> dict[str, RunFolder]:
    """Return the datasets' folders by name, in the plan's order. Raises CorrKDError where a folder is no plan's, or has no dataset yet."""
    out = Path(out)
    if not (out / PLAN).is_file():
        if (out / RUN).is_file() or (out / "compare.yaml").is_file():
            raise CorrKDError(f"{out}: not the folder of a run of this version; give the one that holds {PLAN}")
        raise CorrKDError(f"{out}: holds no {PLAN}; give a folder that `corrkd run` or `corrkd compare` wrote")
    tree = read_yaml_file(out / PLAN)
    datasets = tree.get("datasets") if isinstance(tree, Mapping) else None
    names = [str(name) for name in datasets] if isinstance(datasets, Mapping) else []
    names = [name for name in names if not leads_elsewhere(name) and (out / name / RUN).is_file()]
    if not names:
        raise CorrKDError(f"{out}: has no dataset yet (none of the plan's has a folder with run.json)")
    return {name: RunFolder.open(out / name) for name in names}


def selection_rules(kept: Iterable[tuple[str, str]]) -> str:
    """By which rule an epoch is kept, and whose rule it is, of pairs (rule, title); each rule once."""
    rules: dict[str, list[str]] = {}
    for rule, title in kept:
        rules.setdefault(rule or "not recorded", []).append(title)
    return "; ".join(f"{rule} ({', '.join(titles)})" for rule, titles in rules.items())


@dataclass(frozen=True)
class RunFolder:
    """An opened run folder. Attributes: its path and its run.json. The other files are read on demand and may be absent."""

    path: Path
    card: Card

    @staticmethod
    def open(path: Path) -> RunFolder:
        """Raises CorrKDError where `path` is not a folder that a run wrote."""
        file = Path(path) / RUN
        if not file.is_file():
            raise CorrKDError(f"{path}: not a run folder (it holds no run.json); give a folder that `corrkd run` wrote")
        tree = read_json(file)
        if isinstance(tree, dict) and tree.get("format") != FORMAT:
            raise CorrKDError(
                f"{file}: written by corrkd {str(tree.get('corrkd', ''))[:20]}, whose folders this version does not read"
            )
        with refusing(file, "not written by a run"):
            card = Card.model_validate(tree)
            run = RunFolder(Path(path), card)
            try:
                _ = (
                    subsets(run.modalities),
                    run.conditions,
                )  # no modality has a condition's name, and all conditions exist
            except CorrKDError as error:
                raise CorrKDError(f"{file}: {error}") from None
        return run

    @property
    def reference(self) -> str:
        """The arm that others are compared with."""
        return self.card.reference

    @property
    def focus(self) -> list[str]:
        """The arms of figures with a panel an arm: all of a few, else teacher, control and reference."""
        names = [m.name for m in self.card.methods]
        return (
            names
            if len(names) <= MOST_PANELS
            else [n for n in names if n in ("teacher", self.card.control, self.reference)]
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the dataset's order."""
        return tuple(self.card.dataset.modalities)

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """What was tested, in the evaluation's order."""
        return tuple(condition(card.name, self.modalities) for card in self.card.conditions)

    def settings(self) -> str:
        """The text of settings.yaml."""
        return self._read("settings.yaml", lambda file: read_text(file, LARGEST_YAML))

    @cached_property
    def results(self) -> pd.DataFrame:
        """results.csv: dataset, method, seed (-1 where empty), condition, draw (0 where empty), metric, value (NaN: undefined)."""
        columns = {"method": str, "condition": str, "metric": str, "value": float, "seed": float, "draw": float}

        def typed(file: Path) -> pd.DataFrame:
            # A class or modality may be called "NA": only numbers may be empty.
            empty = {"seed": [""], "draw": [""], "value": ["", "nan"]}
            frame = read_csv(file, dtype=columns, keep_default_na=False, na_values=empty)
            lacking = columns.keys() - set(frame)
            if lacking:
                raise CorrKDError(f"{self.path / 'results.csv'}: no column {', '.join(sorted(lacking))}")
            return frame.assign(seed=frame["seed"].fillna(-1).astype(int), draw=frame["draw"].fillna(0).astype(int))

        return self._read("results.csv", typed)

    @cached_property
    def groups(self) -> pd.Series[str]:
        """groups.csv: each tested sample's group by its id."""
        frame = self._read("groups.csv", lambda file: read_csv(file, dtype=str, keep_default_na=False))
        if not {"id", "group"} <= set(frame):
            raise CorrKDError(f"{self.path / 'groups.csv'}: the columns must be id and group")
        groups: pd.Series[str] = frame.drop_duplicates("id").set_index("id")["group"]
        return groups

    def costs(self) -> pd.DataFrame:
        """costs.csv: method, seed, parameters, epochs, train_seconds, peak_memory_bytes; NaN where nothing was measured."""
        numbers = dict.fromkeys(("parameters", "epochs", "train_seconds", "peak_memory_bytes"), float)
        return self._read(
            "costs.csv",
            lambda file: read_csv(
                file,
                dtype={"method": str, **numbers},
                keep_default_na=False,
                na_values={name: ["", "nan"] for name in numbers},
            )[["method", "seed", *numbers]],
        )

    def coverage(self) -> pd.DataFrame:
        """Every seed's coverage.csv under one another: condition, group, samples, coverage, set_size, method, seed."""
        files = self._seed_files("coverage.csv")
        return pd.concat(
            [
                self._read(
                    file,
                    lambda path: read_csv(
                        path, dtype={"condition": str, "group": str, "method": str}, keep_default_na=False
                    ),
                ).assign(seed=seed)
                for seed, file in files
            ],
            ignore_index=True,
        )

    def history(self) -> pd.DataFrame:
        """Every seed's history.csv under one another, with a column `seed`."""
        files = self._seed_files("history.csv")
        return pd.concat([self._read(file, read_csv).assign(seed=seed) for seed, file in files], ignore_index=True)

    def predictions(self, conditions: Sequence[str]) -> pd.DataFrame:
        """Every seed's predictions under these conditions, with a column `seed`."""
        return pd.concat(self.prediction_parts(conditions), ignore_index=True)

    def prediction_parts(
        self, conditions: Sequence[str], columns: Sequence[str] | None = None
    ) -> Iterator[pd.DataFrame]:
        """`predictions` file by file; of `columns` alone where given."""
        chosen, wanted = [("condition", "in", list(conditions))], list(columns) if columns else None
        for seed, file in self._seed_files("predictions.parquet"):
            yield self._read(file, lambda path: pd.read_parquet(path, columns=wanted, filters=chosen)).assign(seed=seed)

    def representations(self, keys: Sequence[str]) -> tuple[int, dict[str, npt.NDArray[Any]]]:
        """The seed that has most of them (of equals the first), and its arrays by key ("<method>/<condition>" (N, D), "targets").

        Unknown keys are left out.
        """

        def arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
            with safe_open(file, framework="numpy") as stored:
                return {key: np.asarray(stored.get_tensor(key)) for key in keys if key in stored.keys()}  # noqa: SIM118

        by_seed: dict[int, dict[str, npt.NDArray[Any]]] = {}
        for seed, file in self._seed_files("representations.safetensors"):
            if len(max(by_seed.values(), key=len, default={})) == len(keys):
                break
            by_seed[seed] = by_seed.get(seed, {}) | self._read(file, arrays)
        best = max(by_seed, key=lambda seed: len(by_seed[seed]))
        return best, by_seed[best]

    def seeds(self) -> list[tuple[int, Path]]:
        """Numbers and folders of the seeds that are there, in order."""
        return [(int(folder.name.removeprefix("seed-")), folder) for folder in seed_folders(self.path)]

    def _seed_files(self, name: str) -> list[tuple[int, str]]:
        """Seeds and paths in the run folder of the files of that name, in the seeds' folders or the methods' folders in them."""
        files = [
            (seed, str(file.relative_to(self.path)))
            for seed, folder in self.seeds()
            for file in (folder / name, *sorted(folder.glob(f"*/{name}")))
            if file.is_file()
        ]
        if not files:
            raise AbsentError(f"No seed's folder holds {name}.")
        return files

    def _read(self, name: str, reader: Callable[[Path], T]) -> T:
        """One file of the folder. Raises AbsentError where it is not there, CorrKDError where it cannot be read."""
        file = self.path / name
        if not file.is_file():
            raise AbsentError(f"The run folder holds no {name}.")
        try:
            return reader(file)
        except (*CONTENT_ERRORS, OSError, SafetensorError) as error:  # pyarrow's and pandas' errors are ValueErrors
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CorrKDError(f"{file}: cannot be read ({reason}); run the seed again") from None
