"""The report of a run: its sections in order; and the files that any report becomes (report.html, report.md, tables/, figures/)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from corrkd.files import remove_parts, write_bytes
from corrkd.missing.conditions import AVERAGE, COMPLETE, missing_subsets
from corrkd.parsing import refusing
from corrkd.report import figures, tables
from corrkd.report.figures import Picture
from corrkd.report.run_folder import AbsentError, RunFolder, selection_rules
from corrkd.report.tables import Cell, Table, number

Item = str | Table | Picture | AbsentError
"""A paragraph, a table, a figure, or why one of them is not there."""

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
FILES = {
    "settings.yaml": "every setting, enough to make the run again",
    "run.json": "what was run: data, target, conditions, methods, versions",
    "results.csv": "every number: dataset, method, seed, condition, draw, metric, value",
    "seed-N/history.csv": "loss terms, validation score and learning rate by epoch",
    "seed-N/predictions.parquet": "every prediction with its probabilities",
    "seed-N/representations.safetensors": "the representations that the classifier reads",
    "seed-N/coverage.csv": "how often prediction sets held the truth, by condition and group",
    "seed-N/timings.csv": "seconds spent, apart from what is reproducible",
    "seed-N/results.csv": "this seed's part of results.csv",
    "seed-N/SHA256SUMS": "sums of what the evaluation wrote, for `sha256sum -c`",
    **{f"seed-N/{m}.safetensors": f"the trained {m}; its card is {m}.json" for m in ("teacher", "control", "student")},
}
READING = (
    "The majority floor always predicts the commonest class of the training split; the by-length floor, shown where lengths vary, the "
    "commonest class among training samples whose visible modalities are about as long. The Bayes ceiling, where there is one, is what "
    "the exact law of the data allows under the same condition. The control is the student without distillation: the same network, "
    "initialisation and missingness in training, the task loss alone. Intervals are over seeds: they hold the chance in training, "
    "not in drawing test samples."
)
OWN = ("report.html", "report.md", "tables", "figures")


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it. `level` 3: part of the section before it."""

    title: str
    items: list[Item]
    level: int = 2


@dataclass(frozen=True)
class Page:
    """All that a report says, before it is HTML or Markdown.

    Attributes:
        title: of the document.
        heading, subtitle: at its top.
        findings: what the numbers say, a sentence each.
        head: what was run, as term and description.
        stated: what was the same for all that is compared, a line each.
        sections: in order.
        notes: how it was made, a line each.
        settings: text of a settings file by its heading.
        files: what is in each file of the folder.
        made: the first sentence of the footer.
    """

    title: str
    heading: str
    subtitle: str
    findings: list[str]
    head: Mapping[str, str]
    sections: list[Section]
    notes: list[str]
    settings: Mapping[str, str]
    files: Mapping[str, str]
    made: str
    stated: list[str] = field(default_factory=list)


def write_report(folder: Path, *, condition: str | None = None) -> Path:
    """Make report.html, report.md, tables/ (CSV, LaTeX) and figures/ (SVG, PNG) in a run folder, from that folder alone.

    The same folder gives the same bytes. Each file appears whole or not at all. What the folder lacks is said in the report.

    Args:
        folder: the folder that a run wrote.
        condition: under which the representations are projected; default: the first missing subset that the run stored.

    Returns:
        The path of report.html, which needs no other file.

    Raises:
        CorrKDError: where it is not a run folder, a file in it cannot be read, or the report cannot be written.
    """
    run = RunFolder.open(folder)
    with refusing(run.path, "its files do not fit together; run what is damaged again"):
        page = run_page(run, condition)
    return write_page(run.path, page)


def run_page(run: RunFolder, condition: str | None = None) -> Page:
    """The report of a run."""
    card = run.card
    return Page(
        title=f"{card.dataset.name}: missing modalities",
        heading=f"{card.dataset.name}: sentiment when modalities are missing",
        subtitle="Correlation-decoupled knowledge distillation (CorrKD) against its teacher and a student without distillation",
        findings=findings(run),
        head=head(run),
        sections=sections(run, condition),
        notes=card.notes,
        settings={"Settings of this run (settings.yaml)": settings_text(run)},
        files=file_list(run),
        made=f"Made by corrkd {card.corrkd} from this run's folder alone; `corrkd report` makes it again.",
    )


def write_page(folder: Path, page: Page) -> Path:
    """Writes every file of a report, and returns the path of report.html."""
    remove_parts(folder)
    for name, content in built(page).items():
        write_bytes(folder / name, content)
    return folder / "report.html"


