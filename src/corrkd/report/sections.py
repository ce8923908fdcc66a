"""The sections of a dataset in a report, in order. What the folder lacks leaves a line behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from corrkd.report import comparison_tables as comparing
from corrkd.report import figures, tables
from corrkd.report.comparison_tables import Clusters
from corrkd.report.figures import Picture
from corrkd.report.page import Item, Section, part
from corrkd.report.reported import Reported, shown_metrics
from corrkd.report.run_folder import AbsentError, RunFolder
from corrkd.report.standings import Standing, method_counts, standings
from corrkd.report.tables import Table

FEW = 3  # arms that need no ranks
READING = (
    "Intervals are 95 % intervals of two kinds, and every table says which it shows. Student-t over seeds: how much the mean moves when "
    "training begins from other seeds, on these very test samples. Percentile bootstrap over groups crossed with seeds: also how much it "
    "moves with the people or samples that happen to be in the test split. Few groups or few seeds make the bootstrap too narrow.",
    "p values are of a sign-flip test: where two methods do not differ, their answers within a group may be swapped. It is about these "
    "trained networks on other groups, not about training them again. Each method is compared with the reference on Avg. alone and "
    "adjusted by Holm; the ablation's arms are a family of their own. Bold and underline only order the means: they are no test.",
    "The majority floor always predicts the commonest class of the training split; the by-length floor, shown where lengths vary, the "
    "commonest class among training samples whose visible modalities are about as long. The Bayes ceiling, where there is one, is what "
    "the exact law of the data allows under the same condition. None of them is trained or marked. A control without distillation is the "
    "same network with the same initialisation and the same missingness in training, and the task loss alone. Avg. is the mean over the "
    "missing subsets, without complete.",
)


@dataclass(frozen=True)
class Analysis:
    """What is computed of one dataset beside its folder.

    Attributes:
        name: of its folder, which opens the names of its tables and figures where there are several.
        run: its folder.
        main, ablation: standings of the two families on Avg., or why there are none.
        clusters: what was resampled.
    """

    name: str
    run: RunFolder
    main: dict[str, Standing] | AbsentError
    ablation: dict[str, Standing] | AbsentError
    clusters: Clusters


def analysed(name: str, run: RunFolder, draws: int) -> Analysis:
    """The statistics of a dataset: seconds of work."""
    try:
        counts = method_counts(run)
        groups = next(iter(next(iter(counts.values())).values())).shape[1]
    except AbsentError as error:
        return Analysis(name, run, error, error, Clusters(run.card.groups.name, 0, draws))
    main = standings(counts, comparing.main_methods(run), run.reference, draws)
    ablation = standings(counts, comparing.ablation_methods(run), run.reference, draws)
    clusters = Clusters(run.card.groups.name, groups, draws)
    return Analysis(name, run, main, ablation or AbsentError("No arm of the ablation has predictions."), clusters)


def dataset_sections(
    analysis: Analysis, common: Sequence[str], reported: Reported, *, prefix: str | None, condition: str | None
) -> list[Section]:
    """All of one dataset.

    Args:
        analysis: its statistics.
        common: lines of the protocol that hold for all datasets.
        reported: papers' numbers.
        prefix: opens the names of tables and figures, and a heading stands above the sections; None: the report has this dataset alone.
        condition: under which the representations are projected; default: as the run was to show.
    """
    run, name = analysis.run, analysis.name
    main = comparing.main_methods(run)
    protocol = [f"On this dataset, for every method: {line}" for line in run.card.protocol if line not in common]
    inter = [
        part(comparing.inter_modality, run, metric, comparing.of_dataset(reported, name, metric))
        for metric in shown_metrics(run)
    ]
    reference = tables.method_titles(run)[run.reference]
    curves = [part(curves_of, run, which, chosen) for which, chosen in comparing.curve_families(run).items()]
    others = [part(tables.others, run, "weighted_f1", main)] if tables.other_headings(run) else []
    sections = [
        Section("Data", [data_line(run), *protocol, part(tables.data, run)]),
        Section("Missing modalities", inter),
        Section(
            f"Against {reference} on Avg.",
            [part(standings_of, analysis, "main"), part(comparing.differences_table, run)],
        ),
        Section("Missing frames", [*curves, part(tables.by_ratio, run, main), *others]),
        Section("Classes", [part(tables.per_class, run, main), *_matrices(run)]),
        Section("Calibration", [part(tables.calibration, run, main), part(figures.reliability, run)]),
        *_prediction_sets(run),
        *_ablation(analysis),
        *([Section("Ranks", [part(comparing.ranks_table, run)])] if len(main) > FEW else []),
        Section("Training", [part(figures.training, run)]),
        Section("Representations", [part(figures.projection, run, condition)]),
        Section("Cost", [part(comparing.costs_table, run)]),
    ]
    if prefix is None:
        return sections
    below = [replace(s, level=3, items=[named(item, prefix) for item in s.items]) for s in sections]
    return [Section(name, []), *below]


def _matrices(run: RunFolder) -> list[Item]:
    """Confusion matrices of classes and questions, or predicted against true scores."""
    if not run.card.target.has_classes:
        return [part(figures.scores, run)]
    picture = part(figures.confusion, run)
    if not isinstance(picture, Picture):
        return [picture]
    names = zip(("complete", "hardest"), tables.shown_conditions(run), strict=False)
    return [picture, *(part(tables.confusion_table, run, name, shown) for name, shown in names)]


def _prediction_sets(run: RunFolder) -> list[Section]:
    if not (run.path / "results.csv").is_file() or not (run.results["metric"] == "coverage").any():
        return []
    return [Section("Prediction sets", [part(tables.prediction_sets, run), part(tables.coverage_by_group, run)])]


def _ablation(analysis: Analysis) -> list[Section]:
    if not comparing.ablation_methods(analysis.run):
        return []
    return [
        Section("Ablation", [part(comparing.ablation_table, analysis.run), part(standings_of, analysis, "ablation")])
    ]


def curves_of(run: RunFolder, which: str, methods: Sequence[str]) -> Picture:
    """The curves of one family of methods with the reference."""
    drawn = figures.ratio_curves(run, methods)
    if which == comparing.ALL:
        return drawn
    return replace(
        drawn, name=f"{drawn.name}-{which.replace(' ', '-')}", caption=f"{which.capitalize()}. {drawn.caption}"
    )


def standings_of(analysis: Analysis, family: str) -> Table:
    """The table of one family; that of the ablation has no ranks."""
    standing = analysis.main if family == "main" else analysis.ablation
    if isinstance(standing, AbsentError):
        raise standing
    ranked: Mapping[str, float] = {}
    if family == "main" and len(comparing.main_methods(analysis.run)) > FEW:
        subsets, ratios = comparing.ranked_conditions(analysis.run)
        ranked = comparing.mean_ranks(analysis.run, [*subsets, *ratios])
    name = "against-reference" if family == "main" else "ablation-against-reference"
    return comparing.standings_table(analysis.run, name, standing, analysis.clusters, ranked)


def named(item: Item, dataset: str) -> Item:
    """A table or figure with the dataset's file name before its own."""
    return replace(item, name=f"{dataset}-{item.name}") if isinstance(item, Table | Picture) else item


def data_line(run: RunFolder) -> str:
    """What is predicted from what, in a sentence."""
    card = run.card
    modalities = ", ".join(f"{m} ({c.frames} × {c.width})" for m, c in card.dataset.modalities.items())
    outputs = card.target.output_names
    counts = ", ".join(f"{name} {count:,}" for name, count in card.dataset.splits.items())
    target = card.target.name + (f" ({', '.join(outputs)})" if outputs else "")
    layout = f", {card.dataset.layout}" if card.dataset.layout else ""
    return (
        f"{card.dataset.name}{layout}. Target {target} from {modalities}, frames × features. Samples: {counts}; results are on "
        f"{card.split}."
    )
