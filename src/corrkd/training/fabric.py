"""Lightning's Fabric, loaded without torchmetrics: Lightning asks for its version alone, yet would
load it, and transformers with it.
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
    """Within it, a package that is installed and not yet loaded is an empty module with a
    version.
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
