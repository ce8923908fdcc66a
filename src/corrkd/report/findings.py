"""What the numbers of a dataset say, a sentence each."""

from __future__ import annotations

from collections.abc import Mapping

from corrkd.missing.conditions import AVERAGE, COMPLETE, missing_subsets
from corrkd.report import comparison_tables as comparing
from corrkd.report import tables
from corrkd.report.comparison_tables import Clusters
from corrkd.report.run_folder import AbsentError, RunFolder
from corrkd.report.sections import FEW, Analysis
from corrkd.report.standings import Standing, least_p
from corrkd.report.tables import FRACTION, Cell, number

LEVEL = 0.05
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
BESIDE = {
    "teacher": "the teacher, tested in the same way",
    "majority": "always answering the commonest class",
    "by-length": "answering by the lengths of what is visible",
    tables.CEILING: "the Bayes ceiling",
}


def findings(analysis: Analysis) -> list[str]:
    """Reference against control over the missing subsets, teacher, floor, ceiling; of more arms the order and the tests."""
    run = analysis.run
    try:
        values = tables.seed_values(run, "weighted_f1")
    except AbsentError as error:
        return [f"No finding: {error}"]
    cells = {m: tables.cell(tables.of(values, m, AVERAGE), FRACTION) for m in tables.method_titles(run)}
    means = {m: c.mean for m, c in cells.items() if isinstance(c, Cell) and c.mean == c.mean}
    out = _against_control(run, means)
    beside = [f"{text} {number(means[m], 2)}" for m, text in BESIDE.items() if m in means]
    if beside and len(comparing.main_methods(run)) <= FEW:
        out.append(f"For comparison, on the same average: {'; '.join(beside)}.")
    complete = [tables.cell(tables.of(values, m, COMPLETE), FRACTION) for m in (run.reference, "teacher")]
    if complete[0] and complete[1] and run.reference != "teacher":
        out.append(
            f"With all modalities available {_title(run)} reaches {number(complete[0].mean, 2)}, the teacher "
            f"{number(complete[1].mean, 2)}."
        )
    if len(comparing.main_methods(run)) > FEW:
        titles = tables.method_titles(run)
        out += _order(run, {m: means[m] for m in comparing.main_methods(run) if m in means})
        out += verdicts("", analysis.main, analysis.clusters, titles, _title(run))
        if comparing.ablation_methods(run):
            out += verdicts("Ablation: ", analysis.ablation, analysis.clusters, titles, _title(run))
    return out


def _title(run: RunFolder) -> str:
    return tables.method_titles(run)[run.reference]


def _against_control(run: RunFolder, means: Mapping[str, float]) -> list[str]:
    control = run.card.control
    if control is None or control not in means or run.reference not in means or control == run.reference:
        return []
    values = tables.seed_values(run, "weighted_f1")
    count = len(missing_subsets(run.modalities))
    difference = tables.paired(values, AVERAGE, FRACTION, run.reference, control)
    seeds = len(tables.of(values, run.reference, AVERAGE))
    words = WORDS[count] if count < len(WORDS) else count
    other = tables.method_titles(run)[control]
    return [
        f"Averaged over the {words} missing subsets, {_title(run)} reaches a weighted F1 of {number(means[run.reference], 2)}, "
        f"{other} {number(means[control], 2)}: {verdict(difference, seeds, _title(run), other)}."
    ]


def verdict(difference: Cell | None, seeds: int, reference: str, control: str) -> str:
    """Reference minus control in words: one is better only where the 95 % interval excludes zero."""
    if difference is None:
        return "no seed has both"
    text = number(difference.mean, 2, signed=True)
    half = difference.half
    if half is None or half != half:
        return f"no difference shown ({text}; one seed has no interval)"
    low, high = difference.mean - half, difference.mean + half
    interval = f"{text}, 95 % interval {number(low, 2)} to {number(high, 2)}, paired over {seeds} seeds"
    if low > 0:
        return f"{reference} is better ({interval})"
    return f"{control} is better ({interval})" if high < 0 else f"no difference shown ({interval})"


def _order(run: RunFolder, means: Mapping[str, float]) -> list[str]:
    order, titles = sorted(means, key=lambda m: -means[m]), tables.method_titles(run)
    if len(order) < 2:
        return ["Fewer than two methods have results."]
    named = [f"{titles[m]} {number(means[m], 2)}" for m in order]
    text = f"The highest Avg. of {len(order)} methods is that of {named[0]}, then {named[1]}"
    if run.reference in order[2:]:
        text += f"; {named[order.index(run.reference)]} is number {order.index(run.reference) + 1}"
    return [f"{text} (weighted F1 × 100)."]


def verdicts(
    about: str,
    standing: Mapping[str, Standing] | AbsentError,
    clusters: Clusters,
    titles: Mapping[str, str],
    reference: str,
) -> list[str]:
    """Which differences from the reference are significant: the test conditions on the trained networks, so the interval has to agree."""
    if isinstance(standing, AbsentError):
        return [f"{about}no test: {standing}"]
    below, above, equal = f"below {reference}", f"above {reference}", "not significantly different"
    groups: dict[str, list[str]] = {below: [], above: [], equal: []}
    for method, s in standing.items():
        if s.difference is not None and s.adjusted is not None:
            side = below if s.difference.mean < 0 else above
            excluded = s.difference.low > 0 or s.difference.high < 0
            groups[side if s.adjusted < LEVEL and excluded else equal].append(titles[method])
    tested = sum(map(len, groups.values()))
    if not tested:
        return [f"{about}no method shares a seed with {reference}, so nothing is tested."]
    sides = "; ".join(f"{side}: {', '.join(names)}" for side, names in groups.items() if names)
    text = (
        f"{about}differences from {reference} on Avg. by the sign-flip test over {clusters.words}, p\u00a0<\u00a0{LEVEL} after Holm "
        f"({tested} tests) with an interval over {clusters.name}s and seeds without zero: {sides}."
    )
    out = [text[:1].upper() + text[1:]]
    least = tested * least_p(clusters.count, clusters.draws)
    if least >= LEVEL:
        text = (
            f"{about}with {clusters.words} and {tested} tests the smallest p is {min(1.0, least):.3f} after Holm, whatever the "
            "numbers: no difference can be significant here."
        )
        out.append(text[:1].upper() + text[1:])
    return out
