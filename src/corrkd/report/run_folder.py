"""Reading the folder of a dataset within a plan: run.json, results.csv and, for each seed and arm,
history, predictions, ...

`Card` is the content of run.json, which the experiment writes and the report reads, with the same
validation.
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
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    field_validator,
    model_validator,
)
from safetensors import SafetensorError, safe_open

from corrkd.csv_files import read_csv
from corrkd.errors import CorrKDError
from corrkd.files import PLAN, RUN, leads_elsewhere, name_fault
from corrkd.missing.conditions import Condition, condition, subsets
from corrkd.missing.conditions.registry import MOST_MODALITIES
from corrkd.networks.evaluated import Share
from corrkd.networks.saved import Size, seed_folders
from corrkd.parsing import CONTENT_ERRORS, quoted, read_json, read_yaml_file, refusing, repeated
from corrkd.settings import Count, Seed
from corrkd.targets.base import Target
from corrkd.targets.labels import LONGEST_LABEL, MOST_CLASSES, Name
from corrkd.targets.registry import target_from_json

T = TypeVar("T")


class AbsentError(Exception):
    """Raised if the folder lacks data for a part of the report. The message replaces that part."""


FORMAT = 2  # of run.json; corrkd 0.1 wrote none
TEACHER = "teacher"  # name of the arm that teaches the others
FEW_ARMS = 4  # up to this number, each arm has a panel in figures and ranks are left out
# Bounds far above any use, so that an untrusted card cannot demand unlimited memory or time.
Label = Name  # of a modality, class or question
Text = Annotated[str, Field(max_length=1_000)]
Line = Annotated[str, Field(max_length=100_000)]  # a line of the protocol names all arms
Lines = Annotated[list[Line], Field(max_length=10_000)]
Version = Annotated[str, Field(max_length=100)]
Digest = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
ConditionName = Annotated[
    str, Field(max_length=MOST_MODALITIES * (LONGEST_LABEL + 1))
]  # language+audio
Number = Annotated[int, Field(ge=0, lt=2**63)]
MOST_SPLITS, MOST_CONDITIONS, MOST_ARMS, MOST_SEEDS = 10, 10_000, 1_000, 10_000
MOST_REASONS = 20  # reasons why frames of a modality are missing


class _Bounded(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModalityCard(_Bounded):
    """Feature width and largest number of frames of one modality."""

    width: Size
    frames: Size


class MissingFramesCard(_Bounded):
    """Numbers of frames of a modality in a split: all, missing in the data, and missing by
    reason.
    """

    frames: Number
    missing: Number
    reasons: Annotated[dict[Text, Number], Field(max_length=MOST_REASONS)] = Field(
        default_factory=dict
    )


class DatasetCard(_Bounded):
    """The dataset of a run.

    Attributes:
        labels: by split, numbers of samples by class (or of "yes" labels by question).
        missing_frames: by modality and split, for data with the reasons why frames are missing.
    """

    name: Text
    layout: Text = ""
    sha256: Digest = ""
    modalities: Annotated[
        dict[Label, ModalityCard], Field(min_length=1, max_length=MOST_MODALITIES)
    ]
    splits: Annotated[dict[Label, Number], Field(max_length=MOST_SPLITS)]
    labels: Annotated[
        dict[Label, Annotated[dict[Label, Number], Field(max_length=MOST_CLASSES)]],
        Field(max_length=MOST_SPLITS),
    ] = Field(default_factory=dict)
    missing_rule: Annotated[dict[Label, Text], Field(max_length=MOST_MODALITIES)] = Field(
        default_factory=dict
    )
    missing_frames: Annotated[
        dict[Label, Annotated[dict[Label, MissingFramesCard], Field(max_length=MOST_SPLITS)]],
        Field(max_length=MOST_MODALITIES),
    ] = Field(default_factory=dict)


def _target(values: Any) -> Target:
    try:
        return target_from_json(values)
    except CorrKDError as error:
        raise ValueError(str(error)) from None


class ConditionCard(_Bounded):
    """One test condition, defined by its name. Other fields are for other readers of the file."""

    name: ConditionName
    kind: Annotated[str, Field(max_length=LONGEST_LABEL)] = ""
    available: Annotated[list[Label], Field(max_length=MOST_MODALITIES)] = Field(
        default_factory=list
    )
    ratio: Share | None = None
    draws: Count = 1


class MethodCard(_Bounded):
    """One arm.

    Attributes:
        name: name in the files.
        title: title in the report.
        selection: rule by which the epoch was selected.
        method: name of the method.
        trains_on: "complete" or "missing" samples.
    """

    name: Label
    title: Text
    selection: Text = ""
    method: Label
    kind: Literal["baseline", "control", "ablation", "method"]
    trains_on: Literal["complete", "missing"]

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if (fault := name_fault(name)) is not None:
            raise ValueError(f"a name of a folder, which {fault}")
        return name


class GroupCard(_Bounded):
    """The groups within which samples are not independent. `name` is the kind of group ("person";
    "sample" if all samples are independent), `count` the number of groups.
    """

    name: Label = "sample"
    count: Number = 0


class SetsCard(_Bounded):
    """The requested coverage of prediction sets, and the number of groups for their calibration."""

    level: Share
    groups: Count


class Card(_Bounded):
    """The content of run.json.

    Attributes:
        reference: arm that others are compared with.
        control: arm without distillation, if any.
        teacher_outputs: SHA-256 of the file with the outputs of an external teacher; "" if teachers
            are trained.
        projection: condition of the projected representations.
        protocol: lines on what was the same for all arms.
        notes: lines on what a reader of the results has to know.
    """

    format: Literal[2]
    corrkd: Version
    torch: Version
    python: Version = ""
    dataset: DatasetCard
    target: Annotated[
        Target, PlainValidator(_target), PlainSerializer(lambda target: target.to_json())
    ]
    split: Literal["train", "valid", "test"]
    conditions: Annotated[list[ConditionCard], Field(max_length=MOST_CONDITIONS)]
    methods: Annotated[list[MethodCard], Field(min_length=1, max_length=MOST_ARMS)]
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=MOST_SEEDS)]
    notes: Lines = Field(default_factory=list)
    projection: ConditionName = ""
    groups: GroupCard = Field(default_factory=GroupCard)
    sets: SetsCard | None = None
    reference: Label
    control: Label | None = None
    teacher_outputs: Digest = ""
    protocol: Lines = Field(default_factory=list)
    digest: Digest = ""

    @model_validator(mode="after")
    def _fits_together(self) -> Card:
        arms = [method.name for method in self.methods]
        distinct: dict[str, Sequence[object]] = {
            "methods": arms,
            "conditions": [card.name for card in self.conditions],
            "seeds": self.seeds,
        }
        for what, names in distinct.items():
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: {quoted(repeated(names))} appears twice")
        for name in filter(None, (self.reference, self.control)):
            if name not in arms:
                raise ValueError(f"{quoted(name)} is not one of the methods")
        modalities = tuple(self.dataset.modalities)
        try:
            subsets(modalities)  # raises if a modality has the name of a condition
            for card in self.conditions:
                condition(card.name, modalities)
        except CorrKDError as error:
            raise ValueError(str(error)) from None
        return self


def open_datasets(out: Path) -> dict[str, RunFolder]:
    """Return the folders of the datasets by name, in the order of the plan.

    Raises:
        CorrKDError: if `out` is not the folder of a plan or has no dataset yet, or a file cannot be
            read.
    """
    out = Path(out)
    if not (out / PLAN).is_file():
        if (out / RUN).is_file() or (out / "compare.yaml").is_file():
            raise CorrKDError(
                f"{out}: not the folder of a run of this version; give the one that holds {PLAN}"
            )
        raise CorrKDError(
            f"{out}: contains no {PLAN}; give a folder written by `corrkd run` or `corrkd compare`"
        )
    tree = read_yaml_file(out / PLAN)
    datasets = tree.get("datasets") if isinstance(tree, Mapping) else None
    names = [str(name) for name in datasets] if isinstance(datasets, Mapping) else []
    names = [name for name in names if not leads_elsewhere(name) and (out / name / RUN).is_file()]
    if not names:
        raise CorrKDError(
            f"{out}: has no dataset yet (no dataset of the plan has a folder with run.json)"
        )
    return {name: RunFolder.open(out / name) for name in names}


@dataclass(frozen=True)
class RunFolder:
    """The folder of a dataset, with its run.json. Other files are read on demand, if present."""

    path: Path
    card: Card

    @staticmethod
    def open(path: Path) -> RunFolder:
        """Open a folder. Raises CorrKDError if `path` is not a folder that a run wrote."""
        file = Path(path) / RUN
        if not file.is_file():
            raise CorrKDError(
                f"{path}: not a run folder (it contains no run.json); give a folder that `corrkd "
                f"run` wrote"
            )
        tree = read_json(file)
        if isinstance(tree, dict) and tree.get("format") != FORMAT:
            raise CorrKDError(
                f"{file}: written by corrkd {str(tree.get('corrkd', ''))[:20]}, whose folders "
                f"this version does not read; run the experiment again"
            )
        with refusing(file, "not written by a run"):
            return RunFolder(Path(path), Card.model_validate(tree))

    @property
    def reference(self) -> str:
        """Name of the arm that others are compared with."""
        return self.card.reference

    def compared_with(self, reference: str) -> RunFolder:
        """Return the folder with another arm as the reference. Raises CorrKDError if the arm does
        not exist.
        """
        arms = [method.name for method in self.card.methods]
        if reference not in arms:
            raise CorrKDError(
                f"{self.path}: has no arm {quoted(reference)} to compare with; available: "
                f"{', '.join(arms)}"
            )
        return RunFolder(self.path, self.card.model_copy(update={"reference": reference}))

    @property
    def has_few_arms(self) -> bool:
        """Whether the arms are few enough for a panel each."""
        return len(self.card.methods) <= FEW_ARMS

    @property
    def focus(self) -> list[str]:
        """Arms in figures with a panel per arm: all if they are few, else teacher, control and
        reference.
        """
        names = [m.name for m in self.card.methods]
        if self.has_few_arms:
            return names
        return [name for name in names if name in (TEACHER, self.card.control, self.reference)]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of the dataset."""
        return tuple(self.card.dataset.modalities)

    @cached_property
    def conditions(self) -> tuple[Condition, ...]:
        """Conditions that were tested, in the order of the evaluation."""
        return tuple(condition(card.name, self.modalities) for card in self.card.conditions)

    @cached_property
    def results(self) -> pd.DataFrame:
        """Table of results.csv: dataset, method, seed (-1 if empty), condition, draw (0 if empty),
        metric, value (NaN if undefined).
        """
        columns = {
            "method": str,
            "condition": str,
            "metric": str,
            "value": float,
            "seed": float,
            "draw": float,
        }

        # A class or modality may be called "NA": only numbers may be empty.
        empty = {"seed": [""], "draw": [""], "value": ["", "nan"]}
        frame = self._table("results.csv", columns, dtype=columns, na_values=empty)
        return frame.assign(
            seed=frame["seed"].fillna(-1).astype(int), draw=frame["draw"].fillna(0).astype(int)
        )

    @cached_property
    def groups(self) -> pd.Series[str]:
        """Group of each test sample by sample id, from groups.csv."""
        frame = self._table("groups.csv", ("id", "group"), dtype=str)
        groups: pd.Series[str] = frame.drop_duplicates("id").set_index("id")["group"]
        return groups

    def costs(self) -> pd.DataFrame:
        """Return the table of costs.csv: method, seed, parameters, epochs, train_seconds,
        peak_memory_bytes (NaN if not measured), device ("" if not recorded).
        """
        numbers = dict.fromkeys(
            ("parameters", "epochs", "train_seconds", "peak_memory_bytes"), float
        )
        costs = self._table(
            "costs.csv",
            ("method", "seed", *numbers),
            dtype={"method": str, "device": str, **numbers},
            na_values={name: ["", "nan"] for name in numbers},
        )
        if "device" not in costs:
            costs = costs.assign(device="")
        return costs[["method", "seed", *numbers, "device"]]

    def coverage(self) -> pd.DataFrame:
        """Return the coverage.csv of all seeds as one table: condition, group, samples, coverage,
        set_size, method, seed.
        """
        names = dict.fromkeys(("condition", "group", "method"), str)
        columns = (*names, "samples", "coverage", "set_size")
        return pd.concat(
            [
                self._table(file, columns, dtype=names).assign(seed=seed)
                for seed, file in self._seed_files("coverage.csv")
            ],
            ignore_index=True,
        )

    def history(self) -> pd.DataFrame:
        """Return the history.csv of all seeds as one table, with a column `seed`."""
        columns = ("method", "epoch", "kept", "valid/weighted_f1")
        return pd.concat(
            [
                self._table(file, columns, keep_default_na=True).assign(seed=seed)
                for seed, file in self._seed_files("history.csv")
            ],
            ignore_index=True,
        )

    def predictions(self, conditions: Sequence[str]) -> pd.DataFrame:
        """Return the predictions of all seeds under these conditions, with a column `seed`."""
        return pd.concat(self.prediction_parts(conditions), ignore_index=True)

    def prediction_parts(
        self, conditions: Sequence[str], columns: Sequence[str] | None = None
    ) -> Iterator[pd.DataFrame]:
        """Yield `predictions` file by file, with these columns and `seed`; default: all columns."""
        chosen, wanted = [("condition", "in", list(conditions))], list(columns) if columns else None
        for seed, file in self._seed_files("predictions.parquet"):
            yield self._read(
                file, lambda path: pd.read_parquet(path, columns=wanted, filters=chosen)
            ).assign(seed=seed)

    def representations(self, keys: Sequence[str]) -> tuple[int, dict[str, npt.NDArray[Any]]]:
        """Return the first seed with the most of these arrays, and the arrays by key:
        "<method>/<condition>", (N, D), or "targets". Keys that are not stored are left out.
        """

        def arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
            with safe_open(file, framework="numpy") as stored:
                return {
                    key: np.asarray(stored.get_tensor(key))
                    for key in keys
                    if key in stored.keys()  # noqa: SIM118
                }

        by_seed: dict[int, dict[str, npt.NDArray[Any]]] = {}
        for seed, file in self._seed_files("representations.safetensors"):
            if len(max(by_seed.values(), key=len, default={})) == len(keys):
                break
            by_seed[seed] = by_seed.get(seed, {}) | self._read(file, arrays)
        best = max(by_seed, key=lambda seed: len(by_seed[seed]))
        return best, by_seed[best]

    def seeds(self) -> list[tuple[int, Path]]:
        """Return the seeds that have folders, in order, and the folders."""
        return [
            (int(folder.name.removeprefix("seed-")), folder) for folder in seed_folders(self.path)
        ]

    def _seed_files(self, name: str) -> list[tuple[int, str]]:
        """Return the seed and relative path of each file with this name in the folders of seeds and
        of their methods. Raises AbsentError if none exists.
        """
        files = [
            (seed, str(file.relative_to(self.path)))
            for seed, folder in self.seeds()
            for file in (folder / name, *sorted(folder.glob(f"*/{name}")))
            if file.is_file()
        ]
        if not files:
            raise AbsentError(f"No seed's folder contains {name}.")
        return files

    def _table(self, name: str, columns: Iterable[str], **options: Any) -> pd.DataFrame:
        """Return a CSV file of the folder. Raises CorrKDError if it lacks one of these columns."""
        options = {"keep_default_na": False, **options}
        frame = self._read(name, lambda file: read_csv(file, **options))
        if lacking := [column for column in columns if column not in frame]:
            raise CorrKDError(f"{self.path / name}: no column {', '.join(lacking)}")
        return frame

    def _read(self, name: str, reader: Callable[[Path], T]) -> T:
        """Return the result of `reader` for a file of the folder. Raises AbsentError if the file
        does not exist, CorrKDError if it cannot be read.
        """
        file = self.path / name
        if not file.is_file():
            raise AbsentError(f"The run folder contains no {name}.")
        try:
            return reader(file)
        except (
            *CONTENT_ERRORS,
            OSError,
            SafetensorError,
        ) as error:  # errors of pyarrow and pandas are ValueErrors
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CorrKDError(f"{file}: cannot be read ({reason}); run the seed again") from None