def built(page: Page) -> dict[str, bytes]:
    """Every file of the report by its path in the folder; the page itself goes last."""
    files: dict[str, bytes] = {}
    for item in (item for section in page.sections for item in section.items):
        if isinstance(item, Table):
            files[f"tables/{item.name}.csv"] = tables.to_csv(item).encode()
            files[f"tables/{item.name}.tex"] = tables.to_latex(item).encode()
        elif isinstance(item, Picture):
            files[f"figures/{item.name}.svg"] = item.svg
            files[f"figures/{item.name}.png"] = item.png
    return files | {"report.md": markdown(page).encode(), "report.html": html(page).encode()}


def part(make: Callable[..., Item], *args: Any) -> Item:
    """A table or figure, or why it is not there."""
    try:
        return make(*args)
    except AbsentError as error:
        return error


def sections(run: RunFolder, condition: str | None = None) -> list[Section]:
    """All of the report but its head and the settings. A part that the folder lacks leaves a line behind."""
    score = run.card.target.kind == "score"
    inter = ["weighted_f1", "accuracy", *(["mae", "corr"] if score else [])]
    matrices = [part(figures.scores if score else figures.confusion, run)]
    if isinstance(matrices[0], Picture) and not score:
        named = zip(("complete", "hardest"), tables.shown_conditions(run), strict=False)
        matrices += [tables.confusion_table(run, name, shown) for name, shown in named]
    made = (run.path / "results.csv").is_file() and (run.results["metric"] == "coverage").any()
    sets: list[Section] = []
    if made:
        sets = [Section("Prediction sets", [part(tables.prediction_sets, run), part(tables.coverage_by_group, run)])]
    others = [part(tables.others, run, "weighted_f1")] if tables.other_headings(run) else []
    return [
        Section("Data", [part(tables.data, run)]),
        Section("Missing modalities", [READING, *(part(tables.with_difference, run, metric) for metric in inter)]),
        Section("Missing frames", [part(figures.ratio_curves, run), part(tables.by_ratio, run), *others]),
        Section("Classes", [part(tables.per_class, run), *matrices]),
        Section("Calibration", [part(tables.calibration, run), part(figures.reliability, run)]),
        *sets,
        Section("Training", [part(figures.training, run)]),
        Section("Representations", [part(figures.projection, run, condition)]),
    ]


def findings(run: RunFolder) -> list[str]:
    """What the numbers say, a sentence each: student against control over the missing subsets, then teacher, floor, ceiling."""
    try:
        values = tables.seed_values(run, "weighted_f1")
    except AbsentError as error:
        return [f"No finding: {error}"]
    how = tables.FRACTION
    means = {m: tables.cell(tables.of(values, m, AVERAGE), how) for m in tables.method_titles(run)}
    student, control = means.get("student"), means.get("control")
    out = []
    if student and control:
        count = len(missing_subsets(run.modalities))
        difference = tables.paired(values, AVERAGE, how, "student", "control")
        seeds = len(tables.of(values, "student", AVERAGE))
        words = WORDS[count] if count < len(WORDS) else count
        out.append(
            f"Averaged over the {words} missing subsets, the student reaches a weighted F1 of "
            f"{number(student.mean, 2)}, the no-distillation control {number(control.mean, 2)}: {verdict(difference, seeds)}."
        )
    known = {m: c for m, c in means.items() if c}
    beside = {
        "teacher": "the teacher, tested in the same way",
        "majority": "always answering the commonest class",
        "by-length": "answering by the lengths of what is visible",
        tables.CEILING: "the Bayes ceiling",
    }
    told = [f"{text} {number(known[m].mean, 2)}" for m, text in beside.items() if m in known]
    if told:
        out.append(f"For comparison, on the same average: {'; '.join(told)}.")
    whole = [tables.cell(tables.of(values, m, COMPLETE), how) for m in ("student", "teacher")]
    if whole[0] and whole[1]:
        out.append(
            f"With all modalities available the student reaches {number(whole[0].mean, 2)}, the teacher {number(whole[1].mean, 2)}."
        )
    return out


def verdict(difference: Cell | None, seeds: int) -> str:
    """Student minus control in words: shown only where the 95 % interval leaves zero out."""
    if difference is None:
        return "no seed has both"
    text = number(difference.mean, 2, signed=True)
    half = difference.half
    if half is None or half != half:
        return f"no difference shown ({text}; one seed has no interval)"
    low, high = difference.mean - half, difference.mean + half
    interval = f"{text}, 95 % interval {number(low, 2)} to {number(high, 2)}, paired over {seeds} seeds"
    if low > 0:
        return f"the student is better ({interval})"
    return f"the control is better ({interval})" if high < 0 else f"no difference shown ({interval})"


