"""Released students, loaded by name (docs/zoo.md).

A zoo is a folder with `manifest.json` and, for each student, a folder that
`Predictor.save_pretrained` wrote. The manifest gives the SHA-256 and the size of every file. Both
are checked before a student is loaded, also from the hub.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from corrkd.errors import CorrKDError
from corrkd.files import CARD, README, WEIGHTS, check_names, leads_elsewhere, sha256_of, write_text
from corrkd.hub import ModelFiles, parse_model
from corrkd.parsing import check_digest, first_fault, json_text, quoted, read_json, refusing

PREFIX = "zoo:"
VARIABLE = "CORRKD_ZOO"
MANIFEST = "manifest.json"
FILES = (WEIGHTS, CARD, README)
SHIPPED = Path(__file__).parent
ADVICE = "not a manifest of this version"


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("expected one line of text")
    return text


Line = Annotated[str, Field(max_length=500), AfterValidator(_one_line)]
Fraction = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ReleasedFile(_Strict):
    """A file of a released student.

    Attributes:
        sha256: of its contents.
        size: in bytes.
    """

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Features(_Strict):
    """The input of a released student in one modality.

    Attributes:
        width: number of features of a frame.
        extractor: name of the extractor of `corrkd features`; "": the dataset holds features.
    """

    width: Annotated[int, Field(ge=1)]
    extractor: Line | Literal[""] = ""


class Metric(_Strict):
    """A metric on the test split, from the model's card. Rates are fractions from 0 to 1.

    Attributes:
        complete: with all modalities.
        average: mean over the conditions with a modality missing.
    """

    complete: Fraction
    average: Fraction


def _these_files(files: dict[str, ReleasedFile]) -> dict[str, ReleasedFile]:
    if set(files) != set(FILES):
        raise ValueError(f"expected {', '.join(FILES)}")
    return files


class Student(_Strict):
    """A released student, as the manifest describes it.

    Attributes:
        description: what it is, in a sentence.
        data: name of the dataset that it was trained on.
        data_licence: licence of that dataset, or the agreement under which it may be used.
        modalities: its inputs, by modality.
        target: name of the target that it predicts.
        classes: names of the classes or questions; empty for a score.
        preset: preset that it was trained with; "": none of the package's.
        seed: of its training.
        metrics: by name; at least one.
        corrkd: version that trained it.
        hub: repository that holds the files, as "owner/name@revision"; "": they lie beside the
            manifest.
        files: by name.
    """

    description: Line
    data: Line
    data_licence: Line
    modalities: Annotated[dict[Line, Features], Field(min_length=1)]
    target: Line
    classes: tuple[Line, ...] = Field(default=(), strict=False)
    preset: Line | Literal[""] = ""
    seed: int | None = None
    metrics: Annotated[dict[Line, Metric], Field(min_length=1)]
    corrkd: Line
    hub: Annotated[str, Field(pattern=r"^([\w.-]+/[\w.-]+(@[\w./-]+)?)?$")] = ""
    files: Annotated[dict[str, ReleasedFile], AfterValidator(_these_files)]


class _Manifest(_Strict):
    format: Literal[1] = 1
    students: dict[Line, Student] = {}


def students(folder: str | Path | None = None) -> dict[str, Student]:
    """Return the released students by name.

    Args:
        folder: a zoo; default: the zoo that the variable CORRKD_ZOO names, if any, and the students
            that come with the package. The former takes precedence.

    Raises:
        CorrKDError: if a folder is not a zoo or its manifest is damaged.
    """
    return {name: student for _, name, student in _listed(folder)}


def resolve(path: str | Path) -> Path:
    """Return the folder of the student "zoo:NAME" or "zoo:FOLDER/NAME"; any other path unchanged.

    Args:
        path: NAME is looked up as in `students`; FOLDER is a zoo.

    Raises:
        CorrKDError: if there is no such student, or a file is missing or differs from the released
            one.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return Path(path)
    folder, name = _folder_and_name(text.removeprefix(PREFIX))
    zoo, student = _find(folder, name)
    beside = zoo / name
    # A copy beside the manifest saves the download.
    at = beside if beside.is_dir() or not student.hub else _fetched(student.hub)
    for file, released in student.files.items():
        _check(at / file, released, zoo / MANIFEST)
    return at


