"""Released students, loaded by name (docs/zoo.md).

A zoo is a folder with `manifest.json` and, for each student, a folder that
`Predictor.save_pretrained` wrote. The manifest gives the SHA-256 and the size of every file; they
are checked before a student is read, wherever its files come from.
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
    """What a released student reads of a modality.

    Attributes:
        width: numbers in a frame.
        extractor: name of the extractor of `corrkd features`; "": the data came as features.
    """

    width: Annotated[int, Field(ge=1)]
    extractor: Line | Literal[""] = ""


class Metric(_Strict):
    """A metric on the tested split, from the model's card: a fraction of 1 where it is a share.

    Attributes:
        complete: with all modalities.
        average: mean over the subsets of modalities with something missing.
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
        modalities: what it reads of each.
        target: what it predicts.
        classes: names of the classes or questions; empty for a score.
        preset: the settings of its training; "": none of the package's.
        seed: of its training.
        metrics: by name.
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
            that come with the package. Of equal names the former's counts.

    Raises:
        CorrKDError: where a folder is no zoo, or its manifest is damaged.
    """
    return {name: student for _, name, student in _listed(folder)}


def resolve(path: str | Path) -> Path:
    """Return the folder of a student that is named as "zoo:NAME" or "zoo:FOLDER/NAME"; any other
    path as it is.

    Args:
        path: NAME is looked up as in `students`; FOLDER is a zoo.

    Raises:
        CorrKDError: where there is no such student, or a file is missing or not the one released.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return Path(path)
    folder, name = _folder_and_name(text.removeprefix(PREFIX))
    zoo, student = _find(folder, name)
    beside = zoo / name
    # Where both are there, the copy beside the manifest saves a download.
    at = beside if beside.is_dir() or not student.hub else _fetched(student.hub)
    for file, released in student.files.items():
        _check(at / file, released, zoo / MANIFEST)
    return at


def add(
    folder: str | Path,
    *,
    description: str,
    data_licence: str,
    preset: str = "",
    hub: str = "",
) -> Student:
    """Enter a student into the manifest of the zoo in which its folder lies. An entry of the same
    name is replaced.

    Args:
        folder: written by `Predictor.save_pretrained`; its name becomes the student's, the folder
            above it is the zoo.
        description: what it is, in a sentence.
        data_licence: licence of the training data, or the agreement under which they may be used.
        preset: name of the preset that it was trained with.
        hub: repository on the Hugging Face hub that holds the same files, as
            "owner/name@revision"; then the folder itself need not be passed on.

    Returns:
        The entry, all other facts of which are taken from the model's card.

    Raises:
        CorrKDError: where there is no model, it was never evaluated, or a text is empty.
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
    """Return a line for each student: its name, data, modalities, target, its first metric with all
    modalities and averaged over the missing subsets, and the licence of its data.
    """
    from corrkd.targets.measures import metric_of  # loads torch, which finding a student does not

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
    """Return a student's entry in the manifest, but for its files, and its model card.

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
    named = os.environ.get(VARIABLE, "")
    return [*([Path(named).expanduser()] if named else []), SHIPPED]


def _listed(folder: str | Path | None) -> Iterator[tuple[Path, str, Student]]:
    """Zoo, name and entry of each student, the first of equal names."""
    seen: set[str] = set()
    for zoo in _zoos(folder):
        for name, student in _read(zoo).items():
            if name not in seen:
                yield zoo, name, student
            seen.add(name)


def _folder_and_name(text: str) -> tuple[str | None, str]:
    """Folder and name of "FOLDER/NAME"; no folder of "NAME"."""
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
        raise CorrKDError(f"{zoo}: not a zoo: no {MANIFEST} in it; `corrkd.zoo.add` writes one")
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
    """Raise CorrKDError where a file is not the one released. One of another size is not opened."""
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
    """What a model's card says of itself."""
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
    """Each metric with all modalities, and its mean over the missing subsets."""
    from corrkd.missing.conditions import COMPLETE  # loads torch, as above
    from corrkd.missing.conditions.subset import Subset

    subsets = {c["name"]: c["measured"] for c in conditions if c["kind"] == Subset.kind}
    complete = subsets.pop(COMPLETE)
    missing = list(subsets.values()) or [complete]  # of a single modality, as in results
    return {
        metric: {
            "complete": value,
            "average": sum(measured[metric] for measured in missing) / len(missing),
        }
        for metric, value in complete.items()
        if all(metric in measured for measured in missing)
    }
