"""What a report says, and the files that it becomes: report.html, report.md, tables/, figures/."""

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
"""A paragraph, a table, a figure, or why one of them is not there."""


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
        warnings: what limits every result, a sentence each; shown first.
        findings: what the numbers show, a sentence each.
        head: what was run, as term and description.
        sections: in order.
        notes: how it was made, a line each.
        settings: text of a settings file by its heading.
        files: what is in each file of the folder.
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
        """Each section with its items and their labels ("Table 1", "Figure 1", "" for the rest);
        the footer is the last.
        """
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
    """Write every file of a report, and return the path of report.html."""
    remove_parts(folder)
    for name, content in report_files(page).items():
        write_bytes(folder / name, content)
    return folder / "report.html"


def report_files(page: Page) -> dict[str, bytes]:
    """Return every file of the report by its path in the folder; the page itself goes last."""
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
    """Return a table or figure, or why it is absent."""
    try:
        return make(*args)
    except AbsentError as error:
        return error


def html(page: Page) -> str:
    """Return the page with its style and figures inside: no script, no address."""
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
    """Escaped, with what stands between backticks as code."""
    return Markup(re.sub("`(.*?)`", r"<code>\1</code>", str(escape(text))))


def inline_svg(picture: Picture) -> Markup:
    """The figure's <svg> for a page: named for readers, without namespaces, its ids apart from the
    other figures'.
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
    """Return the report as Markdown, its figures linked."""
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
    """A list of links to the sections, of which the last is the footer."""
    *links, last = (
        f"{'  ' * (section.level - 2)}- [{tables.markdown_text(section.title)}](#section-{index})"
        for index, section in enumerate(sections, start=1)
    )
    return "\n".join([*links, "- [How it was made](#origin)", last])


def _markdown_section(section: Section, items: list[tuple[str, Item]]) -> list[str]:
    """The blocks of a section, its heading first."""
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
