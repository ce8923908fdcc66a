"""The report of a comparison, from its folder alone: what was the same, who is best, and by how much that can be told."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from corrkd.errors import CorrKDError
from corrkd.escape import csv_original
from corrkd.files import FAILURES, PLAN, file_names
from corrkd.missing.conditions import AVERAGE
from corrkd.parsing import LARGEST_YAML, read_text, read_yaml_file, refusing
from corrkd.report import comparison_tables as own
from corrkd.report import figures, tables
from corrkd.report.comparison_tables import Clusters
from corrkd.report.figures import Picture
from corrkd.report.page import Item, Page, Section, part, write_page
from corrkd.report.reported import Reported, read_reported, shown_metrics
from corrkd.report.run_folder import AbsentError, RunFolder
from corrkd.report.standings import REFERENCE, Standing, least_p, method_counts, standings
from corrkd.report.tables import FRACTION, Cell, Table, number

DRAWS = 10_000
LEVEL = 0.05
FILES = {
    PLAN: "the whole specification, enough to make the comparison again",
    FAILURES: "runs without results: dataset, method, seed, error",
    "DATASET/run.json": "what was compared: data, target, conditions, methods, what was the same",
    "DATASET/settings.yaml": "settings of every run on that dataset",
    "DATASET/results.csv": "every number: dataset, method, seed, condition, draw, metric, value",
    "DATASET/costs.csv": "parameters, epochs, seconds and peak memory by method and seed",
    "DATASET/groups.csv": "the group of each tested sample",
    "DATASET/seed-N/METHOD/": "the trained network, its history, every prediction, the representations",
}
READING = (
    "Intervals are 95 % intervals of two kinds, and every table says which it shows. Student-t over seeds: how much the mean moves when "
    "training begins from other seeds, on these very test samples. Percentile bootstrap over groups crossed with seeds: also how much it "
    "moves with the people or samples that happen to be in the test split. Few groups or few seeds make the bootstrap too narrow.",
    "p values are of a sign-flip test: where two methods do not differ, their answers within a group may be swapped. It is about these "
    "trained networks on other groups, not about training them again. Each method is compared with CorrKD on Avg. alone and adjusted by "
    "Holm; the ablation's arms are a family of their own. Bold and underline only order the means: they are no test.",
    "The majority floor always predicts the commonest class of the training split; the by-length floor, shown where lengths vary, the "
    "commonest class among training samples whose visible modalities are about as long. The Bayes ceiling, where there is one, is what "
    "the exact law of the data allows under the same condition. None of them is trained or marked. Avg. is the mean over the missing "
    "subsets, without complete.",
)


@dataclass(frozen=True)
class Analysis:
    """What is known of one dataset beside its folder.

    Attributes:
        name: of its folder, which opens the names of its tables and figures.
        run: its folder.
        main, ablation: standings of the two families on Avg., or why there are none.
        clusters: what was resampled.
    """

    name: str
    run: RunFolder
    main: dict[str, Standing] | AbsentError
    ablation: dict[str, Standing] | AbsentError
    clusters: Clusters


def write_comparison(out: Path, *, reported: Path | None = None, draws: int = DRAWS) -> Path:
    """Make report.html, report.md, tables/ (CSV, LaTeX) and figures/ (SVG, PNG) in a comparison's folder, from that folder alone.

    The same folder gives the same bytes. A method or seed that is not there is left out, and said.

    Args:
        out: the folder that `corrkd compare` wrote.
        reported: CSV file with papers' numbers, shown beside ours (`corrkd.report.reported.read_reported`).
        draws: of the group bootstrap and the sign-flip test.

    Returns:
        The path of report.html, which needs no other file.

    Raises:
        CorrKDError: where it is no comparison's folder, a file in it or `reported` cannot be read, or the report cannot be written.
    """
    runs = open_comparison(out)
    papers = read_reported(reported, runs) if reported is not None else {}
    with refusing(out, "its files do not fit together; run what is damaged again"):
        page = comparison_page(Path(out), runs, papers, draws)
    return write_page(Path(out), page)


def plain_comparison(out: Path) -> str:
    """Weighted F1 on Avg. and complete of every method as plain text for a terminal, a table for each dataset.

    Raises:
        CorrKDError: where it is no comparison's folder.
    """
    runs = open_comparison(out)
    with refusing(out, "its files do not fit together; run what is damaged again"):
        blocks = [_plain_dataset(name, run) for name, run in runs.items()]
    return f"{FRACTION.title}, mean ± half-width of the 95 % interval over seeds\n\n" + "\n\n".join(blocks)


def _plain_dataset(name: str, run: RunFolder) -> str:
    headings = {c: h for c, h in tables.subset_headings(run).items() if h in ("Avg.", "complete")}
    table = part(tables.conditions_table, run, name, "weighted_f1", headings, "")
    if not isinstance(table, Table):
        return f"{name}: {table}"
    grid = [
        [name, *table.columns],
        *([row, *(tables.plain(e, 2) for e in cells)] for row, cells in tables.rows(table.blocks[""])),
    ]
    return tables.aligned(grid)


def open_comparison(out: Path) -> dict[str, RunFolder]:
    """The datasets of a comparison by folder, in the order of compare.yaml. Raises CorrKDError where there is none."""
    out = Path(out)
    try:
        plan = read_yaml_file(out / PLAN)
    except CorrKDError as error:
        raise CorrKDError(f"{out}: no comparison ({error}); give what `corrkd compare` wrote") from None
    datasets = plan.get("datasets") if isinstance(plan, Mapping) else None
    listed = list(datasets) if isinstance(datasets, Mapping) else []
    found = {p.parent.name for p in out.glob("*/run.json")}
    names = [n for n in listed if n in found] or sorted(found)
    if not names:
        raise CorrKDError(f"{out}: the comparison has no dataset yet (no folder in it holds run.json)")
    return {name: RunFolder.open(out / name) for name in names}


def comparison_page(out: Path, runs: Mapping[str, RunFolder], reported: Reported, draws: int) -> Page:
    """The whole report."""
    analyses = [analysed(name, run, draws) for name, run in runs.items()]
    files = file_names(runs)
    stated = [run.card.comparison.stated for run in runs.values()]
    common = [line for line in stated[0] if all(line in lines for lines in stated)]
    failures = read_failures(out)
    sections = [Section("How to read the intervals", list(READING))]
    if failures:
        sections.insert(0, Section("Runs that failed", [*map(str, failures)]))
    for analysis in analyses:
        sections += dataset_sections(analysis, common, reported, files[analysis.name])
    lost = [f"Runs that failed, and are left out: {len(failures)}."] if failures else []
    notes = {f"{name}: {note}": None for name, run in runs.items() for note in run.card.notes}
    return Page(
        title="Comparison: missing modalities",
        heading="Methods compared when modalities are missing",
        subtitle=f"{', '.join(runs)}: CorrKD, published methods and controls, trained and tested under one protocol",
        findings=[sentence for analysis in analyses for sentence in findings(analysis)] + lost,
        head=head(runs),
        sections=sections,
        notes=list(notes),
        settings={f"The whole specification ({PLAN})": read_text(out / PLAN, LARGEST_YAML)},
        files={name: what for name, what in FILES.items() if name != FAILURES or failures},
        made=f"Made by corrkd {next(iter(runs.values())).card.corrkd} from the comparison's folder alone.",
        stated=common,
    )


def analysed(name: str, run: RunFolder, draws: int) -> Analysis:
    """The statistics of a dataset: seconds of work."""
    try:
        counts = method_counts(run)
        groups = next(iter(next(iter(counts.values())).values())).shape[1]
    except AbsentError as error:
        return Analysis(name, run, error, error, Clusters(run.card.groups.name, 0, draws))
    main = standings(counts, own.main_methods(run), draws)
    ablation = standings(counts, own.ablation_methods(run), draws)
    clusters = Clusters(run.card.groups.name, groups, draws)
    none = AbsentError("No arm of the ablation has predictions.")
    return Analysis(name, run, main, ablation or none, clusters)


def dataset_sections(analysis: Analysis, common: list[str], reported: Reported, file_name: str) -> list[Section]:
    """All of one dataset, whose tables and figures are files that begin with `file_name`."""
    run, name = analysis.run, analysis.name
    main = own.main_methods(run)
    beside = [f"On this dataset, for every method: {line}" for line in run.card.comparison.stated if line not in common]
    inter = [
        part(own.inter_modality, run, metric, own.of_dataset(reported, name, metric)) for metric in shown_metrics(run)
    ]
    curves = [part(curves_of, run, which, chosen) for which, chosen in own.curve_families(run).items()]
    sections = [
        Section(name, [data_line(run), *beside]),
        Section("Missing modalities", inter, 3),
        Section("Against CorrKD on Avg.", [part(standings_of, analysis, "main"), part(own.differences_table, run)], 3),
        Section("Missing frames", [*curves, part(tables.by_ratio, run, main)], 3),
        Section("Classes", [part(tables.per_class, run, main)], 3),
        Section("Ranks", [part(own.ranks_table, run)], 3),
        Section("Representations", [part(figures.compared_projection, run)], 3),
        Section("Cost", [part(own.costs_table, run)], 3),
    ]
    if own.ablation_methods(run):
        items = [part(own.ablation_table, run), part(standings_of, analysis, "ablation")]
        sections.insert(5, Section("Ablation", items, 3))
    return [replace(s, items=[named(item, file_name) for item in s.items]) for s in sections]


def curves_of(run: RunFolder, which: str, methods: Sequence[str]) -> Picture:
    """The curves of one family of methods with CorrKD."""
    drawn = figures.ratio_curves(run, methods)
    return replace(
        drawn, name=f"{drawn.name}-{which.replace(' ', '-')}", caption=f"{which.capitalize()}. {drawn.caption}"
    )


def standings_of(analysis: Analysis, family: str) -> Table:
    """The table of one family; that of the ablation has no ranks."""
    standing = analysis.main if family == "main" else analysis.ablation
    if isinstance(standing, AbsentError):
        raise standing
    subsets, ratios = own.ranked_conditions(analysis.run)
    ranked = own.mean_ranks(analysis.run, [*subsets, *ratios]) if family == "main" else {}
    name = "against-corrkd" if family == "main" else "ablation-against-corrkd"
    return own.standings_table(analysis.run, name, standing, analysis.clusters, ranked)


def named(item: Item, dataset: str) -> Item:
    """A table or figure with the dataset's file name before its own."""
    return replace(item, name=f"{dataset}-{item.name}") if isinstance(item, Table | Picture) else item


