"""Reports: tables, figures and the page of a run, made from its folder alone.

The public names are loaded on first use, so that reading the folder of a run loads no matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corrkd.report.report import plain_report, write_report

__all__ = ["plain_report", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from corrkd.report import report

    return getattr(report, name)
