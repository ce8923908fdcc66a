"""The report of a plan, from its folder alone, for any number of datasets and arms."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from corrkd.errors import CorrKDError
from corrkd.escape import csv_original
from corrkd.files import FAILURES, PLAN, REPORTED, file_names
from corrkd.missing.conditions import AVERAGE, COMPLETE
from corrkd.parsing import LARGEST_YAML, read_text, refusing
from corrkd.report import arm_tables, tables
from corrkd.report.findings import findings
from corrkd.report.page import Page, Section, part, write_page
from corrkd.report.reported import Reported, read_reported
from corrkd.report.run_folder import RunFolder, open_datasets
from corrkd.report.sections import READING, dataset_sections, prefixed
from corrkd.report.standings import analyse
from corrkd.report.tables import FRACTION, Table

DRAWS = 10_000
FEWEST_SEEDS = 3  # fewer seeds give a warning
FILES = {
    PLAN: "the plan, sufficient to repeat the run",
    FAILURES: "runs without results: dataset, method, seed, error",
    REPORTED: "published numbers, shown beside ours",
    "results.csv": "all results: dataset, method, seed, condition, draw, metric, value",
    "DATASET/run.json": "data, target, conditions, methods, versions, and what was the same for "
    "all methods",
    "DATASET/settings.yaml": "the settings of all runs on that dataset",
    "DATASET/results.csv": "the results on that dataset",
    "DATASET/costs.csv": "parameters, epochs, seconds, peak memory and device by method and seed",
    "DATASET/groups.csv": "the group of each test sample",
    "DATASET/seed-N/ARM/ARM.safetensors": "the trained network; its card is ARM.json",
    "DATASET/seed-N/ARM/outputs.safetensors": "outputs of the teachers on the training split",
    "DATASET/seed-N/ARM/history.csv": "loss terms, validation score and learning rate by epoch, "
    "and which epoch was kept",
    "DATASET/seed-N/ARM/predictions.parquet": "all predictions with their probabilities",
    "DATASET/seed-N/ARM/representations.safetensors": "the inputs of the classifier",
    "DATASET/seed-N/ARM/coverage.csv": "how often prediction sets contained the true class, by "
    "condition and group",
    "DATASET/seed-N/ARM/results.csv": "the results of that method and seed",
    "DATASET/seed-N/ARM/cost.json": "time, memory and device of the training",
    "DATASET/seed-N/ARM/budget.json": "the validation score of each number of epochs that was "
    "tried",
    "DATASET/seed-N/ARM/timings.csv": "seconds spent in each stage",
    "DATASET/seed-N/ARM/SHA256SUMS": "checksums of the evaluation's files, for `sha256sum -c`",
}


def write_report(
    out: Path, *, condition: str | None = None, draws: int = DRAWS, reference: str | None = None
) -> Path:
    """Write report.html, report.md, tables/ (CSV, LaTeX) and figures/ (SVG, PNG) into the folder of
    a plan, from that folder alone.

    The same folder gives the same bytes. Each file is written atomically. The report notes what
    the folder lacks.

    Args:
        out: folder of a plan. Numbers from papers in its reported.csv are shown next to the
            results.
        condition: condition of the projected representations; default: as in the settings.
        draws: number of draws of the group bootstrap and the sign-flip test.
        reference: arm that the others are compared with; default: as in the plan.

    Returns:
        The path of report.html, which needs no other file.

    Raises:
        CorrKDError: if `out` is not the folder of a plan, a dataset lacks the reference, a file
            cannot be read, or the report cannot be written.
    """
    out = Path(out)
    runs = open_datasets(out)
    if reference is not None:
        runs = {name: run.compared_with(reference) for name, run in runs.items()}
    reported = read_reported(out / REPORTED, runs) if (out / REPORTED).is_file() else {}
    with refusing(out, "its files do not fit together; run what is damaged again"):
        page = plan_page(out, runs, reported, condition, draws)
    return write_page(out, page)


def plan_page(
    out: Path, runs: Mapping[str, RunFolder], reported: Reported, condition: str | None, draws: int
) -> Page:
    """Return the report of the datasets of a plan."""
    analyses = [analyse(name, run, draws) for name, run in runs.items()]
    protocols = [run.card.protocol for run in runs.values()]
    common = [line for line in protocols[0] if all(line in lines for lines in protocols)]
    failures = read_failures(out)
    prefixes = file_names(runs)
    sections = [Section("Runs that failed", [*failures])] if failures else []
    for analysis in analyses:
        prefix = prefixes[analysis.name] if len(runs) > 1 else None
        sections += dataset_sections(analysis, common, reported, prefix=prefix, condition=condition)
    sections += [Section("The same for all methods", [*common])] if common else []
    sections.append(Section("How to read the tables", list(READING)))
    sentences = named_by_dataset({analysis.name: findings(analysis) for analysis in analyses})
    if failures:
        sentences.append(f"Runs that failed and are not included: {len(failures)}.")
    names = ", ".join(dict.fromkeys(run.card.dataset.name for run in runs.values()))
    return Page(
        title=f"{names}: missing modalities",
        heading=f"{names}: sentiment when modalities are missing",
        subtitle="All methods trained and tested under one protocol",
        warnings=seed_warnings(runs),
        findings=sentences,
        head=head(runs),
        sections=sections,
        notes=named_by_dataset({name: run.card.notes for name, run in runs.items()}),
        settings={f"The plan ({PLAN})": read_text(out / PLAN, LARGEST_YAML)},
        files=file_list(out),
        footer=footer(runs, prefixes),
        origin="`corrkd report` rebuilds this page from the folder alone.",
    )


def seed_warnings(runs: Mapping[str, RunFolder]) -> list[str]:
    """Return a warning if a dataset has too few seeds for meaningful intervals, else []."""
    few = {
        name: f"{len(run.card.seeds)} seed{'s' if len(run.card.seeds) > 1 else ''}"
        for name, run in runs.items()
        if len(run.card.seeds) < FEWEST_SEEDS
    }
    if not few:
        return []
    return [
        f"Too few seeds ({by_dataset(few)}): differences between methods may be due to chance, and "
        "intervals over seeds are very wide or absent. Run at least three seeds (--seeds 3), "
        "preferably five."
    ]


def footer(runs: Mapping[str, RunFolder], prefixes: Mapping[str, str]) -> Section:
    """Return the section on hardware, versions and times, the only one that is not determined by
    data, settings and seeds.
    """
    versions = {
        name: ", ".join(
            f"{package} {version}"
            for package, version in (
                ("corrkd", run.card.corrkd),
                ("torch", run.card.torch),
                ("Python", run.card.python),
            )
            if version
        )
        for name, run in runs.items()
    }
    times = {name: part(arm_tables.time_table, run) for name, run in runs.items()}
    items = [
        prefixed(item, prefixes[name]) if len(runs) > 1 else item for name, item in times.items()
    ]
    return Section("Hardware, versions and time", [f"Versions: {by_dataset(versions)}.", *items])


def named_by_dataset(lines: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the distinct lines of all datasets, after the name of the dataset if there are several
    datasets.
    """
    return list(
        dict.fromkeys(
            f"{name}: {line}" if len(lines) > 1 else line
            for name, of_dataset in lines.items()
            for line in of_dataset
        )
    )