def data_line(run: RunFolder) -> str:
    """What is predicted from what, in a sentence."""
    card = run.card
    modalities = ", ".join(f"{m} ({c.frames} × {c.width})" for m, c in card.dataset.modalities.items())
    wanted = {"classes": card.target.classes, "questions": card.target.questions}.get(card.target.kind, [])
    counts = ", ".join(f"{name} {count:,}" for name, count in card.dataset.splits.items())
    target = card.target.name + (f" ({', '.join(wanted)})" if wanted else "")
    return f"Target {target} from {modalities}, frames × features. Samples: {counts}; results are on {card.split}."


def head(runs: Mapping[str, RunFolder]) -> dict[str, str]:
    """What was compared, as term and description."""
    titles = {m.name: m.title for run in runs.values() for m in tables.rows_of(run)}
    kinds = {m.name: m.kind for run in runs.values() for m in run.card.methods}
    groups = {"Baselines": "baseline", "Controls": "control", "Methods": "method", "Ablation": "ablation"}
    listed = {term: [titles[m] for m in titles if kinds[m] == kind] for term, kind in groups.items()}
    seeds = {name: ", ".join(map(str, run.card.seeds)) for name, run in runs.items()}
    card = next(iter(runs.values())).card
    return {
        "Datasets": ", ".join(runs),
        **{term: ", ".join(names) for term, names in listed.items() if names},
        "Seeds": next(iter(seeds.values()))
        if len(set(seeds.values())) == 1
        else "; ".join(f"{name}: {given}" for name, given in seeds.items()),
        "Versions": f"corrkd {card.corrkd}, torch {card.torch}",
    }


