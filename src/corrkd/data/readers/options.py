"""Options of all readers."""

from __future__ import annotations

from pydantic import Field

from corrkd.settings import ReadingSettings


class ReadOptions(ReadingSettings):
    """How to read a dataset, and for what purpose."""

    targets: bool = Field(True, description="whether scores or labels are required")
