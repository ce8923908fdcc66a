"""The findings on a dataset, as sentences."""

from __future__ import annotations

from collections.abc import Mapping

from corrkd.missing.conditions import AVERAGE, COMPLETE, missing_subsets
from corrkd.report import tables
from corrkd.report.run_folder import TEACHER, AbsentError, RunFolder
from corrkd.report.standings import (
    EQUAL,
    HIGHER,
    LEVEL,
    LOWER,
    NOT_TESTED,
    Analysis,
    Clusters,
    Standing,
    least_p,
)
from corrkd.report.tables import FRACTION, Cell, number

WORDS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
BESIDE = {
    TEACHER: "teacher",
    "majority": "majority class",
    "by-length": "most frequent class of samples of similar length",
    tables.CEILING: "Bayes ceiling",
}


def findings(analysis: Analysis) -> list[str]:
    """Return the sentences at the top of a report: the reference against the control over the
    missing subsets, teacher, floors and ceiling, and how many differences from the reference are
    significant.
    """
    run = analysis.run
    try:
        values = tables.seed_values(run, "weighted_f1")
    except AbsentError as error:
        return [f"No findings: {error}"]
    cells = {
        m: tables.cell(tables.of(values, m, AVERAGE), FRACTION) for m in tables.method_titles(run)
    }
    means = {m: c.mean for m, c in cells.items() if isinstance(c, Cell) and c.mean == c.mean}
    out = _against_control(run, means)
    beside = [f"{text} {number(means[m], 2)}" for m, text in BESIDE.items() if m in means]
    if beside:
        out.append(f"For comparison, on the same average: {'; '.join(beside)}.")
    out += _complete(run)
    if len(run.card.methods) > 1:
        out += verdicts(run, analysis.main, analysis.clusters)
    if tables.ablation_methods(run):
        out += verdicts(run, analysis.ablation, analysis.clusters, "Ablation: ")
    return out


def _against_control(run: RunFolder, means: Mapping[str, float]) -> list[str]:
    control = run.card.control
    if (
        control is None
        or control not in means
        or run.reference not in means
        or control == run.reference
    ):
        return []
    values = tables.seed_values(run, "weighted_f1")
    count = len(missing_subsets(run.modalities))
    difference = tables.paired(values, AVERAGE, FRACTION, run.reference, control)
    seeds = len(tables.of(values, run.reference, AVERAGE))
    words = WORDS[count] if count < len(WORDS) else count
    titles = tables.method_titles(run)
    reference, other = titles[run.reference], titles[control]
    return [
        f"Averaged over the {words} missing subsets, {reference} reaches a weighted F1 of "
        f"{number(means[run.reference], 2)}, {other} {number(means[control], 2)}: "
        f"{verdict(difference, seeds, reference, other)}."
    ]


def verdict(difference: Cell | None, seeds: int, reference: str, control: str) -> str:
    """Return the difference of reference and control in words: one is better only if the 95 %
    interval excludes zero.
    """
    if difference is None:
        return "no seed has results of both"
    text = number(difference.mean, 2, signed=True)
    half = difference.half
    if half is None or half != half:
        return f"no significant difference ({text}; a single seed gives no interval)"
    low, high = difference.mean - half, difference.mean + half
    interval = (
        f"{text}, 95 % interval {number(low, 2)} to {number(high, 2)}, paired over {seeds} seeds"
    )
    if low > 0:
        return f"{reference} is better ({interval})"
    return (
        f"{control} is better ({interval})"
        if high < 0
        else f"no significant difference ({interval})"
    )


def _complete(run: RunFolder) -> list[str]:
    if run.reference == TEACHER:
        return []
    values = tables.seed_values(run, "weighted_f1")
    reference, teacher = (
        tables.cell(tables.of(values, method, COMPLETE), FRACTION)
        for method in (run.reference, TEACHER)
    )
    if reference is None or teacher is None:
        return []
    return [
        f"With all modalities available, {tables.reference_title(run)} reaches "
        f"{number(reference.mean, 2)}, the teacher {number(teacher.mean, 2)}."
    ]


def verdicts(
    run: RunFolder,
    standing: Mapping[str, Standing] | AbsentError,
    clusters: Clusters,
    about: str = "",
) -> list[str]:
    """Return sentences on how many methods differ significantly from the reference.

    Args:
        run: folder of the dataset.
        standing: standings of one family of methods, or why there are none.
        clusters: units of the resampling.
        about: prefix of each sentence.
    """
    reference = tables.reference_title(run)
    if isinstance(standing, AbsentError):
        return [_sentence(f"{about}no test: {standing}")]
    results = [s.verdict for s in standing.values() if s.verdict != NOT_TESTED]
    tested = len(results)
    if not tested:
        return [
            _sentence(f"{about}no method shares a seed with {reference}, so nothing is tested.")
        ]
    tests = f"{tested} test{'' if tested == 1 else 's'}"
    counted = [
        f"{count} {'is' if count == 1 else 'are'} {result}"
        for result in (LOWER, HIGHER, EQUAL)
        if (count := results.count(result))
    ]
    out = [
        f"{about}of {tested} method{'' if tested == 1 else 's'} compared with {reference} on "
        f"Avg., {', '.join(counted)} (sign-flip test over {clusters.words}, "
        f"p\u00a0<\u00a0{LEVEL} after Holm's correction for {tests}, and a 95 % interval over "
        f"{clusters.name}s and seeds that excludes zero)."
    ]
    least = tested * least_p(clusters.count, clusters.draws)
    if least >= LEVEL:
        out.append(
            f"{about}with {clusters.words} and {tests}, the smallest possible p is "
            f"{min(1.0, least):.3f} after Holm's correction: no difference can be significant here."
        )
    return [_sentence(text) for text in out]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
