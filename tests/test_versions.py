"""The declared versions are the tested ones."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from corrkd import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = {
    name: [Requirement(line) for line in lines]
    for name, lines in PROJECT["optional-dependencies"].items()
}
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
RUNTIME += [r for name, lines in EXTRAS.items() if name not in ("test", "dev") for r in lines]
PINS = [
    line
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if not line.startswith("#")
]
PINNED = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in PINS}


def test_every_pin_is_a_plain_exact_version() -> None:
    assert [line for line in PINS if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_pinned_versions_satisfy_all_requirements() -> None:
    requirements = [*RUNTIME, *EXTRAS["test"], *EXTRAS["dev"], Requirement("hatchling")]
    for requirement in requirements:
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)]), (
                requirement
            )


@pytest.mark.parametrize("requirement", RUNTIME, ids=str)
def test_the_lowest_versions_are_the_bounds(requirement: Requirement) -> None:
    """Each bound is what `make test-oldest` installs, unless an extra needs a later version of the
    same package.
    """
    spec = importlib.util.spec_from_file_location("lowest", ROOT / ".ci" / "lowest.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    name = canonicalize_name(requirement.name)
    bounds = [s.version for r in RUNTIME if canonicalize_name(r.name) == name for s in r.specifier]
    version = script.lowest()[name]
    assert requirement.specifier.contains(version)
    assert version in bounds


def test_the_citation_is_of_the_latest_release() -> None:
    """Version and date are those of the changelog's newest heading, and of the package where it is
    a release.
    """
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    heading = r"^## (\d+\.\d+\.\d+)(?: \((\d{4}-\d\d-\d\d)\))?$"
    version, date = re.findall(heading, changelog, re.MULTILINE)[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == version
    assert str(citation.get("date-released", "")) == date
    if Version(__version__).is_devrelease:
        assert Version(version) < Version(__version__)
        assert "## Unreleased" in changelog
    else:
        assert (version, bool(date)) == (__version__, True)
