"""The report of a plan's folder, from that folder alone: one dataset and three arms, or many of both."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from corrkd.errors import CorrKDError
from corrkd.escape import csv_original
from corrkd.files import FAILURES, PLAN, file_names
from corrkd.parsing import LARGEST_YAML, read_text, refusing
from corrkd.report import tables
from corrkd.report.findings import findings
from corrkd.report.page import Page, Section, part, write_page
from corrkd.report.reported import Reported, read_reported
from corrkd.report.run_folder import MOST_PANELS, RunFolder, open_datasets, selection_rules
from corrkd.report.sections import READING, analysed, dataset_sections
from corrkd.report.tables import FRACTION, Table

DRAWS = 10_000
REPORTED = "reported.csv"
FILES = {
    PLAN: "the plan, enough to make the run again",
    FAILURES: "runs without results: dataset, arm, seed, error",
    "results.csv": "every number: dataset, method, seed, condition, draw, metric, value",
    "DATASET/run.json": "what was run: data, target, conditions, arms, versions, and what was the same for all arms",
    "DATASET/settings.yaml": "settings of every run on that dataset",
    "DATASET/results.csv": "the dataset's part of results.csv",
    "DATASET/costs.csv": "parameters, epochs, seconds and peak memory by arm and seed",
    "DATASET/groups.csv": "the group of each tested sample",
    "DATASET/seed-N/ARM/ARM.safetensors": "the trained network; its card is ARM.json",
    "DATASET/seed-N/ARM/history.csv": "loss terms, validation score and learning rate by epoch, and which epoch was kept",
    "DATASET/seed-N/ARM/predictions.parquet": "every prediction with its probabilities",
    "DATASET/seed-N/ARM/representations.safetensors": "the representations that the classifier reads",
    "DATASET/seed-N/ARM/coverage.csv": "how often prediction sets held the truth, by condition and group, where there are such sets",
    "DATASET/seed-N/ARM/timings.csv": "seconds spent, apart from what is reproducible",
    "DATASET/seed-N/ARM/SHA256SUMS": "sums of what the evaluation wrote, for `sha256sum -c`",
}


def write_report(out: Path, *, condition: str | None = None, draws: int = DRAWS) -> Path:
    """Make report.html, report.md, tables/ (CSV, LaTeX) and figures/ (SVG, PNG) in a plan's folder, from that folder alone.

    The same folder gives the same bytes. Each file appears whole or not at all. What the folder lacks is noted in the report.

    Args:
        out: the folder that a plan wrote. Papers' numbers in its reported.csv are shown beside ours.
        condition: under which the representations are projected; default: as the run was to show.
        draws: of the group bootstrap and the sign-flip test.

    Returns:
        The path of report.html, which needs no other file.

    Raises:
        CorrKDError: where it is no plan's folder, a file in it cannot be read, or the report cannot be written.
    """
    out = Path(out)
    runs = open_datasets(out)
    reported = read_reported(out / REPORTED, runs) if (out / REPORTED).is_file() else {}
    with refusing(out, "its files do not fit together; run what is damaged again"):
        page = plan_page(out, runs, reported, condition, draws)
    return write_page(out, page)


def plan_page(out: Path, runs: Mapping[str, RunFolder], reported: Reported, condition: str | None, draws: int) -> Page:
    """The whole report."""
    analyses = [analysed(name, run, draws) for name, run in runs.items()]
    protocols = [run.card.protocol for run in runs.values()]
    common = [line for line in protocols[0] if all(line in lines for lines in protocols)]
    failures = read_failures(out)
    prefixes = file_names(runs)
    sections = [Section("Runs that failed", [*failures])] if failures else []
    for analysis in analyses:
        prefix = prefixes[analysis.name] if len(runs) > 1 else None
        sections += dataset_sections(analysis, common, reported, prefix=prefix, condition=condition)
    sections.append(Section("How to read the intervals", list(READING)))
    sentences = [
        f"{analysis.name}: {sentence}" if len(runs) > 1 else sentence
        for analysis in analyses
        for sentence in findings(analysis)
    ]
    if failures:
        sentences.append(f"Runs that failed, and are left out: {len(failures)}.")
    notes = {
        f"{name}: {note}" if len(runs) > 1 else note: None for name, run in runs.items() for note in run.card.notes
    }
    names = ", ".join(run.card.dataset.name for run in runs.values())
    return Page(
        title=f"{names}: missing modalities",
        heading=f"{names}: sentiment when modalities are missing",
        subtitle="Every arm trained and tested under one protocol",
        findings=sentences,
        head=head(runs),
        sections=sections,
        notes=list(notes),
        settings={f"The plan ({PLAN})": read_text(out / PLAN, LARGEST_YAML)},
        files={name: what for name, what in FILES.items() if name != FAILURES or failures},
        made=f"Made by corrkd {next(iter(runs.values())).card.corrkd} from the folder alone; `corrkd report` makes it again.",
        stated=common,
    )


def head(runs: Mapping[str, RunFolder]) -> dict[str, str]:
    """What was run, as term and description."""
    titles = {m.name: m.title for run in runs.values() for m in tables.rows_of(run)}
    kinds = {m.name: m.kind for run in runs.values() for m in run.card.methods}
    groups = {"Baselines": "baseline", "Controls": "control", "Methods": "method", "Ablation": "ablation"}
    listed = {term: [titles[m] for m in titles if kinds[m] == kind] for term, kind in groups.items()}
    card = next(iter(runs.values())).card
    hashes = {name: run.card.dataset.sha256 for name, run in runs.items() if run.card.dataset.sha256}
    return {
        "Datasets" if len(runs) > 1 else "Dataset": ", ".join(runs),
        **{term: ", ".join(names) for term, names in listed.items() if names},
        "Seeds": by_dataset({name: ", ".join(map(str, run.card.seeds)) for name, run in runs.items()}),
        "Epoch kept": by_dataset(
            {name: selection_rules((m.selection, m.title) for m in run.card.methods) for name, run in runs.items()}
        ),
        "Versions": f"corrkd {card.corrkd}, torch {card.torch}",
        **({"Data SHA-256": by_dataset(hashes)} if hashes else {}),
    }


def by_dataset(texts: Mapping[str, str]) -> str:
    """One text where all datasets have the same, else each after its dataset's name."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name}: {text}" for name, text in texts.items())