def add(
    folder: str | Path, *, description: str, data_licence: str, preset: str = "", hub: str = ""
) -> Student:
    """Add a student to the manifest of the zoo that contains its folder. An entry of the same name
    is replaced.

    Args:
        folder: written by `Predictor.save_pretrained`; its name becomes the student's, its parent
            is the zoo.
        description: what it is, in a sentence.
        data_licence: licence of the training data, or the agreement under which it may be used.
        preset: name of the preset that it was trained with.
        hub: repository on the Hugging Face hub that holds the same files, as "owner/name@revision";
            the folder then need not be distributed.

    Returns:
        The entry. Its other fields come from the model's card.

    Raises:
        CorrKDError: if the folder holds no model, the model was not evaluated, or a text is empty.
    """
    folder = Path(folder).absolute()
    check_names([folder.name], "zoo: student")
    manifest = folder.parent / MANIFEST
    card = read_json(folder / CARD)
    files = {name: _released(folder / name) for name in FILES}
    advice = "not a model's card of this version; write the folder with `save_pretrained`"
    with refusing(folder / CARD, advice):
        check_digest(card, folder / CARD, "write the folder again", needed=False)
        if card["sha256"] != files[WEIGHTS]["sha256"]:
            raise CorrKDError(f"{folder / WEIGHTS}: does not belong to {CARD}; write both")
        facts = _facts(card, folder)
    texts = {"description": description, "data_licence": data_licence, "preset": preset, "hub": hub}
    try:
        student = Student.model_validate({**facts, **texts, "files": files})
    except ValidationError as error:
        raise CorrKDError(f"zoo: student {folder.name}: {first_fault(error)}") from None
    entries = _read(folder.parent) if manifest.is_file() else {}
    tree = _Manifest(students=dict(sorted({**entries, folder.name: student}.items())))
    write_text(manifest, json_text(tree.model_dump(mode="json")))
    return student


def table_text(listed: Mapping[str, Student]) -> str:
    """Return a table with one line per student: name, data, modalities, target, first metric
    (complete, and averaged over the conditions with a modality missing), and licence of the data.
    """
    # imported here: it loads torch, which finding a student does not need
    from corrkd.targets.measures import metric_of

    rows = [("name", "data", "modalities", "target", "metric", "complete", "average", "licence")]
    for name, student in listed.items():
        metric, values = next(iter(student.metrics.items()))
        shown = metric_of(metric)
        numbers = (shown.format(values.complete), shown.format(values.average))
        facts = (student.data, ", ".join(student.modalities), student.target, shown.heading)
        rows.append((name, *facts, *numbers, student.data_licence))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def card_text(name: str) -> str:
    """Return a student's entry in the manifest without its files, then its model card. Metrics are
    rounded to 4 decimals.

    Args:
        name: as for `resolve`, without "zoo:".

    Raises:
        CorrKDError: as `resolve`.
    """
    folder = resolve(PREFIX + name)
    student = _find(*_folder_and_name(name))[1]
    entry = student.model_dump(mode="json", exclude={"files"})
    for values in entry["metrics"].values():
        values.update((condition, round(value, 4)) for condition, value in values.items())
    readme = (folder / README).read_text("utf-8", errors="replace")
    body = readme.partition("\n---\n")[2] if readme.startswith("---\n") else readme
    return f"{yaml.safe_dump(entry, sort_keys=False, allow_unicode=True)}\n{body or readme}"


def _zoos(folder: str | Path | None) -> list[Path]:
    if folder is not None:
        return [Path(folder).expanduser()]
    variable = os.environ.get(VARIABLE, "")
    return [*([Path(variable).expanduser()] if variable else []), SHIPPED]