def head(run: RunFolder) -> dict[str, str]:
    """What was run, as term and description."""
    card = run.card
    modalities = "; ".join(f"{m} ({c.frames} × {c.width})" for m, c in card.dataset.modalities.items())
    target = {"classes": card.target.classes, "questions": card.target.questions}.get(card.target.kind, [])
    return {
        "Dataset": card.dataset.name + (f", {card.dataset.layout}" if card.dataset.layout else ""),
        "Modalities": f"{modalities} (frames × features)",
        "Target": card.target.name + (f": {', '.join(target)}" if target else ""),
        "Samples": ", ".join(f"{name} {count}" for name, count in card.dataset.splits.items())
        + f"; results are on {card.split}",
        "Seeds": ", ".join(map(str, card.seeds)),
        "Epoch kept": selection_rules((method.selection, method.title) for method in card.methods),
        "Versions": f"corrkd {card.corrkd}, torch {card.torch}",
        **({"Data SHA-256": card.dataset.sha256} if card.dataset.sha256 else {}),
    }


def settings_text(run: RunFolder) -> str:
    """settings.yaml, or the line that it is not there."""
    try:
        return run.settings()
    except AbsentError as error:
        return str(error)


def file_list(run: RunFolder) -> dict[str, str]:
    """The folder's files with what is in them, the seeds' folded into one; without the report's own and tensorboard's."""
    top = [p.name for p in run.path.iterdir() if p.is_file()]
    seeds = [f"seed-N/{p.name}" for _, folder in run.seeds() for p in folder.iterdir() if p.is_file()]
    found = {n for n in (*top, *seeds) if not n.rpartition("/")[2].startswith((".", "events.")) and n not in OWN}
    ordered = [n for n in FILES if n in found] + sorted(found - FILES.keys())
    return {name: FILES.get(name, "") for name in ordered}


def numbered(parts: list[Section]) -> list[tuple[Section, list[tuple[str, Item]]]]:
    """Each section with its items and their labels ("Table 1", "Figure 1", "" for the rest)."""
    counts = {Table: 0, Picture: 0}
    out = []
    for section in parts:
        items: list[tuple[str, Item]] = []
        for item in section.items:
            label = ""
            if isinstance(item, Table | Picture):
                counts[type(item)] += 1
                label = f"{'Table' if isinstance(item, Table) else 'Figure'} {counts[type(item)]}"
            items.append((label, item))
        out.append((section, items))
    return out


def html(page: Page) -> str:
    """The whole page: inline style, inline SVG, no script, no address."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("corrkd.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.tests["table"] = lambda item: isinstance(item, Table)
    environment.tests["picture"] = lambda item: isinstance(item, Picture)
    environment.filters |= {"table": tables.to_html, "svg": inline_svg, "code": code}
    return environment.get_template("template.html.j2").render(page=page, sections=numbered(page.sections))


def code(text: str) -> Markup:
    """Escaped, with what stands between backticks as code."""
    return Markup(re.sub("`(.*?)`", r"<code>\1</code>", str(escape(text))))


def inline_svg(picture: Picture) -> Markup:
    """The figure's <svg> for a page: named for readers, without namespaces, its ids apart from the other figures'."""
    svg = picture.svg.decode()
    svg = svg[svg.index("<svg") :]
    prefix = str(escape(picture.name))

    def renamed(tag: re.Match[str]) -> str:
        without = re.sub(r' xmlns(:\w+)?="[^"]*"', "", tag[0])
        return re.sub(r'( id="|href="#|url\(#)', lambda start: f"{start[0]}{prefix}-", without)

    svg = re.sub(r"<[^>]*>", renamed, svg)  # matplotlib writes < and > in text and attributes as entities
    return Markup(svg.replace("<svg", str(Markup('<svg role="img" aria-label="{}"').format(picture.alt)), 1))


def markdown(page: Page) -> str:
    """The report as Markdown, its figures linked."""
    text = tables.markdown_text
    lines = [f"# {text(page.title)}", *[text(f) for f in page.findings]]
    if page.stated:
        lines += ["What was the same for every method:", "\n".join(f"- {text(line)}" for line in page.stated)]
    lines.append("\n".join(f"- **{text(term)}**: {text(value)}" for term, value in page.head.items()))
    for section, items in numbered(page.sections):
        lines.append(f"{'#' * section.level} {text(section.title)}")
        for label, item in items:
            if isinstance(item, Table):
                lines += [f"**{label}.** {text(item.caption)}", tables.to_markdown(item).rstrip()]
            elif isinstance(item, Picture):
                lines += [f"![{text(item.alt)}](figures/{item.name}.svg)", f"**{label}.** {text(item.caption)}"]
            else:
                lines.append(f"*{text(str(item))}*")
    lines.append("## How it was made")
    lines += [f"- {text(note)}" for note in page.notes]
    for settings in map(str.rstrip, page.settings.values()):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", settings)), default=0))
        lines += [f"{fence}yaml\n{settings}\n{fence}"]
    lines.append(
        "\n".join(f"- {text(name)}" + (f": {text(what)}" if what else "") for name, what in page.files.items())
    )
    return "\n\n".join(lines) + "\n"
