"""Lightning's Fabric, imported without torchmetrics: Lightning needs only its version, but would
import it, and transformers with it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType

__all__ = ["Fabric"]


@contextmanager
def _with_version_alone(name: str) -> Iterator[None]:
    """Replace a package that is installed but not imported by an empty module with a version,
    within the context.
    """
    if name in sys.modules:
        yield
        return
    module = ModuleType(name)
    try:
        module.__dict__["__version__"] = metadata.version(name)
    except metadata.PackageNotFoundError:
        yield
        return
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]


with _with_version_alone("torchmetrics"):
    from lightning_fabric import Fabric
