"""The sections on a dataset in a report. A line replaces what the folder lacks; what does not apply
is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from corrkd.report import arm_tables, figures, tables
from corrkd.report.figures import Picture
from corrkd.report.page import Item, Section, part
from corrkd.report.reported import Reported, shown_metrics
from corrkd.report.run_folder import AbsentError, RunFolder
from corrkd.report.standings import Analysis
from corrkd.report.tables import Table

READING = (
    "There are two kinds of 95 % intervals, and each table says which one it shows. Student-t over "
    "seeds: how far the mean would vary if training started from other seeds, on these same test "
    "samples. Percentile bootstrap over groups crossed with seeds: also how far it would vary with "
    "other people or samples in the test split. With few groups or few seeds the bootstrap "
    "intervals are too narrow.",
    "p values come from a sign-flip test: if two methods do not differ, their predictions within a "
    "group can be swapped. The test generalises to other groups for these trained networks, not to "
    "training them again. Each method is compared with the reference on Avg. only, and p values "
    "are adjusted by Holm's method; the ablation is a separate family of tests. Bold and "
    "underlined numbers only rank the means; they do not indicate significance.",
    "The majority floor always predicts the most frequent class of the training split. The "
    "by-length floor, shown where lengths vary, predicts the most frequent class among training "
    "samples whose visible modalities have a similar length. The Bayes ceiling, available for the "
    "built-in dataset, is the best result possible under the same condition. None of them is "
    "trained, and none is marked. A control without distillation is the same network with the "
    "same initialisation and the same missing modalities in training, trained with the task loss "
    "alone. Avg. is the mean over the missing subsets, without the complete samples.",
)


def dataset_sections(
    analysis: Analysis,
    common: Sequence[str],
    reported: Reported,
    *,
    prefix: str | None,
    condition: str | None,
) -> list[Section]:
    """Return all sections on one dataset.

    Args:
        analysis: statistics of the dataset.
        common: lines of the protocol that hold for all datasets, which are left out here.
        reported: numbers from papers.
        prefix: prefix for the names of tables and figures, which also adds a heading above the
            sections; None if the report has only this dataset.
        condition: condition of the projected representations; default: as in the settings.
    """
    run, name = analysis.run, analysis.name
    main = tables.main_methods(run)
    protocol = [
        f"On this dataset, for all methods: {line}"
        for line in run.card.protocol
        if line not in common
    ]
    inter = [
        part(arm_tables.inter_modality, run, metric, arm_tables.of_dataset(reported, name, metric))
        for metric in shown_metrics(run)
    ]
    curves = [
        part(curves_of, run, family, methods)
        for family, methods in arm_tables.curve_families(run).items()
    ]
    others = [part(tables.others, run, "weighted_f1", main)] if tables.other_headings(run) else []
    missing = [part(tables.missing_frames, run)] if run.card.dataset.missing_frames else []
    sections = [
        Section("Data", [data_line(run), *protocol, part(tables.data, run), *missing]),
        Section("Missing modalities", inter),
        *_comparison(analysis),
        Section("Missing frames", [*curves, part(tables.by_ratio, run, main), *others]),
        Section("Metrics side by side", [part(tables.side_by_side, run, main)]),
        Section("Classes", [part(tables.per_class, run, main), *_matrices(run)]),
        Section(
            "Calibration", [part(tables.calibration, run, main), part(figures.reliability, run)]
        ),
        *_prediction_sets(run),
        *_ablation(analysis),
        *(
            []
            if run.has_few_arms
            else [Section("Ranks by condition", [part(arm_tables.ranks_table, run)])]
        ),
        Section("Training", [part(figures.training, run)]),
        Section("Representations", [part(figures.projection, run, condition)]),
        Section("Size of the methods", [part(arm_tables.size_table, run)]),
    ]
    if prefix is None:
        return sections
    below = [
        replace(s, level=3, items=[prefixed(item, prefix) for item in s.items]) for s in sections
    ]
    return [Section(name, []), *below]


def _comparison(analysis: Analysis) -> list[Section]:
    run = analysis.run
    if len(run.card.methods) < 2:
        return []
    standing = {} if isinstance(analysis.main, AbsentError) else analysis.main
    items = [part(arm_tables.ranking_table, run, standing), part(standings_of, analysis, "main")]
    if not run.has_few_arms:
        items.append(part(arm_tables.differences_table, run))
    return [Section(f"Ranking and comparison with {tables.reference_title(run)}", items)]


def _matrices(run: RunFolder) -> list[Item]:
    """Return the confusion matrices of classes and questions, or the scatter plots of scores."""
    if not run.card.target.has_classes:
        return [part(figures.scores, run)]
    picture = part(figures.confusion, run)
    if not isinstance(picture, Picture):
        return [picture]
    names = zip(("complete", "hardest"), tables.shown_conditions(run), strict=False)
    return [picture, *(part(tables.confusion_table, run, name, metrics) for name, metrics in names)]


def _prediction_sets(run: RunFolder) -> list[Section]:
    if run.card.sets is None:
        return []
    return [
        Section(
            "Prediction sets",
            [part(tables.prediction_sets, run), part(tables.coverage_by_group, run)],
        )
    ]


def _ablation(analysis: Analysis) -> list[Section]:
    if not tables.ablation_methods(analysis.run):
        return []
    items = [
        part(arm_tables.ablation_table, analysis.run),
        part(standings_of, analysis, "ablation"),
    ]
    return [Section("Ablation", items)]


def curves_of(run: RunFolder, family: str, methods: Sequence[str]) -> Picture:
    """Return the curves over missing ratios of one family of methods and the reference."""
    drawn = figures.ratio_curves(run, methods)
    if family == arm_tables.ALL:
        return drawn
    return replace(
        drawn,
        name=f"{drawn.name}-{family.replace(' ', '-')}",
        caption=f"{family.capitalize()}. {drawn.caption}",
    )


def standings_of(analysis: Analysis, family: str) -> Table:
    """Return the standings of one family, "main" or "ablation"; a large main family has mean ranks.
    Raises AbsentError if the family has no standings.
    """
    run, is_main = analysis.run, family == "main"
    standing = analysis.main if is_main else analysis.ablation
    if isinstance(standing, AbsentError):
        raise standing
    ranked: Mapping[str, float] = {}
    if is_main and not run.has_few_arms:
        subsets, ratios = arm_tables.ranked_conditions(run)
        ranked = arm_tables.mean_ranks(run, [*subsets, *ratios])
    name = "against-reference" if is_main else "ablation-against-reference"
    return arm_tables.standings_table(run, name, standing, analysis.clusters, ranked)


def prefixed(item: Item, prefix: str) -> Item:
    """Return a table or figure with a prefix, the file name of the dataset, before its name."""
    return (
        replace(item, name=f"{prefix}-{item.name}") if isinstance(item, Table | Picture) else item
    )


def data_line(run: RunFolder) -> str:
    """Return sentences on the dataset: target, modalities and numbers of samples."""
    card = run.card
    modalities = ", ".join(
        f"{m} ({c.frames} × {c.width})" for m, c in card.dataset.modalities.items()
    )
    outputs = card.target.output_names
    counts = ", ".join(f"{name} {count:,}" for name, count in card.dataset.splits.items())
    target = card.target.name + (f" ({', '.join(outputs)})" if outputs else "")
    layout = f" ({card.dataset.layout})" if card.dataset.layout else ""
    return (
        f"{card.dataset.name}{layout}. Target: {target}. Modalities, frames × features: "
        f"{modalities}. Samples: {counts}. All results are on the {card.split} split."
    )