def plain_report(out: Path) -> str:
    """Weighted F1 of every arm as plain text for a terminal, a table for each dataset: of a few arms under every missing subset, of many
    on Avg. and complete.

    Raises:
        CorrKDError: where it is no plan's folder.
    """
    runs = open_datasets(out)
    with refusing(out, "its files do not fit together; run what is damaged again"):
        blocks = [_plain_dataset(name, run) for name, run in runs.items()]
    return f"{FRACTION.title}, mean ± half-width of the 95 % interval over seeds\n\n" + "\n\n".join(blocks)


def _plain_dataset(name: str, run: RunFolder) -> str:
    headings, few = tables.subset_headings(run), len(run.card.methods) <= MOST_PANELS
    if not few:
        headings = {c: h for c, h in headings.items() if h in ("Avg.", "complete")}
    table = part(tables.conditions_table, run, name, "weighted_f1", headings, "")
    if not isinstance(table, Table):
        return f"{name}: {table}"
    if few:
        return "\n".join([name, tables.to_text(table), tables.subset_legend(run)])
    grid = [
        [name, *table.columns],
        *([row, *(tables.plain(e, 2) for e in cells)] for row, cells in tables.rows(table.blocks[""])),
    ]
    return tables.aligned(grid)


def read_failures(out: Path) -> list[str]:
    """failures.csv, a line each; empty where there is none."""
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
