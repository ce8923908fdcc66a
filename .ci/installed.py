"""Fails unless the installed package is complete: run it with the environment's own Python, away
from the sources.
"""

from __future__ import annotations

import sys
from importlib import metadata, resources
from pathlib import Path

import corrkd
from corrkd.cli import app
from corrkd.presets import preset_names
from corrkd.zoo import students

home = Path(corrkd.__file__).parent
assert Path(sys.prefix).resolve() in home.resolve().parents, f"{home} is not the installed package"
assert metadata.version("corrkd") == corrkd.__version__
assert all(corrkd.load_settings(preset=name) for name in preset_names())
files = {path.name for path in home.rglob("*") if path.is_file()}
assert {"py.typed", "template.html.j2", "app.js", "style.css", "index.html"} <= files, (
    "data files are missing"
)
assert list(resources.files("corrkd.media").joinpath("weights").iterdir()), (
    "the weights are missing"
)
assert all(corrkd.load_student(f"zoo:{name}") for name in students()), "a student is missing"
licences = {
    Path(str(path)).name for path in metadata.files("corrkd") or () if "licenses" in str(path)
}
assert {"LICENSE", "NOTICE"} <= licences, f"licence files: {licences}"
assert app
print(f"{home}: corrkd {corrkd.__version__} is complete")
