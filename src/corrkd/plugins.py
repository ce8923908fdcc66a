"""Finding classes by name: built-in ones, and ones that other packages register as entry points."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module, metadata
from typing import Any

from corrkd.errors import CorrKDError
from corrkd.files import check_names


def names(built_in: Mapping[str, str], group: str) -> tuple[str, ...]:
    """Return all names, the built-in ones first."""
    others = sorted({point.name for point in metadata.entry_points(group=group)} - set(built_in))
    return (*built_in, *others)


def find(
    name: str,
    built_in: Mapping[str, str],
    group: str,
    base: type[Any],
    what: str,
    attribute: str | None = None,
) -> Any:
    """Return the class with this name, a subclass of `base`.

    Args:
        name: name of the class; built-in names take precedence and cannot be overridden.
        built_in: "module:Class" by name.
        group: group of the entry points.
        base: base class that the class must have.
        what: noun for the class in error messages.
        attribute: attribute of the class that must equal its name, because files store it.

    Raises:
        CorrKDError: if the name is unknown or not unique, the entry point cannot be loaded or is
            not a subclass of `base`, or the attribute differs from the name.
    """
    if name in built_in:
        module, _, attribute = built_in[name].partition(":")
        return getattr(import_module(module), attribute)
    points = list(metadata.entry_points(group=group, name=name))
    if not points:
        raise CorrKDError(
            f"unknown {what} {name!r}; available: {', '.join(names(built_in, group))}"
        )
    check_names([name], f"{what}")  # folders of a comparison have this name
    where = f"{what} {name!r} (entry point {points[0].value})"
    if len({point.value for point in points}) > 1:
        raise CorrKDError(
            f"{where}: {points[1].value} has the same name; uninstall one of the two packages"
        )
    try:
        class_ = points[0].load()
    except Exception as error:  # code of another package may raise anything
        raise CorrKDError(
            f"{where}: cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    if not (isinstance(class_, type) and issubclass(class_, base)):
        raise CorrKDError(f"{where}: is no subclass of {base.__module__}.{base.__name__}")
    declared = name if attribute is None else getattr(class_, attribute, None)
    if declared != name:
        raise CorrKDError(
            f"{where}: {class_.__qualname__}.{attribute} is {declared!r}; it must be the name of "
            f"the entry point"
        )
    return class_