def file_list(out: Path) -> dict[str, str]:
    """Return the description of each kind of file that the folder contains."""
    patterns = {
        name: name.replace("DATASET", "*").replace("seed-N", "seed-*").replace("ARM", "*")
        for name in FILES
    }
    return {name: FILES[name] for name, pattern in patterns.items() if any(out.glob(pattern))}


def head(runs: Mapping[str, RunFolder]) -> dict[str, str]:
    """Return the datasets, arms and seeds of the plan, as term and description."""
    methods = {m.name: m for run in runs.values() for m in tables.rows_of(run)}
    groups = {
        "Baselines": "baseline",
        "Controls": "control",
        "Methods": "method",
        "Ablation": "ablation",
    }
    listed = {
        term: [m.title for m in methods.values() if m.kind == kind] for term, kind in groups.items()
    }
    hashes = {
        name: run.card.dataset.sha256 for name, run in runs.items() if run.card.dataset.sha256
    }
    return {
        "Datasets" if len(runs) > 1 else "Dataset": ", ".join(runs),
        **{term: ", ".join(titles) for term, titles in listed.items() if titles},
        "Seeds": by_dataset(
            {name: ", ".join(map(str, run.card.seeds)) for name, run in runs.items()}
        ),
        **({"Data SHA-256": by_dataset(hashes)} if hashes else {}),
    }


def by_dataset(texts: Mapping[str, str]) -> str:
    """Return the text if all datasets have the same, else each text after the dataset's name."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name}: {text}" for name, text in texts.items())


def plain_report(out: Path) -> str:
    """Return a plain-text table of weighted F1 for each dataset, for a terminal: under all missing
    subsets if there are few arms, else only Avg. and complete.

    Raises:
        CorrKDError: if `out` is not the folder of a plan, or a file cannot be read.
    """
    runs = open_datasets(out)
    with refusing(out, "its files do not fit together; run what is damaged again"):
        blocks = [_plain_dataset(name, run) for name, run in runs.items()]
    return f"{FRACTION.title}, mean ± half-width of the 95 % interval over seeds\n\n" + "\n\n".join(
        blocks
    )


def _plain_dataset(name: str, run: RunFolder) -> str:
    headings = tables.subset_headings(run)
    if not run.has_few_arms:
        headings = {condition: headings[condition] for condition in (AVERAGE, COMPLETE)}
    table = part(tables.conditions_table, run, name, "weighted_f1", headings, "")
    if not isinstance(table, Table):
        return f"{name}: {table}"
    text = f"{name}\n{tables.to_text(table, transposed=run.has_few_arms)}"
    return f"{text}\n{tables.subset_legend(run)}" if run.has_few_arms else text


def read_failures(out: Path) -> list[str]:
    """Return the failed runs in failures.csv as lines, or [] without that file. Raises CorrKDError
    if it cannot be read.
    """
    file = out / FAILURES
    if not file.is_file():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as text:
            keys = ("dataset", "method", "seed", "error")
            rows = [[csv_original(row[key]) for key in keys] for row in csv.DictReader(text)]
    except (OSError, KeyError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise CorrKDError(f"{file}: cannot be read ({error!r})") from None
    return [f"{dataset}, {method}, seed {seed}: {error}" for dataset, method, seed, error in rows]
