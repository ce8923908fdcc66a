"""Finding classes by name: those of the package, and those that other installed packages offer
through an entry point.
"""

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
    """The class of that name, a subclass of `base`.

    Args:
        name: built-in names come first, so none can be taken over.
        built_in: "module:Class" by name.
        group: of the entry points.
        base: what it has to be.
        what: a word for it in errors.
        attribute: of the class, which must be its name too: files store that one.

    Raises:
        CorrKDError: where the name is unknown, an entry point cannot be loaded or is no such class,
            or the class has another name.
    """
    if name in built_in:
        module, _, attribute = built_in[name].partition(":")
        return getattr(import_module(module), attribute)
    points = list(metadata.entry_points(group=group, name=name))
    if not points:
        raise CorrKDError(
            f"unknown {what} {name!r}; available: {', '.join(names(built_in, group))}"
        )
    check_names([name], f"{what}")  # it names folders of a comparison
    where = f"{what} {name!r} (entry point {points[0].value})"
    if len({point.value for point in points}) > 1:
        raise CorrKDError(
            f"{where}: {points[1].value} has the same name; uninstall one of the two packages"
        )
    try:
        class_ = points[0].load()
    except Exception as error:  # another package's code
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
