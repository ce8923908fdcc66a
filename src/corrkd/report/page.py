"""The contents of a report, and its files: report.html, report.md, tables/ and figures/."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from corrkd.files import remove_parts, write_bytes
from corrkd.report import tables
from corrkd.report.figures import Picture
from corrkd.report.run_folder import AbsentError
from corrkd.report.tables import Table

Item = str | Table | Picture | AbsentError
"""A paragraph, a table, a figure, or why one of them is absent."""


@dataclass(frozen=True)
class Section:
    """A heading with the items below it. A section of `level` 3 is a part of the one before it."""

    title: str
    items: list[Item]
    level: int = 2


@dataclass(frozen=True)
class Page:
    """The contents of a report, independent of its format.

    Attributes:
        title: title of the document.
        heading, subtitle: shown at the top.
        warnings: sentences on what limits every result; shown first.
        findings: sentences on what the results show.
        head: datasets, arms and seeds, as term and description.
        sections: sections in order.
        notes: lines on how the results were made.
        settings: text of the settings files, by heading.
        files: descriptions of the files in the folder, by path.
        footer: hardware, versions and times, which differ between repetitions of the same run.
        origin: the last sentence of the footer.
    """

    title: str
    heading: str
    subtitle: str
    warnings: list[str]
    findings: list[str]
    head: Mapping[str, str]
    sections: list[Section]
    notes: list[str]
    settings: Mapping[str, str]
    files: Mapping[str, str]
    footer: Section
    origin: str

    @property
    def numbered(self) -> list[tuple[Section, list[tuple[str, Item]]]]:
        """Sections with their labelled items ("Table 1", "Figure 1", or ""); the footer is last."""
        counts = {Table: 0, Picture: 0}
        out = []
        for section in [*self.sections, self.footer]:
            items: list[tuple[str, Item]] = []
            for item in section.items:
                label = ""
                if isinstance(item, Table | Picture):
                    counts[type(item)] += 1
                    kind = "Table" if isinstance(item, Table) else "Figure"
                    label = f"{kind} {counts[type(item)]}"
                items.append((label, item))
            out.append((section, items))
        return out


def write_page(folder: Path, page: Page) -> Path:
    """Write all files of a report and return the path of report.html. Raises CorrKDError if a file
    cannot be written.
    """
    remove_parts(folder)
    for name, content in report_files(page).items():
        write_bytes(folder / name, content)
    return folder / "report.html"


def report_files(page: Page) -> dict[str, bytes]:
    """Return the contents of all files of a report, by path in the folder; report.html is last."""
    files: dict[str, bytes] = {}
    for item in (item for section in [*page.sections, page.footer] for item in section.items):
        if isinstance(item, Table):
            files[f"tables/{item.name}.csv"] = tables.to_csv(item).encode()
            files[f"tables/{item.name}.tex"] = tables.to_latex(item).encode()
        elif isinstance(item, Picture):
            files[f"figures/{item.name}.svg"] = item.svg
            files[f"figures/{item.name}.png"] = item.png
    return files | {"report.md": markdown(page).encode(), "report.html": html(page).encode()}


def part(make: Callable[..., Item], *args: Any) -> Item:
    """Return `make(*args)`, a table or figure, or the AbsentError that it raises."""
    try:
        return make(*args)
    except AbsentError as error:
        return error


def html(page: Page) -> str:
    """Return the page as HTML with embedded style and figures, without scripts or addresses."""
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
    return environment.get_template("template.html.j2").render(
        page=page, sections=page.numbered[:-1], footer=page.numbered[-1]
    )


def code(text: str) -> Markup:
    """Return escaped text, with text between backticks as code."""
    return Markup(re.sub("`(.*?)`", r"<code>\1</code>", str(escape(text))))


def inline_svg(picture: Picture) -> Markup:
    """Return the <svg> of a figure for a page: with its alternative text, without namespaces, and
    with ids that are unique on the page.
    """
    svg = picture.svg.decode()
    svg = svg[svg.index("<svg") :]
    prefix = str(escape(picture.name))

    def renamed(tag: re.Match[str]) -> str:
        without = re.sub(r' xmlns(:\w+)?="[^"]*"', "", tag[0])
        return re.sub(r'( id="|href="#|url\(#)', lambda start: f"{start[0]}{prefix}-", without)

    svg = re.sub(
        r"<[^>]*>", renamed, svg
    )  # matplotlib writes < and > in text and attributes as entities
    return Markup(
        svg.replace("<svg", str(Markup('<svg role="img" aria-label="{}"').format(picture.alt)), 1)
    )


def markdown(page: Page) -> str:
    """Return the report as Markdown with links to the figures."""
    text = tables.markdown_text
    *sections, footer = page.numbered
    lines = [f"# {text(page.title)}"]
    lines += [f"> **Warning.** {text(warning)}" for warning in page.warnings]
    lines += [text(finding) for finding in page.findings]
    lines.append(
        "\n".join(f"- **{text(term)}**: {text(value)}" for term, value in page.head.items())
    )
    lines.append(_contents([*page.sections, page.footer]))
    for index, (section, items) in enumerate(sections, start=1):
        lines.append(f'<a id="section-{index}"></a>')
        lines += _markdown_section(section, items)
    lines += ['<a id="origin"></a>', "## How it was made"]
    lines += [f"- {text(note)}" for note in page.notes]
    for settings in map(str.rstrip, page.settings.values()):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", settings)), default=0))
        lines += [f"{fence}yaml\n{settings}\n{fence}"]
    lines.append(
        "\n".join(
            f"- {text(name)}" + (f": {text(what)}" if what else "")
            for name, what in page.files.items()
        )
    )
    lines += ["---", f'<a id="section-{len(sections) + 1}"></a>', *_markdown_section(*footer)]
    return "\n\n".join(lines) + "\n"


def _contents(sections: list[Section]) -> str:
    """Return a list of links to the sections, of which the last is the footer."""
    *links, last = (
        f"{'  ' * (section.level - 2)}- [{tables.markdown_text(section.title)}](#section-{index})"
        for index, section in enumerate(sections, start=1)
    )
    return "\n".join([*links, "- [How it was made](#origin)", last])


def _markdown_section(section: Section, items: list[tuple[str, Item]]) -> list[str]:
    """Return the blocks of a section, with the heading first."""
    text = tables.markdown_text
    lines = [f"{'#' * section.level} {text(section.title)}"]
    for label, item in items:
        if isinstance(item, Table):
            lines += [f"**{label}.** {text(item.caption)}", tables.to_markdown(item).rstrip()]
        elif isinstance(item, Picture):
            lines += [
                f"![{text(item.alt)}](figures/{item.name}.svg)",
                f"**{label}.** {text(item.caption)}",
            ]
        else:
            lines.append(text(item) if isinstance(item, str) else f"*{text(str(item))}*")
    return lines
