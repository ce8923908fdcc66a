"""Build the documentation site: python scripts/make_site.py [OUT]

The pages are docs/*.md and the README; this stages them for Zensical, with formulas as MathML, each
example and each linked file of the repository as a page, and an API reference made of docstrings.
Nothing on the site is loaded from elsewhere. Needs `corrkd[docs]`.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from latex2mathml.converter import convert

from corrkd import _HOMES, losses

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
STAGED = ROOT / "build" / "site"
BLOCK = re.compile(r"^```.*?^```$|^ {4}[^\n]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(((?!\w+:)[^)#\s]+)(#[^)\s]*)?\)")
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$`\w])\$(?!\s)([^$`]+?)(?<!\s)\$(?!\w)", re.DOTALL)
GUIDES = {
    "Recordings": "recordings.md",
    "Tables and arrays": "tables.md",
    "Data formats": "data.md",
    "Obtaining data": "obtaining-data.md",
    "Running": "running.md",
    "Distilling your network": "distilling.md",
    "Comparing methods": "comparing.md",
    "Using a student": "using.md",
    "Released students": "zoo.md",
    "Serving": "service.md",
    "Extending": "extending.md",
    "Responsible use": "responsible-use.md",
    "Releasing": "releasing.md",
}
BACKGROUND = {
    "CorrKD": "method.md",
    "CorrKD-plus": "corrkd-plus.md",
    "HRLF": "hrlf.md",
    "Missingness": "missingness.md",
    "Metrics": "metrics.md",
    "The built-in dataset": "synthetic.md",
}
GALLERY = {
    "CorrKD in one file": "corrkd_whole.py",
    "One loss in a training loop": "one_loss.py",
    "Lightning": "lightning_module.py",
    "Hugging Face Trainer": "hf_trainer.py",
    "NumPy arrays": "arrays.py",
    "Testing any classifier": "judge_any_classifier.py",
    "A method as a package": "plugin",
    "Extensions": "extending",
}
RESULTS = {
    "Results": "results.md",
    "One teacher, every condition": "results-by-condition.md",
    "The comparison in full": "comparison-report.md",
}


def outside_code(
    text: str, change: re.Pattern[str], replace: Callable[[re.Match[str]], str]
) -> str:
    """Apply a substitution to a page's prose, not to its blocks of code."""
    pieces, end = [], 0
    for block in BLOCK.finditer(text):
        pieces += [change.sub(replace, text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*pieces, change.sub(replace, text[end:])])


def mathml(formula: re.Match[str]) -> str:
    """A formula as MathML, which browsers draw without a script."""
    block = formula[1] is not None
    return str(convert((formula[1] or formula[2]).strip(), display="block" if block else "inline"))