def _listed(folder: str | Path | None) -> Iterator[tuple[Path, str, Student]]:
    """Yield the zoo, name and entry of each student; of equal names only the first."""
    names: set[str] = set()
    for zoo in _zoos(folder):
        for name, student in _read(zoo).items():
            if name not in names:
                yield zoo, name, student
            names.add(name)


def _folder_and_name(text: str) -> tuple[str | None, str]:
    """Split "FOLDER/NAME"; the folder of "NAME" is None."""
    folder, _, name = text.replace(os.sep, "/").rpartition("/")
    return folder or None, name


def _find(folder: str | None, name: str) -> tuple[Path, Student]:
    listed = {entry: (zoo, student) for zoo, entry, student in _listed(folder)}
    if name not in listed:
        where = ", ".join(map(str, _zoos(folder)))
        raise CorrKDError(
            f"zoo: no student named {quoted(name)}; available: {', '.join(listed) or 'none'} "
            f"(in {where})"
        )
    return listed[name]


def _read(zoo: Path) -> dict[str, Student]:
    path = zoo / MANIFEST
    if not path.is_file():
        raise CorrKDError(f"{zoo}: not a zoo: it has no {MANIFEST}; `corrkd.zoo.add` writes one")
    tree = read_json(path)
    with refusing(path, ADVICE):
        entries = _Manifest.model_validate(tree).students
    for name in entries:
        if leads_elsewhere(name):
            raise CorrKDError(f"{path}: student {quoted(name)}: not the name of a folder beside it")
    return entries


def _fetched(hub: str) -> Path:
    return ModelFiles(parse_model(hub), FILES).folder


def _check(path: Path, released: ReleasedFile, manifest: Path) -> None:
    """Raise CorrKDError if a file differs from the released one. The size is checked first."""
    advice = f"not the file that {manifest} lists; get the student again"
    try:
        if (size := path.stat().st_size) != released.size:
            raise CorrKDError(f"{path}: {size} bytes, expected {released.size}: {advice}")
        sha256 = sha256_of(path)
    except OSError as error:
        raise CorrKDError(f"{path}: {error.strerror or error}; get the student again") from None
    if sha256 != released.sha256:
        raise CorrKDError(
            f"{path}: SHA-256 is {sha256[:12]}..., expected {released.sha256[:12]}...: {advice}"
        )


def _released(path: Path) -> dict[str, Any]:
    try:
        return {"sha256": sha256_of(path), "size": path.stat().st_size}
    except OSError as error:
        raise CorrKDError(
            f"{path}: {error.strerror or error}; write the folder with `save_pretrained`"
        ) from None


def _facts(card: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of an entry that come from a model's card."""
    if not card.get("evaluated"):
        raise CorrKDError(f"{folder}: the student was not evaluated; finish its run first")
    about, target = card["about"], card["target"]
    extractors = (about.get("extractors") or {}).get("modalities", {})
    modalities = {
        m: {"width": size["width"], "extractor": extractors.get(m, {}).get("name", "")}
        for m, size in card["modalities"].items()
    }
    return {
        "data": about["data"]["name"],
        "modalities": modalities,
        "target": target["name"],
        "classes": target.get("questions") or target.get("classes") or (),
        "seed": about.get("seed"),
        "metrics": _metrics(card["evaluated"]["conditions"]),
        "corrkd": card["corrkd"],
    }


def _metrics(conditions: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return each metric in the complete condition, and its mean over those with a modality
    missing.
    """
    from corrkd.missing.conditions import COMPLETE  # imported here: it loads torch
    from corrkd.missing.conditions.subset import Subset

    subsets = {c["name"]: c["measured"] for c in conditions if c["kind"] == Subset.kind}
    complete = subsets.pop(COMPLETE)
    missing = list(subsets.values()) or [complete]  # a single modality: as in results
    return {
        metric: {
            "complete": value,
            "average": sum(measured[metric] for measured in missing) / len(missing),
        }
        for metric, value in complete.items()
        if all(metric in measured for measured in missing)
    }