def findings(analysis: Analysis) -> list[str]:
    """Who is best on Avg., where CorrKD stands, and what can be told from it after Holm, in sentences."""
    run, titles = analysis.run, tables.method_titles(analysis.run)
    try:
        values = tables.seed_values(run, "weighted_f1")
    except AbsentError as error:
        return [f"{analysis.name}: no finding: {error}"]
    cells = {m: tables.cell(tables.of(values, m, AVERAGE), FRACTION) for m in own.main_methods(run)}
    means = {m: c.mean for m, c in cells.items() if isinstance(c, Cell) and c.mean == c.mean}
    order = sorted(means, key=lambda m: -means[m])
    if len(order) < 2:
        return [f"{analysis.name}: fewer than two methods have results."]
    told = [f"{titles[m]} {number(means[m], 2)}" for m in order]
    text = f"{analysis.name}: the highest Avg. of {len(order)} methods is that of {told[0]}, then {told[1]}"
    if REFERENCE in order[2:]:
        text += f"; {told[order.index(REFERENCE)]} is number {order.index(REFERENCE) + 1}"
    out = [f"{text} (weighted F1 × 100)."]
    out += verdicts(analysis.name, analysis.main, analysis.clusters, titles)
    if own.ablation_methods(run):
        out += verdicts(f"{analysis.name}, ablation", analysis.ablation, analysis.clusters, titles)
    return out


def verdicts(
    about: str, standing: Mapping[str, Standing] | AbsentError, clusters: Clusters, titles: Mapping[str, str]
) -> list[str]:
    """Which differences to CorrKD are told from none: the test conditions on the trained networks, so the interval has to agree."""
    if isinstance(standing, AbsentError):
        return [f"{about}: no test: {standing}"]
    groups: dict[str, list[str]] = {"below CorrKD": [], "above CorrKD": [], "not told from it": []}
    for method, s in standing.items():
        if s.difference is not None and s.adjusted is not None:
            side = "below CorrKD" if s.difference.mean < 0 else "above CorrKD"
            excluded = s.difference.low > 0 or s.difference.high < 0
            groups[side if s.adjusted < LEVEL and excluded else "not told from it"].append(titles[method])
    tested = sum(map(len, groups.values()))
    if not tested:
        return [f"{about}: no method shares a seed with CorrKD, so nothing is tested."]
    told = "; ".join(f"{what}: {', '.join(names)}" for what, names in groups.items() if names)
    out = [
        f"{about}: differences to CorrKD on Avg. by the sign-flip test over {clusters.words}, p\u00a0<\u00a0{LEVEL} after Holm "
        f"({tested} tests) with an interval over {clusters.name}s and seeds without zero: {told}."
    ]
    least = tested * least_p(clusters.count, clusters.draws)
    if least >= LEVEL:
        out.append(
            f"{about}: with {clusters.words} and {tested} tests the smallest p is {min(1.0, least):.3f} after Holm, whatever the "
            "numbers: it can tell no difference here."
        )
    return out


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
