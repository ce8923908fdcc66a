"""The settings that come with the package, a YAML file each. Listing them loads neither torch nor
what they configure.
"""

from __future__ import annotations

from importlib import resources

from corrkd.errors import CorrKDError
from corrkd.parsing import quoted


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets, sorted."""
    files = resources.files(__name__).iterdir()
    return tuple(
        sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))
    )


def preset_text(name: str) -> str:
    """Return a preset's YAML as it is written. Raises CorrKDError for an unknown name."""
    if name not in preset_names():
        raise CorrKDError(f"unknown preset {quoted(name)}; available: {', '.join(preset_names())}")
    return (resources.files(__name__) / f"{name}.yaml").read_text("utf-8")
