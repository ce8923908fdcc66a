"""Prints pins: what the package needs, extras included, at its lowest versions; the tools that test
it as in constraints.txt.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def lowest() -> dict[str, str]:
    """Version by package; of several lower bounds the highest, since all extras are installed at
    once.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {
        name: lines
        for name, lines in project["optional-dependencies"].items()
        if name not in ("test", "dev")
    }
    pins: dict[str, str] = {}
    for line in [*project["dependencies"], *(line for lines in extras.values() for line in lines)]:
        requirement = Requirement(line)
        bound = next(s.version for s in requirement.specifier if s.operator == ">=")
        name = canonicalize_name(requirement.name)
        pins[name] = max(pins.get(name, bound), bound, key=Version)
    tested = dict(
        re.findall(
            r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE
        )
    )
    tested = {canonicalize_name(name): version for name, version in tested.items()}
    tools = {
        canonicalize_name(Requirement(line).name)
        for line in project["optional-dependencies"]["test"]
    }
    return pins | {name: tested[name] for name in sorted(tools - {project["name"]})}


if __name__ == "__main__":
    for name, version in lowest().items():
        print(f"{name}=={version}")