class Stage:
    """The folder that Zensical reads.

    Attributes:
        folder: of the staged pages.
        files: pages made of files of the repository, by their path in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[Path, str] = {}

    def add(self, source: Path, page: str) -> None:
        """Stage a Markdown file as a page, with links that hold on the site."""

        def link(match: re.Match[str]) -> str:
            target = (source.parent / match[1]).resolve()
            return f"]({os.path.relpath(self.page_of(target), Path(page).parent)}{match[2] or ''})"

        text = outside_code(source.read_text("utf-8"), LINK, link)
        self.write(page, outside_code(text, FORMULA, mathml))

    def page_of(self, target: Path) -> str:
        """The page of a file or folder of the repository, which is made where it is not one of the
        documents.
        """
        relative = target.relative_to(ROOT)
        if target == ROOT / "README.md":
            return "index.md"
        if target == DOCS / "index.md":
            return "pages.md"
        if DOCS in target.parents:
            return target.relative_to(DOCS).as_posix()
        if target not in self.files:
            self.files[target] = f"files/{relative.as_posix()}.md"
            self._add_file(target)
        return self.files[target]

    def _add_file(self, target: Path) -> None:
        """Stage a file of the repository as a page that shows it, a folder as the list of its
        files.
        """
        relative, page = target.relative_to(ROOT), self.files[target]
        if target.is_dir():
            names = sorted(
                path for path in target.iterdir() if path.suffix in (".py", ".md", ".toml", ".yaml")
            )
            links = [
                f"- [{path.name}]({os.path.relpath(self.page_of(path), Path(page).parent)})"
                for path in names
            ]
            self.write(page, f"# {relative}\n\n" + "\n".join(links) + "\n")
        elif target.suffix == ".md":
            self.add(target, page)
        elif target.suffix == ".py":
            self.write(page, example(target))
        else:
            self.write(
                page, f"# {relative}\n\n{fenced(target.read_text('utf-8'), target.suffix[1:])}"
            )

    def write(self, page: str, text: str) -> None:
        """Write a page."""
        path = self.folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def fenced(code: str, language: str) -> str:
    """Code as a block."""
    return f"```{language}\n{code.strip()}\n```\n"


def example(path: Path) -> str:
    """The page of a script: its docstring as prose, then its code."""
    text = path.read_text("utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    docstring = ast.get_docstring(tree) or ""
    begin = tree.body[0].end_lineno if docstring else 0
    return f"# {path.name}\n\n{docstring}\n\n{fenced(os.linesep.join(lines[begin:]), 'python')}"


def reference() -> Iterator[tuple[str, str]]:
    """Title and page of each part of the API reference."""
    by_home: dict[str, list[str]] = {}
    for name, home in sorted(_HOMES.items()):
        by_home.setdefault(home, []).append(name)
    options = "\n    options:\n      heading_level: 2\n      show_root_full_path: false\n"
    top = [f"::: {home}.{name}{options}" for home, names in by_home.items() for name in names]
    yield (
        "corrkd",
        "# corrkd\n\nThe stable names, all importable from `corrkd`.\n\n" + "\n".join(top),
    )
    names = [f"::: corrkd.losses.{name}{options}" for name in losses.__all__]
    yield "corrkd.losses", f"# corrkd.losses\n\n{losses.__doc__}\n\n" + "\n".join(names)
    for module in (
        "methods.base",
        "networks.base",
        "missing.conditions",
        "targets.base",
        "media.extractors.base",
        "zoo",
    ):
        yield f"corrkd.{module}", f"# corrkd.{module}\n\n::: corrkd.{module}\n"


def configuration(gallery: dict[str, str], api: dict[str, str]) -> str:
    """Zensical's settings. The colours of text and links keep a contrast of 4.5 in both schemes."""

    def pages(of: dict[str, str]) -> str:
        return ", ".join(f'{{ "{title}" = "{page}" }}' for title, page in of.items())

    home = '{ "Home" = "index.md" }, { "Pages by question" = "pages.md" }'
    sections = {
        "Guides": GUIDES,
        "Background": BACKGROUND,
        "Results": RESULTS,
        "Gallery": gallery,
        "API": api,
    }
    nav = ",\n  ".join(
        [home, *(f'{{ "{name}" = [{pages(of)}] }}' for name, of in sections.items())]
    )
    return f"""[project]
site_name = "corrkd"
site_description = "Multimodal sentiment models that stay accurate when a modality is missing"
docs_dir = "docs"
site_dir = "html"
nav = [
  {nav}
]

[project.theme]
font = false
features = [
  "navigation.sections", "navigation.top", "content.code.copy", "search.highlight", "toc.follow",
]

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"

[project.markdown_extensions.tables]
[project.markdown_extensions.md_in_html]
[project.markdown_extensions.toc]
permalink = true
[project.markdown_extensions.pymdownx.highlight]
[project.markdown_extensions.pymdownx.superfences]

[project.plugins.mkdocstrings.handlers.python]
paths = ["{(ROOT / "src").as_posix()}"]

[project.plugins.mkdocstrings.handlers.python.options]
docstring_style = "google"
show_source = false
show_root_heading = true
separate_signature = true
show_signature_annotations = true
members_order = "source"
"""


def main() -> None:
    """Stage the pages and build the site."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "html"
    shutil.rmtree(STAGED, ignore_errors=True)
    stage = Stage(STAGED / "docs")
    for page in sorted(DOCS.glob("*.md")):
        stage.add(page, stage.page_of(page))
    stage.add(ROOT / "README.md", "index.md")
    shutil.copytree(DOCS / "images", stage.folder / "images")
    gallery = {title: stage.page_of(ROOT / "examples" / name) for title, name in GALLERY.items()}
    api = {}
    for title, text in reference():
        api[title] = f"api/{title}.md"
        stage.write(api[title], text)
    (STAGED / "zensical.toml").write_text(configuration(gallery, api), "utf-8")
    subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"], cwd=STAGED, check=True
    )
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(STAGED / "html", out)
    print(out)


if __name__ == "__main__":
    main()
